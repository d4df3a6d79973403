//! q5_k: as q4_k, with a fifth bit of each number.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::all_side_by_side;
use super::layout::{Layout, QUAD, QUADS};
use super::lines;
use super::q4_k::{pack_scales, scales_and_mins};
use super::vector::Vector;

/// Numbers from 0 to 31, with mins. Scales as in q4_k.
pub(super) struct Q5K;

impl Layout for Q5K {
    const UNIT: usize = 256;
    const UNIT_BYTES: usize = 176;
    const BITS: usize = 5;
    const PARTS: usize = 1;
    const OFFSET: i32 = 0;
    const MINS: bool = true;

    type Each<V: Copy> = [V; 8];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        pack_scales(rows, stride, scales);
        // SAFETY: as the caller says.
        let fifths = unsafe { all_side_by_side::<V>(rows, stride, 16) };
        for (block, to) in values.chunks_exact_mut(5 * QUAD).enumerate() {
            // two blocks' numbers lie in the halves of the same 32 bytes
            let half = 4 * (block % 2);
            // SAFETY: as the caller says.
            let lines = unsafe { all_side_by_side::<V>(rows, stride, 48 + 32 * (block / 2)) };
            let mut numbers = [[0; QUAD]; QUADS];
            for ((number, &low), &high) in numbers
                .as_flattened_mut()
                .iter_mut()
                .zip(lines.as_flattened())
                .zip(fifths.as_flattened())
            {
                *number = low >> half & 15 | (high >> block & 1) << 4;
            }
            lines::pack::<5>(&numbers, to);
        }
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 8]; 2] {
        // SAFETY: as packed, and as the caller says.
        unsafe { scales_and_mins::<V>(at) }
    }
}
