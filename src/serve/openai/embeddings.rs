//! `/v1/embeddings`: the mean of the final hidden states over a text's tokens. A language model was not
//! trained for this; the numbers compare texts coarsely, no better.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::engine::Event;
use crate::error::ApiError;
use crate::fields::{Fields, Refused};
use crate::openai::completions::Input;
use crate::served_model::Served;
use crate::stream::collect;
use crate::{App, blocking};

/// What is not supported here besides what is nowhere.
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
    fields.finish(REFUSED)?;
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

/// The vectors of texts, and the tokens read.
pub(crate) async fn compute(
    app: &Arc<App>,
    served: &Arc<Served>,
    input: Input,
) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let (app, model) = (app.clone(), served.clone());
    let (events, count) = blocking(move || {
        let texts = input.ids(&model, "input")?;
        if let Some(long) = texts.iter().find(|ids| ids.len() > model.n_ctx) {
            let text = format!("input: {} tokens, the context holds {}", long.len(), model.n_ctx);
            return Err(ApiError::invalid("input", text).coded("context_length_exceeded"));
        }
        let count = texts.len();
        Ok((model.embed(&app.options, texts)?, count))
    })
    .await?;
    let mut vectors = vec![Vec::new(); count];
    let mut tokens = 0;
    collect(events, count, |index, event| {
        if let Event::Embedding(vector, read) = event {
            if let Some(slot) = vectors.get_mut(index) {
                *slot = vector;
            }
            tokens += read;
        }
    })
    .await?;
    Ok((vectors, tokens))
}
