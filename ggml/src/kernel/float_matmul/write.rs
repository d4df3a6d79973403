//! Numbers of a matrix overwritten where they lie.
#![expect(unsafe_code, reason = "weights are written through pointers")]

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use mmx_converters::gguf::GgmlType;

use super::tile::ROWS;
use crate::kernel::vector::LANES;

/// Overwrites the numbers of a row from column `first` on, in tiles of four rows of `cols` columns
/// that follow one another from `tiles` on.
///
/// # Safety
/// The row and these columns are there, and nobody else touches them.
pub(super) unsafe fn write_row(
    ty: GgmlType,
    tiles: *mut u8,
    cols: usize,
    (row, first): (usize, usize),
    values: &[f32],
) {
    let size = ty.block_bytes();
    let tile = tiles.wrapping_add(row / ROWS * ROWS * cols * size);
    let (mut at, mut rest) = (first, values);
    while !rest.is_empty() {
        let next = (at / LANES + 1) * LANES;
        let (part, after) = rest.split_at(rest.len().min(next - at));
        let place = (at / LANES * ROWS + row % ROWS) * LANES + at % LANES;
        // SAFETY: the place is that of the row's number `at` in its tile, sixteen columns of each row
        // side by side; the rest is what the caller says.
        unsafe { put(ty, tile.wrapping_add(place * size), part) };
        (at, rest) = (next, after);
    }
}

/// Writes numbers as float32, float16 or bfloat16, rounded to the nearest.
///
/// # Safety
/// `to` is aligned for the type, as many numbers fit there, and nobody else touches them.
pub(crate) unsafe fn put(ty: GgmlType, to: *mut u8, values: &[f32]) {
    let n = values.len();
    // SAFETY: as the caller says.
    unsafe {
        match ty {
            GgmlType::F16 => {
                std::slice::from_raw_parts_mut(to.cast::<f16>(), n).convert_from_f32_slice(values);
            }
            GgmlType::BF16 => {
                std::slice::from_raw_parts_mut(to.cast::<bf16>(), n).convert_from_f32_slice(values);
            }
            _ => to.cast::<f32>().copy_from_nonoverlapping(values.as_ptr(), n),
        }
    }
}
