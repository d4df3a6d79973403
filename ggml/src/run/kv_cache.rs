//! Keys and values of the past, per layer `[cells, kv_heads * head_dim]`; a cell per position of a text.
#![expect(unsafe_code, reason = "the cache's tensors live in a context kept beside them")]

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;
use mmx_converters::arch::Config;
use mmx_converters::gguf::GgmlType;

use crate::backend::{Buffer, BufferType};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Cells are made in multiples of this, so that every length of past that a graph is made for exists.
pub(super) const CELLS: usize = 256;

/// The cache of all texts that are computed together; each has a run of cells of its own.
#[derive(Debug)]
pub(super) struct KvCache {
    /// Per layer: keys, values.
    layers: Vec<(NonNull<sys::ggml_tensor>, NonNull<sys::ggml_tensor>)>,
    _buffer: Buffer,
    _context: Context,
}

// SAFETY: owned by one holder of graphs, which hands out nothing but graphs that it computes itself.
unsafe impl Send for KvCache {}

impl KvCache {
    /// Zeroed memory for `cells` positions (rounded up to [`CELLS`]).
    pub(super) fn new(config: &Config, cells: usize, ty: GgmlType) -> Result<Self> {
        let width = config.num_key_value_heads * config.head_dim;
        let cells = cells.next_multiple_of(CELLS);
        let context = Context::new(2 * config.num_hidden_layers, 0)?;
        let mut layers = Vec::new();
        for _ in 0..config.num_hidden_layers {
            let keys = context.tensor(ty, &[cells, width])?;
            let values = context.tensor(ty, &[cells, width])?;
            // SAFETY: a Tensor is never null.
            layers.push(unsafe {
                (NonNull::new_unchecked(keys.raw()), NonNull::new_unchecked(values.raw()))
            });
        }
        let mut buffer = Buffer::for_all(&context, BufferType::cpu())?.ok_or_else(|| {
            Error::Request { message: "a model without layers has no cache".to_owned() }
        })?;
        // cells that were never written are masked, but zero times an unknown value may be NaN
        buffer.clear();
        Ok(Self { layers, _buffer: buffer, _context: context })
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> Result<(Tensor<'_>, Tensor<'_>)> {
        let (keys, values) = self.layers[layer];
        // SAFETY: made in `new` in the context that lives as long as self.
        unsafe {
            Ok((
                Tensor::from_raw(keys.as_ptr(), "keys")?,
                Tensor::from_raw(values.as_ptr(), "values")?,
            ))
        }
    }
    /// Copies `length` cells from `from` on to those from `to` on, in every layer.
    ///
    /// # Errors
    /// Cells beyond the cache, or runs that overlap.
    pub(super) fn copy(&mut self, from: usize, to: usize, length: usize) -> Result<()> {
        let apart = from + length <= to || to + length <= from;
        for layer in 0..self.layers.len() {
            let (keys, values) = self.layer(layer)?;
            for tensor in [keys, values] {
                let (cells, row) = (tensor.ne()[1], tensor.nb()[1]);
                if !apart || from.max(to) + length > cells {
                    return Err(Error::Request {
                        message: format!(
                            "{length} cells from {from} to {to}, of {cells} there are"
                        ),
                    });
                }
                // SAFETY: the tensor's data are `cells` rows of `row` bytes in plain memory; both runs lie
                // in it and do not overlap, as checked; `&mut self`: nothing is being computed.
                unsafe {
                    let data = (*tensor.raw()).data.cast::<u8>();
                    std::ptr::copy_nonoverlapping(
                        data.add(from * row),
                        data.add(to * row),
                        length * row,
                    );
                }
            }
        }
        Ok(())
    }
}
