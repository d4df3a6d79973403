//! `/v1/chat/completions`, whole and streamed. Source: OpenAI's API reference; `reasoning_content`
//! as DeepSeek and vLLM have it.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use mmx_converters::chat::answer::{Call, Piece};
use serde_json::{Map, Value, json};

use crate::answer::{Answer, Dialect, Text, Usage};
use crate::app::{App, blocking, new_id};
use crate::engine::{Summary, TokenLogprob};
use crate::error::ApiError;
use crate::fields::{Fields, Refused};
use crate::openai::known;
use crate::openai::wire::{
    Head, LIMITS, effort, include_usage, logprobs_json, params, schema_of, sse_done, sse_fail,
    timings, usage_json,
};
use crate::request::chat::{Ask, THINKING, start, thinking_variables};
use crate::request::messages;
use crate::request::sampling::check_logprobs;
use crate::request::tools::{ToolChoice, Tools};
use crate::served_model::ServedModel;
use crate::stream::{EVENT_STREAM, sse};

/// Fields that this address does not support, besides those that none does.
const REFUSED: &[Refused] =
    &[("add_special_tokens", &["false"]), ("best_of", &["1"]), ("echo", &["false"])];

/// Reads the variables of the chat template, among them whether a thought is asked for.
///
/// # Errors
/// 400 where two fields contradict each other.
fn variables(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
    if let Some(think) = think(fields)? {
        let other = THINKING
            .into_iter()
            .find(|name| variables.get(*name).is_some_and(|value| *value != Value::Bool(think)));
        if let Some(name) = other {
            let place = format!("chat_template_kwargs.{name}");
            let text = format!(
                "{place} contradicts enable_thinking or reasoning_effort: found {} and {think}",
                variables[name]
            );
            return Err(ApiError::invalid(&place, text));
        }
        variables.extend(thinking_variables(think));
    }
    Ok(variables)
}

/// Reads which tools may or must be called.
fn tool_choice(value: Option<Value>) -> Result<ToolChoice, ApiError> {
    match value {
        None => Ok(ToolChoice::Auto),
        Some(Value::String(word)) if word == "auto" => Ok(ToolChoice::Auto),
        Some(Value::String(word)) if word == "none" => Ok(ToolChoice::None),
        Some(Value::String(word)) if word == "required" => Ok(ToolChoice::Required),
        Some(value) => match value.pointer("/function/name").and_then(Value::as_str) {
            Some(name) => Ok(ToolChoice::Named(vec![name.to_owned()])),
            None => {
                let text = format!(
                    "tool_choice: expected none, auto, required or a function, found {value}"
                );
                Err(ApiError::invalid("tool_choice", text))
            }
        },
    }
}

/// Reads whether a thought is asked for, or none: `enable_thinking` as vLLM and llama.cpp have it,
/// or OpenAI's effort.
fn think(fields: &mut Fields) -> Result<Option<bool>, ApiError> {
    let asked = fields.flag("enable_thinking")?;
    let Some(effort) = effort(fields, "reasoning_effort")? else { return Ok(asked) };
    match asked {
        Some(think) if think != (effort != "none") => {
            let text = format!(
                "enable_thinking and reasoning_effort contradict each other: found {think} and {effort}"
            );
            Err(ApiError::invalid("reasoning_effort", text))
        }
        _ => Ok(Some(effort != "none")),
    }
}

/// Answers `POST /v1/chat/completions`.
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (answer, events, stream) = blocking(move || {
        let mut fields = Fields::parse(&body)?;
        let model = fields.text("model")?;
        let messages = fields.list("messages")?.unwrap_or_default();
        let params = params(&mut fields, LIMITS)?;
        let variables = variables(&mut fields)?;
        let logprobs = fields.flag("logprobs")?;
        let top = fields.int("top_logprobs")?;
        let top = top.map(|n| check_logprobs("top_logprobs", n)).transpose()?;
        if top.is_some() && logprobs != Some(true) {
            return Err(fields.fault("top_logprobs", "expected logprobs to be true"));
        }
        let logprobs = logprobs.unwrap_or(false);
        let stream = fields.flag("stream")?.unwrap_or(false);
        let include_usage = include_usage(&mut fields)?;
        let schema = schema_of(fields.any("response_format"))?;
        let tools = fields.list("tools")?.unwrap_or_default();
        let choice = fields.any("tool_choice");
        let several_calls = fields.flag("parallel_tool_calls")?.unwrap_or(true);
        fields.finish(&[REFUSED, known::REFUSED], known::IGNORED)?;
        let served = app.find(model.as_deref())?;
        let messages = messages::check(messages)?;
        let mut tools = Tools::of(tools, tool_choice(choice)?)?;
        tools.one_call = !several_calls;
        let head = Head::new("chatcmpl-", "chat.completion", &served, include_usage);
        let ask = Ask {
            served: served.clone(),
            messages,
            field: "messages",
            params,
            logprobs: logprobs.then(|| top.unwrap_or(0)),
            schema,
            tools,
            variables,
        };
        let chat = start(&app, ask)?;
        Ok((Answer::new(ChatWords { head, served, logprobs }, chat.texts), chat.events, stream))
    })
    .await?;
    answer.respond(events, stream).await
}

/// The words of chats.
struct ChatWords {
    head: Head,
    served: Arc<ServedModel>,
    /// The tokens' probabilities were asked for.
    logprobs: bool,
}

impl ChatWords {
    fn chunk(
        &self,
        index: usize,
        delta: Value,
        tokens: &[TokenLogprob],
        finish: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        let mut choice = json!({"index": index, "delta": delta, "finish_reason": finish});
        if self.logprobs {
            let tokens = logprobs_json(&self.served, tokens);
            choice["logprobs"] =
                if tokens.is_empty() { Value::Null } else { json!({"content": tokens}) };
        }
        sse(out, &self.head.chunk(".chunk", json!([choice])));
    }
}

impl Dialect for ChatWords {
    const STREAM: &'static str = EVENT_STREAM;

    fn begin(&mut self, index: usize, _text: &Text, out: &mut Vec<u8>) {
        self.chunk(index, json!({"role": "assistant", "content": ""}), &[], None, out);
    }

    fn delta(
        &mut self,
        index: usize,
        text: &Text,
        piece: &Piece,
        tokens: &[TokenLogprob],
        out: &mut Vec<u8>,
    ) {
        let delta = match piece {
            Piece::Content(text) => json!({"content": text}),
            Piece::Thought(text) => json!({"reasoning_content": text}),
            Piece::Call(call) => {
                let mut value = call_json(call);
                value["index"] = text.calls.into();
                json!({"tool_calls": [value]})
            }
        };
        self.chunk(index, delta, tokens, None, out);
    }

    fn end(&mut self, index: usize, text: &Text, _summary: &Summary, out: &mut Vec<u8>) {
        self.chunk(index, json!({}), &[], Some(finish(text)), out);
    }

    fn close(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        if self.head.include_usage {
            let mut chunk = self.head.chunk(".chunk", json!([]));
            chunk["usage"] = usage_json(usage);
            chunk["timings"] = timings(usage);
            sse(out, &chunk);
        }
        sse_done(out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        sse_fail(error, out);
    }

    fn whole(self, texts: Vec<Text>, usage: &Usage) -> Value {
        let choice = |(index, text): (usize, &Text)| {
            let (content, thought) = (text.content(), text.thought());
            let mut message = json!({"role": "assistant", "content": content});
            if text.calls > 0 && content.is_empty() {
                message["content"] = Value::Null;
            }
            if !thought.is_empty() {
                message["reasoning_content"] = thought.into();
            }
            if text.calls > 0 {
                message["tool_calls"] = text.called().map(call_json).collect();
            }
            let tokens = || json!({"content": logprobs_json(&self.served, text.tokens())});
            json!({
                "index": index,
                "message": message,
                "logprobs": self.logprobs.then(tokens),
                "finish_reason": finish(text),
            })
        };
        let choices = texts.iter().enumerate().map(choice).collect();
        let mut whole = self.head.object("", choices);
        whole["usage"] = usage_json(usage);
        whole["timings"] = timings(usage);
        whole
    }
}

/// The word for how a text ended.
fn finish(text: &Text) -> &'static str {
    match text.finish() {
        "stop" if text.calls > 0 => "tool_calls",
        name => name,
    }
}

/// A call in OpenAI's form, in which arguments are JSON in a string.
fn call_json(call: &Call) -> Value {
    json!({
        "id": new_id("call-"),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments.to_string()},
    })
}
