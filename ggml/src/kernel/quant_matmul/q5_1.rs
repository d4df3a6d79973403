//! q5_1: float16 scale and min, 32 fifth bits, and 32 nibbles as in q4_0.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::beside;
use super::layout::{BLOCK, LANES, Layout};
use super::q5_0::pack_numbers;
use super::vector::Vector;

/// Numbers from 0 to 31, with a min.
pub(super) struct Q5_1;

impl Layout for Q5_1 {
    const UNIT: usize = BLOCK;
    const UNIT_BYTES: usize = 24;
    const BITS: usize = 5;
    const PARTS: usize = 1;
    const OFFSET: i32 = 0;
    const MINS: bool = true;

    type Each<V: Copy> = [V; 1];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        let (scale, min) = scales.split_at_mut(2 * LANES);
        beside::<2>(rows, stride, 0, scale);
        beside::<2>(rows, stride, 2, min);
        // SAFETY: as the caller says.
        unsafe { pack_numbers::<V>(rows, stride, 4, 8, values) };
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 1]; 2] {
        // SAFETY: twice 16 float16, as the caller says.
        unsafe { [[V::load_f16(at)], [V::load_f16(at.add(2 * LANES))]] }
    }
}
