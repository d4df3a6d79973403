//! Any bytes as safetensors: refused, or every tensor lies within them. mmx's own checks and those of the crate
//! `safetensors` are held against each other: each refuses what the other does, but for names that come twice, which the
//! crate lets pass.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmx_converters::safetensors::{SafeTensors, check};

fuzz_target!(|data: &[u8]| {
    let (ours, theirs) = (check(data), safetensors::SafeTensors::deserialize(data));
    match (&ours, &theirs) {
        (Ok(()), Err(refused)) => panic!("the crate alone refuses: {refused}"),
        (Err(said), Ok(_)) => assert!(said.contains("expected once, found twice"), "{said}"),
        _ => (),
    }
    let Ok(file) = SafeTensors::from_bytes(data.to_vec(), "fuzz") else { return };
    let theirs = theirs.expect("checked by both");
    assert_eq!(file.len(), theirs.len());
    for name in file.names() {
        let described = file.describe(name).expect("a tensor that was listed");
        let their = theirs.tensor(name).expect("a tensor of both");
        assert_eq!((described.shape, described.bytes), (their.shape(), their.data().len()));
        assert_eq!(described.dtype, their.dtype().to_string());
        let Some(view) = file.get(name) else { continue };
        let elements: usize = view.shape.iter().product();
        assert_eq!(view.data.len(), elements * view.dtype.size(), "{name}");
        assert_eq!(view.data, their.data());
        assert_eq!(view.to_f32().len(), elements);
    }
});
