//! The tensors of a public file, each with the weights that fill it: the table read from the other
//! side.

use std::borrow::Cow;
use std::collections::HashMap;

use super::assemble;
use super::weight::{Layout, Weight};
use crate::error::Result;

/// A tensor of a public file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    /// Its name there.
    pub name: String,
    /// Its shape there, outermost first.
    pub shape: Vec<usize>,
    /// Which weights fill it: indices into the table.
    pub weights: Vec<usize>,
}

/// The public tensors of `layout`, in the order of the table.
pub fn public_tensors(weights: &[Weight], layout: Layout) -> Vec<Public> {
    let mut tensors: Vec<Public> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    for (i, weight) in weights.iter().enumerate() {
        let place = weight.place(layout);
        match index.get(&place.tensor) {
            Some(&at) => tensors[at].weights.push(i),
            None => {
                index.insert(place.tensor.clone(), tensors.len());
                tensors.push(Public { name: place.tensor, shape: place.shape, weights: vec![i] });
            }
        }
    }
    tensors
}

/// The bytes of a public tensor, put together from its weights; `get` gives each in reference
/// order, all of `element` bytes per element. Borrowed where the tensor is one weight as it is.
///
/// # Errors
/// What `get` returns.
pub fn gather<'a>(
    tensor: &Public,
    weights: &[Weight],
    layout: Layout,
    element: usize,
    mut get: impl FnMut(&Weight) -> Result<Cow<'a, [u8]>>,
) -> Result<Cow<'a, [u8]>> {
    let mut ordered = |weight: &Weight| -> Result<Cow<'a, [u8]>> {
        let bytes = get(weight)?;
        Ok(match weight.gguf_permuted_heads {
            Some(_) if layout.rotates_pairs() => {
                Cow::Owned(assemble::to_gguf_rows(weight, bytes.into_owned()))
            }
            _ => bytes,
        })
    };
    if let [only] = tensor.weights.as_slice()
        && weights[*only].place(layout).is_whole()
    {
        return ordered(&weights[*only]);
    }
    let mut whole = vec![0; tensor.shape.iter().product::<usize>() * element];
    for &i in &tensor.weights {
        assemble::put(&weights[i].place(layout), element, &ordered(&weights[i])?, &mut whole);
    }
    Ok(Cow::Owned(whole))
}

#[cfg(test)]
mod tests {
    use super::super::{presets, weights};
    use super::*;

    #[test]
    fn every_weight_fills_exactly_one_public_tensor() {
        for name in presets::NAMES {
            let rows = weights(&presets::preset(name).expect("a known preset"));
            for layout in Layout::ALL {
                let publics = public_tensors(&rows, layout);
                let mut used: Vec<usize> =
                    publics.iter().flat_map(|p| p.weights.iter().copied()).collect();
                used.sort_unstable();
                assert_eq!(used, (0..rows.len()).collect::<Vec<_>>(), "{name} {layout:?}");
                for public in &publics {
                    let filled: usize = public.weights.iter().map(|&i| rows[i].elements()).sum();
                    assert_eq!(filled, public.shape.iter().product::<usize>(), "{}", public.name);
                }
            }
        }
    }

    #[test]
    fn runs_are_what_the_copy_takes() {
        let mut config = presets::preset("minimind2-moe").expect("a known preset");
        (config.vocab_size, config.num_hidden_layers, config.head_dim) = (10, 1, 2);
        (config.hidden_size, config.intermediate_size) = (16, 6);
        if let Some(moe) = &mut config.moe {
            (moe.intermediate_size, moe.shared_experts) = (6, 2);
        }
        let mut runs = 0;
        for layout in [Layout::Transformers, Layout::Transformers5, Layout::Mlx, Layout::Gguf] {
            for row in weights(&config) {
                let place = row.place(layout);
                let whole: Vec<u8> =
                    (0..place.shape.iter().product::<usize>()).map(|i| i as u8).collect();
                if let Some(run) = place.run() {
                    assert_eq!(whole[run], assemble::take(&place, 1, &whole), "{}", row.name);
                    runs += 1;
                }
            }
        }
        assert!(runs > 50, "most blocks are one run: {runs}");
    }
}
