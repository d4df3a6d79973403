//! Any bytes as a data file: every line is a record or a fault that names it.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/data/jsonl.rs"]
#[allow(dead_code)]
mod jsonl;

fuzz_target!(|data: &[u8]| {
    for line in jsonl::lines(data) {
        assert!(line.number > 0 && line.offset <= data.len());
        for kind in [jsonl::Kind::Text, jsonl::Kind::Chat, jsonl::Kind::Preference] {
            if let Err(fault) = jsonl::parse(&line, kind) {
                assert_eq!(fault.line, line.number);
                assert!(!fault.message.is_empty());
            }
        }
    }
});
