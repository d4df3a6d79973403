//! How many threads compute the next step: all of them, or one where the cores are busy with other
//! work.
//!
//! ggml's threads wait for each other at every operation of a graph. Where another process holds a
//! core, a thread that lost it keeps all others spinning until it gets it back, and a step of under
//! a millisecond takes several (measured with llama.cpp: two threads fell from 2300 to 86 tokens/s,
//! where one thread does 1481). So single-thread steps are the measure: what steps with all threads
//! save against them is an account, from which their losses are paid; when it is overdrawn, the
//! session goes back to one thread, for longer each time it happens.

use std::time::{Duration, Instant};

/// Steps on one thread before all threads are tried for the first time: enough for a measure.
const FIRST: u32 = 2;
/// Steps on one thread after a bad try: one lost time slice of some milliseconds must cost little
/// against them.
const HOLD: u32 = 32;
/// The longest stay on one thread, steps.
const LONGEST: u32 = 2048;
/// Steps on all threads between two looks at the cores (a look takes some 10 microseconds).
const LOOK: u32 = 16;
/// Good steps in a row that make earlier bad tries forgotten.
const FORGET: u32 = 256;
/// What of a step's time on one thread may be waited for busy cores: what sends the last tokens
/// runs just when the next step begins.
const PATIENCE: f64 = 0.1;
/// Weight of the newest step in the running means.
const NEWEST: f64 = 0.25;
/// What a try may lose before it has saved anything, in steps on one thread: its first step also
/// wakes the threads.
const CREDIT: f64 = 2.0;
/// What is kept of the time saved, in steps on one thread: so many are lost at most where cores get
/// busy. A time slice that is lost now and then, 8 steps long, is no reason to stop.
const KEPT: f64 = 16.0;

/// The decision for steps of one kind (one token each): one thread or all.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Running mean of a step on one thread, seconds.
    alone: Option<f64>,
    /// What steps on all threads saved since they are in use, less what they lost, seconds.
    saved: f64,
    /// Steps on one thread that are left.
    left: u32,
    /// The next stay on one thread.
    hold: u32,
    /// Good steps on all threads in a row.
    good: u32,
    /// Steps on one thread after the next look that finds a core busy: few at first, since what
    /// runs for a moment (who sends the last token, say) will be gone.
    wait: u32,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { alone: None, saved: 0.0, left: FIRST, hold: HOLD, good: 0, wait: 1 }
    }

    /// Whether the next step is to use all threads; `free` looks whether the cores are free within
    /// so many seconds, and is asked before a try and then every [`LOOK`] steps. A step that meets
    /// a busy core waits at each of its operations (measured: up to half a second), so a look is
    /// cheaper than a try.
    pub(super) fn all_threads(&mut self, free: impl FnOnce(f64) -> bool) -> bool {
        if self.left == 0 && self.good.is_multiple_of(LOOK) {
            if free(self.alone.unwrap_or_default() * PATIENCE) {
                self.wait = 1;
            } else {
                self.left = self.wait;
                self.wait = (self.wait * 2).min(HOLD);
                self.good = 0;
            }
        }
        self.left == 0
    }

    /// Records the time of a step that was computed as [`Pace::all_threads`] said last.
    pub(super) fn record(&mut self, seconds: f64) {
        let mean = |old: Option<f64>| {
            Some(old.map_or(seconds, |old| old * (1.0 - NEWEST) + seconds * NEWEST))
        };
        if self.left > 0 {
            // the first step warms caches up: the faster of the two is nearer to the truth
            self.alone = match (self.left, self.alone) {
                (1, Some(first)) if self.hold == HOLD => Some(first.min(seconds)),
                (_, old) => mean(old),
            };
            self.left -= 1;
            return;
        }
        let Some(alone) = self.alone else { return };
        if self.good == 0 {
            self.saved = CREDIT * alone;
        }
        self.saved = (self.saved + alone - seconds).min(KEPT * alone);
        if self.saved < 0.0 {
            self.left = self.hold;
            self.hold = (self.hold * 2).min(LONGEST);
            self.good = 0;
        } else {
            self.good += 1;
            if self.good >= FORGET {
                self.hold = HOLD;
            }
        }
    }
}

/// True once `threads` threads find a core free, at the latest after `patience` seconds, and at
/// least one look; `spinning` threads of our own are not in the way.
pub(super) fn are_free(threads: usize, spinning: usize, patience: f64) -> bool {
    /// Between two looks.
    const PAUSE: Duration = Duration::from_micros(50);
    /// For so long there is no pause: a core that sleeps for 50 microseconds was back after 300
    /// (measured, a virtual machine), and what runs for a moment is gone by then.
    const AWAKE: Duration = Duration::from_micros(200);
    let start = Instant::now();
    while free_threads(threads, spinning) < threads {
        let waited = start.elapsed();
        if waited.as_secs_f64() >= patience {
            return false;
        }
        match waited < AWAKE {
            true => std::thread::yield_now(),
            false => std::thread::sleep(PAUSE),
        }
    }
    true
}

/// Threads of at most `threads` that find a core free at this moment, at least one. Where the
/// system does not tell (it does on Linux), all.
fn free_threads(threads: usize, spinning: usize) -> usize {
    let cores = crate::cpus();
    let others = fs_err::read_to_string("/proc/loadavg").ok().and_then(|text| running(&text));
    match others {
        Some(others) => cores.saturating_sub(others.saturating_sub(spinning)).clamp(1, threads),
        None => threads,
    }
}

/// Threads other than this one that run or want to: the fourth field of /proc/loadavg is
/// `running/all`.
fn running(loadavg: &str) -> Option<usize> {
    let counts = loadavg.split_whitespace().nth(3)?;
    Some(counts.split('/').next()?.parse::<usize>().ok()?.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time of `steps` steps, and how many used all threads, when one thread takes 1 and all take
    /// `all(i)`.
    fn simulate(pace: &mut Pace, steps: usize, all: impl Fn(usize) -> f64) -> (f64, usize) {
        let (mut time, mut together) = (0.0, 0);
        for step in 0..steps {
            let many = pace.all_threads(|_| true);
            let seconds = if many { all(step) } else { 1.0 };
            together += usize::from(many);
            pace.record(seconds);
            time += seconds;
        }
        (time, together)
    }

    #[test]
    fn free_cores_are_used() {
        let (time, together) = simulate(&mut Pace::new(), 128, |_| 0.6);
        assert_eq!(together, 126);
        assert!(time < 128.0 * 0.62);
    }

    #[test]
    fn busy_cores_cost_less_than_half() {
        // a step that loses its core waits for a time slice, ten single-thread steps long
        for steps in [128, 1024] {
            let (time, together) = simulate(&mut Pace::new(), steps, |_| 10.0);
            assert!(time < 1.5 * steps as f64, "{steps} steps took {time}");
            assert!(together <= 8);
        }
    }

    #[test]
    fn cores_seen_busy_are_not_tried() {
        let mut pace = Pace::new();
        for _ in 0..1000 {
            assert!(!pace.all_threads(|_| false));
            pace.record(1.0);
        }
        let mut together = 0;
        for _ in 0..100 {
            let many = pace.all_threads(|_| true);
            together += usize::from(many);
            pace.record(if many { 0.6 } else { 1.0 });
        }
        assert!(together > 60, "{together}");
    }

    /// A look at the wrong moment costs a step, not many.
    #[test]
    fn what_runs_for_a_moment_does_not_keep_threads_away() {
        let mut pace = Pace::new();
        let (mut looks, mut together) = (0, 0);
        for _ in 0..1000 {
            let many = pace.all_threads(|_| {
                looks += 1;
                looks % 2 == 0
            });
            together += usize::from(many);
            pace.record(if many { 0.6 } else { 1.0 });
        }
        assert!(together > 900, "{together}");
    }

    #[test]
    fn threads_come_back_when_the_cores_are_free_again() {
        let mut pace = Pace::new();
        simulate(&mut pace, 300, |_| 10.0);
        let (_, together) = simulate(&mut pace, 2000, |_| 0.6);
        assert!(together > 1500, "{together}");
    }

    #[test]
    fn a_slow_second_thread_is_not_used() {
        // no stall, but no gain either
        let (time, _) = simulate(&mut Pace::new(), 512, |_| 1.3);
        assert!(time < 512.0 * 1.02, "{time}");
    }

    /// The first step on all threads wakes them, and a time slice is lost now and then.
    #[test]
    fn a_step_lost_now_and_then_is_paid_by_what_was_saved() {
        let mut pace = Pace::new();
        let (mut before, mut together, mut time) = (false, 0, 0.0);
        for step in 0..2000 {
            let many = pace.all_threads(|_| true);
            let seconds = match (many, before) {
                (false, _) => 1.0,
                (true, false) => 1.15,
                (true, true) if step % 100 == 0 => 8.0,
                (true, true) => 0.7,
            };
            (before, together, time) = (many, together + usize::from(many), time + seconds);
            pace.record(seconds);
        }
        assert!(together > 1900 && time < 1600.0, "{together} of 2000, {time}");
    }

    #[test]
    fn reads_how_many_threads_run() {
        assert_eq!(running("8.44 8.19 6.35 3/412 9123\n"), Some(2));
        assert_eq!(running("0.00 0.00 0.00 1/80 5"), Some(0));
        assert_eq!(running("nonsense"), None);
        assert!((1..=4).contains(&free_threads(4, 0)));
        assert!(free_threads(4, 0) <= free_threads(4, 1_000_000));
    }
}
