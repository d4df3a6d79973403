//! [`Vector`] for AVX-512 with VNNI: 16 rows in a register, 64 products in an instruction.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::*;

use super::vector::{Task, Vector};

/// AVX-512 F, BW, DQ, VL and VNNI.
pub(super) struct Avx512Vnni;

// SAFETY, of all blocks below: the caller has promised the instructions and the pointers.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Vector for Avx512Vnni {
    type I = __m512i;
    type F = __m512;
    type X = __m512i;
    type W = __m512i;
    type Sum = __m512i;
    const MOST: usize = 8;
    const SIGNED: bool = false;
    const IN_TURNS: usize = 0;

    unsafe fn enter(task: impl Task) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]
        unsafe fn run(task: impl Task) {
            unsafe { task.run::<Avx512Vnni>() }
        }
        unsafe { run(task) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut u8, a: __m512i) {
        unsafe { _mm512_storeu_si512(to.cast(), a) }
    }
    #[inline(always)]
    unsafe fn splat(byte: u8) -> __m512i {
        unsafe { _mm512_set1_epi8(byte as i8) }
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shr(a: __m512i, bits: u32) -> __m512i {
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn shl(a: __m512i, bits: u32) -> __m512i {
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn look_up(table: [u8; 16], at: __m512i) -> __m512i {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, at)
        }
    }
    #[inline(always)]
    unsafe fn widen_i8(from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn widen_u8(from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn widen_u16(from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn float(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn gather_f16(from: *const u8, stride: usize) -> __m512 {
        unsafe {
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let offsets = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(stride as i32));
            let scales = _mm512_i32gather_epi32::<1>(offsets, from.cast());
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(scales))
        }
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_f32(to: *mut f32, a: __m512) {
        unsafe { _mm512_storeu_ps(to, a) }
    }
    #[inline(always)]
    unsafe fn repeat(from: *const f32) -> __m512 {
        unsafe { _mm512_set1_ps(from.read()) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn negate(a: __m512) -> __m512 {
        unsafe { _mm512_xor_ps(a, _mm512_set1_ps(-0.0)) }
    }

    #[inline(always)]
    unsafe fn four(from: *const i8) -> __m512i {
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn weights(numbers: __m512i, _bits: usize) -> __m512i {
        numbers
    }
    #[inline(always)]
    unsafe fn begin(start: Option<*const i32>) -> __m512i {
        unsafe {
            match start {
                Some(start) => _mm512_set1_epi32(start.read()),
                None => _mm512_setzero_si512(),
            }
        }
    }
    #[inline(always)]
    unsafe fn step(
        sum: __m512i,
        weights: __m512i,
        four: __m512i,
        _bits: usize,
        _k: usize,
        _of: usize,
    ) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, weights, four) }
    }
    #[inline(always)]
    unsafe fn turn(
        sum: __m512i,
        weights: __m512i,
        four: __m512i,
        _bits: usize,
        _last: bool,
    ) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, weights, four) }
    }
    #[inline(always)]
    unsafe fn end_of_turns(sum: __m512i, _bits: usize) -> __m512i {
        sum
    }
    #[inline(always)]
    unsafe fn end(sum: __m512i, _start: Option<*const i32>) -> __m512i {
        sum
    }

    #[inline(always)]
    unsafe fn rows(first: *const u8, stride: usize) -> [__m512i; 4] {
        unsafe {
            // rows j, j + 4, j + 8, j + 12 in the four parts of a register
            let mut quarters = [_mm512_setzero_si512(); 4];
            for (j, quarter) in quarters.iter_mut().enumerate() {
                let from = first.add(j * stride);
                let all = _mm512_castsi128_si512(_mm_loadu_si128(from.cast()));
                let row = _mm_loadu_si128(from.add(4 * stride).cast());
                let all = _mm512_inserti32x4::<1>(all, row);
                let row = _mm_loadu_si128(from.add(8 * stride).cast());
                let all = _mm512_inserti32x4::<2>(all, row);
                let row = _mm_loadu_si128(from.add(12 * stride).cast());
                *quarter = _mm512_inserti32x4::<3>(all, row);
            }
            // in each part, four rows of four numbers are turned into four columns
            let [a, b, c, d] = quarters;
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    unsafe fn round(from: *const f32, to: *mut i8) -> (f32, [i32; 2]) {
        unsafe {
            let low = _mm512_loadu_ps(from);
            let high = _mm512_loadu_ps(from.add(16));
            let largest =
                _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
            let factor = if largest == 0.0 { 0.0 } else { 127.0 / largest };
            let factor = _mm512_set1_ps(factor);
            let low = _mm512_cvtps_epi32(_mm512_mul_ps(low, factor));
            let high = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(low));
            _mm_storeu_si128(to.add(16).cast(), _mm512_cvtepi32_epi8(high));
            (largest, [_mm512_reduce_add_epi32(low), _mm512_reduce_add_epi32(high)])
        }
    }
}
