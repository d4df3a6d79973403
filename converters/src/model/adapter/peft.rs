//! PEFT's folder in: what adapter_config.json says of ranks and scales, and what of it is refused.
//!
//! Source: PEFT 0.21.2, `LoraModel._create_and_replace` (which rank and alpha a module has),
//! `get_pattern_key` (which pattern is a module's) and `LoraLayer.update_layer` (scale alpha / r,
//! with rslora alpha / sqrt(r)).

use std::collections::BTreeMap;
use std::path::Path;

use fancy_regex::Regex;
use serde_json::Value;

use super::joined::{Joined, Part};
use super::{Adapter, Adapters, CONFIG_NAME, OLD_WEIGHTS_NAME, WEIGHTS_NAME};
use crate::arch::Weight;
use crate::error::{Error, Result};

impl Adapters {
    /// Opens a folder with [`CONFIG_NAME`]. With the table of the model they belong to, adapters
    /// beside joined tensors are split; without it those beside parameters are refused.
    pub(super) fn open_peft(dir: &Path, weights: Option<&[Weight]>) -> Result<Self> {
        let path = dir.join(CONFIG_NAME);
        let config = settings(dir)?;
        refuse_other_kinds(&config, &path, weights.is_some())?;
        let old = dir.join(OLD_WEIGHTS_NAME);
        let new = dir.join(WEIGHTS_NAME);
        let file = if !new.exists() && old.exists() { old } else { new };
        let mut adapters = Self::open_weights(&file)?;
        let joined = adapters.split(&file, weights.unwrap_or_default())?;
        let rank = rank_of(&config["r"]).ok_or_else(|| {
            let found = &config["r"];
            Error::key(&path, "r", format!("expected a whole number above 0, found {found}"))
        })?;
        let alpha = number(&config["lora_alpha"]).ok_or_else(|| {
            let found = &config["lora_alpha"];
            Error::key(&path, "lora_alpha", format!("expected a number, found {found}"))
        })?;
        let ranks = Patterns::read(&config, "rank_pattern", &path, |value| {
            rank_of(value).ok_or("a whole number above 0")
        })?;
        let alphas = Patterns::read(&config, "alpha_pattern", &path, |value| {
            number(value).ok_or("a number")
        })?;
        // of scales alpha / rank: with rslora it is alpha / sqrt(rank)
        let rslora = config["use_rslora"].as_bool() == Some(true);
        let effective = |alpha: f64, rank: usize| match rslora {
            true => alpha * (rank as f64).sqrt(),
            false => alpha,
        };
        (adapters.rank, adapters.alpha) = (rank, effective(alpha, rank));
        for (module, adapter) in &mut adapters.modules {
            let module = joined.get(module).unwrap_or(module); // as PEFT calls it
            let own = ranks.of(module, &path)?;
            let (expected, found) = (own.unwrap_or(rank), adapter.rank());
            if expected != found {
                let key = if own.is_some() { "rank_pattern" } else { "r" };
                let message = format!(
                    "expected {found}, the rank of {module} in the weights, found {expected}"
                );
                return Err(Error::key(&path, key, message));
            }
            let own = effective(alphas.of(module, &path)?.unwrap_or(alpha), found);
            adapter.alpha = Some(own).filter(|own| *own != adapters.alpha);
        }
        adapters.settle();
        adapters.base = config["base_model_name_or_path"].as_str().map(str::to_owned);
        Ok(adapters)
    }

    /// Puts the parts of adapters beside joined tensors in their place; the tensors' names by the
    /// parts' modules.
    fn split(&mut self, file: &Path, weights: &[Weight]) -> Result<BTreeMap<String, String>> {
        let mut joined = BTreeMap::new();
        let table = Joined::of(weights);
        for (module, adapter) in std::mem::take(&mut self.modules) {
            let parts = table.parts(&module, &adapter);
            let own = parts.is_empty().then(|| (module.clone(), adapter));
            let mut all: Vec<(String, Adapter)> = own.into_iter().collect();
            for Part { module: own, adapter, joined: tensor } in parts {
                joined.insert(own.clone(), tensor);
                all.push((own, adapter));
            }
            for (own, adapter) in all {
                if self.modules.insert(own.clone(), adapter).is_some() {
                    let message = format!("adapter {own}: expected once, found in {module} too");
                    return Err(Error::format(file, message));
                }
            }
        }
        Ok(joined)
    }

    /// Makes a rank and alpha that all adapters share those of the whole.
    fn settle(&mut self) {
        let alpha = self.alpha;
        let mut found = self.modules.values().map(|a| (a.rank(), a.alpha.unwrap_or(alpha)));
        let Some(first) = found.next() else { return };
        if found.all(|other| other == first) {
            (self.rank, self.alpha) = first;
            self.modules.values_mut().for_each(|adapter| adapter.alpha = None);
        }
    }
}

/// The settings of a folder of adapters.
pub(super) fn settings(dir: &Path) -> Result<Value> {
    let path = dir.join(CONFIG_NAME);
    let text = fs_err::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::format(&path, format!("expected JSON: {e}")))
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|n| n.is_finite())
}

fn rank_of(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0)
}

/// Values by patterns of module names, the first that matches counting.
struct Patterns<T> {
    key: &'static str,
    rows: Vec<(Regex, T)>,
}

impl<T: Copy> Patterns<T> {
    /// `value` reads one, or says what it expected.
    fn read(
        config: &Value,
        key: &'static str,
        path: &Path,
        value: impl Fn(&Value) -> Result<T, &'static str>,
    ) -> Result<Self> {
        let mut rows = Vec::new();
        let entries = match &config[key] {
            Value::Null => None,
            Value::Object(map) => Some(map),
            other => {
                let message = format!("expected an object of patterns, found {other}");
                return Err(Error::key(path, key, message));
            }
        };
        for (pattern, found) in entries.into_iter().flatten() {
            let wrong = |message: String| Error::key(path, format!("{key}.{pattern}"), message);
            let read = value(found)
                .map_err(|expected| wrong(format!("expected {expected}, found {found}")))?;
            // the end of a name, from a dot or the beginning on; Python's `re.match` begins at the
            // beginning
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$"))
                .map_err(|e| wrong(format!("expected a regular expression: {e}")))?;
            rows.push((regex, read));
        }
        Ok(Self { key, rows })
    }

    fn of(&self, module: &str, path: &Path) -> Result<Option<T>> {
        for (regex, value) in &self.rows {
            let matched = regex.is_match(module).map_err(|e| {
                Error::key(path, self.key, format!("expected a pattern for {module}: {e}"))
            })?;
            if matched {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

/// Refuses settings that change the arithmetic; `parameters`: adapters beside parameters are read.
fn refuse_other_kinds(config: &Value, path: &Path, parameters: bool) -> Result<()> {
    let kind = config["peft_type"].as_str();
    if kind != Some("LORA") {
        let found = &config["peft_type"];
        return Err(Error::key(path, "peft_type", format!("expected LORA, found {found}")));
    }
    if !matches!(config["bias"].as_str(), None | Some("none")) {
        let found = &config["bias"];
        return Err(Error::key(path, "bias", format!("expected none, found {found}")));
    }
    for key in ["use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"] {
        if config[key].as_bool() == Some(true) {
            return Err(Error::key(path, key, "expected false, found true"));
        }
    }
    for key in [
        "modules_to_save",
        "layer_replication",
        "target_parameters",
        "trainable_token_indices",
        "alora_invocation_tokens",
    ] {
        let empty = match &config[key] {
            Value::Null => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if !(empty || parameters && key == "target_parameters") {
            let found = &config[key];
            return Err(Error::key(path, key, format!("expected none, found {found}")));
        }
    }
    Ok(())
}
