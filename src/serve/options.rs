//! Settings of a server.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use mmx_converters::progress::Listener;
use mmx_ggml::run::{KvType, LoadOptions};

/// What is served and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Models, with the names they are served under.
    pub models: Vec<(PathBuf, Option<String>)>,
    /// Name or address that it listens at.
    pub host: String,
    /// 0: any that is free.
    pub port: u16,
    /// What requests must bear, where it is given.
    pub api_key: Option<String>,
    /// Texts of one model that are computed together.
    pub parallel: usize,
    /// How models are loaded.
    pub load: LoadOptions,
    /// Tokens a text can have.
    pub ctx: Option<usize>,
    /// Of the CPU.
    pub threads: Option<usize>,
    /// Element type of the key-value caches.
    pub kv: KvType,
    /// Tokens guessed ahead of a text at most.
    pub speculate: usize,
    /// Texts that may wait.
    pub queue: usize,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// Tokens written for one request.
    pub max_tokens: usize,
    /// For one request, waiting included.
    pub timeout: Duration,
    /// Pages of these origins may use the server; `*` for all.
    pub cors: Vec<String>,
    /// Names besides this machine's own that a `Host` header may have, in small letters; `*` for all.
    pub allowed_hosts: Vec<String>,
    /// Time for what is being computed when the server is to stop.
    pub grace: Duration,
    /// Hears what happens.
    pub listener: Arc<dyn Listener>,
}

impl Options {
    /// True where pages of this origin may use the server.
    pub(crate) fn allows_origin(&self, origin: &HeaderValue) -> bool {
        self.cors.iter().any(|o| o == "*" || o.as_bytes() == origin.as_bytes())
    }
}
