//! How text is to be written: the fields that all endpoints share, checked, with the model's own settings
//! where a request says nothing.

use std::collections::BTreeMap;

use mmx_ggml::run::Sampling;
use serde::Deserialize;
use serde_json::Value;

use super::App;
use super::engine::Write;
use super::error::ApiError;
use super::grammar::Constraint;
use super::served::Served;

/// Stop strings a request may have. Source: OpenAI.
const STOPS: usize = 4;
/// Texts a request may ask for.
const CHOICES: usize = 16;
/// Other tokens whose probabilities may be asked for. Source: OpenAI.
const TOP_LOGPROBS: usize = 20;

/// One text or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// OpenAI's fields, and the usual ones that OpenAI lacks.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Params {
    pub(crate) max_tokens: Option<i64>,
    pub(crate) max_completion_tokens: Option<i64>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f64>,
    #[serde(alias = "repeat_penalty")]
    pub(crate) repetition_penalty: Option<f64>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    pub(crate) seed: Option<i64>,
    pub(crate) stop: Option<OneOrMany>,
    pub(crate) n: Option<i64>,
    #[serde(alias = "ignore_eos")]
    pub(crate) ignore_end: Option<bool>,
    /// Tokens the text may have, prompt included (Ollama's `num_ctx`); at most the model's.
    #[serde(skip)]
    pub(crate) n_ctx: Option<usize>,
}

/// The same, checked.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub(crate) sampling: Sampling,
    pub(crate) max_tokens: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) choices: usize,
    pub(crate) ignore_end: bool,
}

impl Params {
    /// Checks the fields for a prompt of `prompt` ids.
    ///
    /// # Errors
    /// 400, with the field.
    pub(crate) fn check(
        self,
        app: &App,
        model: &Served,
        prompt: usize,
    ) -> Result<Checked, ApiError> {
        let n_ctx = self.n_ctx.map_or(model.n_ctx, |n| n.min(model.n_ctx));
        if prompt == 0 {
            let text = "the prompt has no tokens: nothing could follow it";
            return Err(ApiError::invalid("messages", text));
        }
        if prompt >= n_ctx {
            let text = format!(
                "the prompt has {prompt} tokens and the context holds {n_ctx}: nothing could be written"
            );
            return Err(ApiError::invalid("messages", text).coded("context_length_exceeded"));
        }
        let (name, asked) = match self.max_completion_tokens {
            Some(n) => ("max_completion_tokens", Some(n)),
            None => ("max_tokens", self.max_tokens),
        };
        let most = (n_ctx - prompt).min(app.options.max_tokens);
        let max_tokens = match asked {
            None | Some(-1) => most, // -1 is llama.cpp's and Ollama's "no limit"
            Some(n) => at_least_one(name, n)?.min(most),
        };
        let choices = self.n.map_or(Ok(1), |n| at_least_one("n", n))?;
        if choices > CHOICES {
            return Err(ApiError::invalid(
                "n",
                format!("n: expected at most {CHOICES}, found {choices}"),
            ));
        }
        let stop = self.stop.map(OneOrMany::into_vec).unwrap_or_default();
        if stop.len() > STOPS {
            let text = format!("stop: expected at most {STOPS} texts, found {}", stop.len());
            return Err(ApiError::invalid("stop", text));
        }
        if stop.iter().any(String::is_empty) {
            return Err(ApiError::invalid("stop", "stop: expected texts, found an empty one"));
        }
        let own = &model.sampling;
        let mut bias = Vec::new();
        for (id, value) in self.logit_bias.unwrap_or_default() {
            let fault =
                |text: String| ApiError::invalid("logit_bias", format!("logit_bias: {text}"));
            let number =
                id.parse().map_err(|_| fault(format!("expected a token id, found {id}")))?;
            if !(-100.0..=100.0).contains(&value) {
                return Err(fault(format!("expected -100 to 100, found {value}")));
            }
            bias.push((number, value));
        }
        let top_k = match self.top_k {
            None => own.top_k,
            Some(k) => usize::try_from(k).unwrap_or(0), // -1 is vLLM's "all"
        };
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(own.temperature),
            top_k,
            // a top_p of 0 leaves the most likely token, as everywhere
            top_p: self.top_p.map_or(own.top_p, |p| if p == 0.0 { 1e-9 } else { p }),
            min_p: self.min_p.unwrap_or(own.min_p),
            repeat_penalty: self.repetition_penalty.unwrap_or(own.repeat_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            bias,
            seed: self.seed.map_or_else(crate::random_seed, |seed| seed as u64),
        };
        sampling.check().map_err(|error| {
            // "top-p: expected ..": the part before the colon is the field
            let text = error.to_string();
            let field = text.split(':').next().unwrap_or_default().replace([' ', '-'], "_");
            ApiError::invalid(&field, text)
        })?;
        let vocab = model.model.config().vocab_size;
        if let Some((id, _)) = sampling.bias.iter().find(|(id, _)| *id as usize >= vocab) {
            let text = format!("logit_bias: expected ids below {vocab}, found {id}");
            return Err(ApiError::invalid("logit_bias", text));
        }
        let ignore_end = self.ignore_end.unwrap_or(false);
        Ok(Checked { sampling, max_tokens, stop, choices, ignore_end })
    }
}

impl Checked {
    /// How the text of one choice is written.
    pub(crate) fn to_write(
        &self,
        choice: usize,
        logprobs: Option<usize>,
        constraint: Option<Constraint>,
    ) -> Write {
        let mut sampling = self.sampling.clone();
        sampling.seed = sampling.seed.wrapping_add(choice as u64); // else all choices are one
        Write {
            max_tokens: self.max_tokens,
            sampling,
            stop: self.stop.clone(),
            logprobs,
            constraint,
            ignore_end: self.ignore_end,
        }
    }
}

fn at_least_one(name: &str, n: i64) -> Result<usize, ApiError> {
    usize::try_from(n)
        .ok()
        .filter(|&n| n > 0)
        .ok_or_else(|| ApiError::invalid(name, format!("{name}: expected at least 1, found {n}")))
}

/// Checks how many other tokens' probabilities are asked for.
pub(crate) fn check_logprobs(name: &str, n: i64) -> Result<usize, ApiError> {
    usize::try_from(n).ok().filter(|&n| n <= TOP_LOGPROBS).ok_or_else(|| {
        ApiError::invalid(name, format!("{name}: expected 0 to {TOP_LOGPROBS}, found {n}"))
    })
}

/// A request's JSON.
///
/// # Errors
/// 400 where it is none, or a field has another type.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|e| {
        ApiError::new(axum::http::StatusCode::BAD_REQUEST, format!("the request's JSON: {e}"))
    })
}

/// `"json_object"` or a schema, from OpenAI's `response_format`; nothing for plain text.
///
/// # Errors
/// 400 for another type, or a schema that is none.
pub(crate) fn schema_of(format: Option<Value>) -> Result<Option<Value>, ApiError> {
    let fault =
        |text: String| ApiError::invalid("response_format", format!("response_format: {text}"));
    let Some(format) = format.filter(|f| !f.is_null()) else { return Ok(None) };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(serde_json::json!({"type": "object"}))),
        Some("json_schema") => {
            let schema = format.pointer("/json_schema/schema").or_else(|| format.get("schema"));
            match schema {
                Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Some(schema.clone())),
                _ => Err(fault("expected a schema in json_schema.schema, found none".to_owned())),
            }
        }
        other => Err(fault(format!(
            "expected type text, json_object or json_schema, found {}",
            other.unwrap_or("none")
        ))),
    }
}
