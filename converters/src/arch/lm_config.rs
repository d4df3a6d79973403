//! Names of MiniMind's first class, `LMConfig` (2024 to April 2025), both ways: Meta's own names for
//! Llama, where `wq`, `wk`, `wv` and `wo` attend and `w1`, `w2` and `w3` are gate, down and up.
//!
//! That class turns neighbouring elements of a head together (complex numbers), so that rows of q
//! and k lie as a GGUF of `llama` holds them ([`super::rope::permute_rows`]). Source: the reference's
//! model/model.py of those versions.

/// Modules outside of the layers: today's name, the first class's.
const OUTSIDE: [(&str, &str); 3] =
    [("model.embed_tokens", "tok_embeddings"), ("model.norm", "norm"), ("lm_head", "output")];

/// Parts of a module's name within a layer: today's, the first class's.
const PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn", "attention"),
    ("q_proj", "wq"),
    ("k_proj", "wk"),
    ("v_proj", "wv"),
    ("o_proj", "wo"),
    ("mlp", "feed_forward"),
    ("gate_proj", "w1"),
    ("down_proj", "w2"),
    ("up_proj", "w3"),
];

/// The one module of shared experts, which today is the first of a list.
const SHARED: &str = "shared_experts";

/// The first class's name of a weight, by today's.
pub fn to_lm_config(name: &str) -> String {
    let (module, end) = match name.strip_suffix(".weight") {
        Some(module) => (module, ".weight"),
        None => (name, ""),
    };
    if let Some((_, first)) = OUTSIDE.iter().find(|(today, _)| *today == module) {
        return format!("{first}{end}");
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in module.strip_prefix("model.").unwrap_or(module).split('.') {
        if part == "0" && parts.last() == Some(&SHARED) {
            continue;
        }
        let known = PARTS.iter().find(|(today, _)| *today == part);
        parts.push(known.map_or(part, |(_, first)| first));
    }
    parts.join(".") + end
}

/// Today's name of a layer's module, by the first class's; nothing for other names.
pub fn from_lm_config(module: &str) -> Option<String> {
    let inner = module.strip_prefix("layers.")?;
    let mut parts = vec!["model", "layers"];
    for part in inner.split('.') {
        if parts.last() == Some(&SHARED) {
            parts.push("0");
        }
        let known = PARTS.iter().find(|(_, first)| *first == part);
        parts.push(known.map_or(part, |(today, _)| today));
    }
    Some(parts.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_to_the_first_class_and_back() {
        for (today, first) in [
            ("model.embed_tokens.weight", "tok_embeddings.weight"),
            ("model.norm.weight", "norm.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.3.input_layernorm.weight", "layers.3.attention_norm.weight"),
            ("model.layers.0.self_attn.q_proj.weight", "layers.0.attention.wq.weight"),
            ("model.layers.0.mlp.down_proj.weight", "layers.0.feed_forward.w2.weight"),
            ("model.layers.0.mlp.gate.weight", "layers.0.feed_forward.gate.weight"),
            (
                "model.layers.7.mlp.experts.0.up_proj.weight",
                "layers.7.feed_forward.experts.0.w3.weight",
            ),
            (
                "model.layers.7.mlp.shared_experts.0.gate_proj.weight",
                "layers.7.feed_forward.shared_experts.w1.weight",
            ),
        ] {
            assert_eq!(to_lm_config(today), first);
            if first.starts_with("layers.") {
                assert_eq!(from_lm_config(first).as_deref(), Some(today));
            }
        }
        assert_eq!(from_lm_config("model.layers.0.self_attn.q_proj"), None);
    }
}
