//! A request's JSON object, field by field. Each field is taken by its name and type; what nobody
//! took is looked at before the request is served, so that no field that would change the answer is
//! passed over.

use serde_json::{Map, Number, Value};

use crate::error::ApiError;
use crate::request::messages::name_of;

/// The fields of an object that were not taken yet.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Where the object stands in the request, before a field's name: nothing, `options.`,
    /// `tools[2].`.
    place: String,
}

/// A field that is not supported, and the values (JSON) with which it changes nothing; null always
/// does not.
pub(crate) type Refused = (&'static str, &'static [&'static str]);

impl Fields {
    /// Parses a request's body.
    ///
    /// # Errors
    /// 400 where it is no JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let fault = |text: String| {
            let status = axum::http::StatusCode::BAD_REQUEST;
            ApiError::new(status, format!("the request's JSON: {text}"))
        };
        match serde_json::from_slice(body).map_err(|e| fault(e.to_string()))? {
            Value::Object(map) => Ok(Self { map, place: String::new() }),
            other => Err(fault(format!("expected an object, found {}", name_of(&other)))),
        }
    }

    /// The fields of an object that stands within a request at `place`.
    pub(crate) fn of(map: Map<String, Value>, place: &str) -> Self {
        Self { map, place: format!("{place}.") }
    }

    /// The fields of the object at `place`.
    ///
    /// # Errors
    /// 400 for something else.
    pub(crate) fn at(value: Value, place: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self::of(map, place)),
            other => Err(wrong_type(place, "an object", &other)),
        }
    }

    /// Takes an object, and gives its fields; none where it is not given.
    pub(crate) fn within(&mut self, name: &str) -> Result<Self, ApiError> {
        let place = self.place(name);
        Ok(Self::of(self.object(name)?.unwrap_or_default(), &place))
    }

    /// The place of a field in the request.
    pub(crate) fn place(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    /// Makes a 400 that names a field.
    pub(crate) fn fault(&self, name: &str, text: &str) -> ApiError {
        let place = self.place(name);
        ApiError::invalid(&place, format!("{place}: {text}"))
    }

    /// Takes a field of any type; nothing where it is missing or null.
    pub(crate) fn any(&mut self, name: &str) -> Option<Value> {
        // the others keep their order, and with it which of several faults is told
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field whose value `of` can read; `expected` names its type for the error.
    fn typed<T>(
        &mut self,
        name: &str,
        expected: &str,
        of: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.any(name) else { return Ok(None) };
        of(&value).map(Some).ok_or_else(|| wrong_type(&self.place(name), expected, &value))
    }

    pub(crate) fn int(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        self.typed(name, "an integer", |value| value.as_number().and_then(integer))
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<Option<f64>, ApiError> {
        self.typed(name, "a number", Value::as_f64)
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.typed(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// Takes a text; an empty one counts as not given, as Ollama's clients send it.
    pub(crate) fn filled(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        Ok(self.text(name)?.filter(|text| !text.is_empty()))
    }

    pub(crate) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        self.typed(name, "a list", |value| value.as_array().cloned())
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        self.typed(name, "an object", |value| value.as_object().cloned())
    }

    /// Takes a field with several names, and says which name it has here; `take` is one of the
    /// functions above.
    ///
    /// # Errors
    /// 400 for two names with different values.
    pub(crate) fn either<T: PartialEq + std::fmt::Display>(
        &mut self,
        names: &[&'static str],
        take: fn(&mut Self, &str) -> Result<Option<T>, ApiError>,
    ) -> Result<Option<(&'static str, T)>, ApiError> {
        let mut found: Option<(&'static str, T)> = None;
        for name in names {
            let Some(value) = take(self, name)? else { continue };
            match &found {
                None => found = Some((name, value)),
                Some((_, first)) if *first == value => {}
                Some((other, first)) => {
                    let text = format!(
                        "{} and {name} are one field: expected one value, found {first} and {value}",
                        self.place(other)
                    );
                    return Err(ApiError::invalid(&self.place(name), text));
                }
            }
        }
        Ok(found)
    }

    /// Drops fields that change nothing here.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.map.shift_remove(*name);
        }
    }

    /// Looks at the fields that were not taken: `refused` ones, `ignored` ones, and names that
    /// nobody knows.
    ///
    /// # Errors
    /// 400 for the first field that would change the answer, or is not known.
    pub(crate) fn finish(
        mut self,
        refused: &[&[Refused]],
        ignored: &[&str],
    ) -> Result<(), ApiError> {
        for (name, value) in std::mem::take(&mut self.map) {
            if value.is_null() || ignored.contains(&name.as_str()) {
                continue;
            }
            let known = refused.iter().copied().flatten().find(|(known, _)| *known == name);
            let Some((_, neutral)) = known else {
                let text =
                    "this field is not known here, and it may change the answer: leave it out";
                return Err(self.fault(&name, text).coded("unknown_parameter"));
            };
            let same = |json: &&str| serde_json::from_str(json).is_ok_and(|n| equal(&n, &value));
            if !neutral.iter().any(same) {
                let instead = match neutral.first() {
                    Some(value) => format!(": leave it out or set it to {value}"),
                    None => ": leave it out".to_owned(),
                };
                let text = format!("not supported, and it would change the answer{instead}");
                return Err(self.fault(&name, &text).coded("unsupported_parameter"));
            }
        }
        Ok(())
    }

    /// True where a field of this name is left.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }
}

/// The error for a field of another type than it must be.
pub(crate) fn wrong_type(name: &str, expected: &str, found: &Value) -> ApiError {
    /// Longest text that is shown, in bytes.
    const SHOWN: usize = 32;
    let found = match found {
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.len() <= SHOWN => format!("a string, {found}"),
        other => name_of(other).to_owned(),
    };
    ApiError::invalid(name, format!("{name}: expected {expected}, found {found}"))
}

/// Reads a whole number, also one that is written `5.0`, as JSON Schema has it.
pub(crate) fn integer(number: &Number) -> Option<i64> {
    let whole = |x: f64| (x.fract() == 0.0 && x.abs() < 9e15).then_some(x as i64);
    number.as_i64().or_else(|| number.as_f64().filter(|_| number.is_f64()).and_then(whole))
}

/// True for equal values; 1 and 1.0 are equal.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: &Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_integer_may_be_written_with_a_fraction_of_zero() {
        let mut found = fields(&json!({"a": 5, "b": 5.0, "c": -1.0, "d": null}));
        let mut int = |name| found.int(name).unwrap();
        assert_eq!(
            [int("a"), int("b"), int("c"), int("d"), int("e")].map(|n| n.unwrap_or(0)),
            [5, 5, -1, 0, 0]
        );
        for value in
            [json!(5.5), json!("5"), json!([5]), json!(1e300), json!(u64::MAX), json!(true)]
        {
            let error = fields(&json!({"seed": value})).int("seed").unwrap_err();
            assert_eq!(error.param.as_deref(), Some("seed"));
            assert!(error.message.starts_with("seed: expected an integer, found "), "{error:?}");
        }
    }

    #[test]
    fn two_names_of_a_field_must_agree() {
        let names = ["new", "old"];
        let either = |value: Value| fields(&value).either(&names, Fields::int);
        assert_eq!(either(json!({})).unwrap(), None);
        assert_eq!(either(json!({"old": 2})).unwrap(), Some(("old", 2)));
        assert_eq!(either(json!({"old": 2.0, "new": 2})).unwrap(), Some(("new", 2)));
        let error = either(json!({"old": 2, "new": 3})).unwrap_err();
        assert!(error.message.starts_with("new and old are one field"), "{error:?}");
    }

    #[test]
    fn what_would_change_the_answer_is_refused_and_what_would_not_passes() {
        let finish = |value: Value| {
            let own: &[Refused] = &[("own", &["2"]), ("mirostat", &["0"])];
            fields(&value).finish(&[own], &["user"])
        };
        assert!(finish(json!({"user": "x", "mirostat": 0.0, "own": 2, "typo": null})).is_ok());
        for (value, name, code) in [
            (json!({"user": 1, "mirostat": 2}), "mirostat", "unsupported_parameter"),
            (json!({"own": 3}), "own", "unsupported_parameter"),
            (json!({"temprature": 1}), "temprature", "unknown_parameter"),
        ] {
            let error = finish(value).unwrap_err();
            assert_eq!((error.param.as_deref(), error.code), (Some(name), Some(code)));
            assert!(error.message.starts_with(name), "{error:?}");
        }
    }
}
