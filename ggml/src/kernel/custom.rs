//! Operations of our own as nodes of a graph, and what their products
//! ([`crate::kernel::float_matmul`], [`crate::kernel::quant_matmul`]) share: which activations meet
//! which matrix, and who computes which rows.
#![expect(
    unsafe_code,
    reason = "a node with a callback from C, whose operands are read through pointers"
)]

use std::ffi::{c_int, c_void};
use std::ops::Range;

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::error::Result;
use crate::wrap::context::Context;
use crate::wrap::tensor::{Tensor, to_ne};

/// Weights that are multiplied with all tokens before the next ones, bytes: they stay in the second
/// cache.
pub(crate) const CHUNK: usize = 256 << 10;

/// A function that a thread runs for a node: the node, the thread's index, how many there are, the
/// node's user data.
pub(crate) type Compute = unsafe extern "C" fn(*mut sys::ggml_tensor, c_int, c_int, *mut c_void);

impl Context {
    /// A node of float32 in a shape (outermost first) that all threads compute.
    ///
    /// # Errors
    /// No room.
    ///
    /// # Safety
    /// `compute` may be called with these operands and with `user`, which lives as long as this
    /// context.
    pub(crate) unsafe fn custom<'c>(
        &'c self,
        what: &str,
        shape: &[usize],
        operands: &[Tensor<'c>],
        compute: Compute,
        user: *mut c_void,
    ) -> Result<Tensor<'c>> {
        self.require_room(what)?;
        let [ne0, ne1, ne2, ne3] = to_ne(shape);
        let mut raw: Vec<_> = operands.iter().map(|tensor| tensor.raw()).collect();
        // SAFETY: the operands live as long as this context, the rest is this function's own
        // condition; -1 tasks means as many as there are threads.
        unsafe {
            let node = sys::ggml_custom_4d(
                self.raw(),
                sys::GGML_TYPE_F32,
                ne0,
                ne1,
                ne2,
                ne3,
                raw.as_mut_ptr(),
                raw.len() as c_int,
                Some(compute),
                -1,
                user,
            );
            Tensor::from_raw(node, what)
        }
    }
}

/// Activations that are multiplied with a matrix, or with the experts that each token chose.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'c> {
    /// `[n, cols]`; with experts `[n, 1 or k, cols]`.
    pub(crate) x: Tensor<'c>,
    /// i32 `[n, k]`.
    pub(crate) chosen: Option<Tensor<'c>>,
}

impl<'c> Activations<'c> {
    /// `x` `[n, cols]` for one matrix.
    pub(crate) fn all(x: Tensor<'c>) -> Self {
        Self { x, chosen: None }
    }

    /// `x` `[n, 1 or k, cols]` for the experts `chosen` `[n, k]`.
    pub(crate) fn of_experts(x: Tensor<'c>, chosen: Tensor<'c>) -> Self {
        Self { x, chosen: Some(chosen) }
    }

    /// The shape of these activations' products with a matrix (or a stack of `experts`) of `rows`
    /// and `cols`: `[n, rows]`, or `[n, k, rows]`. Nothing where they do not fit.
    pub(crate) fn products(&self, experts: usize, rows: usize, cols: usize) -> Option<Vec<usize>> {
        let (v, nb) = (self.x.ne(), self.x.nb());
        let plain = nb[0] == size_of::<f32>() && self.x.ty() == Some(GgmlType::F32);
        if !plain || v[0] != cols || v[3] != 1 {
            return None;
        }
        let Some(chosen) = self.chosen else {
            return (experts == 1 && v[2] == 1).then(|| vec![v[1], rows]);
        };
        let i = chosen.ne();
        let fits = i[2] * i[3] == 1
            && i[1] == v[2]
            && (v[1] == 1 || v[1] == i[0])
            && nb[2] == v[1] * nb[1]
            && chosen.nb()[0] == size_of::<i32>()
            && chosen.ty() == Some(GgmlType::I32);
        fits.then(|| vec![i[1], i[0], rows])
    }

    /// The operands of a node: `x`, then the chosen experts, `others` between.
    pub(crate) fn operands(&self, others: &[Tensor<'c>]) -> Vec<Tensor<'c>> {
        [self.x].iter().chain(others).chain(&self.chosen).copied().collect()
    }
}

/// A thread's part of `n` things.
pub(crate) fn share(n: usize, index: c_int, threads: c_int) -> Range<usize> {
    let (index, threads) = (index as usize, (threads as usize).max(1));
    n * index / threads..n * (index + 1) / threads
}

/// The rows of activations and of results that belong to an expert; without chosen experts, each
/// row to its own.
///
/// # Safety
/// `x` and `chosen` are computed operands of a node over [`Activations`]; `chosen` is null without
/// experts.
pub(crate) unsafe fn pairs(
    x: &sys::ggml_tensor,
    chosen: *const sys::ggml_tensor,
    expert: usize,
    pairs: &mut Vec<(u32, u32)>,
) {
    pairs.clear();
    let per_token = x.ne[1] as usize;
    if chosen.is_null() {
        pairs.extend((0..per_token as u32).map(|row| (row, row)));
        return;
    }
    // SAFETY: a computed tensor i32 `[n, k]` with rows at its stride, as the caller says.
    unsafe {
        let chosen = &*chosen;
        let (k, n) = (chosen.ne[0] as usize, chosen.ne[1] as usize);
        for token in 0..n {
            let ids = chosen.data.cast::<u8>().add(token * chosen.nb[1]).cast::<i32>();
            for slot in 0..k {
                if ids.add(slot).read() as usize == expert {
                    let row = token * per_token + slot % per_token;
                    pairs.push((row as u32, (token * k + slot) as u32));
                }
            }
        }
    }
}

/// Operations on plain numbers, for the tests of their kernels.
#[cfg(test)]
pub(crate) mod trial {
    use super::*;
    use crate::wrap::plan::{Nodes, Plan, Slot};
    use crate::wrap::pool::Pool;

    /// Computes a node that no graph is made for: each operand (`operands`: their bytes, those of a
    /// view: of what it is a view of) and the result lie in an allocation of their own that ends
    /// where they do. A memory checker sees every byte that `compute` touches beside them, which it
    /// cannot in a graph's one buffer.
    pub(crate) fn compute_apart(
        node: Tensor<'_>,
        operands: &[&[u8]],
        (compute, user): (Compute, *mut c_void),
        threads: usize,
    ) -> Vec<f32> {
        // words: aligned for every operand; rows of all of them are whole words
        let words = |bytes: &&[u8]| -> Box<[u32]> {
            bytes.as_chunks().0.iter().map(|&word| u32::from_ne_bytes(word)).collect()
        };
        let mut memory: Vec<Box<[u32]>> = operands.iter().map(words).collect();
        let mut result = vec![0f32; node.elements()].into_boxed_slice();
        // SAFETY: the node and its operands are alive and nobody else's; their data are set to
        // memory of as many bytes as they have (asserted), and to null again before that is gone.
        // `compute` is the node's own.
        unsafe {
            let raw = node.raw();
            (*raw).data = result.as_mut_ptr().cast();
            for (i, memory) in memory.iter_mut().enumerate() {
                let operand = (*raw).src[i];
                let whole =
                    if (*operand).view_src.is_null() { operand } else { (*operand).view_src };
                assert_eq!(sys::ggml_nbytes(whole), size_of_val(&**memory), "operand {i}");
                (*operand).data =
                    memory.as_mut_ptr().wrapping_byte_add((*operand).view_offs).cast();
            }
            assert!((*raw).src[operands.len()].is_null(), "more operands than {}", operands.len());
            for index in 0..threads {
                compute(raw, index as c_int, threads as c_int, user);
            }
            (*raw).data = std::ptr::null_mut();
            for i in 0..operands.len() {
                (*(*raw).src[i]).data = std::ptr::null_mut();
            }
        }
        result.into_vec()
    }

    /// Rows to be multiplied and, with experts, the chosen ones and how many each token chose.
    pub(crate) struct Numbers<'a> {
        pub(crate) x: &'a [f32],
        pub(crate) shape: &'a [usize],
        pub(crate) chosen: Option<(&'a [i32], usize)>,
    }

    impl Numbers<'_> {
        /// Inputs of a graph for them.
        pub(crate) fn inputs<'c>(&self, nodes: &Nodes<'c>) -> Activations<'c> {
            let x = nodes.input(GgmlType::F32, self.shape).unwrap();
            let of = |(ids, k): (&[i32], usize)| [ids.len() / k, k];
            let chosen = self.chosen.map(|chosen| nodes.input(GgmlType::I32, &of(chosen)).unwrap());
            Activations { x, chosen }
        }

        /// Where these inputs are in the finished plan.
        pub(crate) fn slots(inputs: Activations<'_>) -> (Slot, Option<Slot>) {
            (Slot::of(inputs.x), inputs.chosen.map(Slot::of))
        }

        /// Fills them in and computes the output.
        pub(crate) fn compute(
            &self,
            plan: &mut Plan,
            (x, chosen): (Slot, Option<Slot>),
            output: Slot,
            threads: usize,
        ) -> Vec<f32> {
            plan.data_mut::<f32>(x).copy_from_slice(self.x);
            if let (Some(slot), Some((ids, _))) = (chosen, self.chosen) {
                plan.data_mut::<i32>(slot).copy_from_slice(ids);
            }
            plan.compute(&mut Pool::new(threads).unwrap()).unwrap();
            plan.data_mut::<f32>(output).to_vec()
        }
    }
}
