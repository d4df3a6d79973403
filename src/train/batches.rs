//! Where the loop's batches come from: a position (epoch, index) to a [`Batch`], always the same one.

use std::path::PathBuf;

use crate::data::{self, Batch, Dataset};

/// A source of batches.
pub trait Batches {
    /// Micro-steps of an epoch.
    fn micro_steps(&mut self, epoch: usize) -> usize;

    /// The batch of a micro-step of an epoch.
    fn batch(&mut self, epoch: usize, index: usize) -> Batch;

    /// The name of a file that [`Batch::lines`] speaks of.
    fn file(&self, index: u32) -> String;
}

/// A data set whose samples share rows, `batch_size` rows at a time.
#[derive(Debug)]
pub struct Packed<'a> {
    ordered: Ordered<'a>,
    /// The rows of the epoch last asked for.
    rows: Option<(usize, data::Rows)>,
}

impl<'a> Packed<'a> {
    /// See [`Ordered::new`]; rows are as long as the batch's longest.
    pub fn new(
        dataset: &'a Dataset,
        files: &[PathBuf],
        seed: u64,
        shuffle: bool,
        batch_size: usize,
    ) -> Self {
        Self { ordered: Ordered::new(dataset, files, seed, shuffle, batch_size, false), rows: None }
    }

    fn rows(&mut self, epoch: usize) -> &data::Rows {
        let Ordered { dataset, seed, shuffle, .. } = self.ordered;
        if self.rows.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            self.rows = None;
        }
        let rows = || dataset.pack(&dataset.order(seed, epoch as u64, shuffle));
        &self.rows.get_or_insert_with(|| (epoch, rows())).1
    }
}

impl Batches for Packed<'_> {
    fn micro_steps(&mut self, epoch: usize) -> usize {
        let batch_size = self.ordered.batch_size;
        self.rows(epoch).len().div_ceil(batch_size)
    }

    fn batch(&mut self, epoch: usize, index: usize) -> Batch {
        let (dataset, batch_size) = (self.ordered.dataset, self.ordered.batch_size);
        let rows = self.rows(epoch);
        let start = index * batch_size;
        shared_rows(dataset.packed_batch(rows.slice(start, start + batch_size)))
    }

    fn file(&self, index: u32) -> String {
        self.ordered.file(index)
    }
}

/// The batch of packed rows with the lengths of the samples in each, cut to the longest row.
fn shared_rows(packed: data::Packed) -> Batch {
    let data::Packed { mut batch, segments, .. } = packed;
    let old = batch.seq;
    let lengths = |row: &[i64]| -> Vec<usize> {
        let samples = row.chunk_by(|a, b| a == b).filter(|sample| sample.first() != Some(&0));
        samples.map(<[i64]>::len).collect()
    };
    batch.packed = segments.chunks(old.max(1)).map(lengths).collect();
    batch.seq = batch.packed.iter().map(|row| row.iter().sum()).max().unwrap_or(old);
    fn cut<T: Copy>(values: &[T], old: usize, new: usize) -> Vec<T> {
        values.chunks(old.max(1)).flat_map(|row| &row[..new.min(row.len())]).copied().collect()
    }
    batch.x = cut(&batch.x, old, batch.seq);
    batch.y = cut(&batch.y, old, batch.seq);
    batch.mask = cut(&batch.mask, old, batch.seq);
    batch
}

/// A data set in the order of each epoch, `batch_size` samples at a time; the last batch of an epoch
/// may be smaller.
#[derive(Debug)]
pub struct Ordered<'a> {
    dataset: &'a Dataset,
    files: Vec<PathBuf>,
    seed: u64,
    shuffle: bool,
    batch_size: usize,
    padded: bool,
    /// The order of the epoch last asked for.
    order: Option<(usize, Vec<u32>)>,
}

impl<'a> Ordered<'a> {
    /// `padded`: rows as long as max_seq_len allows, else as the batch's longest sample.
    pub fn new(
        dataset: &'a Dataset,
        files: &[PathBuf],
        seed: u64,
        shuffle: bool,
        batch_size: usize,
        padded: bool,
    ) -> Self {
        let files = files.to_vec();
        Self { dataset, files, seed, shuffle, batch_size, padded, order: None }
    }
}

impl Batches for Ordered<'_> {
    fn micro_steps(&mut self, _epoch: usize) -> usize {
        self.dataset.len().div_ceil(self.batch_size)
    }

    fn batch(&mut self, epoch: usize, index: usize) -> Batch {
        let order = match &mut self.order {
            Some((cached, order)) if *cached == epoch => order,
            slot => {
                let order = self.dataset.order(self.seed, epoch as u64, self.shuffle);
                &mut slot.insert((epoch, order)).1
            }
        };
        let start = (index * self.batch_size).min(order.len());
        let end = (start + self.batch_size).min(order.len());
        self.dataset.batch(&order[start..end], self.padded)
    }

    fn file(&self, index: u32) -> String {
        let path = self.files.get(index as usize);
        path.map_or_else(|| format!("file {index}"), |path| path.display().to_string())
    }
}
