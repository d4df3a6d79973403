//! `mmx serve`: OpenAI's and Ollama's APIs and a web page over the runner.
//!
//! A request passes [`guard`], is checked and rendered by its protocol ([`chat`], [`completions`],
//! [`embeddings`], [`ollama`]), and becomes jobs in the queue of its model's [`engine`], whose
//! [`scheduler`] computes the jobs of all requests together. Events come back and are put into the
//! protocol's words, as one object or as a stream.

mod app;
mod engine;
mod error;
mod fields;
mod guard;
mod metrics;
mod ollama;
mod openai;
mod options;
mod request;
mod router;
mod served_model;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use app::{App, Requests};
pub use guard::host_name;
use mmx_converters::{Error, Result};
pub use options::Options;
use served_model::Served;

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
            requests: Requests::default(),
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
