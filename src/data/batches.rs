//! Sources of batches for the training loop: a position (epoch, index) always gives the same
//! [`Batch`].

use std::ops::Range;
use std::path::PathBuf;

use crate::batch::Batch;
use crate::dataset::Dataset;
use crate::pack::Rows;
use mmx_converters::Result;

pub use crate::batch::Part;

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

    /// What a checkpoint has to keep so that the batches after this one are the same: nothing where
    /// a position alone gives its batch.
    ///
    /// # Errors
    /// The state cannot be put into words.
    fn state(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// Puts back what [`Batches::state`] gave, for the batches from a position on.
    ///
    /// # Errors
    /// A text that is no such state.
    fn restore(&mut self, _epoch: usize, _index: usize, _state: &str) -> Result<()> {
        Ok(())
    }

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

/// The rows of a rank among `range`, and all of them where there are no ranks.
fn own(part: Option<Part>, range: Range<usize>) -> Range<usize> {
    match part {
        None => range,
        Some(part) => {
            let own = part.of(range.len());
            range.start + own.start..range.start + own.end
        }
    }
}

/// The larger of two sizes, by positions in all.
fn larger(a: (usize, usize), b: (usize, usize)) -> (usize, usize) {
    if b.0 * b.1 > a.0 * a.1 { b } else { a }
}

/// The rows of the batch of a number, of `rows` in all.
fn nth(index: usize, batch_size: usize, rows: usize) -> Range<usize> {
    let start = index.saturating_mul(batch_size).min(rows);
    start..start.saturating_add(batch_size).min(rows)
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

    /// See [`Ordered::part`].
    #[must_use]
    pub fn part(mut self, part: Option<Part>) -> Self {
        self.ordered.part = part;
        self
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
        let Ordered { dataset, batch_size, part, .. } = self.ordered;
        let rows = self.rows(epoch);
        let all = nth(index, batch_size, rows.len());
        Ok(match part {
            None => dataset.packed_batch(rows.slice(all.start, all.end)),
            Some(_) => dataset.packed_share(rows, all.clone(), own(part, all)),
        })
    }

    fn file(&self, index: u32) -> String {
        self.ordered.file(index)
    }

    fn largest(&mut self, micro_steps: usize) -> Result<(usize, usize)> {
        let Ordered { batch_size, part, .. } = self.ordered;
        let rows = self.rows(0);
        let batches = 0..rows.len().div_ceil(batch_size).min(micro_steps);
        let sizes = batches.map(|index| {
            let rows_here = own(part, nth(index, batch_size, rows.len()));
            (rows_here.len(), rows_here.map(|row| rows.used(row)).max().unwrap_or(0))
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
    part: Option<Part>,
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
        Self { dataset, files, seed, shuffle, batch_size, padded, part: None, order: None }
    }

    /// These batches' shares of one rank: `batch_size` are then the samples of all ranks.
    #[must_use]
    pub fn part(self, part: Option<Part>) -> Self {
        Self { part, ..self }
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
        let Self { dataset, batch_size, padded, part, .. } = *self;
        let order = self.order(epoch);
        let indices = &order[nth(index, batch_size, order.len())];
        Ok(match part {
            None => dataset.batch(indices, padded),
            Some(part) => dataset.share(indices, part.of(indices.len()), padded),
        })
    }

    fn file(&self, index: u32) -> String {
        let path = self.files.get(index as usize);
        path.map_or_else(|| format!("file {index}"), |path| path.display().to_string())
    }

    fn largest(&mut self, micro_steps: usize) -> Result<(usize, usize)> {
        let Self { dataset, batch_size, padded, part, .. } = *self;
        let batches = self.order(0).chunks(batch_size).take(micro_steps);
        let sizes = batches
            .map(|indices| dataset.batch_size(&indices[own(part, 0..indices.len())], padded));
        Ok(sizes.fold((0, 0), larger))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_all_ranks_are_every_row_once_in_order() {
        for ranks in 1..=9 {
            for rows in 0..=40 {
                let parts = (0..ranks).map(|rank| Part { rank, ranks }.of(rows));
                let parts: Vec<Range<usize>> = parts.collect();
                let all: Vec<usize> = parts.iter().cloned().flatten().collect();
                assert_eq!(all, (0..rows).collect::<Vec<_>>(), "{rows} rows, {ranks} ranks");
                let sizes = parts.iter().map(Range::len);
                let (least, most) = (sizes.clone().min(), sizes.max());
                assert!(most <= least.map(|n| n + 1), "{rows} rows, {ranks} ranks: {parts:?}");
            }
        }
    }
}
