//! `/v1/chat/completions`, whole and streamed. Source: OpenAI's API reference; `reasoning_content`
//! as DeepSeek and vLLM have it.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use mmx_ggml::run::Finish;
use serde_json::{Value, json};

use crate::app::{App, blocking, new_id, now};
use crate::engine::{Event, Events, Summary, finish_name};
use crate::error::ApiError;
use crate::fields::{Fields, Refused};
use crate::openai::wire::{Usage, include_usage, sse_done};
use crate::request::chat::{Ask, start, thinking_variables};
use crate::request::sampling::{Params, check_logprobs, schema_of};
use crate::served_model::ServedModel;
use crate::stream::{EVENT_STREAM, Translate, collect, logprob_json, respond, sse};
use mmx_converters::chat::answer::{Call, Piece, Splitter};

/// Fields that this address does not support, besides those that none does.
const REFUSED: &[Refused] =
    &[("add_special_tokens", &["false"]), ("best_of", &["1"]), ("echo", &["false"])];

/// Degrees of thinking in OpenAI's words. A model here thinks or does not.
const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];

/// Reads whether a thought is asked for, or none: `enable_thinking` as vLLM and llama.cpp have it,
/// or OpenAI's effort.
fn think(fields: &mut Fields) -> Result<Option<bool>, ApiError> {
    let asked = fields.flag("enable_thinking")?;
    let Some(effort) = fields.text("reasoning_effort")? else { return Ok(asked) };
    if !EFFORTS.contains(&effort.as_str()) {
        let expected = EFFORTS.join(", ");
        let text = format!("reasoning_effort: expected one of {expected}, found {effort}");
        return Err(ApiError::invalid("reasoning_effort", text));
    }
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
    let started = blocking(move || {
        let mut fields = Fields::parse(&body)?;
        let model = fields.text("model")?;
        let messages = fields.list("messages")?.unwrap_or_default();
        let params = Params::take(&mut fields)?;
        let mut variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
        if let Some(think) = think(&mut fields)? {
            variables.extend(thinking_variables(think));
        }
        let logprobs = fields.flag("logprobs")?;
        let top = fields.int("top_logprobs")?;
        let top = top.map(|n| check_logprobs("top_logprobs", n)).transpose()?;
        if top.is_some() && logprobs != Some(true) {
            return Err(ApiError::invalid(
                "top_logprobs",
                "top_logprobs: expected logprobs to be true",
            ));
        }
        let logprobs = logprobs.unwrap_or(false);
        let stream = fields.flag("stream")?.unwrap_or(false);
        let usage = include_usage(&mut fields)?;
        let schema = schema_of(fields.any("response_format"))?;
        let tools = fields.list("tools")?;
        let tool_choice = fields.any("tool_choice");
        let several_calls = fields.flag("parallel_tool_calls")?.unwrap_or(true);
        fields.finish(REFUSED)?;
        let chat = start(
            &app,
            Ask {
                model,
                messages,
                params,
                logprobs: logprobs.then(|| top.unwrap_or(0)),
                schema,
                tools,
                tool_choice,
                several_calls,
                variables,
            },
        )?;
        Ok((chat, stream, usage, logprobs))
    })
    .await?;
    let (chat, stream, include_usage, logprobs) = started;
    let answer = Answer {
        id: new_id("chatcmpl"),
        created: now(),
        left: chat.splitters.len(),
        choices: chat.splitters.into_iter().map(Choice::new).collect(),
        served: chat.served,
        include_usage,
        logprobs,
        usage: Usage::default(),
        broken: false,
    };
    if stream {
        return Ok(respond(EVENT_STREAM, chat.events, answer));
    }
    answer.whole(chat.events).await
}

/// One text of a request.
struct Choice {
    splitter: Splitter,
    opened: bool,
    calls: usize,
    content: String,
    thought: String,
    tool_calls: Vec<Value>,
    logprobs: Vec<Value>,
    finish: &'static str,
}

impl Choice {
    fn new(splitter: Splitter) -> Self {
        Self {
            splitter,
            opened: false,
            calls: 0,
            content: String::new(),
            thought: String::new(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
            finish: "stop",
        }
    }

    fn finish_name(&self, finish: Finish) -> &'static str {
        match finish_name(finish) {
            "stop" if self.calls > 0 => "tool_calls",
            name => name,
        }
    }
}

/// An answer in progress.
struct Answer {
    id: String,
    created: u64,
    served: Arc<ServedModel>,
    choices: Vec<Choice>,
    left: usize,
    include_usage: bool,
    logprobs: bool,
    usage: Usage,
    broken: bool,
}

impl Answer {
    /// Waits for all texts and answers with one object.
    async fn whole(mut self, events: Events) -> Result<Response, ApiError> {
        collect(events, self.left, |index, event| {
            let Some(choice) = self.choices.get_mut(index) else { return };
            let pieces = match event {
                Event::Text(text, tokens) => {
                    choice.logprobs.extend(tokens.iter().map(|t| logprob_json(&self.served, t)));
                    choice.splitter.push(&text)
                }
                Event::Done(summary) => {
                    self.usage.add(&summary, index > 0);
                    choice.finish = finish_name(summary.finish);
                    choice.splitter.finish()
                }
                Event::Prompt(_) | Event::Embedding(..) | Event::Failed(_) => return,
            };
            for piece in pieces {
                match piece {
                    Piece::Content(text) => choice.content.push_str(&text),
                    Piece::Thought(text) => choice.thought.push_str(&text),
                    Piece::Call(call) => choice.tool_calls.push(call_json(&call)),
                }
            }
        })
        .await?;
        let logprobs = self.logprobs;
        let choices: Vec<Value> = self
            .choices
            .into_iter()
            .enumerate()
            .map(|(index, choice)| {
                let called = !choice.tool_calls.is_empty();
                let mut message = json!({"role": "assistant", "content": choice.content});
                if called && choice.content.is_empty() {
                    message["content"] = Value::Null;
                }
                if !choice.thought.is_empty() {
                    message["reasoning_content"] = choice.thought.into();
                }
                if called {
                    message["tool_calls"] = choice.tool_calls.into();
                }
                let finish =
                    if called && choice.finish == "stop" { "tool_calls" } else { choice.finish };
                json!({
                    "index": index,
                    "message": message,
                    "logprobs": logprobs.then(|| json!({"content": choice.logprobs})),
                    "finish_reason": finish,
                })
            })
            .collect();
        Ok(Json(json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.served.id,
            "choices": choices,
            "usage": self.usage.to_json(),
            "timings": self.usage.timings(),
        }))
        .into_response())
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.served.id,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(
        &self,
        index: usize,
        delta: Value,
        logprobs: Option<Value>,
        finish: Option<&str>,
    ) -> Value {
        let mut choice = json!({"index": index, "delta": delta, "finish_reason": finish});
        if self.logprobs {
            choice["logprobs"] = logprobs.unwrap_or(Value::Null);
        }
        self.chunk(json!([choice]))
    }

    fn open(&mut self, index: usize, out: &mut Vec<u8>) {
        if !self.choices[index].opened {
            self.choices[index].opened = true;
            sse(out, &self.delta(index, json!({"role": "assistant", "content": ""}), None, None));
        }
    }

    fn pieces(
        &mut self,
        index: usize,
        pieces: Vec<Piece>,
        mut logprobs: Vec<Value>,
        out: &mut Vec<u8>,
    ) {
        let mut deltas = Vec::new();
        for piece in pieces {
            deltas.push(match piece {
                Piece::Content(text) => json!({"content": text}),
                Piece::Thought(text) => json!({"reasoning_content": text}),
                Piece::Call(call) => {
                    let mut value = call_json(&call);
                    value["index"] = self.choices[index].calls.into();
                    self.choices[index].calls += 1;
                    json!({"tool_calls": [value]})
                }
            });
        }
        if deltas.is_empty() && !logprobs.is_empty() {
            deltas.push(json!({"content": ""}));
        }
        for delta in deltas {
            let tokens = std::mem::take(&mut logprobs);
            let tokens = (!tokens.is_empty()).then(|| json!({"content": tokens}));
            sse(out, &self.delta(index, delta, tokens, None));
        }
    }

    fn done(&mut self, index: usize, summary: &Summary, out: &mut Vec<u8>) {
        let rest = self.choices[index].splitter.finish();
        self.pieces(index, rest, Vec::new(), out);
        let finish = self.choices[index].finish_name(summary.finish);
        sse(out, &self.delta(index, json!({}), None, Some(finish)));
        self.usage.add(summary, index > 0);
        self.left -= 1;
        if self.left == 0 {
            if self.include_usage {
                let mut chunk = self.chunk(json!([]));
                chunk["usage"] = self.usage.to_json();
                chunk["timings"] = self.usage.timings();
                sse(out, &chunk);
            }
            sse_done(out);
        }
    }
}

impl Translate for Answer {
    fn event(&mut self, index: usize, event: Event, out: &mut Vec<u8>) {
        if self.is_done() || index >= self.choices.len() {
            return;
        }
        match event {
            Event::Text(text, tokens) => {
                self.open(index, out);
                let logprobs = tokens.iter().map(|t| logprob_json(&self.served, t)).collect();
                let pieces = self.choices[index].splitter.push(&text);
                self.pieces(index, pieces, logprobs, out);
            }
            Event::Done(summary) => {
                self.open(index, out);
                self.done(index, &summary, out);
            }
            Event::Prompt(_) | Event::Embedding(..) => {}
            Event::Failed(error) => {
                self.broken = true;
                sse(out, &error.body());
                sse_done(out);
            }
        }
    }

    fn is_done(&self) -> bool {
        self.left == 0 || self.broken
    }
}

/// A call in OpenAI's form, in which arguments are JSON in a string.
fn call_json(call: &Call) -> Value {
    json!({
        "id": new_id("call"),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments.to_string()},
    })
}
