//! Numbers of 2 to 8 bits of 16 rows and 32 columns, in planes of one, two, four or eight bits.
//!
//! Numbers lie in eight fours of columns; four columns of 16 rows are a line of 64 bytes. A plane
//! of 8 bits is those eight lines; one of 4 bits has half as many, line i holding four i in the low
//! and four `i + 4` in the high halves of its bytes; one of 2 bits has two lines, line i holding
//! four `4 i + j` in bits 2 j; one of 1 bit has one, four i in bit i. 5 bits are a plane of 4 and
//! one of 1, 6 bits of 4 and 2, 3 bits of 2 and 1: as in ggml's blocks, so that a packed matrix is
//! as large as in the file.
#![expect(unsafe_code, reason = "vector instructions")]

use super::layout::{QUAD, QUADS};
use super::vector::Vector;

/// Numbers of 16 rows and 32 columns, a byte each, as lines.
pub(super) type Lines = [[u8; QUAD]; QUADS];

/// The bits of the planes of numbers of `bits` bits: the low ones, the high ones.
const fn planes(bits: usize) -> (usize, usize) {
    match bits {
        3 => (2, 1),
        5 => (4, 1),
        6 => (4, 2),
        all => (all, 0),
    }
}

/// Puts numbers of `BITS` bits into planes: the low one, then the high one.
pub(super) fn pack<const BITS: usize>(numbers: &Lines, to: &mut [u8]) {
    let (low, high) = planes(BITS);
    let (to_low, to_high) = to.split_at_mut(low * QUAD);
    plane(numbers, 0, low, to_low);
    plane(numbers, low as u32, high, to_high);
}

/// One plane of `bits` bits, of the numbers' bits from `first` on.
fn plane(numbers: &Lines, first: u32, bits: usize, to: &mut [u8]) {
    let mask = ((1u16 << bits) - 1) as u8;
    for (i, line) in to.as_chunks_mut::<QUAD>().0.iter_mut().enumerate() {
        let place = |four: usize| match bits {
            4 => (four % 4 == i).then_some(4 * (four / 4)),
            2 => (four / 4 == i).then_some(2 * (four % 4)),
            1 => Some(four),
            _ => (four == i).then_some(0),
        };
        *line = [0; QUAD];
        for (four, numbers) in numbers.iter().enumerate() {
            let Some(shift) = place(four) else { continue };
            for (to, &number) in line.iter_mut().zip(numbers) {
                *to |= (number >> first & mask) << shift;
            }
        }
    }
}

/// Four columns of 16 rows, from planes of `bits` bits.
///
/// # Safety
/// The CPU has the set; there are `bits` lines; `four` is below 8.
#[inline(always)]
pub(super) unsafe fn quad<V: Vector>(from: *const u8, bits: usize, four: usize) -> V::I {
    let (low_bits, high_bits) = planes(bits);
    // SAFETY: the lines of the planes, as the caller says.
    unsafe {
        let low = quad_of::<V>(from, low_bits, four, 0);
        if high_bits == 0 {
            return low;
        }
        let high = quad_of::<V>(from.add(low_bits * QUAD), high_bits, four, low_bits as u32);
        V::or(low, high)
    }
}

/// Four columns of one plane, their bits put from bit `to` on.
///
/// # Safety
/// As for [`quad`].
#[inline(always)]
unsafe fn quad_of<V: Vector>(from: *const u8, bits: usize, four: usize, to: u32) -> V::I {
    let (line, at) = match bits {
        4 => (four % 4, 4 * (four / 4) as u32),
        2 => (four / 4, 2 * (four % 4) as u32),
        1 => (0, four as u32),
        _ => (four, 0),
    };
    // SAFETY: the line is there, as the caller says.
    unsafe {
        let line = V::load(from.add(line * QUAD));
        if bits == 8 {
            return line;
        }
        let moved = match (at, to) {
            (at, to) if at > to => V::shr(line, at - to),
            (at, to) if at < to => V::shl(line, to - at),
            _ => line,
        };
        V::and(moved, V::splat((((1u16 << bits) - 1) << to) as u8))
    }
}
