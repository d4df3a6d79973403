//! Turns of chats to messages: roles and contents in one spelling, in an order that a chat template
//! renders.
//!
//! In: a value of a record, as any of the known forms spells it. Out: JSON objects with `role` and
//! `content`; or a sentence that says which turn is wrong.

use serde_json::{Map, Value, json};

use super::jsonl::describe;

/// A turn of a role.
pub(super) fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// The list of turns in a value: a list of objects, the text of such a list (as tables keep it that
/// have no lists), or an object of lists of the same length (a list of objects as Arrow's
/// `Sequence` of a `dict` lies in a column). Nothing where it is none of these.
pub(super) fn list(value: &Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(turns) => Some(turns.clone()),
        Value::String(text) => {
            let turns = text.trim_start().starts_with('[').then(|| serde_json::from_str(text));
            match turns?.ok()? {
                Value::Array(turns) if turns.iter().all(Value::is_object) => Some(turns),
                _ => None,
            }
        }
        Value::Object(columns) => {
            let length = columns.values().next()?.as_array()?.len();
            let lists: Vec<(&String, &Vec<Value>)> = columns
                .iter()
                .map(|(key, list)| Some((key, list.as_array()?)))
                .collect::<Option<_>>()?;
            lists.iter().all(|(_, list)| list.len() == length).then(|| {
                let object = |index: usize| {
                    let pairs =
                        lists.iter().map(|(key, list)| ((*key).clone(), list[index].clone()));
                    Value::Object(pairs.collect())
                };
                (0..length).map(object).collect()
            })
        }
        _ => None,
    }
}

/// The messages under a key, with roles and contents in the usual spelling; their order is checked
/// by [`check_order`].
pub(super) fn of_key(object: &Map<String, Value>, key: &str) -> Result<Vec<Value>, String> {
    match object.get(key) {
        Some(value) => match list(value) {
            Some(turns) => messages(&turns, key),
            None => Err(format!("key {key}: expected a list, found {}", describe(value))),
        },
        None => Err(format!("expected key {key}, found none")),
    }
}

/// The messages under a key that may also hold one turn, or the text of one of role `role`.
pub(super) fn or_text(
    object: &Map<String, Value>,
    key: &str,
    role: &str,
) -> Result<Vec<Value>, String> {
    match object.get(key) {
        Some(value @ Value::String(text)) => match list(value) {
            Some(turns) => messages(&turns, key),
            None => Ok(vec![turn(role, text)]),
        },
        Some(value @ Value::Object(one))
            if one.contains_key("role") || one.contains_key("from") =>
        {
            match list(value) {
                Some(turns) => messages(&turns, key),
                None => messages(std::slice::from_ref(value), key),
            }
        }
        Some(value) if list(value).is_none() => {
            Err(format!("key {key}: expected a string or a list, found {}", describe(value)))
        }
        _ => of_key(object, key),
    }
}

fn messages(turns: &[Value], key: &str) -> Result<Vec<Value>, String> {
    let has_role = |turn: &Value| present(turn, "role").or(present(turn, "from")).is_some();
    let bare = !turns.iter().any(has_role);
    let mut messages = Vec::with_capacity(turns.len());
    for (index, turn) in turns.iter().enumerate() {
        let message = message(turn, bare.then_some(index));
        messages.push(message.map_err(|why| format!("{key}: turn {}: {why}", index + 1))?);
    }
    Ok(messages)
}

/// The value of a key that is there and not null: a column holds null where a turn lacks the key.
fn present<'a>(turn: &'a Value, key: &str) -> Option<&'a Value> {
    turn.get(key).filter(|value| !value.is_null())
}

/// One message; `bare` is its index in a chat without roles (2025: user first, then in turns).
fn message(turn: &Value, bare: Option<usize>) -> Result<Value, String> {
    let Value::Object(object) = turn else {
        return Err(format!("expected an object, found {}", describe(turn)));
    };
    let role = match (present(turn, "role").or(present(turn, "from")), bare) {
        (_, Some(index)) => if index % 2 == 0 { "user" } else { "assistant" }.to_owned(),
        (Some(Value::String(role)), None) => match role.as_str() {
            "human" => "user".to_owned(),
            "gpt" => "assistant".to_owned(),
            other => other.to_owned(),
        },
        (Some(other), None) => {
            return Err(format!("role: expected a string, found {}", describe(other)));
        }
        (None, None) => return Err("expected a role, found none (other turns have one)".into()),
    };
    let calls = present(turn, "tool_calls").is_some();
    let content = present(turn, "content").or(present(turn, "value"));
    let content = match content.or(turn.get("content")).or(turn.get("value")) {
        Some(Value::String(content)) => content.clone(),
        // a call alone may come without words
        Some(Value::Null) | None if calls => String::new(),
        Some(other) => {
            return Err(format!(
                "role {role}: content: expected a string, found {}",
                describe(other)
            ));
        }
        None => return Err(format!("role {role}: expected key content, found none")),
    };
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), content.into());
    for (key, value) in object {
        if matches!(key.as_str(), "role" | "from" | "content" | "value") || value.is_null() {
            continue;
        }
        message.insert(key.clone(), value.clone());
    }
    Ok(Value::Object(message))
}

/// System only first; user and assistant in turns; tool results after an assistant's turn; an
/// assistant's turn last. With other orders the template's text and the loss mask go apart.
pub(super) fn check_order(messages: &[Value]) -> Result<(), String> {
    let mut before = "nothing";
    for (index, message) in messages.iter().enumerate() {
        let turn = index + 1;
        let role = message["role"].as_str().unwrap_or_default();
        let expected = match (before, role) {
            (_, "system") if index == 0 => "",
            ("nothing", _) => "system or user first",
            ("system" | "assistant", "user") => "",
            ("user" | "tool", "assistant") | ("assistant" | "tool", "tool") => "",
            ("system", _) => "user after system",
            ("user", _) => "assistant after user",
            ("assistant", _) => "user or tool after assistant",
            _ => "assistant or tool after tool",
        };
        let expected = if index == 0 && role == "user" { "" } else { expected };
        if !expected.is_empty() {
            return Err(format!("turn {turn}: expected role {expected}, found {role}"));
        }
        before = role;
    }
    match before {
        "assistant" => Ok(()),
        "nothing" => Err("expected at least one turn, found none".into()),
        last => Err(format!(
            "turn {}: expected an assistant's turn at the end, found role {last}",
            messages.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_found_in_texts_and_in_columns() {
        let turns = json!([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]);
        let text = Value::String(turns.to_string());
        let columns = json!({"from": ["human", "gpt"], "value": ["a", "b"]});
        for value in [&turns, &text, &columns] {
            assert_eq!(list(value).as_deref(), turns.as_array().map(Vec::as_slice), "{value}");
        }
        for other in [
            json!("text"),
            json!("[1]"),
            json!("[a"),
            json!(3),
            json!({"from": "gpt"}),
            json!({}),
            json!({"from": ["a"], "value": ["a", "b"]}),
        ] {
            assert_eq!(list(&other), None, "{other}");
        }
    }

    #[test]
    fn a_null_is_a_key_that_is_not_there() {
        let turns = [
            json!({"role": null, "content": null, "from": "gpt", "value": "b", "tool_calls": null}),
        ];
        assert_eq!(messages(&turns, "x").unwrap(), [turn("assistant", "b")]);
        let fault = messages(&[json!({"role": "user", "content": null})], "x").unwrap_err();
        assert_eq!(fault, "x: turn 1: role user: content: expected a string, found null");
    }
}
