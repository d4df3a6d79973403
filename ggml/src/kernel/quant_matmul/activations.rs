//! Rows of activations rounded to blocks of 32 whole numbers, as ggml's q8_0 does.
#![expect(unsafe_code, reason = "vector instructions")]

use super::layout::BLOCK;

/// Rows of activations, rounded.
#[derive(Default)]
pub(super) struct Rounded {
    /// The number of values of a row.
    pub(super) cols: usize,
    /// `[n, cols]`
    pub(super) values: Vec<i8>,
    /// `[n, cols / 32]`: scales, rounded to float16 as q8_0 keeps them.
    pub(super) scales: Vec<f32>,
    /// `[n, cols / 32]`: sums of a block's first and last 16 values, since weights are kept as
    /// numbers from 0 on. Of values that are no numbers they may be any.
    pub(super) sums: Vec<[i32; 2]>,
}

impl Rounded {
    /// Makes room for `n` rows.
    pub(super) fn resize(&mut self, n: usize, cols: usize) {
        self.cols = cols;
        self.values.resize(n * cols, 0);
        self.scales.resize(n * (cols / BLOCK), 0.0);
        self.sums.resize(n * (cols / BLOCK), [0; 2]);
    }

    /// Rounds a row of float32: scale = largest / 127, ties to even, as ggml does on x86.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, VL.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn round_row(&mut self, row: &[f32], token: usize) {
        use std::arch::x86_64::*;

        let blocks = self.cols / BLOCK;
        let out = &mut self.values[token * self.cols..][..self.cols];
        let scales = &mut self.scales[token * blocks..][..blocks];
        let sums = &mut self.sums[token * blocks..][..blocks];
        let each = row.chunks_exact(BLOCK).zip(out.chunks_exact_mut(BLOCK));
        for ((values, out), (scale, sums)) in each.zip(scales.iter_mut().zip(sums)) {
            // SAFETY: 32 values are there to be read, 32 bytes to be written.
            unsafe {
                let low = _mm512_loadu_ps(values.as_ptr());
                let high = _mm512_loadu_ps(values.as_ptr().add(16));
                let largest =
                    _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
                let factor = if largest == 0.0 { 0.0 } else { 127.0 / largest };
                let factor = _mm512_set1_ps(factor);
                let low = _mm512_cvtps_epi32(_mm512_mul_ps(low, factor));
                let high = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
                _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(low));
                _mm_storeu_si128(out.as_mut_ptr().add(16).cast(), _mm512_cvtepi32_epi8(high));
                *sums = [_mm512_reduce_add_epi32(low), _mm512_reduce_add_epi32(high)];
                *scale = half::f16::from_f32(largest / 127.0).to_f32();
            }
        }
    }
}
