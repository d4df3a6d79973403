//! [`Config`] and its JSON: MiniMind's own config.json (2025 and 2026, and v1's spelling) and the
//! stock Transformers classes, in; the stock classes (or MiniMind's own form), out.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{Config, Family, RopeScaling};
use super::family::{minimind2, minimind2_moe, minimind3, minimind3_moe};
use super::keys::Keys;
use super::weight::Layout;
use super::{quantized, rotary};
use crate::error::{Error, Result};
use crate::tensor::Dtype;

/// Deviation of initial weights, for those who start anew from an export. Source: the references,
/// as Transformers.
const INITIALIZER_RANGE: f64 = 0.02;

impl Config {
    /// Reads a config.json. Warnings are sentences for the user (an assumed rope theta, for
    /// instance).
    ///
    /// # Errors
    /// An unreadable file, no JSON object, an unknown architecture, a missing or impossible key.
    pub fn read(path: &Path) -> Result<(Self, Vec<String>)> {
        let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Error::format(path, format!("expected a JSON object: {e}")))?;
        Self::from_json(&value, path)
    }

    /// Reads a config.json that is parsed already; `path` is for the messages.
    pub fn from_json(value: &Value, path: &Path) -> Result<(Self, Vec<String>)> {
        let Some(object) = value.as_object() else {
            return Err(Error::format(path, "expected a JSON object"));
        };
        quantized::refuse(object, path)?;
        let keys = Keys { path, object };
        let mut warnings = Vec::new();
        let family = family(&keys)?;
        let spec = family.spec();
        let own = keys.is_minimind();

        let hidden = keys.usize_or(&["hidden_size", "dim"], None)?;
        let heads = keys.usize_or(&["num_attention_heads", "n_heads"], own.then_some(8))?;
        let kv_heads = keys
            .usize_or(&["num_key_value_heads", "n_kv_heads"], Some(if own { 2 } else { heads }))?;
        let default_head_dim = spec.transformers_head_dim.filter(|_| !own);
        let default_head_dim = default_head_dim.unwrap_or((hidden / heads).max(1));
        let head_dim = keys.usize_or(&["head_dim"], Some(default_head_dim))?;
        let intermediate = keys.usize_or(
            &["intermediate_size", "hidden_dim"],
            own.then(|| (spec.intermediate_size)(hidden)),
        )?;
        let max_position_embeddings =
            keys.usize_or(&["max_position_embeddings", "max_seq_len"], Some(32_768))?;
        let (rope_theta, rope_scaling) =
            rotary::read(&keys, own, max_position_embeddings, &mut warnings)?;
        if let (Some((_, a)), Some((_, b))) = (keys.find(&["dtype"]), keys.find(&["torch_dtype"]))
            && a != b
        {
            warnings.push(format!(
                "{}: dtype is {a} and torch_dtype is {b}: Transformers takes the former, mmx the tensors' own types",
                path.display()
            ));
        }
        let eps_default =
            if own { spec.minimind_rms_norm_eps } else { spec.transformers_rms_norm_eps };
        let mut config = Self {
            family,
            vocab_size: keys.usize_or(&["vocab_size"], own.then_some(6400))?,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: keys
                .usize_or(&["num_hidden_layers", "n_layers"], own.then_some(8))?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: keys.f64_or(&["rms_norm_eps", "norm_eps"], Some(eps_default))?,
            rope_theta,
            rope_scaling,
            // absent means tied for MiniMind and Granite here, untied for Transformers' classes
            tie_word_embeddings: keys.bool_or("tie_word_embeddings", own)?,
            moe: match &spec.moe {
                Some(of_family) => Some((of_family.from_config_json)(&keys, intermediate)?),
                None => None,
            },
            bos_token_id: keys.ids_or("bos_token_id", &[1])?[0],
            eos_token_id: keys.ids_or("eos_token_id", &[2])?,
            pad_token_id: keys.ids_or("pad_token_id", &[0])?[0],
        };
        reject_what_the_families_lack(&keys, family)?;
        warnings.extend(config.drop_ids_beyond_vocabulary(path));
        config.check(path)?;
        Ok((config, warnings))
    }

    /// Special ids beyond the vocabulary stand for nothing, and no reader takes them from a file:
    /// they are dropped (of bos, pad and the last eos the usual ids are assumed). Returns a
    /// sentence for each.
    fn drop_ids_beyond_vocabulary(&mut self, path: &Path) -> Vec<String> {
        let vocab = self.vocab_size;
        let beyond = |id: u32| id as usize >= vocab;
        let usual = |id: u32| if beyond(id) { 0 } else { id };
        let mut said = Vec::new();
        let mut say = |key: &str, id: u32, then: String| {
            said.push(format!(
                "{}: key {key}: expected an id below vocab_size ({vocab}), found {id}: {then}",
                path.display()
            ));
        };
        for (key, id, other) in [
            ("bos_token_id", &mut self.bos_token_id, usual(1)),
            ("pad_token_id", &mut self.pad_token_id, usual(0)),
        ] {
            if beyond(*id) {
                say(key, *id, format!("{other} is assumed"));
                *id = other;
            }
        }
        let dropped: Vec<u32> = self.eos_token_id.extract_if(.., |id| beyond(*id)).collect();
        for id in dropped {
            say("eos_token_id", id, "left out".to_owned());
        }
        if self.eos_token_id.is_empty() {
            self.eos_token_id.push(usual(2));
        }
        said
    }

    /// config.json of the stock Transformers class, for Transformers 4.5x and 5.x, vLLM and
    /// llama.cpp's converter. `dtype` is that of the weights beside it.
    ///
    /// # Errors
    /// See [`Config::check_carried_by`].
    pub fn to_transformers_json(&self, dtype: Dtype) -> Result<Value> {
        self.check_carried_by(Layout::Transformers)?;
        let mut out = Map::new();
        let mut set = |key: &str, value: Value| out.insert(key.to_owned(), value);
        set("architectures", json!([self.family.transformers_class()]));
        set("model_type", json!(self.family.transformers_model_type()));
        self.shared_json(&mut set, dtype);
        // Transformers 5 spells the rotary settings so; 4.x reads the top-level keys
        let mut rope = json!({"rope_type": "default", "rope_theta": self.rope_theta});
        if let Some(scaling) = &self.rope_scaling {
            let scaling = scaling.to_json();
            set("rope_scaling", scaling.clone());
            rope = scaling;
            rope["rope_theta"] = json!(self.rope_theta);
        }
        set("rope_parameters", rope);
        let spec = self.family.spec();
        let mut own = (spec.transformers_keys)(self);
        if let (Some(moe), Some(of_family)) = (&self.moe, &spec.moe) {
            own.extend((of_family.transformers_keys)(self, moe));
        }
        for (key, value) in own {
            set(key, value);
        }
        Ok(Value::Object(out))
    }

    /// config.json in MiniMind's own form (`model_type: "minimind"`), which carries every model.
    pub fn to_minimind_json(&self, dtype: Dtype) -> Value {
        let mut out = Map::new();
        let mut set = |key: &str, value: Value| out.insert(key.to_owned(), value);
        set("architectures", json!(["MiniMindForCausalLM"]));
        set("model_type", json!("minimind"));
        set("kind", json!(self.family.name()));
        self.shared_json(&mut set, dtype);
        set("head_dim", json!(self.head_dim));
        set("use_moe", json!(self.moe.is_some()));
        if let Some(scaling) = &self.rope_scaling {
            set("rope_scaling", scaling.to_json());
        }
        if let (Some(moe), Some(of_family)) = (&self.moe, &self.family.spec().moe) {
            for (key, value) in (of_family.minimind_keys)(moe) {
                set(key, value);
            }
        }
        Value::Object(out)
    }

    fn shared_json(&self, set: &mut impl FnMut(&str, Value) -> Option<Value>, dtype: Dtype) {
        set("vocab_size", json!(self.vocab_size));
        set("hidden_size", json!(self.hidden_size));
        set("intermediate_size", json!(self.intermediate_size));
        set("num_hidden_layers", json!(self.num_hidden_layers));
        set("num_attention_heads", json!(self.num_attention_heads));
        set("num_key_value_heads", json!(self.num_key_value_heads));
        set("hidden_act", json!("silu"));
        set("max_position_embeddings", json!(self.max_position_embeddings));
        set("rms_norm_eps", json!(self.rms_norm_eps));
        set("rope_theta", json!(self.rope_theta));
        set("attention_bias", json!(false));
        set("attention_dropout", json!(0.0));
        set("initializer_range", json!(INITIALIZER_RANGE));
        set("use_cache", json!(true));
        set("tie_word_embeddings", json!(self.tie_word_embeddings));
        set("bos_token_id", json!(self.bos_token_id));
        let eos = match self.eos_token_id.as_slice() {
            [one] => json!(one),
            many => json!(many),
        };
        set("eos_token_id", eos);
        set("pad_token_id", json!(self.pad_token_id));
        set("torch_dtype", json!(dtype.torch_name()));
        set("dtype", json!(dtype.torch_name()));
    }
}

impl RopeScaling {
    fn to_json(&self) -> Value {
        // `type` is what Transformers before 4.43 called it
        let mut out =
            json!({"rope_type": self.kind(), "type": self.kind(), "factor": self.factor()});
        let mut set = |key: &str, value: Value| out[key] = value;
        let original = "original_max_position_embeddings";
        match self {
            Self::Linear { .. } | Self::Dynamic { .. } => {}
            Self::Yarn(yarn) => {
                set(original, json!(yarn.original_max_position_embeddings));
                set("beta_fast", json!(yarn.beta_fast));
                set("beta_slow", json!(yarn.beta_slow));
                set("attention_factor", json!(yarn.attention_factor));
            }
            Self::Llama3(llama3) => {
                set(original, json!(llama3.original_max_position_embeddings));
                set("low_freq_factor", json!(llama3.low_freq_factor));
                set("high_freq_factor", json!(llama3.high_freq_factor));
            }
        }
        out
    }
}

fn family(keys: &Keys<'_>) -> Result<Family> {
    if let Some((key, kind)) = keys.find(&["kind"]) {
        return Family::by(Family::name, kind.as_str().unwrap_or_default())
            .map_err(|names| keys.error(&key, &names, kind));
    }
    if !keys.is_minimind() {
        let found = keys.object.get("model_type").and_then(Value::as_str).unwrap_or_default();
        return Family::by(Family::transformers_model_type, found).map_err(|names| {
            let message = format!("expected minimind, {names}, found {found}");
            Error::key(keys.path, "model_type", message)
        });
    }
    // The 2026 reference's keys, and its epsilon where none is there, tell MiniMind-3 from
    // MiniMind2.
    let third = match keys.find(&["qk_norm"]).and_then(|(_, v)| v.as_bool()) {
        Some(qk_norm) => qk_norm,
        None if keys.has_any(&["num_experts", "moe_intermediate_size", "router_aux_loss_coef"]) => {
            true
        }
        None if keys.has_any(&["n_routed_experts", "aux_loss_alpha", "seq_aux", "n_layers"]) => {
            false
        }
        None => keys.f64_or(&["rms_norm_eps", "norm_eps"], Some(1e-6))? < 5e-6,
    };
    let moe = match keys.find(&["use_moe"]) {
        Some((key, v)) => v.as_bool().ok_or_else(|| keys.error(&key, "true or false", v))?,
        None => keys.has_any(&["n_routed_experts", "num_experts"]),
    };
    Ok(match (third, moe) {
        (false, false) => Family(&minimind2::SPEC),
        (false, true) => Family(&minimind2_moe::SPEC),
        (true, false) => Family(&minimind3::SPEC),
        (true, true) => Family(&minimind3_moe::SPEC),
    })
}

/// A stock class may have parts that no family has: refuse them rather than drop
/// them.
fn reject_what_the_families_lack(keys: &Keys<'_>, family: Family) -> Result<()> {
    for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
        if keys.bool_or(key, false)? {
            return Err(Error::key(keys.path, key, "expected false, found true"));
        }
    }
    if let Some((key, v)) = keys.find(&["hidden_act"])
        && v.as_str() != Some("silu")
    {
        return Err(keys.error(&key, "\"silu\"", v));
    }
    (family.spec().check_config_json)(keys)
}
