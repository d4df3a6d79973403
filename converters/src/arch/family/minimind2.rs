//! MiniMind2 and v1, dense: Llama.

use serde_json::{Value, json};

use crate::arch::config::{Config, FamilySpec};

pub(in crate::arch) const SPEC: FamilySpec = FamilySpec {
    name: "minimind2",
    transformers_class: "LlamaForCausalLM",
    transformers_model_type: "llama",
    gguf_arch: "llama",
    unknown_to: &[],
    qk_norm: false,
    gguf_rotates_pairs: true,
    gguf_reads_rope_freqs: true,
    has_head_dim: true,
    transformers_head_dim: None,
    minimind_rms_norm_eps: 1e-5,
    transformers_rms_norm_eps: 1e-6,
    intermediate_size,
    check_config_json: |_| Ok(()),
    transformers_keys,
    moe: None,
};

/// 64 * ceil(floor(8 * hidden / 3) / 64). Source: the 2025 reference's configuration class.
pub(super) fn intermediate_size(hidden: usize) -> usize {
    (8 * hidden / 3).div_ceil(64) * 64
}

fn transformers_keys(config: &Config) -> Vec<(&'static str, Value)> {
    vec![
        ("mlp_bias", json!(false)),
        ("pretraining_tp", json!(1)),
        ("head_dim", json!(config.head_dim)),
    ]
}
