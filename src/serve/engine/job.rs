//! What goes into an engine and what comes out: jobs, and the events of their texts.

use std::time::{Duration, Instant};

use mmx_ggml::run::{Finish, Sampling};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::grammar::Constraint;
use crate::error::ApiError;

/// Events of a request that wait for its client before its texts wait, besides [`RESERVE`].
const EVENTS: usize = 128;
/// Events that stay free for each text of a request: the prompt, a token, what is held back and the end must always find
/// room.
const RESERVE: usize = 4;

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

/// OpenAI's word for the end of a text.
pub(crate) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length | Finish::Context | Finish::Cancelled => "length",
    }
}
