//! Jobs, which go into an engine, and the events of their texts, which come out of it.

use std::time::{Duration, Instant};

use mmx_ggml::run::{Finish, Sampling};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::grammar::Constraint;
use crate::error::ApiError;

/// Room of a request's channel, in events, besides [`RESERVE`]: with more of them waiting for the
/// client, its texts wait.
const EVENTS: usize = 128;
/// Room kept for each text of a request, in events: the prompt, a token, text that was held back
/// and the end must always find room.
const RESERVE: usize = 4;

/// The sender of the events of a request's texts, each with the text's index.
pub(crate) type EventSender = Sender<(usize, Event)>;
/// The receiver of the events of a request's texts.
pub(crate) type Events = Receiver<(usize, Event)>;

/// Makes the channel of a request of so many texts.
pub(crate) fn events(texts: usize) -> (EventSender, Events) {
    channel(EVENTS + RESERVE * texts.max(1))
}

/// One text to be computed.
pub(crate) struct Job {
    /// Ids to read, at least one, fewer than the context holds.
    pub(crate) prompt: Vec<u32>,
    pub(crate) task: Task,
    /// The moment after which the job is given up.
    pub(crate) deadline: Instant,
    /// The moment at which the request came.
    pub(crate) since: Instant,
    /// Index of the text among the request's.
    pub(crate) index: usize,
    /// Number of the request's texts.
    pub(crate) texts: usize,
    pub(crate) events: EventSender,
}

impl Job {
    /// Tokens that a step may write of each of the request's texts, so that all their events find
    /// room; 0 while the client does not keep up.
    pub(crate) fn room(&self) -> usize {
        let of_each = self.events.capacity().saturating_sub(1) / self.texts.max(1);
        (of_each + 1).saturating_sub(RESERVE)
    }

    pub(crate) fn send(&self, event: Event) {
        send(&self.events, self.index, event);
    }
}

/// Sends an event of a request's text. A client that is gone is noticed in the next round; that
/// there is room is seen to by [`Job::room`] before a step.
pub(crate) fn send(events: &EventSender, index: usize, event: Event) {
    let _ = events.try_send((index, event));
}

/// The kind of a job.
pub(crate) enum Task {
    /// Writes text after the prompt.
    Write(Box<Write>),
    /// Computes the mean of the prompt's final hidden states.
    Embed,
}

/// Settings of a text to be written.
pub(crate) struct Write {
    /// Most tokens of the text; 0 for a prompt that is only read.
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    /// The probability of each token is wanted, and those of this many others.
    pub(crate) logprobs: Option<usize>,
    /// Probabilities are wanted of the prompt's tokens too, and of a token that ends the text. The
    /// whole prompt is then computed for this job, whatever other slots hold of it.
    pub(crate) echo_logprobs: bool,
    pub(crate) constraint: Option<Constraint>,
    /// The text goes on after an end token.
    pub(crate) ignore_end: bool,
}

/// A result of a job, sent as soon as it is certain.
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

/// The end of a text with its counts and times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    pub(crate) finish: Finish,
    /// Which of the stop strings ended it, if one did.
    pub(crate) stop: Option<usize>,
    pub(crate) prompt_tokens: usize,
    /// Tokens of the prompt that another request had computed.
    pub(crate) cached_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// Time from the request to the computation of its first token.
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
