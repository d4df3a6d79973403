//! Numbers of a matrix overwritten where they lie.
#![expect(unsafe_code, reason = "weights are written through pointers")]

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use mmx_converters::gguf::GgmlType;

use super::FloatMatrix;
use super::tile::ROWS;
use crate::error::{Error, Result};
use crate::kernel::vector::LANES;

impl FloatMatrix {
    /// Overwrites the numbers of a row from column `first` on; rows of experts follow one another.
    ///
    /// # Errors
    /// Numbers beyond the matrix, or one that still lies in its file.
    ///
    /// # Safety
    /// Meanwhile nobody computes with the matrix, and nobody else writes these numbers.
    pub(crate) unsafe fn write(&self, row: usize, first: usize, values: &[f32]) -> Result<()> {
        let end = first.checked_add(values.len()).filter(|&end| end <= self.cols);
        let (Some(end), Some(own)) = (end.filter(|_| row < self.experts * self.rows), self.own.get())
        else {
            return Err(Error::Request {
                message: format!(
                    "{} numbers at row {row}, column {first} of a matrix [{}, {}]",
                    values.len(),
                    self.experts * self.rows,
                    self.cols
                ),
            });
        };
        let size = self.ty.block_bytes();
        let tile = own.as_ptr().wrapping_add(row / ROWS * ROWS * self.cols * size);
        let mut at = first;
        while at < end {
            let next = (at / LANES + 1) * LANES;
            let part = &values[at - first..next.min(end) - first];
            let place = (at / LANES * ROWS + row % ROWS) * LANES + at % LANES;
            // SAFETY: the place is that of the row's number `at` in its tile, sixteen columns of each
            // row side by side, and row and columns are within the matrix, as checked; nobody else
            // touches it, as the caller says.
            unsafe { put(self.ty, tile.wrapping_add(place * size), part) };
            at = next;
        }
        Ok(())
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
