//! The state that all requests of a server share, and small helpers of its handlers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;

use crate::error::ApiError;
use crate::kept::Responses;
use crate::options::Options;
use crate::request_log::Facts;
use crate::served_model::ServedModel;

/// The state that all requests share.
pub(crate) struct App {
    pub(crate) options: Options,
    pub(crate) served: Vec<Arc<ServedModel>>,
    pub(crate) requests: Requests,
    /// Responses that later requests may name.
    pub(crate) kept: Responses,
    pub(crate) started: Instant,
    /// True where the server listens at an address that only this machine reaches.
    pub(crate) loopback: bool,
}

impl App {
    /// Finds the model of a name. Where there is one model only, it answers to every name, as other
    /// servers' models do; Ollama's `:latest` counts for nothing.
    ///
    /// # Errors
    /// 403 for a model that the request's key is not for, 404 for one that is not served.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<Arc<ServedModel>, ApiError> {
        let name = name.unwrap_or_default();
        let bare = name.strip_suffix(":latest").unwrap_or(name);
        let found = self.served.iter().find(|m| m.is_called(name) || m.is_called(bare));
        match (found, self.served.as_slice()) {
            (Some(model), _) | (None, [model]) if self.allows(model) => {
                if let Some(facts) = Facts::current() {
                    facts.model(&model.id);
                }
                Ok(model.clone())
            }
            (Some(model), _) | (None, [model]) => {
                let text = format!("model: the API key is not for {}", model.id);
                let error = ApiError::new(StatusCode::FORBIDDEN, text).coded("model_not_allowed");
                Err(ApiError { param: Some("model".to_owned()), ..error })
            }
            _ => {
                let known: Vec<_> = self.allowed().map(|m| m.id.as_str()).collect();
                let text = format!("model: expected one of {}, found {name:?}", known.join(", "));
                let error = ApiError::new(StatusCode::NOT_FOUND, text).coded("model_not_found");
                Err(ApiError { param: Some("model".to_owned()), ..error })
            }
        }
    }
}

impl App {
    /// The models that whoever asks may use.
    pub(crate) fn allowed(&self) -> impl Iterator<Item = &Arc<ServedModel>> {
        self.served.iter().filter(|model| self.allows(model))
    }

    /// True where the request's key is for a model. Where keys differ, work that has lost its
    /// request may use none.
    fn allows(&self, model: &ServedModel) -> bool {
        let keys = &self.options.keys;
        if keys.iter().all(|key| key.models.is_none()) {
            return true;
        }
        let key = Facts::asker().and_then(|index| keys.get(index));
        key.is_some_and(|key| key.models.as_ref().is_none_or(|names| names.contains(&model.id)))
    }
}

/// Counts of answered requests, by path and status.
#[derive(Debug, Default)]
pub(crate) struct Requests(pub(crate) Mutex<BTreeMap<(String, u16), u64>>);

impl Requests {
    pub(crate) fn count(&self, path: &str, status: u16) {
        if let Ok(mut counts) = self.0.lock() {
            *counts.entry((path.to_owned(), status)).or_default() += 1;
        }
    }
}

/// Runs work that takes long (templates, tokens, grammars) on a thread beside the connections.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let facts = Facts::current();
    tokio::task::spawn_blocking(move || Facts::within(facts, work)).await.unwrap_or_else(|_| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Err(ApiError::new(status, "the request could not be worked on: a fault of mmx"))
    })
}

/// Makes an id that nothing else of this process has.
pub(crate) fn new_id(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:x}{number:08x}", now())
}

/// The time in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
