//! How a model is meant to be sampled and where it stops: generation_config.json, the tokenizer's
//! end token, and GGUF's `general.sampling.*` keys.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::arch::Config;
use crate::error::{Error, Result};
use crate::gguf;

/// The file of default sampling settings in a Transformers folder.
pub const FILE_NAME: &str = "generation_config.json";

/// Default sampling. Fields carry generation_config.json's names; nothing means the runtime's own
/// default.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Sample rather than take the likeliest token.
    pub do_sample: bool,
    /// Divides the logits.
    pub temperature: Option<f64>,
    /// Keep the likeliest tokens up to this probability.
    pub top_p: Option<f64>,
    /// Keep this many likeliest tokens.
    pub top_k: Option<u32>,
    /// Keep tokens of at least this share of the likeliest one's probability.
    pub min_p: Option<f64>,
    /// Divides the logits of tokens that were there already.
    pub repetition_penalty: Option<f64>,
    /// Keys of the source that mmx has no use for, kept as they were.
    pub other: Map<String, Value>,
}

impl Default for Generation {
    /// The settings that the reference samples with. Source: eval_model.py, 2025 and 2026.
    fn default() -> Self {
        Self {
            do_sample: true,
            temperature: Some(0.85),
            top_p: Some(0.85),
            top_k: None,
            min_p: None,
            repetition_penalty: None,
            other: Map::new(),
        }
    }
}

impl Generation {
    /// Reads a folder's generation_config.json, if there is one: its settings (the reference's
    /// where it sets none), and the end tokens it names.
    ///
    /// # Errors
    /// The file is no JSON object, or a key has an impossible value.
    pub fn read(dir: &Path) -> Result<Option<(Self, Vec<u32>)>> {
        let path = dir.join(FILE_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs_err::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let mut object: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| Error::format(&path, format!("expected a JSON object: {e}")))?;
        let wrong = |key: &str, expected: &str, found: &Value| {
            Error::key(&path, key, format!("expected {expected}, found {found}"))
        };
        let mut number = |key: &str| match object.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match v.as_f64().filter(|x| x.is_finite() && *x >= 0.0) {
                Some(x) => Ok(Some(x)),
                None => Err(wrong(key, "a number of at least 0", &v)),
            },
        };
        let (temperature, top_p) = (number("temperature")?, number("top_p")?);
        let (top_k, min_p) = (number("top_k")?, number("min_p")?);
        let repetition_penalty = number("repetition_penalty")?;
        let do_sample = match object.remove("do_sample") {
            None | Some(Value::Null) => None,
            Some(v) => Some(v.as_bool().ok_or_else(|| wrong("do_sample", "true or false", &v))?),
        };
        let eos = match object.remove("eos_token_id") {
            None | Some(Value::Null) => Vec::new(),
            Some(v) => ids(&v).ok_or_else(|| wrong("eos_token_id", "ids", &v))?,
        };
        for key in ["bos_token_id", "pad_token_id", "_from_model_config", "transformers_version"] {
            object.remove(key);
        }
        let silent = temperature.is_none()
            && top_p.is_none()
            && top_k.is_none()
            && min_p.is_none()
            && do_sample.is_none();
        let own = Self {
            do_sample: do_sample.unwrap_or(false), // Transformers' default
            temperature,
            top_p,
            top_k: top_k.map(|k| k as u32),
            min_p,
            repetition_penalty,
            other: object,
        };
        let settings = if silent {
            Self { other: own.other, repetition_penalty, ..Self::default() }
        } else {
            own
        };
        Ok(Some((settings, eos)))
    }

    /// generation_config.json, with the model's special tokens.
    pub fn to_json(&self, config: &Config) -> Value {
        let mut out = Map::new();
        out.insert("bos_token_id".into(), json!(config.bos_token_id));
        let eos = match config.eos_token_id.as_slice() {
            [one] => json!(one),
            many => json!(many),
        };
        out.insert("eos_token_id".into(), eos);
        out.insert("pad_token_id".into(), json!(config.pad_token_id));
        out.insert("do_sample".into(), json!(self.do_sample));
        let numbers = [
            ("temperature", self.temperature),
            ("top_p", self.top_p),
            ("min_p", self.min_p),
            ("repetition_penalty", self.repetition_penalty),
        ];
        for (key, value) in numbers {
            if let Some(x) = value {
                out.insert(key.into(), json!(x));
            }
        }
        if let Some(k) = self.top_k {
            out.insert("top_k".into(), json!(k));
        }
        out.extend(self.other.clone());
        Value::Object(out)
    }

    /// `general.sampling.*`, which llama.cpp's programs take as their defaults
    /// (docs/formats/gguf.md).
    pub fn to_gguf_keys(&self) -> Vec<(String, gguf::Value)> {
        let mut keys = Vec::new();
        let mut set = |key: &str, value| keys.push((format!("general.sampling.{key}"), value));
        if !self.do_sample {
            // what readers take for the most likely token
            set("temp", gguf::Value::F32(0.0));
            if let Some(x) = self.repetition_penalty {
                set("penalty_repeat", gguf::Value::F32(x as f32));
            }
            return keys;
        }
        if let Some(k) = self.top_k.and_then(|k| i32::try_from(k).ok()) {
            set("top_k", gguf::Value::I32(k));
        }
        let floats = [
            ("top_p", self.top_p),
            ("min_p", self.min_p),
            ("temp", self.temperature),
            ("penalty_repeat", self.repetition_penalty),
        ];
        for (key, value) in floats {
            if let Some(x) = value {
                set(key, gguf::Value::F32(x as f32));
            }
        }
        keys
    }

    /// The settings in a GGUF's `general.sampling.*`, or nothing if it has none.
    pub fn from_gguf_keys(metadata: &gguf::Metadata) -> Option<Self> {
        let float = |key: &str| {
            let x = metadata.get(&format!("general.sampling.{key}"))?.as_f64()?;
            // the shortest decimal of the float32: 0.85 comes back as 0.85
            (x as f32).to_string().parse::<f64>().ok()
        };
        let top_k = metadata.get("general.sampling.top_k").and_then(gguf::Value::as_u64);
        let temperature = float("temp");
        let settings = Self {
            do_sample: temperature != Some(0.0),
            temperature: temperature.filter(|t| *t != 0.0),
            top_p: float("top_p"),
            top_k: top_k.and_then(|k| u32::try_from(k).ok()),
            min_p: float("min_p"),
            repetition_penalty: float("penalty_repeat"),
            other: Map::new(),
        };
        let none = Self { temperature: None, top_p: None, ..Self::default() };
        (settings != none).then_some(settings)
    }
}

/// One id or a list of them.
fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Value::Array(list) => list.iter().map(id).collect(),
        one => id(one).map(|n| vec![n]),
    }
}

/// The stop set: the tokenizer's end token, config.json's and generation_config.json's, each once,
/// in this order. Sources that disagree are all honoured: a model stops at any of them.
pub fn stop_set(tokenizer: Option<u32>, config: &[u32], generation: &[u32]) -> Vec<u32> {
    let mut all = Vec::new();
    for id in tokenizer.iter().chain(config).chain(generation) {
        if !all.contains(id) {
            all.push(*id);
        }
    }
    all
}

/// [`stop_set`] of a folder's three sources, without ids beyond the vocabulary. Also what is to be
/// said: ids left out, and sources that contradict each other (none names all the ends that the
/// others name).
pub fn ends(
    dir: &Path,
    config: &Config,
    tokenizer: Option<u32>,
    generation: &[u32],
) -> (Vec<u32>, Vec<String>) {
    let mut said = Vec::new();
    let mut within = |name: &str, ids: &[u32]| -> Vec<u32> {
        let (ids, beyond): (Vec<u32>, Vec<u32>) =
            ids.iter().partition(|&&id| (id as usize) < config.vocab_size);
        for id in beyond {
            said.push(format!(
                "{}: eos_token_id: expected an id below vocab_size ({}), found {id}: left out",
                dir.join(name).display(),
                config.vocab_size
            ));
        }
        ids
    };
    let generation = within(FILE_NAME, generation);
    let tokenizer = within("tokenizer_config.json", tokenizer.as_slice());
    let all = stop_set(tokenizer.first().copied(), &config.eos_token_id, &generation);
    let sources = [
        ("tokenizer_config.json", tokenizer.as_slice()),
        ("config.json", &config.eos_token_id),
        (FILE_NAME, &generation),
    ];
    let covers = |ids: &[u32]| all.iter().all(|id| ids.contains(id));
    if !all.is_empty() && !sources.iter().any(|(_, ids)| covers(ids)) {
        let list: Vec<String> = sources
            .iter()
            .filter(|(_, ids)| !ids.is_empty())
            .map(|(name, ids)| format!("{name} {ids:?}"))
            .collect();
        said.push(format!(
            "{}: the ends of an answer contradict each other ({}): any of them ends one",
            dir.display(),
            list.join(", ")
        ));
    }
    (all, said)
}

/// The id of the end token that a folder's tokenizer_config.json names, if there is one.
///
/// The text is looked up in tokenizer.json, else in `added_tokens_decoder`; else it is one of the
/// three specials every MiniMind tokenizer begins with (docs/models.md).
///
/// # Errors
/// tokenizer_config.json or tokenizer.json is no JSON object.
pub fn tokenizer_eos(dir: &Path) -> Result<Option<u32>> {
    #[derive(Deserialize)]
    struct Tokenizer {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    let path = dir.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let text = fs_err::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let config: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|e| Error::format(&path, format!("expected a JSON object: {e}")))?;
    let content = |v: &Value| match v {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    };
    let Some(eos) = config.get("eos_token").and_then(content) else { return Ok(None) };
    let tokenizer = dir.join("tokenizer.json");
    if tokenizer.exists() {
        let text = fs_err::read_to_string(&tokenizer).map_err(|e| Error::io(&tokenizer, e))?;
        let parsed: Tokenizer = serde_json::from_str(&text)
            .map_err(|e| Error::format(&tokenizer, format!("expected a tokenizer: {e}")))?;
        return Ok(parsed.added_tokens.into_iter().find(|t| t.content == eos).map(|t| t.id));
    }
    if let Some(Value::Object(added)) = config.get("added_tokens_decoder") {
        let found = added.iter().find(|(_, token)| content(token).as_deref() == Some(&eos));
        if let Some(id) = found.and_then(|(id, _)| id.parse().ok()) {
            return Ok(Some(id));
        }
    }
    let specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    Ok(specials.iter().position(|text| *text == eos).map(|id| id as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_set_is_the_union_with_the_tokenizers_first() {
        let dir = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/cases/files/eos-union"
        ));
        let (config, _) = Config::read(&dir.join("config.json")).unwrap();
        assert_eq!(tokenizer_eos(dir).unwrap(), Some(2));
        assert_eq!(stop_set(Some(2), &config.eos_token_id, &[]), [2, 0]);
        assert_eq!(stop_set(None, &[2], &[7, 2]), [2, 7]);
    }

    #[test]
    fn keeps_the_sources_settings() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Generation::read(dir.path()).unwrap(), None);
        let write = |text: &str| fs_err::write(dir.path().join(FILE_NAME), text).unwrap();
        write(r#"{"temperature":0.6,"top_k":20,"do_sample":true,"eos_token_id":[2,0],"x":1}"#);
        let (own, eos) = Generation::read(dir.path()).unwrap().unwrap();
        assert_eq!((own.temperature, own.top_k, own.top_p), (Some(0.6), Some(20), None));
        assert_eq!(eos, [2, 0]);
        let mut config = crate::arch::presets::preset("tiny").unwrap();
        config.eos_token_id = vec![2, 0];
        let again = own.to_json(&config);
        assert_eq!(again["x"], 1);
        write(&again.to_string());
        assert_eq!(Generation::read(dir.path()).unwrap(), Some((own.clone(), eos)));

        let mut metadata = gguf::Metadata::new();
        assert_eq!(Generation::from_gguf_keys(&metadata), None);
        for (key, value) in own.to_gguf_keys() {
            metadata.set(key, value);
        }
        let expected = Generation { other: Map::new(), ..own };
        assert_eq!(Generation::from_gguf_keys(&metadata), Some(expected));
    }

    #[test]
    fn greedy_stays_greedy_in_a_gguf() {
        let greedy = Generation {
            do_sample: false,
            temperature: None,
            top_p: None,
            repetition_penalty: Some(1.1),
            ..Generation::default()
        };
        // what it says beside has no meaning while nothing is drawn
        let said = Generation { temperature: Some(0.6), top_k: Some(20), ..greedy.clone() };
        let mut metadata = gguf::Metadata::new();
        for (key, value) in said.to_gguf_keys() {
            metadata.set(key, value);
        }
        let temperature = metadata.get("general.sampling.temp").and_then(gguf::Value::as_f64);
        assert_eq!(temperature, Some(0.0));
        assert_eq!(Generation::from_gguf_keys(&metadata), Some(greedy));
    }

    #[test]
    fn a_file_without_sampling_means_the_references_own() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join(FILE_NAME), r#"{"eos_token_id":2,"bos_token_id":1}"#)
            .unwrap();
        let (found, eos) = Generation::read(dir.path()).unwrap().unwrap();
        assert_eq!((found, eos), (Generation::default(), vec![2]));
        fs_err::write(dir.path().join(FILE_NAME), r#"{"top_p":"high"}"#).unwrap();
        let text = Generation::read(dir.path()).unwrap_err().to_string();
        assert!(text.contains("key top_p: expected a number"), "{text}");
    }
}
