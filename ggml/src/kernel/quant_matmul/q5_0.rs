//! q5_0: a float16 scale, 32 fifth bits, and 32 nibbles as in q4_0.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{beside, side_by_side};
use super::layout::{BLOCK, Layout, QUAD, QUADS};
use super::lines;
use super::vector::{Vector, written_out};

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
    let mut words = [0; QUAD];
    beside::<4>(rows, stride, fifths, &mut words);
    let mut numbers = [[0; QUAD]; QUADS];
    // SAFETY: lines of 64 bytes, and as the caller says.
    unsafe {
        let words = V::load(words.as_ptr());
        let nibbles = side_by_side::<V>(rows, stride, nibbles);
        written_out!(four in [0 1 2 3 4 5 6 7], {
            // four bits become the fifth bits of four bytes
            let bits = V::and(V::shr(words, 4 * four as u32), V::splat_i32(15));
            let last = V::or(V::shl(bits, 14), V::shl(bits, 21));
            let bits = V::or(V::or(bits, V::shl(bits, 7)), last);
            let bits = V::shl(V::and(bits, V::splat(1)), 4);
            let both = V::load(nibbles[four % 4].as_ptr());
            let low = V::and(V::shr(both, 4 * (four / 4) as u32), V::splat(15));
            V::store(numbers[four].as_mut_ptr(), V::or(low, bits));
        });
    }
    lines::pack::<5>(&numbers, to);
}
