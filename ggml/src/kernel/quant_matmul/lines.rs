//! Numbers of 2 to 8 bits of 16 rows and 32 columns, packed into as many lines as they have bits.
//!
//! Numbers lie in eight fours of columns; four columns of 16 rows, a byte each, are a line of 64
//! bytes. Packed, as many lines hold all eight fours, so that a packed matrix is as large as in the
//! file. They are put so that few instructions take them out again (for 256 or 512 bits at a time:
//! `&`, then shift and `&`): a byte holds whole numbers from its lowest bit on, and what is left of
//! its upper bits holds parts of further ones.
//!
//! | bits | a line's bytes | fours in parts, from their lowest bit on |
//! |---|---|---|
//! | 2 | lines 0, 1: fours 0 to 3, 4 to 7 | |
//! | 3 | lines 0 to 2: fours 0 and 1, 2 and 3, 4 and 5 | 6: two bits of line 0, one of 2; 7: two of 1, one of 2 |
//! | 4 | line i: four i, four i + 4 | |
//! | 5 | line i: four i | 5: three of 0, two of 1; 6: three of 2, two of 3; 7: three of 4, one of 1, one of 3 |
//! | 6 | lines 0 to 2: fours 0 to 2, lines 3 to 5: fours 4 to 6 | 3: two of each of 0 to 2; 7: two of each of 3 to 5 |
//! | 8 | line i: four i | |
#![expect(unsafe_code, reason = "vector instructions")]

use super::layout::{QUAD, QUADS};
use super::vector::{Vector, written_out};

/// Numbers of 16 rows and 32 columns, a byte each, as lines.
pub(super) type Lines = [[u8; QUAD]; QUADS];

/// A run of bits of a number: their line, the first one's place there, how many, the first one's
/// place in the number.
#[derive(Clone, Copy)]
struct Run(usize, u32, u32, u32);

/// No bits.
const NONE: Run = Run(0, 0, 0, 0);

/// Where the bits of a four's numbers lie: at most three runs.
#[inline(always)] // folded where the four is a constant
const fn place(bits: usize, four: usize) -> [Run; 3] {
    let at = four as u32;
    match (bits, four) {
        (2, _) => [Run(four / 4, 2 * (at % 4), 2, 0), NONE, NONE],
        (3, 6) => [Run(0, 6, 2, 0), Run(2, 6, 1, 2), NONE],
        (3, 7) => [Run(1, 6, 2, 0), Run(2, 7, 1, 2), NONE],
        (3, _) => [Run(four / 2, 3 * (at % 2), 3, 0), NONE, NONE],
        (4, _) => [Run(four % 4, 4 * (at / 4), 4, 0), NONE, NONE],
        (5, 5) => [Run(0, 5, 3, 0), Run(1, 5, 2, 3), NONE],
        (5, 6) => [Run(2, 5, 3, 0), Run(3, 5, 2, 3), NONE],
        (5, 7) => [Run(4, 5, 3, 0), Run(1, 7, 1, 3), Run(3, 7, 1, 4)],
        (5, _) => [Run(four, 0, 5, 0), NONE, NONE],
        (6, 3) => [Run(0, 6, 2, 0), Run(1, 6, 2, 2), Run(2, 6, 2, 4)],
        (6, 7) => [Run(3, 6, 2, 0), Run(4, 6, 2, 2), Run(5, 6, 2, 4)],
        (6, 4..) => [Run(four - 1, 0, 6, 0), NONE, NONE],
        (6, _) => [Run(four, 0, 6, 0), NONE, NONE],
        _ => [Run(four, 0, 8, 0), NONE, NONE],
    }
}

/// Packs numbers of `BITS` bits into as many lines.
#[inline(always)]
pub(super) fn pack<const BITS: usize>(numbers: &Lines, to: &mut [u8]) {
    let lines = to.as_chunks_mut::<QUAD>().0;
    lines.as_flattened_mut().fill(0);
    written_out!(four in [0 1 2 3 4 5 6 7], {
        for Run(line, at, bits, first) in place(BITS, four) {
            let mask = ((1u16 << bits) - 1) as u8;
            for (to, &number) in lines[line].iter_mut().zip(&numbers[four]) {
                *to |= (number >> first & mask) << at;
            }
        }
    });
}

/// Four columns of 16 rows, from lines of numbers of `bits` bits.
///
/// # Safety
/// The CPU has the set; there are `bits` lines; `four` is below 8.
#[inline(always)]
pub(super) unsafe fn quad<V: Vector>(from: *const u8, bits: usize, four: usize) -> V::I {
    // SAFETY: the lines are there, as the caller says.
    unsafe {
        let [first, second, third] = place(bits, four);
        let number = run::<V>(from, first);
        if second.2 == 0 {
            return number;
        }
        let number = V::or(number, run::<V>(from, second));
        if third.2 == 0 { number } else { V::or(number, run::<V>(from, third)) }
    }
}

/// A run of bits, each number's at their place in it.
///
/// # Safety
/// The CPU has the set; the run's line is there.
#[inline(always)]
unsafe fn run<V: Vector>(from: *const u8, Run(line, at, bits, first): Run) -> V::I {
    // SAFETY: the line is there, as the caller says.
    unsafe {
        let line = V::load(from.add(line * QUAD));
        if bits == 8 {
            return line;
        }
        let moved = match at.cmp(&first) {
            std::cmp::Ordering::Greater => V::shr(line, at - first),
            std::cmp::Ordering::Less => V::shl(line, first - at),
            std::cmp::Ordering::Equal => line,
        };
        // bits that came over from the next byte are not among these
        V::and(moved, V::splat((((1u16 << bits) - 1) << first) as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_number_has_one_place_and_every_bit_of_a_line_one_number() {
        for bits in [2, 3, 4, 5, 6, 8] {
            let mut taken = vec![0u8; bits];
            for four in 0..QUADS {
                let mut of_number = 0u16;
                for Run(line, at, count, first) in place(bits, four) {
                    let mask = (1u16 << count) - 1;
                    assert_eq!(taken[line] & (mask << at) as u8, 0, "{bits} bits, four {four}");
                    taken[line] |= (mask << at) as u8;
                    assert_eq!(of_number & mask << first, 0, "{bits} bits, four {four}");
                    of_number |= mask << first;
                }
                assert_eq!(of_number, (1 << bits) - 1, "{bits} bits, four {four}");
            }
            assert!(taken.iter().all(|&line| line == 0xff), "{bits} bits: {taken:?}");
        }
    }
}
