//! The one place where the optimizer looks at a tensor's memory.
#![expect(unsafe_code, reason = "libtorch gives raw pointers only")]

use tch::{Device, Kind, Tensor};

/// The elements of a flat float32 tensor on the CPU, a buffer of [`super::Optimizer`] or of one of
/// its updates, or a part of one; empty for others.
pub(super) fn slice(tensor: &mut Tensor) -> &mut [f32] {
    let flat = tensor.device() == Device::Cpu
        && tensor.kind() == Kind::Float
        && tensor.dim() == 1
        && tensor.is_contiguous();
    if !flat || tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: a contiguous one-dimensional float32 CPU tensor is `numel` initialized floats at
    // `data_ptr` (checked above). The buffers were allocated apart by `f_zeros`, and no caller asks
    // for two overlapping parts of one, so slices do not overlap; the model's leaves view one of
    // the buffers, and no libtorch call reads or writes it while the slices live: they are used
    // inside one step, on whose thread autograd would be called.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
}
