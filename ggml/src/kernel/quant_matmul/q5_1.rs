//! q5_1: float16 scale and min, 32 fifth bits, and 32 nibbles as in q4_0.
#![expect(unsafe_code, reason = "vector instructions")]

use super::layout::{BLOCK, Layout};
use super::q4_1::{pack_scale_and_min, scale_and_min};
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
        pack_scale_and_min(rows, stride, scales);
        // SAFETY: as the caller says.
        unsafe { pack_numbers::<V>(rows, stride, 4, 8, values) };
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 1]; 2] {
        // SAFETY: as packed, and as the caller says.
        unsafe { scale_and_min::<V>(at) }
    }
}
