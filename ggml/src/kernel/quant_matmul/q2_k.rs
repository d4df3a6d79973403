//! q2_k: super-blocks of 256 columns: float16 scale and min, 16 scales and mins of 4 bits each, and
//! numbers of 2 bits.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{all_side_by_side, beside};
use super::layout::{LANES, Layout, QUAD};
use super::lines;
use super::vector::{Vector, written_out};

/// Numbers from 0 to 3, with mins. Scales: 16 float16 scales and mins, then per 16 columns 16 bytes,
/// the scale in the low half.
pub(super) struct Q2K;

impl Layout for Q2K {
    const UNIT: usize = 256;
    /// 16 bytes of scales, 64 of numbers, float16 scale and min.
    const UNIT_BYTES: usize = 84;
    const BITS: usize = 2;
    const PARTS: usize = 2;
    const OFFSET: i32 = 0;
    const MINS: bool = true;

    type Each<V: Copy> = [V; 16];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        let (wholes, parts) = scales.split_at_mut(4 * LANES);
        let (whole, min) = wholes.split_at_mut(2 * LANES);
        beside::<2>(rows, stride, 80, whole);
        beside::<2>(rows, stride, 82, min);
        for (part, to) in parts.chunks_exact_mut(LANES).enumerate() {
            beside::<1>(rows, stride, part, to);
        }
        for (block, to) in values.chunks_exact_mut(2 * QUAD).enumerate() {
            let (half, quarter) = (block / 4, block % 4);
            // SAFETY: as the caller says.
            let mut numbers = unsafe { all_side_by_side::<V>(rows, stride, 16 + 32 * half) };
            for number in numbers.as_flattened_mut() {
                *number = *number >> (2 * quarter) & 3;
            }
            lines::pack::<2>(&numbers, to);
        }
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 16]; 2] {
        // SAFETY: as packed, and as the caller says.
        unsafe {
            let (whole, min) = (V::load_f16(at), V::negate(V::load_f16(at.add(2 * LANES))));
            let (mut scales, mut mins) = ([whole; 16], [min; 16]);
            written_out!(i in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15], {
                let both = V::widen_u8(at.add((4 + i) * LANES));
                scales[i] = V::mul(V::float(V::and(both, V::splat_i32(15))), whole);
                mins[i] = V::mul(V::float(V::shr(both, 4)), min);
            });
            [scales, mins]
        }
    }
}
