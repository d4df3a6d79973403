//! A conversation in items, as the Responses API has it.
//!
//! In: the field `input`, a text or items. Out: messages in the form of chat templates: an answer's
//! reasoning, text and calls, which are items here, become one message.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, wrong_type};
use crate::kept::Responses;

/// Fields of an item that change nothing: ids of the server that wrote it, and how far it came.
const IGNORED: [&str; 3] = ["id", "status", "phase"];

/// A conversation in messages, which grows item by item.
pub(super) struct Conversation {
    pub(super) messages: Vec<Value>,
    /// Reasoning whose answer is the next item.
    thought: Option<(String, String)>,
    /// Ids of the calls in order.
    calls: Vec<String>,
    /// Whether each call has its output.
    answered: HashMap<String, bool>,
    /// The answer to which the next items may belong.
    answer: Option<Map<String, Value>>,
}

impl Conversation {
    /// Goes on after messages.
    pub(super) fn after(messages: Vec<Value>) -> Self {
        let mut all = Self {
            messages: Vec::new(),
            thought: None,
            calls: Vec::new(),
            answered: HashMap::new(),
            answer: None,
        };
        for message in &messages {
            let id = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            for call in message["tool_calls"].as_array().into_iter().flatten() {
                all.calls.push(id(&call["id"]));
                all.answered.insert(id(&call["id"]), false);
            }
            if let Some(answered) = all.answered.get_mut(&id(&message["tool_call_id"])) {
                *answered = true;
            }
        }
        all.messages = messages;
        all
    }

    /// Adds the field `input`.
    ///
    /// # Errors
    /// 400 with the place of an item that is of no known type, lacks a field, or does not fit what
    /// came before it.
    pub(super) fn add(&mut self, input: Option<Value>, kept: &Responses) -> Result<(), ApiError> {
        let items = match input {
            Some(Value::String(text)) => {
                self.push(json!({"role": "user", "content": text}))?;
                Vec::new()
            }
            Some(Value::Array(items)) if !items.is_empty() => items,
            Some(Value::Array(_)) | None => {
                let text = "input: expected a text or at least one item, found none";
                return Err(ApiError::invalid("input", text));
            }
            Some(other) => return Err(wrong_type("input", "a text or items", &other)),
        };
        for (index, item) in items.into_iter().enumerate() {
            let place = format!("input[{index}]");
            let fields = Fields::at(item, &place)?;
            self.item(fields, kept)?;
        }
        self.no_thought()?;
        self.close();
        match self.calls.iter().find(|id| self.answered.get(*id) == Some(&false)) {
            Some(id) => {
                let text = format!("input: expected a function_call_output for {id}, found none");
                Err(ApiError::invalid("input", text))
            }
            None => Ok(()),
        }
    }

    fn item(&mut self, mut fields: Fields, kept: &Responses) -> Result<(), ApiError> {
        let kind = fields.text("type")?;
        if kind.as_deref() == Some("item_reference") {
            let id = required(&mut fields, "id")?;
            let Some(item) = kept.item(&id) else {
                let text = format!("no item of this id is kept here: found {id}");
                return Err(fields.fault("id", &text));
            };
            let place = fields.place("id");
            fields.finish(&[], &[])?;
            let mut fields = Fields::at(item, &place)?;
            let kind = fields.text("type")?;
            return self.known(kind.as_deref(), fields);
        }
        self.known(kind.as_deref(), fields)
    }

    fn known(&mut self, kind: Option<&str>, mut fields: Fields) -> Result<(), ApiError> {
        match kind {
            None | Some("message") => self.message(&mut fields)?,
            Some("reasoning") => self.reasoning(&mut fields)?,
            Some("function_call") => self.call(&mut fields)?,
            Some("function_call_output") => self.output(&mut fields)?,
            Some(other) => {
                let text = format!(
                    "expected message, reasoning, function_call, function_call_output or \
                     item_reference, found {other}"
                );
                return Err(fields.fault("type", &text));
            }
        }
        fields.finish(&[], &IGNORED)
    }

    fn message(&mut self, fields: &mut Fields) -> Result<(), ApiError> {
        let role = match required(fields, "role")?.as_str() {
            "developer" | "system" => "system",
            "user" => "user",
            "assistant" => "assistant",
            other => {
                let text = format!("expected system, developer, user or assistant, found {other}");
                return Err(fields.fault("role", &text));
            }
        };
        let content = content(fields, "content")?;
        if role == "assistant" {
            let message = self.answer();
            if let Some(Value::String(text)) = message.get_mut("content") {
                text.push_str(&content);
            }
            return Ok(());
        }
        self.push(json!({"role": role, "content": content}))
    }

    /// Reasoning: all of it, or its summary where there is nothing else.
    fn reasoning(&mut self, fields: &mut Fields) -> Result<(), ApiError> {
        self.no_thought()?;
        let mut texts = Vec::new();
        for (name, kind) in [("content", "reasoning_text"), ("summary", "summary_text")] {
            let mut all = String::new();
            for (i, part) in fields.list(name)?.unwrap_or_default().into_iter().enumerate() {
                let place = format!("{}[{i}]", fields.place(name));
                let mut part = Fields::at(part, &place)?;
                let found = required(&mut part, "type")?;
                if found != kind {
                    return Err(part.fault("type", &format!("expected {kind}, found {found}")));
                }
                all += &required(&mut part, "text")?;
                part.finish(&[], &[])?;
            }
            texts.push(all);
        }
        let sealed = fields.text("encrypted_content")?.is_some_and(|text| !text.is_empty());
        let thought = texts.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
        if sealed && thought.is_empty() {
            let text = "what another server encrypted cannot be read here: expected content";
            return Err(fields.fault("encrypted_content", text));
        }
        self.close();
        let place = fields.place("").trim_end_matches('.').to_owned();
        self.thought = Some((place, thought));
        Ok(())
    }

    fn call(&mut self, fields: &mut Fields) -> Result<(), ApiError> {
        let id = required(fields, "call_id")?;
        if self.answered.contains_key(&id) {
            let text = format!("expected an id that no other call has, found {id} again");
            return Err(fields.fault("call_id", &text));
        }
        let name = required(fields, "name")?;
        let arguments = required(fields, "arguments")?;
        if !serde_json::from_str::<Value>(&arguments).is_ok_and(|value| value.is_object()) {
            let text = "expected a JSON object in a string, found something else";
            return Err(fields.fault("arguments", text));
        }
        self.calls.push(id.clone());
        self.answered.insert(id.clone(), false);
        let call = json!({
            "id": id, "type": "function", "function": {"name": name, "arguments": arguments},
        });
        let calls = self.answer().entry("tool_calls").or_insert_with(|| json!([]));
        if let Some(calls) = calls.as_array_mut() {
            calls.push(call);
        }
        Ok(())
    }

    fn output(&mut self, fields: &mut Fields) -> Result<(), ApiError> {
        self.no_thought()?;
        let id = required(fields, "call_id")?;
        match self.answered.insert(id.clone(), true) {
            None => {
                let text = format!("expected the id of a call before it, found {id}");
                return Err(fields.fault("call_id", &text));
            }
            Some(true) => {
                let text = format!("expected one output for each call, found another for {id}");
                return Err(fields.fault("call_id", &text));
            }
            Some(false) => {}
        }
        let content = content(fields, "output")?;
        fields.ignore(&["name"]);
        self.push(json!({"role": "tool", "content": content, "tool_call_id": id}))
    }

    /// The answer to which an item belongs: the one before it, or a new one.
    fn answer(&mut self) -> &mut Map<String, Value> {
        let thought = self.thought.take().map(|(_, text)| text).filter(|text| !text.is_empty());
        self.answer.get_or_insert_with(|| {
            let mut message = Map::new();
            message.insert("role".to_owned(), "assistant".into());
            message.insert("content".to_owned(), "".into());
            if let Some(thought) = thought {
                message.insert("reasoning_content".to_owned(), thought.into());
            }
            message
        })
    }

    /// Ends an answer.
    fn close(&mut self) {
        self.messages.extend(self.answer.take().map(Value::Object));
    }

    /// Adds a message that is no answer.
    fn push(&mut self, message: Value) -> Result<(), ApiError> {
        self.no_thought()?;
        self.close();
        self.messages.push(message);
        Ok(())
    }

    /// Refuses an item after reasoning that is not part of its answer.
    fn no_thought(&self) -> Result<(), ApiError> {
        match &self.thought {
            None => Ok(()),
            Some((place, _)) => {
                let text = format!("{place}: reasoning stands alone: expected its answer after it");
                Err(ApiError::invalid(place, text))
            }
        }
    }
}

/// Takes a text that must be there.
fn required(fields: &mut Fields, name: &str) -> Result<String, ApiError> {
    match fields.text(name)? {
        Some(text) => Ok(text),
        None => Err(fields.fault(name, "expected a string, found none")),
    }
}

/// Takes a text, or parts whose texts are joined with nothing between them.
fn content(fields: &mut Fields, name: &str) -> Result<String, ApiError> {
    let parts = match fields.any(name) {
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) if !parts.is_empty() => parts,
        Some(Value::Array(_)) => {
            return Err(fields.fault(name, "expected at least one part, found none"));
        }
        Some(other) => return Err(wrong_type(&fields.place(name), "a text or parts", &other)),
        None => return Err(fields.fault(name, "expected a text or parts, found none")),
    };
    let mut all = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = Fields::at(part, &format!("{}[{i}]", fields.place(name)))?;
        match required(&mut part, "type")?.as_str() {
            "input_text" | "output_text" | "text" => all += &required(&mut part, "text")?,
            "refusal" => all += &required(&mut part, "refusal")?,
            other => {
                let text = format!(
                    "expected input_text or output_text, found {other}; this model reads text only"
                );
                return Err(part.fault("type", &text));
            }
        }
        part.finish(&[], &["annotations", "logprobs", "prompt_cache_breakpoint"])?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(input: Value) -> Result<Vec<Value>, ApiError> {
        let mut conversation = Conversation::after(Vec::new());
        conversation.add(Some(input), &Responses::default())?;
        Ok(conversation.messages)
    }

    #[test]
    fn reasoning_text_and_calls_of_an_answer_are_one_message() {
        let found = messages(json!([
            {"role": "developer", "content": "Be short."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "2+"},
                {"type": "input_text", "text": "2?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [],
                "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
                "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}]},
            {"type": "function_call", "call_id": "a", "name": "add", "arguments": "{\"x\": 2}"},
            {"type": "function_call", "call_id": "b", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "b", "output": "0"},
            {"type": "function_call_output", "call_id": "a",
                "output": [{"type": "input_text", "text": "4"}]},
        ]));
        let call = |id: &str, arguments: &str| {
            json!({"id": id, "type": "function",
                "function": {"name": "add", "arguments": arguments}})
        };
        let expected = json!([
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "Let me see.", "reasoning_content": "hm",
                "tool_calls": [call("a", "{\"x\": 2}"), call("b", "{}")]},
            {"role": "tool", "content": "0", "tool_call_id": "b"},
            {"role": "tool", "content": "4", "tool_call_id": "a"},
        ]);
        assert_eq!(json!(found.expect("messages")), expected);
    }

    #[test]
    fn items_that_do_not_fit_are_refused_by_their_place() {
        let user = json!({"role": "user", "content": "x"});
        let call = json!({"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"});
        let output = json!({"type": "function_call_output", "call_id": "a", "output": "1"});
        let thought = json!({"type": "reasoning", "summary": []});
        for (input, place) in [
            (json!([]), "input"),
            (json!(7), "input"),
            (json!(["x"]), "input[0]"),
            (json!([{"role": "critic", "content": "x"}]), "input[0].role"),
            (json!([user, {"role": "user"}]), "input[1].content"),
            (json!([{"type": "web_search_call", "id": "x"}]), "input[0].type"),
            (
                json!([{"role": "user", "content": [{"type": "input_image"}]}]),
                "input[0].content[0].type",
            ),
            (json!([{"role": "user", "content": "x", "nmae": "y"}]), "input[0].nmae"),
            (json!([user, output]), "input[1].call_id"),
            (json!([user, call, output, output]), "input[3].call_id"),
            (json!([user, call, call]), "input[2].call_id"),
            (json!([user, call]), "input"),
            (json!([thought]), "input[0]"),
            (json!([thought, user]), "input[0]"),
            (
                json!([user, {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"}]),
                "input[1].arguments",
            ),
            (
                json!([{"type": "reasoning", "summary": [], "encrypted_content": "x"}]),
                "input[0].encrypted_content",
            ),
            (json!([{"type": "item_reference", "id": "msg_9"}]), "input[0].id"),
        ] {
            let error = messages(input.clone()).expect_err(&input.to_string());
            assert_eq!(error.param.as_deref(), Some(place), "{input}: {}", error.message);
            assert!(error.message.starts_with(place), "{}", error.message);
        }
    }
}
