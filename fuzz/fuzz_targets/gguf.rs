//! Any bytes as GGUF: refused, or every tensor lies within them, the keys print, and what says it is an importance
//! matrix, a configuration or a tokenizer is one or is refused.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mmx_converters::arch::{Config, weights};
use mmx_converters::gguf::Gguf;
use mmx_converters::tokenizer::Tokenizer;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = Gguf::from_bytes(data.to_vec(), "fuzz") else { return };
    for tensor in file.tensors() {
        assert_eq!(file.data(tensor).len(), tensor.bytes, "{}", tensor.name);
    }
    for (_, value) in file.metadata().iter() {
        assert!(value.describe().len() < 1 << 20);
    }
    if let Ok(config) = Config::from_gguf(&file) {
        // as Model::open bounds it
        let experts = config.moe.as_ref().map_or(0, |moe| moe.num_experts + moe.shared_experts);
        if config.num_hidden_layers.saturating_mul(experts + 12) < 1 << 12 {
            weights(&config);
        }
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(file.metadata(), Path::new("fuzz")) {
        let _ = tokenizer.encode("a 你好 <|im_end|> 123");
    }
});
