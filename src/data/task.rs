//! Tasks: prompts that a policy answers and is rewarded for.
//!
//! In: a record of any chat's form, or one with a prompt alone. Out: a [`Task`]: the turns up to
//! the answer, the tools that are offered, and everything else that the record holds, for rewards to
//! look at.

use mmx_converters::Error;
use serde_json::{Map, Value};

use super::fields::Fields;
use super::forms;
use super::jsonl::{self, Fault, Line};
use super::record::{Kind, Record};
use super::sample::messages_and_tools;
use super::turns;

/// A prompt and what its record says of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    /// The turns that an answer follows.
    pub messages: Vec<Value>,
    /// The tools that are offered, a list in OpenAI's form; nothing where there are none.
    pub tools: Option<Value>,
    /// The record's own answer: the text of the assistant's turn at its end, which the policy does
    /// not see. Nothing where there is none or an empty one.
    pub answer: Option<String>,
    /// The whole record.
    pub record: Map<String, Value>,
}

impl Task {
    /// Reads a record: a chat, whose last turn is dropped where it is the assistant's, whatever it
    /// holds; or a prompt, a text or turns.
    ///
    /// # Errors
    /// A record that is no chat, turns out of order, tools that are no JSON.
    pub fn parse(line: &Line<'_>, fields: &Fields) -> Result<Self, Fault> {
        let mut record = jsonl::object(line)?;
        fields.apply(&mut record);
        let chat = answered(record.clone());
        let (found, _) = forms::of_object(&chat, Kind::Chat, fields)
            .map_err(|(message, hint)| line.fault(message, hint))?;
        let Record::Chat(mut turns) = found else {
            return Err(line.fault("expected a chat, found none".to_owned(), None));
        };
        let last = turns.pop();
        let answer = last.and_then(|turn| turn["content"].as_str().map(str::to_owned));
        let asks = |turn: &Value| {
            turn["role"] != "user" || turn["content"].as_str().is_some_and(|t| !t.trim().is_empty())
        };
        if !turns.last().is_some_and(asks) {
            return Err(line.fault("expected a text to be answered, found none".into(), None));
        }
        let (messages, tools) =
            messages_and_tools(&turns).map_err(|message| line.fault(message, None))?;
        let tools = match tools {
            Some(Value::Array(list)) if list.is_empty() => None,
            Some(tools @ Value::Array(_)) => Some(tools),
            None => None,
            Some(other) => {
                let found = jsonl::describe(&other);
                return Err(line.fault(format!("key tools: expected a list, found {found}"), None));
            }
        };
        Ok(Self { messages, tools, answer: answer.filter(|text| !text.is_empty()), record })
    }
}

/// A record with an empty answer at its end where it has none: the forms of chats then fit it.
fn answered(mut record: Map<String, Value>) -> Map<String, Value> {
    let has = |record: &Map<String, Value>, key: &str| {
        record.get(key).is_some_and(|value| !value.is_null())
    };
    for key in ["conversations", "messages"] {
        let Some(mut list) = record.get(key).and_then(turns::list) else { continue };
        let role = |turn: &Value| {
            let role = turn.get("role").filter(|r| !r.is_null()).or_else(|| turn.get("from"));
            role.and_then(Value::as_str).map(str::to_owned)
        };
        let open = |role: &str| !matches!(role, "assistant" | "gpt");
        if list.last().and_then(role).is_some_and(|role| open(&role)) {
            list.push(turns::turn("assistant", ""));
            record.insert(key.to_owned(), list.into());
        }
        return record;
    }
    for (asks, answers) in [("prompt", "completion"), ("instruction", "output")] {
        if has(&record, asks) && !has(&record, answers) {
            record.insert(answers.to_owned(), "".into());
            return record;
        }
    }
    record
}

/// A fault of a record as an error that names the file.
#[must_use]
pub fn fault_of(path: &std::path::Path, fault: Fault) -> Error {
    let place = if fault.line == 0 { fault.place() } else { fault.line.to_string() };
    let message = format!("{}:{place}: {}", path.display(), fault.message);
    match fault.hint {
        Some(hint) => Error::failed_with_hint(message, hint),
        None => Error::failed(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Task, String> {
        let text = value.to_string();
        let line =
            Line { number: 3, record: None, offset: 0, bytes: text.as_bytes(), damage: None };
        Task::parse(&line, &Fields::default()).map_err(|fault| fault.message)
    }

    #[test]
    fn every_form_gives_the_turns_before_the_answer() {
        let user = json!({"role": "user", "content": "1+1=?"});
        for (record, answer) in [
            (json!({"conversations": [user, {"role": "assistant", "content": "2"}]}), Some("2")),
            (json!({"conversations": [user, {"role": "assistant", "content": ""}]}), None),
            (json!({"conversations": [{"from": "human", "value": "1+1=?"}]}), None),
            (json!({"messages": [user]}), None),
            (json!({"prompt": "1+1=?", "answer": "2"}), None),
            (json!({"prompt": [user]}), None),
            (json!({"prompt": "1+1=?", "completion": "2"}), Some("2")),
            (json!({"instruction": "1+1=?"}), None),
        ] {
            let task = read(record.clone()).unwrap();
            assert_eq!(task.messages, [user.clone()], "{record}");
            assert_eq!(task.answer.as_deref(), answer, "{record}");
            assert_eq!(Value::Object(task.record), record);
        }
    }

    #[test]
    fn tools_stand_beside_the_turns_or_as_text_in_the_system_turn() {
        let tool = json!({"type": "function", "function": {"name": "f"}});
        let user = json!({"role": "user", "content": "go"});
        let system = json!({"role": "system", "content": "", "tools": json!([tool]).to_string()});
        let task = read(json!({"conversations": [system, user]})).unwrap();
        assert_eq!(task.tools, Some(json!([tool])));
        assert_eq!(task.messages[0], json!({"role": "system", "content": ""}));
        let task = read(json!({"prompt": "go", "tools": [tool]})).unwrap();
        assert_eq!(task.tools, Some(json!([tool])));
        assert_eq!(read(json!({"prompt": "go", "tools": []})).unwrap().tools, None);
    }

    #[test]
    fn rejects_what_asks_nothing() {
        for (record, words) in [
            (json!({"text": "a"}), "looks like pretraining data"),
            (json!({"messages": [{"role": "assistant", "content": "a"}]}), "system or user first"),
            (json!({"prompt": 3}), "key prompt"),
            (json!({"prompt": " "}), "expected a text to be answered"),
            (json!({"prompt": "a", "tools": "[1"}), "expected JSON in a string"),
            (json!({"prompt": "a", "tools": {"a": 1}}), "expected a list"),
        ] {
            let found = read(record.clone()).unwrap_err();
            assert!(found.contains(words), "{record}: {found}");
        }
    }
}
