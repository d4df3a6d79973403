//! Records of each form to [`Record`]s: what the table of [`super::forms`] names.
//!
//! In: a JSON object that has the form's keys. Out: a record, or a sentence that says what is wrong
//! with it.

use serde_json::{Map, Value};

use super::jsonl::describe;
use super::record::Record;
use super::turns::{check_order, of_key, or_text, turn};

type Object = Map<String, Value>;

/// Pretraining's.
pub(super) fn text(object: &Object) -> Result<Record, String> {
    match &object["text"] {
        Value::String(text) => Ok(Record::Text(text.clone())),
        other => Err(format!("key text: expected a string, found {}", describe(other))),
    }
}

pub(super) fn conversations(object: &Object) -> Result<Record, String> {
    chat(object, "conversations")
}

pub(super) fn messages(object: &Object) -> Result<Record, String> {
    chat(object, "messages")
}

fn chat(object: &Object, key: &str) -> Result<Record, String> {
    let turns = of_key(object, key)?;
    check_order(&turns).map_err(|why| format!("{key}: {why}"))?;
    Ok(Record::Chat(with_system_and_tools(object, turns)))
}

/// TRL's prompt and completion: texts of the user and the assistant, or lists of turns.
pub(super) fn prompt_completion(object: &Object) -> Result<Record, String> {
    let mut turns = or_text(object, "prompt", "user")?;
    turns.extend(or_text(object, "completion", "assistant")?);
    check_order(&turns).map_err(|why| format!("prompt and completion: {why}"))?;
    Ok(Record::Chat(with_system_and_tools(object, turns)))
}

/// Two answers under `keys` to the turns before them. An answer is a text, a turn, the turns that
/// follow, or the whole chat again.
pub(super) fn pair(object: &Object, before: Vec<Value>, keys: [&str; 2]) -> Result<Record, String> {
    let whole = |key: &str| {
        let answer = match before.is_empty() {
            true => of_key(object, key)?,
            false => or_text(object, key, "assistant")?,
        };
        let begins = answer.first().is_some_and(|t| t["role"] == "user" || t["role"] == "system");
        let turns = if begins { answer } else { before.iter().cloned().chain(answer).collect() };
        check_order(&turns).map_err(|why| format!("{key}: {why}"))?;
        Ok::<_, String>(with_system_and_tools(object, turns))
    };
    Ok(Record::Preference { chosen: whole(keys[0])?, rejected: whole(keys[1])? })
}

/// A record of Alpaca's form as a chat: instruction and input, a line each, are the user's turn,
/// the output is the answer; perhaps a system turn and turns before. Source: LLaMA-Factory's
/// data/README.md.
pub(super) fn alpaca(object: &Object) -> Result<Vec<Value>, String> {
    let mut turns = asked(object)?;
    match &object["output"] {
        Value::String(output) => turns.push(turn("assistant", output)),
        other => {
            return Err(format!("key output: expected a string, found {}", describe(other)));
        }
    }
    Ok(with_system_and_tools(object, turns))
}

/// The turns of Alpaca's form up to the last question.
pub(super) fn asked(object: &Object) -> Result<Vec<Value>, String> {
    let text = |key: &str| match object.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(format!("key {key}: expected a string, found {}", describe(other))),
    };
    let mut turns = Vec::new();
    let history = match object.get("history") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(history)) => history.clone(),
        // a table without lists keeps the list's text
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(Value::String(text)) => serde_json::from_str(text)
            .map_err(|_| "key history: expected a list, found a string".to_owned())?,
        Some(other) => {
            return Err(format!("key history: expected a list, found {}", describe(other)));
        }
    };
    for (index, pair) in history.iter().enumerate() {
        let texts = pair.as_array().map(Vec::as_slice).unwrap_or_default();
        let [Value::String(asked), Value::String(answered)] = texts else {
            return Err(format!(
                "key history: pair {}: expected a list of two strings, what was asked and answered",
                index + 1
            ));
        };
        turns.push(turn("user", asked));
        turns.push(turn("assistant", answered));
    }
    let asked = [text("instruction")?, text("input")?];
    let asked: Vec<&str> = asked.into_iter().filter(|part| !part.is_empty()).collect();
    if asked.is_empty() {
        return Err("expected a text in key instruction or input, found none".into());
    }
    turns.push(turn("user", &asked.join("\n")));
    text("system")?;
    Ok(turns)
}

/// The turns with what a record has beside them: the text of key system before them, where they
/// begin with no system turn, and the list of key tools in the first of them, where it has none of
/// its own. Source: OpenAI's fine-tuning format, LLaMA-Factory's data/README.md.
fn with_system_and_tools(object: &Object, mut turns: Vec<Value>) -> Vec<Value> {
    let system = object.get("system").and_then(Value::as_str).unwrap_or_default();
    if !system.is_empty() && turns.first().is_some_and(|first| first["role"] != "system") {
        turns.insert(0, turn("system", system));
    }
    let given = |tools: &&Value| !tools.is_null() && tools.as_str() != Some("");
    if let Some(tools) = object.get("tools").filter(given)
        && let Some(Value::Object(first)) = turns.first_mut()
    {
        first.entry("tools").or_insert_with(|| tools.clone());
    }
    turns
}
