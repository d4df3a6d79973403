//! iq4_nl: a float16 scale, and 32 nibbles as in q4_0 that stand for numbers of a table.
#![expect(unsafe_code, reason = "vector instructions")]

use super::lanes::{beside, side_by_side};
use super::layout::{BLOCK, Layout};
use super::vector::Vector;

/// What four bits stand for, plus 128. Source: ggml-common.h, kvalues_iq4nl.
pub(super) const TABLE: [u8; 16] =
    [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

/// Numbers of a table.
pub(super) struct Iq4Nl;

impl Layout for Iq4Nl {
    const UNIT: usize = BLOCK;
    const UNIT_BYTES: usize = 18;
    const BITS: usize = 4;
    const PARTS: usize = 1;
    const OFFSET: i32 = 128;
    const TABLE: Option<[u8; 16]> = Some(TABLE);

    type Each<V: Copy> = [V; 1];

    #[inline(always)]
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]) {
        beside::<2>(rows, stride, 0, scales);
        // SAFETY: as the caller says.
        values.copy_from_slice(unsafe { side_by_side::<V>(rows, stride, 2) }.as_flattened());
    }

    #[inline(always)]
    unsafe fn scales<V: Vector>(at: *const u8) -> [[V::F; 1]; 2] {
        // SAFETY: 16 float16, as the caller says.
        let scale = unsafe { V::load_f16(at) };
        [[scale]; 2]
    }
}
