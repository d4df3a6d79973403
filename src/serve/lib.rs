//! `mmx serve`: OpenAI's and Ollama's APIs and a web page over the runner.
//!
//! A request passes [`guard`], is checked and rendered by its protocol ([`chat`], [`completions`],
//! [`embeddings`], [`ollama`]), and becomes jobs in the queue of its model's [`engine`], whose
//! [`scheduler`] computes the jobs of all requests together. Events come back and are put into the
//! protocol's words, as one object or as a stream.

mod engine;
mod error;
mod fields;
mod guard;
mod metrics;
mod ollama;
mod openai;
mod request;
mod served_model;
mod stream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router, middleware};
use mmx_converters::progress::Listener;
use mmx_ggml::run::{KvType, LoadOptions};
use serde_json::{Value, json};

use error::ApiError;
pub use guard::host_name;
use mmx_converters::{Error, Result};
use openai::{chat, completions, embeddings};
use served_model::Served;

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
    /// How whoever started the server sets `cors` and `allowed_hosts`: refused requests are told.
    pub settings: Settings,
    /// Time for what is being computed when the server is to stop.
    pub grace: Duration,
    /// Hears what happens.
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
    fn allows_origin(&self, origin: &HeaderValue) -> bool {
        self.cors.iter().any(|o| o == "*" || o.as_bytes() == origin.as_bytes())
    }
}

/// What all requests share.
pub(crate) struct App {
    pub(crate) options: Options,
    pub(crate) served: Vec<Arc<Served>>,
    pub(crate) requests: metrics::Requests,
    pub(crate) started: Instant,
    /// Only this machine reaches the server.
    pub(crate) loopback: bool,
}

impl App {
    /// The model of a name. Where there is one model only, it answers to every name, as other servers'
    /// models do; Ollama's `:latest` counts for nothing.
    pub(crate) fn find(&self, name: Option<&str>) -> std::result::Result<Arc<Served>, ApiError> {
        let name = name.unwrap_or_default();
        let bare = name.strip_suffix(":latest").unwrap_or(name);
        let found = self.served.iter().find(|m| m.id == name || m.id == bare);
        match (found, self.served.as_slice()) {
            (Some(model), _) | (None, [model]) => Ok(model.clone()),
            _ => {
                let known: Vec<_> = self.served.iter().map(|m| m.id.as_str()).collect();
                let text = format!("model: expected one of {}, found {name:?}", known.join(", "));
                let error = ApiError::new(StatusCode::NOT_FOUND, text).coded("model_not_found");
                Err(ApiError { param: Some("model".to_owned()), ..error })
            }
        }
    }
}

/// Loads the models and serves until the process is told to stop. `ready` gets the address and the models'
/// names once requests are answered.
///
/// # Errors
/// A model that cannot be opened, an address that cannot be had.
pub fn run(options: Options, ready: impl FnOnce(SocketAddr, &[&str])) -> Result<()> {
    let mut served: Vec<Arc<Served>> = Vec::new();
    for (path, name) in &options.models {
        let model = Served::open(path, name.as_deref(), &options)?;
        if served.iter().any(|m| m.id == model.id) {
            return Err(Error::failed_with_hint(
                format!("two models are called {}", model.id),
                "`name` gives each one a name, in order",
            ));
        }
        served.push(Arc::new(model));
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
            requests: metrics::Requests::default(),
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
        axum::serve(listener, router(app))
            .with_graceful_shutdown(async {
                let _ = stopped.await;
            })
            .await
            .map_err(|e| Error::failed(format!("the server: {e}")))
    })
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

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/favicon.ico", get(|| async { StatusCode::NO_CONTENT }))
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/metrics", get(prometheus))
        .route("/v1/models", get(models))
        // a name may have slashes, written as such or as %2F
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/api/version", get(ollama::version))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::running))
        .route("/api/show", post(ollama::show))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/embed", post(ollama::embed))
        .route("/api/embeddings", post(ollama::embeddings))
        .route("/api/status", get(ollama::status))
        .route("/api/pull", post(ollama::unsupported))
        .route("/api/push", post(ollama::unsupported))
        .route("/api/create", post(ollama::unsupported))
        .route("/api/copy", post(ollama::unsupported))
        .route("/api/delete", delete(ollama::unsupported))
        .route("/api/blobs/{digest}", get(ollama::unsupported).post(ollama::blob))
        .route("/api/me", post(ollama::unsupported))
        .route("/api/signout", post(ollama::unsupported))
        .fallback(|uri: Uri| async move {
            let text = "there is nothing at this address";
            ApiError::new(StatusCode::NOT_FOUND, text).at(uri.path())
        })
        .method_not_allowed_fallback(|uri: Uri| async move {
            let text = "this address takes another method";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text).at(uri.path())
        })
        .layer(middleware::from_fn_with_state(app.clone(), guard::pass))
        .with_state(app)
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // the page asks nobody but this server
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
             connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ];
    (headers, include_str!("page.html")).into_response()
}

async fn prometheus(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::render(&app)).into_response()
}

fn model_json(served: &Served) -> Value {
    json!({
        "id": served.id,
        "object": "model",
        "created": served.created,
        "owned_by": "mmx",
        "meta": served.meta(),
    })
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let data: Vec<Value> = app.served.iter().map(|m| model_json(m)).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn model(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> std::result::Result<Json<Value>, ApiError> {
    let found = app.served.iter().find(|m| m.id == id);
    let text = || format!("model: expected one of the served ones, found {id:?}");
    match found {
        Some(served) => Ok(Json(model_json(served))),
        None => Err(ApiError::new(StatusCode::NOT_FOUND, text()).coded("model_not_found")),
    }
}

/// Runs what takes long (templates, tokens, grammars) beside the connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, ApiError> + Send + 'static,
) -> std::result::Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Err(ApiError::new(status, "the request could not be worked on: a fault of mmx"))
    })
}

/// A name that no other answer of this process has.
fn new_id(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{:x}{number:08x}", now())
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
