//! Threads that compute graphs together.
#![expect(unsafe_code, reason = "threads are C objects")]

use std::ptr::NonNull;
use std::time::Duration;

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};
use crate::wrap::cpu::kernels;
use crate::wrap::device::Stream;
use crate::wrap::log;

/// Threads that compute together at most. Source: GGML_MAX_N_THREADS, ggml.h (a macro, so not in
/// the bindings).
pub const MAX_THREADS: usize = 512;
/// Rounds a worker spins while it waits for the next graph, in ggml's unit of some 6 ms: the pause
/// between two tokens is shorter, and a worker that waits longer sleeps.
const POLL: u32 = 1;
/// The least time that workers spin after a graph, whatever the CPU takes for a pause.
pub(crate) const SPIN: Duration = Duration::from_millis(1);

/// A pool of threads that compute graphs.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The CPU with its scratch memory, bound to these threads; dropped before them.
    pub(super) stream: Option<Stream>,
    ptr: NonNull<sys::ggml_threadpool>,
    threads: usize,
}

// SAFETY: the pool is used by one thread at a time, the one that holds it.
unsafe impl Send for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stream = None;
        if let Ok(kernels) = kernels() {
            // SAFETY: the pointer came from ggml_threadpool_new; no graph is being computed.
            unsafe { (kernels.free_pool)(self.ptr.as_ptr()) }
        }
    }
}

impl Pool {
    /// `threads` threads, the caller's being one of them.
    ///
    /// # Errors
    /// None, or more than [`MAX_THREADS`]: ggml would write beyond its list of them, or end the
    /// process.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        Self::with_poll(threads, POLL)
    }

    /// [`Pool::new`] with another time of spinning.
    pub(crate) fn with_poll(threads: usize, poll: u32) -> Result<Self> {
        let count = thread_count(threads)?;
        let kernels = kernels()?;
        let stream = kernels.device.start()?;
        // SAFETY: numbers and flags, for which zeros are values, filled in by ggml; at least one
        // thread.
        let ptr = unsafe {
            let mut params = std::mem::zeroed();
            sys::ggml_threadpool_params_init(&mut params, count);
            params.poll = poll;
            // until the first graph workers sleep: they would spin beside who prepares it, on the
            // same core even, and be taken for other work by who looks whether the cores are free
            params.paused = true;
            (kernels.new_pool)(&mut params)
        };
        let ptr = NonNull::new(ptr)
            .ok_or_else(|| log::library_error(format!("{threads} threads"), String::new()))?;
        let pool = Self { stream: Some(stream), ptr, threads };
        if let Some(stream) = &pool.stream {
            pool.bind(stream)?;
        }
        Ok(pool)
    }

    /// Has the CPU's part of what is given to `stream` computed by these threads.
    pub(crate) fn bind(&self, stream: &Stream) -> Result<()> {
        let kernels = kernels()?;
        // SAFETY: a live CPU stream and live threads, which outlive their use: a pool's own stream
        // is dropped before it, a pair's is bound anew before each computation.
        unsafe {
            (kernels.set_threads)(stream.raw(), self.threads as i32);
            (kernels.set_pool)(stream.raw(), self.ptr.as_ptr());
        }
        Ok(())
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    pub(crate) fn raw(&self) -> *mut sys::ggml_threadpool {
        self.ptr.as_ptr()
    }
}

/// A number of threads as C takes it.
///
/// # Errors
/// None, or more than [`MAX_THREADS`].
pub(crate) fn thread_count(threads: usize) -> Result<i32> {
    match i32::try_from(threads) {
        Ok(count) if (1..=MAX_THREADS).contains(&threads) => Ok(count),
        _ => Err(Error::Request {
            message: format!("expected 1 to {MAX_THREADS} threads, found {threads}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As an `i32` the third is none, the fourth less than that: ggml writes beyond the list of no
    /// threads.
    #[test]
    fn impossible_numbers_of_threads_are_refused() {
        for threads in [0, MAX_THREADS + 1, 1 << 32, 1 << 31] {
            let message = Pool::new(threads).unwrap_err().to_string();
            assert!(message.contains(&format!("found {threads}")), "{message}");
        }
        assert_eq!(Pool::new(3).unwrap().threads(), 3);
    }
}
