//! Refusals of the addresses of Ollama's API that store, fetch or remove models or are about
//! accounts: a server of given models has none of it, and says so in a sentence, so that `ollama
//! pull` and the like tell why.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use tokio_stream::StreamExt;

use crate::app::App;
use crate::error::ApiError;

/// Answers 501 where a request would change models or needs an account.
pub(crate) async fn unsupported(State(app): State<Arc<App>>, uri: Uri) -> Response {
    refusal(&app, uri.path()).ollama()
}

/// Answers 501 to a file that is being sent. It is read to its end first, else its sender would
/// find a closed connection in the place of the answer.
pub(crate) async fn blob(State(app): State<Arc<App>>, uri: Uri, body: Body) -> Response {
    /// Longest time that a file may take to come.
    const TIME: Duration = Duration::from_secs(60);
    let mut stream = body.into_data_stream();
    let all = async { while matches!(stream.next().await, Some(Ok(_))) {} };
    let _ = tokio::time::timeout(TIME, all).await;
    refusal(&app, uri.path()).ollama()
}

fn refusal(app: &App, path: &str) -> ApiError {
    let action = path.trim_start_matches("/api/").split('/').next().unwrap_or_default();
    let names: Vec<_> = app.served.iter().map(|m| m.id.as_str()).collect();
    let names = names.join(", ");
    let text = match action {
        "pull" | "push" | "create" | "copy" | "delete" | "blobs" => format!(
            "{action}: mmx serve serves the models it was started with ({names}) and stores, fetches or removes none"
        ),
        _ => format!(
            "{action}: mmx serve knows no accounts and nothing beyond its own models ({names})"
        ),
    };
    ApiError::new(StatusCode::NOT_IMPLEMENTED, text)
}
