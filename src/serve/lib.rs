//! The server of mmx: OpenAI's, Anthropic's and Ollama's APIs and a web page over the runner.
//!
//! A request passes `guard`, is read by the handler of its address, checked and rendered in
//! `request`, and becomes jobs in the queue of its model's `engine`, whose scheduler computes the
//! jobs of all requests together. Events come back through a channel to the `answer`, whose parts
//! the protocol puts into its own words, as one object or as a stream.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::TcpStream;
//! use std::sync::{Arc, mpsc};
//! use std::time::Duration;
//!
//! use mmx_converters::progress::Silent;
//! use mmx_ggml::run::{KvType, LoadOptions};
//! use mmx_serve::{ModelOptions, Options, Settings};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("tiny.gguf");
//! # std::fs::write(&path, mmx_ggml::run::random_model::tiny_gguf(1)?)?;
//! let tiny = ModelOptions {
//!     path,
//!     name: Some("tiny".to_owned()),
//!     aliases: Vec::new(),
//!     parallel: 2,
//!     load: LoadOptions::default(),
//!     ctx: None,
//!     threads: Some(1),
//!     kv: KvType::F16,
//!     speculate: 0,
//!     prompt_cache: 0,
//! };
//! let options = Options {
//!     models: vec![tiny],
//!     host: "127.0.0.1".to_owned(),
//!     port: 0, // any that is free
//!     keys: Vec::new(),
//!     queue: 16,
//!     max_body: 1 << 20,
//!     max_tokens: 64,
//!     timeout: Duration::from_secs(60),
//!     cors: Vec::new(),
//!     allowed_hosts: Vec::new(),
//!     settings: Settings { cors: "`cors`", allowed_host: "`allowed_hosts`" },
//!     grace: Duration::from_secs(5),
//!     request_log: None,
//!     listener: Arc::new(Silent),
//! };
//! // `run` serves until the process is told to stop: here on a thread beside its client
//! let (sender, ready) = mpsc::channel();
//! std::thread::spawn(move || {
//!     let served = mmx_serve::run(options, |address, _names| sender.send(address).unwrap());
//!     served.unwrap();
//! });
//! let mut client = TcpStream::connect(ready.recv()?)?;
//! client.write_all(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
//! let mut answer = String::new();
//! client.read_to_string(&mut answer)?;
//! assert!(answer.contains("\"id\":\"tiny\""), "{answer}");
//! # Ok(()) }
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | `options`, `app` | the server's settings, and the state that all requests share |
//! | `router`, `guard` | addresses and their handlers; what every request passes first |
//! | `openai/`, `anthropic/`, `ollama/`, `llama` | the protocols: requests, and words for an answer |
//! | `request/` | what all protocols ask for: a chat, tools, raw texts, sampling, embeddings |
//! | `answer` | the state of an answer, which each protocol puts into its words |
//! | `kept` | responses that later requests may name |
//! | `fields` | a request's JSON object, field by field |
//! | `served_model` | a model that is served: its name, its engine, prompts for it |
//! | `engine/` | the thread of a model: jobs, the scheduler, sequences, grammars, counters |
//! | `stream` | events to the bytes of a response |
//! | `request_log`, `logged` | a line a request, for whoever started the server |
//! | `metrics`, `error` | counters for Prometheus; what a client is told when something fails |

mod answer;
mod anthropic;
mod app;
mod engine;
mod error;
mod fields;
mod guard;
mod kept;
mod llama;
mod logged;
mod metrics;
mod ollama;
mod openai;
mod options;
mod request;
mod request_log;
mod router;
mod served_model;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use app::{App, Requests};
pub use guard::host_name;
use mmx_converters::{Error, Result};
pub use options::{Key, ModelOptions, Options, Settings};
pub use request_log::{RequestLine, RequestLog};
use served_model::ServedModel;

/// Loads the models and serves until the process is told to stop. `ready` gets the address and the
/// models' names once requests are answered.
///
/// # Errors
/// A model that cannot be opened, an address that cannot be had.
pub fn run(mut options: Options, ready: impl FnOnce(SocketAddr, &[&str])) -> Result<()> {
    let mut served: Vec<Arc<ServedModel>> = Vec::new();
    for model in &options.models {
        let model = ServedModel::open(model, options.queue, &options.listener)?;
        let mut names = std::iter::once(&model.id).chain(&model.aliases);
        if let Some(name) = names.find(|name| served.iter().any(|m| m.is_called(name))) {
            return Err(Error::failed_with_hint(
                format!("two models are called {name}"),
                "`name` gives each one a name, in order",
            ));
        }
        served.push(Arc::new(model));
    }
    for key in &mut options.keys {
        key.name_models(&served)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::failed(format!("the server's thread: {e}")))?;
    runtime.block_on(async {
        let address = format!("{}:{}", bracketed(&options.host), options.port);
        let listener = tokio::net::TcpListener::bind(&address)
            .await
            .map_err(|e| Error::failed(format!("{address}: {e}")))?;
        let address =
            listener.local_addr().map_err(|e| Error::failed(format!("{address}: {e}")))?;
        let grace = options.grace;
        let app = Arc::new(App {
            loopback: address.ip().is_loopback(),
            requests: Requests::default(),
            kept: kept::Responses::default(),
            started: Instant::now(),
            served,
            options,
        });
        let names: Vec<_> = app.served.iter().map(|m| m.id.as_str()).collect();
        ready(address, &names);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let late = app.clone();
        let talk = app.options.listener.clone();
        tokio::spawn(async move {
            told_to_stop().await;
            let seconds = grace.as_secs();
            talk.say(&format!("stopping: what is being written may end within {seconds} s"));
            let _ = stop.send(());
            tokio::select! {
                () = tokio::time::sleep(grace) => {}
                () = told_to_stop() => {}
            }
            late.served.iter().for_each(|m| m.engine.stop());
            // clients that keep their connections open are waited for no longer
            tokio::time::sleep(Duration::from_secs(1)).await;
            std::process::exit(0);
        });
        axum::serve(listener, router::router(app))
            .with_graceful_shutdown(async {
                let _ = stopped.await;
            })
            .await
            .map_err(|e| Error::failed(format!("the server: {e}")))
    })
}

impl Key {
    /// Puts the models' own names in the place of aliases.
    ///
    /// # Errors
    /// A model that is not served.
    fn name_models(&mut self, served: &[Arc<ServedModel>]) -> Result<()> {
        for name in self.models.iter_mut().flatten() {
            let Some(model) = served.iter().find(|model| model.is_called(name)) else {
                let known: Vec<_> = served.iter().map(|model| model.id.as_str()).collect();
                return Err(Error::failed(format!(
                    "a key's models: expected some of {}, found {name}",
                    known.join(", ")
                )));
            };
            name.clone_from(&model.id);
        }
        Ok(())
    }
}

/// Ctrl-C, or SIGTERM where there is one.
async fn told_to_stop() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// An IPv6 address as it stands before a port.
fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}
