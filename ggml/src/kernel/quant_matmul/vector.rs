//! [`Vector`]: what a product needs of an instruction set.
//!
//! In every set a vector is 16 lanes of four bytes, one for each of 16 rows side by side: one
//! register of AVX-512, two of AVX2, four of NEON. So matrices are packed in one order for all sets.
#![expect(unsafe_code, reason = "vector instructions")]

/// Writes a loop out, so that the index is a constant in each turn.
macro_rules! written_out {
    ($i:ident in [$($n:literal)*], $body:block) => {
        $({
            let $i: usize = $n;
            $body
        })*
    };
}
pub(super) use written_out;

/// Something that is computed with the registers of a set.
pub(super) trait Task {
    /// Computes it; always inlined, so that it is compiled for the set of who calls it.
    ///
    /// # Safety
    /// The CPU has the set; whatever else the task says.
    unsafe fn run<V: Vector>(self);
}

/// The instructions of a set; each is always inlined.
///
/// # Safety
/// Of all functions: the CPU has the set, and what a pointer points to may be read, or written:
/// as many bytes as the function says.
pub(super) trait Vector {
    /// 64 bytes, or 16 whole numbers of 32 bits.
    type I: Copy;
    /// 16 float32.
    type F: Copy;
    /// Four activations, repeated.
    type X: Copy;
    /// Weights, ready to be multiplied.
    type W: Copy;
    /// Sums of a block's products in the making.
    type Sum: Copy;
    /// The most rows of activations that are multiplied at a time.
    const MOST: usize;
    /// True where numbers of 8 bits are kept and multiplied as signed ones, so that nothing is to be
    /// taken from them; in other sets they are kept plus 128.
    const SIGNED: bool;

    /// The most parts of a block that several rows of activations are multiplied with two fours of
    /// columns a turn: written out, the compiler reorders it beyond the registers there are (a
    /// third slower with AVX2 and one part; with two, turns are too short).
    const IN_TURNS: usize;
    /// True where rows of activations are multiplied two at a time, with eight columns
    /// ([`Vector::pair`]).
    const IN_PAIRS: bool = false;

    /// Runs a task compiled for this set.
    unsafe fn enter(task: impl Task);

    /// 64 bytes.
    unsafe fn load(from: *const u8) -> Self::I;
    unsafe fn store(to: *mut u8, a: Self::I);
    /// A byte, repeated.
    unsafe fn splat(byte: u8) -> Self::I;
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn xor(a: Self::I, b: Self::I) -> Self::I;
    /// Shifts numbers of 32 bits.
    unsafe fn shr(a: Self::I, bits: u32) -> Self::I;
    unsafe fn shl(a: Self::I, bits: u32) -> Self::I;
    /// What a table has for bytes below 16.
    unsafe fn look_up(table: [u8; 16], at: Self::I) -> Self::I;
    /// 16 signed or unsigned bytes as whole numbers.
    unsafe fn widen_i8(from: *const u8) -> Self::I;
    unsafe fn widen_u8(from: *const u8) -> Self::I;
    /// 16 numbers of 16 bits.
    unsafe fn widen_u16(from: *const u8) -> Self::I;
    /// A whole number, repeated.
    unsafe fn splat_i32(value: i32) -> Self::I;
    unsafe fn add(a: Self::I, b: Self::I) -> Self::I;
    /// Whole numbers as float32.
    unsafe fn float(a: Self::I) -> Self::F;

    unsafe fn zero() -> Self::F;
    /// 16 float16.
    unsafe fn load_f16(from: *const u8) -> Self::F;
    /// 16 float16, two bytes of each of 16 rows; of each row four bytes are read.
    unsafe fn gather_f16(from: *const u8, stride: usize) -> Self::F;
    unsafe fn load_f32(from: *const f32) -> Self::F;
    unsafe fn store_f32(to: *mut f32, a: Self::F);
    /// A value in memory, repeated.
    unsafe fn repeat(from: *const f32) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `-a`
    unsafe fn negate(a: Self::F) -> Self::F;

    /// Four activations.
    unsafe fn four(from: *const i8) -> Self::X;
    /// Numbers of `bits` bits, from 0 on (or signed, see [`Vector::SIGNED`]), ready to be
    /// multiplied.
    unsafe fn weights(numbers: Self::I, bits: usize) -> Self::W;
    /// The sums of nothing; they begin at `start`, if not at 0.
    unsafe fn begin(start: Option<*const i32>) -> Self::Sum;
    /// Adds the products of the `k`-th of `of` fours of columns.
    unsafe fn step(
        sum: Self::Sum,
        weights: Self::W,
        four: Self::X,
        bits: usize,
        k: usize,
        of: usize,
    ) -> Self::Sum;
    /// Adds the products of a four of columns, the first or (`last`) second of a turn.
    unsafe fn turn(
        sum: Self::Sum,
        weights: Self::W,
        four: Self::X,
        bits: usize,
        last: bool,
    ) -> Self::Sum;
    /// The sums after the last turn.
    unsafe fn end_of_turns(sum: Self::Sum, bits: usize) -> Self::Sum;
    /// Two fours of columns, ready for [`Vector::pair`].
    unsafe fn eight(_first: Self::W, _last: Self::W) -> [Self::W; 2] {
        unreachable!("rows of activations are multiplied one by one")
    }
    /// Adds the products of eight columns with two rows of activations; the sums of the two lie
    /// among each other, as [`Vector::together`] puts them.
    unsafe fn pair(
        _sums: [Self::Sum; 2],
        _weights: [Self::W; 2],
        _eights: [*const i8; 2],
    ) -> [Self::Sum; 2] {
        unreachable!("rows of activations are multiplied one by one")
    }
    /// Sums of two rows of activations, put among each other.
    unsafe fn together(sums: [Self::Sum; 2]) -> [Self::Sum; 2] {
        sums
    }
    /// Sums that lie among each other, those of each of the two rows together.
    unsafe fn apart(sums: [Self::Sum; 2]) -> [Self::Sum; 2] {
        sums
    }
    /// The sums, of which `start` is that of [`Vector::begin`].
    unsafe fn end(sum: Self::Sum, start: Option<*const i32>) -> Self::I;

    /// 16 bytes of each of 16 rows: per four bytes 16 rows of them.
    unsafe fn rows(first: *const u8, stride: usize) -> [Self::I; 4];
    /// Rounds 32 float32 to whole numbers, largest / 127 apart, ties to even; gives the largest
    /// (without its sign), and the sums of the first and the last 16 numbers. Of values that are
    /// no numbers, anything.
    unsafe fn round(from: *const f32, to: *mut i8) -> (f32, [i32; 2]);
}
