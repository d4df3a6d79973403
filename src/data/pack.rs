//! Packing: several samples share a row, so that a batch of rows is about as many tokens each time.
//! No token attends across samples and positions begin anew with each, so the loss is the same.

use std::ops::Range;

use super::batch::{Batch, Share};
use super::dataset::Dataset;

/// Rows that are filled at the same time: more pack tighter, fewer keep the order closer.
const OPEN_ROWS: usize = 32;

/// The rows of an epoch: which samples share each, in two flat lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    indices: Vec<u32>,
    /// Where each row ends in `indices`, and how many of its positions are used.
    ends: Vec<(u32, u32)>,
}

impl Rows {
    /// The number of rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The samples of the rows `from..to`, row by row; what is past the end is left out.
    pub fn slice(&self, from: usize, to: usize) -> impl ExactSizeIterator<Item = &[u32]> {
        let to = to.min(self.len());
        (from.min(to)..to).map(|row| {
            let start = row.checked_sub(1).map_or(0, |before| self.ends[before].0 as usize);
            &self.indices[start..self.ends[row].0 as usize]
        })
    }

    /// Positions of a row that samples fill.
    pub fn used(&self, row: usize) -> usize {
        self.ends.get(row).map_or(0, |&(_, used)| used as usize)
    }

    /// Every row's samples.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.slice(0, self.len())
    }

    fn push(&mut self, row: &[u32], used: usize) {
        self.indices.extend_from_slice(row);
        self.ends.push((self.indices.len() as u32, used as u32));
    }
}

impl Dataset {
    /// Puts samples into rows: each into the first open row with room for it. Depends on the order
    /// alone. Every sample is in one row; of preference pairs, each row is one pair.
    pub fn pack(&self, order: &[u32]) -> Rows {
        let mut done = Rows::default();
        if self.is_pairs() {
            for &index in order {
                let used = self.tokens_of(index as usize).saturating_sub(1);
                done.push(&[index], used);
            }
            return done;
        }
        let room = self.row_len();
        let mut open: Vec<(usize, Vec<u32>)> = Vec::new();
        for &index in order {
            let length = self.tokens_of(index as usize).saturating_sub(1);
            match open.iter_mut().find(|(used, _)| used + length <= room) {
                Some((used, row)) => {
                    *used += length;
                    row.push(index);
                }
                None => {
                    if open.len() == OPEN_ROWS {
                        // the fullest is the least likely to take more
                        let fullest = (0..open.len()).max_by_key(|&i| (open[i].0, usize::MAX - i));
                        let (used, row) = open.remove(fullest.unwrap_or(0));
                        done.push(&row, used);
                    }
                    open.push((length, vec![index]));
                }
            }
        }
        open.iter().for_each(|(used, row)| done.push(row, *used));
        self.give_back(); // of every sample the length was read
        done
    }

    /// A rank's share of the batch of the packed rows `all`: the rows `own` of them.
    ///
    /// # Panics
    /// See [`Dataset::packed_batch`].
    pub fn packed_share(&self, rows: &Rows, all: Range<usize>, own: Range<usize>) -> Batch {
        let samples = |range: &Range<usize>| rows.slice(range.start, range.end).flatten().copied();
        let mut share =
            Share { before: samples(&(all.start..own.start)).count(), ..Share::default() };
        for index in samples(&all) {
            let length = self.tokens_of(index as usize).saturating_sub(1);
            share.sequences += usize::from(length > 0);
            share.positions += length;
            share.learned += self.learned_of(index as usize);
        }
        Batch { share: Some(share), ..self.packed_batch(rows.slice(own.start, own.end)) }
    }

    /// Positions of a packed row: max_seq_len - 1, one per target.
    pub fn row_len(&self) -> usize {
        self.options.max_seq_len - 1
    }

    /// The samples of some packed rows (of texts or chats), one after the other. What the rows
    /// leave free is not in it: padding would be computed, and learns nothing.
    ///
    /// # Shapes
    /// `[1, positions of all samples]`, one position per target; without positions `[0, 0]`.
    ///
    /// # Panics
    /// When an index is not below [`Dataset::len`] (a bug of the caller).
    pub fn packed_batch<'r>(&self, rows: impl Iterator<Item = &'r [u32]>) -> Batch {
        let mut batch = Batch::default();
        for &index in rows.flatten() {
            let sample = self.sample(index as usize);
            let length = sample.ids.len().saturating_sub(1);
            let ids = |from: usize| sample.ids[from..from + length].iter().map(|&id| i64::from(id));
            batch.x.extend(ids(0));
            batch.y.extend(ids(1));
            let learned = |i| if sample.is_learned(i) { 1.0 } else { 0.0 };
            batch.mask.extend((1..=length).map(learned));
            batch.lines.push((sample.file, sample.line));
            batch.packed.extend((length > 0).then_some(length));
        }
        batch.seq = batch.x.len();
        batch.batch = usize::from(batch.seq > 0);
        batch
    }
}
