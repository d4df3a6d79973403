//! q4_0 matrices in an order made for AVX-512 VNNI, and their product with float32 rows as a ggml operation.
//!
//! ggml's own kernel for q4_0 on x86 looks nibbles up in a table 32 bytes at a time; with 16 rows side by
//! side in one register, four columns each, VNNI multiplies 64 nibbles in one instruction.
//! The arithmetic is ggml's: activations are rounded to q8_0 blocks, products of a block are exact
//! integers, scales are multiplied in float32; only the order of the float32 sums differs.
#![expect(unsafe_code, reason = "vector instructions, and a callback from C")]

use std::cell::RefCell;
use std::ffi::{c_int, c_void};

use half::f16;
use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Rows side by side in a register.
const LANES: usize = 16;
/// Columns of a block, and bytes of a block of q4_0: a float16 scale and 32 nibbles.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 18;
/// Nibbles of a block of 16 rows, bytes.
const GROUP_BYTES: usize = LANES * BLOCK / 2;
/// Tokens multiplied with the same weights at once: their sums fill the registers that are left.
const TILE: usize = 4;

/// A `[rows, cols]` q4_0 matrix in groups of 16 rows.
#[derive(Debug)]
pub(crate) struct PackedQ4 {
    rows: usize,
    cols: usize,
    /// Per group, per block, per four columns 0, 4, 8, 12: 16 rows of four bytes, as they are in q4_0
    /// (the column in the low nibble, the column 16 further in the high one).
    nibbles: Vec<[u64; GROUP_BYTES / 8]>,
    /// Per group, per block: 16 scales.
    scales: Vec<[f16; LANES]>,
}

/// True when this CPU can compute with such matrices.
pub(crate) fn is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// True for matrices that can be packed.
pub(crate) fn fits(ty: GgmlType, shape: &[usize]) -> bool {
    matches!(shape, [rows, cols] if ty == GgmlType::Q4_0
        && rows.is_multiple_of(LANES)
        && cols.is_multiple_of(BLOCK)
        && *rows > 0 && *cols > 0)
}

impl PackedQ4 {
    /// Packs q4_0 blocks; the shape must be one that [`fits`].
    pub(crate) fn new(data: &[u8], rows: usize, cols: usize) -> Result<Self> {
        let blocks = cols / BLOCK;
        if !fits(GgmlType::Q4_0, &[rows, cols]) || data.len() != rows * blocks * BLOCK_BYTES {
            return Err(Error::Request {
                message: format!("{} bytes of q4_0 for shape [{rows}, {cols}]", data.len()),
            });
        }
        let mut nibbles = Vec::with_capacity(rows / LANES * blocks);
        let mut scales = Vec::with_capacity(rows / LANES * blocks);
        for group in 0..rows / LANES {
            for block in 0..blocks {
                let mut bytes = [0u64; GROUP_BYTES / 8];
                let mut scale = [f16::ZERO; LANES];
                let out: &mut [u8] = bytemuck::cast_slice_mut(&mut bytes);
                for lane in 0..LANES {
                    let at = ((group * LANES + lane) * blocks + block) * BLOCK_BYTES;
                    let source = &data[at..at + BLOCK_BYTES];
                    scale[lane] = f16::from_le_bytes([source[0], source[1]]);
                    for (k, four) in source[2..].chunks_exact(4).enumerate() {
                        out[(k * LANES + lane) * 4..][..4].copy_from_slice(four);
                    }
                }
                nibbles.push(bytes);
                scales.push(scale);
            }
        }
        Ok(Self { rows, cols, nibbles, scales })
    }
}

/// Rows of activations, rounded to q8_0 blocks.
#[derive(Default)]
struct Activations {
    /// `[n, cols]`
    values: Vec<i8>,
    /// `[n, cols / 32]`: scales, rounded to float16 as q8_0 keeps them.
    scales: Vec<f32>,
    /// `[n, cols / 32]`: -8 times the sum of a block's values, since nibbles stand for -8..7.
    offsets: Vec<i32>,
}

thread_local! {
    /// Each thread rounds the activations it needs itself: cheaper than waiting for another to do it.
    static SCRATCH: RefCell<Activations> = RefCell::default();
}

impl Context {
    /// The product of `x` `[n, cols]` with a packed matrix: `[n, rows]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub(crate) fn packed_product<'c>(
        &'c self,
        matrix: &'c PackedQ4,
        x: Tensor<'c>,
    ) -> Result<Tensor<'c>> {
        let (ne, nb) = (x.ne(), x.nb());
        if ne[0] != matrix.cols
            || ne[2] * ne[3] != 1
            || nb[0] != size_of::<f32>()
            || x.ty() != Some(GgmlType::F32)
            || !is_available()
        {
            return Err(Error::Request {
                message: format!(
                    "packed product: shapes [{}, {}] and {:?} do not fit",
                    matrix.rows,
                    matrix.cols,
                    x.shape()
                ),
            });
        }
        self.require_room("a product")?;
        let mut arguments = [x.raw()];
        // SAFETY: the arguments live as long as this context, and so does the matrix, which the callback
        // gets as its user data; -1 tasks means as many as there are threads.
        unsafe {
            let node = sys::ggml_custom_4d(
                self.raw(),
                sys::GGML_TYPE_F32,
                matrix.rows as i64,
                ne[1] as i64,
                1,
                1,
                arguments.as_mut_ptr(),
                1,
                Some(compute),
                -1,
                std::ptr::from_ref(matrix).cast_mut().cast::<c_void>(),
            );
            Tensor::from_raw(node, "a product")
        }
    }
}

/// One thread's share of a product: some groups of rows for all tokens.
unsafe extern "C" fn compute(
    target: *mut sys::ggml_tensor,
    index: c_int,
    threads: c_int,
    matrix: *mut c_void,
) {
    // SAFETY: ggml calls this for nodes made by packed_product only, whose matrix and operand are alive,
    // once the operand is computed; target is contiguous float32 [n, rows], and each thread writes rows of
    // its own groups only.
    unsafe {
        let matrix = &*matrix.cast::<PackedQ4>();
        let source = &*(*target).src[0];
        let out = (*target).data.cast::<f32>();
        let tokens = usize::try_from(source.ne[1]).unwrap_or(0);
        let (index, threads) = (index as usize, (threads as usize).max(1));
        let groups = matrix.rows / LANES;
        let share = groups * index / threads..groups * (index + 1) / threads;
        if share.is_empty() {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        SCRATCH.with(|scratch| {
            let mut scratch = scratch.borrow_mut();
            let blocks = matrix.cols / BLOCK;
            scratch.values.resize(tokens * matrix.cols, 0);
            scratch.scales.resize(tokens * blocks, 0.0);
            scratch.offsets.resize(tokens * blocks, 0);
            for token in 0..tokens {
                let row = source.data.cast::<u8>().add(token * source.nb[1]).cast::<f32>();
                let row = std::slice::from_raw_parts(row, matrix.cols);
                vnni::round_row(row, &mut scratch, token);
            }
            let mut token = 0;
            while token + TILE <= tokens {
                vnni::multiply::<TILE>(matrix, &scratch, token, share.clone(), out);
                token += TILE;
            }
            while token < tokens {
                vnni::multiply::<1>(matrix, &scratch, token, share.clone(), out);
                token += 1;
            }
        });
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (out, tokens, share);
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::needless_range_loop, reason = "indices name registers of several arrays")]
mod vnni {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use half::f16;

    use super::{Activations, BLOCK, LANES, PackedQ4};

    /// Rounds a row of float32 to q8_0 blocks as ggml does on x86: scale = largest / 127, ties to even.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, VL; the scratch has room for the row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn round_row(row: &[f32], to: &mut Activations, token: usize) {
        let blocks = row.len() / BLOCK;
        for block in 0..blocks {
            let values = &row[block * BLOCK..][..BLOCK];
            // SAFETY: 32 values are there to be read, 32 bytes to be written.
            unsafe {
                let low = _mm512_loadu_ps(values.as_ptr());
                let high = _mm512_loadu_ps(values.as_ptr().add(LANES));
                let largest =
                    _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
                let factor = if largest == 0.0 { 0.0 } else { 127.0 / largest };
                let factor = _mm512_set1_ps(factor);
                let low = _mm512_cvtps_epi32(_mm512_mul_ps(low, factor));
                let high = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
                let out = &mut to.values[token * row.len() + block * BLOCK..][..BLOCK];
                _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(low));
                _mm_storeu_si128(out.as_mut_ptr().add(LANES).cast(), _mm512_cvtepi32_epi8(high));
                let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
                to.offsets[token * blocks + block] = -8 * sum;
                to.scales[token * blocks + block] = f16::from_f32(largest / 127.0).to_f32();
            }
        }
    }

    /// `T` tokens from `first` times the rows of `groups`, into `out` `[n, rows]`.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, VL, VNNI; scratch and `out` hold `first + T` tokens.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) unsafe fn multiply<const T: usize>(
        matrix: &PackedQ4,
        scratch: &Activations,
        first: usize,
        groups: Range<usize>,
        out: *mut f32,
    ) {
        let blocks = matrix.cols / BLOCK;
        let mask = _mm512_set1_epi8(0x0f);
        let values = &scratch.values[first * matrix.cols..(first + T) * matrix.cols];
        let scales = &scratch.scales[first * blocks..(first + T) * blocks];
        let offsets = &scratch.offsets[first * blocks..(first + T) * blocks];
        for group in groups {
            let mut sums = [_mm512_setzero_ps(); T];
            let nibbles = &matrix.nibbles[group * blocks..(group + 1) * blocks];
            let weights = &matrix.scales[group * blocks..(group + 1) * blocks];
            for block in 0..blocks {
                // SAFETY: a group's block has 256 bytes and 16 scales; `values`, `scales` and `offsets` were
                // cut to T rows above, `block` is below their number of blocks.
                unsafe {
                    let bytes = nibbles.get_unchecked(block).as_ptr().cast::<__m512i>();
                    let scale = weights.get_unchecked(block).as_ptr().cast::<__m256i>();
                    let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scale));
                    let packed: [__m512i; 4] =
                        std::array::from_fn(|k| _mm512_loadu_si512(bytes.add(k)));
                    let low: [__m512i; 4] =
                        std::array::from_fn(|k| _mm512_and_si512(packed[k], mask));
                    // The high nibbles stay where they are for one token: 16 times too large, put right
                    // once at the end. For several tokens they are shifted once for all.
                    let high: [__m512i; 4] = std::array::from_fn(|k| {
                        if T == 1 {
                            _mm512_andnot_si512(mask, packed[k])
                        } else {
                            _mm512_and_si512(_mm512_srli_epi16::<4>(packed[k]), mask)
                        }
                    });
                    for t in 0..T {
                        let at = values.as_ptr().add(t * matrix.cols + block * BLOCK).cast::<i32>();
                        let four = |k: usize| _mm512_set1_epi32(at.add(k).read_unaligned());
                        let offset = *offsets.get_unchecked(t * blocks + block);
                        let mut dots = _mm512_set1_epi32(offset);
                        let mut upper = _mm512_setzero_si512();
                        for k in 0..4 {
                            dots = _mm512_dpbusd_epi32(dots, low[k], four(k));
                            if T == 1 {
                                upper = _mm512_dpbusd_epi32(upper, high[k], four(k + 4));
                            } else {
                                dots = _mm512_dpbusd_epi32(dots, high[k], four(k + 4));
                            }
                        }
                        if T == 1 {
                            dots = _mm512_add_epi32(dots, _mm512_srai_epi32::<4>(upper));
                        }
                        let factor = _mm512_set1_ps(*scales.get_unchecked(t * blocks + block));
                        let factor = _mm512_mul_ps(scale, factor);
                        sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), factor, sums[t]);
                    }
                }
            }
            for (t, sum) in sums.into_iter().enumerate() {
                // SAFETY: `out` holds `first + T` rows of `matrix.rows` values; groups lie within a row.
                unsafe {
                    let to = out.add((first + t) * matrix.rows + group * LANES);
                    _mm512_storeu_ps(to, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Plan, Pool};
    use crate::quantize::{dequantize_rows, quantize_rows};
    use crate::rng::SplitMix64;

    /// The product as one would write it down, on rounded values.
    fn naive(blocks: &[u8], rows: usize, cols: usize, x: &[f32]) -> Vec<f32> {
        let weights = dequantize_rows(GgmlType::Q4_0, blocks, cols).unwrap();
        let rounded = quantize_rows(GgmlType::Q8_0, x, cols).unwrap();
        let x = dequantize_rows(GgmlType::Q8_0, &rounded, cols).unwrap();
        let dot = |t: usize, r: usize| -> f64 {
            (0..cols).map(|c| f64::from(x[t * cols + c]) * f64::from(weights[r * cols + c])).sum()
        };
        let tokens = x.len() / cols;
        (0..tokens * rows).map(|i| dot(i / rows, i % rows) as f32).collect()
    }

    fn product(matrix: &PackedQ4, x: &[f32], tokens: usize, threads: usize) -> Vec<f32> {
        let plan = Plan::new(8).unwrap();
        let nodes = plan.nodes();
        let input = nodes.input(GgmlType::F32, &[tokens, matrix.cols]).unwrap();
        let slot = crate::backend::Slot::of(input);
        let output = nodes.output(nodes.context.packed_product(matrix, input).unwrap());
        let mut plan = plan.finish().unwrap();
        plan.data_mut::<f32>(slot).copy_from_slice(x);
        plan.compute(&mut Pool::new(threads).unwrap()).unwrap();
        plan.data_mut::<f32>(output).to_vec()
    }

    #[test]
    fn products_equal_the_naive_twin() {
        if !is_available() {
            return; // nothing packs a matrix on such a CPU
        }
        let mut rng = SplitMix64::new(9);
        for (rows, cols) in [(16, 32), (48, 64), (64, 512), (32, 1408)] {
            let mut random = |n: usize, width: f32| -> Vec<f32> {
                (0..n).map(|_| (rng.next_f64() as f32 - 0.5) * width).collect()
            };
            let blocks = quantize_rows(GgmlType::Q4_0, &random(rows * cols, 0.2), cols).unwrap();
            let matrix = PackedQ4::new(&blocks, rows, cols).unwrap();
            for tokens in [1, 3, 4, 9] {
                let mut x = random(tokens * cols, 4.0);
                x[..BLOCK].fill(0.0); // a block without a largest value
                let expected = naive(&blocks, rows, cols, &x);
                for threads in [1, 2, 5] {
                    for (found, expected) in
                        product(&matrix, &x, tokens, threads).iter().zip(&expected)
                    {
                        let limit = 2e-5 * expected.abs().max(1.0);
                        assert!((found - expected).abs() <= limit, "{found} for {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn only_whole_groups_and_blocks_fit() {
        assert!(fits(GgmlType::Q4_0, &[16, 32]));
        assert!(!fits(GgmlType::Q4_0, &[24, 32]));
        assert!(!fits(GgmlType::Q4_0, &[16, 48]));
        assert!(!fits(GgmlType::Q8_0, &[16, 32]));
        assert!(!fits(GgmlType::Q4_0, &[4, 16, 32]));
        assert!(PackedQ4::new(&[0; 17], 16, 32).is_err());
    }
}
