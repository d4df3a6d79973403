//! Ollama's words for an answer: an object, or lines of JSON.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mmx_converters::chat::answer::{Call, Piece};
use serde_json::{Value, json};

use crate::answer::{Dialect, Text, Usage};
use crate::engine::{Summary, TokenLogprob, finish_name};
use crate::error::ApiError;
use crate::served_model::ServedModel;
use crate::stream::logprob_json;

/// The two forms of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Chat,
    Generate,
}

/// The words of one answer.
pub(super) struct Words {
    pub(super) served: Arc<ServedModel>,
    pub(super) form: Form,
    pub(super) since: Instant,
    /// The tokens' probabilities were asked for.
    pub(super) logprobs: bool,
}

impl Words {
    /// Puts text, thought and calls into their places, and the probabilities beside them.
    fn part(
        &self,
        content: &str,
        thought: &str,
        calls: Vec<Value>,
        tokens: &[&TokenLogprob],
    ) -> Value {
        let created = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        let mut object = json!({"model": self.served.id, "created_at": created});
        match self.form {
            Form::Chat => {
                let mut message = json!({"role": "assistant", "content": content});
                if !thought.is_empty() {
                    message["thinking"] = thought.into();
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                object["message"] = message;
            }
            Form::Generate => {
                object["response"] = content.into();
                if !thought.is_empty() {
                    object["thinking"] = thought.into();
                }
            }
        }
        object["done"] = false.into();
        if self.logprobs && !tokens.is_empty() {
            let tokens = tokens.iter().map(|token| logprob_json(&self.served, token));
            object["logprobs"] = tokens.collect();
        }
        object
    }

    /// The answer to a request that only loads the model.
    pub(super) fn loaded(&self) -> Value {
        let mut object = self.part("", "", Vec::new(), &[]);
        object["done"] = true.into();
        object["done_reason"] = "load".into();
        object
    }

    /// Adds the end of a text, its counts and its times.
    fn ended(&self, mut object: Value, summary: &Summary) -> Value {
        let nanoseconds = |d: Duration| d.as_nanos() as u64;
        object["done"] = true.into();
        object["done_reason"] = finish_name(summary.finish).into();
        object["total_duration"] = nanoseconds(self.since.elapsed()).into();
        object["load_duration"] = nanoseconds(summary.queued).into();
        object["prompt_eval_count"] = summary.prompt_tokens.into();
        object["prompt_eval_duration"] = nanoseconds(summary.prefill).into();
        object["eval_count"] = summary.completion_tokens.into();
        object["eval_duration"] = nanoseconds(summary.decode).into();
        object
    }
}

impl Dialect for Words {
    const STREAM: &'static str = "application/x-ndjson";

    fn delta(
        &mut self,
        _index: usize,
        _text: &Text,
        piece: &Piece,
        tokens: &[TokenLogprob],
        out: &mut Vec<u8>,
    ) {
        let tokens: &[&TokenLogprob] = &tokens.iter().collect::<Vec<_>>();
        let part = match piece {
            Piece::Content(text) => self.part(text, "", Vec::new(), tokens),
            Piece::Thought(text) => self.part("", text, Vec::new(), tokens),
            Piece::Call(call) => self.part("", "", vec![call_json(call)], tokens),
        };
        line(out, &part);
    }

    fn end(&mut self, _index: usize, _text: &Text, summary: &Summary, out: &mut Vec<u8>) {
        line(out, &self.ended(self.part("", "", Vec::new(), &[]), summary));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        line(out, &json!({"error": error.message}));
    }

    fn whole(self, texts: Vec<Text>, _usage: &Usage) -> Value {
        let Some((text, summary)) = texts.first().and_then(|t| Some((t, t.summary?))) else {
            return self.loaded();
        };
        let calls = text.called().map(call_json).collect();
        let tokens: Vec<_> = text.tokens().collect();
        let object = self.part(&text.content(), &text.thought(), calls, &tokens);
        self.ended(object, &summary)
    }
}

fn line(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(value.to_string().as_bytes());
    out.push(b'\n');
}

/// A call in Ollama's form, in which arguments are an object.
fn call_json(call: &Call) -> Value {
    json!({"function": {"name": call.name, "arguments": call.arguments}})
}
