//! Settings of a server.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use mmx_converters::progress::Listener;
use mmx_ggml::run::{KvType, LoadOptions};

/// Settings of a server: the models, the address, and the limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// Models, with the names they are served under.
    pub models: Vec<(PathBuf, Option<String>)>,
    /// Name or address that the server listens at.
    pub host: String,
    /// Port that the server listens at; 0 for any that is free.
    pub port: u16,
    /// Key that requests must bear, where one is given.
    pub api_key: Option<String>,
    /// Number of texts of one model that are computed together.
    pub parallel: usize,
    /// Settings with which models are loaded.
    pub load: LoadOptions,
    /// Most tokens of a text, prompt included; nothing for the model's context, up to 4096.
    pub ctx: Option<usize>,
    /// Threads of the CPU for each model; nothing for a number that suits the machine.
    pub threads: Option<usize>,
    /// Element type of the key-value caches.
    pub kv: KvType,
    /// Most tokens drafted ahead of a text (speculative decoding).
    pub speculate: usize,
    /// Most bytes of a model's texts that lost their slot, kept so that they need not be read again.
    pub prompt_cache: usize,
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
    /// Hears warnings, and what the server is doing.
    pub listener: Arc<dyn Listener>,
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
