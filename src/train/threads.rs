//! libtorch's worker threads.

/// Calls each of MKL's vector functions and its matrix product once on one thread, then gives the
/// threads back.
///
/// The first call in a process chooses the kernel for the CPU, and when two threads make it at once
/// one of them can compute with another kernel: measured, the first loss of one run in about 250
/// differed by 2e-6 of its value, so that a resumed run did not end bit for bit as the unbroken
/// one.
///
/// # Errors
/// libtorch's: no memory for some small tensors.
pub fn choose_kernels() -> crate::error::Result<()> {
    use tch::{Device, Kind, Tensor};
    /// Enough values that libtorch hands them to MKL rather than to its own loops.
    const SIDE: i64 = 256;
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    let call = || -> Result<(), tch::TchError> {
        let x = Tensor::f_ones([SIDE, SIDE], (Kind::Float, Device::Cpu))?;
        for x in [x.shallow_clone(), x.f_to_kind(Kind::Double)?] {
            let _ = (x.f_exp()?, x.f_log()?, x.f_cos()?, x.f_sin()?, x.f_sqrt()?, x.f_tanh()?);
            let _ = (x.f_mm(&x)?, x.f_unsqueeze(0)?.f_bmm(&x.f_unsqueeze(0)?)?);
        }
        Ok(())
    };
    let called = call();
    tch::set_num_threads(threads);
    called.map_err(|e| {
        <crate::error::Error as crate::error::TorchError>::torch("choosing kernels", &e)
    })
}
