//! `/v1/responses`: chats in items. Source: OpenAI's API reference, and the types and the stream of
//! its Python client 3.57.
//!
//! `items` reads a conversation, `request` everything else, and `words` writes the answer.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::app::{App, blocking};
use crate::error::ApiError;

mod items;
mod request;
mod words;

/// Answers `POST /v1/responses`.
pub(crate) async fn create(State(app): State<Arc<App>>, body: Bytes) -> Result<Response, ApiError> {
    let (answer, events, stream) = blocking(move || {
        let (chat, words, stream) = request::begin(&app, &body)?;
        Ok((Answer::new(words, chat.texts), chat.events, stream))
    })
    .await?;
    answer.respond(events, stream).await
}

/// Answers `GET /v1/responses/{id}`.
pub(crate) async fn retrieve(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let again = query.iter().flat_map(|q| q.split('&')).find(|q| {
        let (name, value) = q.split_once('=').unwrap_or((q, ""));
        name == "starting_after" || (name == "stream" && value != "false")
    });
    if let Some(field) = again {
        let name = field.split('=').next().unwrap_or_default();
        let text = format!("{name}: a stream is not kept: leave it out");
        return Err(ApiError::invalid(name, text).coded("unsupported_parameter"));
    }
    match app.kept.find(&id) {
        Some(kept) => Ok(Json(kept.response.clone())),
        None => Err(unknown(&id)),
    }
}

/// Answers `DELETE /v1/responses/{id}`.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    match app.kept.delete(&id) {
        true => Ok(Json(json!({"id": id, "object": "response", "deleted": true}))),
        false => Err(unknown(&id)),
    }
}

fn unknown(id: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("response_id: no response {id:?} is kept here"))
}
