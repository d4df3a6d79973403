//! Where the loop's batches come from: a position (epoch, index) to a [`Batch`], always the same one.

use std::path::PathBuf;

use crate::data::{Batch, Dataset};

/// A source of batches.
pub trait Batches {
    /// Micro-steps of an epoch.
    fn micro_steps(&mut self, epoch: usize) -> usize;

    /// The batch of a micro-step of an epoch.
    fn batch(&mut self, epoch: usize, index: usize) -> Batch;

    /// The name of a file that [`Batch::lines`] speaks of.
    fn file(&self, index: u32) -> String;
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
