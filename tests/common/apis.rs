//! What the tests of the newer APIs share: a model, events with names, and a coding agent's conversation in the form of
//! each API.

#![allow(unreachable_pub, reason = "a part of each test that asks a server")]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::{mmx_json, shared, text};
use crate::server::Answer;

/// A golden model as a GGUF with its tokenizer, called `m`.
pub fn golden(dir: &Path, set: &str, model: &str) -> PathBuf {
    let (source, tokenizer) = (shared(&format!("{set}/{model}")), shared(set));
    let out = dir.join(format!("{set}-{model}"));
    let args = ["export", text(&source), "--tokenizer", text(&tokenizer), "--gguf", "f32"];
    let report = mmx_json(&[&args[..], &["--name", "m", "--out", text(&out)]].concat());
    PathBuf::from(report["files"][0]["path"].as_str().expect("a path"))
}

/// `base` with the fields of `extra`.
pub fn with(base: &Value, extra: Value) -> Value {
    let mut body = base.clone();
    let Value::Object(extra) = extra else { panic!("expected an object") };
    body.as_object_mut().expect("an object").extend(extra);
    body
}

/// The server-sent events of an answer, each with its name; comments are skipped.
pub fn named_events(answer: &Answer) -> Vec<(String, Value)> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.headers.to_lowercase().contains("content-type: text/event-stream"));
    let text = answer.text();
    assert!(text.ends_with("\n\n"), "the last event is whole: {text}");
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap_or_else(|| panic!("no name: {event}"));
        let name = name.strip_prefix("event: ").expect("a name").to_owned();
        let data = data.strip_prefix("data: ").expect("data");
        (name, serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}")))
    };
    text.split_terminator("\n\n").filter(|e| !e.starts_with(':')).map(event).collect()
}

/// A coding agent's conversation: a long system prompt, many tools, several turns with results.
pub struct Agent(Value);

pub fn agent() -> Agent {
    let path = shared("cases/agent/conversation.json");
    Agent(serde_json::from_str(&fs_err::read_to_string(path).expect("a case")).expect("JSON"))
}

impl Agent {
    fn list(&self, key: &str) -> Vec<Value> {
        self.0[key].as_array().expect("a list").clone()
    }

    /// The result of a tool as a template shows it.
    fn shown(result: &Value) -> String {
        let text = result["text"].as_str().expect("a text");
        if result["error"] == true { format!("Error: {text}") } else { text.to_owned() }
    }

    /// As a request for a chat.
    pub fn chat(&self) -> Value {
        let mut messages = vec![json!({"role": "system", "content": self.0["system"]})];
        for turn in self.list("turns") {
            match turn["role"].as_str() {
                Some("user") => messages.push(json!({"role": "user", "content": turn["text"]})),
                Some("assistant") => {
                    let mut message = json!({"role": "assistant", "content": turn["text"]});
                    if turn["thought"] != "" {
                        message["reasoning_content"] = turn["thought"].clone();
                    }
                    let call = |call: &Value| {
                        json!({"id": call["id"], "type": "function", "function":
                            {"name": call["name"], "arguments": call["arguments"].to_string()}})
                    };
                    let calls: Vec<Value> =
                        turn["calls"].as_array().expect("calls").iter().map(call).collect();
                    if !calls.is_empty() {
                        message["tool_calls"] = calls.into();
                    }
                    messages.push(message);
                }
                _ => {
                    for result in turn["results"].as_array().expect("results") {
                        messages.push(json!({"role": "tool", "content": Self::shown(result),
                            "tool_call_id": result["id"]}));
                    }
                }
            }
        }
        let tool = |tool: Value| json!({"type": "function", "function": tool});
        let tools: Vec<Value> = self.list("tools").into_iter().map(tool).collect();
        json!({"model": "m", "messages": messages, "tools": tools})
    }

    /// As a request for a response.
    #[allow(dead_code, reason = "each test file uses a part")]
    pub fn responses(&self) -> Value {
        let mut input = Vec::new();
        for turn in self.list("turns") {
            match turn["role"].as_str() {
                Some("user") => input.push(json!({"type": "message", "role": "user",
                    "content": [{"type": "input_text", "text": turn["text"]}]})),
                Some("assistant") => {
                    if turn["thought"] != "" {
                        input.push(json!({"type": "reasoning", "id": "rs_1", "summary": [],
                            "content": [{"type": "reasoning_text", "text": turn["thought"]}]}));
                    }
                    if turn["text"] != "" {
                        let part =
                            json!({"type": "output_text", "text": turn["text"], "annotations": []});
                        input.push(json!({"type": "message", "role": "assistant", "id": "msg_1",
                            "status": "completed", "content": [part]}));
                    }
                    for call in turn["calls"].as_array().expect("calls") {
                        input.push(json!({"type": "function_call", "call_id": call["id"],
                            "name": call["name"], "arguments": call["arguments"].to_string()}));
                    }
                }
                _ => {
                    for result in turn["results"].as_array().expect("results") {
                        input.push(json!({"type": "function_call_output", "call_id": result["id"],
                            "output": Self::shown(result)}));
                    }
                }
            }
        }
        let tool = |mut tool: Value| {
            tool["type"] = "function".into();
            tool["strict"] = true.into();
            tool
        };
        let tools: Vec<Value> = self.list("tools").into_iter().map(tool).collect();
        json!({"model": "m", "instructions": self.0["system"], "input": input, "tools": tools})
    }

    /// As a request for a message.
    #[allow(dead_code, reason = "each test file uses a part")]
    pub fn messages(&self) -> Value {
        let mut messages = Vec::new();
        for turn in self.list("turns") {
            let (role, content) = match turn["role"].as_str() {
                Some("user") => (
                    "user",
                    json!([{"type": "text", "text": turn["text"],
                    "cache_control": {"type": "ephemeral"}}]),
                ),
                Some("assistant") => {
                    let mut blocks = Vec::new();
                    if turn["thought"] != "" {
                        blocks.push(json!({"type": "thinking", "thinking": turn["thought"], "signature": "x"}));
                    }
                    if turn["text"] != "" {
                        blocks.push(json!({"type": "text", "text": turn["text"]}));
                    }
                    for call in turn["calls"].as_array().expect("calls") {
                        blocks.push(json!({"type": "tool_use", "id": call["id"],
                            "name": call["name"], "input": call["arguments"]}));
                    }
                    ("assistant", json!(blocks))
                }
                _ => {
                    let result = |result: &Value| {
                        json!({"type": "tool_result", "tool_use_id": result["id"],
                            "content": [{"type": "text", "text": result["text"]}],
                            "is_error": result["error"] == true})
                    };
                    let results = turn["results"].as_array().expect("results");
                    ("user", results.iter().map(result).collect())
                }
            };
            messages.push(json!({"role": role, "content": content}));
        }
        let tool = |tool: Value| {
            json!({"name": tool["name"], "description": tool["description"],
                "input_schema": tool["parameters"]})
        };
        let tools: Vec<Value> = self.list("tools").into_iter().map(tool).collect();
        let system = json!([{"type": "text", "text": self.0["system"],
            "cache_control": {"type": "ephemeral"}}]);
        json!({"model": "m", "system": system, "messages": messages, "tools": tools, "max_tokens": 3})
    }
}
