//! Attention over the cache as one ggml operation, for CPUs with AVX-512.
//!
//! Each token looks at the cells of its own text up to its own position: no mask, no cells that do
//! not count, so a graph depends neither on the length of the past nor on which texts are read
//! together. Sums and softmax are float32, also over a float16 cache.
#![expect(unsafe_code, reason = "vector instructions, and a callback from C")]

use std::ffi::{c_int, c_void};

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::error::{Error, Result};
use crate::kernel::cpu::CpuSet;
use crate::wrap::context::Context;
use crate::wrap::tensor::Tensor;

/// Values of a register.
const LANES: usize = 16;
/// The widest head this is compiled for, registers.
const WIDEST: usize = 8;

/// The instruction sets that this is written for.
const SETS: [CpuSet; 1] = [CpuSet::Avx512];

/// The set that is used where models are loaded for `cpu`.
pub(crate) fn set(cpu: CpuSet) -> Option<CpuSet> {
    cpu.best_of(&SETS)
}

/// True when heads of this width can be computed here where models are loaded for `cpu`.
pub(crate) fn fits(cpu: CpuSet, head_dim: usize) -> bool {
    set(cpu).is_some()
        && head_dim.is_multiple_of(LANES)
        && (1..=WIDEST).contains(&(head_dim / LANES))
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
        // SAFETY: the operands are what `compute` takes, as checked; it has no user data.
        unsafe { self.custom("attention", &shape, &operands, compute, std::ptr::null_mut()) }
    }
}

/// One thread's share: every `threads`-th pair of token and head, so that long and short pasts mix.
unsafe extern "C" fn compute(
    target: *mut sys::ggml_tensor,
    index: c_int,
    threads: c_int,
    _user: *mut c_void,
) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: ggml calls this for nodes made by cached_attention only, whose operands are computed
    // and of the shapes and types checked there.
    unsafe {
        macro_rules! widths {
            ($($d:literal)*) => {
                match (*(*target).src[0]).ne[0] as usize / LANES {
                    $($d => avx512::share::<$d>(target, index as usize, threads as usize),)*
                    _ => {}
                }
            };
        }
        widths!(1 2 3 4 5 6 7 8);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (target, index, threads);
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::needless_range_loop, reason = "indices name registers of several arrays")]
mod avx512 {
    use std::arch::x86_64::*;
    use std::cell::RefCell;

    use llama_cpp_sys_2 as sys;

    use super::LANES;

    thread_local! {
        /// Scores of one token and head.
        static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }

    /// e^x for x <= 0: 2^n times a polynomial in the rest, off by at most 2e-7 of the value.
    #[target_feature(enable = "avx512f")]
    fn exp(x: __m512) -> __m512 {
        let x = _mm512_max_ps(x, _mm512_set1_ps(-87.0));
        let n =
            _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, the first one exact in few bits
        let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
        let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
        let mut p = _mm512_set1_ps(1.0 / 720.0);
        for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
        }
        _mm512_scalef_ps(p, n)
    }

    /// Values `at..at + 16` of a row of the cache.
    ///
    /// # Safety
    /// The CPU has AVX-512 F and VL; the row has these values.
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn load<const HALF: bool>(row: *const u8, at: usize) -> __m512 {
        // SAFETY: this function's own condition.
        unsafe {
            if HALF {
                _mm512_cvtph_ps(_mm256_loadu_si256(row.add(2 * at).cast()))
            } else {
                _mm512_loadu_ps(row.add(4 * at).cast())
            }
        }
    }

    /// # Safety
    /// The CPU has AVX-512 F and VL; `target` is a node of `cached_attention` with computed
    /// operands and heads of 16 * `D` values.
    #[target_feature(enable = "avx512f,avx512vl")]
    pub(super) unsafe fn share<const D: usize>(
        target: *mut sys::ggml_tensor,
        index: usize,
        threads: usize,
    ) {
        // SAFETY: as the caller says; rows and heads are addressed by the strides of the tensors,
        // and cells beyond the last are left out, whatever positions and firsts say.
        unsafe {
            let [q, keys, values, positions, firsts] =
                [0, 1, 2, 3, 4].map(|i: usize| &*(*target).src[i]);
            let half = keys.type_ == sys::GGML_TYPE_F16;
            let head_dim = D * LANES;
            let heads = q.ne[1] as usize;
            let group = heads / (keys.ne[0] as usize / head_dim);
            let cells = keys.ne[1] as usize;
            SCORES.with(|scores| {
                let mut scores = scores.borrow_mut();
                let mut item = index;
                while item < heads * q.ne[2] as usize {
                    let (token, head) = (item / heads, item % heads);
                    let position = *positions.data.cast::<i32>().add(token);
                    let start = *firsts.data.cast::<i32>().add(token);
                    let start = usize::try_from(start).map_or(cells, |start| start.min(cells));
                    let seen = usize::try_from(position).map_or(0, |at| at + 1).min(cells - start);
                    let query = q.data.cast::<u8>().add(token * q.nb[2] + head * q.nb[1]);
                    let first = start * keys.nb[1] + head / group * head_dim * keys.nb[0];
                    // wrapping: where nothing is seen the first cell may be none
                    let of = |tensor: &sys::ggml_tensor| {
                        tensor.data.cast::<u8>().wrapping_add(first).cast_const()
                    };
                    let out = (*target).data.cast::<f32>().add((token * heads + head) * head_dim);
                    let (k, v, stride) = (of(keys), of(values), keys.nb[1]);
                    if half {
                        one::<D, true>(query.cast(), k, v, stride, seen, out, &mut scores);
                    } else {
                        one::<D, false>(query.cast(), k, v, stride, seen, out, &mut scores);
                    }
                    item += threads;
                }
            });
        }
    }

    /// One token and head: `q` `[head_dim]` over `seen` cells, `stride` bytes apart.
    ///
    /// # Safety
    /// The CPU has AVX-512 F and VL; `q` and `out` have `D` * 16 values, `keys` and `values` as
    /// many in each of `seen` rows.
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn one<const D: usize, const HALF: bool>(
        q: *const f32,
        keys: *const u8,
        values: *const u8,
        stride: usize,
        seen: usize,
        out: *mut f32,
        scores: &mut Vec<f32>,
    ) {
        // SAFETY: this function's own condition; scores are made for `seen` cells, rounded up to
        // whole registers.
        unsafe {
            let scale = _mm512_set1_ps(1.0 / ((D * LANES) as f32).sqrt());
            let query: [__m512; D] =
                std::array::from_fn(|d| _mm512_mul_ps(_mm512_loadu_ps(q.add(d * LANES)), scale));
            let padded = seen.next_multiple_of(LANES);
            scores.clear();
            scores.resize(padded, f32::NEG_INFINITY);
            for (cell, score) in scores[..seen].iter_mut().enumerate() {
                let row = keys.add(cell * stride);
                let mut sum = _mm512_mul_ps(query[0], load::<HALF>(row, 0));
                for d in 1..D {
                    sum = _mm512_fmadd_ps(query[d], load::<HALF>(row, d * LANES), sum);
                }
                *score = _mm512_reduce_add_ps(sum);
            }
            let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
            for chunk in scores.chunks_exact(LANES) {
                largest = _mm512_max_ps(largest, _mm512_loadu_ps(chunk.as_ptr()));
            }
            let largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
            let mut total = _mm512_setzero_ps();
            for (i, chunk) in scores.chunks_exact_mut(LANES).enumerate() {
                let score = _mm512_loadu_ps(chunk.as_ptr());
                let left = seen - i * LANES;
                let real = if left >= LANES { 0xffff } else { (1u16 << left) - 1 };
                let weight = _mm512_maskz_mov_ps(real, exp(_mm512_sub_ps(score, largest)));
                _mm512_storeu_ps(chunk.as_mut_ptr(), weight);
                total = _mm512_add_ps(total, weight);
            }
            // even and odd cells apart: twice as many sums that do not wait for each other
            let mut sums = [[_mm512_setzero_ps(); D]; 2];
            for (cell, &weight) in scores[..seen].iter().enumerate() {
                let row = values.add(cell * stride);
                let weight = _mm512_set1_ps(weight);
                for d in 0..D {
                    let sum = &mut sums[cell % 2][d];
                    *sum = _mm512_fmadd_ps(weight, load::<HALF>(row, d * LANES), *sum);
                }
            }
            let norm = _mm512_set1_ps(1.0 / _mm512_reduce_add_ps(total));
            for d in 0..D {
                let sum = _mm512_add_ps(sums[0][d], sums[1][d]);
                _mm512_storeu_ps(out.add(d * LANES), _mm512_mul_ps(sum, norm));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::kernel::custom::Compute;
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
                                let how = (compute as Compute, std::ptr::null_mut());
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
        let how = (compute as Compute, std::ptr::null_mut());
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
