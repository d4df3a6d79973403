//! q5_0: a float16 scale, 32 fifth bits, and 32 nibbles as in q4_0.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{beside, side_by_side};
use super::layout::{BLOCK, LANES, Layout, QUAD, QUADS};
use super::lines;
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
        // SAFETY: as the caller says.
        unsafe { pack_numbers::<V>(rows, stride, 2, 6, values) };
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 1]; 2] {
        // SAFETY: 16 float16, as the caller says.
        let scale = unsafe { V::load_f16(at) };
        [[scale]; 2]
    }
}

/// Packs numbers whose fifth bits are, per row, a number of 32 bits (column i in bit i) at `fifths`,
/// and whose others are nibbles as in q4_0 at `nibbles`.
///
/// # Safety
/// The CPU has the set.
#[inline(always)]
pub(super) unsafe fn pack_numbers<V: Vector>(
    rows: &[u8],
    stride: usize,
    fifths: usize,
    nibbles: usize,
    to: &mut [u8],
) {
    let mut bits = [[0; 4]; LANES];
    beside::<4>(rows, stride, fifths, bits.as_flattened_mut());
    for row in &mut bits {
        // bit 4 k + j becomes bit k of byte j: columns of fours turned into fours of columns
        let bits = u32::from_le_bytes(*row);
        for (j, to) in row.iter_mut().enumerate() {
            let every_fourth = bits >> j & 0x1111_1111;
            let pairs = (every_fourth | every_fourth >> 3) & 0x0303_0303;
            let fours = (pairs | pairs >> 6) & 0x000f_000f;
            *to = (fours | fours >> 12) as u8;
        }
    }
    // SAFETY: as the caller says.
    let lines = unsafe { side_by_side::<V>(rows, stride, nibbles) };
    let mut numbers = [[0; QUAD]; QUADS];
    for (four, numbers) in numbers.iter_mut().enumerate() {
        let (line, half) = (&lines[four % 4], 4 * (four / 4));
        for ((number, &nibbles), &bits) in numbers.iter_mut().zip(line).zip(bits.as_flattened()) {
            *number = nibbles >> half & 15 | (bits >> four & 1) << 4;
        }
    }
    lines::pack::<5>(&numbers, to);
}
