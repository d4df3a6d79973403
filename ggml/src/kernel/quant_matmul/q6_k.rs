//! q6_k: super-blocks of 256 columns: a float16 scale, a signed byte of scale per 16 columns, and
//! numbers of 6 bits.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{all_side_by_side, beside};
use super::layout::{LANES, Layout, QUAD, QUADS};
use super::lines;
use super::vector::Vector;

/// Numbers stand for -32..31. Scales: 16 float16, then per 16 columns 16 signed bytes.
pub(super) struct Q6K;

impl Layout for Q6K {
    const UNIT: usize = 256;
    /// 128 bytes of low halves, 64 of high ones, 16 scales, a float16 scale.
    const UNIT_BYTES: usize = 210;
    const BITS: usize = 6;
    const PARTS: usize = 2;
    const OFFSET: i32 = 32;

    type Each<V: Copy> = [V; 16];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        let (whole, parts) = scales.split_at_mut(2 * LANES);
        beside::<2>(rows, stride, 208, whole);
        for (part, to) in parts.chunks_exact_mut(LANES).enumerate() {
            beside::<1>(rows, stride, 192 + part, to);
        }
        for (block, to) in values.chunks_exact_mut(6 * QUAD).enumerate() {
            let (half, quarter) = (block / 4, block % 4);
            // SAFETY: as the caller says.
            let (low, high) = unsafe {
                (
                    all_side_by_side::<V>(rows, stride, 64 * half + 32 * (quarter % 2)),
                    all_side_by_side::<V>(rows, stride, 128 + 32 * half),
                )
            };
            let mut numbers = [[0; QUAD]; QUADS];
            let bytes = low.as_flattened().iter().zip(high.as_flattened());
            for (number, (low, high)) in numbers.as_flattened_mut().iter_mut().zip(bytes) {
                *number = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
            }
            lines::pack::<6>(&numbers, to);
        }
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 16]; 2] {
        // SAFETY: as packed, and as the caller says.
        unsafe {
            let whole = V::load_f16(at);
            let mut scales = [whole; 16];
            for (part, scale) in scales.iter_mut().enumerate() {
                *scale = V::mul(V::float(V::widen_i8(at.add((2 + part) * LANES))), whole);
            }
            [scales; 2]
        }
    }
}
