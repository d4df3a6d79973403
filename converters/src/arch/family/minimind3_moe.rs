//! MiniMind-3 with a mixture of experts: Qwen3-MoE (no shared expert).

use serde_json::{Value, json};

use super::minimind3;
use crate::arch::config::{AuxLoss, Config, FamilySpec, Moe, MoeSpec};
use crate::arch::keys::{ArchKeys, Keys};
use crate::arch::weight::{Role, Row, Weight};
use crate::error::Result;
use crate::gguf;

pub(in crate::arch) const SPEC: FamilySpec = FamilySpec {
    name: "minimind3-moe",
    transformers_class: "Qwen3MoeForCausalLM",
    transformers_model_type: "qwen3_moe",
    gguf_arch: "qwen3moe",
    unknown_to: &["CTranslate2", "ONNX Runtime GenAI"],
    moe: Some(MoeSpec {
        minimind,
        normalizes_single_expert: true,
        class_always_normalizes: false,
        rows,
        from_config_json,
        transformers_keys: transformers_expert_keys,
        minimind_keys,
        // no layer is dense
        gguf_feed_forward_length: Some(1),
        from_gguf_keys,
        gguf_keys,
    }),
    ..minimind3::SPEC
};

fn minimind(intermediate_size: usize) -> Moe {
    Moe {
        num_experts: 4,
        num_experts_per_tok: 1,
        intermediate_size,
        shared_experts: 0,
        norm_topk_prob: true,
        aux_loss: AuxLoss::Switch { coefficient: 5e-4 },
    }
}

fn from_config_json(keys: &Keys<'_>, intermediate: usize) -> Result<Moe> {
    let own = keys.is_minimind().then(|| minimind(intermediate));
    let default = |of: fn(&Moe) -> usize| own.as_ref().map(of);
    Ok(Moe {
        num_experts: keys
            .usize_or(&["num_experts", "num_local_experts"], default(|own| own.num_experts))?,
        num_experts_per_tok: keys
            .usize_or(&["num_experts_per_tok"], default(|own| own.num_experts_per_tok))?,
        intermediate_size: keys
            .usize_or(&["moe_intermediate_size"], default(|own| own.intermediate_size))?,
        shared_experts: 0,
        // Transformers' Qwen3MoeConfig defaults to false, the reference to true
        norm_topk_prob: keys.bool_or("norm_topk_prob", own.is_some())?,
        aux_loss: AuxLoss::Switch {
            coefficient: keys.f64_or(&["router_aux_loss_coef"], Some(5e-4))?,
        },
    })
}

fn transformers_expert_keys(_: &Config, moe: &Moe) -> Vec<(&'static str, Value)> {
    let mut keys = minimind_keys(moe);
    keys.extend([
        ("decoder_sparse_step", json!(1)),
        ("mlp_only_layers", json!([])),
        ("output_router_logits", json!(false)),
    ]);
    keys
}

fn minimind_keys(moe: &Moe) -> Vec<(&'static str, Value)> {
    let mut keys = vec![
        ("num_experts", json!(moe.num_experts)),
        ("num_experts_per_tok", json!(moe.num_experts_per_tok)),
        ("moe_intermediate_size", json!(moe.intermediate_size)),
        ("norm_topk_prob", json!(moe.norm_topk_prob)),
    ];
    if let AuxLoss::Switch { coefficient } = moe.aux_loss {
        keys.push(("router_aux_loss_coef", json!(coefficient)));
    }
    keys
}

fn gguf_keys(_: &Config, moe: &Moe) -> Vec<(&'static str, gguf::Value)> {
    vec![("expert_feed_forward_length", gguf::Value::U32(moe.intermediate_size as u32))]
}

fn from_gguf_keys(keys: &ArchKeys<'_>, _: usize, feed_forward: usize) -> Result<Moe> {
    let used = keys.usize_or("expert_used_count", None)?;
    let width = keys.usize_or("expert_feed_forward_length", Some((feed_forward / used).max(1)))?;
    Ok(Moe {
        num_experts: keys.usize_or("expert_count", None)?,
        num_experts_per_tok: used,
        ..minimind(width)
    })
}

/// Router and routed experts of one layer.
fn rows(config: &Config, moe: &Moe, layer: usize, rows: &mut Vec<Weight>) {
    let (hidden, ffn, experts) = (config.hidden_size, moe.intermediate_size, moe.num_experts);
    let base = format!("model.layers.{layer}.mlp");
    let blk = format!("blk.{layer}");

    let mut router = Row::plain(
        &format!("{base}.gate"),
        &format!("{blk}.ffn_gate_inp"),
        &[experts, hidden],
        Role::Router,
    );
    router.layer = Some(layer);
    rows.push(router);

    // (projection, GGUF stack, shape, Transformers 5's fused tensor, its rows, first row in it)
    let projections = [
        ("gate_proj", "ffn_gate", [ffn, hidden], Role::Gate, "gate_up_proj", 2 * ffn, 0),
        ("up_proj", "ffn_up", [ffn, hidden], Role::Up, "gate_up_proj", 2 * ffn, ffn),
        ("down_proj", "ffn_down", [hidden, ffn], Role::Down, "down_proj", hidden, 0),
    ];
    for expert in 0..experts {
        for (projection, stack, shape, role, fused, fused_rows, first_row) in projections {
            let mut row =
                Row::plain(&format!("{base}.experts.{expert}.{projection}"), "", &shape, role);
            row.transformers5 = Some(Row::slice_of_stack(
                format!("{base}.experts.{fused}"),
                [experts, fused_rows, shape[1]],
                expert,
                first_row,
                &shape,
            ));
            row.mlx = Some(Row::slice_of_stack(
                format!("{base}.switch_mlp.{projection}.weight"),
                [experts, shape[0], shape[1]],
                expert,
                0,
                &shape,
            ));
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
}
