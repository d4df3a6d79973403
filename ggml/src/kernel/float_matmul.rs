//! Products with float matrices (float32, float16, bfloat16) as they lie in the file, for CPUs with
//! AVX-512.
//!
//! Weights become float32 in registers and meet float32 activations, which ggml rounds to the
//! weights' type. Every sum is made in the same order (16 partial sums along the row, then halves
//! onto halves) whatever is computed beside it: a token's result does not depend on the others of
//! its batch.
#![expect(unsafe_code, reason = "vector instructions, and a callback from C")]

use std::cell::RefCell;
use std::ffi::{c_int, c_void};

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::error::{Error, Result};
use crate::kernel::cpu::CpuSet;
use crate::kernel::custom::{self, Activations};
use crate::wrap::context::Context;
use crate::wrap::tensor::Tensor;

/// Values of a register.
const LANES: usize = 16;
/// Rows of a tile for several tokens.
const ROWS: usize = 4;

/// The instruction sets that this is written for.
const SETS: [CpuSet; 1] = [CpuSet::Avx512];

/// The set that is used where models are loaded for `cpu`.
pub(crate) fn set(cpu: CpuSet) -> Option<CpuSet> {
    cpu.best_of(&SETS)
}

/// True for matrices that these kernels can multiply.
pub(crate) fn fits(ty: GgmlType, shape: &[usize]) -> bool {
    let [.., rows, cols] = *shape else { return false };
    matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)
        && rows.is_multiple_of(ROWS)
        && cols.is_multiple_of(LANES)
        && shape.iter().all(|&n| n > 0)
        && shape.len() <= 3
}

impl Context {
    /// The products of activations with `weight` `[rows, cols]`: `[n, rows]`; with chosen experts
    /// of `weight` `[experts, rows, cols]`: `[n, k, rows]`. `cpu`: a set that this CPU has.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub(crate) fn float_matmul<'c>(
        &'c self,
        cpu: CpuSet,
        weight: Tensor<'c>,
        activations: Activations<'c>,
    ) -> Result<Tensor<'c>> {
        let w = weight.ne();
        let element = weight.ty().filter(|&ty| fits(ty, &[w[2], w[1], w[0]]));
        let rows_touch = w[3] == 1
            && element.is_some_and(|ty| weight.nb()[0] == ty.block_bytes())
            && element.is_some_and(|ty| Some(weight.nb()[1]) == ty.row_bytes(w[0]))
            && weight.nb()[2] == w[1] * weight.nb()[1];
        let available = set(cpu).is_some();
        let shape = activations.products(w[2], w[1], w[0]).filter(|_| rows_touch && available);
        let shape = shape.ok_or_else(|| Error::Request {
            message: format!(
                "dense product: shapes {:?} and {:?} do not fit",
                weight.shape(),
                activations.x.shape()
            ),
        })?;
        let operands = activations.operands(&[weight]);
        // SAFETY: the operands are what `compute` takes, as checked; it has no user data.
        unsafe { self.custom("a product", &shape, &operands, compute, std::ptr::null_mut()) }
    }
}

thread_local! {
    /// Rows of activations and of results that belong together.
    static PAIRS: RefCell<Vec<(u32, u32)>> = const { RefCell::new(Vec::new()) };
}

/// Computes one thread's share of a product: some rows of the matrix (of every expert's) for all
/// tokens.
unsafe extern "C" fn compute(
    target: *mut sys::ggml_tensor,
    index: c_int,
    threads: c_int,
    _user: *mut c_void,
) {
    // SAFETY: ggml calls this for nodes made by float_matmul only, once the operands are computed;
    // they are of the shapes and types checked there, and each thread writes results of its own
    // rows only.
    unsafe {
        let [x, weight] = [0, 1].map(|i: usize| &*(*target).src[i]);
        let (rows, cols) = (weight.ne[1] as usize, weight.ne[0] as usize);
        let tiles = custom::share(rows / ROWS, index, threads);
        let share = tiles.start * ROWS..tiles.end * ROWS;
        if share.is_empty() {
            return;
        }
        PAIRS.with(|pairs| {
            let mut pairs = pairs.borrow_mut();
            for expert in 0..weight.ne[2] as usize {
                custom::pairs(x, (*target).src[2], expert, &mut pairs);
                let product = Product {
                    x: x.data.cast(),
                    stride: x.nb[1],
                    weights: weight.data.cast::<u8>().add(expert * weight.nb[2]),
                    rows,
                    cols,
                    out: (*target).data.cast(),
                };
                #[cfg(target_arch = "x86_64")]
                match weight.type_ {
                    sys::GGML_TYPE_F16 => {
                        avx512::share::<avx512::F16>(&product, &pairs, share.clone())
                    }
                    sys::GGML_TYPE_BF16 => {
                        avx512::share::<avx512::Bf16>(&product, &pairs, share.clone());
                    }
                    _ => avx512::share::<avx512::F32>(&product, &pairs, share.clone()),
                }
                #[cfg(not(target_arch = "x86_64"))]
                let _ = product;
            }
        });
    }
}

/// A matrix `[rows, cols]`, activations with `stride` bytes from row to row, results `[.., rows]`.
struct Product {
    x: *const u8,
    stride: usize,
    weights: *const u8,
    rows: usize,
    cols: usize,
    out: *mut f32,
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::needless_range_loop, reason = "indices name registers of several arrays")]
mod avx512 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::{LANES, Product, ROWS};
    use crate::kernel::custom::CHUNK;

    /// An element type.
    pub(super) trait Element {
        /// Bytes of a value.
        const SIZE: usize;

        /// 16 values as float32.
        ///
        /// # Safety
        /// The CPU has AVX-512 F; 16 values may be read.
        unsafe fn load(from: *const u8) -> __m512;
    }

    pub(super) struct F32;
    pub(super) struct F16;
    pub(super) struct Bf16;

    impl Element for F32 {
        const SIZE: usize = 4;

        #[target_feature(enable = "avx512f")]
        unsafe fn load(from: *const u8) -> __m512 {
            // SAFETY: as the caller says.
            unsafe { _mm512_loadu_ps(from.cast()) }
        }
    }

    impl Element for F16 {
        const SIZE: usize = 2;

        #[target_feature(enable = "avx512f")]
        unsafe fn load(from: *const u8) -> __m512 {
            // SAFETY: as the caller says.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
    }

    impl Element for Bf16 {
        const SIZE: usize = 2;

        #[target_feature(enable = "avx512f")]
        unsafe fn load(from: *const u8) -> __m512 {
            // SAFETY: as the caller says.
            let halves = unsafe { _mm256_loadu_si256(from.cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }

    /// The sums of four registers each: values 8 apart added, then 4, 2 and 1 apart.
    #[target_feature(enable = "avx512f,avx512dq")]
    fn reduce(a: __m512, b: __m512, c: __m512, d: __m512) -> __m128 {
        /// `[a's halves added, b's halves added]`
        #[target_feature(enable = "avx512f,avx512dq")]
        fn halves(a: __m512, b: __m512) -> __m512 {
            let low = _mm512_insertf32x8::<1>(a, _mm512_castps512_ps256(b));
            let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
            _mm512_add_ps(low, high)
        }
        let (ab, cd) = (halves(a, b), halves(c, d)); // 8 values of each
        let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
        let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd);
        let four = _mm512_add_ps(low, high); // 4 values of each
        let two = _mm512_add_ps(four, _mm512_permute_ps::<0b01_00_11_10>(four));
        let one = _mm512_add_ps(two, _mm512_permute_ps::<0b10_11_00_01>(two));
        // the first value of each quarter
        let first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        _mm512_castps512_ps128(_mm512_permutexvar_ps(first, one))
    }

    /// The rows `share` with all pairs.
    ///
    /// # Safety
    /// The CPU has AVX-512 F and DQ; the product's memory is as it says, the pairs' rows exist.
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) unsafe fn share<E: Element>(
        product: &Product,
        pairs: &[(u32, u32)],
        share: Range<usize>,
    ) {
        let row_bytes = product.cols * E::SIZE;
        let step = (CHUNK / row_bytes).max(1).next_multiple_of(4 * ROWS);
        let mut first = share.start;
        while first < share.end {
            let rows = first..(first + step).min(share.end);
            first = rows.end;
            let mut rest = pairs;
            macro_rules! tiles {
                ($($rows:literal x $tokens:literal)*) => {$(
                    while let Some((pairs, after)) = rest.split_first_chunk::<$tokens>() {
                        // SAFETY: as the caller says.
                        unsafe { tiles::<E, $rows, $tokens>(product, pairs, rows.clone()) };
                        rest = after;
                    }
                )*};
            }
            tiles!(4 x 6  4 x 4  8 x 2  16 x 1);
        }
    }

    /// Some rows, a multiple of [`ROWS`], with `T` tokens, `R` rows at a time.
    ///
    /// # Safety
    /// As for [`share`]; the matrix has these rows.
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn tiles<E: Element, const R: usize, const T: usize>(
        product: &Product,
        pairs: &[(u32, u32); T],
        mut rows: Range<usize>,
    ) {
        // SAFETY: as the caller says.
        unsafe {
            while rows.len() >= R {
                tile::<E, R, T>(product, pairs, rows.start);
                rows.start += R;
            }
            while !rows.is_empty() {
                tile::<E, ROWS, T>(product, pairs, rows.start);
                rows.start += ROWS;
            }
        }
    }

    /// The rows `row..row + R` with `T` tokens.
    ///
    /// # Safety
    /// As for [`share`]; the matrix has these rows, of a multiple of 16 values.
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn tile<E: Element, const R: usize, const T: usize>(
        product: &Product,
        pairs: &[(u32, u32); T],
        row: usize,
    ) {
        // SAFETY: this function's own condition; what is fetched ahead may be anywhere.
        unsafe {
            let row_bytes = product.cols * E::SIZE;
            let weights = product.weights.add(row * row_bytes);
            let mut inputs = [product.x; T];
            for t in 0..T {
                inputs[t] = product.x.add(pairs[t].0 as usize * product.stride);
            }
            let mut sums = [[_mm512_setzero_ps(); R]; T];
            for k in 0..product.cols / LANES {
                let mut w = [_mm512_setzero_ps(); R];
                for r in 0..R {
                    w[r] = E::load(weights.add(r * row_bytes + k * LANES * E::SIZE));
                }
                if T == 1 {
                    // the rows that come next: they are read once only, faster than the CPU
                    // foresees
                    let ahead = weights.wrapping_add(R * row_bytes + k * R * LANES * E::SIZE);
                    for line in 0..R * LANES * E::SIZE / 64 {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line).cast());
                    }
                }
                for t in 0..T {
                    let x = _mm512_loadu_ps(inputs[t].add(k * LANES * 4).cast());
                    for r in 0..R {
                        sums[t][r] = _mm512_fmadd_ps(w[r], x, sums[t][r]);
                    }
                }
            }
            for t in 0..T {
                let to = product.out.add(pairs[t].1 as usize * product.rows + row);
                for r in (0..R).step_by(4) {
                    let s = &sums[t];
                    _mm_storeu_ps(to.add(r), reduce(s[r], s[r + 1], s[r + 2], s[r + 3]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::custom::Compute;
    use crate::kernel::custom::trial::{Numbers, compute_apart};
    use crate::quant::{dequantize_rows, quantize_rows};
    use crate::wrap::plan::{Plan, Slot};
    use mmx_converters::random::SplitMix64;

    /// The sets of this CPU that there is a kernel for.
    fn sets() -> impl Iterator<Item = CpuSet> {
        SETS.into_iter().filter(|set| set.is_here())
    }

    fn product(
        cpu: CpuSet,
        (ty, weights, w_shape): (GgmlType, &[u8], &[usize]),
        numbers: &Numbers<'_>,
        threads: usize,
    ) -> Vec<f32> {
        let plan = Plan::new(8).unwrap();
        let nodes = plan.nodes();
        let weight = nodes.input(ty, w_shape).unwrap();
        let inputs = numbers.inputs(&nodes);
        let output = nodes.output(nodes.context.float_matmul(cpu, weight, inputs).unwrap());
        let (slots, weight) = (Numbers::slots(inputs), Slot::of(weight));
        let mut plan = plan.finish().unwrap();
        plan.data_mut::<u8>(weight).copy_from_slice(weights);
        numbers.compute(&mut plan, slots, output, threads)
    }

    #[test]
    fn products_equal_the_naive_twin_and_do_not_depend_on_their_neighbours() {
        let mut rng = SplitMix64::new(12);
        let mut random =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.next_f64() as f32 - 0.5).collect() };
        let types = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];
        for (cpu, ty) in sets().flat_map(|cpu| types.map(|ty| (cpu, ty))) {
            for (experts, rows, cols) in [(1, 4, 16), (1, 52, 512), (3, 24, 48)] {
                let values = random(experts * rows * cols);
                let bytes = quantize_rows(ty, &values, cols).unwrap();
                let weights = dequantize_rows(ty, &bytes, cols).unwrap();
                for tokens in [1, 2, 3, 6, 17] {
                    let x = random(tokens * cols);
                    let k = 2;
                    let ids: Vec<i32> =
                        random(tokens * k).iter().map(|r| ((r + 0.5) * 3.0) as i32).collect();
                    let ids = (experts > 1).then_some((&ids[..], k));
                    let w_shape: &[usize] =
                        if experts > 1 { &[experts, rows, cols] } else { &[rows, cols] };
                    let x_shape: &[usize] =
                        if experts > 1 { &[tokens, 1, cols] } else { &[tokens, cols] };
                    let weight = (ty, &bytes[..], w_shape);
                    let per_token = if experts > 1 { k } else { 1 };
                    let expected: Vec<f64> = (0..tokens * per_token * rows)
                        .map(|i| {
                            let (item, row) = (i / rows, i % rows);
                            let expert = ids.map_or(0, |(ids, _)| ids[item] as usize);
                            let w = &weights[(expert * rows + row) * cols..][..cols];
                            let x = &x[item / per_token * cols..][..cols];
                            w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum()
                        })
                        .collect();
                    let numbers = Numbers { x: &x, shape: x_shape, chosen: ids };
                    for threads in [1, 3] {
                        let found = product(cpu, weight, &numbers, threads);
                        for (found, expected) in found.iter().zip(&expected) {
                            let error = (f64::from(*found) - expected).abs();
                            assert!(error < 1e-5, "{}: {found} for {expected}", ty.name());
                        }
                        if experts == 1 {
                            let x = &x[(tokens - 1) * cols..];
                            let last = Numbers { x, shape: &[1, cols], chosen: None };
                            let last = product(cpu, weight, &last, 1);
                            assert_eq!(found[(tokens - 1) * rows..], last);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_beside_matrix_activations_and_results_is_touched() {
        let mut rng = SplitMix64::new(13);
        let mut random =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.next_f64() as f32 - 0.5).collect() };
        let types = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];
        for (cpu, ty) in sets().flat_map(|cpu| types.map(|ty| (cpu, ty))) {
            // the smallest; rows that are no multiple of the larger tiles; more than stay in the
            // cache at a time
            for (experts, rows, cols) in [(1, 4, 16), (1, 20, 80), (1, 28, 16 * 1024), (3, 12, 48)]
            {
                let bytes = quantize_rows(ty, &random(experts * rows * cols), cols).unwrap();
                for tokens in [0, 1, 2, 3, 5, 11] {
                    let k = 2;
                    let ids: Vec<i32> =
                        random(tokens * k).iter().map(|r| ((r + 0.5) * 3.0) as i32).collect();
                    let ids = (experts > 1).then_some((&ids[..], k));
                    let shape = [experts, rows, cols];
                    let w_shape = if experts > 1 { &shape[..] } else { &shape[1..] };
                    // rows of `wide` are twice as long: activations are the last of two parts, or
                    // the only one
                    for parts in if experts > 1 { 1..2 } else { 1..3 } {
                        let wide = random(tokens * parts * cols);
                        let own: Vec<f32> = wide
                            .chunks(parts * cols)
                            .flat_map(|row| row[(parts - 1) * cols..].to_vec())
                            .collect();
                        let x_shape = [tokens, 1, cols];
                        let x_shape: &[usize] =
                            if experts > 1 { &x_shape } else { &[tokens, cols] };
                        let numbers = Numbers { x: &own, shape: x_shape, chosen: ids };
                        let expected = product(cpu, (ty, &bytes, w_shape), &numbers, 1);

                        let context = Context::new(8, 0).unwrap();
                        let weight = context.tensor(ty, w_shape).unwrap();
                        let x = context.tensor(GgmlType::F32, &[tokens, parts, cols]).unwrap();
                        let chosen = ids.map(|(ids, k)| {
                            context.tensor(GgmlType::I32, &[ids.len() / k, k]).unwrap()
                        });
                        let x = if experts > 1 { x } else { context.middle(x, parts - 1).unwrap() };
                        let activations = Activations { x, chosen };
                        let node = context.float_matmul(cpu, weight, activations).unwrap();
                        let mut operands = vec![bytemuck::cast_slice(&wide), &bytes[..]];
                        operands.extend(ids.map(|(ids, _)| bytemuck::cast_slice(ids)));
                        for threads in [1, 2, 9] {
                            let how = (compute as Compute, std::ptr::null_mut());
                            let found = compute_apart(node, &operands, how, threads);
                            assert_eq!(found, expected, "{}, {shape:?}, {tokens}", ty.name());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn only_whole_registers_fit() {
        assert!(fits(GgmlType::F16, &[4, 16]));
        assert!(!fits(GgmlType::F16, &[6, 16]));
        assert!(!fits(GgmlType::F32, &[4, 24]));
        assert!(!fits(GgmlType::Q8_0, &[4, 32]));
        assert!(fits(GgmlType::BF16, &[2, 4, 16]));
    }
}
