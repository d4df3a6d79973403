//! Any text as a chat template: it compiles or says why, and renders a chat or says why, in bounded time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmx_converters::chat::{Options, Template, message};
use serde_json::Map;

fuzz_target!(|data: &str| {
    let template = Template::new(data, Map::new());
    let chat =
        [message("system", "s"), message("user", "你好 <|im_end|>"), message("assistant", "a")];
    let rendered = template.render(&chat, &Options::generation());
    assert!(template.compile_error().is_none() || rendered.is_err());
});
