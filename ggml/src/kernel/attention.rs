//! Attention over the cache as one ggml operation.
//!
//! Each token looks at the cells of its own text up to its own position: no mask, no cells that do
//! not count, so a graph depends neither on the length of the past nor on which texts are read
//! together. Sums and softmax are float32, also over a float16 cache, and the same to the last bit
//! on every instruction set.
//!
//! # Limits
//! A token and a head multiply each cell's key and value once: 4 operations per number of the cache
//! that is read. Several heads look at the same keys: four of them (AVX2, NEON: two) are computed at a
//! time with four (two) cells, so that a cell is read, and made float32 of float16, once for all, and
//! a query once for all cells: half a load for each product. The scores of four pairs of cell and head
//! are summed up together, since the sum of one register takes as long as its products.
#![expect(unsafe_code, reason = "vector instructions, and a callback from C")]

use std::cell::RefCell;
use std::ffi::c_void;

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::error::{Error, Result};
use crate::kernel::cpu::CpuSet;
use crate::kernel::custom::{Compute, Worker};
#[cfg(target_arch = "aarch64")]
use crate::kernel::vector::Neon;
#[cfg(target_arch = "x86_64")]
use crate::kernel::vector::{Avx2, Avx512};
use crate::kernel::vector::{Element, F16, F32, LANES, Lanes};
use crate::wrap::context::Context;
use crate::wrap::tensor::Tensor;

/// The instruction sets that this is written for.
const SETS: [CpuSet; 3] = [CpuSet::Neon, CpuSet::Avx2, CpuSet::Avx512];

/// The set that is used where models are loaded for `cpu`.
pub(crate) fn set(cpu: CpuSet) -> Option<CpuSet> {
    cpu.best_of(&SETS)
}

/// True when heads of this width can be computed here where models are loaded for `cpu`.
pub(crate) fn fits(cpu: CpuSet, head_dim: usize) -> bool {
    set(cpu).is_some() && head_dim.is_multiple_of(LANES) && head_dim > 0
}

impl Context {
    /// Attention of `q` `[n, heads, head_dim]` over the cells `keys`, `values`
    /// `[cells, kv_heads * head_dim]` (float32 or float16): token i over the `positions[i] + 1`
    /// cells from `firsts[i]` on (both i32), or as many of them as there are. Gives
    /// `[n, heads * head_dim]`. `cpu`: a set that this CPU has.
    ///
    /// # Errors
    /// Shapes or types that do not fit, a head width that is not available, or no room.
    pub(crate) fn cached_attention<'c>(
        &'c self,
        cpu: CpuSet,
        q: Tensor<'c>,
        [keys, values]: [Tensor<'c>; 2],
        positions: Tensor<'c>,
        firsts: Tensor<'c>,
    ) -> Result<Tensor<'c>> {
        let [head_dim, heads, n, _] = q.ne();
        let row = keys.ne()[0];
        let fits = fits(cpu, head_dim)
            && q.ty() == Some(GgmlType::F32)
            && q.nb()[0] == size_of::<f32>()
            && row.is_multiple_of(head_dim)
            && row > 0
            && heads.is_multiple_of(row / head_dim)
            && keys.ne() == values.ne()
            && keys.nb() == values.nb()
            && keys.ty() == values.ty()
            && matches!(keys.ty(), Some(GgmlType::F32 | GgmlType::F16))
            && keys.ty().is_some_and(|ty| keys.nb()[0] == ty.block_bytes())
            && [positions, firsts].iter().all(|t| {
                t.ne() == [n, 1, 1, 1]
                    && t.nb()[0] == size_of::<i32>()
                    && t.ty() == Some(GgmlType::I32)
            });
        if !fits {
            return Err(Error::Request {
                message: format!(
                    "attention: shapes {:?}, {:?} and {:?} do not fit",
                    q.shape(),
                    keys.shape(),
                    values.shape()
                ),
            });
        }
        let operands = [q, keys, values, positions, firsts];
        let shape = [n, heads * head_dim];
        let half = keys.ty() == Some(GgmlType::F16);
        let compute = kernel(cpu, half)
            .ok_or_else(|| Error::Request { message: format!("attention: no kernel for {cpu}") })?;
        // SAFETY: the operands are what `compute` takes, as checked; it has no user data.
        unsafe { self.custom("attention", &shape, &operands, compute, std::ptr::null_mut()) }
    }
}

/// The kernel for a set and an element type of the cache.
fn kernel(cpu: CpuSet, half: bool) -> Option<Compute> {
    match set(cpu)? {
        #[cfg(target_arch = "x86_64")]
        CpuSet::Avx512 => Some(if half { avx512::<F16> } else { avx512::<F32> }),
        #[cfg(target_arch = "x86_64")]
        CpuSet::Avx2 => Some(if half { avx2::<F16> } else { avx2::<F32> }),
        #[cfg(target_arch = "aarch64")]
        CpuSet::Neon => Some(if half { neon::<F16> } else { neon::<F32> }),
        _ => None,
    }
}

/// Computes one thread's turns, with AVX-512.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL; for nodes made by `cached_attention`, whose operands are
/// computed and of the shapes and types checked there, the cache of `E`.
#[cfg(target_arch = "x86_64")]
unsafe fn avx512<E: Element>(target: *mut sys::ggml_tensor, worker: Worker<'_>, _: *mut c_void) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn compiled<E: Element>(
        target: *mut sys::ggml_tensor,
        worker: Worker<'_>,
        scratch: &mut Scratch,
    ) {
        // SAFETY: as the caller says.
        unsafe { turns::<Avx512, E, 4, 4, 4>(target, worker, scratch) }
    }
    // SAFETY: as the caller says. What a closure holds is not compiled for the set: it calls.
    SCRATCH.with(|scratch| unsafe { compiled::<E>(target, worker, &mut scratch.borrow_mut()) });
}

/// [`avx512`] with AVX2.
///
/// # Safety
/// As there, but AVX2, FMA, F16C.
#[cfg(target_arch = "x86_64")]
unsafe fn avx2<E: Element>(target: *mut sys::ggml_tensor, worker: Worker<'_>, _: *mut c_void) {
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn compiled<E: Element>(
        target: *mut sys::ggml_tensor,
        worker: Worker<'_>,
        scratch: &mut Scratch,
    ) {
        // SAFETY: as the caller says.
        unsafe { turns::<Avx2, E, 2, 2, 2>(target, worker, scratch) }
    }
    // SAFETY: as the caller says.
    SCRATCH.with(|scratch| unsafe { compiled::<E>(target, worker, &mut scratch.borrow_mut()) });
}

/// [`avx512`] with NEON.
///
/// # Safety
/// As there, but NEON.
#[cfg(target_arch = "aarch64")]
unsafe fn neon<E: Element>(target: *mut sys::ggml_tensor, worker: Worker<'_>, _: *mut c_void) {
    #[target_feature(enable = "neon")]
    unsafe fn compiled<E: Element>(
        target: *mut sys::ggml_tensor,
        worker: Worker<'_>,
        scratch: &mut Scratch,
    ) {
        // SAFETY: as the caller says.
        unsafe { turns::<Neon, E, 2, 2, 2>(target, worker, scratch) }
    }
    // SAFETY: as the caller says.
    SCRATCH.with(|scratch| unsafe { compiled::<E>(target, worker, &mut scratch.borrow_mut()) });
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The most heads at a time.
const MOST: usize = 4;

/// The memory that a thread needs for some heads of a token.
#[derive(Default)]
struct Scratch {
    /// The queries, times the scale of scores.
    queries: [Vec<f32>; MOST],
    /// A score for each cell, then its weight.
    scores: [Vec<f32>; MOST],
}

/// The cells that a token looks at: where its first cell's part for a head begins.
struct Cells {
    keys: *const u8,
    values: *const u8,
    /// Bytes from cell to cell.
    stride: usize,
    seen: usize,
}

/// All turns of a thread; `HEADS` heads and `C` cells of keys, or `B` registers of values, are
/// computed at a time.
///
/// # Safety
/// As for [`avx512`]; the CPU has what `V` needs.
#[inline(always)]
unsafe fn turns<V: Lanes, E: Element, const HEADS: usize, const C: usize, const B: usize>(
    target: *mut sys::ggml_tensor,
    worker: Worker<'_>,
    scratch: &mut Scratch,
) {
    // SAFETY: as the caller says; rows and heads are addressed by the strides of the tensors, and
    // cells beyond the last are left out, whatever positions and firsts say.
    unsafe {
        let [q, keys, values, positions, firsts] =
            [0, 1, 2, 3, 4].map(|i: usize| &*(*target).src[i]);
        let (head_dim, heads, tokens) = (q.ne[0] as usize, q.ne[1] as usize, q.ne[2] as usize);
        let group = heads / (keys.ne[0] as usize / head_dim);
        // heads at a time, of those that look at the same keys: fewer where threads would have none
        let kv_heads = heads / group;
        let mut most = HEADS;
        while most > 1 && kv_heads * group.div_ceil(most) * tokens < 2 * worker.threads() {
            most /= 2;
        }
        let parts = group.div_ceil(most);
        let items = kv_heads * parts;
        let cells = keys.ne[1] as usize;
        for item in worker.turns(items * tokens, 1).flatten() {
            // the tokens of a head after one another: its cells stay in the second cache
            let (item, token) = (item / tokens, item % tokens);
            let (kv_head, part) = (item / parts, item % parts);
            let first_head = kv_head * group + part * most;
            let count = most.min(group - part * most);
            let position = *positions.data.cast::<i32>().add(token);
            let start = *firsts.data.cast::<i32>().add(token);
            let start = usize::try_from(start).map_or(cells, |start| start.min(cells));
            let seen = usize::try_from(position).map_or(0, |at| at + 1).min(cells - start);
            let first = start * keys.nb[1] + kv_head * head_dim * keys.nb[0];
            // wrapping: where nothing is seen the first cell may be none
            let of = |tensor: &sys::ggml_tensor| {
                tensor.data.cast::<u8>().wrapping_add(first).cast_const()
            };
            let cells = Cells { keys: of(keys), values: of(values), stride: keys.nb[1], seen };
            let query = |head: usize| {
                let at = q.data.cast::<u8>().add(token * q.nb[2] + head * q.nb[1]);
                at.cast::<f32>().cast_const()
            };
            let out = (*target).data.cast::<f32>().add(token * heads * head_dim);
            let out = |head: usize| out.add(head * head_dim);
            let (mut head, end) = (first_head, first_head + count);
            while HEADS >= 4 && head + 4 <= end {
                let heads = [head, head + 1, head + 2, head + 3];
                let (queries, out) = (heads.map(query), heads.map(out));
                some_heads::<V, E, 4, C, B>(queries, &cells, head_dim, out, scratch);
                head += 4;
            }
            while head + 2 <= end {
                let (queries, out) = ([head, head + 1].map(query), [head, head + 1].map(out));
                some_heads::<V, E, 2, C, B>(queries, &cells, head_dim, out, scratch);
                head += 2;
            }
            if head < end {
                some_heads::<V, E, 1, C, B>([query(head)], &cells, head_dim, [out(head)], scratch);
            }
        }
    }
}

/// `H` heads of a token that look at the same keys.
///
/// # Safety
/// The CPU has what `V` needs; `queries` and `out` have `head_dim` numbers, a multiple of 16, and
/// so have the keys and values of each cell.
#[inline(always)]
unsafe fn some_heads<V: Lanes, E: Element, const H: usize, const C: usize, const B: usize>(
    queries: [*const f32; H],
    cells: &Cells,
    head_dim: usize,
    out: [*mut f32; H],
    Scratch { queries: scaled, scores }: &mut Scratch,
) {
    // SAFETY: this function's own condition; scores are made for `seen` cells, rounded up to whole
    // registers, and each is below that.
    unsafe {
        let scale = V::splat(1.0 / (head_dim as f32).sqrt());
        let padded = cells.seen.next_multiple_of(LANES);
        for h in 0..H {
            scaled[h].resize(head_dim.max(scaled[h].len()), 0.0);
            for at in (0..head_dim).step_by(LANES) {
                V::load(queries[h].add(at)).mul(scale).store(scaled[h].as_mut_ptr().add(at));
            }
            scores[h].clear();
            scores[h].resize(padded, f32::NEG_INFINITY);
        }
        let queries: [*const f32; H] = std::array::from_fn(|h| scaled[h].as_ptr());
        let to: [*mut f32; H] = std::array::from_fn(|h| scores[h].as_mut_ptr());
        let mut cell = 0;
        while cell + C <= cells.seen {
            keys::<V, E, H, C>(queries, cells, cell, head_dim, to);
            cell += C;
        }
        while cell < cells.seen {
            keys::<V, E, H, 1>(queries, cells, cell, head_dim, to);
            cell += 1;
        }
        let mut norm = [V::splat(0.0); H];
        for h in 0..H {
            norm[h] = V::splat(1.0 / soft_max::<V>(&mut scores[h], cells.seen));
        }
        let weights: [*const f32; H] = std::array::from_fn(|h| scores[h].as_ptr());
        let mut at = 0;
        // of few heads more registers: as many sums that do not wait for each other
        while B >= 4 && H <= 2 && at + 6 * LANES <= head_dim {
            values::<V, E, H, 6>(weights, cells, at, norm, out);
            at += 6 * LANES;
        }
        while at + B * LANES <= head_dim {
            values::<V, E, H, B>(weights, cells, at, norm, out);
            at += B * LANES;
        }
        while at + 2 * LANES <= head_dim {
            values::<V, E, H, 2>(weights, cells, at, norm, out);
            at += 2 * LANES;
        }
        while at < head_dim {
            values::<V, E, H, 1>(weights, cells, at, norm, out);
            at += LANES;
        }
    }
}

/// The scores of `C` cells from `cell` on.
///
/// # Safety
/// As for [`some_heads`]; there are these cells, and scores for them.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "one index for several arrays of registers")]
unsafe fn keys<V: Lanes, E: Element, const H: usize, const C: usize>(
    queries: [*const f32; H],
    cells: &Cells,
    cell: usize,
    head_dim: usize,
    scores: [*mut f32; H],
) {
    // SAFETY: as the caller says.
    unsafe {
        let keys = cells.keys.add(cell * cells.stride);
        let mut sums = [[V::splat(0.0); C]; H];
        for at in (0..head_dim).step_by(LANES) {
            let mut query = [V::splat(0.0); H];
            for h in 0..H {
                query[h] = V::load(queries[h].add(at));
            }
            for c in 0..C {
                let key: V = E::load(keys.add(c * cells.stride + at * E::SIZE));
                for h in 0..H {
                    sums[h][c] = query[h].mul_add(key, sums[h][c]);
                }
            }
        }
        let all = sums.as_flattened();
        for first in (0..H * C).step_by(4) {
            let at = |i: usize| (first + i).min(H * C - 1);
            let of = V::sums([all[at(0)], all[at(1)], all[at(2)], all[at(3)]]);
            for (i, &sum) in of.iter().enumerate().take(H * C - first) {
                *scores[(first + i) / C].add(cell + (first + i) % C) = sum;
            }
        }
    }
}

/// Scores to weights that are not yet divided by their sum, which is returned; those beyond `seen`
/// become 0.
///
/// # Safety
/// The CPU has what `V` needs.
#[inline(always)]
unsafe fn soft_max<V: Lanes>(scores: &mut [f32], seen: usize) -> f32 {
    // SAFETY: as the caller says; chunks are of sixteen.
    unsafe {
        let mut largest = V::splat(f32::NEG_INFINITY);
        for chunk in scores.chunks_exact(LANES) {
            largest = largest.max(V::load(chunk.as_ptr()));
        }
        let largest = V::splat(largest.largest());
        let mut total = V::splat(0.0);
        for (i, chunk) in scores.chunks_exact_mut(LANES).enumerate() {
            let weight = V::load(chunk.as_ptr()).sub(largest).exp().first(seen - i * LANES);
            weight.store(chunk.as_mut_ptr());
            total = total.add(weight);
        }
        total.sum()
    }
}

/// `B` registers from number `at` on of the mean of all cells' values.
///
/// # Safety
/// As for [`some_heads`]; there are as many weights as cells that are seen.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "one index for several arrays of registers")]
unsafe fn values<V: Lanes, E: Element, const H: usize, const B: usize>(
    weights: [*const f32; H],
    cells: &Cells,
    at: usize,
    norm: [V; H],
    out: [*mut f32; H],
) {
    // SAFETY: as the caller says.
    unsafe {
        let mut sums = [[V::splat(0.0); B]; H];
        let first = cells.values.wrapping_add(at * E::SIZE);
        for cell in 0..cells.seen {
            let row = first.add(cell * cells.stride);
            let mut weight = [V::splat(0.0); H];
            for h in 0..H {
                weight[h] = V::splat(*weights[h].add(cell));
            }
            for b in 0..B {
                let value: V = E::load(row.add(b * LANES * E::SIZE));
                for h in 0..H {
                    sums[h][b] = weight[h].mul_add(value, sums[h][b]);
                }
            }
        }
        for h in 0..H {
            for b in 0..B {
                sums[h][b].mul(norm[h]).store(out[h].add(at + b * LANES));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::kernel::custom::trial::compute_apart;
    use crate::wrap::plan::{Plan, Slot};
    use crate::wrap::pool::Pool;
    use mmx_converters::random::SplitMix64;

    /// Attention as one would write it down.
    fn naive(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        heads: usize,
        kv_heads: usize,
        d: usize,
        at: &[(i32, i32)],
    ) -> Vec<f32> {
        let mut out = Vec::new();
        for (token, &(first, position)) in at.iter().enumerate() {
            for head in 0..heads {
                let q = &q[(token * heads + head) * d..][..d];
                let row = |all: &[f32], cell: usize| {
                    all[(cell * kv_heads + head / (heads / kv_heads)) * d..][..d].to_vec()
                };
                let dot = |cell| q.iter().zip(row(k, cell)).map(|(a, b)| a * b).sum::<f32>();
                let cells = first as usize..=(first + position) as usize;
                let weights: Vec<f32> =
                    cells.clone().map(|cell| (dot(cell) / (d as f32).sqrt()).exp()).collect();
                let total: f32 = weights.iter().sum();
                out.extend((0..d).map(|i| {
                    weights
                        .iter()
                        .zip(cells.clone())
                        .map(|(w, c)| w / total * row(v, c)[i])
                        .sum::<f32>()
                }));
            }
        }
        out
    }

    /// Each set of this CPU that there is a kernel for, with each width that is computed with it.
    fn on_each_set<const N: usize>(
        widths: [(usize, usize, usize); N],
    ) -> Vec<(CpuSet, (usize, usize, usize))> {
        let here = SETS.into_iter().filter(|set| set.is_here());
        here.flat_map(|cpu| widths.map(|width| (cpu, width)))
            .filter(|(cpu, (_, _, d))| fits(*cpu, *d))
            .collect()
    }

    /// The best set of this CPU that there is a kernel for.
    fn own_set() -> Option<CpuSet> {
        CpuSet::here().pop().and_then(set)
    }

    #[test]
    fn equals_the_naive_twin() {
        let mut rng = SplitMix64::new(4);
        let widths = [(4, 2, 16), (8, 2, 64), (2, 2, 48), (3, 1, 128)];
        for (cpu, (heads, kv_heads, d)) in on_each_set(widths) {
            // (first cell, position): one text, then several whose cells lie apart
            for at in [
                vec![(0, 0)],
                vec![(0, 77)],
                vec![(0, 0), (0, 1), (0, 2), (0, 3)],
                vec![(0, 30), (40, 7), (64, 31), (40, 8)],
            ] {
                let (n, cells) = (at.len(), 96);
                let mut random = |n: usize| -> Vec<f32> {
                    let half = |x: f64| f16::from_f64(x * 4.0 - 2.0).to_f32();
                    (0..n).map(|_| half(rng.next_f64())).collect()
                };
                let q = random(n * heads * d);
                let (k, v) = (random(cells * kv_heads * d), random(cells * kv_heads * d));
                let expected = naive(&q, &k, &v, heads, kv_heads, d, &at);
                for ty in [GgmlType::F32, GgmlType::F16] {
                    let plan = Plan::new(16).unwrap();
                    let nodes = plan.nodes();
                    let shape = [cells, kv_heads * d];
                    let inputs = [
                        nodes.input(GgmlType::F32, &[n, heads, d]).unwrap(),
                        nodes.input(ty, &shape).unwrap(),
                        nodes.input(ty, &shape).unwrap(),
                        nodes.input(GgmlType::I32, &[n]).unwrap(),
                        nodes.input(GgmlType::I32, &[n]).unwrap(),
                    ];
                    let [a, b, c, e, f] = inputs;
                    let out = nodes.context.cached_attention(cpu, a, [b, c], e, f).unwrap();
                    let (out, slots) = (nodes.output(out), inputs.map(Slot::of));
                    let mut plan = plan.finish().unwrap();
                    plan.data_mut::<f32>(slots[0]).copy_from_slice(&q);
                    for (slot, values) in [(slots[1], &k), (slots[2], &v)] {
                        if ty == GgmlType::F32 {
                            plan.data_mut::<f32>(slot).copy_from_slice(values);
                        } else {
                            let halves: Vec<_> = values.iter().map(|&x| f16::from_f32(x)).collect();
                            plan.data_mut::<f16>(slot).copy_from_slice(&halves);
                        }
                    }
                    let (firsts, positions): (Vec<_>, Vec<_>) = at.iter().copied().unzip();
                    plan.data_mut::<i32>(slots[3]).copy_from_slice(&positions);
                    plan.data_mut::<i32>(slots[4]).copy_from_slice(&firsts);
                    plan.compute(&mut Pool::new(3).unwrap()).unwrap();
                    for (found, expected) in plan.data_mut::<f32>(out).iter().zip(&expected) {
                        assert!(
                            (found - expected).abs() < 5e-6,
                            "{found} for {expected}, {d}, {at:?}"
                        );
                    }
                }
            }
        }
    }

    /// Heads of one, two, three and five registers (the widest that were once compiled for had
    /// eight, so nine), one to five of them with the same keys.
    #[test]
    fn every_set_computes_the_same_bits_whatever_is_computed_beside() {
        let mut rng = SplitMix64::new(6);
        for (heads, kv_heads, d) in [(4, 2, 16), (3, 1, 32), (2, 2, 48), (5, 1, 80), (8, 2, 144)] {
            let (at, cells) = ([(0, 30), (40, 7), (64, 31), (5, 0)], 96);
            let mut random = |n: usize| -> Vec<f16> {
                (0..n).map(|_| f16::from_f64(rng.next_f64() * 4.0 - 2.0)).collect()
            };
            let [q, k, v] =
                [at.len() * heads, cells * kv_heads, cells * kv_heads].map(|rows| random(rows * d));
            let wide = |x: &[f16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
            let [q, k_wide, v_wide] = [&q, &k, &v].map(|x| wide(x));
            let attend = |cpu, half, range: std::ops::Range<usize>| {
                let ty = if half { GgmlType::F16 } else { GgmlType::F32 };
                let context = Context::new(8, 0).unwrap();
                let shape = [cells, kv_heads * d];
                let cache = [(); 2].map(|()| context.tensor(ty, &shape).unwrap());
                let shape = [range.len(), heads, d];
                let query = context.tensor(GgmlType::F32, &shape).unwrap();
                let numbers = || context.tensor(GgmlType::I32, &[range.len()]).unwrap();
                let node = context.cached_attention(cpu, query, cache, numbers(), numbers());
                let (firsts, positions): (Vec<i32>, Vec<i32>) =
                    at[range.clone()].iter().copied().unzip();
                let cache: [&[u8]; 2] = match half {
                    false => [&k_wide, &v_wide].map(|x| bytemuck::cast_slice(x)),
                    true => [&k, &v].map(|x| bytemuck::cast_slice(x)),
                };
                let operands = [
                    bytemuck::cast_slice(&q[range.start * heads * d..range.end * heads * d]),
                    cache[0],
                    cache[1],
                    bytemuck::cast_slice(&positions),
                    bytemuck::cast_slice(&firsts),
                ];
                let how = (kernel(cpu, half).unwrap(), std::ptr::null_mut());
                compute_apart(node.unwrap(), &operands, how, 2)
            };
            let mut first: Option<Vec<f32>> = None;
            for cpu in SETS.into_iter().filter(|set| set.is_here()) {
                for half in [true, false] {
                    // float16 numbers are the same as float32
                    let all = attend(cpu, half, 0..at.len());
                    assert_eq!(&all, first.get_or_insert_with(|| all.clone()), "{cpu}, {half}");
                    for token in 0..at.len() {
                        let alone = attend(cpu, half, token..token + 1);
                        assert_eq!(alone, all[token * heads * d..][..heads * d]);
                    }
                }
            }
        }
    }

    /// The last cell that is looked at is the last there is, of lengths around those of registers.
    #[test]
    fn nothing_beside_queries_cells_and_results_is_touched() {
        let mut rng = SplitMix64::new(5);
        for (cpu, (heads, kv_heads, d)) in on_each_set([(1, 1, 16), (4, 2, 48), (3, 1, 128)]) {
            for cells in [1, 2, 15, 16, 17, 33] {
                let last = cells as i32 - 1;
                for at in [vec![], vec![(0, last)], vec![(last, 0), (last / 2, last - last / 2)]] {
                    let mut random = |n: usize| -> Vec<f16> {
                        (0..n).map(|_| f16::from_f64(rng.next_f64() * 4.0 - 2.0)).collect()
                    };
                    let [q, k, v] = [at.len() * heads, cells * kv_heads, cells * kv_heads]
                        .map(|rows| random(rows * d));
                    let wide = |x: &[f16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
                    let [q, k_wide, v_wide] = [&q, &k, &v].map(|x| wide(x));
                    let expected = naive(&q, &k_wide, &v_wide, heads, kv_heads, d, &at);
                    for ty in [GgmlType::F32, GgmlType::F16] {
                        let context = Context::new(8, 0).unwrap();
                        let shape = [cells, kv_heads * d];
                        let [keys, values] = [(); 2].map(|()| context.tensor(ty, &shape).unwrap());
                        let query = context.tensor(GgmlType::F32, &[at.len(), heads, d]).unwrap();
                        let numbers = || context.tensor(GgmlType::I32, &[at.len()]).unwrap();
                        let node = context
                            .cached_attention(cpu, query, [keys, values], numbers(), numbers())
                            .unwrap();
                        let cache: [&[u8]; 2] = match ty {
                            GgmlType::F32 => [&k_wide, &v_wide].map(|x| bytemuck::cast_slice(x)),
                            _ => [&k, &v].map(|x| bytemuck::cast_slice(x)),
                        };
                        for beyond in [0, 1, 1000] {
                            // a text that goes on beyond the cells is seen as far as there are any
                            let positions: Vec<i32> = at.iter().map(|(_, p)| p + beyond).collect();
                            let firsts: Vec<i32> = at.iter().map(|&(first, _)| first).collect();
                            let operands = [
                                bytemuck::cast_slice(&q),
                                cache[0],
                                cache[1],
                                bytemuck::cast_slice(&positions),
                                bytemuck::cast_slice(&firsts),
                            ];
                            for threads in [1, 3] {
                                let compute = kernel(cpu, ty == GgmlType::F16).unwrap();
                                let how = (compute, std::ptr::null_mut());
                                let found = compute_apart(node, &operands, how, threads);
                                assert_eq!(found.len(), expected.len());
                                for (found, expected) in found.iter().zip(&expected) {
                                    let error = (found - expected).abs();
                                    assert!(error < 5e-6, "{found} for {expected}, {at:?}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn cells_that_are_not_there_are_not_looked_for() {
        let Some(cpu) = own_set() else { return };
        let context = Context::new(8, 0).unwrap();
        let query = context.tensor(GgmlType::F32, &[3, 1, 16]).unwrap();
        let [keys, values] = [(); 2].map(|()| context.tensor(GgmlType::F32, &[2, 16]).unwrap());
        let [positions, firsts] = [(); 2].map(|()| context.tensor(GgmlType::I32, &[3]).unwrap());
        let node = context.cached_attention(cpu, query, [keys, values], positions, firsts).unwrap();
        let bytes = |x: &[i32]| -> Vec<u8> { bytemuck::cast_slice(x).to_vec() };
        let ones: Vec<u8> = bytemuck::cast_slice(&[1f32; 48]).to_vec();
        let (positions, firsts) = (bytes(&[-1, 0, i32::MAX]), bytes(&[0, i32::MAX, -1]));
        let operands = [&ones[..], &ones[..128], &ones[..128], &positions, &firsts];
        let how = (kernel(cpu, false).unwrap(), std::ptr::null_mut());
        let found = compute_apart(node, &operands, how, 1);
        assert!(found.iter().all(|x| x.is_nan()), "the mean of nothing: {found:?}");
    }

    #[test]
    fn rows_with_gaps_do_not_fit() {
        let Some(cpu) = own_set() else { return };
        let context = Context::new(16, 0).unwrap();
        let query = context.tensor(GgmlType::F32, &[2, 1, 16]).unwrap();
        let numbers = context.tensor(GgmlType::I32, &[2]).unwrap();
        let cells = context.tensor(GgmlType::F32, &[16, 16, 16]).unwrap();
        let turned = context.middle(context.swap_outer(cells).unwrap(), 0).unwrap();
        assert!(context.cached_attention(cpu, query, [turned; 2], numbers, numbers).is_ok());
        // SAFETY: operands and axes are valid.
        let turned = unsafe {
            let raw = llama_cpp_sys_2::ggml_transpose(context.raw(), turned.raw());
            Tensor::from_raw(raw, "a view").unwrap()
        };
        let refused = context.cached_attention(cpu, query, [turned; 2], numbers, numbers);
        assert!(refused.unwrap_err().to_string().contains("do not fit"));
    }
}
