//! [`Layout`]: what each quantized type says of its packed form.
#![expect(unsafe_code, reason = "a kernel takes pointers")]

/// Rows side by side in a register.
pub(super) const LANES: usize = 16;
/// Columns of a block of activations.
pub(super) const BLOCK: usize = 32;

/// How the blocks of a quantized type are packed, and how packed rows are multiplied.
pub(super) trait Layout {
    /// Columns that a unit of the file holds, its bytes there.
    const UNIT: usize;
    const UNIT_BYTES: usize;
    /// Bytes of numbers and of scales of a unit of 16 rows.
    const VALUES: usize;
    const SCALES: usize;
    /// True where [`Layout::multiply`] can read rows as they are in the file.
    const IN_FILE: bool;

    /// Puts units of the file side by side, one of each of 16 rows, which begin `stride` bytes
    /// apart.
    fn pack(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]);

    /// The products of 16 rows with `T` tokens.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, VL, VNNI; the tile's pointers are those of `units` units; `FILE`
    /// only where the layout has it.
    #[cfg(target_arch = "x86_64")]
    unsafe fn multiply<const T: usize, const FILE: bool>(
        tile: &Tile<T>,
    ) -> [std::arch::x86_64::__m512; T];
}

/// A group of 16 rows and `T` rounded rows of activations.
pub(super) struct Tile<const T: usize> {
    pub(super) units: usize,
    /// The packed values; or, in a file, the first row's first block.
    pub(super) values: *const u8,
    pub(super) scales: *const u8,
    /// Bytes from one row in the file to the next.
    pub(super) stride: usize,
    pub(super) inputs: [Input; T],
}

/// A rounded row of activations: where its values, scales and sums begin.
#[derive(Clone, Copy)]
pub(super) struct Input {
    pub(super) values: *const i8,
    pub(super) scales: *const f32,
    pub(super) sums: *const [i32; 2],
}
