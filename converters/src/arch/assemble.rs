//! Copying blocks between a weight and the public tensor it lies in ([`super::Place`]), both ways.

use super::rope;
use super::weight::{Place, Weight};

/// Copies `block` (contiguous, `place.extent`) into `whole` (contiguous, `place.shape`).
///
/// `element` is the bytes of one element. For block-quantized bytes the innermost dimension may be
/// given in blocks instead of elements; nothing here looks inside an element.
pub fn put(place: &Place, element: usize, block: &[u8], whole: &mut [u8]) {
    for_each_run(place, element, |in_block, in_whole, bytes| {
        whole[in_whole..in_whole + bytes].copy_from_slice(&block[in_block..in_block + bytes]);
    });
}

/// Copies the block at `place` out of `whole`.
pub fn take(place: &Place, element: usize, whole: &[u8]) -> Vec<u8> {
    let mut block = vec![0; place.extent.iter().product::<usize>() * element];
    for_each_run(place, element, |in_block, in_whole, bytes| {
        block[in_block..in_block + bytes].copy_from_slice(&whole[in_whole..in_whole + bytes]);
    });
    block
}

/// Calls `run(offset in block, offset in whole, bytes)` for every contiguous run.
fn for_each_run(place: &Place, element: usize, mut run: impl FnMut(usize, usize, usize)) {
    let dims = place.shape.len();
    if dims == 0 {
        return run(0, 0, element);
    }
    let row = place.extent[dims - 1] * element;
    let rows: usize = place.extent[..dims - 1].iter().product();
    let mut index = vec![0; dims - 1];
    for r in 0..rows {
        let mut at = 0;
        for (d, within) in index.iter().enumerate() {
            at = (at + place.offset[d] + within) * place.shape[d + 1];
        }
        run(r * row, (at + place.offset[dims - 1]) * element, row);
        for d in (0..dims - 1).rev() {
            index[d] += 1;
            if index[d] < place.extent[d] {
                break;
            }
            index[d] = 0;
        }
    }
}

/// Reorders rows: `out[r] = data[order[r]]`, rows of `row_bytes`.
pub fn reorder_rows(data: &[u8], row_bytes: usize, order: &[usize]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    order.iter().for_each(|&row| out.extend(&data[row * row_bytes..(row + 1) * row_bytes]));
    out
}

/// A weight's rows in GGUF's order (see [`Weight::gguf_permuted_heads`]); others unchanged.
pub fn to_gguf_rows(weight: &Weight, data: Vec<u8>) -> Vec<u8> {
    match weight.gguf_permuted_heads {
        None => data,
        Some(heads) => {
            let rows = weight.shape[0];
            reorder_rows(&data, data.len() / rows, &rope::permute_rows(heads, rows))
        }
    }
}

/// The inverse of [`to_gguf_rows`].
pub fn from_gguf_rows(weight: &Weight, data: Vec<u8>) -> Vec<u8> {
    match weight.gguf_permuted_heads {
        None => data,
        Some(heads) => {
            let rows = weight.shape[0];
            let mut inverse = vec![0; rows];
            for (to, from) in rope::permute_rows(heads, rows).into_iter().enumerate() {
                inverse[from] = to;
            }
            reorder_rows(&data, data.len() / rows, &inverse)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Layout, presets, weights};
    use super::*;

    /// Every public tensor is filled by its weights exactly: no gap, no overlap, in every layout.
    #[test]
    fn blocks_tile_every_public_tensor() {
        for name in presets::NAMES {
            let mut config = presets::preset(name).expect("a known preset");
            // a table of as many rows per layer, with small tensors
            (config.vocab_size, config.num_hidden_layers, config.head_dim) = (10, 2, 4);
            (config.hidden_size, config.intermediate_size) = (4 * config.num_attention_heads, 24);
            if let Some(moe) = &mut config.moe {
                (moe.intermediate_size, moe.shared_experts) = (24, moe.shared_experts * 2);
            }
            let rows = weights(&config);
            for layout in Layout::ALL {
                let mut covered = std::collections::HashMap::new();
                for row in &rows {
                    let place = row.place(layout);
                    assert_eq!(
                        place.extent.iter().product::<usize>(),
                        row.elements(),
                        "{}",
                        row.name
                    );
                    let whole = covered
                        .entry(place.tensor.clone())
                        .or_insert_with(|| vec![0u8; place.shape.iter().product()]);
                    let block = vec![1; row.elements()];
                    let before = take(&place, 1, whole);
                    assert!(before.iter().all(|&b| b == 0), "{name}: {} overlaps", row.name);
                    put(&place, 1, &block, whole);
                }
                for (tensor, whole) in covered {
                    assert!(whole.iter().all(|&b| b == 1), "{name}: gap in {tensor}");
                }
            }
        }
    }

    #[test]
    fn permutation_and_its_inverse_cancel() {
        let config = presets::preset("tiny").expect("a known preset");
        let query = weights(&config).into_iter().find(|w| w.gguf_permuted_heads.is_some());
        let query = query.expect("tiny is a llama");
        let data: Vec<u8> = (0..query.elements()).map(|i| (i / query.shape[1]) as u8).collect();
        let there = to_gguf_rows(&query, data.clone());
        // head_dim 16: row 1 of GGUF is the first row of the second half
        assert_eq!(there[query.shape[1]], 8);
        assert_eq!(from_gguf_rows(&query, there), data);
    }
}
