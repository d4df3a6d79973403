//! Which core a thread runs on, and how it leaves one that it shares.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "the system's calls"))]

/// The core that this thread runs on at the moment; nothing where the system does not tell.
pub(crate) fn current() -> Option<usize> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: takes nothing, and gives a number that is negative where there is none.
        usize::try_from(unsafe { libc::sched_getcpu() }).ok()
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Goes to a core that is none of `taken`, and gives its number; nothing where this thread may run
/// on no other. Afterwards it may run wherever it might before: this is no pinning.
pub(crate) fn leave(taken: &[usize]) -> Option<usize> {
    #[cfg(target_os = "linux")]
    // SAFETY: sets of cores of the size that is told, which is this system's if the first call
    // succeeds; zeros are the empty set.
    unsafe {
        let size = size_of::<libc::cpu_set_t>();
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size, &mut allowed) != 0 {
            return None;
        }
        let mut others = allowed;
        for &core in taken.iter().filter(|&&core| core < 8 * size) {
            libc::CPU_CLR(core, &mut others);
        }
        if libc::CPU_COUNT(&others) == 0 || libc::sched_setaffinity(0, size, &others) != 0 {
            return None;
        }
        let found = current();
        libc::sched_setaffinity(0, size, &allowed);
        found
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = taken;
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The cores that this thread may run on.
    fn allowed() -> Vec<usize> {
        // SAFETY: as in `leave`.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of_val(&set), &mut set);
            (0..8 * size_of_val(&set)).filter(|&core| libc::CPU_ISSET(core, &set)).collect()
        }
    }

    #[test]
    fn a_thread_leaves_cores_and_may_come_back() {
        let before = allowed();
        for core in &before {
            let taken = [*core];
            match leave(&taken) {
                Some(found) => assert!(before.contains(&found) && found != *core),
                None => assert_eq!(before.len(), 1),
            }
            assert_eq!(allowed(), before);
        }
        assert_eq!(leave(&before), None, "no other core is left");
        assert_eq!(allowed(), before);
    }
}
