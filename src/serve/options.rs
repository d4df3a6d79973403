//! Settings of a server.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use mmx_converters::progress::Listener;
use mmx_ggml::run::{KvType, LoadOptions};

use crate::request_log::RequestLog;

/// Settings of a server: the models, the address, and the limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// Models that are served.
    pub models: Vec<ModelOptions>,
    /// Name or address that the server listens at.
    pub host: String,
    /// Port that the server listens at; 0 for any that is free.
    pub port: u16,
    /// Keys of which requests must bear one, where any are given.
    pub keys: Vec<Key>,
    /// Most texts that may wait for one model.
    pub queue: usize,
    /// Most bytes of a request's body.
    pub max_body: usize,
    /// Most tokens written after one prompt.
    pub max_tokens: usize,
    /// Longest time for one request, waiting included.
    pub timeout: Duration,
    /// Origins whose pages may use the server; `*` for all.
    pub cors: Vec<String>,
    /// Names besides this machine's own that a `Host` header may have, in small letters; `*` for
    /// all.
    pub allowed_hosts: Vec<String>,
    /// How whoever started the server sets `cors` and `allowed_hosts`: refused requests are told.
    pub settings: Settings,
    /// Time that texts in progress have to end when the server is told to stop.
    pub grace: Duration,
    /// Takes a line for each request, where one is wanted.
    pub request_log: Option<RequestLog>,
    /// Hears warnings, and what the server is doing.
    pub listener: Arc<dyn Listener>,
}

/// A model that is to be served.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// A checkpoint, a Transformers folder, a GGUF, or the name of one on a hub.
    pub path: PathBuf,
    /// The name it is served under; nothing for that of its file or folder.
    pub name: Option<String>,
    /// Further names that requests may choose it by.
    pub aliases: Vec<String>,
    /// Number of its texts that are computed together.
    pub parallel: usize,
    /// Settings with which it is loaded.
    pub load: LoadOptions,
    /// Most tokens of a text, prompt included; nothing for the model's context, up to 4096.
    pub ctx: Option<usize>,
    /// Threads of the CPU; nothing for a number that suits the machine.
    pub threads: Option<usize>,
    /// Element type of the key-value caches.
    pub kv: KvType,
    /// Most tokens drafted ahead of a text (speculative decoding).
    pub speculate: usize,
    /// Most bytes of texts that lost their slot, kept so that they need not be read again.
    pub prompt_cache: usize,
}

/// A key that requests may bear.
#[derive(Clone)]
pub struct Key {
    /// The key itself.
    pub key: String,
    /// The models it is for, by any of their names; nothing for all.
    pub models: Option<Vec<String>>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("models", &self.models).finish_non_exhaustive()
    }
}

/// What settings of [`Options`] are called where the server is started.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Of `cors`.
    pub cors: &'static str,
    /// Of `allowed_hosts`.
    pub allowed_host: &'static str,
}

impl Options {
    /// True where pages of this origin may use the server.
    pub(crate) fn allows_origin(&self, origin: &HeaderValue) -> bool {
        self.cors.iter().any(|o| o == "*" || o.as_bytes() == origin.as_bytes())
    }
}
