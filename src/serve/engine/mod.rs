//! The engine of a model: the thread that owns its runner. Requests reach it as [`Job`]s through a
//! bounded queue; its results go back as [`Event`]s through a bounded channel: a text whose client
//! reads slowly is not written further until there is room (others go on), and one that does not
//! read for [`scheduler::STALL`] is given up, as a job whose receiver is gone.

pub(crate) mod grammar;
mod job;
mod prompt_cache;
mod scheduler;
mod sequence;
mod stats;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use mmx_ggml::run::{Model, Slots, SlotsOptions};

use crate::error::ApiError;
pub(crate) use job::{Event, Events, Job, Summary, Task, TokenLogprob, Write, events, finish_name};
use mmx_converters::{Error, Result};
use prompt_cache::PromptCache;
use scheduler::Scheduler;
pub(crate) use stats::{BOUNDS, Stats};

/// Pause of the engine when every text waits for its client.
const PAUSE: Duration = Duration::from_millis(2);

/// A handle of an engine's thread, which ends with it.
pub(crate) struct Engine {
    jobs: mpsc::Sender<Job>,
    stats: Arc<Stats>,
    /// Most jobs that may wait.
    queue: usize,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the thread; `speculate` tokens of a text are drafted ahead at most, and texts that
    /// lost their slot take at most `cache` bytes.
    ///
    /// # Errors
    /// No memory for the slots, a model without a tokenizer, no thread.
    pub(crate) fn start(
        model: &Model,
        options: SlotsOptions,
        speculate: usize,
        cache: usize,
        queue: usize,
    ) -> Result<Self> {
        let slots = Slots::new(model, options)?;
        model.tokenizer()?;
        let stats = Arc::new(Stats::default());
        let stopping = Arc::new(AtomicBool::new(false));
        let (jobs, receiver) = mpsc::channel();
        let (thread_stats, thread_stopping) = (stats.clone(), stopping.clone());
        let model = model.clone();
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                // the tokenizer was read above
                let Ok(tokenizer) = model.tokenizer() else { return };
                let cache = PromptCache::new(cache);
                let mut scheduler =
                    Scheduler::new(slots, speculate, cache, tokenizer, &thread_stats);
                loop {
                    if scheduler.is_idle() {
                        match receiver.recv() {
                            Ok(job) => scheduler.queue(job),
                            Err(_) => return, // nobody can send any more
                        }
                    }
                    while let Ok(job) = receiver.try_recv() {
                        scheduler.queue(job);
                    }
                    if thread_stopping.load(Ordering::Relaxed) {
                        scheduler.give_up();
                    }
                    if !scheduler.round() && !scheduler.is_idle() {
                        // nothing to compute: every client is slower than its text
                        if let Ok(job) = receiver.recv_timeout(PAUSE) {
                            scheduler.queue(job);
                        }
                    }
                }
            })
            .map_err(|e| Error::failed(format!("a thread for the engine: {e}")))?;
        Ok(Self { jobs, stats, queue, stopping, thread: Some(thread) })
    }

    /// Queues a request's jobs, all or none.
    ///
    /// # Errors
    /// 429 when so many do not fit into the queue, 503 when the engine is gone.
    pub(crate) fn submit(&self, jobs: Vec<Job>) -> Result<(), ApiError> {
        let count = jobs.len();
        let waiting = &self.stats.waiting;
        let room = |now: usize| (now + count <= self.queue).then_some(now + count);
        waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, room)
            .map_err(|now| ApiError::busy(count, now, self.queue))?;
        for (sent, job) in jobs.into_iter().enumerate() {
            if self.stopping.load(Ordering::Relaxed) || self.jobs.send(job).is_err() {
                waiting.fetch_sub(count - sent, Ordering::AcqRel);
                return Err(ApiError::unavailable("the server is stopping"));
            }
        }
        Ok(())
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Ends the jobs in progress; the engine takes no new ones.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        // the thread ends when the last sender is gone
        self.jobs = mpsc::channel().0;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
