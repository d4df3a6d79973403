//! q5_0: a float16 scale, 32 fifth bits, and 32 nibbles as in q4_0.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{beside, side_by_side};
use super::layout::{BLOCK, Layout, QUAD};
use super::vector::Vector;

/// Numbers stand for -16..15.
pub(super) struct Q5_0;

impl Layout for Q5_0 {
    const UNIT: usize = BLOCK;
    const UNIT_BYTES: usize = 22;
    const BITS: usize = 5;
    const PARTS: usize = 1;
    const OFFSET: i32 = 16;

    type Each<V: Copy> = [V; 1];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        beside::<2>(rows, stride, 0, scales);
        let (low, high) = values.split_at_mut(QUAD * BLOCK / 8);
        // SAFETY: as the caller says.
        low.copy_from_slice(unsafe { side_by_side::<V>(rows, stride, 6) }.as_flattened());
        fifth_bits(rows, stride, 2, high);
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 1]; 2] {
        // SAFETY: 16 float16, as the caller says.
        let scale = unsafe { V::load_f16(at) };
        [[scale]; 2]
    }
}

/// The plane of the fifth bits: those of a row are a number of 32 bits, `at` bytes from where the
/// rows begin, column i in bit i.
#[inline(always)]
pub(super) fn fifth_bits(rows: &[u8], stride: usize, at: usize, to: &mut [u8]) {
    for (lane, to) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let mut row = [0; 4];
        row.copy_from_slice(&rows[lane * stride + at..][..4]);
        // bit 4 k + j becomes bit k of byte j: columns of fours turned into fours of columns
        let bits = u32::from_le_bytes(row);
        for (j, to) in to.iter_mut().enumerate() {
            // the eight bits j, j + 4, .. gathered in the top byte: no two products meet
            let every_fourth = bits >> j & 0x1111_1111;
            let pairs = (every_fourth | every_fourth >> 3) & 0x0303_0303;
            let fours = (pairs | pairs >> 6) & 0x000f_000f;
            *to = (fours | fours >> 12) as u8;
        }
    }
}
