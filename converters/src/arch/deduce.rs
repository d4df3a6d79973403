//! A configuration read off the tensors of a model that came without one.
//!
//! In: the shapes of its tensors under MiniMind's names. Out: the configuration, and a sentence that
//! says what the tensors do not tell and the reference's defaults fill in: heads without norms of
//! their own, the base of the rotary positions, the norms' epsilon, experts per token.

use std::path::Path;

use super::config::{Config, Family, FamilySpec};
use super::family::{minimind2, minimind2_moe, minimind3, minimind3_moe};
use super::presets;
use crate::error::{Error, Result};

/// What a file of weights shows of its model.
pub struct Shown<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// Number of layers.
    pub layers: usize,
    /// The shape of a tensor, by MiniMind's name.
    pub shape: &'a dyn Fn(&str) -> Option<Vec<usize>>,
    /// What the file calls the tensor of MiniMind's name, for messages.
    pub called: &'a dyn Fn(&str) -> String,
    /// The output head is the embedding.
    pub tied: bool,
    /// Longest sequence, tokens, where a table in the file shows it.
    pub longest: Option<usize>,
}

impl Shown<'_> {
    fn fault(&self, name: &str, message: &str) -> Error {
        let text = format!("tensor {}: {message}", (self.called)(name));
        Error::format(self.path, text)
            .with_hint("`mmx import` with `preset` or `config` says what the model is")
    }

    fn matrix(&self, name: &str) -> Result<[usize; 2]> {
        match (self.shape)(name).as_deref() {
            Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok([rows, columns]),
            Some(other) => {
                Err(self.fault(name, &format!("expected two dimensions, found shape {other:?}")))
            }
            None => Err(self.fault(
                name,
                "expected it, since there is no config.json with the file, found none",
            )),
        }
    }
}

/// Heads, key and value heads, width of a head, base of the rotary positions.
type Attention = (usize, usize, usize, f64);

/// The configuration of a file of weights, and a sentence that names the model and what was assumed
/// of it.
///
/// # Errors
/// A tensor that a configuration needs is missing or has a shape of no published kind, by name.
pub fn from_tensors(shown: &Shown<'_>) -> Result<(Config, String)> {
    let in_layer = |name: &str| format!("model.layers.0.{name}.weight");
    let [vocab, hidden] = shown.matrix("model.embed_tokens.weight")?;
    let [queries, _] = shown.matrix(&in_layer("self_attn.q_proj"))?;
    let [keys, _] = shown.matrix(&in_layer("self_attn.k_proj"))?;
    let norm = (shown.shape)(&in_layer("self_attn.q_norm"));
    let router = (shown.shape)(&in_layer("mlp.gate"));
    let ffn_name = if router.is_some() { "mlp.experts.0.gate_proj" } else { "mlp.gate_proj" };
    let [ffn, _] = shown.matrix(&in_layer(ffn_name))?;
    let spec: &'static FamilySpec = match (norm.is_some(), router.is_some()) {
        (false, false) => &minimind2::SPEC,
        (false, true) => &minimind2_moe::SPEC,
        (true, false) => &minimind3::SPEC,
        (true, true) => &minimind3_moe::SPEC,
    };
    let mut moe = spec.moe.as_ref().map(|of_family| (of_family.minimind)(ffn));
    if let Some(moe) = &mut moe {
        moe.num_experts = shown.matrix(&in_layer("mlp.gate"))?[0];
        moe.num_experts_per_tok = moe.num_experts_per_tok.min(moe.num_experts);
        let shared = |i: &usize| {
            (shown.shape)(&in_layer(&format!("mlp.shared_experts.{i}.gate_proj"))).is_some()
        };
        moe.shared_experts = (0..).take_while(shared).count();
    }
    let known = presets::NAMES.iter().find(|name| {
        presets::preset(name).is_some_and(|preset| {
            preset.family == Family(spec)
                && preset.num_hidden_layers == shown.layers
                && preset.hidden_size == hidden
                && preset.intermediate_size == ffn
                && preset.num_key_value_heads * preset.head_dim == keys
        })
    });
    let preset = known.and_then(|name| presets::preset(name));
    let (heads, kv_heads, head_dim, rope_theta) = match (norm.as_deref(), preset) {
        (Some(&[head_dim]), _)
            if head_dim > 0
                && queries.is_multiple_of(head_dim)
                && keys.is_multiple_of(head_dim) =>
        {
            (queries / head_dim, keys / head_dim, head_dim, 1e6)
        }
        (Some(&[head_dim]), _) if head_dim > 0 => {
            // the one of the three that the other two contradict
            let fits = |rows: usize| rows.is_multiple_of(head_dim);
            let (name, found) = match (fits(queries), fits(keys)) {
                (true, _) => ("self_attn.k_proj", format!("{keys} rows")),
                (_, true) => ("self_attn.q_proj", format!("{queries} rows")),
                _ => ("self_attn.q_norm", format!("a width of {head_dim} for {queries} rows of q")),
            };
            let message = format!(
                "expected heads of one width ({head_dim} by self_attn.q_norm), found {found}"
            );
            return Err(shown.fault(&in_layer(name), &message));
        }
        (Some(other), _) => {
            let message = format!("expected the width of a head, found shape {other:?}");
            return Err(shown.fault(&in_layer("self_attn.q_norm"), &message));
        }
        (None, Some(known)) => {
            let of = known.num_attention_heads;
            (of, known.num_key_value_heads, known.head_dim, known.rope_theta)
        }
        (None, None) => by_ratio(shown, hidden, keys)?,
    };
    let config = Config {
        family: Family(spec),
        vocab_size: vocab,
        hidden_size: hidden,
        intermediate_size: ffn,
        num_hidden_layers: shown.layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        max_position_embeddings: shown.longest.unwrap_or(32_768),
        rms_norm_eps: spec.minimind_rms_norm_eps,
        rope_theta,
        rope_scaling: None,
        tie_word_embeddings: shown.tied,
        moe,
        bos_token_id: 1,
        eos_token_id: vec![2],
        pad_token_id: 0,
    };
    config.check(shown.path)?;
    let sentence = sentence(&config, known.copied(), shown.path);
    Ok((config, sentence))
}

/// The two published divisions of a width into heads: MiniMind2's 8 heads, 2 of them of keys and
/// values, and v1's 16 and 8. Source: the reference's configuration classes, 2024 and 2025.
fn by_ratio(shown: &Shown<'_>, hidden: usize, keys: usize) -> Result<Attention> {
    let name = "model.layers.0.self_attn.k_proj.weight";
    for (heads, kv_heads, theta) in [(8, 2, 1e6), (16, 8, 1e4)] {
        let head_dim = hidden / heads;
        if hidden.is_multiple_of(heads) && head_dim * kv_heads == keys {
            return Ok((heads, kv_heads, head_dim, theta));
        }
    }
    let message = format!(
        "expected {} rows (8 heads, 2 for keys, as MiniMind2) or {} (16 and 8, as v1) for a hidden size of {hidden}, found {keys}",
        hidden / 4,
        hidden / 2
    );
    Err(shown.fault(name, &message))
}

fn sentence(config: &Config, preset: Option<&str>, path: &Path) -> String {
    let name = preset.unwrap_or_else(|| config.family.name());
    let mut assumed = vec![
        format!("rope theta {}", config.rope_theta),
        format!("norms' epsilon {}", config.rms_norm_eps),
    ];
    if !config.family.qk_norm() {
        let (heads, keys) = (config.num_attention_heads, config.num_key_value_heads);
        assumed.insert(0, format!("{heads} heads, {keys} for keys and values"));
    }
    if let Some(moe) = &config.moe {
        assumed.push(format!("{} of {} experts a token", moe.num_experts_per_tok, moe.num_experts));
    }
    format!(
        "{}: no config.json beside it: by its tensors {name} ({} layers, hidden size {}); assumed: {}",
        path.display(),
        config.num_hidden_layers,
        config.hidden_size,
        assumed.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::weights;
    use super::*;

    fn deduced(config: &Config, change: &[(&str, Option<Vec<usize>>)]) -> Result<(Config, String)> {
        let mut shapes: HashMap<String, Vec<usize>> =
            weights(config).into_iter().map(|weight| (weight.name, weight.shape)).collect();
        for (name, shape) in change {
            match shape {
                Some(shape) => shapes.insert((*name).to_owned(), shape.clone()),
                None => shapes.remove(*name),
            };
        }
        from_tensors(&Shown {
            path: Path::new("full_sft_512.pth"),
            layers: config.num_hidden_layers,
            shape: &|name| shapes.get(name).cloned(),
            called: &str::to_owned,
            tied: config.tie_word_embeddings,
            longest: None,
        })
    }

    #[test]
    fn every_preset_is_known_again_by_its_tensors() {
        for name in presets::NAMES {
            let preset = presets::preset(name).expect("a known preset");
            let (config, sentence) = deduced(&preset, &[]).expect(name);
            assert_eq!(config, preset, "{name}");
            assert!(sentence.contains(&format!("by its tensors {name} ")), "{sentence}");
        }
    }

    #[test]
    fn a_model_of_no_preset_gets_the_heads_of_its_generation() {
        let mut other = presets::preset("minimind2-small").expect("a preset");
        (other.hidden_size, other.head_dim, other.num_hidden_layers) = (256, 32, 3);
        other.intermediate_size = 700;
        assert_eq!(deduced(&other, &[]).expect("MiniMind2's").0, other);
        let mut first = presets::preset("minimind-v1-moe").expect("a preset");
        (first.hidden_size, first.head_dim, first.num_hidden_layers) = (256, 16, 5);
        let (config, sentence) = deduced(&first, &[]).expect("v1's");
        assert_eq!((config.num_attention_heads, config.rope_theta), (16, 1e4));
        assert!(sentence.contains("2 of 4 experts a token"), "{sentence}");
    }

    #[test]
    fn rejects_tensors_that_are_missing_or_of_no_published_shape_by_name() {
        let small = presets::preset("minimind2-small").expect("a preset");
        let third = presets::preset("minimind3").expect("a preset");
        let k = "model.layers.0.self_attn.k_proj.weight";
        for (config, name, shape, words) in [
            (&small, "model.embed_tokens.weight", None, "found none"),
            (&small, k, None, "found none"),
            (&small, k, Some(vec![100, 512]), "expected 128 rows"),
            (&small, k, Some(vec![128]), "found shape [128]"),
            (&third, k, Some(vec![100, 768]), "found 100 rows"),
            (&third, "model.layers.0.self_attn.q_norm.weight", Some(vec![7]), "a width of 7"),
        ] {
            let error = deduced(config, &[(name, shape)]).expect_err(name);
            let text = error.to_string();
            assert!(text.contains(name) && text.contains(words), "{text}");
            assert!(error.hint().is_some_and(|hint| hint.contains("`preset`")), "{text}");
        }
    }
}
