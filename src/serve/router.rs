//! The table of addresses: which handler answers which path and method.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router, middleware};
use serde_json::json;

use crate::app::App;
use crate::error::ApiError;
use crate::openai::{chat, completions, embeddings, models, responses};
use crate::{anthropic, guard, llama, logged, metrics, ollama};

/// The routes of both protocols, the page and `/metrics`, behind [`guard::pass`].
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/favicon.ico", get(|| async { StatusCode::NO_CONTENT }))
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/metrics", get(prometheus))
        .route("/v1/models", get(models::models))
        // a name may have slashes, written as such or as %2F
        .route("/v1/models/{*id}", get(models::model))
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::retrieve).delete(responses::delete))
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/tokenize", post(llama::tokenize))
        .route("/detokenize", post(llama::detokenize))
        .route("/apply-template", post(llama::apply_template))
        .route("/api/version", get(ollama::models::version))
        .route("/api/tags", get(ollama::models::tags))
        .route("/api/ps", get(ollama::models::running))
        .route("/api/show", post(ollama::models::show))
        .route("/api/chat", post(ollama::chat::chat))
        .route("/api/generate", post(ollama::chat::generate))
        .route("/api/embed", post(ollama::embed::embed))
        .route("/api/embeddings", post(ollama::embed::embeddings))
        .route("/api/status", get(ollama::models::status))
        .route("/api/pull", post(ollama::manage::unsupported))
        .route("/api/push", post(ollama::manage::unsupported))
        .route("/api/create", post(ollama::manage::unsupported))
        .route("/api/copy", post(ollama::manage::unsupported))
        .route("/api/delete", delete(ollama::manage::unsupported))
        .route("/api/blobs/{digest}", get(ollama::manage::unsupported).post(ollama::manage::blob))
        .route("/api/me", post(ollama::manage::unsupported))
        .route("/api/signout", post(ollama::manage::unsupported))
        .fallback(|uri: Uri| async move {
            let text = "there is nothing at this address";
            ApiError::new(StatusCode::NOT_FOUND, text).at(uri.path())
        })
        .method_not_allowed_fallback(|uri: Uri| async move {
            let text = "this address takes another method";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text).at(uri.path())
        })
        // the guard holds bodies to the server's own limit; axum's would be 2 MB, whatever that is
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(app.clone(), guard::pass))
        .layer(middleware::from_fn_with_state(app.clone(), logged::log))
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
