//! Parts of OpenAI's requests and answers that its routes have in common.

use serde_json::{Value, json};

use crate::answer::Usage;
use crate::app::{new_id, now};
use crate::engine::TokenLogprob;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::request::chat::Schema;
use crate::request::sampling::{Names, OneOrMany, Params};
use crate::served_model::ServedModel;
use crate::stream::{logprob_json, sse};

/// The names of the most tokens of an answer; n_predict is llama.cpp's.
pub(super) const LIMITS: &[&str] = &["max_completion_tokens", "max_tokens", "n_predict"];

/// Takes the sampling settings: OpenAI's fields, and the usual ones that OpenAI lacks. `limits` are
/// the names of the most tokens of an answer.
///
/// # Errors
/// 400 for a field of another type, or two names of one field with different values.
pub(super) fn params(fields: &mut Fields, limits: &[&'static str]) -> Result<Params, ApiError> {
    let mut names = Names::default();
    let max_tokens = fields.either(limits, Fields::int)?.map(|(name, n)| {
        names.max_tokens = name;
        n
    });
    let penalties = ["repetition_penalty", "repeat_penalty"];
    let repetition_penalty = fields.either(&penalties, Fields::number)?.map(|(name, x)| {
        names.repetition_penalty = name;
        x
    });
    let ends = ["ignore_eos", "ignore_end"];
    Ok(Params {
        max_tokens,
        temperature: fields.number("temperature")?,
        top_p: fields.number("top_p")?,
        top_k: fields.int("top_k")?,
        min_p: fields.number("min_p")?,
        repetition_penalty,
        presence_penalty: fields.number("presence_penalty")?,
        frequency_penalty: fields.number("frequency_penalty")?,
        logit_bias: fields.any("logit_bias"),
        seed: fields.int("seed")?,
        stop: fields.any("stop").map(|value| OneOrMany::of(value, "stop")).transpose()?,
        n: fields.int("n")?,
        ignore_end: fields.either(&ends, Fields::flag)?.map(|(_, flag)| flag),
        n_ctx: None,
        names,
        none_written: false,
    })
}

/// Degrees of thinking in OpenAI's words. A model here thinks or does not.
const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];

/// Takes the degree of thinking that is asked for.
///
/// # Errors
/// 400 for one that is none of [`EFFORTS`].
pub(super) fn effort(fields: &mut Fields, name: &str) -> Result<Option<String>, ApiError> {
    let effort = fields.text(name)?;
    match effort.as_deref().filter(|effort| !EFFORTS.contains(effort)) {
        Some(other) => {
            let text = format!("expected one of {}, found {other}", EFFORTS.join(", "));
            Err(fields.fault(name, &text))
        }
        None => Ok(effort),
    }
}

/// Reads the schema that `response_format` asks for; nothing for plain text.
///
/// # Errors
/// 400 for another type, or a schema that is none.
pub(super) fn schema_of(format: Option<Value>) -> Result<Option<Schema>, ApiError> {
    const PLACE: &str = "response_format";
    let fault = |text: String| ApiError::invalid(PLACE, format!("{PLACE}: {text}"));
    let Some(format) = format else { return Ok(None) };
    let value = match format.get("type").and_then(Value::as_str) {
        Some("text") => return Ok(None),
        Some("json_object") => json!({"type": "object"}),
        Some("json_schema") => {
            // the one is OpenAI's place, the other llama.cpp's
            let places = [format.pointer("/json_schema/schema"), format.get("schema")];
            match places.into_iter().flatten().collect::<Vec<_>>().as_slice() {
                [schema] if schema.is_object() || schema.is_boolean() => (*schema).clone(),
                [schema, same] if schema == same && schema.is_object() => (*schema).clone(),
                [_, _] => {
                    let text = "json_schema.schema and schema are one field: expected one value, found two";
                    return Err(fault(text.to_owned()));
                }
                _ => {
                    let text = "expected a schema in json_schema.schema, found none";
                    return Err(fault(text.to_owned()));
                }
            }
        }
        other => {
            let found = other.unwrap_or("none");
            let text = format!("expected type text, json_object or json_schema, found {found}");
            return Err(fault(text));
        }
    };
    Ok(Some(Schema { value, place: PLACE }))
}

/// Reads from the field `stream_options` whether a stream ends with the counts of tokens.
pub(super) fn include_usage(fields: &mut Fields) -> Result<bool, ApiError> {
    let mut options = fields.within("stream_options")?;
    let usage = options.flag("include_usage")?;
    options.any("include_obfuscation"); // bytes against listeners, no part of the text
    options.finish(&[&[("continuous_usage_stats", &["false"])]], &[])?;
    Ok(usage.unwrap_or(false))
}

/// What all objects of an answer bear, whole or in chunks.
pub(super) struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    /// A stream ends with the counts of tokens; until then they are null.
    pub(super) include_usage: bool,
}

impl Head {
    /// Makes the head of an answer whose id begins with `prefix`.
    pub(super) fn new(
        prefix: &str,
        object: &'static str,
        served: &ServedModel,
        include_usage: bool,
    ) -> Self {
        let model = served.id.clone();
        Self { id: new_id(prefix), object, created: now(), model, include_usage }
    }

    /// An object with choices. `suffix` is what `object` ends with in a chunk.
    pub(super) fn object(&self, suffix: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": format!("{}{suffix}", self.object),
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// A chunk of a stream.
    pub(super) fn chunk(&self, suffix: &str, choices: Value) -> Value {
        let mut chunk = self.object(suffix, choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

/// Tokens' probabilities as JSON, and those of others.
pub(super) fn logprobs_json<'t>(
    served: &ServedModel,
    tokens: impl IntoIterator<Item = &'t TokenLogprob>,
) -> Vec<Value> {
    tokens.into_iter().map(|token| logprob_json(served, token)).collect()
}

/// Adds the end of server-sent events.
pub(super) fn sse_done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// Adds an error, which ends a stream.
pub(super) fn sse_fail(error: &ApiError, out: &mut Vec<u8>) {
    sse(out, &error.body());
    sse_done(out);
}

/// The counts in OpenAI's form, `usage`.
pub(super) fn usage_json(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    })
}

/// The times of the last text in llama.cpp's form, `timings`.
pub(super) fn timings(usage: &Usage) -> Value {
    let Some(summary) = usage.last else { return Value::Null };
    let rate = |n: usize, seconds: f64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
    let read = summary.prompt_tokens - summary.cached_tokens.min(summary.prompt_tokens);
    let (prefill, decode) = (summary.prefill.as_secs_f64(), summary.decode.as_secs_f64());
    json!({
        "queued_ms": summary.queued.as_secs_f64() * 1e3,
        "prompt_n": read,
        "prompt_ms": prefill * 1e3,
        "prompt_per_second": rate(read, prefill),
        "predicted_n": summary.completion_tokens,
        "predicted_ms": decode * 1e3,
        // the first one came with the prompt
        "predicted_per_second": rate(summary.completion_tokens.saturating_sub(1), decode),
    })
}
