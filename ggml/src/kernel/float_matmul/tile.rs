//! Tiles of four rows: where they lie, and their products with some tokens.
#![expect(unsafe_code, reason = "weights and activations are read through pointers")]
#![expect(clippy::needless_range_loop, reason = "indices name registers of several arrays")]

use std::ops::Range;

use crate::kernel::custom::CHUNK;
#[cfg(target_arch = "aarch64")]
use crate::kernel::vector::Neon;
#[cfg(target_arch = "x86_64")]
use crate::kernel::vector::{Avx2, Avx512};
use crate::kernel::vector::{Element, LANES, Lanes, prefetch};

/// Rows of a tile.
pub(super) const ROWS: usize = 4;
/// Bytes between what is multiplied and what is fetched ahead: a page, which the CPU's own
/// prefetchers do not cross (measured on Zen 5: 1.0 to 1.08 times the rate without).
const AHEAD: usize = 4096;
/// Bytes of a cache's line.
const LINE: usize = 64;
/// With more rows of activations than this the next chunk of a file is fetched while one is
/// multiplied, a part beside each few rows: those that meet a chunk first would wait for memory.
const MANY: usize = 6;

/// The tiles of a matrix.
#[derive(Clone, Copy)]
pub(super) enum Tiles<'a> {
    /// One after the other, each as [`pack`] makes it.
    Packed(&'a [u8]),
    InFile(&'a [Tile]),
}

/// Where the first of four rows, one after the other, begins in a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile(pub(super) *const u8);

// SAFETY: only read, and kept by whoever made the matrix.
unsafe impl Send for Tile {}
// SAFETY: as above.
unsafe impl Sync for Tile {}

/// A matrix of `cols` columns, activations with `stride` bytes from row to row, results of `rows`
/// values.
pub(super) struct Product<'a> {
    pub(super) tiles: Tiles<'a>,
    pub(super) x: *const u8,
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) out: *mut f32,
}

/// Puts four rows (`rows`, one after the other) side by side: 16 columns of each, then the next 16;
/// numbers are of `size` bytes.
pub(super) fn pack(rows: &[u8], size: usize, to: &mut [u8]) {
    let (row_bytes, part) = (rows.len() / ROWS, LANES * size);
    for (at, to) in to.chunks_exact_mut(ROWS * part).enumerate() {
        for (row, to) in to.chunks_exact_mut(part).enumerate() {
            to.copy_from_slice(&rows[row * row_bytes + at * part..][..part]);
        }
    }
}

/// The products of some tiles with all pairs of rows of activations and of results, all weights of
/// a chunk before the next chunk; `R` rows and `T` tokens at a time, of several sizes the first one
/// that fits the tokens that are left.
macro_rules! products {
    ($set:ty, $product:expr, $pairs:expr, $share:expr, $($rows:literal x $tokens:literal)*) => {{
        let (product, share): (&Product<'_>, Range<usize>) = ($product, $share);
        let bytes = ROWS * product.cols * E::SIZE;
        let step = (CHUNK / bytes).max(1);
        let mut first = share.start;
        while first < share.end {
            let tiles = first..(first + step).min(share.end);
            first = tiles.end;
            let mut rest: &[(u32, u32)] = $pairs;
            $(
                while let Some((pairs, after)) = rest.split_first_chunk::<$tokens>() {
                    let done = $pairs.len() - rest.len();
                    rest = after;
                    for tile in tiles.clone() {
                        if let Tiles::InFile(tiles) = product.tiles
                            && $pairs.len() > MANY
                            && tile + step < share.end
                        {
                            let share = [done, done + $tokens].map(|n| bytes * n / $pairs.len());
                            for at in (share[0].next_multiple_of(LINE)..share[1]).step_by(LINE) {
                                prefetch(tiles[tile + step].0.wrapping_add(at));
                            }
                        }
                        for row in (0..ROWS).step_by($rows) {
                            match product.tiles {
                                Tiles::Packed(bytes) => {
                                    let at = tile * ROWS * product.cols * E::SIZE;
                                    // SAFETY: as the caller says.
                                    unsafe {
                                        part::<$set, E, $rows, $tokens, false>(
                                            product, bytes.as_ptr().add(at), tile, row, pairs,
                                        );
                                    }
                                }
                                // SAFETY: as the caller says.
                                Tiles::InFile(tiles) => unsafe {
                                    part::<$set, E, $rows, $tokens, true>(
                                        product, tiles[tile].0, tile, row, pairs,
                                    );
                                },
                            }
                        }
                    }
                }
            )*
        }
    }};
}

/// The products of the tiles `share` with all pairs.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL; the product's memory is as it says, with these tiles, of
/// numbers of `E` and a multiple of 16 columns, and the pairs' rows.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn avx512<E: Element>(
    product: &Product<'_>,
    pairs: &[(u32, u32)],
    share: Range<usize>,
) {
    // 24 sums, four rows and one token in 32 registers
    products!(Avx512, product, pairs, share, 4 x 6  4 x 4  4 x 3  4 x 2  4 x 1);
}

/// [`avx512`] for AVX2.
///
/// # Safety
/// As there, but AVX2, FMA, F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2<E: Element>(
    product: &Product<'_>,
    pairs: &[(u32, u32)],
    share: Range<usize>,
) {
    // 12 sums in 16 registers of half the width
    products!(Avx2, product, pairs, share, 2 x 3  2 x 2  4 x 1);
}

/// [`avx512`] for NEON.
///
/// # Safety
/// As there, but NEON.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
pub(super) unsafe fn neon<E: Element>(
    product: &Product<'_>,
    pairs: &[(u32, u32)],
    share: Range<usize>,
) {
    // six sums of four registers, of 32
    products!(Neon, product, pairs, share, 2 x 3  2 x 2  4 x 1);
}

/// The products of the rows `row..row + R` of a tile that begins at `weights` with `T` tokens.
///
/// # Safety
/// As for [`avx512`]; the CPU has what `V` needs. What is fetched ahead may be anywhere.
#[inline(always)]
unsafe fn part<V: Lanes, E: Element, const R: usize, const T: usize, const FILE: bool>(
    product: &Product<'_>,
    weights: *const u8,
    tile: usize,
    row: usize,
    pairs: &[(u32, u32); T],
) {
    // SAFETY: this function's own condition.
    unsafe {
        let part = LANES * E::SIZE;
        let (between, step) = match FILE {
            true => (product.cols * E::SIZE, part),
            false => (part, ROWS * part),
        };
        let weights = weights.add(row * between);
        let inputs: [*const u8; T] =
            std::array::from_fn(|t| product.x.add(pairs[t].0 as usize * product.stride));
        let mut sums = [[V::splat(0.0); R]; T];
        for k in 0..product.cols / LANES {
            let at = weights.add(k * step);
            let mut w = [V::splat(0.0); R];
            for r in 0..R {
                w[r] = E::load::<V>(at.add(r * between));
            }
            if T <= 4 && !FILE {
                for line in 0..R * part / 64 {
                    prefetch(at.wrapping_add(AHEAD + 64 * line));
                }
            }
            for t in 0..T {
                let x = V::load(inputs[t].add(k * LANES * size_of::<f32>()).cast());
                for r in 0..R {
                    sums[t][r] = w[r].mul_add(x, sums[t][r]);
                }
            }
        }
        for t in 0..T {
            let first = pairs[t].1 as usize * product.rows + tile * ROWS + row;
            let of = &sums[t];
            let sums = V::sums([of[0], of[1 % R], of[2 % R], of[3 % R]]);
            product.out.add(first).copy_from_nonoverlapping(sums.as_ptr(), R);
        }
    }
}
