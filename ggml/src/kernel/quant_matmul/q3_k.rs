//! q3_k: super-blocks of 256 columns: a float16 scale, 16 of 6 bits, and numbers of 3 bits.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{all_side_by_side, beside};
use super::layout::{LANES, Layout, QUAD, QUADS};
use super::lines;
use super::vector::{Vector, written_out};

/// Numbers stand for -4..3. Scales: 16 float16, then per row three times four bytes, as they are
/// in the file.
pub(super) struct Q3K;

impl Layout for Q3K {
    const UNIT: usize = 256;
    /// 32 bytes of high bits, 64 of low ones, 12 of scales, a float16 scale.
    const UNIT_BYTES: usize = 110;
    const BITS: usize = 3;
    const PARTS: usize = 2;
    const OFFSET: i32 = 4;

    type Each<V: Copy> = [V; 16];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        let (whole, parts) = scales.split_at_mut(2 * LANES);
        beside::<2>(rows, stride, 108, whole);
        for (i, to) in parts.chunks_exact_mut(4 * LANES).enumerate() {
            beside::<4>(rows, stride, 96 + 4 * i, to);
        }
        // SAFETY: as the caller says.
        let high = unsafe { all_side_by_side::<V>(rows, stride, 0) };
        for (block, to) in values.chunks_exact_mut(3 * QUAD).enumerate() {
            let (half, quarter) = (block / 4, block % 4);
            // SAFETY: as the caller says.
            let low = unsafe { all_side_by_side::<V>(rows, stride, 32 + 32 * half) };
            let mut numbers = [[0; QUAD]; QUADS];
            let bytes = low.as_flattened().iter().zip(high.as_flattened());
            for (number, (low, high)) in numbers.as_flattened_mut().iter_mut().zip(bytes) {
                *number = low >> (2 * quarter) & 3 | (high >> block & 1) << 2;
            }
            lines::pack::<3>(&numbers, to);
        }
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 16]; 2] {
        // Scale i has its low four bits in byte i % 8 of the first eight, the low half for the
        // first eight scales; its upper two bits in byte i % 4 of the last four.
        // Source: ggml-quants.c, dequantize_row_q3_K.
        // SAFETY: as packed, and as the caller says.
        unsafe {
            let whole = V::load_f16(at);
            let words = at.add(2 * LANES);
            let lines = [V::load(words), V::load(words.add(QUAD)), V::load(words.add(2 * QUAD))];
            let mut scales = [whole; 16];
            written_out!(i in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15], {
                let byte = 8 * (i as u32 % 4);
                let low = V::shr(lines[i / 4 % 2], byte + 4 * (i as u32 / 8));
                let high = V::shl(V::shr(lines[2], byte + 2 * (i as u32 / 4)), 4);
                let low = V::and(low, V::splat_i32(15));
                let part = V::or(low, V::and(high, V::splat_i32(0x30)));
                scales[i] = V::mul(V::float(V::add(part, V::splat_i32(-32))), whole);
            });
            [scales; 2]
        }
    }
}
