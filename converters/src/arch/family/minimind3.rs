//! MiniMind-3, dense: Qwen3.

use serde_json::{Value, json};

use crate::arch::config::{Config, FamilySpec, RopeScaling, Yarn};
use crate::arch::keys::Keys;
use crate::error::Result;

pub(in crate::arch) const SPEC: FamilySpec = FamilySpec {
    name: "minimind3",
    transformers_class: "Qwen3ForCausalLM",
    transformers_model_type: "qwen3",
    gguf_arch: "qwen3",
    unknown_to: &[],
    qk_norm: true,
    gguf_rotates_pairs: false,
    gguf_reads_rope_freqs: false,
    has_head_dim: true,
    transformers_head_dim: Some(128),
    minimind_rms_norm_eps: 1e-6,
    transformers_rms_norm_eps: 1e-6,
    intermediate_size,
    check_config_json,
    transformers_keys,
    moe: None,
};

/// MiniMind-3's `inference_rope_scaling: true`. Source: the 2026 reference's configuration class.
pub(in crate::arch) const MINIMIND3_YARN: RopeScaling = RopeScaling::Yarn(Yarn {
    factor: 16.0,
    original_max_position_embeddings: 2048,
    beta_fast: 32.0,
    beta_slow: 1.0,
    attention_factor: 1.0,
});

/// 64 * ceil(pi * hidden / 64). Source: the 2026 reference's configuration class.
pub(super) fn intermediate_size(hidden: usize) -> usize {
    (std::f64::consts::PI * hidden as f64 / 64.0).ceil() as usize * 64
}

/// Qwen3 knows layers with sliding windows; these families do not.
pub(super) fn check_config_json(keys: &Keys<'_>) -> Result<()> {
    if let Some((key, Value::Array(kinds))) = keys.find(&["layer_types"])
        && let Some(other) = kinds.iter().find(|kind| kind.as_str() != Some("full_attention"))
    {
        return Err(keys.error(&key, "\"full_attention\" for each layer", other));
    }
    Ok(())
}

pub(super) fn transformers_keys(config: &Config) -> Vec<(&'static str, Value)> {
    let mut keys = vec![
        ("head_dim", json!(config.head_dim)),
        ("use_sliding_window", json!(false)),
        ("sliding_window", Value::Null),
        // the layer from which windows would begin: mistral.rs refuses a Qwen3 without it
        ("max_window_layers", json!(config.num_hidden_layers)),
    ];
    if config.moe.is_none() {
        let kinds = vec!["full_attention"; config.num_hidden_layers];
        keys.push(("layer_types", json!(kinds))); // Qwen3-MoE has no such key
    }
    keys
}
