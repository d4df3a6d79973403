//! q4_k: super-blocks of 256 columns: float16 scale and min, eight scales and mins of 6 bits each,
//! and nibbles.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{all_side_by_side, beside};
use super::layout::{LANES, Layout, QUAD};
use super::q4_1::pack_scale_and_min;
use super::vector::Vector;

/// Numbers from 0 to 15, with mins. Scales: 16 float16 scales and mins, then per row three times
/// four bytes, as they are in the file.
pub(super) struct Q4K;

impl Layout for Q4K {
    const UNIT: usize = 256;
    const UNIT_BYTES: usize = 144;
    const BITS: usize = 4;
    const PARTS: usize = 1;
    const OFFSET: i32 = 0;
    const MINS: bool = true;

    type Each<V: Copy> = [V; 8];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        pack_scales(rows, stride, scales);
        for (pair, to) in values.chunks_exact_mut(2 * QUAD * 4).enumerate() {
            // two blocks' numbers lie in the halves of the same 32 bytes
            // SAFETY: as the caller says.
            let lines = unsafe { all_side_by_side::<V>(rows, stride, 16 + 32 * pair) };
            let (first, last) = lines.as_flattened().split_at(4 * QUAD);
            let (even, odd) = to.split_at_mut(4 * QUAD);
            for (((even, odd), &first), &last) in even.iter_mut().zip(odd).zip(first).zip(last) {
                *even = first & 15 | last << 4;
                *odd = first >> 4 | last & 0xf0;
            }
        }
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 8]; 2] {
        // SAFETY: as packed, and as the caller says.
        unsafe { scales_and_mins::<V>(at) }
    }
}

/// Packs the first 16 bytes of super-blocks of q4_k or q5_k.
#[inline(always)]
pub(super) fn pack_scales(rows: &[u8], stride: usize, to: &mut [u8]) {
    let (wholes, parts) = to.split_at_mut(4 * LANES);
    pack_scale_and_min(rows, stride, wholes);
    for (i, to) in parts.chunks_exact_mut(4 * LANES).enumerate() {
        beside::<4>(rows, stride, 4 + 4 * i, to);
    }
}

/// The scales and mins of eight blocks, unpacked.
///
/// The 12 bytes of a row: the first four have the scales of the first four blocks in their low six
/// bits, the next four the mins; the last four have the low four bits of the others' scales and, in
/// the high halves, of their mins, whose upper two bits are those left of the first eight bytes.
/// Source: ggml-quants.c, get_scale_min_k4.
///
/// # Safety
/// The CPU has the set; what [`pack_scales`] packed is there.
#[inline(always)]
pub(super) unsafe fn scales_and_mins<V: Vector>(at: *const u8) -> [[V::F; 8]; 2] {
    // SAFETY: as the caller says.
    unsafe {
        let lines = [V::load(at.add(QUAD)), V::load(at.add(2 * QUAD))];
        let rest = V::load(at.add(3 * QUAD));
        let wholes = [V::load_f16(at), V::negate(V::load_f16(at.add(2 * LANES)))];
        let mut all = [[wholes[0]; 8], [wholes[1]; 8]];
        for which in 0..2 {
            for block in 0..4 {
                let shift = 8 * block as u32;
                let part = V::and(V::shr(lines[which], shift), V::splat_i32(63));
                all[which][block] = V::mul(V::float(part), wholes[which]);
                let low = V::shr(rest, shift + 4 * which as u32);
                let high = V::shr(lines[which], shift + 2);
                let low = V::and(low, V::splat_i32(15));
                let part = V::or(low, V::and(high, V::splat_i32(0x30)));
                all[which][block + 4] = V::mul(V::float(part), wholes[which]);
            }
        }
        all
    }
}
