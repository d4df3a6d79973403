//! q4_0: 16 rows side by side, four columns each, in one register: 64 nibbles to an instruction.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{half_scales, side_by_side};
use super::layout::{BLOCK, LANES, Layout, Tile};

/// Bytes of a block: a float16 scale and 32 nibbles.
const BLOCK_BYTES: usize = 18;

/// Per group and block: nibbles, per four columns 0, 4, 8, 12 16 rows of four bytes, as they are in
/// q4_0 (the column in the low nibble, the column 16 further in the high one); and 16 scales.
pub(super) struct Q4;

impl Layout for Q4 {
    const UNIT: usize = BLOCK;
    const UNIT_BYTES: usize = BLOCK_BYTES;
    const VALUES: usize = LANES * BLOCK / 2;
    const SCALES: usize = LANES * 2;

    const IN_FILE: bool = false;

    fn pack(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        half_scales(rows, stride, 0, scales);
        values.copy_from_slice(&side_by_side(rows, stride, 2));
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn multiply<const T: usize, const FILE: bool>(
        tile: &Tile<T>,
    ) -> [std::arch::x86_64::__m512; T] {
        use std::arch::x86_64::*;

        let mask = _mm512_set1_epi8(0x0f);
        let mut sums = [_mm512_setzero_ps(); T];
        for block in 0..tile.units {
            // SAFETY: the tile's rows have `units` blocks each, and so has the group.
            unsafe {
                let bytes = tile.values.add(block * Self::VALUES).cast::<__m512i>();
                let scale = tile.scales.add(block * Self::SCALES).cast::<__m256i>();
                let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scale));
                let mut low = [_mm512_setzero_si512(); 4];
                let mut high = low;
                for k in 0..4 {
                    let packed = _mm512_loadu_si512(bytes.add(k));
                    low[k] = _mm512_and_si512(packed, mask);
                    // The high nibbles stay where they are for one token: 16 times too large, put
                    // right once at the end. For several tokens they are shifted once for all.
                    high[k] = if T == 1 {
                        _mm512_andnot_si512(mask, packed)
                    } else {
                        _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask)
                    };
                }
                for t in 0..T {
                    let at = tile.inputs[t].values.add(block * BLOCK).cast::<i32>();
                    let [first, last] = *tile.inputs[t].sums.add(block);
                    // nibbles stand for -8..7
                    let mut dots = _mm512_set1_epi32(first.wrapping_add(last).wrapping_mul(-8));
                    let mut upper = _mm512_setzero_si512();
                    for k in 0..4 {
                        let low_four = _mm512_set1_epi32(at.add(k).read_unaligned());
                        let high_four = _mm512_set1_epi32(at.add(k + 4).read_unaligned());
                        dots = _mm512_dpbusd_epi32(dots, low[k], low_four);
                        upper = _mm512_dpbusd_epi32(upper, high[k], high_four);
                    }
                    if T == 1 {
                        upper = _mm512_srai_epi32::<4>(upper);
                    }
                    let dots = _mm512_add_epi32(dots, upper);
                    let factor = _mm512_set1_ps(*tile.inputs[t].scales.add(block));
                    let factor = _mm512_mul_ps(scale, factor);
                    sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), factor, sums[t]);
                }
            }
        }
        sums
    }
}
