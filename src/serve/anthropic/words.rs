//! Anthropic's words for an answer: content blocks, and the events in which they come.

use mmx_converters::chat::answer::Piece;
use mmx_ggml::run::Finish;
use serde_json::{Value, json};

use crate::answer::{Dialect, Text, Usage, retell};
use crate::app::new_id;
use crate::engine::{Summary, TokenLogprob};
use crate::error::ApiError;
use crate::stream::{EVENT_STREAM, sse_named};

/// What stands in the place of a thought's signature, without which clients drop the thought.
const SIGNATURE: &str = "unsigned";

/// An answer in content blocks.
pub(super) struct MessageWords {
    id: String,
    model: String,
    prompt_tokens: usize,
    stop: Vec<String>,
    /// The text of thoughts is left out.
    thoughts_omitted: bool,
    /// Blocks that are complete.
    content: Vec<Value>,
    /// The block that is being written, text or thinking.
    block: Option<Value>,
    /// Why the answer ended, and the stop sequence that ended it.
    end: (&'static str, Option<String>),
}

impl MessageWords {
    pub(super) fn new(
        model: String,
        prompt_tokens: usize,
        stop: Vec<String>,
        thoughts_omitted: bool,
    ) -> Self {
        let id = new_id("msg_");
        let (content, block, end) = (Vec::new(), None, ("end_turn", None));
        Self { id, model, prompt_tokens, stop, thoughts_omitted, content, block, end }
    }

    /// The message as far as it is; its content, its end and its counts come later in a stream.
    fn message(&self, content: Value, end: Option<&(&str, Option<String>)>, usage: Value) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": end.map(|(reason, _)| *reason),
            "stop_sequence": end.and_then(|(_, stop)| stop.clone()),
            "usage": usage,
        })
    }

    /// Begins a block.
    fn start(&mut self, block: Value, out: &mut Vec<u8>) {
        event(
            "content_block_start",
            json!({"index": self.content.len(), "content_block": block}),
            out,
        );
        self.block = Some(block);
    }

    fn delta_of(&self, delta: Value, out: &mut Vec<u8>) {
        event("content_block_delta", json!({"index": self.content.len(), "delta": delta}), out);
    }

    /// Ends the block that is being written.
    fn stop(&mut self, out: &mut Vec<u8>) {
        let Some(mut block) = self.block.take() else { return };
        if block["type"] == "thinking" {
            block["signature"] = SIGNATURE.into();
            self.delta_of(json!({"type": "signature_delta", "signature": SIGNATURE}), out);
        }
        event("content_block_stop", json!({"index": self.content.len()}), out);
        self.content.push(block);
    }

    /// Adds text to the block of a kind, or begins one. `key` holds the text in the block.
    fn text(&mut self, kind: &str, key: &str, text: &str, out: &mut Vec<u8>) {
        if self.block.as_ref().is_none_or(|block| block["type"] != kind) {
            self.stop(out);
            let mut block = json!({"type": kind, key: ""});
            if kind == "thinking" {
                block["signature"] = "".into();
            }
            self.start(block, out);
        }
        if kind == "thinking" && self.thoughts_omitted {
            return;
        }
        self.delta_of(json!({"type": format!("{key}_delta"), key: text}), out);
        if let Some(Value::String(all)) = self.block.as_mut().and_then(|b| b.get_mut(key)) {
            all.push_str(text);
        }
    }
}

/// Adds an event.
fn event(name: &str, fields: Value, out: &mut Vec<u8>) {
    let mut all = json!({"type": name});
    if let (Some(all), Value::Object(fields)) = (all.as_object_mut(), fields) {
        all.extend(fields);
    }
    sse_named(out, name, &all);
}

/// The counts of tokens; those of the prompt that another request had computed stand apart.
fn usage_json(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt - usage.cached.min(usage.prompt),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    })
}

impl Dialect for MessageWords {
    const STREAM: &'static str = EVENT_STREAM;

    fn open(&mut self, out: &mut Vec<u8>) {
        let usage = json!({
            "input_tokens": self.prompt_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        });
        event("message_start", json!({"message": self.message(json!([]), None, usage)}), out);
        event("ping", json!({}), out);
    }

    fn delta(
        &mut self,
        _index: usize,
        _text: &Text,
        piece: &Piece,
        _tokens: &[TokenLogprob],
        out: &mut Vec<u8>,
    ) {
        match piece {
            Piece::Content(text) => self.text("text", "text", text, out),
            Piece::Thought(text) => self.text("thinking", "thinking", text, out),
            Piece::Call(call) => {
                self.stop(out);
                let block = json!({
                    "type": "tool_use", "id": new_id("toolu_"), "name": call.name, "input": {},
                });
                self.start(block, out);
                let json = call.arguments.to_string();
                self.delta_of(json!({"type": "input_json_delta", "partial_json": json}), out);
                if let Some(block) = &mut self.block {
                    block["input"] = call.arguments.clone();
                }
                self.stop(out);
            }
        }
    }

    fn end(&mut self, _index: usize, text: &Text, summary: &Summary, out: &mut Vec<u8>) {
        self.stop(out);
        let stop = summary.stop.and_then(|index| self.stop.get(index).cloned());
        self.end = match summary.finish {
            Finish::Stop if stop.is_some() => ("stop_sequence", stop),
            Finish::Stop if text.calls > 0 => ("tool_use", None),
            Finish::Stop => ("end_turn", None),
            Finish::Context => ("model_context_window_exceeded", None),
            Finish::Length | Finish::Cancelled => ("max_tokens", None),
        };
    }

    fn close(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        let (reason, stop) = &self.end;
        let delta = json!({"stop_reason": reason, "stop_sequence": stop});
        event("message_delta", json!({"delta": delta, "usage": usage_json(usage)}), out);
        event("message_stop", json!({}), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        sse_named(out, "error", &error.anthropic_body());
    }

    fn whole(mut self, texts: Vec<Text>, usage: &Usage) -> Value {
        // the same blocks as a stream's, without its events
        retell(&mut self, &texts);
        self.message(json!(self.content), Some(&self.end), usage_json(usage))
    }
}
