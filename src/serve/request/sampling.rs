//! Sampling settings of a request, whatever names a protocol has for them: checked, with the
//! model's own settings where the request says nothing.

use mmx_converters::tokenizer::Tokenizer;
use mmx_ggml::run::Sampling;
use serde_json::Value;

use crate::app::App;
use crate::engine::Write;
use crate::engine::grammar::Constraint;
use crate::error::ApiError;
use crate::fields::{integer, wrong_type};
use crate::served_model::ServedModel;

/// Most stop strings of a request to OpenAI's API. Source: OpenAI.
const STOPS: usize = 4;
/// Most texts that a request may ask for after one prompt.
const CHOICES: usize = 16;
/// Most other tokens whose probabilities may be asked for. Source: OpenAI.
const TOP_LOGPROBS: usize = 20;

/// One text or a list of them.
#[derive(Clone, Debug)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn of(value: Value, name: &str) -> Result<Self, ApiError> {
        let text = |(i, item): (usize, Value)| match item {
            Value::String(text) => Ok(text),
            other => Err(wrong_type(&format!("{name}[{i}]"), "a string", &other)),
        };
        match value {
            Value::String(text) => Ok(Self::One(text)),
            Value::Array(items) => {
                items.into_iter().enumerate().map(text).collect::<Result<_, _>>().map(Self::Many)
            }
            other => Err(wrong_type(name, "a string or a list of them", &other)),
        }
    }

    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// Sampling settings as a request has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params {
    pub(crate) max_tokens: Option<i64>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f64>,
    pub(crate) repetition_penalty: Option<f64>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) logit_bias: Option<Value>,
    pub(crate) seed: Option<i64>,
    pub(crate) stop: Option<OneOrMany>,
    pub(crate) n: Option<i64>,
    pub(crate) ignore_end: Option<bool>,
    /// Tokens the text may have, prompt included (Ollama's `num_ctx`); at most the model's.
    pub(crate) n_ctx: Option<usize>,
    /// The names by which this request calls the fields.
    pub(crate) names: Names,
    /// The request may ask for no token at all: its prompt is an answer too.
    pub(crate) none_written: bool,
}

/// The names by which a request calls the fields that protocols call differently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    pub(crate) max_tokens: &'static str,
    pub(crate) repetition_penalty: &'static str,
    pub(crate) stop: &'static str,
    /// Most stop strings that a request may have.
    pub(crate) most_stops: usize,
    /// Where all of them stand in the request: nothing, or `options.`.
    pub(crate) within: &'static str,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            max_tokens: "max_tokens",
            repetition_penalty: "repetition_penalty",
            stop: "stop",
            most_stops: STOPS,
            within: "",
        }
    }
}

impl Names {
    /// Makes a 400 that names a field.
    fn fault(&self, name: &str, text: &str) -> ApiError {
        let place = format!("{}{name}", self.within);
        ApiError::invalid(&place, format!("{place}: {text}"))
    }
}

/// Sampling settings that are checked and complete.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub(crate) sampling: Sampling,
    pub(crate) max_tokens: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) choices: usize,
    pub(crate) ignore_end: bool,
}

impl Params {
    /// Checks the fields for a prompt of `prompt` ids, which came in the request's field `field`.
    ///
    /// # Errors
    /// 400, with the field.
    pub(crate) fn check(
        self,
        app: &App,
        model: &ServedModel,
        prompt: usize,
        field: &str,
    ) -> Result<Checked, ApiError> {
        let n_ctx = self.n_ctx.map_or(model.n_ctx, |n| n.min(model.n_ctx));
        if prompt == 0 {
            let text = format!("{field}: the prompt has no tokens: nothing could follow it");
            return Err(ApiError::invalid(field, text));
        }
        let nothing = self.none_written && self.max_tokens == Some(0);
        if prompt > n_ctx || (prompt == n_ctx && !nothing) {
            let text = format!(
                "{field}: the prompt has {prompt} tokens and the context holds {n_ctx}: nothing could be written"
            );
            return Err(ApiError::invalid(field, text).coded("context_length_exceeded"));
        }
        let most = (n_ctx - prompt).min(app.options.max_tokens);
        let max_tokens = match self.max_tokens {
            None | Some(-1) => most, // -1 is llama.cpp's and Ollama's "no limit"
            Some(0) if nothing => 0,
            Some(n) => at_least_one(&self.names, self.names.max_tokens, n)?.min(most),
        };
        let choices = self.n.map_or(Ok(1), |n| at_least_one(&self.names, "n", n))?;
        if choices > CHOICES {
            return Err(ApiError::invalid(
                "n",
                format!("n: expected at most {CHOICES}, found {choices}"),
            ));
        }
        let stop = self.stop.map(OneOrMany::into_vec).unwrap_or_default();
        let most = self.names.most_stops;
        if stop.len() > most {
            let text = format!("expected at most {most} texts, found {}", stop.len());
            return Err(self.names.fault(self.names.stop, &text));
        }
        if stop.iter().any(String::is_empty) {
            return Err(self.names.fault(self.names.stop, "expected texts, found an empty one"));
        }
        let own = &model.sampling;
        let bias = match self.logit_bias {
            Some(value) => biases(value, model.tokenizer()?)?,
            None => Vec::new(),
        };
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
            seed: seed_of("seed", self.seed)?,
        };
        sampling.check().map_err(|error| {
            let mmx_ggml::Error::Setting { name, expected, found } = error else {
                return ApiError::invalid("sampling", error.to_string());
            };
            let field = match name.as_str() {
                "repeat_penalty" => self.names.repetition_penalty,
                other => other,
            };
            self.names.fault(field, &format!("expected {expected}, found {found}"))
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
    /// Makes the task of writing one choice.
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
            echo_logprobs: false,
            constraint,
            ignore_end: self.ignore_end,
        }
    }
}

/// The seed of a text. No seed, and -1, mean that one is chosen, as in llama.cpp, vLLM and Ollama.
///
/// # Errors
/// 400 for another negative number, with the field.
pub(crate) fn seed_of(name: &str, seed: Option<i64>) -> Result<u64, ApiError> {
    match seed {
        None | Some(-1) => Ok(mmx_converters::random::random_seed()),
        Some(seed) => u64::try_from(seed).map_err(|_| {
            let text = format!("{name}: expected 0 or more, or -1 to choose one, found {seed}");
            ApiError::invalid(name, text)
        }),
    }
}

/// Reads biases, which are added to the logits of ids: `{"id": number}`, or llama.cpp's list of
/// `[id or text, number or false]`, in which a text stands for each of its tokens, and false
/// forbids them.
fn biases(value: Value, tokenizer: &Tokenizer) -> Result<Vec<(u32, f32)>, ApiError> {
    const FIELD: &str = "logit_bias";
    let fault = |text: String| ApiError::invalid(FIELD, format!("{FIELD}: {text}"));
    let number = |value: &Value| match value {
        Value::Bool(false) => Ok(f32::NEG_INFINITY),
        Value::Number(n) => match n.as_f64() {
            Some(x) if (-100.0..=100.0).contains(&x) => Ok(x as f32),
            _ => Err(fault(format!("expected -100 to 100, found {n}"))),
        },
        other => Err(fault(format!("expected a number or false beside each id, found {other}"))),
    };
    let no_id =
        |found: &dyn std::fmt::Display| fault(format!("expected a token id, found {found}"));
    let mut out = Vec::new();
    match value {
        Value::Object(entries) => {
            for (id, value) in &entries {
                out.push((id.parse().map_err(|_| no_id(id))?, number(value)?));
            }
        }
        Value::Array(entries) => {
            for entry in &entries {
                let Some([id, value]) = entry.as_array().map(Vec::as_slice) else {
                    return Err(fault(format!(
                        "expected pairs of an id and a number, found {entry}"
                    )));
                };
                let value = number(value)?;
                match id {
                    Value::String(text) => {
                        let ids = tokenizer.encode_plain(text)?;
                        out.extend(ids.into_iter().map(|id| (id, value)));
                    }
                    Value::Number(n) => {
                        let id = integer(n).and_then(|id| u32::try_from(id).ok());
                        out.push((id.ok_or_else(|| no_id(n))?, value));
                    }
                    other => return Err(no_id(other)),
                }
            }
        }
        other => return Err(wrong_type(FIELD, "an object or a list of pairs", &other)),
    }
    Ok(out)
}

fn at_least_one(names: &Names, name: &str, n: i64) -> Result<usize, ApiError> {
    let fault = || names.fault(name, &format!("expected at least 1, found {n}"));
    usize::try_from(n).ok().filter(|&n| n > 0).ok_or_else(fault)
}

/// Checks how many other tokens' probabilities are asked for.
pub(crate) fn check_logprobs(name: &str, n: i64) -> Result<usize, ApiError> {
    usize::try_from(n).ok().filter(|&n| n <= TOP_LOGPROBS).ok_or_else(|| {
        ApiError::invalid(name, format!("{name}: expected 0 to {TOP_LOGPROBS}, found {n}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokenizer() -> Tokenizer {
        Tokenizer::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/golden"))
            .unwrap()
    }

    #[test]
    fn a_seed_of_minus_one_is_chosen_and_other_negative_ones_are_refused() {
        assert_eq!(seed_of("seed", Some(7)).unwrap(), 7);
        assert_ne!(seed_of("seed", Some(-1)).unwrap(), seed_of("seed", Some(-1)).unwrap());
        for seed in [-2, i64::MIN] {
            let error = seed_of("options.seed", Some(seed)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("options.seed"));
            assert!(error.message.contains(&seed.to_string()), "{error:?}");
        }
    }

    #[test]
    fn biases_are_an_object_or_a_list_of_pairs() {
        let tokenizer = tokenizer();
        let of = |value: Value| biases(value, &tokenizer);
        assert_eq!(of(json!({"65": -1, "7": 2.5})).unwrap(), [(65, -1.0), (7, 2.5)]);
        assert_eq!(of(json!([[65, -1], [7.0, 2.5]])).unwrap(), [(65, -1.0), (7, 2.5)]);
        assert_eq!(of(json!([[65, false]])).unwrap(), [(65, f32::NEG_INFINITY)]);
        let ids = tokenizer.encode_plain("好 apples").unwrap();
        let expected: Vec<_> = ids.iter().map(|&id| (id, 1.0)).collect();
        assert_eq!(of(json!([["好 apples", 1]])).unwrap(), expected);
        for (value, part) in [
            (json!({"a": 1}), "expected a token id, found a"),
            (json!({"5": 101}), "expected -100 to 100, found 101"),
            (json!([[65]]), "expected pairs of an id and a number, found [65]"),
            (json!([[-1, 1]]), "expected a token id, found -1"),
            (json!([[65, true]]), "found true"),
            (json!("x"), "expected an object or a list of pairs, found a string"),
        ] {
            let error = of(value).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("logit_bias"));
            assert!(error.message.contains(part), "{error:?}");
        }
    }
}
