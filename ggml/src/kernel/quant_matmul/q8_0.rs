//! q8_0: 16 rows side by side, four columns each, in one register.
#![expect(unsafe_code, reason = "vector instructions")]

#[cfg(target_arch = "x86_64")]
use super::lanes::fours;
use super::lanes::{half_scales, side_by_side};
use super::layout::{BLOCK, LANES, Layout, Tile};

/// Bytes of a block: a float16 scale and 32 signed bytes.
const BLOCK_BYTES: usize = 34;

/// Per group and block: values plus 128, since VNNI multiplies unsigned bytes with signed ones, per
/// four columns 16 rows of four bytes; and 16 scales.
pub(super) struct Q8;

impl Layout for Q8 {
    const UNIT: usize = BLOCK;
    const UNIT_BYTES: usize = BLOCK_BYTES;
    const VALUES: usize = LANES * BLOCK;
    const SCALES: usize = LANES * 2;

    const IN_FILE: bool = true;

    fn pack(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        half_scales(rows, stride, 0, scales);
        for (half, values) in values.as_chunks_mut::<256>().0.iter_mut().enumerate() {
            *values = side_by_side(rows, stride, 2 + 16 * half).map(|byte| byte ^ 0x80);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn multiply<const T: usize, const FILE: bool>(
        tile: &Tile<T>,
    ) -> [std::arch::x86_64::__m512; T] {
        use std::arch::x86_64::*;

        let mut sums = [_mm512_setzero_ps(); T];
        for block in 0..tile.units {
            // SAFETY: the tile's rows have `units` blocks each, and so has the group.
            unsafe {
                let (weights, scale) = if FILE {
                    from_file(tile.values.add(block * BLOCK_BYTES), tile.stride)
                } else {
                    let bytes = tile.values.add(block * Self::VALUES).cast::<__m512i>();
                    let scale = tile.scales.add(block * Self::SCALES).cast::<__m256i>();
                    let mut weights = [_mm512_setzero_si512(); 8];
                    for k in 0..8 {
                        weights[k] = _mm512_loadu_si512(bytes.add(k));
                    }
                    (weights, _mm512_cvtph_ps(_mm256_loadu_si256(scale)))
                };
                for t in 0..T {
                    let at = tile.inputs[t].values.add(block * BLOCK).cast::<i32>();
                    let [first, last] = *tile.inputs[t].sums.add(block);
                    // two sums that do not wait for each other
                    let mut dots = _mm512_set1_epi32(first.wrapping_add(last).wrapping_mul(-128));
                    let mut other = _mm512_setzero_si512();
                    for k in 0..4 {
                        let even = _mm512_set1_epi32(at.add(2 * k).read_unaligned());
                        let odd = _mm512_set1_epi32(at.add(2 * k + 1).read_unaligned());
                        dots = _mm512_dpbusd_epi32(dots, weights[2 * k], even);
                        other = _mm512_dpbusd_epi32(other, weights[2 * k + 1], odd);
                    }
                    let dots = _mm512_add_epi32(dots, other);
                    let factor = _mm512_set1_ps(*tile.inputs[t].scales.add(block));
                    let factor = _mm512_mul_ps(scale, factor);
                    sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), factor, sums[t]);
                }
            }
        }
        sums
    }
}

/// A block of each of 16 rows as [`Layout::pack`] would put them, and their scales.
///
/// # Safety
/// The CPU has AVX-512 F, BW, VL; at `first` and each of 15 times `stride` further there is a
/// block.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
unsafe fn from_file(
    first: *const u8,
    stride: usize,
) -> ([std::arch::x86_64::__m512i; 8], std::arch::x86_64::__m512) {
    use std::arch::x86_64::*;

    // SAFETY: as the caller says; of each block the scale and two bytes behind it are read, then
    // all its bytes.
    unsafe {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let offsets = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(stride as i32));
        let scales = _mm512_cvtepi32_epi16(_mm512_i32gather_epi32::<1>(offsets, first.cast()));
        let signs = _mm512_set1_epi8(-128);
        let [a, b, c, d] = fours(first.add(2), stride).map(|x| _mm512_xor_si512(x, signs));
        let [e, f, g, h] = fours(first.add(18), stride).map(|x| _mm512_xor_si512(x, signs));
        ([a, b, c, d, e, f, g, h], _mm512_cvtph_ps(scales))
    }
}
