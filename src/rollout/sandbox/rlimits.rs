//! Limits of a process, as every Unix has them.
#![expect(unsafe_code, reason = "the standard library does not have them")]

use super::command::Limits;

/// The kind of a limit, whose C type differs between systems.
pub(super) type Resource = u32;

/// Limits as the system takes them: of processor time, address space, files, core dumps.
pub(super) fn of(limits: &Limits) -> [(Resource, u64); 4] {
    let cpu = (limits.time.as_secs_f64() * 1.5).ceil().max(1.0) as u64;
    [
        (libc::RLIMIT_CPU as Resource, cpu),
        (libc::RLIMIT_AS as Resource, limits.memory_bytes),
        (libc::RLIMIT_FSIZE as Resource, limits.file_bytes),
        (libc::RLIMIT_CORE as Resource, 0),
    ]
}

/// Sets limits of this process. It allocates nothing: it is called between fork and exec.
pub(super) fn set(limits: &[(Resource, u64)]) -> std::io::Result<()> {
    for (resource, value) in limits {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the struct lives through the call.
        let known = unsafe { libc::getrlimit(*resource as _, &raw mut limit) } == 0;
        // what is limited already cannot be raised
        let value = if known { limit.rlim_max.min(*value as _) } else { *value as _ };
        limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: the struct lives through the call.
        if unsafe { libc::setrlimit(*resource as _, &raw const limit) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}
