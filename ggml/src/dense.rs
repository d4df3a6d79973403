//! Products with float matrices (float32, float16, bfloat16) as they lie in the file, for CPUs with AVX-512.
//!
//! Weights become float32 in registers and meet float32 activations, which ggml rounds to the weights' type.
//! Every sum is made in the same order (16 partial sums along the row, then halves onto halves) whatever is
//! computed beside it: a token's result does not depend on the others of its batch.
#![expect(unsafe_code, reason = "vector instructions, and a callback from C")]

use std::cell::RefCell;
use std::ffi::{c_int, c_void};

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::packed::chosen;
use crate::tensor::Tensor;

/// Values of a register.
const LANES: usize = 16;
/// Rows of a tile for several tokens.
const ROWS: usize = 4;
/// Weights that are multiplied with all tokens before the next ones, bytes: they stay in the second cache.
const CHUNK: usize = 256 << 10;

/// True when this CPU can compute so.
pub(crate) fn is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// True for matrices that can be multiplied so.
pub(crate) fn fits(ty: GgmlType, shape: &[usize]) -> bool {
    let [.., rows, cols] = *shape else { return false };
    matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)
        && rows.is_multiple_of(ROWS)
        && cols.is_multiple_of(LANES)
        && shape.iter().all(|&n| n > 0)
        && shape.len() <= 3
}

impl Context {
    /// The product of `x` `[n, cols]` with `weight` `[rows, cols]`: `[n, rows]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub(crate) fn dense_product<'c>(
        &'c self,
        weight: Tensor<'c>,
        x: Tensor<'c>,
    ) -> Result<Tensor<'c>> {
        let ne = x.ne();
        self.dense_node(&[x, weight], [ne[1], 1], weight.ne()[2] == 1 && ne[2] == 1)
    }

    /// Per token the products with the chosen experts: `weight` `[experts, rows, cols]`, `x`
    /// `[n, 1 or k, cols]`, `ids` i32 `[n, k]`: `[n, k, rows]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub(crate) fn dense_expert_product<'c>(
        &'c self,
        weight: Tensor<'c>,
        x: Tensor<'c>,
        ids: Tensor<'c>,
    ) -> Result<Tensor<'c>> {
        let (v, i) = (x.ne(), ids.ne());
        let fits = i[2] * i[3] == 1
            && i[1] == v[2]
            && (v[1] == 1 || v[1] == i[0])
            && x.nb()[2] == v[1] * x.nb()[1]
            && ids.nb()[0] == size_of::<i32>()
            && ids.ty() == Some(GgmlType::I32);
        self.dense_node(&[x, weight, ids], [i[0], i[1]], fits)
    }

    fn dense_node<'c>(
        &'c self,
        arguments: &[Tensor<'c>],
        [k, n]: [usize; 2],
        fits: bool,
    ) -> Result<Tensor<'c>> {
        let (x, weight) = (arguments[0], arguments[1]);
        let (v, w) = (x.ne(), weight.ne());
        let element = weight.ty().filter(|&ty| self::fits(ty, &[w[2], w[1], w[0]]));
        let rows_touch = w[3] == 1
            && element.is_some_and(|ty| Some(weight.nb()[1]) == ty.row_bytes(w[0]))
            && weight.nb()[2] == w[1] * weight.nb()[1];
        let plain = x.nb()[0] == size_of::<f32>() && x.ty() == Some(GgmlType::F32);
        if !fits || !rows_touch || !plain || v[0] != w[0] || v[3] != 1 || !is_available() {
            return Err(Error::Request {
                message: format!(
                    "dense product: shapes {:?} and {:?} do not fit",
                    weight.shape(),
                    x.shape()
                ),
            });
        }
        self.require_room("a product")?;
        let mut raw: Vec<_> = arguments.iter().map(|tensor| tensor.raw()).collect();
        // SAFETY: the arguments live as long as this context; -1 tasks means as many as there are threads.
        unsafe {
            let node = sys::ggml_custom_4d(
                self.raw(),
                sys::GGML_TYPE_F32,
                w[1] as i64,
                k as i64,
                n as i64,
                1,
                raw.as_mut_ptr(),
                raw.len() as c_int,
                Some(compute),
                -1,
                std::ptr::null_mut(),
            );
            Tensor::from_raw(node, "a product")
        }
    }
}

thread_local! {
    /// Rows of activations and of results that belong together.
    static PAIRS: RefCell<Vec<(u32, u32)>> = const { RefCell::new(Vec::new()) };
}

/// One thread's share of a product: some rows of the matrix (of every expert's) for all tokens.
unsafe extern "C" fn compute(
    target: *mut sys::ggml_tensor,
    index: c_int,
    threads: c_int,
    _user: *mut c_void,
) {
    // SAFETY: ggml calls this for nodes made by dense_node only, once the operands are computed; they are of
    // the shapes and types checked there, and each thread writes results of its own rows only.
    unsafe {
        let [x, weight] = [0, 1].map(|i: usize| &*(*target).src[i]);
        let ids = (*target).src[2];
        let tokens = (x.ne[1] * x.ne[2]) as usize;
        let (index, threads) = (index as usize, (threads as usize).max(1));
        let (rows, cols) = (weight.ne[1] as usize, weight.ne[0] as usize);
        let tiles = rows / ROWS;
        let share = tiles * index / threads * ROWS..tiles * (index + 1) / threads * ROWS;
        if share.is_empty() {
            return;
        }
        PAIRS.with(|pairs| {
            let mut pairs = pairs.borrow_mut();
            for expert in 0..weight.ne[2] as usize {
                pairs.clear();
                if ids.is_null() {
                    pairs.extend((0..tokens as u32).map(|row| (row, row)));
                } else {
                    chosen(&*ids, expert, x.ne[1] as usize, &mut pairs);
                }
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
pub(crate) mod avx512 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::{CHUNK, LANES, Product, ROWS};

    /// An element type.
    pub(crate) trait Element {
        /// Bytes of a value.
        const SIZE: usize;

        /// 16 values as float32.
        ///
        /// # Safety
        /// The CPU has AVX-512 F; 16 values may be read.
        unsafe fn load(from: *const u8) -> __m512;
    }

    pub(crate) struct F32;
    pub(crate) struct F16;
    pub(crate) struct Bf16;

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
    pub(crate) fn reduce(a: __m512, b: __m512, c: __m512, d: __m512) -> __m128 {
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

    /// Some rows with `T` tokens, `R` rows at a time.
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

    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn tile<E: Element, const R: usize, const T: usize>(
        product: &Product,
        pairs: &[(u32, u32); T],
        row: usize,
    ) {
        // SAFETY: rows `row..row + R` are the matrix's, `cols` is a multiple of 16, rows of the pairs exist.
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
                    // the rows that come next: they are read once only, faster than the CPU foresees
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
    use crate::backend::{Plan, Pool, Slot};
    use crate::quantize::{dequantize_rows, quantize_rows};
    use crate::rng::SplitMix64;

    fn product(
        (ty, weights, w_shape): (GgmlType, &[u8], &[usize]),
        x: &[f32],
        x_shape: &[usize],
        ids: Option<(&[i32], usize)>,
        threads: usize,
    ) -> Vec<f32> {
        let plan = Plan::new(8).unwrap();
        let nodes = plan.nodes();
        let weight = nodes.input(ty, w_shape).unwrap();
        let input = nodes.input(GgmlType::F32, x_shape).unwrap();
        let chosen = ids.map(|(ids, k)| nodes.input(GgmlType::I32, &[ids.len() / k, k]).unwrap());
        let node = match chosen {
            None => nodes.context.dense_product(weight, input),
            Some(chosen) => nodes.context.dense_expert_product(weight, input, chosen),
        };
        let slots = (Slot::of(weight), Slot::of(input), chosen.map(Slot::of));
        let output = nodes.output(node.unwrap());
        let mut plan = plan.finish().unwrap();
        plan.data_mut::<u8>(slots.0).copy_from_slice(weights);
        plan.data_mut::<f32>(slots.1).copy_from_slice(x);
        if let (Some(slot), Some((ids, _))) = (slots.2, ids) {
            plan.data_mut::<i32>(slot).copy_from_slice(ids);
        }
        plan.compute(&mut Pool::new(threads).unwrap()).unwrap();
        plan.data_mut::<f32>(output).to_vec()
    }

    #[test]
    fn products_equal_the_naive_twin_and_do_not_depend_on_their_neighbours() {
        if !is_available() {
            return; // nothing asks for it on such a CPU
        }
        let mut rng = SplitMix64::new(12);
        let mut random =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.next_f64() as f32 - 0.5).collect() };
        for ty in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
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
                    for threads in [1, 3] {
                        let found = product(weight, &x, x_shape, ids, threads);
                        for (found, expected) in found.iter().zip(&expected) {
                            let error = (f64::from(*found) - expected).abs();
                            assert!(error < 1e-5, "{}: {found} for {expected}", ty.name());
                        }
                        if experts == 1 {
                            let x = &x[(tokens - 1) * cols..];
                            let last = product(weight, x, &[1, cols], None, 1);
                            assert_eq!(found[(tokens - 1) * rows..], last);
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
