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
