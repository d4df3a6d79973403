//! The addresses of llama.cpp's server that no other API has: `/tokenize`, `/detokenize` and
//! `/apply-template`. Source: tools/server/README.md of llama.cpp, as of crate llama-cpp-sys-2
//! 0.1.161.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use mmx_converters::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::app::{App, blocking};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::request::input::Input;
use crate::request::messages;
use crate::request::tools::{ToolChoice, Tools};

/// Answers `POST /tokenize`: the ids of a text, or with `with_pieces` each with its text, or its
/// bytes where it is no text by itself.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    blocking(move || {
        let mut fields = Fields::parse(&body)?;
        let model = fields.text("model")?;
        let Some(content) = fields.text("content")? else {
            return Err(fields.fault("content", "expected a string, found none"));
        };
        let add = fields.flag("add_special")?.unwrap_or(false);
        let parse = fields.flag("parse_special")?.unwrap_or(true);
        let pieces = fields.flag("with_pieces")?.unwrap_or(false);
        fields.finish(&[], &[])?;
        let served = app.find(model.as_deref())?;
        let tokenizer = served.tokenizer()?;
        let ids = match (add, parse) {
            (true, true) => tokenizer.encode_text(&content)?,
            (false, true) => tokenizer.encode(&content)?,
            (false, false) => tokenizer.encode_plain(&content)?,
            (true, false) => around(tokenizer, tokenizer.encode_plain(&content)?)?,
        };
        let piece = |&id: &u32| {
            let bytes = tokenizer.token_bytes(id);
            let piece = std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), Value::from);
            json!({"id": id, "piece": piece})
        };
        let tokens: Value = if pieces { ids.iter().map(piece).collect() } else { ids.into() };
        Ok(Json(json!({"tokens": tokens})))
    })
    .await
}

/// Puts the tokens around ids that stand around every text.
fn around(tokenizer: &Tokenizer, ids: Vec<u32>) -> Result<Vec<u32>, ApiError> {
    let (with, without) = (tokenizer.encode_text("x")?, tokenizer.encode("x")?);
    let at = with.windows(without.len().max(1)).position(|part| part == without).unwrap_or(0);
    let end = (at + without.len()).min(with.len());
    Ok([&with[..at], &ids, &with[end..]].concat())
}

/// Answers `POST /detokenize`: the text of ids, control tokens with their text.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    blocking(move || {
        let mut fields = Fields::parse(&body)?;
        let model = fields.text("model")?;
        let tokens = fields.list("tokens")?;
        fields.finish(&[], &[])?;
        let served = app.find(model.as_deref())?;
        let ids = match tokens {
            None => {
                let text = "tokens: expected a list of ids, found none";
                return Err(ApiError::invalid("tokens", text));
            }
            Some(tokens) if tokens.is_empty() => Vec::new(),
            Some(tokens) => match Input::of(Some(tokens.into()), "tokens")? {
                ids @ Input::Ids(_) => ids.ids(&served, "tokens")?.concat(),
                _ => {
                    let text = "tokens: expected a list of ids, found something else";
                    return Err(ApiError::invalid("tokens", text));
                }
            },
        };
        Ok(Json(json!({"content": served.tokenizer()?.decode(&ids, false)})))
    })
    .await
}

/// Answers `POST /apply-template`: the prompt that messages become.
pub(crate) async fn apply_template(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    blocking(move || {
        let mut fields = Fields::parse(&body)?;
        let model = fields.text("model")?;
        let found = fields.list("messages")?.unwrap_or_default();
        let tools = fields.list("tools")?.unwrap_or_default();
        let variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
        fields.finish(&[&[("add_generation_prompt", &["true"])]], &[])?;
        let served = app.find(model.as_deref())?;
        let messages = messages::check(found)?;
        let tools = Tools::of(tools, ToolChoice::Auto)?.shown;
        let tools = (!tools.is_empty()).then_some(Value::Array(tools));
        let rendered = served.render(&messages, tools, variables, "messages")?;
        Ok(Json(json!({"prompt": rendered.text})))
    })
    .await
}
