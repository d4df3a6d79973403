//! Sources of batches for the training loop: a position (epoch, index) always gives the same
//! [`Batch`].

use std::path::PathBuf;

use crate::batch::Batch;
use crate::dataset::Dataset;
use crate::pack::Rows;
use mmx_converters::Result;

/// A source of batches.
pub trait Batches {
    /// Micro-steps of an epoch.
    fn micro_steps(&mut self, epoch: usize) -> usize;

    /// The batch of a micro-step of an epoch.
    ///
    /// # Errors
    /// The batch could not be put together.
    fn batch(&mut self, epoch: usize, index: usize) -> Result<Batch>;

    /// The name of a file that [`Batch::lines`] speaks of.
    fn file(&self, index: u32) -> String;

    /// Rows and positions of the largest of the first epoch's first batches, which need not be read
    /// for this.
    ///
    /// # Errors
    /// See [`Batches::batch`].
    fn largest(&mut self, micro_steps: usize) -> Result<(usize, usize)> {
        let mut largest = (0, 0);
        for index in 0..self.micro_steps(0).min(micro_steps) {
            let Batch { batch, seq, .. } = self.batch(0, index)?;
            largest = larger(largest, (batch, seq));
        }
        Ok(largest)
    }
}

/// The larger of two sizes, by positions in all.
fn larger(a: (usize, usize), b: (usize, usize)) -> (usize, usize) {
    if b.0 * b.1 > a.0 * a.1 { b } else { a }
}

/// A data set whose samples share rows, `batch_size` rows at a time.
#[derive(Debug)]
pub struct Packed<'a> {
    ordered: Ordered<'a>,
    /// The rows of the epoch last asked for.
    rows: Option<(usize, Rows)>,
}

impl<'a> Packed<'a> {
    /// See [`Ordered::new`].
    pub fn new(
        dataset: &'a Dataset,
        files: &[PathBuf],
        seed: u64,
        shuffle: bool,
        batch_size: usize,
    ) -> Self {
        Self { ordered: Ordered::new(dataset, files, seed, shuffle, batch_size, false), rows: None }
    }

    fn rows(&mut self, epoch: usize) -> &Rows {
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

    fn batch(&mut self, epoch: usize, index: usize) -> Result<Batch> {
        let (dataset, batch_size) = (self.ordered.dataset, self.ordered.batch_size);
        let rows = self.rows(epoch);
        let start = index.saturating_mul(batch_size);
        Ok(dataset.packed_batch(rows.slice(start, start.saturating_add(batch_size))))
    }

    fn file(&self, index: u32) -> String {
        self.ordered.file(index)
    }

    fn largest(&mut self, micro_steps: usize) -> Result<(usize, usize)> {
        let batch_size = self.ordered.batch_size;
        let rows = self.rows(0);
        let starts = (0..rows.len()).step_by(batch_size).take(micro_steps);
        let sizes = starts.map(|start| {
            let end = start.saturating_add(batch_size).min(rows.len());
            (end - start, (start..end).map(|row| rows.used(row)).max().unwrap_or(0))
        });
        Ok(sizes.fold((0, 0), larger))
    }
}

/// A data set in the order of each epoch, `batch_size` samples at a time; the last batch of an
/// epoch may be smaller.
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

    fn order(&mut self, epoch: usize) -> &[u32] {
        if self.order.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            self.order = None;
        }
        let order = || self.dataset.order(self.seed, epoch as u64, self.shuffle);
        &self.order.get_or_insert_with(|| (epoch, order())).1
    }
}

impl Batches for Ordered<'_> {
    fn micro_steps(&mut self, _epoch: usize) -> usize {
        self.dataset.len().div_ceil(self.batch_size)
    }

    fn batch(&mut self, epoch: usize, index: usize) -> Result<Batch> {
        let (dataset, batch_size, padded) = (self.dataset, self.batch_size, self.padded);
        let order = self.order(epoch);
        let start = index.saturating_mul(batch_size).min(order.len());
        let end = start.saturating_add(batch_size).min(order.len());
        Ok(dataset.batch(&order[start..end], padded))
    }

    fn file(&self, index: u32) -> String {
        let path = self.files.get(index as usize);
        path.map_or_else(|| format!("file {index}"), |path| path.display().to_string())
    }

    fn largest(&mut self, micro_steps: usize) -> Result<(usize, usize)> {
        let (dataset, batch_size, padded) = (self.dataset, self.batch_size, self.padded);
        let batches = self.order(0).chunks(batch_size).take(micro_steps);
        Ok(batches.map(|indices| dataset.batch_size(indices, padded)).fold((0, 0), larger))
    }
}
