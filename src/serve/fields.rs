//! A request's JSON object, field by field. Each field is taken by its name and type; what nobody
//! took is looked at before the request is served, so that no field that would change the answer is
//! passed over.

use serde_json::{Map, Number, Value};

use crate::error::ApiError;
use crate::request::messages::name_of;

/// The fields of a request that were not taken yet.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

/// A field that is not supported, and the values (JSON) with which it changes nothing; null always
/// does not.
pub(crate) type Refused = (&'static str, &'static [&'static str]);

/// Fields of texts, of any kind, that are not supported and would change the answer. Source: the
/// references of OpenAI, llama.cpp's server and vLLM; the values are their defaults.
pub(crate) const REFUSED: &[Refused] = &[
    // OpenAI
    ("audio", &[]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("modalities", &["[\"text\"]"]),
    ("suffix", &["\"\""]),
    ("verbosity", &["\"medium\""]),
    ("web_search_options", &[]),
    // llama.cpp
    ("dry_multiplier", &["0"]),
    ("dynatemp_range", &["0"]),
    ("grammar", &["\"\""]),
    ("image_data", &["[]"]),
    ("json_schema", &["{}"]),
    ("lora", &["[]"]),
    ("min_keep", &["0"]),
    ("mirostat", &["0"]),
    ("n_discard", &["0"]),
    ("n_indent", &["0"]),
    ("n_keep", &["0"]),
    ("n_probs", &["0"]),
    ("post_sampling_probs", &["false"]),
    ("reasoning_format", &["\"auto\"", "\"deepseek\""]),
    ("repeat_last_n", &["-1"]),
    ("response_fields", &["[]"]),
    ("return_progress", &["false"]),
    ("return_tokens", &["false"]),
    ("samplers", &[]),
    ("t_max_predict_ms", &["0", "-1"]),
    ("tfs_z", &["1"]),
    ("top_n_sigma", &["-1", "0"]),
    ("typical_p", &["1"]),
    ("typ_p", &["1"]),
    ("xtc_probability", &["0"]),
    // vLLM and others
    ("add_generation_prompt", &["true"]),
    ("allowed_token_ids", &[]),
    ("bad_words", &["[]"]),
    ("chat_template", &[]),
    ("continue_final_message", &["false"]),
    ("documents", &["[]"]),
    ("early_stopping", &["false"]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("include_reasoning", &["true"]),
    ("include_stop_str_in_output", &["false"]),
    ("length_penalty", &["1"]),
    ("logits_processors", &["[]"]),
    ("min_tokens", &["0"]),
    ("mm_processor_kwargs", &["{}"]),
    ("no_repeat_ngram_size", &["0"]),
    ("prompt_logprobs", &[]),
    ("reasoning", &[]),
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("skip_special_tokens", &["true"]),
    ("smoothing_factor", &["0"]),
    ("stop_token_ids", &["[]"]),
    ("structured_outputs", &[]),
    ("thinking", &[]),
    ("top_a", &["0"]),
    ("transforms", &["[]"]),
    ("truncate_prompt_tokens", &[]),
    ("use_beam_search", &["false"]),
];

/// Fields that change nothing in the answer: they are about accounts, caches, speed, or about
/// something that must be turned on by another field first. Source: as of [`REFUSED`].
pub(crate) const IGNORED: &[&str] = &[
    // OpenAI
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    // llama.cpp
    "cache_prompt",
    "dry_allowed_length",
    "dry_base",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_exponent",
    "id_slot",
    "mirostat_eta",
    "mirostat_tau",
    "n_cache_reuse",
    "slot_id",
    "timings_per_token",
    "xtc_threshold",
    // vLLM and others
    "cache_salt",
    "draft_model",
    "keep_alive",
    "kv_transfer_params",
    "priority",
    "request_id",
    "session_id",
    "spaces_between_special_tokens",
    "ttl",
];

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
            Value::Object(fields) => Ok(Self(fields)),
            other => Err(fault(format!("expected an object, found {}", name_of(&other)))),
        }
    }

    /// The fields of an object within a request.
    pub(crate) fn of(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// Takes a field of any type; nothing where it is missing or null.
    pub(crate) fn any(&mut self, name: &str) -> Option<Value> {
        // the others keep their order, and with it which of several faults is told
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field whose value `of` can read; `expected` names its type for the error.
    fn typed<T>(
        &mut self,
        name: &str,
        expected: &str,
        of: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.any(name) else { return Ok(None) };
        of(&value).map(Some).ok_or_else(|| wrong_type(name, expected, &value))
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
                        "{other} and {name} are one field: expected one value, found {first} and {value}"
                    );
                    return Err(ApiError::invalid(name, text));
                }
            }
        }
        Ok(found)
    }

    /// Looks at the fields that were not taken: fields of `refused` and [`REFUSED`], and names that
    /// nobody knows.
    ///
    /// # Errors
    /// 400 for the first field that would change the answer, or is not known.
    pub(crate) fn finish(self, refused: &[Refused]) -> Result<(), ApiError> {
        for (name, value) in self.0 {
            if value.is_null() || IGNORED.contains(&name.as_str()) {
                continue;
            }
            let Some((_, neutral)) = refused.iter().chain(REFUSED).find(|(n, _)| *n == name) else {
                let text = format!(
                    "{name}: this field is not known here, and it may change the answer: leave it out"
                );
                return Err(ApiError::invalid(&name, text).coded("unknown_parameter"));
            };
            let same = |json: &&str| serde_json::from_str(json).is_ok_and(|n| equal(&n, &value));
            if !neutral.iter().any(same) {
                let instead = match neutral.first() {
                    Some(value) => format!(": leave it out or set it to {value}"),
                    None => ": leave it out".to_owned(),
                };
                let text =
                    format!("{name}: not supported, and it would change the answer{instead}");
                return Err(ApiError::invalid(&name, text).coded("unsupported_parameter"));
            }
        }
        Ok(())
    }
}

/// The error for a field of another type than it must be.
pub(crate) fn wrong_type(name: &str, expected: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Number(number) => number.to_string(),
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
        let finish = |value: Value| fields(&value).finish(&[("own", &["2"])]);
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

    #[test]
    fn no_field_is_in_two_tables_and_every_neutral_value_is_json() {
        for (i, (name, neutral)) in REFUSED.iter().enumerate() {
            assert!(!IGNORED.contains(name), "{name}");
            assert!(REFUSED[..i].iter().all(|(other, _)| other != name), "{name}");
            assert!(
                neutral.iter().all(|json| serde_json::from_str::<Value>(json).is_ok()),
                "{name}"
            );
        }
    }
    #[test]
    fn the_page_of_the_apis_names_every_field() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md");
        let page = fs_err::read_to_string(page).unwrap();
        let half = page.split("## Ollama's API").next().unwrap();
        for name in REFUSED.iter().map(|(name, _)| name).chain(IGNORED) {
            assert!(half.contains(&format!("`{name}`")), "{name}");
        }
    }
}
