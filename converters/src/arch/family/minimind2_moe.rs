//! MiniMind2 and v1 with a mixture of experts: GraniteMoeShared.
//!
//! Routed experts are chosen top-k by softmax score, their weights divided by their sum; the shared
//! experts' output is added unweighted. Source of the public names: docs/formats/transformers.md.

use serde_json::{Value, json};

use super::minimind2;
use crate::arch::config::{AuxLoss, Config, FamilySpec, Moe, MoeSpec};
use crate::arch::keys::{ArchKeys, Keys};
use crate::arch::weight::{Place, Role, Row, Weight};
use crate::error::{Error, Result};
use crate::gguf;

pub(in crate::arch) const SPEC: FamilySpec = FamilySpec {
    name: "minimind2-moe",
    transformers_class: "GraniteMoeSharedForCausalLM",
    transformers_model_type: "granitemoeshared",
    gguf_arch: "granitemoe",
    unknown_to: &[
        "candle",
        "mistral.rs",
        "Transformers of GGUF",
        "MLX",
        "CTranslate2",
        "ONNX Runtime",
        "ONNX Runtime GenAI",
    ],
    has_head_dim: false,
    check_config_json,
    transformers_keys,
    moe: Some(MoeSpec {
        minimind,
        normalizes_single_expert: false,
        class_always_normalizes: true,
        rows,
        from_config_json,
        transformers_keys: transformers_expert_keys,
        minimind_keys,
        gguf_feed_forward_length: None,
        from_gguf_keys,
        gguf_keys,
    }),
    ..minimind2::SPEC
};

fn minimind(intermediate_size: usize) -> Moe {
    Moe {
        num_experts: 4,
        num_experts_per_tok: 2,
        intermediate_size,
        shared_experts: 1,
        norm_topk_prob: true,
        aux_loss: AuxLoss::PerSequence { alpha: 0.1 },
    }
}

/// Granite scales attention's scores by its own factor, and scales the embedding, every residual
/// and the logits: MiniMind2 is Granite with these values.
fn attention_scale(head_dim: usize) -> f64 {
    1.0 / (head_dim as f64).sqrt()
}

/// The sentence about a scale that differs.
fn wrong_scale(expected: f64, found: f64) -> Option<String> {
    let differs = (found - expected).abs() > 1e-6 * expected;
    differs.then(|| format!("expected {expected} (a MiniMind2 model), found {found}"))
}

fn check_config_json(keys: &Keys<'_>) -> Result<()> {
    if keys.is_minimind() {
        return Ok(());
    }
    let hidden = keys.usize_or(&["hidden_size"], None)?;
    let heads = keys.usize_or(&["num_attention_heads"], None)?;
    for (key, expected) in [
        ("embedding_multiplier", 1.0),
        ("residual_multiplier", 1.0),
        ("logits_scaling", 1.0),
        ("attention_multiplier", attention_scale(hidden / heads)),
    ] {
        if let Some(fault) = wrong_scale(expected, keys.f64_or(&[key], Some(1.0))?) {
            return Err(Error::key(keys.path, key, fault));
        }
    }
    Ok(())
}

fn from_config_json(keys: &Keys<'_>, intermediate: usize) -> Result<Moe> {
    let own = keys.is_minimind().then(|| minimind(intermediate));
    let shared_width = match keys.find(&["shared_intermediate_size"]) {
        Some((_, Value::Number(n))) if n.as_u64() == Some(0) => 0,
        Some(_) => keys.usize_or(&["shared_intermediate_size"], None)?,
        None => 0,
    };
    let shared_experts = match (keys.find(&["n_shared_experts"]), &own) {
        // LMConfig's is true: one module of shared experts
        (Some((_, Value::Bool(_))), Some(own)) => own.shared_experts,
        (Some((key, v)), _) => v
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n < 1 << 16)
            .ok_or_else(|| keys.error(&key, "a small whole number", v))?,
        (None, Some(own)) => own.shared_experts,
        (None, None) => shared_width / intermediate,
    };
    if own.is_none() && shared_experts * intermediate != shared_width {
        return Err(Error::key(
            keys.path,
            "shared_intermediate_size",
            format!(
                "expected a multiple of intermediate_size ({intermediate}), found {shared_width}"
            ),
        ));
    }
    let alpha = keys.f64_or(&["aux_loss_alpha", "router_aux_loss_coef"], Some(0.1))?;
    Ok(Moe {
        num_experts: keys.usize_or(
            &["n_routed_experts", "num_local_experts"],
            own.as_ref().map(|own| own.num_experts),
        )?,
        num_experts_per_tok: keys
            .usize_or(&["num_experts_per_tok"], own.as_ref().map(|own| own.num_experts_per_tok))?,
        intermediate_size: intermediate,
        shared_experts,
        // MiniMind divides only when k > 1; Granite's softmax over the chosen always does
        norm_topk_prob: keys.bool_or("norm_topk_prob", true)?,
        aux_loss: if keys.bool_or("seq_aux", true)? {
            AuxLoss::PerSequence { alpha }
        } else {
            AuxLoss::PerBatch { alpha }
        },
    })
}

fn transformers_keys(config: &Config) -> Vec<(&'static str, Value)> {
    vec![
        ("embedding_multiplier", json!(1.0)),
        ("residual_multiplier", json!(1.0)),
        ("logits_scaling", json!(1.0)),
        ("attention_multiplier", json!(attention_scale(config.head_dim))),
    ]
}

fn transformers_expert_keys(_: &Config, moe: &Moe) -> Vec<(&'static str, Value)> {
    let (alpha, per_sequence) = balancing(moe);
    vec![
        ("num_local_experts", json!(moe.num_experts)),
        ("num_experts", json!(moe.num_experts)), // TRL asks every mixture for it so
        ("num_experts_per_tok", json!(moe.num_experts_per_tok)),
        ("shared_intermediate_size", json!(moe.shared_experts * moe.intermediate_size)),
        ("router_aux_loss_coef", json!(alpha)),
        ("output_router_logits", json!(false)),
        // MiniMind's own keys, which mmx reads back to go on training; other readers ignore them
        ("seq_aux", json!(per_sequence)),
        ("n_shared_experts", json!(moe.shared_experts)),
    ]
}

fn minimind_keys(moe: &Moe) -> Vec<(&'static str, Value)> {
    let (alpha, per_sequence) = balancing(moe);
    vec![
        ("n_routed_experts", json!(moe.num_experts)),
        ("num_experts_per_tok", json!(moe.num_experts_per_tok)),
        ("n_shared_experts", json!(moe.shared_experts)),
        ("norm_topk_prob", json!(moe.norm_topk_prob)),
        ("aux_loss_alpha", json!(alpha)),
        ("seq_aux", json!(per_sequence)),
        ("scoring_func", json!("softmax")),
    ]
}

/// The balancing loss's coefficient, and whether it is taken per sequence.
fn balancing(moe: &Moe) -> (f64, bool) {
    match moe.aux_loss {
        AuxLoss::PerSequence { alpha } => (alpha, true),
        AuxLoss::PerBatch { alpha } => (alpha, false),
        AuxLoss::Switch { coefficient } => (coefficient, false),
    }
}

fn gguf_keys(config: &Config, moe: &Moe) -> Vec<(&'static str, gguf::Value)> {
    use gguf::Value::{F32, U32};
    vec![
        (
            "expert_shared_feed_forward_length",
            U32((moe.shared_experts * moe.intermediate_size) as u32),
        ),
        ("attention.scale", F32(attention_scale(config.head_dim) as f32)),
        ("embedding_scale", F32(1.0)),
        ("residual_scale", F32(1.0)),
        ("logit_scale", F32(1.0)),
    ]
}

fn from_gguf_keys(keys: &ArchKeys<'_>, head_dim: usize, feed_forward: usize) -> Result<Moe> {
    for (key, expected) in [
        ("logit_scale", 1.0),
        ("residual_scale", 1.0),
        ("embedding_scale", 1.0),
        ("attention.scale", attention_scale(head_dim)),
    ] {
        let found = keys.f64_or(key, Some(expected))?;
        // 0 stands for "none" in these keys
        if let Some(fault) = wrong_scale(expected, found).filter(|_| found != 0.0) {
            return Err(keys.error(key, fault));
        }
    }
    let key = "expert_shared_feed_forward_length";
    let shared = match keys.get(key) {
        Some(v) if v.as_u64() == Some(0) => 0,
        _ => keys.usize_or(key, Some(feed_forward))?,
    };
    if !shared.is_multiple_of(feed_forward) {
        return Err(keys.error(
            key,
            format!("expected a multiple of feed_forward_length ({feed_forward}), found {shared}"),
        ));
    }
    Ok(Moe {
        num_experts: keys.usize_or("expert_count", None)?,
        num_experts_per_tok: keys.usize_or("expert_used_count", None)?,
        shared_experts: shared / feed_forward,
        ..minimind(feed_forward)
    })
}

/// Router, routed and shared experts of one layer.
fn rows(config: &Config, moe: &Moe, layer: usize, rows: &mut Vec<Weight>) {
    let (hidden, ffn, experts) = (config.hidden_size, moe.intermediate_size, moe.num_experts);
    let base = format!("model.layers.{layer}");
    let blk = format!("blk.{layer}");

    let mut router = Row::plain(
        &format!("{base}.mlp.gate"),
        &format!("{blk}.ffn_gate_inp"),
        &[experts, hidden],
        Role::Router,
    );
    router.transformers =
        Place::whole(format!("{base}.block_sparse_moe.router.layer.weight"), &[experts, hidden]);
    router.transformers5 =
        Some(Place::whole(format!("{base}.block_sparse_moe.router.weight"), &[experts, hidden]));
    router.layer = Some(layer);
    rows.push(router);

    // (projection, GGUF stack, shape, first row in Granite's input_linear: gate rows, then up rows)
    let projections = [
        ("gate_proj", "ffn_gate", [ffn, hidden], Role::Gate, 0),
        ("up_proj", "ffn_up", [ffn, hidden], Role::Up, ffn),
        ("down_proj", "ffn_down", [hidden, ffn], Role::Down, 0),
    ];
    for expert in 0..experts {
        for (projection, stack, shape, role, first_row) in projections {
            let mut row =
                Row::plain(&format!("{base}.mlp.experts.{expert}.{projection}"), "", &shape, role);
            let (granite, granite5, granite_rows) = match role {
                Role::Down => ("output_linear", "experts.down_proj", hidden),
                _ => ("input_linear", "experts.gate_up_proj", 2 * ffn),
            };
            let stack_of = |tensor: String, rows: usize| {
                Row::slice_of_stack(tensor, [experts, rows, shape[1]], expert, first_row, &shape)
            };
            row.transformers =
                stack_of(format!("{base}.block_sparse_moe.{granite}.weight"), granite_rows);
            row.transformers5 =
                Some(stack_of(format!("{base}.block_sparse_moe.{granite5}"), granite_rows));
            row.gguf = Row::slice_of_stack(
                format!("{blk}.{stack}_exps.weight"),
                [experts, shape[0], shape[1]],
                expert,
                0,
                &shape,
            );
            row.layer = Some(layer);
            rows.push(row);
        }
    }

    // Several shared experts are one wider one exactly: outputs of gate and up side by side, inputs
    // of down.
    let shared = moe.shared_experts * ffn;
    for expert in 0..moe.shared_experts {
        for (projection, gguf, shape, role, _) in projections {
            let mut row = Row::plain(
                &format!("{base}.mlp.shared_experts.{expert}.{projection}"),
                "",
                &shape,
                role,
            );
            let start = expert * ffn;
            let block = |tensor: String, shape_of: [usize; 2], offset: [usize; 2]| Place {
                tensor,
                shape: shape_of.to_vec(),
                offset: offset.to_vec(),
                extent: shape.to_vec(),
            };
            let granite_in = format!("{base}.shared_mlp.input_linear.weight");
            row.transformers = match role {
                Role::Gate => block(granite_in, [2 * shared, hidden], [start, 0]),
                Role::Up => block(granite_in, [2 * shared, hidden], [shared + start, 0]),
                _ => block(
                    format!("{base}.shared_mlp.output_linear.weight"),
                    [hidden, shared],
                    [0, start],
                ),
            };
            row.gguf = match role {
                Role::Down => {
                    block(format!("{blk}.{gguf}_shexp.weight"), [hidden, shared], [0, start])
                }
                _ => block(format!("{blk}.{gguf}_shexp.weight"), [shared, hidden], [start, 0]),
            };
            row.layer = Some(layer);
            rows.push(row);
        }
    }
}
