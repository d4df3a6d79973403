//! Anthropic's Messages API: `/v1/messages` and `/v1/messages/count_tokens`. Source: Anthropic's
//! API reference, and the types and the stream of its Python client 2.14. docs/api-anthropic.md
//! lists what is done with every field.
//!
//! `blocks` reads messages, `request` everything else, and `words` writes the answer.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::answer::Answer;
use crate::app::{App, blocking};
use crate::error::ApiError;

mod blocks;
mod request;
mod words;

/// Answers `POST /v1/messages`.
pub(crate) async fn messages(state: State<Arc<App>>, body: Bytes) -> Response {
    create(state.0, body).await.unwrap_or_else(ApiError::anthropic)
}

async fn create(app: Arc<App>, body: Bytes) -> Result<Response, ApiError> {
    let (answer, events, stream) = blocking(move || {
        let (chat, words, stream) = request::begin(&app, &body)?;
        Ok((Answer::new(words, chat.texts), chat.events, stream))
    })
    .await?;
    answer.respond(events, stream).await
}

/// Answers `POST /v1/messages/count_tokens`.
pub(crate) async fn count_tokens(state: State<Arc<App>>, body: Bytes) -> Response {
    let counted = blocking(move || request::count(&state.0, &body)).await;
    match counted {
        Ok(tokens) => Json(json!({"input_tokens": tokens})).into_response(),
        Err(error) => error.anthropic(),
    }
}
