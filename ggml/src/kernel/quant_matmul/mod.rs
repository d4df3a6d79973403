//! Quantized matrices in an order made for AVX-512 VNNI, and their product with float32 rows as a
//! ggml operation.
//!
//! ggml's own kernels on x86 look q4_0's nibbles up in a table 32 bytes at a time, and multiply
//! q8_0 and q6_k row by row; with 16 rows side by side in one register, four columns each, VNNI
//! multiplies 64 numbers in one instruction. The arithmetic is ggml's: activations are rounded to
//! q8_0 blocks, products of a block are exact integers, scales are multiplied in float32; only the
//! order of the float32 sums differs. A row's result is the same to the last bit whatever is
//! computed beside it.
//!
//! Packing takes longer than reading a prompt. q8_0 can do without at first: its kernel also reads
//! rows as they are in the file, to the same bits, at two thirds of the speed; they are packed once
//! the first step is computed.
//!
//! In: a file's blocks, one matrix or a stack of experts. Out: nodes of a graph.
#![expect(unsafe_code, reason = "vector instructions, and a callback from C")]
#![cfg_attr(
    target_arch = "x86_64",
    expect(clippy::needless_range_loop, reason = "indices name registers of several arrays")
)]

mod activations;
mod by_type;
mod lanes;
mod layout;
mod memory;
mod q4_0;
mod q6_k;
mod q8_0;

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use self::activations::Rounded;
use self::by_type::layout;
use self::layout::{BLOCK, Input, LANES, Layout, Tile};
use self::memory::{Group, InFile, Own};
use crate::error::{Error, Result};
use crate::kernel::arena::{Arena, padded};
use crate::kernel::custom::{self, Activations, CHUNK};
use crate::wrap::context::Context;
use crate::wrap::tensor::Tensor;

/// A quantized matrix, or experts' matrices one after the other, in groups of 16 rows.
#[derive(Debug)]
pub(crate) struct QuantMatrix {
    ty: GgmlType,
    experts: usize,
    rows: usize,
    cols: usize,
    own: OnceLock<Own>,
    file: Option<InFile>,
}

/// True when this CPU can compute with packed matrices.
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

/// Bytes of numbers and of scales of a packed matrix; nothing for a type or shape that cannot be
/// packed.
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

/// True for types that can be packed; that takes at most twice the bytes they have, and a line for
/// each matrix's two parts.
pub(crate) fn takes(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::Q4_0 | GgmlType::Q8_0 | GgmlType::Q6_K)
}

/// Bytes of an arena that a packed matrix takes; nothing for a type or shape that cannot be packed.
pub(crate) fn arena_bytes(ty: GgmlType, shape: &[usize]) -> Option<usize> {
    packed_bytes(ty, shape).map(|sizes| sizes.into_iter().map(padded).sum())
}

impl QuantMatrix {
    /// Packs blocks of a type and shape that have [`arena_bytes`]; the rows may lie in several
    /// pieces, which follow one another. `read` is called each time that some megabytes of them
    /// have been read, and at the end.
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
        let mut own = Own { values: arena.take(values)?, scales: arena.take(scales)? };
        // a group of rows that two pieces share has to be joined
        let joined = match data.iter().all(|piece| piece.len().is_multiple_of(group_bytes)) {
            true => None,
            false => Some(data.concat()),
        };
        let data = joined.as_ref().map_or_else(|| data.to_vec(), |joined| vec![joined]);
        let groups = data.iter().flat_map(|piece| piece.chunks_exact(group_bytes));
        own.fill(ty, cols, &groups.collect::<Vec<_>>(), true, read);
        Ok(Self { ty, experts, rows, cols, own: OnceLock::from(own), file: None })
    }

    /// Takes up a matrix that [`QuantMatrix::pack`] will pack later: until then rows are read where
    /// they are. Nothing where the type cannot do that, or where two pieces share a group of rows.
    ///
    /// # Safety
    /// `data` stays where it is, unchanged, as long as the matrix.
    ///
    /// # Errors
    /// An arena that is full.
    pub(crate) unsafe fn in_file(
        arena: &mut Arena,
        ty: GgmlType,
        shape: &[usize],
        data: &[&[u8]],
    ) -> Result<Option<Self>> {
        let size = || {
            let [experts, rows, cols] = sizes(shape)?;
            Some(([experts, rows, cols], packed_bytes(ty, shape)?, ty.row_bytes(cols)?))
        };
        let Some(([experts, rows, cols], [values, scales], row_bytes)) = size() else {
            return Ok(None);
        };
        let group_bytes = LANES * row_bytes;
        let fits = layout!(ty, L::IN_FILE, false)
            && data.iter().map(|piece| piece.len()).sum::<usize>() == experts * rows * row_bytes
            && data.iter().all(|piece| piece.len().is_multiple_of(group_bytes));
        if !fits {
            return Ok(None);
        }
        let own = Own { values: arena.take(values)?, scales: arena.take(scales)? };
        let groups = data.iter().flat_map(|piece| piece.chunks_exact(group_bytes));
        let groups = groups.map(|group| Group(group.as_ptr())).collect();
        let file = Some(InFile { groups, room: Mutex::new(Some(own)) });
        Ok(Some(Self { ty, experts, rows, cols, own: OnceLock::new(), file }))
    }

    /// Packs what was left in the file, on one thread: others compute meanwhile. `read` as in
    /// [`QuantMatrix::new`].
    pub(crate) fn pack(&self, read: &dyn Fn()) {
        let Some(InFile { groups, room }) = &self.file else { return };
        let own = room.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(mut own), Some(row_bytes)) = (own, self.ty.row_bytes(self.cols)) else { return };
        // SAFETY: a group's bytes are there, as whoever made the matrix said.
        let bytes =
            |group: &Group| unsafe { std::slice::from_raw_parts(group.0, LANES * row_bytes) };
        own.fill(self.ty, self.cols, &groups.iter().map(bytes).collect::<Vec<_>>(), false, read);
        let _ = self.own.set(own); // the room was there once, so this is the first
    }
}

/// The scratch memory that a thread needs while it multiplies.
#[derive(Default)]
struct Scratch {
    /// Each thread rounds the activations it needs itself: cheaper than waiting for another to do
    /// it.
    rounded: Rounded,
    /// Rows of activations and of results that belong together.
    pairs: Vec<(u32, u32)>,
    /// Groups of rows of a file, packed for many tokens.
    groups: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Context {
    /// The products of activations with a packed matrix: `[n, rows]`, or with chosen experts
    /// `[n, k, rows]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub(crate) fn quant_matmul<'c>(
        &'c self,
        matrix: &'c QuantMatrix,
        activations: Activations<'c>,
    ) -> Result<Tensor<'c>> {
        let QuantMatrix { experts, rows, cols, .. } = *matrix;
        let shape = activations.products(experts, rows, cols).filter(|_| is_available());
        let shape = shape.ok_or_else(|| Error::Request {
            message: format!(
                "packed product: shapes [{experts}, {rows}, {cols}] and {:?} do not fit",
                activations.x.shape()
            ),
        })?;
        let operands = activations.operands(&[]);
        let user = std::ptr::from_ref(matrix).cast_mut().cast::<c_void>();
        // SAFETY: the operands are what `compute` takes, as checked; the matrix outlives the graph
        // that the node becomes part of, as all weights do (Graph::new).
        unsafe { self.custom("a product", &shape, &operands, compute, user) }
    }
}

/// Computes one thread's share of a product: some groups of rows (of every expert) for all tokens.
unsafe extern "C" fn compute(
    target: *mut sys::ggml_tensor,
    index: c_int,
    threads: c_int,
    matrix: *mut c_void,
) {
    // SAFETY: ggml calls this for nodes made by quant_matmul only, whose matrix and operands are
    // alive, once the operands are computed; target is contiguous float32 of `rows` values per
    // product, and each thread writes rows of its own groups only.
    unsafe {
        let matrix = &*matrix.cast::<QuantMatrix>();
        let x = &*(*target).src[0];
        let tokens = (x.ne[1] * x.ne[2]) as usize;
        let share = custom::share(matrix.rows / LANES, index, threads);
        if share.is_empty() {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        SCRATCH.with(|scratch| {
            let Scratch { rounded, pairs, groups } = &mut *scratch.borrow_mut();
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
                    products::<L>(matrix, rounded, pairs, expert, share.clone(), groups, out),
                    ()
                );
            }
        });
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (tokens, share);
    }
}

/// The products of the groups `share` of an expert with rows of activations, each to its row of
/// `out`.
///
/// # Safety
/// The CPU has the features; the rows are there in `rounded` and in `out`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn products<L: Layout>(
    matrix: &QuantMatrix,
    rounded: &Rounded,
    pairs: &[(u32, u32)],
    expert: usize,
    share: Range<usize>,
    scratch: &mut Vec<u8>,
    out: *mut f32,
) {
    /// Rows of the largest tile; for more than these, a file's rows would be turned several times.
    const MOST: usize = 8;
    let units = matrix.cols / L::UNIT;
    let group_bytes = units * (L::VALUES + L::SCALES);
    let step = (CHUNK / group_bytes).max(1);
    let before = expert * (matrix.rows / LANES);
    let mut first = share.start;
    while first < share.end {
        let groups = first..(first + step).min(share.end);
        let range = before + first..before + groups.end;
        first = groups.end;
        let at = match (matrix.own.get(), &matrix.file) {
            (Some(own), _) => Place::Packed {
                values: &own.values.bytes()[range.start * units * L::VALUES..],
                scales: &own.scales.bytes()[range.start * units * L::SCALES..],
            },
            (None, None) => return, // made by none of the constructors
            (None, Some(file)) if pairs.len() <= MOST => Place::InFile(&file.groups[range]),
            (None, Some(file)) => {
                scratch.resize(groups.len() * group_bytes, 0);
                let (values, scales) = scratch.split_at_mut(groups.len() * units * L::VALUES);
                let parts = values.chunks_exact_mut(units * L::VALUES);
                let parts = parts.zip(scales.chunks_exact_mut(units * L::SCALES));
                for (group, (values, scales)) in file.groups[range].iter().zip(parts) {
                    // SAFETY: a group's bytes are there, as whoever made the matrix said.
                    let group = unsafe {
                        std::slice::from_raw_parts(group.0, LANES * units * L::UNIT_BYTES)
                    };
                    memory::pack::<L>(group, values, scales);
                }
                Place::Packed { values, scales }
            }
        };
        let mut rest = pairs;
        macro_rules! tiles {
            ($($t:literal)*) => {$(
                while let Some((tile, after)) = rest.split_first_chunk::<$t>() {
                    // SAFETY: as the caller says.
                    unsafe { tiles::<L, $t>(matrix, rounded, tile, groups.clone(), at, out) };
                    rest = after;
                }
            )*};
        }
        tiles!(8 4 2 1);
    }
}

/// The place of some groups of rows.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
enum Place<'a> {
    /// From the first one on.
    Packed {
        values: &'a [u8],
        scales: &'a [u8],
    },
    InFile(&'a [Group]),
}

/// The products of some groups with `T` rows.
///
/// # Safety
/// As for [`products`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tiles<L: Layout, const T: usize>(
    matrix: &QuantMatrix,
    rounded: &Rounded,
    pairs: &[(u32, u32); T],
    groups: Range<usize>,
    at: Place<'_>,
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
    let stride = units * L::UNIT_BYTES;
    for (i, group) in groups.enumerate() {
        // SAFETY: group and rows are complete; the results' rows have `rows` values each.
        unsafe {
            let sums = match at {
                Place::Packed { values, scales } => {
                    let values = values[i * units * L::VALUES..].as_ptr();
                    let scales = scales[i * units * L::SCALES..].as_ptr();
                    L::multiply::<T, false>(&Tile { units, values, scales, stride, inputs })
                }
                Place::InFile(starts) => {
                    let (values, scales) = (starts[i].0, std::ptr::null());
                    L::multiply::<T, true>(&Tile { units, values, scales, stride, inputs })
                }
            };
            for (sum, &(_, row)) in sums.into_iter().zip(pairs) {
                let to = out.add(row as usize * matrix.rows + group * LANES);
                std::arch::x86_64::_mm512_storeu_ps(to, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests;
