//! Any bytes as a data file: every line is a record or a fault that names it.
#![no_main]

use libfuzzer_sys::fuzz_target;

use mmx_data::{Fields, Kind, forms, jsonl};

fuzz_target!(|data: &[u8]| {
    for line in jsonl::lines(data) {
        assert!(line.number > 0 && line.offset <= data.len());
        for kind in [Kind::Text, Kind::Chat, Kind::Preference] {
            if let Err(fault) = forms::parse(&line, kind, &Fields::default()) {
                assert_eq!(fault.line, line.number);
                assert!(!fault.message.is_empty());
            }
        }
    }
});
