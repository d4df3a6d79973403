//! How libtorch's worker threads wait for each other.

/// Starts the process anew with GOMP_SPINCOUNT set, unless the user has set how OpenMP waits.
///
/// libtorch's threads meet at a barrier after every operation, and libgomp's default is to spin there for
/// milliseconds. Where another process has one of the cores, the spinning takes the other one from the
/// thread that is waited for: measured on 2 cores with a compiler running beside, a training step took
/// 6 s instead of 2.5 s. A short spin and then sleep costs nothing measurable on an idle machine.
/// libgomp reads the variable when it is loaded, before `main`: hence the new start.
#[cfg(target_os = "linux")]
pub fn restart_with_short_spins() {
    use std::os::unix::process::CommandExt;
    /// Loops before a thread sleeps; some 10 microseconds.
    const SPINS: &str = "1000";
    let set = |name| std::env::var_os(name).is_some();
    if set("GOMP_SPINCOUNT") || set("OMP_WAIT_POLICY") {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    // returns only if it failed: then the run goes on as it is
    let _ = std::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .env("GOMP_SPINCOUNT", SPINS)
        .exec();
}

/// Other systems' OpenMP runtimes are left as they are.
#[cfg(not(target_os = "linux"))]
pub fn restart_with_short_spins() {}

/// Calls each of MKL's vector functions and its matrix product once on one thread, then gives the threads back.
///
/// The first call in a process chooses the kernel for the CPU, and when two threads make it at once one of them
/// can compute with another kernel: measured, the first loss of one run in about 250 differed by 2e-6 of its
/// value, so that a resumed run did not end bit for bit as the unbroken one.
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
    called.map_err(|e| crate::error::Error::torch("choosing kernels", &e))
}
