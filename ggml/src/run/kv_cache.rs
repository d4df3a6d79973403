//! Keys and values of the past, per layer `[n_ctx, kv_heads * head_dim]`; a cell per position.
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

/// The cache of one session.
#[derive(Debug)]
pub(super) struct KvCache {
    /// Per layer: keys, values.
    layers: Vec<(NonNull<sys::ggml_tensor>, NonNull<sys::ggml_tensor>)>,
    _buffer: Buffer,
    _context: Context,
}

// SAFETY: owned by one session, which hands out nothing but graphs that it computes itself.
unsafe impl Send for KvCache {}

impl KvCache {
    /// Zeroed memory for `n_ctx` positions (rounded up to [`CELLS`]).
    pub(super) fn new(config: &Config, n_ctx: usize, ty: GgmlType) -> Result<Self> {
        let width = config.num_key_value_heads * config.head_dim;
        let cells = n_ctx.next_multiple_of(CELLS);
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
}
