//! The names that a model's weights are given by, and where each weight lies in them and in GGUF.

use std::collections::HashMap;

use mmx_converters::arch::{Config, Layout, Place, public_tensors, rope, weights};

/// A weight's values.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// The name in the Transformers folder, or mmx's own (one tensor per expert).
    pub name: &'a str,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// Row after row.
    pub values: &'a [f32],
}

/// The weights of a family's table that one named tensor holds.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) shape: Vec<usize>,
    pub(super) parts: Vec<Part>,
}

/// One weight in a named tensor, and in the file's layout.
#[derive(Debug)]
pub(super) struct Part {
    /// Its index in the table.
    pub(super) weight: usize,
    pub(super) from: Place,
    pub(super) to: Place,
    /// Per row of the file's layout the row of the weight, where the order differs.
    pub(super) order: Option<Vec<usize>>,
}

/// What a model in memory takes, by name.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) sources: HashMap<String, Source>,
    /// The Transformers name that each weight of the table is in.
    pub(super) of_weight: Vec<String>,
}

impl Names {
    pub(super) fn new(config: &Config) -> Self {
        let table = weights(config);
        let mut sources = HashMap::new();
        // mmx's own names first: where one is a Transformers name too, it stands for that tensor
        for layout in [Layout::Reference, Layout::Transformers] {
            for public in public_tensors(&table, layout) {
                let part = |&weight: &usize| {
                    let row = &table[weight];
                    let order =
                        row.gguf_permuted_heads.map(|n| rope::permute_rows(n, row.shape[0]));
                    Part { weight, from: row.place(layout), to: row.gguf.clone(), order }
                };
                let parts = public.weights.iter().map(part).collect();
                sources.insert(public.name, Source { shape: public.shape, parts });
            }
        }
        let of_weight = table.into_iter().map(|row| row.transformers.tensor).collect();
        Self { sources, of_weight }
    }
}
