//! Products with float matrices (float32, float16, bfloat16).
//!
//! Weights become float32 in registers and meet float32 activations, which ggml rounds to the
//! weights' type. Every sum is made in the same order (16 partial sums along the row, then halves
//! onto halves) whatever is computed beside it, wherever the weights lie and on every instruction
//! set: a token's result does not depend on the others of its batch.
//!
//! # Limits
//! One token reads every weight once: 2 bytes a weight, two operations. From memory a core reads 15
//! to 35 GB/s, so decoding is bound by the order in which it reads, not by its arithmetic: several
//! rows at once, read where they lie in the file, are streams a kilobyte apart, which the
//! prefetchers of recent CPUs follow badly (Zen 5, 52 MB of float16: row after row 32 GB/s, two rows
//! at once 15, four 21, sixteen 20). So four rows lie side by side as one stream, a copy made after
//! the first step: 34 GB/s from memory, and where the caches hold the matrix, as four sums do not
//! wait for each other, 110 GB/s against 73 (from the third cache), 127 against 84 (from the
//! second); with AVX2 86 against 48 and 104 against 64. Until then rows are read where they are.
//!
//! A prompt is bound by multiplications: 16 (AVX2: 8) lanes, two a cycle. Of 256 GFLOP/s at 4 GHz
//! the tile of 4 rows and 6 tokens reaches 200 to 215 on Zen 5, of AVX2's 128 the tile of 2 rows and
//! 3 tokens 105 to 117: ten loads for 24 products there, for 12 here.
#![expect(unsafe_code, reason = "vector instructions, and weights read through pointers")]

mod tile;
mod write;

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::{Mutex, OnceLock, PoisonError};

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;

use self::tile::{Product, ROWS, Tile, Tiles};
pub(crate) use self::write::put;
use crate::error::{Error, Result};
use crate::kernel::arena::{Arena, Piece};
use crate::kernel::cpu::CpuSet;
use crate::kernel::custom::{Activations, Chosen, Worker};
use crate::kernel::vector::{Bf16, Element, F16, F32, LANES};
use crate::wrap::context::Context;
use crate::wrap::tensor::Tensor;

/// The instruction sets that this is written for.
const SETS: [CpuSet; 3] = [CpuSet::Neon, CpuSet::Avx2, CpuSet::Avx512];
/// Bytes of weights that are worth a turn of a thread: a microsecond of reading.
const TURN: usize = 32 << 10;

/// The set that is used where models are loaded for `cpu`.
pub(crate) fn set(cpu: CpuSet) -> Option<CpuSet> {
    cpu.best_of(&SETS)
}

/// True for matrices that these kernels can multiply; copied, they take as many bytes as they have.
pub(crate) fn fits(ty: GgmlType, shape: &[usize]) -> bool {
    let [.., rows, cols] = *shape else { return false };
    matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)
        && rows.is_multiple_of(ROWS)
        && cols.is_multiple_of(LANES)
        && shape.iter().all(|&n| n > 0)
        && matches!(shape.len(), 2 | 3)
}

/// A float matrix, or experts' matrices one after the other.
#[derive(Debug)]
pub(crate) struct FloatMatrix {
    set: Option<CpuSet>,
    ty: GgmlType,
    experts: usize,
    rows: usize,
    cols: usize,
    /// The tiles, once they are packed.
    own: OnceLock<Piece>,
    /// The tiles in the file, and the memory that they will be packed into.
    file: Vec<Tile>,
    room: Mutex<Option<Piece>>,
}

impl FloatMatrix {
    /// Takes up a matrix of a type and shape that [`fits`]; the rows may lie in several pieces,
    /// which follow one another. They are read where they are until [`FloatMatrix::pack`] has
    /// copied them. `cpu`: a set that this CPU has.
    ///
    /// # Safety
    /// `data` stays where it is, unchanged, as long as the matrix.
    ///
    /// # Errors
    /// Another type, shape or number of bytes; an arena that is full.
    pub(crate) unsafe fn new(
        cpu: CpuSet,
        arena: &mut Arena,
        ty: GgmlType,
        shape: &[usize],
        data: &[&[u8]],
    ) -> Result<Self> {
        let found: usize = data.iter().map(|piece| piece.len()).sum();
        let (experts, rows, cols) = match *shape {
            [rows, cols] => (1, rows, cols),
            [experts, rows, cols] => (experts, rows, cols),
            _ => (0, 0, 0),
        };
        let row_bytes = ty.row_bytes(cols).filter(|bytes| experts * rows * bytes == found);
        let Some(row_bytes) = row_bytes.filter(|_| fits(ty, shape)) else {
            return Err(Error::Request {
                message: format!("{found} bytes of {} for shape {shape:?}", ty.name()),
            });
        };
        let tile_bytes = ROWS * row_bytes;
        let mut piece = arena.take(found)?;
        let set = set(cpu);
        if !data.iter().all(|piece| piece.len().is_multiple_of(tile_bytes)) {
            // a tile that two pieces share has to be joined
            fill(&mut piece, ty, tile_bytes, data.concat().chunks_exact(tile_bytes), &mut |_| ());
            let (own, room) = (OnceLock::from(piece), Mutex::new(None));
            return Ok(Self { set, ty, experts, rows, cols, own, file: Vec::new(), room });
        }
        let tiles = data.iter().flat_map(|piece| piece.chunks_exact(tile_bytes));
        let file = tiles.map(|tile| Tile(tile.as_ptr())).collect();
        let (own, room) = (OnceLock::new(), Mutex::new(Some(piece)));
        Ok(Self { set, ty, experts, rows, cols, own, file, room })
    }

    /// A matrix of zeros of a type and shape that [`fits`], in memory, for [`FloatMatrix::write`] to
    /// fill. `cpu`: a set that this CPU has.
    ///
    /// # Errors
    /// Another type or shape; an arena that is full.
    pub(crate) fn zeros(
        cpu: CpuSet,
        arena: &mut Arena,
        ty: GgmlType,
        shape: &[usize],
    ) -> Result<Self> {
        let rows: usize = shape.iter().rev().skip(1).product();
        let bytes = shape.last().and_then(|&cols| ty.row_bytes(cols)).map(|row| rows * row);
        let Some(bytes) = bytes.filter(|_| fits(ty, shape)) else {
            return Err(Error::Request { message: format!("{} of shape {shape:?}", ty.name()) });
        };
        let [.., rows_of_one, cols] = *shape else { unreachable!("checked by fits") };
        Ok(Self {
            set: set(cpu),
            ty,
            experts: rows / rows_of_one,
            rows: rows_of_one,
            cols,
            own: OnceLock::from(arena.take(bytes)?),
            file: Vec::new(),
            room: Mutex::new(None),
        })
    }

    /// Overwrites the numbers of a row from column `first` on; rows of experts follow one another.
    ///
    /// # Errors
    /// Numbers beyond the matrix, or one that still lies in its file.
    ///
    /// # Safety
    /// Meanwhile nobody computes with the matrix, and nobody else writes these numbers.
    pub(crate) unsafe fn write(&self, row: usize, first: usize, values: &[f32]) -> Result<()> {
        let rows = self.experts * self.rows;
        let end = first.checked_add(values.len()).filter(|&end| end <= self.cols && row < rows);
        let (Some(_), Some(own)) = (end, self.own.get()) else {
            return Err(Error::Request {
                message: format!(
                    "{} numbers at row {row}, column {first} of a matrix [{rows}, {}]",
                    values.len(),
                    self.cols
                ),
            });
        };
        // SAFETY: row and columns are in the matrix, as checked; the rest is what the caller says.
        unsafe { write::write_row(self.ty, own.as_ptr(), self.cols, (row, first), values) };
        Ok(())
    }

    /// Copies the rows that were left in the file, on one thread: others compute meanwhile. `read`
    /// is told how many bytes have been read since it was told before.
    pub(crate) fn pack(&self, read: &mut dyn FnMut(usize)) {
        let room = self.room.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(mut own), Some(row_bytes)) = (room, self.ty.row_bytes(self.cols)) else { return };
        let tile_bytes = ROWS * row_bytes;
        // SAFETY: a tile's bytes are there, as whoever made the matrix said.
        let bytes = |tile: &Tile| unsafe { std::slice::from_raw_parts(tile.0, tile_bytes) };
        fill(&mut own, self.ty, tile_bytes, self.file.iter().map(bytes), read);
        let _ = self.own.set(own); // the room was there once, so this is the first
    }

    /// The tiles of an expert.
    fn tiles(&self, expert: usize) -> Tiles<'_> {
        let tiles = self.rows / ROWS;
        match self.own.get() {
            Some(own) => {
                let size = own.bytes().len() / self.experts;
                Tiles::Packed(&own.bytes()[expert * size..][..size])
            }
            None => Tiles::InFile(&self.file[expert * tiles..][..tiles]),
        }
    }
}

/// Packs all tiles.
fn fill<'a>(
    to: &mut Piece,
    ty: GgmlType,
    tile_bytes: usize,
    tiles: impl Iterator<Item = &'a [u8]>,
    read: &mut dyn FnMut(usize),
) {
    for (tile, to) in tiles.zip(to.bytes_mut().chunks_exact_mut(tile_bytes)) {
        tile::pack(tile, ty.block_bytes(), to);
        read(tile_bytes);
    }
}

impl Context {
    /// The products of activations with a matrix: `[n, rows]`, or with chosen experts
    /// `[n, k, rows]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or no room.
    pub(crate) fn float_matmul<'c>(
        &'c self,
        matrix: &'c FloatMatrix,
        activations: Activations<'c>,
    ) -> Result<Tensor<'c>> {
        let FloatMatrix { experts, rows, cols, .. } = *matrix;
        let shape = activations.products(experts, rows, cols).filter(|_| matrix.set.is_some());
        let shape = shape.ok_or_else(|| Error::Request {
            message: format!(
                "float product: shapes [{experts}, {rows}, {cols}] and {:?} do not fit",
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

thread_local! {
    static CHOSEN: RefCell<Chosen> = RefCell::default();
}

/// Computes one thread's turns at a product: some tiles (of every chosen expert's) for all tokens.
unsafe fn compute(target: *mut sys::ggml_tensor, worker: Worker<'_>, matrix: *mut c_void) {
    // SAFETY: this is called for nodes made by float_matmul only, whose matrix and operands are
    // alive, once the operands are computed; target is contiguous float32 of `rows` values per
    // product, and each thread writes results of the rows of its own turns only.
    unsafe {
        let matrix = &*matrix.cast::<FloatMatrix>();
        let x = &*(*target).src[0];
        let tiles = matrix.rows / ROWS;
        let least = TURN / (ROWS * matrix.cols * matrix.ty.block_bytes());
        CHOSEN.with(|chosen| {
            let mut chosen = chosen.borrow_mut();
            chosen.find(x, (*target).src[1], matrix.experts);
            for turn in worker.turns(chosen.len() * tiles, least) {
                for (at, share) in Chosen::parts(turn, tiles) {
                    let (expert, pairs) = chosen.of(at);
                    let product = Product {
                        tiles: matrix.tiles(expert),
                        x: x.data.cast(),
                        stride: x.nb[1],
                        rows: matrix.rows,
                        cols: matrix.cols,
                        out: (*target).data.cast(),
                    };
                    match matrix.ty {
                        GgmlType::F16 => products::<F16>(matrix.set, &product, pairs, share),
                        GgmlType::BF16 => products::<Bf16>(matrix.set, &product, pairs, share),
                        _ => products::<F32>(matrix.set, &product, pairs, share),
                    }
                }
            }
        });
    }
}

/// The products of the tiles `share` by the kernel of a set.
///
/// # Safety
/// The CPU has the set; else as for [`tile::avx512`].
unsafe fn products<E: Element>(
    set: Option<CpuSet>,
    product: &Product<'_>,
    pairs: &[(u32, u32)],
    share: std::ops::Range<usize>,
) {
    match set {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as the caller says.
        Some(CpuSet::Avx512) => unsafe { tile::avx512::<E>(product, pairs, share) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as the caller says.
        Some(CpuSet::Avx2) => unsafe { tile::avx2::<E>(product, pairs, share) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as the caller says.
        Some(CpuSet::Neon) => unsafe { tile::neon::<E>(product, pairs, share) },
        _ => {} // no node is made for another
    }
}

#[cfg(test)]
mod tests;
