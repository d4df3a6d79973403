//! Fields that several of Ollama's addresses read.
//!
//! Ollama's own clients send every field they know, most of them empty: null, "" and [] mean "not
//! given" wherever Go's zero value does in Ollama.

use serde_json::Value;

use super::options::OBEYED;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::request::messages::name_of;

/// Takes the model's name: `model`, or `name` as older clients call it. Both may be given; Ollama's
/// `:latest` counts for nothing.
///
/// # Errors
/// 400: both are given, and differ.
pub(super) fn model(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let bare = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
    match (fields.filled("model")?, fields.filled("name")?) {
        (Some(model), Some(name)) if bare(&model) != bare(&name) => {
            let text = format!("model, name: expected the same, found {model} and {name}");
            Err(ApiError::invalid("model", text))
        }
        (model, name) => Ok(model.or(name)),
    }
}

/// True for a `keep_alive` of no time at all (`0`, `"0s"`), which asks to unload the model. Any
/// other time changes nothing: models stay loaded.
pub(super) fn is_zero(keep_alive: Option<Value>) -> Result<bool, ApiError> {
    match keep_alive {
        None => Ok(false),
        Some(Value::Number(number)) => Ok(number.as_f64() == Some(0.0)),
        Some(Value::String(text)) => {
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            Ok(!digits.is_empty() && digits.bytes().all(|b| b == b'0'))
        }
        Some(other) => {
            let text = format!("keep_alive: expected a time, found {}", name_of(&other));
            Err(ApiError::invalid("keep_alive", text))
        }
    }
}

/// Refuses the fields that nobody took, which could change the answer if they were understood.
///
/// # Errors
/// 400 for the first of them.
pub(super) fn end(fields: Fields) -> Result<(), ApiError> {
    let aside = OBEYED.into_iter().find(|name| fields.place(name) == *name && fields.has(name));
    match aside {
        Some(name) => Err(fields.fault(name, "expected within options, found beside it")),
        None => fields.finish(&[], &[]),
    }
}
