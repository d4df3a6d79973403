//! q8_0: a float16 scale and 32 signed bytes, kept plus 128 where VNNI multiplies unsigned
//! bytes with signed ones.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{all_side_by_side, beside};
use super::layout::{BLOCK, Layout};
use super::vector::Vector;

/// Numbers stand for -128..127.
pub(super) struct Q8_0;

impl Layout for Q8_0 {
    const UNIT: usize = BLOCK;
    const UNIT_BYTES: usize = 34;
    const BITS: usize = 8;
    const PARTS: usize = 1;
    const OFFSET: i32 = 128;
    const IN_FILE: bool = true;

    type Each<V: Copy> = [V; 1];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        beside::<2>(rows, stride, 0, scales);
        // SAFETY: as the caller says.
        let lines = unsafe { all_side_by_side::<V>(rows, stride, 2) };
        let flip = if V::SIGNED { 0 } else { 0x80 };
        for (to, &byte) in values.iter_mut().zip(lines.as_flattened()) {
            *to = byte ^ flip;
        }
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 1]; 2] {
        // SAFETY: 16 float16, as the caller says.
        let scale = unsafe { V::load_f16(at) };
        [[scale]; 2]
    }
}
