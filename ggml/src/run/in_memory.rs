//! A model whose weights are nobody's file: made of a configuration, filled from values by name, and
//! filled again while texts are being written with it.
//!
//! In: weights as float32 by their names in the Transformers folder (or mmx's own). Out: the buffers
//! that the kernels read, overwritten where they lie: the family's table says which rows of which
//! matrix a weight is, and the loader kept where that matrix is.
//!
//! # Limits
//! Each number is read once and written once: 26M in float32 are 104 MB each way, and 13 MB more for
//! a tied head, which lies there as a table and as a matrix. All threads write, at the rate of the
//! memory; q8_0 writes a quarter and is bound by finding each block's scale.
#![expect(unsafe_code, reason = "weights are written where kernels read them")]

use std::path::Path;

use mmx_converters::arch::{Config, Place};
use mmx_converters::error::TensorReport;
use mmx_converters::gguf::{GgmlType, Gguf, zeros};
use mmx_converters::quant::file_type::FileType;
use rayon::prelude::*;

use super::model::Model;
use super::names::{Names, Part, Values};
use super::options::LoadOptions;
use super::random_model::Parts;
use super::weights::{Matrix, Target, Weights};
use crate::error::{Error, Result};
use crate::kernel::float_matmul::{FloatMatrix, put};
use crate::kernel::quant_matmul::{GROUP, QuantMatrix};
use crate::quant::quantize_rows;

/// Numbers that are worth a turn of a thread: some ten microseconds of copying.
const TURN: usize = 64 << 10;

/// The name of models in memory in messages.
const NAME: &str = "weights";

impl Model {
    /// A model of `config` in memory, its weights zeros until [`Slots::take`](super::Slots::take)
    /// fills them. `file` is f32, f16, bf16 or q8_0, whose blocks are then those of a file that was
    /// quantized to it; it has no tokenizer.
    ///
    /// # Errors
    /// Another type, a configuration the runner cannot compute, no memory.
    pub fn in_memory(config: &Config, file: FileType, options: &LoadOptions) -> Result<Self> {
        if !matches!(file, FileType::F32 | FileType::F16 | FileType::BF16 | FileType::Q8_0) {
            return Err(Error::Request {
                message: format!(
                    "weights in memory: expected f32, f16, bf16 or q8_0, found {file}"
                ),
            });
        }
        let options = LoadOptions { gpu_layers: 0, ..options.clone() };
        let parts = Parts::new(config, None, file)?;
        let bytes = zeros(Path::new(NAME), &parts.metadata, &parts.specs)?;
        let gguf = Gguf::from_bytes(bytes, NAME)?;
        let mut read =
            Config::from_gguf_keys(gguf.metadata(), gguf.path(), config.tie_word_embeddings)?;
        if config.rope_divisors().is_some() {
            read.rope_scaling.clone_from(&config.rope_scaling); // no key carries it
        }
        let config = read;
        let mut weights = Weights::in_memory(gguf, &config, &options)?;
        weights.names = Some(Names::new(&config));
        Ok(Self::from_weights(config, weights))
    }
}

impl Weights {
    /// Overwrites all weights of a model in memory with what is given, which has to be all of them.
    ///
    /// # Errors
    /// A model of a file; in one error, everything that is missing, unknown or of another shape:
    /// what fitted has been overwritten then, and the model is of no use until all of it is given.
    ///
    /// # Safety
    /// Meanwhile nobody computes with the weights.
    pub(super) unsafe fn take(
        &mut self,
        given: &mut dyn Iterator<Item = Values<'_>>,
    ) -> Result<()> {
        let Some(names) = &self.names else {
            return Err(Error::Request {
                message: format!(
                    "{}: expected a model in memory, found a file, whose weights stay as they are",
                    self.gguf.path().display()
                ),
            });
        };
        let mut report = TensorReport::default();
        let mut filled = vec![false; names.of_weight.len()];
        for tensor in given {
            let Some(source) = names.sources.get(tensor.name) else {
                report.unexpected.push(tensor.name.to_owned());
                continue;
            };
            let size: usize = tensor.shape.iter().product();
            if tensor.shape != source.shape || tensor.values.len() != size {
                let found = match tensor.shape == source.shape {
                    true => format!("{} values", tensor.values.len()),
                    false => format!("{:?}", tensor.shape),
                };
                let expected = format!("shape {:?}", source.shape);
                report.mismatched.push((tensor.name.to_owned(), expected, found));
                source.parts.iter().for_each(|part| filled[part.weight] = true);
                continue;
            }
            for part in &source.parts {
                for target in self.targets.get(&part.to.tensor).into_iter().flatten() {
                    // SAFETY: as the caller says, and parts of the table do not overlap.
                    unsafe { self.overwrite(target, part, tensor.values)? };
                }
                filled[part.weight] = true;
            }
        }
        let lacking = names.of_weight.iter().zip(&filled).filter(|(_, filled)| !**filled);
        report.missing = lacking.map(|(name, _)| name.clone()).collect();
        report.missing.dedup(); // experts in one tensor follow one another
        self.whole = report.is_empty();
        if self.whole {
            return Ok(());
        }
        Err(mmx_converters::Error::Tensors { path: NAME.into(), report }.into())
    }

    /// Writes a weight, which lies in `values`, into the rows of a matrix.
    ///
    /// # Safety
    /// Meanwhile nobody computes with the matrix, and nobody else writes these rows.
    unsafe fn overwrite(&self, target: &Target, part: &Part, values: &[f32]) -> Result<()> {
        let (start, stride) = (start(&part.from), row_of(&part.from.shape));
        let cols = row_of(&part.to.extent);
        let rows = part.to.extent.iter().product::<usize>() / cols.max(1);
        let (first, column) = first_row(&part.to, target);
        let room = match &target.matrix {
            Matrix::Float(matrix) => Room::Tiles(matrix),
            Matrix::Plain(weight) => Room::Plain(Plain::of(self.get(*weight)?)?),
            Matrix::Quant(matrix) => {
                // SAFETY: as the caller says.
                return unsafe { overwrite_groups(matrix, part, values, (first, column)) };
            }
        };
        let write = |row: usize| -> Result<()> {
            let from = part.order.as_ref().map_or(row, |order| order[row]);
            let values = &values[start + from * stride..][..cols];
            // SAFETY: as the caller says; every row is written by one thread.
            unsafe {
                match &room {
                    Room::Tiles(matrix) => matrix.write(first + row, column, values),
                    Room::Plain(plain) => plain.write(first + row, column, values),
                }
            }
        };
        if rows * cols < 2 * TURN {
            return (0..rows).try_for_each(write);
        }
        (0..rows).into_par_iter().with_min_len((TURN / cols).max(1)).try_for_each(write)
    }
}

/// Quantizes a weight, which lies in `values`, into whole rows of a packed matrix, by groups; `first`:
/// the row, and the column, which is 0.
///
/// # Safety
/// Meanwhile nobody computes with the matrix, and nobody else writes these rows.
unsafe fn overwrite_groups(
    matrix: &QuantMatrix,
    part: &Part,
    values: &[f32],
    (first, column): (usize, usize),
) -> Result<()> {
    let (start, stride) = (start(&part.from), row_of(&part.from.shape));
    let cols = row_of(&part.to.extent);
    let rows = part.to.extent.iter().product::<usize>() / cols.max(1);
    if column != 0 || !rows.is_multiple_of(GROUP) {
        return Err(Error::Request {
            message: format!(
                "weights in memory: {}: expected whole rows, a multiple of {GROUP}, found {rows} from \
                 column {column} on",
                part.to.tensor
            ),
        });
    }
    let write = |group: usize| -> Result<()> {
        let mut joined = Vec::with_capacity(GROUP * cols);
        for row in group * GROUP..(group + 1) * GROUP {
            let from = part.order.as_ref().map_or(row, |order| order[row]);
            joined.extend_from_slice(&values[start + from * stride..][..cols]);
        }
        let blocks = quantize_rows(matrix.ty(), &joined, cols)?;
        // SAFETY: as the caller says; every group is written by one thread.
        unsafe { matrix.write(first + group * GROUP, &blocks) }
    };
    let least = (TURN / (GROUP * cols)).max(1);
    (0..rows / GROUP).into_par_iter().with_min_len(least).try_for_each(write)
}

/// The elements before a block begins.
fn start(place: &Place) -> usize {
    place.offset.iter().zip(&place.shape).fold(0, |at, (offset, n)| at * n + offset)
}

/// Elements of a row.
fn row_of(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// The row of a matrix and the column at which a block of one of its tensors begins.
fn first_row(place: &Place, target: &Target) -> (usize, usize) {
    match place.offset[..] {
        [column] => (target.first, column),
        [row, column] => (target.first + row, column),
        [expert, row, column] => (expert * target.rows + target.first + row, column),
        _ => (usize::MAX, 0), // no tensor of a model: refused where it is written
    }
}

/// Where rows are written.
enum Room<'a> {
    Tiles(&'a FloatMatrix),
    Plain(Plain),
}

/// A tensor of ggml as rows of floats, or of blocks of 8-bit numbers.
struct Plain {
    ty: GgmlType,
    data: *mut u8,
    rows: usize,
    cols: usize,
}

// SAFETY: a place in memory; who writes there says that nobody else does.
unsafe impl Sync for Plain {}

impl Plain {
    fn of(tensor: crate::wrap::tensor::Tensor<'_>) -> Result<Self> {
        let [cols, rows, experts, _] = tensor.ne();
        let ty = tensor.ty().filter(|ty| {
            use GgmlType::{BF16, F16, F32, Q8_0};
            matches!(ty, F32 | F16 | BF16 | Q8_0) && tensor.is_allocated()
        });
        let ty = ty.ok_or_else(|| Error::Request {
            message: format!("a tensor of {:?}: expected floats or q8_0 in memory", tensor.shape()),
        })?;
        Ok(Self { ty, data: tensor.data().cast(), rows: rows * experts, cols })
    }

    /// Writes numbers of a row from column `first` on.
    ///
    /// # Errors
    /// Numbers beyond the tensor.
    ///
    /// # Safety
    /// Meanwhile nobody reads the tensor, and nobody else writes these numbers.
    unsafe fn write(&self, row: usize, first: usize, values: &[f32]) -> Result<()> {
        let block = self.ty.block_elements();
        let blocks = first.is_multiple_of(block) && values.len().is_multiple_of(block);
        let end = first.checked_add(values.len()).filter(|&end| end <= self.cols);
        if row >= self.rows || end.is_none() || !blocks {
            return Err(Error::Request {
                message: format!(
                    "{} numbers at row {row}, column {first} of a tensor [{}, {}] of {}",
                    values.len(),
                    self.rows,
                    self.cols,
                    self.ty.name()
                ),
            });
        }
        let at = (row * self.cols + first) / block * self.ty.block_bytes();
        if self.ty == GgmlType::Q8_0 {
            let blocks = quantize_rows(self.ty, values, values.len())?;
            // SAFETY: as below.
            unsafe { self.data.add(at).copy_from_nonoverlapping(blocks.as_ptr(), blocks.len()) };
            return Ok(());
        }
        // SAFETY: the numbers lie in the tensor, as checked, whose memory is plain (`Plain::of`);
        // nobody else touches them, as the caller says.
        unsafe { put(self.ty, self.data.add(at), values) };
        Ok(())
    }
}
