//! q6_k, the usual type of the output matrix in q4_0 files: one byte to a weight, 16 rows side by
//! side.
//!
//! Activations are rounded in blocks of 32 here, of 256 in ggml's own kernel: nearer to the truth.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{half_scales, side_by_side};
use super::layout::{BLOCK, LANES, Layout, Tile};

/// Columns of a super-block.
const SUPER: usize = 256;
/// Columns that share a whole-number scale.
const PART: usize = 16;

/// Per group and super-block: numbers from 0 to 63, per four columns 16 rows of four bytes; then
/// per 16 columns 16 signed bytes of scales, and 16 float16 scales of the whole.
pub(super) struct Q6;

impl Layout for Q6 {
    const UNIT: usize = SUPER;
    /// 128 bytes of low halves, 64 of high ones, 16 scales, a float16 scale.
    const UNIT_BYTES: usize = 210;
    const VALUES: usize = LANES * SUPER;
    const SCALES: usize = LANES * (SUPER / PART) + LANES * 2;

    const IN_FILE: bool = false;

    fn pack(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        let (parts, wholes) = scales.split_at_mut(LANES * (SUPER / PART));
        half_scales(rows, stride, Self::UNIT_BYTES - 2, wholes);
        for lane in 0..LANES {
            let unit = &rows[lane * stride..][..Self::UNIT_BYTES];
            for (part, &scale) in unit[192..].iter().take(SUPER / PART).enumerate() {
                parts[part * LANES + lane] = scale;
            }
        }
        // 64 columns' low halves, 32 columns' upper two bits of four kinds, 16 bytes of each row at
        // a time
        for (half, part) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let low = [0, 32].map(|at| side_by_side(rows, stride, 64 * half + at + 16 * part));
            let high = side_by_side(rows, stride, 128 + 32 * half + 16 * part);
            for quarter in 0..4 {
                let column = 128 * half + 32 * quarter + 16 * part;
                let to = &mut values[column * LANES..][..256];
                for ((to, low), high) in to.iter_mut().zip(low[quarter % 2]).zip(high) {
                    *to = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn multiply<const T: usize, const FILE: bool>(
        tile: &Tile<T>,
    ) -> [std::arch::x86_64::__m512; T] {
        use std::arch::x86_64::*;

        let mut sums = [_mm512_setzero_ps(); T];
        for unit in 0..tile.units {
            // SAFETY: the tile's rows have `units` super-blocks each, and so has the group.
            unsafe {
                let bytes = tile.values.add(unit * Self::VALUES).cast::<__m512i>();
                let parts = tile.scales.add(unit * Self::SCALES).cast::<__m128i>();
                let whole = _mm512_cvtph_ps(_mm256_loadu_si256(parts.add(SUPER / PART).cast()));
                for block in 0..SUPER / BLOCK {
                    let mut weights = [_mm512_setzero_si512(); 8];
                    for k in 0..8 {
                        weights[k] = _mm512_loadu_si512(bytes.add(8 * block + k));
                    }
                    let scale = [
                        _mm512_cvtepi8_epi32(_mm_loadu_si128(parts.add(2 * block))),
                        _mm512_cvtepi8_epi32(_mm_loadu_si128(parts.add(2 * block + 1))),
                    ];
                    let at_block = unit * (SUPER / BLOCK) + block;
                    for t in 0..T {
                        let at = tile.inputs[t].values.add(at_block * BLOCK).cast::<i32>();
                        let sum = *tile.inputs[t].sums.add(at_block);
                        let mut dots = [
                            _mm512_set1_epi32(sum[0].wrapping_mul(-32)),
                            _mm512_set1_epi32(sum[1].wrapping_mul(-32)),
                        ];
                        for k in 0..4 {
                            let first = _mm512_set1_epi32(at.add(k).read_unaligned());
                            let last = _mm512_set1_epi32(at.add(k + 4).read_unaligned());
                            dots[0] = _mm512_dpbusd_epi32(dots[0], weights[k], first);
                            dots[1] = _mm512_dpbusd_epi32(dots[1], weights[k + 4], last);
                        }
                        // at most 2 * 127 * 16 * 32 * 128: whole numbers suffice
                        let dots = _mm512_add_epi32(
                            _mm512_mullo_epi32(dots[0], scale[0]),
                            _mm512_mullo_epi32(dots[1], scale[1]),
                        );
                        let factor = _mm512_set1_ps(*tile.inputs[t].scales.add(at_block));
                        let factor = _mm512_mul_ps(whole, factor);
                        sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), factor, sums[t]);
                    }
                }
            }
        }
        sums
    }
}
