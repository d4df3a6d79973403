//! Keys and values of the past, per layer `[cells, kv_heads * head_dim]`; a cell per position of a
//! text.
#![expect(unsafe_code, reason = "the cache's tensors live in a context kept beside them")]

use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;
use mmx_converters::arch::Config;
use mmx_converters::gguf::GgmlType;

use crate::error::{Error, Result};
use crate::kernel::attention;
use crate::kernel::cpu::CpuSet;
use crate::wrap::buffer::{Buffer, BufferType, read_bytes, write_bytes};
use crate::wrap::context::Context;
use crate::wrap::placement::{Pair, Split};
use crate::wrap::tensor::Tensor;

/// Cells are made in multiples of this, so that every length of past that a graph is made for
/// exists.
pub(super) const CELLS: usize = 256;

/// The cache of all texts that are computed together; each has a run of cells of its own.
#[derive(Debug)]
pub(super) struct KvCache {
    /// Per layer: keys, values.
    layers: Vec<(NonNull<sys::ggml_tensor>, NonNull<sys::ggml_tensor>)>,
    /// The device that some of the layers lie on, and the CPU.
    pair: Option<Arc<Pair>>,
    _buffers: Vec<Buffer>,
    _contexts: Vec<Context>,
}

// SAFETY: owned by one holder of graphs, which hands out nothing but graphs that it computes
// itself.
unsafe impl Send for KvCache {}

impl KvCache {
    /// Memory for `cells` positions (rounded up to [`CELLS`]), each layer's beside its weights.
    pub(super) fn new(
        (cpu, config): (CpuSet, &Config),
        split: Option<Split>,
        cells: usize,
        ty: GgmlType,
    ) -> Result<Self> {
        let width = config.num_key_value_heads * config.head_dim;
        let cells = cells.next_multiple_of(CELLS);
        let tensors = 2 * config.num_hidden_layers;
        let host = (Context::new(tensors, 0)?, BufferType::cpu());
        let mut places = vec![host];
        let mut first_on_device = usize::MAX;
        if let Some(split) = split
            && can_store(split, width, ty)?
        {
            first_on_device = split.first_layer;
            places.push((Context::new(tensors, 0)?, split.device.memory()));
        }
        let mut layers = Vec::new();
        for layer in 0..config.num_hidden_layers {
            let (context, _) = &places[usize::from(layer >= first_on_device)];
            let keys = context.tensor(ty, &[cells, width])?;
            let values = context.tensor(ty, &[cells, width])?;
            // SAFETY: a Tensor is never null.
            layers.push(unsafe {
                (NonNull::new_unchecked(keys.raw()), NonNull::new_unchecked(values.raw()))
            });
        }
        let mut buffers = Vec::new();
        for (context, kind) in &places {
            buffers.extend(Buffer::for_all(context, *kind)?);
        }
        // Cells that were never written are masked, but zero times an unknown value may be NaN. Our
        // own attention does not look at them: pages of a long context are touched once it is long.
        if split.is_some() || !attention::fits(cpu, config.head_dim) {
            buffers.iter_mut().for_each(Buffer::clear);
        }
        Ok(Self {
            layers,
            pair: split.map(|split| Pair::start(split.device).map(Arc::new)).transpose()?,
            _buffers: buffers,
            _contexts: places.into_iter().map(|(context, _)| context).collect(),
        })
    }

    /// The device and the CPU that compute graphs over this cache, if the CPU does not alone.
    pub(super) fn pair(&self) -> Option<&Arc<Pair>> {
        self.pair.as_ref()
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
    /// Cells beyond the cache.
    pub(super) fn copy(&mut self, from: usize, to: usize, length: usize) -> Result<()> {
        let mut bytes = Vec::new();
        for (tensor, row) in self.tensors()? {
            bytes.resize(length * row, 0);
            read_bytes(tensor, from * row, &mut bytes)?;
            write_bytes(tensor, to * row, &bytes)?;
        }
        Ok(())
    }

    /// The bytes of a cell, all layers together.
    pub(super) fn cell_bytes(&self) -> Result<usize> {
        Ok(self.tensors()?.map(|(_, row)| row).sum())
    }

    /// A copy of `length` cells from `from` on: of every layer keys, then values.
    ///
    /// # Errors
    /// Cells beyond the cache.
    pub(super) fn read(&self, from: usize, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.cell_bytes()? * length];
        let mut rest = bytes.as_mut_slice();
        for (tensor, row) in self.tensors()? {
            let (part, others) = rest.split_at_mut(length * row);
            read_bytes(tensor, from * row, part)?;
            rest = others;
        }
        Ok(bytes)
    }

    /// Puts the first `length` of `of` cells that [`KvCache::read`] copied back, from `to` on.
    ///
    /// # Errors
    /// Cells beyond the cache, or of another one.
    pub(super) fn write(
        &mut self,
        to: usize,
        bytes: &[u8],
        of: usize,
        length: usize,
    ) -> Result<()> {
        if bytes.len() != self.cell_bytes()? * of || length > of {
            return Err(Error::Request {
                message: format!(
                    "{length} of {of} cells of {} bytes, found {} bytes",
                    self.cell_bytes()?,
                    bytes.len()
                ),
            });
        }
        let mut rest = bytes;
        for (tensor, row) in self.tensors()? {
            let (part, others) = rest.split_at(of * row);
            write_bytes(tensor, to * row, &part[..length * row])?;
            rest = others;
        }
        Ok(())
    }

    /// Keys and values of all layers, each with the bytes of a cell in it.
    fn tensors(&self) -> Result<impl Iterator<Item = (Tensor<'_>, usize)>> {
        let layers: Vec<_> =
            (0..self.layers.len()).map(|layer| self.layer(layer)).collect::<Result<_>>()?;
        let both = layers.into_iter().flat_map(|(keys, values)| [keys, values]);
        Ok(both.map(|tensor| (tensor, tensor.nb()[1])))
    }
}

/// True when the device can write rows of a cache that lies in its memory.
fn can_store(split: Split, width: usize, ty: GgmlType) -> Result<bool> {
    let trial = Context::new(8, 0)?;
    let cache = trial.tensor(ty, &[2, width])?;
    let rows = trial.tensor(GgmlType::F32, &[1, width])?;
    let store = trial.set_rows(cache, rows, trial.tensor(GgmlType::I64, &[1])?)?;
    // the cache is the operand that is written; source: ggml_set_rows, ggml.c
    Ok(split.device.supports(store, 2, split.device.memory()))
}
