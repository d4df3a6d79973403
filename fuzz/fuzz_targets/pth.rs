//! Any bytes as a torch checkpoint: refused, or every tensor has as many bytes as its shape says. Nothing is run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmx_converters::pth::Pth;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = Pth::from_bytes(data.to_vec(), "fuzz") else { return };
    for tensor in file.tensors() {
        let elements: usize = tensor.shape.iter().product();
        // strided views may be larger than the file, by a bounded factor
        assert_eq!(file.data(tensor).len(), elements * tensor.dtype.size(), "{}", tensor.name);
    }
});
