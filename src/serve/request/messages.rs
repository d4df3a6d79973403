//! Messages of a request, checked and brought into the form that chat templates want.
//!
//! In: OpenAI's or Ollama's messages. Out: objects with `role`, `content` (a string) and what else
//! the template may look at. A fault names the message and the field.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// Roles that a message may have; `developer` is OpenAI's newer word for `system`.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Fields of a message that other servers obey and this one cannot: the name, the value that
/// changes nothing, and the reason for a refusal.
const REFUSED: [(&str, Value, &str); 5] = [
    ("audio", Value::Null, "this model reads text only"),
    ("function_call", Value::Null, "expected tool_calls, its newer form"),
    ("images", Value::Array(Vec::new()), "this model reads text only"),
    ("videos", Value::Array(Vec::new()), "this model reads text only"),
    ("prefix", Value::Bool(false), "an answer cannot be continued"),
];

/// Checks messages.
///
/// # Errors
/// 400: no messages, an unknown role, content that is no text.
pub(crate) fn check(messages: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages: expected at least one, found none"));
    }
    messages.into_iter().enumerate().map(|(i, message)| check_one(i, message)).collect()
}

fn check_one(index: usize, message: Value) -> Result<Value, ApiError> {
    let at = |field: &str| format!("messages[{index}]{field}");
    let fault = |field: &str, text: String| {
        let place = at(field);
        ApiError::invalid(&place, format!("{place}: {text}"))
    };
    let Value::Object(mut message) = message else {
        return Err(fault("", format!("expected an object, found {}", name_of(&message))));
    };
    let role = match message.get("role").and_then(Value::as_str) {
        Some("developer") => "system".to_owned(),
        Some(role) if ROLES.contains(&role) => role.to_owned(),
        Some(role) => {
            return Err(fault(
                ".role",
                format!("expected one of {}, found {role}", ROLES.join(", ")),
            ));
        }
        None => return Err(fault(".role", "expected a role, found none".to_owned())),
    };
    for (name, neutral, why) in &REFUSED {
        if message.get(*name).is_some_and(|value| !value.is_null() && value != neutral) {
            return Err(fault(&format!(".{name}"), (*why).to_owned()));
        }
    }
    let calls =
        message.get("tool_calls").is_some_and(|c| c.as_array().is_some_and(|c| !c.is_empty()));
    let content = match message.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => join(index, parts)?,
        None | Some(Value::Null) if role == "assistant" && calls => String::new(),
        None | Some(Value::Null) => {
            return Err(fault(".content", "expected text, found null".to_owned()));
        }
        Some(other) => {
            return Err(fault(".content", format!("expected text, found {}", name_of(&other))));
        }
    };
    let mut out = Map::new();
    out.insert("role".into(), role.into());
    out.insert("content".into(), content.into());
    // Ollama's word for the thought is `thinking`
    let texts = ["reasoning_content", "thinking"].map(|name| message.remove(name));
    let mut thoughts = texts.into_iter().flatten().filter(Value::is_string);
    if let Some(thought) = thoughts.next() {
        if thoughts.next().is_some_and(|other| other != thought) {
            let text = "this field and thinking are one: expected one value, found two";
            return Err(fault(".reasoning_content", text.to_owned()));
        }
        out.insert("reasoning_content".into(), thought);
    }
    if calls && let Some(calls) = message.remove("tool_calls") {
        out.insert("tool_calls".into(), calls);
    }
    for key in ["name", "tool_call_id"] {
        if let Some(value @ Value::String(_)) = message.remove(key) {
            out.insert(key.into(), value);
        }
    }
    Ok(Value::Object(out))
}

/// Joins text parts, one after the other with nothing between.
fn join(index: usize, parts: Vec<Value>) -> Result<String, ApiError> {
    let fault = |place: String, text: String| ApiError::invalid(&place, format!("{place}: {text}"));
    if parts.is_empty() {
        let place = format!("messages[{index}].content");
        return Err(fault(place, "expected at least one part, found none".to_owned()));
    }
    let mut all = String::new();
    for (i, part) in parts.iter().enumerate() {
        let place = || format!("messages[{index}].content[{i}]");
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => all.push_str(text),
            (Some("text"), None) => {
                return Err(fault(place() + ".text", "expected text, found none".to_owned()));
            }
            (Some(other), _) => {
                let text = format!(
                    "expected a part of type text, found {other}; this model reads text only"
                );
                return Err(fault(place() + ".type", text));
            }
            (None, _) => {
                return Err(fault(
                    place(),
                    format!("expected a part with a type, found {}", name_of(part)),
                ));
            }
        }
    }
    Ok(all)
}

/// A JSON value's kind, for messages.
pub(crate) fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmx_converters::chat::Options;
    use mmx_converters::tokenizer::Tokenizer;
    use serde_json::json;

    /// Each case says the prompt that its messages become, or what the refusal names.
    #[test]
    fn api_content_parts() {
        let shared = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
        let path = format!("{shared}/cases/files/api-content-parts/requests.json");
        let cases: Value = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
        let tokenizer = Tokenizer::open(format!("{shared}/golden")).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 5);
        for case in cases {
            let found = check(case["messages"].as_array().unwrap().clone());
            if case["status"] == 200 {
                let text = tokenizer.render_chat(&found.unwrap(), &Options::generation()).unwrap();
                assert_eq!(text, case["prompt"].as_str().unwrap());
            } else {
                let error = found.unwrap_err();
                assert_eq!(error.status, 400, "{case}");
                assert!(
                    error.message.contains(case["message_names"].as_str().unwrap()),
                    "{error:?}"
                );
                assert!(error.param.is_some());
            }
        }
    }

    #[test]
    fn null_is_empty_text_beside_tool_calls_only() {
        let call = json!([{"function": {"name": "f", "arguments": "{}"}}]);
        let with = json!({"role": "assistant", "content": null, "tool_calls": call});
        assert_eq!(check(vec![with]).unwrap()[0]["content"], "");
        for calls in [json!(null), json!([])] {
            let without = json!({"role": "assistant", "content": null, "tool_calls": calls});
            assert!(check(vec![without]).is_err());
        }
    }

    #[test]
    fn refuses_unknown_roles_and_other_things_than_objects() {
        let message = |value| check(vec![value]).unwrap_err().message;
        assert!(message(json!({"role": "critic", "content": "x"})).contains("found critic"));
        assert!(message(json!({"content": "x"})).contains("messages[0].role"));
        assert!(message(json!("hi")).contains("found a string"));
        assert!(check(Vec::new()).is_err());
    }

    #[test]
    fn what_only_other_models_read_is_refused_by_name() {
        for (name, value) in [("images", json!(["aGk="])), ("prefix", json!(true))] {
            let with =
                |value: &Value| check(vec![json!({"role": "user", "content": "x", name: value})]);
            let error = with(&value).unwrap_err();
            assert_eq!(error.param, Some(format!("messages[0].{name}")));
            assert!(error.message.starts_with(&format!("messages[0].{name}: ")), "{error:?}");
            assert!(with(&Value::Null).is_ok());
        }
        assert!(check(vec![json!({"role": "user", "content": "x", "images": []})]).is_ok());
    }
}
