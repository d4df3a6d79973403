//! [`Lanes`] of AVX-512 and of AVX2.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// A register of AVX-512 (F, DQ and VL; without VL half of the registers could not be used).
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// Two registers of AVX2 (with FMA and F16C): the first eight numbers, the last eight.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

// SAFETY (of every block in these two): the CPU has the instructions and memory is there, as
// the trait says.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them, above")]
impl Lanes for Avx512 {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, sum.0)) }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Self(_mm512_roundscale_ps::<0>(self.0)) }
    }

    #[inline(always)]
    unsafe fn scale(self, n: Self) -> Self {
        unsafe { Self(_mm512_scalef_ps(self.0, n.0)) }
    }

    #[inline(always)]
    unsafe fn first(self, n: usize) -> Self {
        let real = if n >= 16 { 0xffff } else { (1u16 << n) - 1 };
        unsafe { Self(_mm512_maskz_mov_ps(real, self.0)) }
    }

    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        unsafe { Self(_mm512_permute_ps::<0b10_11_00_01>(self.0)) }
    }

    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        unsafe {
            let ab = _mm512_add_ps(
                _mm512_insertf32x8::<1>(a.0, _mm512_castps512_ps256(b.0)),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(a.0, b.0),
            ); // 8 sums of each
            let cd = _mm512_add_ps(
                _mm512_insertf32x8::<1>(c.0, _mm512_castps512_ps256(d.0)),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(c.0, d.0),
            );
            let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
            let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd);
            let four = _mm512_add_ps(low, high); // 4 sums of each
            let two = _mm512_add_ps(four, _mm512_permute_ps::<0b01_00_11_10>(four));
            let one = _mm512_add_ps(two, _mm512_permute_ps::<0b10_11_00_01>(two));
            // the first value of each quarter
            let first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut sums = [0.0; 4];
            let one = _mm512_castps512_ps128(_mm512_permutexvar_ps(first, one));
            _mm_storeu_ps(sums.as_mut_ptr(), one);
            sums
        }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}

#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them, above")]
impl Lanes for Avx2 {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe {
            let [low, high] = [from, from.add(16)];
            Self(
                _mm256_cvtph_ps(_mm_loadu_si128(low.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(high.cast())),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16).cast()));
            Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        unsafe {
            Self(_mm256_fmadd_ps(self.0, factor.0, sum.0), _mm256_fmadd_ps(self.1, factor.1, sum.1))
        }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }

    #[inline(always)]
    unsafe fn scale(self, n: Self) -> Self {
        unsafe {
            // a float of a power of two has nothing but its exponent
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(n.1), bias);
            self.mul(Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
            ))
        }
    }

    #[inline(always)]
    unsafe fn first(self, n: usize) -> Self {
        unsafe {
            let n = _mm256_set1_epi32(n.min(16) as i32);
            let low = _mm256_cmpgt_epi32(n, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_cmpgt_epi32(n, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
            Self(
                _mm256_and_ps(self.0, _mm256_castsi256_ps(low)),
                _mm256_and_ps(self.1, _mm256_castsi256_ps(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        const SWAP: i32 = 0b10_11_00_01;
        unsafe { Self(_mm256_permute_ps::<SWAP>(self.0), _mm256_permute_ps::<SWAP>(self.1)) }
    }

    #[inline(always)]
    unsafe fn sums(of: [Self; 4]) -> [f32; 4] {
        unsafe {
            let mut four = [_mm_setzero_ps(); 4];
            for (four, x) in four.iter_mut().zip(of) {
                let eight = _mm256_add_ps(x.0, x.1);
                let high = _mm256_extractf128_ps::<1>(eight);
                *four = _mm_add_ps(_mm256_castps256_ps128(eight), high);
            }
            // sums 2 apart: [a0 + a2, a1 + a3, b0 + b2, b1 + b3]
            let [a, b, c, d] = four;
            let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
            let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
            let even = _mm_shuffle_ps::<0b10_00_10_00>(ab, cd);
            let odd = _mm_shuffle_ps::<0b11_01_11_01>(ab, cd);
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(even, odd));
            sums
        }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(self.0, self.1);
            let high = _mm256_extractf128_ps::<1>(eight);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), high);
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
