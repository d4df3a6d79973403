//! Quantized matrices with rows side by side, and their product with float32 rows as a ggml
//! operation: every common type, for AVX2, AVX-VNNI, AVX-512 VNNI and NEON.
//!
//! ggml's own kernels multiply row by row, or turn eight rows' bytes with shuffles; with 16 rows
//! side by side, four columns each, one broadcast of four activations meets all 16 and no sum is
//! ever shuffled. The arithmetic is that of ggml's q8_0: activations are rounded in blocks of 32
//! (where ggml's K and IQ4_XS kernels round them in blocks of 256, these are nearer to the truth),
//! products of a block are exact integers, scales are multiplied in float32; only the order of the
//! float32 sums differs. A row's result is the same to the last bit whatever is computed beside it.
//!
//! What a product of one row of activations costs per 32 weights: the bytes that have to come from
//! memory or cache, as many as in the file, and the instructions of the compiled loop (Rust 1.95).
//! On a Zen 5 core (AMD EPYC, November 2026, with the second thread of the machine busy) matrices
//! that stay in the second cache take the nanoseconds beside them, ggml's own kernels for AVX2 (a
//! row, or repacked rows where that is less) and for AVX-512 the last two; from memory, 30 bytes
//! take one nanosecond there, which is the limit for q8_0 with every set, and for the others with
//! AVX-512.
//!
//! | type | bytes | AVX2 | AVX2, VNNI | AVX-512 VNNI | ggml AVX2, AVX-512 |
//! |---|---|---|---|---|---|
//! | q8_0 | 34 | 7.2, 0.37 ns | 3.4, 0.27 ns | 1.6, 0.21 ns | 0.88, 0.86 ns |
//! | q4_0 | 18 | 5.8, 0.26 | 4.4, 0.21 | 2.1, 0.15 | 0.72, 0.64 |
//! | q4_1 | 20 | 5.8, 0.28 | 4.9, 0.22 | 2.4, 0.16 | 1.29, 1.33 |
//! | q5_0 | 22 | 8.7, 0.39 | 6.6, 0.33 | 2.6, 0.16 | 1.21, 1.13 |
//! | q5_1 | 24 | 8.4, 0.39 | 7.1, 0.34 | 2.9, 0.17 | 1.30, 1.42 |
//! | iq4_nl | 18 | 9.6, 0.51 | 5.4, 0.28 | 2.6, 0.15 | 0.71, 0.61 |
//! | q4_k | 18 | 7.6, 0.36 | 6.7, 0.32 | 3.1, 0.20 | 0.68, 0.62 |
//! | q5_k | 22 | 10.3, 0.48 | 8.7, 0.43 | 3.6, 0.21 | 0.99, 0.93 |
//! | q6_k | 26 | 10.0, 0.48 | 8.9, 0.45 | 3.4, 0.22 | 0.76, 0.68 |
//! | q3_k | 14 | 9.7, 0.48 | 8.4, 0.41 | 3.6, 0.21 | 0.96, 0.92 |
//! | q2_k | 10.5 | 9.6, 0.49 | 8.8, 0.43 | 3.8, 0.23 | 0.54, 0.56 |
//! | iq4_xs | 17 | 10.7, 0.57 | 6.7, 0.33 | 3.2, 0.18 | 0.95, 0.94 |
//!
//! Of eight rows of activations each takes 0.2 to 0.3, 0.16 and 0.1 ns (8-bit numbers with AVX2 0.33;
//! ggml's repacked q4_0, q4_k and iq4_nl 0.57 to 0.74 with AVX2, 0.25 to 0.43 with AVX-512).
//!
//! Tried and not kept: a plane of bits for each of 4, 2 and 1 bits, as ggml's blocks have them (a
//! quarter more instructions for 5 and 6 bits); q6_k as bytes (a third more memory).
//!
//! A packed matrix is as large as in the file. For more rows of activations than [`DIRECT`], a
//! group of rows is first laid out as bytes, so that all types read prompts at the speed of q8_0.
//!
//! Packing takes longer than reading a prompt, two thirds of it the system's time for new pages. So
//! at first a matrix lies in the file, and is packed once the first step is computed. Until then each
//! thread packs a few groups of rows into the same piece of cache, again and again, and multiplies
//! from there (of the 11 ms that minimind3's 52 MB of q6_k so take of one thread, packing is 4, as
//! much as the multiplications with 32 tokens); for few rows of activations q8_0 does without: its kernel also reads rows as they are
//! in the file, at two thirds of the speed. All to the same bits.
//!
//! In: a file's blocks, one matrix or a stack of experts. Out: nodes of a graph.
#![expect(unsafe_code, reason = "a callback from C, and matrices that lie in a file")]

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod by_type;
mod iq4_nl;
mod iq4_xs;
mod lanes;
mod layout;
mod lines;
mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod product;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod set;
mod vector;

use std::cell::RefCell;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use self::activations::{RoundRow, Rounded};
use self::by_type::layout;
use self::layout::{BLOCK, LANES, Layout};
use self::memory::{Group, InFile, Own, bring};
use self::product::{
    DIRECT, EXPANDED, Expand, FILE, Input, PACKED, Rows, Tiles, expanded_bytes, is_expanded,
};
use self::set::{SETS, Set};
use crate::error::{Error, Result};
use crate::kernel::arena::{Arena, padded};
use crate::kernel::cpu::CpuSet;
use crate::kernel::custom::{Activations, CHUNK, Chosen, Worker};
use crate::wrap::context::Context;
use crate::wrap::tensor::Tensor;

/// Rows that are packed side by side.
pub(crate) const GROUP: usize = LANES;

/// A quantized matrix, or experts' matrices one after the other, in groups of 16 rows.
#[derive(Debug)]
pub(crate) struct QuantMatrix {
    set: Set,
    ty: GgmlType,
    experts: usize,
    rows: usize,
    cols: usize,
    own: OnceLock<Own>,
    file: Option<InFile>,
}

/// The set that is used where models are loaded for `cpu`.
pub(crate) fn set(cpu: CpuSet) -> Option<CpuSet> {
    cpu.best_of(SETS)
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

/// True for types that can be packed; that takes the bytes they have, and a line for each matrix's
/// two parts.
pub(crate) fn takes(ty: GgmlType) -> bool {
    layout!(ty, L::UNIT > 0, false)
}

/// Bytes of an arena that a packed matrix takes; nothing for a type or shape that cannot be packed.
pub(crate) fn arena_bytes(ty: GgmlType, shape: &[usize]) -> Option<usize> {
    packed_bytes(ty, shape).map(|sizes| sizes.into_iter().map(padded).sum())
}

impl QuantMatrix {
    /// A matrix of a type and shape that have [`arena_bytes`], without numbers; nothing for others.
    fn empty(cpu: CpuSet, ty: GgmlType, shape: &[usize]) -> Option<Self> {
        let [experts, rows, cols] = sizes(shape)?;
        packed_bytes(ty, shape)?;
        let set = Set::of(cpu)?;
        Some(Self { set, ty, experts, rows, cols, own: OnceLock::new(), file: None })
    }

    /// The memory that it is packed into.
    fn room(&self, arena: &mut Arena) -> Result<Own> {
        let [values, scales] =
            packed_bytes(self.ty, &[self.experts, self.rows, self.cols]).unwrap_or_default();
        Ok(Own { values: arena.take(values)?, scales: arena.take(scales)? })
    }

    /// Bytes of a group of rows in a file.
    fn group_bytes(&self) -> usize {
        layout!(self.ty, LANES * (self.cols / L::UNIT) * L::UNIT_BYTES, 0)
    }

    /// True where `data` are its rows in a file, in one piece or several which follow one another.
    fn matches(&self, data: &[&[u8]]) -> bool {
        let groups = self.experts * (self.rows / LANES);
        data.iter().map(|piece| piece.len()).sum::<usize>() == groups * self.group_bytes()
    }

    /// Packs blocks of a type and shape that have [`arena_bytes`]; the rows may lie in several
    /// pieces, which follow one another. `cpu`: a set that this CPU has. `read` is called each time that some megabytes of them
    /// have been read, and at the end.
    ///
    /// # Errors
    /// Another type, shape or number of bytes; an arena that is full.
    pub(crate) fn new(
        cpu: CpuSet,
        arena: &mut Arena,
        ty: GgmlType,
        shape: &[usize],
        data: &[&[u8]],
        read: &dyn Fn(),
    ) -> Result<Self> {
        let matrix = Self::empty(cpu, ty, shape).filter(|matrix| matrix.matches(data));
        let matrix = matrix.ok_or_else(|| Error::Request {
            message: format!(
                "{} bytes of {} for shape {shape:?}",
                data.iter().map(|piece| piece.len()).sum::<usize>(),
                ty.name()
            ),
        })?;
        let mut own = matrix.room(arena)?;
        // a group of rows that two pieces share has to be joined
        let group_bytes = matrix.group_bytes();
        let joined = match data.iter().all(|piece| piece.len().is_multiple_of(group_bytes)) {
            true => None,
            false => Some(data.concat()),
        };
        let data = joined.as_ref().map_or_else(|| data.to_vec(), |joined| vec![joined]);
        let groups = data.iter().flat_map(|piece| piece.chunks_exact(group_bytes));
        own.fill(matrix.set, ty, matrix.cols, &groups.collect::<Vec<_>>(), true, read);
        Ok(Self { own: OnceLock::from(own), ..matrix })
    }

    /// A matrix of zeros, whose rows [`QuantMatrix::write`] overwrites.
    ///
    /// # Errors
    /// Another type or shape; an arena that is full.
    pub(crate) fn zeros(
        cpu: CpuSet,
        arena: &mut Arena,
        ty: GgmlType,
        shape: &[usize],
    ) -> Result<Self> {
        let matrix = Self::empty(cpu, ty, shape).ok_or_else(|| Error::Request {
            message: format!("{} for shape {shape:?}: no packed matrix", ty.name()),
        })?;
        let own = OnceLock::from(matrix.room(arena)?);
        Ok(Self { own, ..matrix })
    }

    pub(crate) fn ty(&self) -> GgmlType {
        self.ty
    }

    /// Overwrites the group of rows that begins with row `first` by their blocks. Rows of experts
    /// follow one another.
    ///
    /// # Errors
    /// No group begins there, other blocks than those of [`GROUP`] rows, a matrix in a file.
    ///
    /// # Safety
    /// Meanwhile nobody else reads or writes this group.
    pub(crate) unsafe fn write(&self, first: usize, blocks: &[u8]) -> Result<()> {
        let there = first.is_multiple_of(LANES)
            && first < self.experts * self.rows
            && blocks.len() == self.group_bytes();
        let (true, Some(own)) = (there, self.own.get()) else {
            return Err(Error::Request {
                message: format!(
                    "{} bytes at row {first} of a packed matrix [{}, {}, {}] of {}",
                    blocks.len(),
                    self.experts,
                    self.rows,
                    self.cols,
                    self.ty.name()
                ),
            });
        };
        // SAFETY: the group is there, as checked; nobody else touches it, as the caller says.
        unsafe { own.overwrite(self.set, self.ty, self.cols, first / LANES, blocks) };
        Ok(())
    }

    /// Takes up a matrix that [`QuantMatrix::pack`] will pack later: until then rows are read where
    /// they are. Nothing where the type or shape cannot be packed, or where two pieces share a group
    /// of rows.
    ///
    /// # Safety
    /// `data` stays where it is, unchanged, as long as the matrix.
    ///
    /// # Errors
    /// An arena that is full.
    pub(crate) unsafe fn in_file(
        cpu: CpuSet,
        arena: &mut Arena,
        ty: GgmlType,
        shape: &[usize],
        data: &[&[u8]],
    ) -> Result<Option<Self>> {
        let matrix = Self::empty(cpu, ty, shape).filter(|matrix| matrix.matches(data));
        let Some(matrix) = matrix else { return Ok(None) };
        let group_bytes = matrix.group_bytes();
        if !data.iter().all(|piece| piece.len().is_multiple_of(group_bytes)) {
            return Ok(None);
        }
        let groups = data.iter().flat_map(|piece| piece.chunks_exact(group_bytes));
        let groups = groups.map(|group| Group(group.as_ptr())).collect();
        let file = Some(InFile { groups, room: Mutex::new(Some(matrix.room(arena)?)) });
        Ok(Some(Self { file, ..matrix }))
    }

    /// Packs what was left in the file, on one thread: others compute meanwhile. `read` as in
    /// [`QuantMatrix::new`].
    pub(crate) fn pack(&self, read: &dyn Fn()) {
        let Some(InFile { groups, room }) = &self.file else { return };
        let own = room.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut own) = own else { return };
        let group_bytes = self.group_bytes();
        // SAFETY: a group's bytes are there, as whoever made the matrix said.
        let bytes = |group: &Group| unsafe { group.bytes(group_bytes) };
        let groups = groups.iter().map(bytes).collect::<Vec<_>>();
        own.fill(self.set, self.ty, self.cols, &groups, false, read);
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
    chosen: Chosen,
    groups: Groups,
}

/// Groups of rows, made where they are multiplied.
#[derive(Default)]
struct Groups {
    /// Of a matrix in the file: packed.
    packed: Vec<u64>,
    /// Laid out as bytes, for many tokens.
    expanded: Vec<u64>,
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
        let shape = activations.products(experts, rows, cols);
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

/// Computes one thread's turns at a product: some groups of rows (of every chosen expert) for all
/// tokens.
unsafe fn compute(target: *mut sys::ggml_tensor, worker: Worker<'_>, matrix: *mut c_void) {
    // SAFETY: this is called for nodes made by quant_matmul only, whose matrix and operands are
    // alive, once the operands are computed; target is contiguous float32 of `rows` values per
    // product, and each thread writes rows of the groups of its own turns only.
    unsafe {
        let matrix = &*matrix.cast::<QuantMatrix>();
        let x = &*(*target).src[0];
        let tokens = (x.ne[1] * x.ne[2]) as usize;
        SCRATCH.with(|scratch| {
            let Scratch { rounded, chosen, groups } = &mut *scratch.borrow_mut();
            let out = (*target).data.cast::<f32>();
            let (parts, offset) = layout!(matrix.ty, (L::PARTS, L::OFFSET), return);
            rounded.resize(tokens, matrix.cols, parts, offset);
            for token in 0..tokens {
                let row = x.data.cast::<u8>().add(token * x.nb[1]).cast::<f32>();
                let row = std::slice::from_raw_parts(row, matrix.cols);
                set::enter(matrix.set, RoundRow { row, to: rounded, token });
            }
            chosen.find(x, (*target).src[1], matrix.experts);
            let of_each = matrix.rows / LANES;
            for turn in worker.turns(chosen.len() * of_each, 1) {
                for (at, share) in Chosen::parts(turn, of_each) {
                    let (expert, pairs) = chosen.of(at);
                    let rows = Pairs { matrix, rounded, pairs, out };
                    layout!(matrix.ty, rows.products::<L>(expert, share, groups), ());
                }
            }
        });
    }
}

/// Rows of activations that meet a matrix, or one of its experts, and where their results go.
struct Pairs<'a> {
    matrix: &'a QuantMatrix,
    rounded: &'a Rounded,
    /// Of activations and of results.
    pairs: &'a [(u32, u32)],
    out: *mut f32,
}

/// The place of some groups of rows, from the first one on.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// In one of the forms of [`product`], with the bytes of a unit of each and the number of
    /// units.
    Memory {
        values: &'a [u8],
        scales: &'a [u8],
        bytes: (usize, usize),
        units: usize,
    },
    InFile(&'a [Group]),
}

impl Pairs<'_> {
    /// The products of the groups `share` of an expert.
    ///
    /// # Safety
    /// The rows are there in `rounded` and in `out`.
    unsafe fn products<L: Layout>(
        &self,
        expert: usize,
        share: Range<usize>,
        Groups { packed, expanded }: &mut Groups,
    ) {
        let Self { matrix, pairs, .. } = *self;
        let units = matrix.cols / L::UNIT;
        let blocks = matrix.cols / BLOCK;
        let expand = is_expanded::<L>() && pairs.len() > DIRECT;
        let (value_bytes, scale_bytes) = expanded_bytes::<L>();
        let group_bytes = match expand {
            true => blocks * (value_bytes + scale_bytes),
            false => units * (L::VALUES + L::SCALES),
        };
        let step = (CHUNK / group_bytes).max(1);
        let before = expert * (matrix.rows / LANES);
        let mut first = share.start;
        while first < share.end && !pairs.is_empty() {
            let groups = first..(first + step).min(share.end);
            let range = before + first..before + groups.end;
            first = groups.end;
            let (own, file) = (matrix.own.get(), &matrix.file);
            if L::IN_FILE
                && pairs.len() <= IN_FILE
                && let (None, Some(file)) = (own, file)
            {
                let file = &file.groups[range];
                for group in file {
                    // SAFETY: a group's bytes are there, as whoever made the matrix said.
                    bring(unsafe { group.bytes(LANES * units * L::UNIT_BYTES) });
                }
                // SAFETY: as the caller says; the type has a kernel for rows in a file.
                unsafe { self.each_tile::<L, FILE>(groups, Place::InFile(file)) };
                continue;
            }
            let n = groups.len();
            let (values, scales) = match (own, file) {
                (Some(own), _) => {
                    let values = &own.values.bytes()[range.start * units * L::VALUES..];
                    (values, &own.scales.bytes()[range.start * units * L::SCALES..])
                }
                (None, Some(file)) => {
                    packed.resize((n * units * (L::VALUES + L::SCALES)).div_ceil(8), 0);
                    let bytes: &mut [u8] = bytemuck::cast_slice_mut(packed);
                    let (values, scales) = bytes.split_at_mut(n * units * L::VALUES);
                    let parts = values.chunks_exact_mut(units * L::VALUES);
                    let parts = parts.zip(scales.chunks_exact_mut(units * L::SCALES));
                    for (group, (values, scales)) in file.groups[range].iter().zip(parts) {
                        // SAFETY: a group's bytes are there, as whoever made the matrix said.
                        let group = unsafe { group.bytes(LANES * units * L::UNIT_BYTES) };
                        memory::pack::<L>(matrix.set, group, values, scales);
                    }
                    (&*values, &*scales)
                }
                (None, None) => return, // made by none of the constructors
            };
            if !expand {
                let bytes = (L::VALUES, L::SCALES);
                let at = Place::Memory { values, scales, bytes, units };
                // SAFETY: as the caller says.
                unsafe { self.each_tile::<L, PACKED>(groups, at) };
                continue;
            }
            expanded.resize((n * group_bytes).div_ceil(8), 0);
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(expanded);
            let (to, to_scales) = bytes.split_at_mut(n * blocks * value_bytes);
            let (values, scales) = (values.as_ptr(), scales.as_ptr());
            let rows = Rows { units: n * units, values, scales, stride: 0 };
            let (values, scales) = (to.as_mut_ptr(), to_scales.as_mut_ptr().cast());
            let task = Expand::<L> { rows, values, scales, layout: Default::default() };
            // SAFETY: the groups follow one another; there is room for all of their blocks, and
            // scales begin at a multiple of 8 bytes.
            unsafe { set::enter(matrix.set, task) };
            let bytes = (value_bytes, scale_bytes);
            let at = Place::Memory { values: to, scales: to_scales, bytes, units: blocks };
            // SAFETY: as the caller says.
            unsafe { self.each_tile::<L, EXPANDED>(groups, at) };
        }
    }

    /// The products of some groups, a few rows of activations at a time.
    ///
    /// # Safety
    /// As for [`Pairs::products`]; the place is one of that form.
    unsafe fn each_tile<L: Layout, const FROM: u8>(&self, groups: Range<usize>, at: Place<'_>) {
        let most = set::most(self.matrix.set);
        let mut rest = self.pairs;
        macro_rules! tiles {
            ($($t:literal)*) => {$(
                while $t <= most && let Some((tile, after)) = rest.split_first_chunk::<$t>() {
                    // SAFETY: as the caller says.
                    unsafe { self.tile::<L, $t, FROM>(tile, groups.clone(), at) };
                    rest = after;
                }
            )*};
        }
        tiles!(8 4 2 1);
    }

    /// The products of some groups with `T` rows.
    ///
    /// # Safety
    /// As for [`Pairs::each_tile`].
    unsafe fn tile<L: Layout, const T: usize, const FROM: u8>(
        &self,
        pairs: &[(u32, u32); T],
        groups: Range<usize>,
        at: Place<'_>,
    ) {
        let (cols, blocks) = (self.rounded.cols, self.rounded.cols / BLOCK);
        let inputs = pairs.map(|(row, _)| {
            let row = row as usize;
            Input {
                values: self.rounded.values[row * cols..].as_ptr(),
                scales: self.rounded.scales[row * blocks..].as_ptr(),
                starts: self.rounded.starts[row * blocks * L::PARTS..].as_ptr(),
                mins: self.rounded.mins[row * blocks * L::PARTS..].as_ptr(),
            }
        });
        let outputs = pairs.map(|(_, row)| self.out.wrapping_add(row as usize * self.matrix.rows));
        let stride = cols / L::UNIT * L::UNIT_BYTES;
        let groups = groups.enumerate().map(|(i, group)| {
            let rows = match at {
                Place::Memory { values, scales, bytes, units } => Rows {
                    units,
                    values: values[i * units * bytes.0..].as_ptr(),
                    scales: scales[i * units * bytes.1..].as_ptr(),
                    stride,
                },
                Place::InFile(starts) => Rows {
                    units: cols / L::UNIT,
                    values: starts[i].0,
                    scales: std::ptr::null(),
                    stride,
                },
            };
            (rows, group * LANES)
        });
        let layout = Default::default();
        // SAFETY: groups and rows are complete; the results' rows have `rows` values each.
        unsafe {
            set::enter(self.matrix.set, Tiles::<L, _, T, FROM> { groups, inputs, outputs, layout });
        }
    }
}

/// Rows of activations that q8_0's rows in a file are read for where they are: for more, they would
/// be turned several times.
const IN_FILE: usize = 8;

#[cfg(test)]
mod tests;
