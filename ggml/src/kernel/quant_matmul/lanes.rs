//! Rows of a file's blocks side by side: the same four bytes of 16 rows in one line.
#![expect(unsafe_code, reason = "vector instructions")]

use super::layout::{LANES, QUAD};
use super::lines::Lines;
use super::vector::Vector;

/// 16 bytes of each of 16 rows, `at` bytes from where they begin: per four bytes 16 rows of them.
///
/// # Safety
/// The CPU has the set.
#[inline(always)]
pub(super) unsafe fn side_by_side<V: Vector>(
    rows: &[u8],
    stride: usize,
    at: usize,
) -> [[u8; QUAD]; 4] {
    assert!(rows.len() >= (LANES - 1) * stride + at + 16, "16 rows are given");
    let mut lines = [[0; QUAD]; 4];
    // SAFETY: the last row's 16 bytes are there, as checked.
    unsafe {
        for (line, four) in lines.iter_mut().zip(V::rows(rows.as_ptr().add(at), stride)) {
            V::store(line.as_mut_ptr(), four);
        }
    }
    lines
}

/// 32 bytes of each of 16 rows.
///
/// # Safety
/// The CPU has the set.
#[inline(always)]
pub(super) unsafe fn all_side_by_side<V: Vector>(rows: &[u8], stride: usize, at: usize) -> Lines {
    // SAFETY: as the caller says.
    let [first, last] =
        unsafe { [side_by_side::<V>(rows, stride, at), side_by_side::<V>(rows, stride, at + 16)] };
    let mut lines = [[0; QUAD]; 8];
    lines[..4].copy_from_slice(&first);
    lines[4..].copy_from_slice(&last);
    lines
}

/// `N` bytes of each row, `at` bytes from where the rows begin.
#[inline(always)]
pub(super) fn beside<const N: usize>(rows: &[u8], stride: usize, at: usize, to: &mut [u8]) {
    for (lane, to) in to.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        to.copy_from_slice(&rows[lane * stride + at..][..N]);
    }
}
