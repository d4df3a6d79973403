//! Messages in content blocks, brought into the form of chat templates.
//!
//! An answer's text, thoughts and calls are one message; a tool's result, which is a block of a
//! user's message here, is a message of its own.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, wrong_type};

/// Fields of a block that change nothing.
const IGNORED: [&str; 3] = ["cache_control", "citations", "caller"];

/// The text that comes before the result of a tool that failed: templates have no other place for
/// it.
const ERROR: &str = "Error: ";

/// Takes the field `system`: a text, or blocks of text, a line each.
///
/// # Errors
/// 400 with the place of what is no text.
pub(super) fn system(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let text = match fields.any("system") {
        None => return Ok(None),
        Some(value) => text(value, "system", "\n")?,
    };
    Ok((!text.is_empty()).then(|| json!({"role": "system", "content": text})))
}

/// Reads messages.
///
/// # Errors
/// 400 with the place of a block that is of no known type, lacks a field, or does not fit what came
/// before it.
pub(super) fn messages(found: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    let mut conversation = Conversation::default();
    let last = found.len().checked_sub(1).ok_or_else(|| {
        let text = "messages: expected at least one, found none";
        ApiError::invalid("messages", text)
    })?;
    for (index, message) in found.into_iter().enumerate() {
        let mut fields = Fields::at(message, &format!("messages[{index}]"))?;
        let role = required(&mut fields, "role")?;
        let place = fields.place("content");
        let Some(content) = fields.any("content") else {
            return Err(fields.fault("content", "expected a text or blocks, found none"));
        };
        match role.as_str() {
            "user" => conversation.user(content, &place)?,
            "assistant" if index < last => conversation.assistant(content, &place)?,
            "assistant" => {
                let text = "expected the last message from the user: an answer cannot be continued";
                return Err(fields.fault("role", text));
            }
            "system" => {
                conversation.expect_results(&place)?;
                let content = text(content, &place, "\n")?;
                conversation.messages.push(json!({"role": "system", "content": content}));
            }
            other => {
                let text = format!("expected user, assistant or system, found {other}");
                return Err(fields.fault("role", &text));
            }
        }
        fields.finish(&[], &[])?;
    }
    conversation.expect_results("messages")?;
    Ok(conversation.messages)
}

/// A conversation that grows message by message.
#[derive(Default)]
struct Conversation {
    messages: Vec<Value>,
    /// Ids of all calls.
    calls: HashSet<String>,
    /// Ids of the last answer's calls, in order.
    last: Vec<String>,
    /// Those of them that have no result yet.
    waiting: HashSet<String>,
}

impl Conversation {
    fn user(&mut self, content: Value, place: &str) -> Result<(), ApiError> {
        let mut said = Vec::new();
        for mut block in blocks(content, place)? {
            match required(&mut block, "type")?.as_str() {
                "text" => said.push(required(&mut block, "text")?),
                "tool_result" => {
                    self.say(&mut said);
                    self.result(&mut block)?;
                }
                other => return Err(unknown(&block, "text or tool_result", other)),
            }
            block.finish(&[], &IGNORED)?;
        }
        if !said.is_empty() {
            self.expect_results(place)?;
        }
        self.say(&mut said);
        Ok(())
    }

    /// Adds what the user said, a line for each block.
    fn say(&mut self, said: &mut Vec<String>) {
        if !said.is_empty() {
            self.messages.push(json!({"role": "user", "content": said.join("\n")}));
            said.clear();
        }
    }

    fn result(&mut self, block: &mut Fields) -> Result<(), ApiError> {
        let id = required(block, "tool_use_id")?;
        if !self.waiting.remove(&id) {
            let text = match self.calls.contains(&id) {
                true => {
                    format!("expected one result for each tool_use, right after it, found {id}")
                }
                false => format!("expected the id of a tool_use before it, found {id}"),
            };
            return Err(block.fault("tool_use_id", &text));
        }
        let mut content = match block.any("content") {
            None => String::new(),
            Some(value) => text(value, &block.place("content"), "\n")?,
        };
        if block.flag("is_error")? == Some(true) {
            content.insert_str(0, ERROR);
        }
        self.messages.push(json!({"role": "tool", "content": content, "tool_call_id": id}));
        Ok(())
    }

    fn assistant(&mut self, content: Value, place: &str) -> Result<(), ApiError> {
        self.expect_results(place)?;
        self.last.clear();
        let (mut said, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
        for mut block in blocks(content, place)? {
            match required(&mut block, "type")?.as_str() {
                "text" => said += &required(&mut block, "text")?,
                "thinking" => {
                    thought += &required(&mut block, "thinking")?;
                    block.text("signature")?; // nothing is signed here
                }
                "tool_use" => calls.push(self.call(&mut block)?),
                "redacted_thinking" => {
                    let text = "what another server encrypted cannot be read here: leave it out";
                    return Err(block.fault("data", text));
                }
                other => return Err(unknown(&block, "text, thinking or tool_use", other)),
            }
            block.finish(&[], &IGNORED)?;
        }
        let mut message = json!({"role": "assistant", "content": said});
        if !thought.is_empty() {
            message["reasoning_content"] = thought.into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        self.messages.push(message);
        Ok(())
    }

    fn call(&mut self, block: &mut Fields) -> Result<Value, ApiError> {
        let id = required(block, "id")?;
        if self.calls.contains(&id) {
            let text = format!("expected an id that no other tool_use has, found {id} again");
            return Err(block.fault("id", &text));
        }
        let name = required(block, "name")?;
        let Some(input) = block.object("input")? else {
            return Err(block.fault("input", "expected an object, found none"));
        };
        self.calls.insert(id.clone());
        self.waiting.insert(id.clone());
        self.last.push(id.clone());
        let arguments = Value::Object(input).to_string();
        Ok(
            json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}),
        )
    }

    /// Refuses to go on while calls have no result.
    fn expect_results(&self, place: &str) -> Result<(), ApiError> {
        match self.last.iter().find(|id| self.waiting.contains(*id)) {
            None => Ok(()),
            Some(id) => {
                let text = format!("{place}: expected a tool_result for {id} first, found none");
                Err(ApiError::invalid(place, text))
            }
        }
    }
}

/// The blocks of a content, which may be a text.
fn blocks(content: Value, place: &str) -> Result<Vec<Fields>, ApiError> {
    let blocks = match content {
        Value::String(text) => {
            let block = json!({"type": "text", "text": text});
            return Ok(vec![Fields::at(block, place)?]);
        }
        Value::Array(blocks) => blocks,
        other => return Err(wrong_type(place, "a text or blocks", &other)),
    };
    if blocks.is_empty() {
        let text = format!("{place}: expected at least one block, found none");
        return Err(ApiError::invalid(place, text));
    }
    blocks
        .into_iter()
        .enumerate()
        .map(|(i, block)| Fields::at(block, &format!("{place}[{i}]")))
        .collect()
}

/// Reads a text, or blocks of text.
fn text(value: Value, place: &str, between: &str) -> Result<String, ApiError> {
    let blocks = match value {
        Value::String(text) => return Ok(text),
        Value::Array(blocks) if blocks.is_empty() => return Ok(String::new()),
        other => blocks(other, place)?,
    };
    let mut all = Vec::new();
    for mut block in blocks {
        match required(&mut block, "type")?.as_str() {
            "text" => all.push(required(&mut block, "text")?),
            other => return Err(unknown(&block, "text", other)),
        }
        block.finish(&[], &IGNORED)?;
    }
    Ok(all.join(between))
}

/// The error for a block of another type.
fn unknown(block: &Fields, expected: &str, found: &str) -> ApiError {
    block.fault("type", &format!("expected {expected}, found {found}; this model reads text only"))
}

/// Takes a text that must be there.
pub(super) fn required(fields: &mut Fields, name: &str) -> Result<String, ApiError> {
    match fields.text(name)? {
        Some(text) => Ok(text),
        None => Err(fields.fault(name, "expected a string, found none")),
    }
}
