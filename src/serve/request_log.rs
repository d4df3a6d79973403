//! The log of requests: what a line says, who takes it, and what is learned of a request on the way.
//!
//! Handlers work within the [`Facts`] of their request, which whoever learns something adds to:
//! where it is let in, its key; where a model is found, the model; where texts end, their tokens.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};

/// A request that was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestLine {
    /// When it came.
    pub time: DateTime<Utc>,
    /// Its method.
    pub method: String,
    /// Its path, without what stands after a question mark.
    pub path: String,
    /// The answer's status.
    pub status: u16,
    /// Seconds until the answer began.
    pub began: f64,
    /// Seconds until it ended.
    pub ended: f64,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// False where the client left before the end.
    pub whole: bool,
    /// The model that was asked for, where one was found.
    pub model: Option<String>,
    /// Tokens of prompts and tokens written, where texts ended.
    pub tokens: Option<(u64, u64)>,
}

/// Whoever takes the lines of the log.
#[derive(Clone)]
pub struct RequestLog(Arc<dyn Fn(&RequestLine) + Send + Sync>);

impl RequestLog {
    /// A log whose lines go to a function, which any thread may call.
    pub fn new(take: impl Fn(&RequestLine) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }
}

impl RequestLog {
    pub(crate) fn write(&self, line: &RequestLine) {
        (self.0)(line);
    }
}

impl std::fmt::Debug for RequestLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RequestLog")
    }
}

/// What is learned of a request while it is worked on.
#[derive(Debug, Default)]
struct Learned {
    asker: Option<usize>,
    model: Option<String>,
    tokens: Option<(u64, u64)>,
}

/// The facts of a request, shared by everything that works on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts(Arc<Mutex<Learned>>);

tokio::task_local! {
    static FACTS: Facts;
}

impl Facts {
    /// The facts of the request that is worked on.
    pub(crate) fn current() -> Option<Self> {
        FACTS.try_with(Clone::clone).ok()
    }

    /// Waits for work within these facts.
    pub(crate) async fn scope<F: Future>(self, work: F) -> F::Output {
        FACTS.scope(self, work).await
    }

    /// Does work on another thread within the facts of this request.
    pub(crate) fn within<T>(facts: Option<Self>, work: impl FnOnce() -> T) -> T {
        match facts {
            Some(facts) => FACTS.sync_scope(facts, work),
            None => work(),
        }
    }

    /// The index of the key that the current request bears.
    pub(crate) fn asker() -> Option<usize> {
        Self::current().and_then(|facts| facts.learned(|learned| learned.asker))
    }

    /// Takes note of the index of the key that the request bears.
    pub(crate) fn bears(&self, key: usize) {
        self.learned(|learned| learned.asker = Some(key));
    }

    pub(crate) fn model(&self, id: &str) {
        self.learned(|learned| learned.model = Some(id.to_owned()));
    }

    pub(crate) fn tokens(&self, prompt: usize, completion: usize) {
        self.learned(|learned| learned.tokens = Some((prompt as u64, completion as u64)));
    }

    /// The model, and the tokens of prompts and of texts.
    pub(crate) fn all(&self) -> (Option<String>, Option<(u64, u64)>) {
        self.learned(|learned| (learned.model.clone(), learned.tokens))
    }

    fn learned<T>(&self, with: impl FnOnce(&mut Learned) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
