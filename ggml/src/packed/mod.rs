//! Quantized matrices in an order made for AVX-512 VNNI, and their product with float32 rows as a ggml operation.
//!
//! ggml's own kernels on x86 look q4_0's nibbles up in a table 32 bytes at a time, and multiply q8_0 and q6_k row
//! by row; with 16 rows side by side in one register, four columns each, VNNI multiplies 64 numbers in one
//! instruction. The arithmetic is ggml's: activations are rounded to q8_0 blocks, products of a block are exact
//! integers, scales are multiplied in float32; only the order of the float32 sums differs. A row's result is the
//! same to the last bit whatever is computed beside it.
//!
//! In: a file's blocks, one matrix or a stack of experts. Out: nodes of a graph.
#![expect(unsafe_code, reason = "vector instructions, and a callback from C")]
#![cfg_attr(
    target_arch = "x86_64",
    expect(clippy::needless_range_loop, reason = "indices name registers of several arrays")
)]

mod activations;
mod q4_0;
mod q6_k;
mod q8_0;

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::ops::Range;

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;
use rayon::prelude::*;

use self::activations::Rounded;
use crate::arena::{Arena, Piece, padded};
use crate::context::Context;
use crate::custom::{self, Activations, CHUNK};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Rows side by side in a register.
const LANES: usize = 16;
/// Columns of a block of activations.
const BLOCK: usize = 32;
/// A quantized matrix, or experts' matrices one after the other, in groups of 16 rows.
#[derive(Debug)]
pub(crate) struct Packed {
    ty: GgmlType,
    experts: usize,
    rows: usize,
    cols: usize,
    /// Numbers of each group, then of the next.
    values: Piece,
    /// Scales of each group.
    scales: Piece,
}

/// How a type's blocks are kept.
trait Layout {
    /// Columns that a unit of the file holds, its bytes there.
    const UNIT: usize;
    const UNIT_BYTES: usize;
    /// Bytes of numbers and of scales of a unit of 16 rows.
    const VALUES: usize;
    const SCALES: usize;

    /// Puts units of the file side by side, one of each of 16 rows, which begin `stride` bytes apart.
    fn pack(rows: &[u8], stride: usize, values: &mut [u8], scales: &mut [u8]);

    /// The products of 16 rows with `T` tokens.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, VL, VNNI; the tile's pointers are those of `units` units.
    #[cfg(target_arch = "x86_64")]
    unsafe fn multiply<const T: usize>(tile: &Tile<T>) -> [std::arch::x86_64::__m512; T];
}

/// A group of 16 rows and `T` rounded rows of activations.
struct Tile<const T: usize> {
    units: usize,
    values: *const u8,
    scales: *const u8,
    inputs: [Input; T],
}

/// A rounded row.
#[derive(Clone, Copy)]
struct Input {
    values: *const i8,
    scales: *const f32,
    sums: *const [i32; 2],
}

/// Runs `$do` with the layout of a type as `L`, or `$else`.
macro_rules! layout {
    ($ty:expr, $do:expr, $else:expr) => {
        match $ty {
            GgmlType::Q4_0 => {
                type L = q4_0::Q4;
                $do
            }
            GgmlType::Q8_0 => {
                type L = q8_0::Q8;
                $do
            }
            GgmlType::Q6_K => {
                type L = q6_k::Q6;
                $do
            }
            _ => $else,
        }
    };
}

/// True when this CPU can compute with such matrices.
pub(crate) fn is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// The sizes of `[rows, cols]` or `[experts, rows, cols]`.
fn sizes(shape: &[usize]) -> Option<[usize; 3]> {
    match *shape {
        [rows, cols] => Some([1, rows, cols]),
        [experts, rows, cols] => Some([experts, rows, cols]),
        _ => None,
    }
}

/// Bytes of numbers and of scales of a packed matrix; nothing for a type or shape that cannot be packed.
fn packed_bytes(ty: GgmlType, shape: &[usize]) -> Option<[usize; 2]> {
    let [experts, rows, cols] = sizes(shape)?;
    layout!(
        ty,
        {
            let fits = rows.is_multiple_of(LANES) && cols.is_multiple_of(L::UNIT);
            let units = experts * (rows / LANES) * (cols / L::UNIT);
            (fits && units > 0).then_some([units * L::VALUES, units * L::SCALES])
        },
        None
    )
}

/// True for types that can be packed; that takes at most twice the bytes they have, and a line for each matrix's
/// two parts.
pub(crate) fn takes(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::Q4_0 | GgmlType::Q8_0 | GgmlType::Q6_K)
}

/// Bytes of an arena that a packed matrix takes; nothing for a type or shape that cannot be packed.
pub(crate) fn arena_bytes(ty: GgmlType, shape: &[usize]) -> Option<usize> {
    packed_bytes(ty, shape).map(|sizes| sizes.into_iter().map(padded).sum())
}

impl Packed {
    /// Packs blocks of a type and shape that have [`arena_bytes`]; the rows may lie in several pieces, which follow
    /// one another. `read` is called each time that some megabytes of them have been read, and at the end.
    ///
    /// # Errors
    /// Another type, shape or number of bytes; an arena that is full.
    pub(crate) fn new(
        arena: &mut Arena,
        ty: GgmlType,
        shape: &[usize],
        data: &[&[u8]],
        read: &dyn Fn(),
    ) -> Result<Self> {
        let found: usize = data.iter().map(|piece| piece.len()).sum();
        let refused = || Error::Request {
            message: format!("{found} bytes of {} for shape {shape:?}", ty.name()),
        };
        let [values, scales] = packed_bytes(ty, shape).ok_or_else(refused)?;
        let [experts, rows, cols] = sizes(shape).ok_or_else(refused)?;
        let row_bytes = ty.row_bytes(cols).filter(|bytes| experts * rows * bytes == found);
        let group_bytes = LANES * row_bytes.ok_or_else(refused)?;
        let (values, scales) = (arena.take(values)?, arena.take(scales)?);
        let mut packed = Self { ty, experts, rows, cols, values, scales };
        // a group of rows that two pieces share has to be joined
        match data.iter().all(|piece| piece.len().is_multiple_of(group_bytes)) {
            true => layout!(ty, packed.fill::<L>(data, read), ()),
            false => layout!(ty, packed.fill::<L>(&[&data.concat()], read), ()),
        }
        Ok(packed)
    }

    /// On all cores: what it takes is mostly the system's, who hands out pages.
    fn fill<L: Layout>(&mut self, data: &[&[u8]], read: &dyn Fn()) {
        /// Bytes of the file that are worth a thread: of less, two take as long as one (measured).
        const SHARE: usize = 1 << 20;
        /// Bytes of the file between two calls of `read`.
        const PART: usize = 8 << 20;
        let units = self.cols / L::UNIT;
        let stride = units * L::UNIT_BYTES;
        let group_bytes = LANES * stride;
        let part = PART.div_ceil(group_bytes);
        let groups: Vec<&[u8]> =
            data.iter().flat_map(|piece| piece.chunks_exact(group_bytes)).collect();
        let values = self.values.bytes_mut().chunks_mut(part * units * L::VALUES);
        let scales = self.scales.bytes_mut().chunks_mut(part * units * L::SCALES);
        for (groups, (values, scales)) in groups.chunks(part).zip(values.zip(scales)) {
            let values = values.par_chunks_exact_mut(units * L::VALUES);
            let scales = scales.par_chunks_exact_mut(units * L::SCALES);
            let groups = groups.par_iter().zip(values.zip(scales));
            groups.with_min_len(SHARE.div_ceil(group_bytes)).for_each(
                |(group, (values, scales))| {
                    let values = values.chunks_exact_mut(L::VALUES);
                    let scales = scales.chunks_exact_mut(L::SCALES);
                    for (unit, (values, scales)) in values.zip(scales).enumerate() {
                        L::pack(&group[unit * L::UNIT_BYTES..], stride, values, scales);
                    }
                },
            );
            read();
        }
    }
}

/// 16 bytes of each of 16 rows, `at` bytes from where they begin: per four bytes 16 rows of them, after one another.
fn side_by_side(rows: &[u8], stride: usize, at: usize) -> [u8; 256] {
    let mut all = [0; 256];
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && rows.len() >= 15 * stride + at + 16 {
        // SAFETY: the CPU has the feature, and the last row's 16 bytes are there, as checked.
        unsafe { side_by_side_512(rows.as_ptr().add(at), stride, &mut all) };
        return all;
    }
    for lane in 0..LANES {
        let fours = rows[lane * stride + at..][..16].as_chunks::<4>().0;
        for (k, four) in fours.iter().enumerate() {
            all[(k * LANES + lane) * 4..][..4].copy_from_slice(four);
        }
    }
    all
}

/// The same.
///
/// # Safety
/// The CPU has AVX-512 F; at `first` and each of 15 times `stride` further there are 16 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn side_by_side_512(first: *const u8, stride: usize, to: &mut [u8; 256]) {
    use std::arch::x86_64::*;

    // SAFETY: as the caller says.
    let row = |lane: usize| unsafe { _mm_loadu_si128(first.add(lane * stride).cast()) };
    // rows j, j + 4, j + 8, j + 12 in the four parts of a register
    let quarter = |j: usize| {
        let all = _mm512_castsi128_si512(row(j));
        let all = _mm512_inserti32x4::<1>(all, row(j + 4));
        let all = _mm512_inserti32x4::<2>(all, row(j + 8));
        _mm512_inserti32x4::<3>(all, row(j + 12))
    };
    // in each part, four rows of four numbers are turned into four columns
    let (a, b, c, d) = (quarter(0), quarter(1), quarter(2), quarter(3));
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    let columns = [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ];
    for (column, to) in columns.into_iter().zip(to.as_chunks_mut::<64>().0) {
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), column) };
    }
}

/// The two bytes of each row's float16 scale, `at` bytes from where the rows begin.
fn half_scales(rows: &[u8], stride: usize, at: usize, to: &mut [u8]) {
    for (lane, to) in to.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        to.copy_from_slice(&rows[lane * stride + at..][..2]);
    }
}

/// What a thread needs while it multiplies.
#[derive(Default)]
struct Scratch {
    /// Each thread rounds the activations it needs itself: cheaper than waiting for another to do it.
    rounded: Rounded,
    /// Rows of activations and of results that belong together.
    pairs: Vec<(u32, u32)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Context {
    /// The products of activations with a packed matrix: `[n, rows]`, or with chosen experts `[n, k, rows]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub(crate) fn packed_product<'c>(
        &'c self,
        matrix: &'c Packed,
        activations: Activations<'c>,
    ) -> Result<Tensor<'c>> {
        let Packed { experts, rows, cols, .. } = *matrix;
        let shape = activations.products(experts, rows, cols).filter(|_| is_available());
        let shape = shape.ok_or_else(|| Error::Request {
            message: format!(
                "packed product: shapes [{experts}, {rows}, {cols}] and {:?} do not fit",
                activations.x.shape()
            ),
        })?;
        let operands = activations.operands(&[]);
        let user = std::ptr::from_ref(matrix).cast_mut().cast::<c_void>();
        // SAFETY: the operands are what `compute` takes, as checked; the matrix outlives the graph that the node
        // becomes part of, as all weights do (Graph::new).
        unsafe { self.custom("a product", &shape, &operands, compute, user) }
    }
}

/// One thread's share of a product: some groups of rows (of every expert) for all tokens.
unsafe extern "C" fn compute(
    target: *mut sys::ggml_tensor,
    index: c_int,
    threads: c_int,
    matrix: *mut c_void,
) {
    // SAFETY: ggml calls this for nodes made by packed_product only, whose matrix and operands are alive, once
    // the operands are computed; target is contiguous float32 of `rows` values per product, and each thread
    // writes rows of its own groups only.
    unsafe {
        let matrix = &*matrix.cast::<Packed>();
        let x = &*(*target).src[0];
        let tokens = (x.ne[1] * x.ne[2]) as usize;
        let share = custom::share(matrix.rows / LANES, index, threads);
        if share.is_empty() {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        SCRATCH.with(|scratch| {
            let Scratch { rounded, pairs } = &mut *scratch.borrow_mut();
            let out = (*target).data.cast::<f32>();
            rounded.resize(tokens, matrix.cols);
            for token in 0..tokens {
                let row = x.data.cast::<u8>().add(token * x.nb[1]).cast::<f32>();
                rounded.round_row(std::slice::from_raw_parts(row, matrix.cols), token);
            }
            for expert in 0..matrix.experts {
                custom::pairs(x, (*target).src[1], expert, pairs);
                layout!(
                    matrix.ty,
                    products::<L>(matrix, rounded, pairs, expert, share.clone(), out),
                    ()
                );
            }
        });
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (tokens, share);
    }
}

/// The products of the groups `share` of an expert with rows of activations, each to its row of `out`.
///
/// # Safety
/// The CPU has the features; the rows are there in `rounded` and in `out`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn products<L: Layout>(
    matrix: &Packed,
    rounded: &Rounded,
    pairs: &[(u32, u32)],
    expert: usize,
    share: Range<usize>,
    out: *mut f32,
) {
    let units = matrix.cols / L::UNIT;
    let step = (CHUNK / (units * (L::VALUES + L::SCALES))).max(1);
    let mut first = share.start;
    while first < share.end {
        let groups = first..(first + step).min(share.end);
        first = groups.end;
        let mut rest = pairs;
        macro_rules! tiles {
            ($($t:literal)*) => {$(
                while let Some((tile, after)) = rest.split_first_chunk::<$t>() {
                    // SAFETY: as the caller says.
                    unsafe { tiles::<L, $t>(matrix, rounded, tile, expert, groups.clone(), out) };
                    rest = after;
                }
            )*};
        }
        tiles!(8 4 2 1);
    }
}

/// The products of some groups with `T` rows.
///
/// # Safety
/// As for [`products`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tiles<L: Layout, const T: usize>(
    matrix: &Packed,
    rounded: &Rounded,
    pairs: &[(u32, u32); T],
    expert: usize,
    groups: Range<usize>,
    out: *mut f32,
) {
    let (cols, units) = (rounded.cols, matrix.cols / L::UNIT);
    let inputs = pairs.map(|(row, _)| {
        let row = row as usize;
        Input {
            values: rounded.values[row * cols..].as_ptr(),
            scales: rounded.scales[row * (cols / BLOCK)..].as_ptr(),
            sums: rounded.sums[row * (cols / BLOCK)..].as_ptr(),
        }
    });
    let before = expert * (matrix.rows / LANES);
    for group in groups {
        let at = (before + group) * units;
        let tile = Tile {
            units,
            values: matrix.values.bytes()[at * L::VALUES..].as_ptr(),
            scales: matrix.scales.bytes()[at * L::SCALES..].as_ptr(),
            inputs,
        };
        // SAFETY: group and rows are complete; the results' rows have `rows` values each.
        unsafe {
            let sums = L::multiply::<T>(&tile);
            for (sum, &(_, row)) in sums.into_iter().zip(pairs) {
                let to = out.add(row as usize * matrix.rows + group * LANES);
                std::arch::x86_64::_mm512_storeu_ps(to, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests;
