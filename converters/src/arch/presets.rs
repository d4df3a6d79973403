//! The models mmx knows by name (docs/models.md), and `tiny` for tests and first steps.

use super::config::{AuxLoss, Config, Moe};
use super::family::Family;
use super::{minimind2, minimind3};

/// Every preset's name, in the order of the documentation.
pub const NAMES: [&str; 9] = [
    "minimind2-small",
    "minimind2",
    "minimind2-moe",
    "minimind-v1-small",
    "minimind-v1-moe",
    "minimind-v1",
    "minimind3",
    "minimind3-moe",
    "tiny",
];

/// The configuration of a preset, or none for an unknown name.
pub fn preset(name: &str) -> Option<Config> {
    use Family::{MiniMind2, MiniMind2Moe, MiniMind3, MiniMind3Moe};
    // (family, layers, hidden, kv heads, q heads, rope theta)
    let (family, layers, hidden, kv_heads, heads, theta) = match name {
        "minimind2-small" => (MiniMind2, 8, 512, 2, 8, 1e6),
        "minimind2" => (MiniMind2, 16, 768, 2, 8, 1e6),
        "minimind2-moe" => (MiniMind2Moe, 8, 640, 2, 8, 1e6),
        "minimind-v1-small" => (MiniMind2, 8, 512, 8, 16, 1e4),
        "minimind-v1-moe" => (MiniMind2Moe, 8, 512, 8, 16, 1e4),
        "minimind-v1" => (MiniMind2, 16, 768, 8, 16, 1e4),
        "minimind3" => (MiniMind3, 8, 768, 4, 8, 1e6),
        "minimind3-moe" => (MiniMind3Moe, 8, 768, 4, 8, 1e6),
        "tiny" => (MiniMind2, 2, 64, 2, 4, 1e6),
        _ => return None,
    };
    let intermediate_size = if family.qk_norm() {
        minimind3::default_intermediate_size(hidden)
    } else {
        minimind2::default_intermediate_size(hidden)
    };
    let moe = match family {
        MiniMind2 | MiniMind3 => None,
        MiniMind2Moe => Some(Moe {
            num_experts: 4,
            num_experts_per_tok: 2,
            intermediate_size,
            shared_experts: 1,
            norm_topk_prob: true,
            aux_loss: AuxLoss::PerSequence { alpha: 0.1 },
        }),
        MiniMind3Moe => Some(Moe {
            num_experts: 4,
            num_experts_per_tok: 1,
            intermediate_size,
            shared_experts: 0,
            norm_topk_prob: true,
            aux_loss: AuxLoss::Switch { coefficient: 5e-4 },
        }),
    };
    Some(Config {
        family,
        vocab_size: 6400,
        hidden_size: hidden,
        intermediate_size,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim: hidden / heads,
        max_position_embeddings: 32_768,
        rms_norm_eps: if family.qk_norm() { 1e-6 } else { 1e-5 },
        rope_theta: theta,
        rope_scaling: None,
        tie_word_embeddings: true,
        moe,
        bos_token_id: 1,
        eos_token_id: vec![2],
        pad_token_id: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_published_number_of_parameters() {
        // millions, from the table of docs/models.md
        let published = [
            ("minimind2-small", 26),
            ("minimind2", 104),
            ("minimind2-moe", 145),
            ("minimind-v1-small", 26),
            ("minimind-v1", 108),
            ("minimind3", 64),
            ("minimind3-moe", 198),
        ];
        for (name, millions) in published {
            let (total, _) = preset(name).expect("a known preset").parameters();
            let found = total as f64 / 1e6;
            assert!(
                (found - f64::from(millions)).abs() < 1.0,
                "{name}: {found} M, published {millions} M"
            );
        }
        let (_, active) = preset("minimind3-moe").expect("a known preset").parameters();
        assert_eq!((active as f64 / 1e6).round(), 64.0, "minimind3-moe uses 64 M per token");
    }
}
