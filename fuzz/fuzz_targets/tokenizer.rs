//! Any bytes as tokenizer.json: refused, or it encodes, and decodes what it encoded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmx_converters::tokenizer::Tokenizer;

fuzz_target!(|data: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_json(data.to_vec(), "fuzz") else { return };
    let Ok(ids) = tokenizer.encode("hello 你好, it's 123\n<|im_end|>") else { return };
    assert!(ids.iter().all(|&id| (id as usize) < 1 << 31));
    let _ = tokenizer.decode(&ids, true);
});
