//! MiniMind2 and v1: Llama, and GraniteMoeShared for the mixture of experts.
//!
//! Routed experts are chosen top-k by softmax score, their weights divided by their sum; the shared
//! experts' output is added unweighted. Source of the public names: docs/formats/transformers.md.

use super::config::{Config, Moe};
use super::weight::{Place, Role, Row, Weight};

/// FFN width where config.json gives none: 64 * ceil(floor(8 * hidden / 3) / 64).
pub(super) fn default_intermediate_size(hidden: usize) -> usize {
    (8 * hidden / 3).div_ceil(64) * 64
}

/// Router, routed and shared experts of one layer.
pub(super) fn expert_rows(config: &Config, moe: &Moe, layer: usize, rows: &mut Vec<Weight>) {
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
