//! Fields of a request to Ollama's API: each is taken by its name, and what nobody took is refused.
//!
//! Ollama's own clients send every field they know, most of them empty: null, "" and 0 mean "not
//! given" wherever Go's zero value does in Ollama.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::request::messages::name_of;
use crate::request::sampling::parse;

/// Options that are obeyed.
pub(super) const OBEYED: [&str; 11] = [
    "num_predict",
    "num_ctx",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
];

/// The fields of an object that were not taken yet.
pub(super) struct Fields {
    map: Map<String, Value>,
    /// The prefix of a field's name in messages: nothing, or `options.`.
    prefix: &'static str,
}

impl Fields {
    /// The fields of a request's body.
    ///
    /// # Errors
    /// 400: no JSON, or no object.
    pub(super) fn of(body: &[u8]) -> Result<Self, ApiError> {
        Ok(Self { map: parse(body)?, prefix: "" })
    }

    /// Takes the fields of the object `options`; none where it is not given.
    ///
    /// # Errors
    /// 400: it is something else.
    pub(super) fn options(&mut self) -> Result<Self, ApiError> {
        let map = match self.take("options") {
            None => Map::new(),
            Some(Value::Object(map)) => map,
            Some(other) => return Err(self.expected("options", "an object", &other)),
        };
        Ok(Self { map, prefix: "options." })
    }

    /// Takes a field's value; none for null.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a text; an empty one counts as not given.
    ///
    /// # Errors
    /// 400: no text.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok((!text.is_empty()).then_some(text)),
            Some(other) => Err(self.expected(name, "text", &other)),
        }
    }

    /// Takes a boolean.
    ///
    /// # Errors
    /// 400: neither.
    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.expected(name, "true or false", &other)),
        }
    }

    /// Takes a number.
    ///
    /// # Errors
    /// 400: none.
    pub(super) fn number(&mut self, name: &str) -> Result<Option<f64>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.expected(name, "a number", &value)),
            },
        }
    }

    /// Takes a whole number, also one that is written 5.0.
    ///
    /// # Errors
    /// 400: none.
    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        /// Every whole number up to this one, 2^53, is a float64.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let Some(value) = self.take(name) else { return Ok(None) };
        let whole = |x: &f64| x.fract() == 0.0 && x.abs() <= EXACT;
        match value.as_i64().or_else(|| value.as_f64().filter(whole).map(|x| x as i64)) {
            Some(number) => Ok(Some(number)),
            None => {
                let text = format!("expected a whole number, found {value}");
                Err(self.fault(name, &text))
            }
        }
    }

    /// Takes a list, which is empty where it is not given.
    ///
    /// # Errors
    /// 400: something else.
    pub(super) fn list(&mut self, name: &str) -> Result<Vec<Value>, ApiError> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(self.expected(name, "a list", &other)),
        }
    }

    /// Takes the model's name: `model`, or `name` as older clients call it.
    ///
    /// # Errors
    /// 400: both are given, and differ.
    pub(super) fn model(&mut self) -> Result<Option<String>, ApiError> {
        let bare = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
        match (self.text("model")?, self.text("name")?) {
            (Some(model), Some(name)) if bare(&model) != bare(&name) => {
                let text = format!("model, name: expected the same, found {model} and {name}");
                Err(ApiError::invalid("model", text))
            }
            (model, name) => Ok(model.or(name)),
        }
    }

    /// Takes fields that change nothing here.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.map.remove(*name);
        }
    }

    /// Refuses the fields that are left.
    ///
    /// # Errors
    /// 400: a field that nobody took, which could change the answer if it were understood.
    pub(super) fn end(mut self) -> Result<(), ApiError> {
        self.map.retain(|_, value| !value.is_null());
        let Some(name) = self.map.keys().next() else { return Ok(()) };
        let option = self.prefix.is_empty() && OBEYED.contains(&name.as_str());
        Err(match option {
            true => self.fault(name, "expected within options, found beside it"),
            false => self.fault(name, "this field is not supported, and might change the answer"),
        })
    }

    /// Makes a 400 that names a field.
    pub(super) fn fault(&self, name: &str, text: &str) -> ApiError {
        let place = format!("{}{name}", self.prefix);
        ApiError::invalid(&place, format!("{place}: {text}"))
    }

    fn expected(&self, name: &str, what: &str, found: &Value) -> ApiError {
        self.fault(name, &format!("expected {what}, found {}", name_of(found)))
    }
}
