//! Counters of an engine, which it writes and `/metrics` reads.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Upper bounds of the histogram's buckets, seconds.
pub(crate) const BOUNDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// A histogram of times.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    pub(crate) counts: [AtomicU64; BOUNDS.len()],
    pub(crate) total: AtomicU64,
    pub(crate) microseconds: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bound, count) in BOUNDS.iter().zip(&self.counts) {
            if seconds <= *bound {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.total.fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }
}

/// Counters of one engine.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) waiting: AtomicUsize,
    pub(crate) active: AtomicUsize,
    pub(crate) prompt_cache_bytes: AtomicUsize,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) cached_tokens: AtomicU64,
    pub(crate) completion_tokens: AtomicU64,
    pub(crate) drafted_tokens: AtomicU64,
    pub(crate) accepted_tokens: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) first_token: Histogram,
}
