//! Records to the turns that are asked, with their tools.

use serde_json::{Map, Value, json};

/// What is asked: turns up to a user's, and tools.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Messages with OpenAI's keys; a user's is the last but for tools' results.
    pub turns: Vec<Value>,
    /// The tools that may be called, a JSON list.
    pub tools: Option<Value>,
}

/// The prompt of a record: `prompt` (text or turns), `instruction` with `input`, or a chat without
/// the answers at its end.
///
/// # Errors
/// A record without a question, in a sentence.
pub fn prompt_of(object: &Map<String, Value>) -> Result<Prompt, String> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let list = |key: &str| match object.get(key) {
        Some(Value::Array(list)) => Some(list.clone()),
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        _ => None,
    };
    let mut turns: Vec<Value> = match (list("prompt"), text("prompt"), text("instruction")) {
        (Some(turns), ..) => turns.iter().map(turn).collect::<Result<_, _>>()?,
        (None, Some(prompt), _) => vec![user(prompt)],
        (None, None, Some(instruction)) => match text("input") {
            Some(input) => vec![user(&format!("{instruction}\n{input}"))],
            None => vec![user(instruction)],
        },
        _ => match list("conversations").or_else(|| list("messages")) {
            Some(turns) => turns.iter().map(turn).collect::<Result<_, _>>()?,
            None => {
                let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                return Err(format!(
                    "expected key prompt, instruction, conversations or messages, found {}",
                    keys.join(", ")
                ));
            }
        },
    };
    while turns.last().is_some_and(|turn| turn["role"] == "assistant") {
        turns.pop();
    }
    if turns.is_empty() || turns.iter().all(|turn| turn["role"] == "system") {
        return Err("expected a question, found none".to_owned());
    }
    let mut tools = object.get("tools").cloned();
    for turn in &mut turns {
        if let Some(own) = turn.as_object_mut().and_then(|turn| turn.shift_remove("tools")) {
            tools = tools.or(Some(own));
        }
    }
    let tools =
        tools.and_then(parsed).filter(|tools| tools.as_array().is_some_and(|t| !t.is_empty()));
    if let Some(system) = text("system").filter(|_| turns[0]["role"] != "system") {
        turns.insert(0, json!({ "role": "system", "content": system }));
    }
    Ok(Prompt { turns, tools })
}

/// A list that may lie there as its text.
fn parsed(value: Value) -> Option<Value> {
    match value {
        Value::String(text) => serde_json::from_str(&text).ok(),
        Value::Null => None,
        value => Some(value),
    }
}

/// A user's message.
#[must_use]
pub fn user(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

/// A turn with OpenAI's keys.
fn turn(turn: &Value) -> Result<Value, String> {
    let Some(object) = turn.as_object() else {
        return Err("expected turns that are objects".into());
    };
    let mut object = object.clone();
    for (own, known) in [("from", "role"), ("value", "content")] {
        if let Some(value) = object.shift_remove(own) {
            object.entry(known).or_insert(value);
        }
    }
    let role = match object.get("role").and_then(Value::as_str) {
        Some("human" | "user") => "user",
        Some("gpt" | "assistant") => "assistant",
        Some("system") => "system",
        Some("tool" | "observation") => "tool",
        other => return Err(format!("expected a role, found {}", other.unwrap_or("none"))),
    };
    object.insert("role".into(), role.into());
    if let Some(calls) = object.shift_remove("tool_calls").and_then(parsed) {
        object.insert("tool_calls".into(), calls);
    }
    Ok(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(record: Value) -> Result<Prompt, String> {
        let Value::Object(object) = record else { panic!("a record") };
        prompt_of(&object)
    }

    #[test]
    fn every_form_of_a_question_is_asked_the_same() {
        let expected = Prompt { turns: vec![user("a")], tools: None };
        for record in [
            json!({"prompt": "a"}),
            json!({"prompt": [{"role": "user", "content": "a"}]}),
            json!({"instruction": "a", "input": "", "output": "old"}),
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
            json!({"messages": "[{\"role\": \"user\", \"content\": \"a\"}]"}),
        ] {
            assert_eq!(prompt(record), Ok(expected.clone()));
        }
        let tools = json!([{"type": "function"}]);
        let with = json!({"conversations": [{"role": "system", "content": "s", "tools": tools.to_string()},
            {"role": "user", "content": "a"}]});
        let with = prompt(with).unwrap();
        assert_eq!((with.tools, with.turns.len()), (Some(tools), 2));
        assert!(with.turns[0].get("tools").is_none());
        assert!(prompt(json!({"text": "a"})).unwrap_err().contains("found text"));
        assert!(prompt(json!({"messages": []})).is_err());
    }
}
