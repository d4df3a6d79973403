//! A configuration as GGUF keys, both ways (docs/formats/gguf.md).

use std::path::Path;

use super::config::{Config, Family, RopeScaling, Yarn};
use super::keys::ArchKeys;
use super::weight::Layout;
use crate::error::{Error, Result};
use crate::gguf::{Metadata, Value};

/// The `attn_factor` that gives a model's attention factor: ggml's YaRN multiplies cosine and sine
/// by (1 + 0.1 ln factor) * attn_factor.
fn ggml_attention_factor(yarn: &Yarn) -> f64 {
    yarn.attention_factor / (1.0 + 0.1 * yarn.factor.ln())
}

impl Config {
    /// The `{arch}.*` keys, in the order they are written. Every reader's needs are met: candle
    /// insists on `rope.dimension_count` for llama and on the key and value lengths for qwen3.
    ///
    /// # Errors
    /// See [`Config::check_carried_by`].
    pub fn to_gguf_keys(&self) -> Result<Vec<(String, Value)>> {
        self.check_carried_by(Layout::Gguf)?;
        let arch = self.family.gguf_arch();
        let mut keys = Vec::new();
        let mut set = |key: &str, value: Value| keys.push((format!("{arch}.{key}"), value));
        // every dimension was read as at most 2^31 (Config::from_json)
        let int = |n: usize| Value::U32(n as u32);
        let float = |x: f64| Value::F32(x as f32);
        set("vocab_size", int(self.vocab_size));
        set("context_length", int(self.max_position_embeddings));
        set("embedding_length", int(self.hidden_size));
        set("block_count", int(self.num_hidden_layers));
        set("feed_forward_length", int(self.intermediate_size));
        set("attention.head_count", int(self.num_attention_heads));
        set("attention.head_count_kv", int(self.num_key_value_heads));
        set("attention.key_length", int(self.head_dim));
        set("attention.value_length", int(self.head_dim));
        set("attention.layer_norm_rms_epsilon", float(self.rms_norm_eps));
        set("rope.dimension_count", int(self.head_dim));
        set("rope.freq_base", float(self.rope_theta));
        // Llama 3's is a tensor (rope_freqs.rs): llama.cpp aborts on a type that it does not know
        let by_key =
            self.rope_scaling.as_ref().filter(|kind| !matches!(kind, RopeScaling::Llama3(_)));
        if let Some(scaling) = by_key {
            set("rope.scaling.type", Value::String(scaling.kind().to_owned()));
            set("rope.scaling.factor", float(scaling.factor()));
        }
        if let Some(RopeScaling::Yarn(yarn)) = &self.rope_scaling {
            set("rope.scaling.original_context_length", int(yarn.original_max_position_embeddings));
            set("rope.scaling.attn_factor", float(ggml_attention_factor(yarn)));
        }
        if let (Some(moe), Some(of_family)) = (&self.moe, &self.family.spec().moe) {
            set("expert_count", int(moe.num_experts));
            set("expert_used_count", int(moe.num_experts_per_tok));
            for (key, value) in (of_family.gguf_keys)(self, moe) {
                set(key, value);
            }
        }
        Ok(keys)
    }

    /// Reads the keys of a GGUF of one of the families' architectures. `tied` is whether the file
    /// has no `output.weight`. Training-only settings (balancing loss) get the family's defaults.
    ///
    /// # Errors
    /// An unknown architecture, a missing key, a key of the wrong type or an impossible value.
    pub fn from_gguf_keys(metadata: &Metadata, path: &Path, tied: bool) -> Result<Self> {
        let found = metadata.string("general.architecture").unwrap_or("none");
        let family = Family::by(Family::gguf_arch, found).map_err(|names| {
            let message = format!("expected {names}, found {found}");
            Error::key(path, "general.architecture", message)
        })?;
        let keys = ArchKeys { path, metadata, arch: family.gguf_arch() };
        let int = |key: &str, default| keys.usize_or(key, default);
        let float = |key: &str, default| keys.f64_or(key, default);
        let hidden = int("embedding_length", None)?;
        let heads = int("attention.head_count", None)?;
        let head_dim = int("attention.key_length", Some((hidden / heads).max(1)))?;
        let value_dim = int("attention.value_length", Some(head_dim))?;
        let rope_dim = int("rope.dimension_count", Some(head_dim))?;
        for (key, dim) in
            [("attention.value_length", value_dim), ("rope.dimension_count", rope_dim)]
        {
            if dim != head_dim {
                return Err(keys.error(
                    key,
                    format!("expected attention.key_length ({head_dim}), found {dim}"),
                ));
            }
        }
        let tokens = metadata.get("tokenizer.ggml.tokens").and_then(Value::array_len);
        let of_family = family.spec().moe.as_ref();
        let intermediate =
            int("feed_forward_length", of_family.and_then(|moe| moe.gguf_feed_forward_length))?;
        let moe = match of_family {
            Some(of_family) => Some((of_family.from_gguf_keys)(&keys, head_dim, intermediate)?),
            None => None,
        };
        let rope_scaling = match keys.text("rope.scaling.type") {
            None | Some("none") => None,
            Some("linear") => {
                Some(RopeScaling::Linear { factor: float("rope.scaling.factor", None)? })
            }
            Some("yarn") => {
                let factor = float("rope.scaling.factor", None)?;
                let own = float("rope.scaling.attn_factor", Some(1.0))?;
                let mut yarn = Yarn {
                    factor,
                    original_max_position_embeddings: int(
                        "rope.scaling.original_context_length",
                        None,
                    )?,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    attention_factor: own * (1.0 + 0.1 * factor.ln()),
                };
                // float32 in the file: 1.0 comes back as 0.99999998
                if (yarn.attention_factor - 1.0).abs() < 1e-6 {
                    yarn.attention_factor = 1.0;
                }
                Some(RopeScaling::Yarn(yarn))
            }
            Some(other) => {
                return Err(keys.error(
                    "rope.scaling.type",
                    format!("expected linear, yarn or none, found {other}"),
                ));
            }
        };
        let id = |key: &str, default: u32| {
            metadata
                .get(key)
                .and_then(Value::as_u64)
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(default)
        };
        let mut eos_token_id = vec![id("tokenizer.ggml.eos_token_id", 2)];
        let eot = id("tokenizer.ggml.eot_token_id", eos_token_id[0]);
        if !eos_token_id.contains(&eot) {
            eos_token_id.push(eot);
        }
        let config = Self {
            family,
            vocab_size: int("vocab_size", tokens)?,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: int("block_count", None)?,
            num_attention_heads: heads,
            num_key_value_heads: int("attention.head_count_kv", Some(heads))?,
            head_dim,
            max_position_embeddings: int("context_length", None)?,
            rms_norm_eps: round_f32(float("attention.layer_norm_rms_epsilon", None)?),
            rope_theta: float("rope.freq_base", Some(10_000.0))?,
            rope_scaling,
            tie_word_embeddings: tied,
            moe,
            bos_token_id: id("tokenizer.ggml.bos_token_id", 1),
            eos_token_id,
            pad_token_id: id("tokenizer.ggml.padding_token_id", 0),
        };
        config.check(path)?;
        Ok(config)
    }
}

/// The shortest decimal that the float32 stands for: 1e-5 in a GGUF comes back as 1e-5, not
/// 9.99999975e-6.
fn round_f32(x: f64) -> f64 {
    (x as f32).to_string().parse().unwrap_or(x)
}
