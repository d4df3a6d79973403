//! `/api/embed` and `/api/embeddings`: vectors of length one.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::options;
use super::wire::{end, is_zero, model};
use crate::app::{App, blocking};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::request::embed::compute;
use crate::request::input::Input;
use crate::served_model::ServedModel;

/// Answers `POST /api/embed`.
pub(crate) async fn embed(state: State<Arc<App>>, body: Bytes) -> Response {
    embed_texts(state.0, body).await.unwrap_or_else(ApiError::ollama)
}

async fn embed_texts(app: Arc<App>, body: Bytes) -> Result<Response, ApiError> {
    let since = Instant::now();
    let mut fields = Fields::parse(&body)?;
    let input = match fields.any("input") {
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::Array(texts)) if texts.is_empty() => None,
        None => None,
        value => Some(Input::of(value, "input")?),
    };
    let truncate = fields.flag("truncate")?.unwrap_or(true);
    let dimensions = fields.int("dimensions")?.filter(|&n| n != 0);
    let request = Embed::of(fields, &app)?;
    let hidden = request.served.model.config().hidden_size;
    let dimensions = match dimensions.map(usize::try_from) {
        None => hidden,
        Some(Ok(n)) if n <= hidden => n,
        Some(_) => {
            let text = format!("dimensions: expected 1 to {hidden}");
            return Err(ApiError::invalid("dimensions", text));
        }
    };
    let served = request.served.clone();
    let (vectors, tokens) = match input {
        None => (Vec::new(), 0), // what clients send to load a model
        Some(input) => request.compute(app, input, truncate, dimensions).await?,
    };
    Ok(Json(json!({
        "model": served.id,
        "embeddings": vectors,
        "total_duration": since.elapsed().as_nanos() as u64,
        "load_duration": 0,
        "prompt_eval_count": tokens,
    }))
    .into_response())
}

/// Answers `POST /api/embeddings`, the older form: one prompt, one vector, that of `/api/embed`.
pub(crate) async fn embeddings(state: State<Arc<App>>, body: Bytes) -> Response {
    embed_prompt(state.0, body).await.unwrap_or_else(ApiError::ollama)
}

async fn embed_prompt(app: Arc<App>, body: Bytes) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let prompt = fields.filled("prompt")?;
    let request = Embed::of(fields, &app)?;
    let hidden = request.served.model.config().hidden_size;
    let vector = match prompt {
        None => None, // what clients send to load a model
        Some(prompt) => {
            let (vectors, _) = request.compute(app, Input::Text(prompt), true, hidden).await?;
            vectors.into_iter().next()
        }
    };
    Ok(Json(json!({"embedding": vector.unwrap_or_default()})).into_response())
}

/// A request for vectors: the model, and the most tokens of a text.
struct Embed {
    served: Arc<ServedModel>,
    n_ctx: usize,
}

impl Embed {
    /// Reads the fields that both addresses for vectors share.
    fn of(mut fields: Fields, app: &App) -> Result<Self, ApiError> {
        let model = model(&mut fields)?;
        is_zero(fields.any("keep_alive"))?;
        // how text is written does not matter
        let params = options::params(fields.within("options")?)?;
        end(fields)?;
        let served = app.find(model.as_deref())?;
        let n_ctx = params.n_ctx.map_or(served.n_ctx, |n| n.min(served.n_ctx));
        Ok(Self { served, n_ctx })
    }

    /// Computes vectors of length one, `[texts, dimensions]`, and counts the tokens read. A text
    /// that is too long is cut where `truncate` says so.
    ///
    /// # Errors
    /// 400: no texts, or one that is too long.
    async fn compute(
        self,
        app: Arc<App>,
        input: Input,
        truncate: bool,
        dimensions: usize,
    ) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
        let (served, n_ctx) = (self.served.clone(), self.n_ctx);
        let ids = blocking(move || {
            let mut all = input.ids(&served, "input")?;
            for ids in all.iter_mut().filter(|ids| ids.len() > n_ctx) {
                if !truncate {
                    let text = format!("input: {} tokens, the context holds {n_ctx}", ids.len());
                    return Err(ApiError::invalid("input", text).coded("context_length_exceeded"));
                }
                ids.truncate(n_ctx);
            }
            Ok(all)
        })
        .await?;
        let input = Input::ManyIds(ids);
        let (mut vectors, tokens) = compute(&app, &self.served, input).await?;
        for vector in &mut vectors {
            vector.truncate(dimensions);
            let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            if norm > 0.0 {
                vector.iter_mut().for_each(|x| *x /= norm);
            }
        }
        Ok((vectors, tokens))
    }
}
