//! Embeddings as every protocol asks for them.

use std::sync::Arc;

use crate::app::{App, blocking};
use crate::engine::Event;
use crate::error::ApiError;
use crate::request::input::Input;
use crate::served_model::ServedModel;
use crate::stream::collect;

/// Computes the vectors of texts, `[texts, hidden]`; also returns how many tokens were read.
///
/// # Errors
/// 400 for texts that are none or too long, 429 when the queue is full, 503 when the engine is
/// gone.
pub(crate) async fn compute(
    app: &Arc<App>,
    served: &Arc<ServedModel>,
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
