//! Adapters beside tensors that hold several weights: Transformers joins gate and up, puts shared
//! experts side by side, and stacks a layer's experts; mmx's table has each weight for itself. Each
//! weight gets its part of the factors, and the product stays what it was.
//!
//! Source: PEFT 0.21.2, `ParamWrapper.get_delta_weight` (how the factors of a stack lie), and its
//! `target_parameters` (how they are named).

use std::collections::{HashMap, HashSet};

use crate::arch::{Place, Weight};
use crate::model::adapter::Adapter;

/// The part of a joined tensor's adapter that is one weight's.
pub(super) struct Part {
    /// The weight's module.
    pub(super) module: String,
    /// Its factors.
    pub(super) adapter: Adapter,
    /// What the joined tensor is called, by which patterns of ranks and alphas match it.
    pub(super) joined: String,
}

/// A model's joined tensors, by what adapters beside them are called.
pub(super) struct Joined<'a> {
    /// The modules of the table.
    own: HashSet<&'a str>,
    /// The weights in the parameters of a module, and where they lie in them.
    places: HashMap<String, Vec<(&'a Weight, &'a Place)>>,
}

impl<'a> Joined<'a> {
    /// Those of a model's table.
    pub(super) fn of(weights: &'a [Weight]) -> Self {
        let own = weights.iter().filter_map(|w| w.name.strip_suffix(".weight")).collect();
        let mut places: HashMap<String, Vec<_>> = HashMap::new();
        for weight in weights {
            for place in std::iter::once(&weight.transformers).chain(&weight.transformers5) {
                if let Some((owner, _)) = place.tensor.rsplit_once('.') {
                    places.entry(owner.to_owned()).or_default().push((weight, place));
                }
            }
        }
        Self { own, places }
    }

    /// The parts of an adapter of `module`, one for each weight of the joined tensor that it lies
    /// beside. Nothing for a module of the table's own, or of no joined tensor of this shape.
    pub(super) fn parts(&self, module: &str, adapter: &Adapter) -> Vec<Part> {
        if self.own.contains(module) {
            return Vec::new();
        }
        // a module has a wrapper around it for each further parameter with an adapter
        let mut owner = module;
        while let Some(inner) = owner.strip_suffix(".base_layer") {
            owner = inner;
        }
        let places = self.places.get(owner).map_or(&[][..], Vec::as_slice);
        let Some((_, first)) = places.iter().find(|(_, place)| fits(adapter, place)) else {
            return Vec::new();
        };
        let beside = places.iter().filter(|(_, place)| place.tensor == first.tensor);
        beside.map(|(weight, place)| part(adapter, weight, place)).collect()
    }
}

fn fits(adapter: &Adapter, place: &Place) -> bool {
    match *place.shape {
        [outputs, inputs] => (adapter.outputs, adapter.inputs) == (outputs, inputs),
        [experts, outputs, inputs] => {
            (adapter.outputs, adapter.inputs) == (outputs, inputs)
                && adapter.rank().is_multiple_of(experts)
        }
        _ => false,
    }
}

/// Cuts a weight's part out of the factors. `place` is a matrix or a stack of matrices that fits.
fn part(adapter: &Adapter, weight: &Weight, place: &Place) -> Part {
    let (experts, expert) = match place.shape.len() {
        3 => (place.shape[0], place.offset[0]),
        _ => (1, 0),
    };
    let last = place.shape.len() - 1;
    let (row, rows) = (place.offset[last - 1], place.extent[last - 1]);
    let (column, columns) = (place.offset[last], place.extent[last]);
    let (all, rank) = (adapter.rank(), adapter.rank() / experts);
    // [experts * rank, in]: an expert's rows lie together
    let a = (expert * rank..(expert + 1) * rank)
        .flat_map(|r| &adapter.a[r * adapter.inputs + column..][..columns])
        .copied()
        .collect();
    // [out, rank * experts]: an expert's columns lie apart
    let b = (row..row + rows)
        .flat_map(|row| (0..rank).map(move |r| row * all + r * experts + expert))
        .map(|at| adapter.b[at])
        .collect();
    let named = |name: &str| name.strip_suffix(".weight").unwrap_or(name).to_owned();
    Part {
        module: named(&weight.name),
        adapter: Adapter { a, b, inputs: columns, outputs: rows, alpha: None },
        joined: named(&place.tensor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Layout, presets, weights};

    /// A small model of each mixture.
    fn table(name: &str) -> Vec<Weight> {
        let mut config = presets::preset(name).expect("a known preset");
        (config.vocab_size, config.num_hidden_layers, config.head_dim) = (10, 1, 2);
        (config.hidden_size, config.intermediate_size) = (16, 6);
        if let Some(moe) = &mut config.moe {
            moe.intermediate_size = 6;
            moe.shared_experts *= 2;
        }
        weights(&config)
    }

    fn counted(outputs: usize, inputs: usize, rank: usize) -> Adapter {
        let values = |n: usize| (0..n).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
        Adapter {
            a: values(rank * inputs),
            b: values(outputs * rank),
            inputs,
            outputs,
            alpha: None,
        }
    }

    /// B A of a stack's entry as PEFT's einsum `o r e, e r i -> e o i` has it.
    fn product(adapter: &Adapter, experts: usize, expert: usize, row: usize, column: usize) -> f32 {
        let rank = adapter.rank() / experts;
        (0..rank)
            .map(|r| {
                let b = adapter.b[row * adapter.rank() + r * experts + expert];
                b * adapter.a[(expert * rank + r) * adapter.inputs + column]
            })
            .sum()
    }

    #[test]
    fn every_weight_of_a_joined_tensor_gets_its_block_of_the_product() {
        let layer = "model.layers.0";
        for (preset, module, outputs, inputs, parameter) in [
            ("minimind2-moe", "shared_mlp.input_linear", 24, 16, "shared_mlp.input_linear"),
            ("minimind2-moe", "shared_mlp.output_linear", 16, 12, "shared_mlp.output_linear"),
            ("minimind3-moe", "mlp.experts.base_layer", 12, 16, "mlp.experts.gate_up_proj"),
            ("minimind3-moe", "mlp.experts", 16, 6, "mlp.experts.down_proj"),
        ] {
            let table = table(preset);
            let (module, parameter) = (format!("{layer}.{module}"), format!("{layer}.{parameter}"));
            let experts = if parameter.contains("experts") { 4 } else { 1 };
            let adapter = counted(outputs, inputs, 3 * experts);
            let found = Joined::of(&table).parts(&module, &adapter);
            let mut entries = 0;
            for part in &found {
                assert_eq!((&part.joined, part.adapter.rank()), (&parameter, 3), "{module}");
                let weight = table
                    .iter()
                    .find(|w| w.name == format!("{}.weight", part.module))
                    .expect("a weight of the table");
                let layout = if experts > 1 { Layout::Transformers5 } else { Layout::Transformers };
                let place = weight.place(layout);
                let zero = vec![0.0; weight.elements()];
                let delta = part.adapter.merged(&zero, 1.0);
                let (expert, row, column) = match *place.offset {
                    [row, column] => (0, row, column),
                    [expert, row, column] => (expert, row, column),
                    _ => panic!("{place:?}"),
                };
                let width = weight.shape[1];
                for (i, found) in delta.iter().enumerate() {
                    let (r, c) = (row + i / width, column + i % width);
                    assert_eq!(*found, product(&adapter, experts, expert, r, c), "{}", part.module);
                }
                entries += delta.len();
            }
            assert_eq!(entries, experts * outputs * inputs, "{module}: all of the tensor, once");
        }
    }

    #[test]
    fn what_is_no_joined_tensor_has_no_parts() {
        let table = table("minimind3-moe");
        for (module, outputs, inputs) in [
            ("model.layers.0.self_attn.q_proj", 16, 16),
            ("model.layers.0.mlp.gate", 4, 16),
            ("model.layers.0.mlp.experts", 5, 6),
            ("model.layers.7.mlp.experts", 16, 6),
            ("lm_head", 10, 16),
        ] {
            let adapter = counted(outputs, inputs, 4);
            assert!(Joined::of(&table).parts(module, &adapter).is_empty(), "{module}");
        }
        // a rank that no expert has a whole share of
        let three = counted(16, 6, 3);
        assert!(Joined::of(&table).parts("model.layers.0.mlp.experts", &three).is_empty());
    }
}
