//! A GGUF's tensors as ggml tensors, by the family's table.
//!
//! Matrices that see the same input are joined along their rows where their types are equal (q, k
//! and v; gate and up): one product instead of three. Rows of blocks are joined by joining their
//! bytes. A matrix that lies in the file as it is needed, or as neighbours that join, stays in the
//! memory map; others are copied, into memory of the CPU's preferred order where there is one; some
//! of these are read from the file at first, and copied once a step is computed. Layers on a device
//! lie in its memory.
#![expect(unsafe_code, reason = "weights are tensors of contexts kept beside them")]

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::Gguf;

use super::names::Names;
use crate::error::Result;
use crate::kernel::cpu::CpuSet;
use crate::kernel::float_matmul::FloatMatrix;
use crate::kernel::quant_matmul::QuantMatrix;
use crate::wrap::buffer::Buffer;
use crate::wrap::context::Context;
use crate::wrap::placement::Split;
use crate::wrap::tensor::Tensor;

/// A reference to a tensor of [`Weights`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight(pub(super) NonNull<sys::ggml_tensor>);

/// A matrix that inputs are multiplied with.
#[derive(Clone, Debug)]
pub(super) enum Matrix {
    /// A matrix for ggml's own operations.
    Plain(Weight),
    /// Floats for our own kernel.
    Float(Arc<FloatMatrix>),
    /// Blocks in an order for our own kernel.
    Quant(Arc<QuantMatrix>),
}

/// Where a tensor's rows lie in a matrix; with experts, each expert's among as many of the matrix.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) matrix: Matrix,
    /// The first one.
    pub(super) first: usize,
    /// Rows of the matrix, or of one expert's.
    pub(super) rows: usize,
}

/// Matrices over the same input: where each one's rows lie among the products that are computed.
#[derive(Clone, Debug)]
pub(super) struct Fused {
    /// The products, each of one or more matrices.
    pub(super) products: Vec<Matrix>,
    /// The place of each matrix: which product, its first row there, its rows.
    pub(super) outputs: Vec<(usize, usize, usize)>,
}

/// A gated feed-forward network.
#[derive(Clone, Debug)]
pub(super) struct Ffn {
    /// `[ffn, hidden]` twice, or `[experts, ffn, hidden]` twice.
    pub(super) gate_up: Fused,
    /// `[hidden, ffn]`, or `[experts, hidden, ffn]`.
    pub(super) down: Matrix,
}

/// One layer.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) attn_norm: Weight,
    /// q, k, v over `[hidden]`.
    pub(super) qkv: Fused,
    pub(super) attn_output: Matrix,
    pub(super) q_norm: Option<Weight>,
    pub(super) k_norm: Option<Weight>,
    pub(super) ffn_norm: Weight,
    /// `[experts, hidden]`.
    pub(super) router: Option<Matrix>,
    /// The one network, or all experts' networks.
    pub(super) ffn: Ffn,
    /// The shared experts as one network.
    pub(super) shared: Option<Ffn>,
}

/// All weights with the memory they lie in.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) embedding: Weight,
    /// float32 `[head_dim / 2]`: what rotary frequencies are divided by, of Llama 3's scaling.
    pub(super) rope_divisors: Option<Weight>,
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: Weight,
    pub(super) output: Matrix,
    pub(super) bytes_per_token: usize,
    pub(super) split: Option<Split>,
    /// The instruction set that our own kernels use.
    pub(super) cpu: CpuSet,
    /// Read from the file until they are packed.
    pub(super) later: Vec<Matrix>,
    /// Of a model in memory, where each tensor of the file would lie.
    pub(super) targets: HashMap<String, Vec<Target>>,
    /// Its weights by the names they are given by.
    pub(super) names: Option<Names>,
    /// True where no weight is missing.
    pub(super) whole: bool,
    pub(super) stopped: AtomicBool,
    // dropped in this order: memory, then descriptions, then the file the memory may be
    pub(super) _buffers: Vec<Buffer>,
    pub(super) _contexts: Vec<Context>,
    pub(super) gguf: Gguf,
}

// SAFETY: weights are written while loading only; afterwards every thread just reads them. That
// includes their descriptions: making a graph would name those that have no name (tested).
unsafe impl Send for Weights {}
// SAFETY: as above.
unsafe impl Sync for Weights {}

impl Weights {
    /// The tensor of a weight.
    pub(super) fn get(&self, weight: Weight) -> Result<Tensor<'_>> {
        // SAFETY: weights are made by `Weights::load` only, in contexts that live as long as self.
        unsafe { Tensor::from_raw(weight.0.as_ptr(), "a weight") }
    }

    /// True where [`Weights::pack`] has something to do.
    pub(super) fn are_left_to_pack(&self) -> bool {
        !self.later.is_empty()
    }

    /// Packs what was left in the file; may run while others compute.
    pub(super) fn pack(&self) {
        // What has been packed is not read again; what has not is, meanwhile, and has to be brought
        // back then: not too often.
        const PART: usize = 8 << 20;
        let mut kept = 0;
        let mut read = |bytes: usize| {
            kept += bytes;
            if kept >= PART {
                self.gguf.give_back();
                kept = 0;
            }
        };
        for matrix in self.later.iter().take_while(|_| !self.stopped.load(Ordering::Relaxed)) {
            match matrix {
                Matrix::Plain(_) => {}
                Matrix::Float(matrix) => matrix.pack(&mut read),
                Matrix::Quant(matrix) => matrix.pack(&|| self.gguf.give_back()),
            }
        }
        self.gguf.give_back();
    }

    /// Has [`Weights::pack`] end with the matrix it is at.
    pub(super) fn stop_packing(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// True when every product is computed by a kernel of ours.
    pub(super) fn are_batch_invariant(&self) -> bool {
        let ours = |matrix: &Matrix| !matches!(matrix, Matrix::Plain(_));
        let network = |ffn: &Ffn| ffn.gate_up.products.iter().all(ours) && ours(&ffn.down);
        let layer = |layer: &Layer| {
            layer.qkv.products.iter().all(ours)
                && ours(&layer.attn_output)
                && layer.router.iter().all(ours)
                && network(&layer.ffn)
                && layer.shared.iter().all(network)
        };
        ours(&self.output) && self.layers.iter().all(layer)
    }

    pub(super) fn cpu(&self) -> CpuSet {
        self.cpu
    }

    pub(super) fn bytes_per_token(&self) -> usize {
        self.bytes_per_token
    }

    /// The split of layers between CPU and device, if some lie on one.
    pub(super) fn split(&self) -> Option<Split> {
        self.split
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;
    use crate::run::{LoadOptions, Model, Session, SessionOptions};

    /// Names of all tensors that the weights are.
    fn names(weights: &Weights) -> Vec<String> {
        let mut names = Vec::new();
        for context in &weights._contexts {
            // SAFETY: a live context, whose tensors' names end in zero.
            unsafe {
                let mut tensor = sys::ggml_get_first_tensor(context.raw());
                while !tensor.is_null() {
                    let name = CStr::from_ptr((*tensor).name.as_ptr());
                    names.push(name.to_str().unwrap().to_owned());
                    tensor = sys::ggml_get_next_tensor(context.raw(), tensor);
                }
            }
        }
        names
    }

    #[test]
    fn computing_leaves_the_descriptions_of_weights_alone() {
        for repack in [true, false] {
            let bytes = crate::run::random_model::tiny_gguf(1).unwrap();
            let options = LoadOptions { repack, ..LoadOptions::default() };
            let model = Model::from_bytes(bytes, "tiny.gguf", options).unwrap();
            let before = names(model.weights());
            assert!(before.contains(&"blk.0.attn_norm.weight".to_owned()), "{before:?}");
            assert!(before.iter().all(|name| !name.is_empty()), "{before:?}");
            let mut session = Session::new(&model, SessionOptions::default()).unwrap();
            session.prefill(&[1, 2, 3]).unwrap();
            assert_eq!(names(model.weights()), before);
        }
    }
}
