//! Statistics of what comes into each matrix of a model while llama.cpp computes: sums of squares
//! by column, by expert.
//!
//! llama.cpp offers every node of its graph to a callback; the products with weights are taken, as
//! llama-imatrix does. Experts that no token reached are fed once more with all tokens (the
//! library's warm-up mode, in which every expert computes), so that none is empty.
#![expect(unsafe_code, reason = "a callback of C code reads C tensors")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};

use llama_cpp_sys_2 as sys;
use mmx_converters::quant::imatrix::Entry;

use crate::error::{Error, Result};
use crate::judge::LlamaModel;

/// Sums of one matrix.
struct Sums {
    columns: usize,
    /// `[experts, columns]`
    squares: Vec<f64>,
    /// `[experts]`
    counts: Vec<u64>,
}

/// The collector of statistics that llama.cpp's callback fills.
#[derive(Default)]
pub(crate) struct Collector {
    matrices: BTreeMap<String, Sums>,
    /// The first thing that was not as expected.
    fault: Option<String>,
}

impl LlamaModel {
    /// The importance of each matrix's columns over pieces of text (ids), by GGUF name. `progress`
    /// hears of each piece done, of how many.
    ///
    /// # Errors
    /// No ids, ids outside the vocabulary, or what llama.cpp says.
    pub fn importance(
        &self,
        pieces: &[&[u32]],
        threads: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<BTreeMap<String, Entry>> {
        let mut routed = self.collect(pieces, threads, false, progress)?;
        let idle = |sums: &Sums| sums.counts.contains(&0);
        if routed.values().any(idle) {
            let fed = self.collect(pieces, threads, true, progress)?;
            for (name, sums) in &mut routed {
                let Some(all) = fed.get(name) else { continue };
                for expert in 0..sums.counts.len() {
                    let columns = expert * sums.columns..(expert + 1) * sums.columns;
                    if sums.counts[expert] == 0 && all.squares.len() == sums.squares.len() {
                        sums.squares[columns.clone()].copy_from_slice(&all.squares[columns]);
                        sums.counts[expert] = all.counts[expert];
                    }
                }
            }
        }
        let entry = |sums: Sums| Entry {
            columns: sums.columns,
            sums: sums.squares.iter().map(|&x| x as f32).collect(),
            counts: sums.counts.iter().map(|&n| n as f32).collect(),
        };
        Ok(routed.into_iter().map(|(name, sums)| (name, entry(sums))).collect())
    }

    fn collect(
        &self,
        pieces: &[&[u32]],
        threads: usize,
        all_experts: bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<BTreeMap<String, Sums>> {
        let mut collector = Box::<Collector>::default();
        let user = std::ptr::from_mut(collector.as_mut()).cast::<c_void>();
        // SAFETY: the pointer is that of a Collector, which lives in its box until the end of this
        // function and which nothing but the callback touches meanwhile.
        unsafe { self.observe(pieces, threads, all_experts, (Some(observe), user), progress)? };
        match collector.fault {
            Some(fault) => Err(Error::Request { message: fault }),
            None => Ok(collector.matrices),
        }
    }
}

/// llama.cpp's callback: asked first whether a node is wanted, then shown it computed.
unsafe extern "C" fn observe(node: *mut sys::ggml_tensor, ask: bool, user: *mut c_void) -> bool {
    // SAFETY: llama.cpp passes a node of its graph and the pointer it was given, a Collector that
    // outlives the context and that nothing else touches while the graph is computed.
    let (node, collector) = unsafe { (&*node, &mut *user.cast::<Collector>()) };
    let routed = node.op == sys::GGML_OP_MUL_MAT_ID;
    if !routed && node.op != sys::GGML_OP_MUL_MAT {
        return !ask;
    }
    let (weight, input) = (node.src[0], node.src[1]);
    // SAFETY: a product has two sources, tensors of the same graph.
    let (weight, input) = unsafe { (&*weight, &*input) };
    // SAFETY: a tensor's name is an array that ends in zero.
    let name = unsafe { CStr::from_ptr(weight.name.as_ptr()) }.to_string_lossy();
    // weights of layers; not the products of attention, whose sources are no weights
    if !name.starts_with("blk.") || input.type_ != sys::GGML_TYPE_F32 {
        return !ask;
    }
    if ask {
        return true;
    }
    if collector.fault.is_none()
        // SAFETY: the node has been computed on the CPU, so its sources hold their values.
        && let Err(fault) = unsafe { collector.add(&name, weight, input, node, routed) }
    {
        collector.fault = Some(format!("importance of {name}: {fault}"));
    }
    true
}

impl Collector {
    /// Adds the rows that came into a weight.
    ///
    /// # Safety
    /// The tensors are alive, in the CPU's memory, and computed.
    unsafe fn add(
        &mut self,
        name: &str,
        weight: &sys::ggml_tensor,
        input: &sys::ggml_tensor,
        node: &sys::ggml_tensor,
        routed: bool,
    ) -> std::result::Result<(), String> {
        if input.nb[0] != size_of::<f32>() {
            return Err(format!("expected values side by side, found {} bytes apart", input.nb[0]));
        }
        let size = |n: i64| usize::try_from(n).unwrap_or(0);
        let columns = size(input.ne[0]);
        let experts = if routed { size(weight.ne[2]) } else { 1 };
        let sums = self.matrices.entry(name.to_owned()).or_insert_with(|| Sums {
            columns,
            squares: vec![0.0; experts * columns],
            counts: vec![0; experts],
        });
        if sums.columns != columns || sums.counts.len() != experts {
            return Err(format!("expected {} columns, found {columns}", sums.columns));
        }
        let row = |i1: usize, i2: usize, i3: usize| {
            let offset = i1 * input.nb[1] + i2 * input.nb[2] + i3 * input.nb[3];
            // SAFETY: indices below the tensor's extents, so within its data; values side by side
            // (checked).
            unsafe {
                let data = input.data.cast::<u8>().add(offset).cast::<f32>();
                std::slice::from_raw_parts(data, columns)
            }
        };
        let mut add = |expert: usize, row: &[f32]| {
            let squares = &mut sums.squares[expert * columns..(expert + 1) * columns];
            for (sum, x) in squares.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
            sums.counts[expert] += 1;
        };
        if !routed {
            for i3 in 0..size(input.ne[3]) {
                for i2 in 0..size(input.ne[2]) {
                    (0..size(input.ne[1])).for_each(|i1| add(0, row(i1, i2, i3)));
                }
            }
            return Ok(());
        }
        // SAFETY: a routed product's third source holds the chosen experts, int32 `[tokens, used]`,
        // tokens being the input's outer extent (ggml_mul_mat_id).
        let ids = unsafe { &*node.src[2] };
        for token in 0..size(ids.ne[1]) {
            for used in 0..size(ids.ne[0]) {
                // SAFETY: indices below the extents of an int32 tensor in the CPU's memory.
                let expert = unsafe {
                    let at = used * ids.nb[0] + token * ids.nb[1];
                    ids.data.cast::<u8>().add(at).cast::<i32>().read_unaligned()
                };
                let expert = usize::try_from(expert).ok().filter(|&e| e < experts);
                let expert = expert.ok_or("an expert beyond their number")?;
                // gate and up get the token's row once, down one row per expert
                add(expert, row(used % size(input.ne[1]).max(1), token, 0));
            }
        }
        Ok(())
    }
}
