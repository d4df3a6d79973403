//! [`Layout`]: what each quantized type says of its packed form.
#![expect(unsafe_code, reason = "scales are read through pointers")]

use super::vector::Vector;

/// Rows side by side.
pub(super) const LANES: usize = 16;
/// Columns of a block of activations.
pub(super) const BLOCK: usize = 32;
/// Bytes of the same four columns of all rows.
pub(super) const QUAD: usize = 4 * LANES;
/// Such fours in a block.
pub(super) const QUADS: usize = BLOCK / 4;

/// How the blocks of a quantized type are packed.
///
/// A weight is `scale * (number - OFFSET)`, or `scale * number + min`; its number is kept in
/// [`Layout::BITS`] bits, in the lines of [`super::lines`], or is what [`Layout::TABLE`] has for
/// them. Packed, a unit of 16 rows takes as many bytes as in the file.
pub(super) trait Layout {
    /// Columns that a unit of the file holds, its bytes there.
    const UNIT: usize;
    const UNIT_BYTES: usize;
    /// Bits of a number: 2, 3, 4, 5, 6 or 8.
    const BITS: usize;
    /// Scales of a block of 32 columns: 1, or 2 of 16 columns each.
    const PARTS: usize;
    /// What is taken from each number.
    const OFFSET: i32;
    /// True where weights have a min as well.
    const MINS: bool = false;
    /// The numbers that the bits stand for, if not for themselves: of 8 bits.
    const TABLE: Option<[u8; 16]> = None;
    /// True where rows can be multiplied as they are in the file ([`super::product::FILE`]): a
    /// float16 scale, then 32 signed bytes. Others are packed first, a few at a time.
    const IN_FILE: bool = false;

    /// Bytes of numbers and of scales of a unit of 16 rows.
    const VALUES: usize = LANES * Self::UNIT * Self::BITS / 8;
    const SCALES: usize = LANES * Self::UNIT_BYTES - Self::VALUES;
    /// The bits of the numbers that are multiplied.
    const VALUE_BITS: usize = if Self::TABLE.is_some() { 8 } else { Self::BITS };

    /// A value for each scale of a unit.
    type Each<V: Copy>: Copy + AsRef<[V]>;

    /// Puts units of the file side by side, one of each of 16 rows, which begin `stride` bytes
    /// apart.
    ///
    /// # Safety
    /// The CPU has the vector's set.
    unsafe fn pack<V: Vector>(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]);

    /// The scales of a unit, of 16 rows each, and the mins (anything where there are none).
    ///
    /// # Safety
    /// The CPU has the vector's set; [`Layout::SCALES`] bytes may be read.
    unsafe fn scales<V: Vector>(at: *const u8) -> [Self::Each<V::F>; 2];
}
