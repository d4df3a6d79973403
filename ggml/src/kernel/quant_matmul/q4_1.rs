//! q4_1: float16 scale and min, and 32 nibbles as in q4_0.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{beside, side_by_side};
use super::layout::{BLOCK, LANES, Layout};
use super::vector::Vector;

/// Numbers from 0 to 15, with a min.
pub(super) struct Q4_1;

impl Layout for Q4_1 {
    const UNIT: usize = BLOCK;
    const UNIT_BYTES: usize = 20;
    const BITS: usize = 4;
    const PARTS: usize = 1;
    const OFFSET: i32 = 0;
    const MINS: bool = true;

    type Each<V: Copy> = [V; 1];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        pack_scale_and_min(rows, stride, scales);
        // SAFETY: as the caller says.
        values.copy_from_slice(unsafe { side_by_side::<V>(rows, stride, 4) }.as_flattened());
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 1]; 2] {
        // SAFETY: as packed, and as the caller says.
        unsafe { scale_and_min::<V>(at) }
    }
}

/// Packs the float16 scale and min with which units of q4_1, q5_1 and the K-types with mins begin.
#[inline(always)]
pub(super) fn pack_scale_and_min(rows: &[u8], stride: usize, to: &mut [u8]) {
    let (scale, min) = to.split_at_mut(2 * LANES);
    beside::<2>(rows, stride, 0, scale);
    beside::<2>(rows, stride, 2, min);
}

/// The scale and the min of a block of 16 rows.
///
/// # Safety
/// `at` has what [`pack_scale_and_min`] writes, and the CPU has the set of `V`.
#[inline(always)]
pub(super) unsafe fn scale_and_min<V: Vector>(at: *const u8) -> [[V::F; 1]; 2] {
    // SAFETY: twice 16 float16, as the caller says.
    unsafe { [[V::load_f16(at)], [V::load_f16(at.add(2 * LANES))]] }
}
