//! Rows of activations rounded to blocks of 32 whole numbers, as ggml's q8_0 does.
#![expect(unsafe_code, reason = "vector instructions")]

use super::layout::BLOCK;
use super::vector::{Task, Vector};

/// Rows of activations, rounded.
///
/// A block has one or two parts ([`super::layout::Layout::PARTS`]); of each its sum is kept, since
/// weights are numbers from 0 on, or have a min. Of values that are no numbers they may be any.
#[derive(Default)]
pub(super) struct Rounded {
    /// The number of values of a row.
    pub(super) cols: usize,
    /// `[n, cols]`
    pub(super) values: Vec<i8>,
    /// `[n, cols / 32]`: scales, rounded to float16 as q8_0 keeps them.
    pub(super) scales: Vec<f32>,
    /// `[n, cols / 32, parts]`: a part's sum times minus the weights' offset.
    pub(super) starts: Vec<i32>,
    /// `[n, cols / 32, parts]`: a part's sum times the scale.
    pub(super) mins: Vec<f32>,
    parts: usize,
    offset: i32,
}

impl Rounded {
    /// Makes room for `n` rows.
    pub(super) fn resize(&mut self, n: usize, cols: usize, parts: usize, offset: i32) {
        (self.cols, self.parts, self.offset) = (cols, parts, offset);
        let blocks = n * (cols / BLOCK);
        self.values.resize(n * cols, 0);
        self.scales.resize(blocks, 0.0);
        self.starts.resize(blocks * parts, 0);
        self.mins.resize(blocks * parts, 0.0);
    }
}

/// Rounds a row of float32: scale = largest / 127, ties to even, as ggml does on x86.
pub(super) struct RoundRow<'a> {
    pub(super) row: &'a [f32],
    pub(super) to: &'a mut Rounded,
    pub(super) token: usize,
}

impl Task for RoundRow<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Rounded { cols, parts, offset, .. } = *self.to;
        let blocks = cols / BLOCK;
        let out = &mut self.to.values[self.token * cols..][..cols];
        let scales = &mut self.to.scales[self.token * blocks..][..blocks];
        let starts = &mut self.to.starts[self.token * blocks * parts..][..blocks * parts];
        let mins = &mut self.to.mins[self.token * blocks * parts..][..blocks * parts];
        let each = self.row.chunks_exact(BLOCK).zip(out.chunks_exact_mut(BLOCK)).zip(scales);
        let each = each.zip(starts.chunks_exact_mut(parts).zip(mins.chunks_exact_mut(parts)));
        for (((values, out), scale), (starts, mins)) in each {
            // SAFETY: 32 values are there to be read, 32 bytes to be written.
            let (largest, [first, last]) = unsafe { V::round(values.as_ptr(), out.as_mut_ptr()) };
            *scale = half::f16::from_f32(largest / 127.0).to_f32();
            let sums = if parts == 1 { [first.wrapping_add(last), 0] } else { [first, last] };
            for ((sum, start), min) in sums.into_iter().zip(starts).zip(mins) {
                *start = sum.wrapping_mul(-offset);
                *min = sum as f32 * *scale;
            }
        }
    }
}
