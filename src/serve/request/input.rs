//! Raw texts of a request, as text or as ids.

use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{integer, wrong_type};
use crate::served_model::ServedModel;

/// Most texts that one request may have.
const PROMPTS: usize = 64;

/// The texts of a request: a text or ids, or a list of either.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    ManyIds(Vec<Vec<u32>>),
}

impl Input {
    /// Reads the value of a request's field.
    ///
    /// # Errors
    /// 400, with the field and the place in it.
    pub(crate) fn of(value: Option<Value>, field: &str) -> Result<Self, ApiError> {
        const EXPECTED: &str = "a text, ids, or a list of one of them";
        let id = |place: String, value: &Value| {
            let id = value.as_number().and_then(integer).and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| wrong_type(&place, "an id", value))
        };
        let ids = |place: String, values: &[Value]| -> Result<Vec<u32>, ApiError> {
            values.iter().enumerate().map(|(i, v)| id(format!("{place}[{i}]"), v)).collect()
        };
        let values = match value {
            Some(Value::String(text)) => return Ok(Self::Text(text)),
            Some(Value::Array(values)) => values,
            other => return Err(wrong_type(field, EXPECTED, &other.unwrap_or_default())),
        };
        let each = || values.iter().enumerate().map(|(i, value)| (format!("{field}[{i}]"), value));
        match values.first() {
            Some(Value::Number(_)) => ids(field.to_owned(), &values).map(Self::Ids),
            Some(Value::Array(_)) => each()
                .map(|(place, value)| match value.as_array() {
                    Some(values) => ids(place, values),
                    None => Err(wrong_type(&place, "a list of ids", value)),
                })
                .collect::<Result<_, _>>()
                .map(Self::ManyIds),
            _ => each()
                .map(|(place, value)| match value.as_str() {
                    Some(text) => Ok(text.to_owned()),
                    None => Err(wrong_type(&place, "a text", value)),
                })
                .collect::<Result<_, _>>()
                .map(Self::Texts),
        }
    }

    /// Ids of each text. Control tokens in a text become control tokens: the client has applied its
    /// own template.
    pub(crate) fn ids(self, served: &ServedModel, field: &str) -> Result<Vec<Vec<u32>>, ApiError> {
        let tokenizer = served.tokenizer()?;
        let all = match self {
            Self::Text(text) => vec![tokenizer.encode_text(&text)?],
            Self::Texts(texts) => {
                texts.iter().map(|t| tokenizer.encode_text(t)).collect::<Result<_, _>>()?
            }
            Self::Ids(ids) => vec![ids],
            Self::ManyIds(ids) => ids,
        };
        let fault = |text: String| Err(ApiError::invalid(field, format!("{field}: {text}")));
        if all.is_empty() || all.len() > PROMPTS {
            return fault(format!("expected 1 to {PROMPTS} texts, found {}", all.len()));
        }
        if let Some(at) = all.iter().position(Vec::is_empty) {
            let field = if all.len() > 1 { format!("{field}[{at}]") } else { field.to_owned() };
            let text = format!("{field}: expected text, found an empty one");
            return Err(ApiError::invalid(&field, text));
        }
        let vocab = served.model.config().vocab_size;
        match all.iter().flatten().find(|&&id| id as usize >= vocab) {
            Some(id) => fault(format!("expected ids below {vocab}, found {id}")),
            None => Ok(all),
        }
    }
}
