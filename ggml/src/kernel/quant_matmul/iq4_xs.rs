//! iq4_xs: super-blocks of 256 columns: a float16 scale, eight of 6 bits, and nibbles as in iq4_nl.
#![expect(unsafe_code, reason = "vector instructions")]

use super::iq4_nl::TABLE;
use super::lanes::{beside, side_by_side};
use super::layout::{LANES, Layout, QUAD};
use super::vector::Vector;

/// Numbers of a table. Scales: 16 float16, then per row the upper two bits of eight scales (two
/// bytes), then the lower four (four bytes).
pub(super) struct Iq4Xs;

impl Layout for Iq4Xs {
    const UNIT: usize = 256;
    const UNIT_BYTES: usize = 136;
    const BITS: usize = 4;
    const PARTS: usize = 1;
    const OFFSET: i32 = 128;
    const TABLE: Option<[u8; 16]> = Some(TABLE);

    type Each<V: Copy> = [V; 8];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        let (whole, parts) = scales.split_at_mut(2 * LANES);
        let (high, low) = parts.split_at_mut(2 * LANES);
        beside::<2>(rows, stride, 0, whole);
        beside::<2>(rows, stride, 2, high);
        beside::<4>(rows, stride, 4, low);
        for (block, to) in values.chunks_exact_mut(QUAD * 4).enumerate() {
            // SAFETY: as the caller says.
            let lines = unsafe { side_by_side::<V>(rows, stride, 8 + 16 * block) };
            to.copy_from_slice(lines.as_flattened());
        }
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 8]; 2] {
        // SAFETY: as packed, and as the caller says.
        unsafe {
            let whole = V::load_f16(at);
            let high = V::widen_u16(at.add(2 * LANES));
            let low = V::load(at.add(4 * LANES));
            let mut scales = [whole; 8];
            for (block, scale) in scales.iter_mut().enumerate() {
                let low = V::and(V::shr(low, 4 * block as u32), V::splat_i32(15));
                let high = V::and(V::shl(V::shr(high, 2 * block as u32), 4), V::splat_i32(0x30));
                let part = V::add(V::or(low, high), V::splat_i32(-32));
                *scale = V::mul(V::float(part), whole);
            }
            [scales; 2]
        }
    }
}
