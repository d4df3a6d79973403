//! The thread that owns a model's runner. Requests reach it as [`Job`]s through a bounded queue; what it
//! computes goes back as [`Event`]s through a bounded channel: a text whose client reads slowly is not written further until
//! there is room (others go on), and one that does not read for [`STALL`] is given up, as a job whose receiver is gone.

pub(crate) mod grammar;
mod scheduler;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mmx_ggml::run::{Finish, Model, Sampling, Slots, SlotsOptions};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::error::ApiError;
use super::metrics::Histogram;
use grammar::Constraint;
use mmx_converters::{Error, Result};
use scheduler::Scheduler;

/// Events of a request that wait for its client before its texts wait, besides [`RESERVE`].
const EVENTS: usize = 128;
/// Events that stay free for each text of a request: the prompt, a token, what is held back and the end must always find
/// room.
const RESERVE: usize = 4;
/// Longest time a text waits for a client that does not read.
pub(crate) const STALL: Duration = Duration::from_secs(30);
/// Pause of the engine when every text waits for its client.
const PAUSE: Duration = Duration::from_millis(2);

/// Where the events of a request's texts go, each with the text's index.
pub(crate) type EventSender = Sender<(usize, Event)>;
/// Where they come out.
pub(crate) type Events = Receiver<(usize, Event)>;

/// The channel of a request of so many texts.
pub(crate) fn events(texts: usize) -> (EventSender, Events) {
    channel(EVENTS + RESERVE * texts.max(1))
}

/// One text to be computed.
pub(crate) struct Job {
    /// Ids to read, at least one, fewer than the context holds.
    pub(crate) prompt: Vec<u32>,
    pub(crate) task: Task,
    /// Given up after this moment.
    pub(crate) deadline: Instant,
    /// When the request came.
    pub(crate) since: Instant,
    /// Which of a request's texts this is.
    pub(crate) index: usize,
    /// Texts of the request.
    pub(crate) texts: usize,
    pub(crate) events: EventSender,
}

impl Job {
    /// Tokens that a step may write of each of the request's texts, so that all their events find room; 0 while the
    /// client does not keep up.
    pub(crate) fn room(&self) -> usize {
        let of_each = self.events.capacity().saturating_sub(1) / self.texts.max(1);
        (of_each + 1).saturating_sub(RESERVE)
    }

    pub(crate) fn send(&self, event: Event) {
        send(&self.events, self.index, event);
    }
}

/// Sends an event of a request's text. A client that is gone is noticed in the next round; that there is room is seen to
/// by [`Job::room`] before a step.
pub(crate) fn send(events: &EventSender, index: usize, event: Event) {
    let _ = events.try_send((index, event));
}

/// What a job is for.
pub(crate) enum Task {
    /// Text after the prompt.
    Write(Box<Write>),
    /// The mean of the prompt's final hidden states.
    Embed,
}

/// How text is written.
pub(crate) struct Write {
    /// Ids at most. None are written after a prompt that is only read.
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    /// Probabilities of each id, and of this many others.
    pub(crate) logprobs: Option<usize>,
    /// The same of the prompt's ids, and of an id that ends the text: nothing that was computed for others is of use then.
    pub(crate) echo_logprobs: bool,
    pub(crate) constraint: Option<Constraint>,
    /// Go on after an end token.
    pub(crate) ignore_end: bool,
}

/// What a job gives.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The prompt was read: its ids after the first one, where their probabilities were asked for.
    Prompt(Vec<TokenLogprob>),
    /// Text that is certain, and its tokens where their probabilities were asked for.
    Text(String, Vec<TokenLogprob>),
    /// The end of a text.
    Done(Summary),
    /// The end of an embedding: the mean hidden state, `[hidden]`, and the ids read.
    Embedding(Vec<f32>, usize),
    /// The end of a job that could not be done.
    Failed(ApiError),
}

/// A token with its probability.
#[derive(Clone, Debug)]
pub(crate) struct TokenLogprob {
    pub(crate) id: u32,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(u32, f32)>,
}

/// How a text ended and what it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    pub(crate) finish: Finish,
    pub(crate) prompt_tokens: usize,
    /// Of these, those that another request had computed.
    pub(crate) cached_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// From the request to the first token's computation.
    pub(crate) queued: Duration,
    pub(crate) prefill: Duration,
    pub(crate) decode: Duration,
}

/// Counters of one engine; the engine writes, `/metrics` reads.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) waiting: AtomicUsize,
    pub(crate) active: AtomicUsize,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) cached_tokens: AtomicU64,
    pub(crate) completion_tokens: AtomicU64,
    pub(crate) guessed_tokens: AtomicU64,
    pub(crate) accepted_tokens: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) first_token: Histogram,
}

/// The way to the thread.
pub(crate) struct Engine {
    jobs: mpsc::Sender<Job>,
    stats: Arc<Stats>,
    /// Jobs that may wait.
    queue: usize,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the thread; `speculate` tokens of a text are guessed ahead at most.
    ///
    /// # Errors
    /// No memory for the slots, a model without a tokenizer, no thread.
    pub(crate) fn start(
        model: &Model,
        options: SlotsOptions,
        speculate: usize,
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
                let mut scheduler = Scheduler::new(slots, speculate, tokenizer, &thread_stats);
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

    /// Ends what is being computed, and takes nothing new.
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
