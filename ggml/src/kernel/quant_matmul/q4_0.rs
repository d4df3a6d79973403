//! q4_0: a float16 scale and 32 nibbles; a column lies in the low half of a byte, the one 16
//! further in the high half, as in packed lines.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{beside, side_by_side};
use super::layout::{BLOCK, Layout};
use super::vector::Vector;

/// Numbers stand for -8..7.
pub(super) struct Q4_0;

impl Layout for Q4_0 {
    const UNIT: usize = BLOCK;
    const UNIT_BYTES: usize = 18;
    const BITS: usize = 4;
    const PARTS: usize = 1;
    const OFFSET: i32 = 8;

    type Each<V: Copy> = [V; 1];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        beside::<2>(rows, stride, 0, scales);
        // SAFETY: as the caller says.
        values.copy_from_slice(unsafe { side_by_side::<V>(rows, stride, 2) }.as_flattened());
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 1]; 2] {
        // SAFETY: 16 float16, as the caller says.
        let scale = unsafe { V::load_f16(at) };
        [[scale]; 2]
    }
}
