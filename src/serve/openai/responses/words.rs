//! The words of the Responses API for an answer: items, and the events in which they come.

use std::sync::Arc;

use mmx_converters::chat::answer::{Call, Piece};
use mmx_ggml::run::Finish;
use serde_json::{Value, json};

use crate::answer::{Dialect, Text, Usage, retell};
use crate::app::{App, new_id, now};
use crate::engine::{Summary, TokenLogprob};
use crate::error::ApiError;
use crate::kept::Kept;
use crate::openai::wire::logprobs_json;
use crate::request_log::Facts;
use crate::served_model::ServedModel;
use crate::stream::{EVENT_STREAM, sse_named};

/// What of a request its answer needs.
pub(super) struct Sent {
    /// The response's fields about the request.
    pub(super) about: Value,
    /// The time of the request, seconds since 1970.
    pub(super) created: u64,
    /// The conversation, without the instructions.
    pub(super) messages: Vec<Value>,
    pub(super) store: bool,
    /// The tokens' probabilities were asked for.
    pub(super) logprobs: bool,
    /// Thoughts are sent as their own summary, which was asked for.
    pub(super) summary: bool,
}

/// An answer in items.
pub(super) struct ResponseWords {
    app: Arc<App>,
    served: Arc<ServedModel>,
    sent: Sent,
    /// Whose it is: kept here, as the answer outlives its handler.
    asker: Option<usize>,
    id: String,
    /// Number of the next event.
    sequence: u64,
    /// Items that are complete.
    output: Vec<Value>,
    /// The item that is being written.
    item: Option<Item>,
    /// Probabilities of tokens of which no text has come yet.
    waiting: Vec<Value>,
    thought_tokens: usize,
    finish: Option<Finish>,
    /// What later requests may go on after.
    answer: Value,
}

/// An item that grows.
struct Item {
    id: String,
    /// It is a thought, or else content.
    thought: bool,
    text: String,
    logprobs: Vec<Value>,
}

impl ResponseWords {
    pub(super) fn new(app: Arc<App>, served: Arc<ServedModel>, sent: Sent) -> Self {
        Self {
            app,
            asker: Facts::asker(),
            served,
            sent,
            id: new_id("resp_"),
            sequence: 0,
            output: Vec::new(),
            item: None,
            waiting: Vec::new(),
            thought_tokens: 0,
            finish: None,
            answer: Value::Null,
        }
    }

    /// Adds an event with its fields.
    fn event(&mut self, name: &str, mut fields: Value, out: &mut Vec<u8>) {
        fields["type"] = name.into();
        fields["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        sse_named(out, name, &fields);
    }

    /// Adds an event about the item that is being written, or was last.
    fn item_event(&mut self, name: &str, id: &str, mut fields: Value, out: &mut Vec<u8>) {
        fields["item_id"] = id.into();
        fields["output_index"] = self.output.len().into();
        self.event(name, fields, out);
    }

    /// The whole response as far as it is.
    fn response(&self, status: &str, usage: Value) -> Value {
        let ended = !matches!(status, "in_progress" | "failed");
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.sent.created,
            "status": status,
            "completed_at": (status == "completed").then(now),
            "error": null,
            "incomplete_details": null,
            "output": if status == "in_progress" { json!([]) } else { json!(self.output) },
            "usage": if ended { usage } else { Value::Null },
        });
        if status == "incomplete" {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        if let (Some(response), Some(about)) =
            (response.as_object_mut(), self.sent.about.as_object())
        {
            response.extend(about.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        response
    }

    /// The part of an item that holds its text.
    fn part(&self, item: &Item, text: &str) -> Value {
        match (item.thought, self.sent.summary) {
            (true, true) => json!({"type": "summary_text", "text": text}),
            (true, false) => json!({"type": "reasoning_text", "text": text}),
            (false, _) => json!({
                "type": "output_text", "text": text, "annotations": [], "logprobs": item.logprobs,
            }),
        }
    }

    /// An item as JSON.
    fn item_json(&self, item: &Item, status: &str, parts: Vec<Value>) -> Value {
        let mut value = json!({"id": item.id, "type": "message", "status": status});
        match item.thought {
            true => {
                value["type"] = "reasoning".into();
                let (summary, content) =
                    if self.sent.summary { (parts, Vec::new()) } else { (Vec::new(), parts) };
                value["summary"] = summary.into();
                if !self.sent.summary {
                    value["content"] = content.into();
                }
            }
            false => {
                value["role"] = "assistant".into();
                value["content"] = parts.into();
            }
        }
        value
    }

    /// The names of an item's events, and of the place that its part has in it.
    fn names(&self, thought: bool) -> [&'static str; 5] {
        match (thought, self.sent.summary) {
            (true, true) => [
                "response.reasoning_summary_part.added",
                "response.reasoning_summary_text.delta",
                "response.reasoning_summary_text.done",
                "response.reasoning_summary_part.done",
                "summary_index",
            ],
            (true, false) => [
                "response.content_part.added",
                "response.reasoning_text.delta",
                "response.reasoning_text.done",
                "response.content_part.done",
                "content_index",
            ],
            (false, _) => [
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "content_index",
            ],
        }
    }

    /// Adds text to the item that is being written, or begins one.
    fn text(&mut self, thought: bool, text: &str, logprobs: Vec<Value>, out: &mut Vec<u8>) {
        if self.item.as_ref().is_some_and(|item| item.thought != thought) {
            self.close_item("completed", out);
        }
        let names = self.names(thought);
        let mut item = match self.item.take() {
            Some(item) => item,
            None => {
                let id = new_id(if thought { "rs_" } else { "msg_" });
                let item = Item { id, thought, text: String::new(), logprobs: Vec::new() };
                let added = self.item_json(&item, "in_progress", Vec::new());
                let index = self.output.len();
                let fields = json!({"output_index": index, "item": added});
                self.event("response.output_item.added", fields, out);
                let part = self.part(&item, "");
                self.item_event(names[0], &item.id, json!({names[4]: 0, "part": part}), out);
                item
            }
        };
        item.text.push_str(text);
        let mut fields = json!({names[4]: 0, "delta": text});
        if !thought {
            fields["logprobs"] = logprobs.clone().into();
            item.logprobs.extend(logprobs);
        }
        self.item_event(names[1], &item.id, fields, out);
        self.item = Some(item);
    }

    /// Ends the item that is being written.
    fn close_item(&mut self, status: &str, out: &mut Vec<u8>) {
        let Some(item) = self.item.take() else { return };
        let names = self.names(item.thought);
        let mut fields = json!({names[4]: 0, "text": item.text});
        if !item.thought {
            fields["logprobs"] = item.logprobs.clone().into();
        }
        self.item_event(names[2], &item.id, fields, out);
        let part = self.part(&item, &item.text);
        self.item_event(names[3], &item.id, json!({names[4]: 0, "part": part}), out);
        if item.thought {
            let tokenizer = self.served.tokenizer().ok();
            let ids = tokenizer.and_then(|t| t.encode_plain(&item.text).ok());
            self.thought_tokens += ids.map_or(0, |ids| ids.len());
        }
        let done = self.item_json(&item, status, vec![part]);
        self.complete(done, out);
    }

    /// Adds a call, which comes at once: it is read as a whole.
    fn call(&mut self, call: &Call, out: &mut Vec<u8>) {
        self.close_item("completed", out);
        let id = new_id("fc_");
        let arguments = call.arguments.to_string();
        let mut item = json!({
            "id": id, "type": "function_call", "status": "in_progress", "call_id": new_id("call_"),
            "name": call.name, "arguments": "",
        });
        let index = self.output.len();
        self.event("response.output_item.added", json!({"output_index": index, "item": item}), out);
        let delta = "response.function_call_arguments.delta";
        self.item_event(delta, &id, json!({"delta": arguments}), out);
        let done = "response.function_call_arguments.done";
        let fields = json!({"name": call.name, "arguments": arguments});
        self.item_event(done, &id, fields, out);
        item["status"] = "completed".into();
        item["arguments"] = arguments.into();
        self.complete(item, out);
    }

    fn complete(&mut self, item: Value, out: &mut Vec<u8>) {
        let index = self.output.len();
        self.event("response.output_item.done", json!({"output_index": index, "item": item}), out);
        self.output.push(item);
    }

    /// The response at its end, which is kept where that was asked for.
    fn ended(&self, usage: &Usage) -> (&'static str, Value) {
        let status = if self.is_cut() { "incomplete" } else { "completed" };
        let thoughts = self.thought_tokens.min(usage.completion);
        let usage = json!({
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": thoughts},
            "total_tokens": usage.prompt + usage.completion,
        });
        let response = self.response(status, usage);
        if self.sent.store {
            let mut messages = self.sent.messages.clone();
            messages.push(self.answer.clone());
            self.app.kept.keep(Kept::new(&self.id, self.asker, response.clone(), messages));
        }
        (status, response)
    }

    fn is_cut(&self) -> bool {
        !matches!(self.finish, Some(Finish::Stop))
    }

    /// The answer as a message for later requests.
    fn message(&self, text: &Text) -> Value {
        let mut message = json!({"role": "assistant", "content": text.content()});
        let thought = text.thought();
        if !thought.is_empty() {
            message["reasoning_content"] = thought.into();
        }
        let calls = self.output.iter().filter(|item| item["type"] == "function_call");
        let calls: Vec<Value> = calls
            .map(|item| {
                json!({"id": item["call_id"], "type": "function",
                    "function": {"name": item["name"], "arguments": item["arguments"]}})
            })
            .collect();
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        message
    }
}

impl Dialect for ResponseWords {
    const STREAM: &'static str = EVENT_STREAM;

    fn open(&mut self, out: &mut Vec<u8>) {
        for name in ["response.created", "response.in_progress"] {
            let response = self.response("in_progress", Value::Null);
            self.event(name, json!({"response": response}), out);
        }
    }

    fn delta(
        &mut self,
        _index: usize,
        _text: &Text,
        piece: &Piece,
        tokens: &[TokenLogprob],
        out: &mut Vec<u8>,
    ) {
        if self.sent.logprobs {
            self.waiting.extend(logprobs_json(&self.served, tokens));
        }
        match piece {
            Piece::Content(text) | Piece::Thought(text) if text.is_empty() => {}
            Piece::Content(text) => {
                let logprobs = std::mem::take(&mut self.waiting);
                self.text(false, text, logprobs, out);
            }
            Piece::Thought(text) => {
                self.waiting.clear(); // thoughts bear no probabilities
                self.text(true, text, Vec::new(), out);
            }
            Piece::Call(call) => {
                self.waiting.clear();
                self.call(call, out);
            }
        }
    }

    fn end(&mut self, _index: usize, text: &Text, summary: &Summary, out: &mut Vec<u8>) {
        self.finish = Some(summary.finish);
        self.close_item(if self.is_cut() { "incomplete" } else { "completed" }, out);
        self.answer = self.message(text);
    }

    fn close(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        let (status, response) = self.ended(usage);
        self.event(&format!("response.{status}"), json!({"response": response}), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        let code = match error.status.as_u16() {
            429 => "rate_limit_exceeded",
            400..500 => "invalid_prompt",
            _ => "server_error",
        };
        self.item = None;
        let mut response = self.response("failed", Value::Null);
        response["error"] = json!({"code": code, "message": error.message});
        self.event("response.failed", json!({"response": response}), out);
    }

    fn whole(mut self, texts: Vec<Text>, usage: &Usage) -> Value {
        // the same items as a stream's, without its events
        retell(&mut self, &texts);
        self.ended(usage).1
    }
}
