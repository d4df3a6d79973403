//! MiniMind-3: Qwen3, and Qwen3-MoE for the mixture of experts (no shared expert).

use super::config::{Config, Moe, RopeScaling};
use super::weight::{Role, Row, Weight};

/// MiniMind-3's `inference_rope_scaling: true`. Source: the 2026 reference's configuration class.
pub(super) const MINIMIND3_YARN: RopeScaling = RopeScaling {
    factor: 16.0,
    original_max_position_embeddings: 2048,
    beta_fast: 32.0,
    beta_slow: 1.0,
    attention_factor: 1.0,
};

/// FFN width where config.json gives none: 64 * ceil(pi * hidden / 64).
pub(super) fn default_intermediate_size(hidden: usize) -> usize {
    (std::f64::consts::PI * hidden as f64 / 64.0).ceil() as usize * 64
}

/// Router and routed experts of one layer.
pub(super) fn expert_rows(config: &Config, moe: &Moe, layer: usize, rows: &mut Vec<Weight>) {
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
