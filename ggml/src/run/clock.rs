//! What the benchmarks of both engines have in common: the clock, and the text that is read.
#![cfg_attr(unix, expect(unsafe_code, reason = "the system's clock of this process"))]

use std::sync::OnceLock;
use std::time::Instant;

/// The clock that a benchmark's seconds are read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// Seconds on the wall: what counts on a machine that nobody else uses.
    #[default]
    Wall,
    /// Seconds that this process's threads computed: nearly the same for one thread, also on a busy
    /// machine. Wall time where the system does not tell.
    Cpu,
}

impl Clock {
    /// Seconds since a beginning that never changes.
    pub fn now(self) -> f64 {
        #[cfg(unix)]
        if self == Self::Cpu {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: a live structure to be filled in.
            let code = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
            if code == 0 {
                return time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9;
            }
        }
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_secs_f64()
    }
}

/// Token `i` of the made-up text of a benchmark: spread over the vocabulary, so that rows of the
/// embedding are read from all over it.
pub(crate) fn made_up_token(i: usize, vocab: usize) -> u32 {
    (i.wrapping_mul(2_654_435_761) >> 7) as u32 % vocab.max(1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_no_work() {
        let starts = [Clock::Wall, Clock::Cpu].map(Clock::now);
        std::thread::sleep(std::time::Duration::from_millis(30));
        let [wall, cpu] = [Clock::Wall.now() - starts[0], Clock::Cpu.now() - starts[1]];
        assert!(wall >= 0.03 && cpu >= 0.0, "{wall}, {cpu}");
    }
}
