//! `/v1/embeddings`: the mean of the final hidden states over a text's tokens. A language model was
//! not trained for this; the numbers compare texts coarsely, no better.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Fields, Refused};
use crate::openai::known;
use crate::request::embed::compute;
use crate::request::input::Input;

/// Fields that this address does not support, besides those that none does.
const REFUSED: &[Refused] = &[("add_special_tokens", &["true"])];

/// Answers `POST /v1/embeddings`.
pub(crate) async fn embeddings(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let model = fields.text("model")?;
    let input = Input::of(fields.any("input"), "input")?;
    let base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let text = format!("encoding_format: expected float or base64, found {other}");
            return Err(ApiError::invalid("encoding_format", text));
        }
    };
    let dimensions = fields.int("dimensions")?;
    fields.finish(&[REFUSED, known::REFUSED], known::IGNORED)?;
    let served = app.find(model.as_deref())?;
    let hidden = served.model.config().hidden_size;
    if let Some(n) = dimensions.filter(|&n| n != hidden as i64) {
        let text = format!("dimensions: this model has {hidden}, found {n}");
        return Err(ApiError::invalid("dimensions", text));
    }
    let (vectors, tokens) = compute(&app, &served, input).await?;
    let data: Vec<Value> = vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            let embedding = match base64 {
                true => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    STANDARD.encode(bytes).into()
                }
                false => json!(vector),
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "model": served.id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }))
    .into_response())
}
