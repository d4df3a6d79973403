//! libtorch's own CPU threads: as many as `--threads` says, and no second set that waits beside
//! them.
#![expect(unsafe_code, reason = "calls into bridge.cpp, and is called back from it")]

use std::ffi::c_void;
use std::ops::Range;

unsafe extern "C" {
    fn mmx_parallel(
        count: i64,
        grain: i64,
        part: unsafe extern "C" fn(*const c_void, i64, i64),
        state: *const c_void,
    );
}

/// Calls `part` with ranges that make up `0..count`, none of them shorter than `grain` if there are
/// several.
pub(crate) fn parallel<F: Fn(Range<usize>) + Sync>(count: usize, grain: usize, part: F) {
    unsafe extern "C" fn call<F: Fn(Range<usize>)>(state: *const c_void, begin: i64, end: i64) {
        // SAFETY: `state` is the `part` of `parallel`, which waits until every call has returned.
        let part = unsafe { &*state.cast::<F>() };
        part(begin as usize..end as usize);
    }
    if count == 0 {
        return;
    }
    // SAFETY: `call::<F>` is given the `F` it expects, which may be used by several threads
    // (`Sync`). A panic in it ends the process (extern "C"), so it never unwinds into C++.
    unsafe {
        mmx_parallel(count as i64, grain.max(1) as i64, call::<F>, (&raw const part).cast());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_number_is_in_one_range() {
        let seen: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        parallel(1000, 7, |range| {
            for i in range {
                seen[i].fetch_add(1, Ordering::Relaxed);
            }
        });
        assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
        parallel(0, 1, |_| panic!("there is nothing to do"));
    }

    /// Two threads meet in the middle: on one, the first would wait in vain.
    #[test]
    fn ranges_run_at_the_same_time() {
        use std::time::{Duration, Instant};
        let threads = tch::get_num_threads();
        tch::set_num_threads(2);
        let begun = AtomicUsize::new(0);
        let met = AtomicUsize::new(0);
        parallel(2, 1, |range| {
            begun.fetch_add(1, Ordering::SeqCst);
            let start = Instant::now();
            while begun.load(Ordering::SeqCst) < 2 && start.elapsed() < Duration::from_secs(20) {
                std::thread::yield_now();
            }
            met.fetch_add(begun.load(Ordering::SeqCst) * range.len(), Ordering::SeqCst);
        });
        tch::set_num_threads(threads);
        assert_eq!(met.load(Ordering::SeqCst), 4, "both ranges saw both begin");
    }
}
