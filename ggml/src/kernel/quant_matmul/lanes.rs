//! Rows of a file's blocks side by side: the same four bytes of 16 rows in one register.
#![expect(unsafe_code, reason = "vector instructions")]

use super::layout::LANES;

/// 16 bytes of each of 16 rows, `at` bytes from where they begin: per four bytes 16 rows of them,
/// after one another.
pub(super) fn side_by_side(rows: &[u8], stride: usize, at: usize) -> [u8; 256] {
    let mut all = [0; 256];
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && rows.len() >= 15 * stride + at + 16 {
        // SAFETY: the CPU has the feature, and the last row's 16 bytes are there, as checked.
        unsafe {
            for (k, fours) in fours(rows.as_ptr().add(at), stride).into_iter().enumerate() {
                std::arch::x86_64::_mm512_storeu_si512(all.as_mut_ptr().add(64 * k).cast(), fours);
            }
        }
        return all;
    }
    for lane in 0..LANES {
        let fours = rows[lane * stride + at..][..16].as_chunks::<4>().0;
        for (k, four) in fours.iter().enumerate() {
            all[(k * LANES + lane) * 4..][..4].copy_from_slice(four);
        }
    }
    all
}

/// [`side_by_side`] of 16 bytes, in registers.
///
/// # Safety
/// The CPU has AVX-512 F; at `first` and each of 15 times `stride` further there are 16 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) unsafe fn fours(first: *const u8, stride: usize) -> [std::arch::x86_64::__m512i; 4] {
    use std::arch::x86_64::*;

    // SAFETY: as the caller says.
    let row = |lane: usize| unsafe { _mm_loadu_si128(first.add(lane * stride).cast()) };
    // rows j, j + 4, j + 8, j + 12 in the four parts of a register
    let quarter = |j: usize| {
        let all = _mm512_castsi128_si512(row(j));
        let all = _mm512_inserti32x4::<1>(all, row(j + 4));
        let all = _mm512_inserti32x4::<2>(all, row(j + 8));
        _mm512_inserti32x4::<3>(all, row(j + 12))
    };
    // in each part, four rows of four numbers are turned into four columns
    let (a, b, c, d) = (quarter(0), quarter(1), quarter(2), quarter(3));
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// The two bytes of each row's float16 scale, `at` bytes from where the rows begin.
pub(super) fn half_scales(rows: &[u8], stride: usize, at: usize, to: &mut [u8]) {
    for (lane, to) in to.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        to.copy_from_slice(&rows[lane * stride + at..][..2]);
    }
}
