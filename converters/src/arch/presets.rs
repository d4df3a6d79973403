//! The models mmx knows by name (docs/models.md), and `tiny` for tests and first steps.

use super::config::{Config, Family};
use super::family::{minimind2, minimind2_moe, minimind3, minimind3_moe};

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
    // (spec, layers, hidden, kv heads, q heads, rope theta)
    let (spec, layers, hidden, kv_heads, heads, theta) = match name {
        "minimind2-small" => (&minimind2::SPEC, 8, 512, 2, 8, 1e6),
        "minimind2" => (&minimind2::SPEC, 16, 768, 2, 8, 1e6),
        "minimind2-moe" => (&minimind2_moe::SPEC, 8, 640, 2, 8, 1e6),
        "minimind-v1-small" => (&minimind2::SPEC, 8, 512, 8, 16, 1e4),
        "minimind-v1-moe" => (&minimind2_moe::SPEC, 8, 512, 8, 16, 1e4),
        "minimind-v1" => (&minimind2::SPEC, 16, 768, 8, 16, 1e4),
        "minimind3" => (&minimind3::SPEC, 8, 768, 4, 8, 1e6),
        "minimind3-moe" => (&minimind3_moe::SPEC, 8, 768, 4, 8, 1e6),
        "tiny" => (&minimind2::SPEC, 2, 64, 2, 4, 1e6),
        _ => return None,
    };
    let intermediate_size = (spec.intermediate_size)(hidden);
    Some(Config {
        family: Family(spec),
        vocab_size: 6400,
        hidden_size: hidden,
        intermediate_size,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim: hidden / heads,
        max_position_embeddings: 32_768,
        rms_norm_eps: spec.minimind_rms_norm_eps,
        rope_theta: theta,
        rope_scaling: None,
        tie_word_embeddings: true,
        moe: spec.moe.as_ref().map(|of_family| (of_family.minimind)(intermediate_size)),
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
