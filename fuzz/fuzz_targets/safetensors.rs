//! Any bytes as safetensors: refused, or every tensor lies within them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmx_converters::safetensors::SafeTensors;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = SafeTensors::from_bytes(data.to_vec(), "fuzz") else { return };
    for name in file.names() {
        let view = file.get(name).expect("a tensor that was listed");
        let elements: usize = view.shape.iter().product();
        assert_eq!(view.data.len(), elements * view.dtype.size(), "{name}");
        assert_eq!(view.to_f32().len(), elements);
    }
});
