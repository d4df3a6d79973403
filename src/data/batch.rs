//! Batches of samples, in an order that depends on seed and epoch alone.

use std::ops::Range;

use mmx_converters::random::Random;

use crate::dataset::Dataset;
use crate::record::Kind;
use crate::sample::{Recipe, Sample};

/// The input of one micro-step. All arrays are `[batch, seq]`, row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Input ids.
    pub x: Vec<i64>,
    /// Target ids: at each position the id that comes next.
    pub y: Vec<i64>,
    /// The loss mask: 1 where the target is learned, else 0.
    pub mask: Vec<f32>,
    /// Rows. Of preference pairs: first all chosen, then all rejected.
    pub batch: usize,
    /// Positions of a row.
    pub seq: usize,
    /// Where each sample comes from: (file's index, line).
    pub lines: Vec<(u32, u32)>,
    /// Positions of each sample of a packed batch: they follow one another in a single row
    /// without padding. Empty: one sample per row.
    pub packed: Vec<usize>,
    /// The batch of all ranks that this is a share of; nothing where it is the whole.
    pub share: Option<Share>,
    /// The rewards of the rows and how they were sampled, where a policy wrote them.
    pub rewarded: Option<Rewarded>,
}

/// What learning from rewards knows of a batch besides its ids: every row is a rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewarded {
    /// Per position as the mask: the log-probability of its target in the distribution it was
    /// sampled from; 0 where it was not sampled.
    pub sampled: Vec<f32>,
    /// Reward of each row.
    pub rewards: Vec<f64>,
    /// Group of each row, whose rewards are compared with each other.
    pub groups: Vec<u64>,
    /// Whether each row was cut off by a limit.
    pub cut_off: Vec<bool>,
    /// An older policy sampled the rows: the one that is trained is measured from it.
    pub stale: bool,
    /// The rows that this micro-step is about; nothing for all of them.
    pub minibatch: Option<Minibatch>,
    /// The part of those rows that one of several processes trains on. Each has the whole batch,
    /// whose rewards are compared with each other.
    pub part: Option<Part>,
    /// Further numbers for the log by name: parts of the reward, speeds.
    pub numbers: Vec<(String, f64)>,
}

/// Some rows of a batch, which is trained on in several passes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Minibatch {
    /// The rows, in the order of this pass.
    pub rows: Vec<usize>,
    /// Nothing of the batch was trained on before.
    pub first: bool,
    /// The pass ends with it.
    pub ends_pass: bool,
    /// Micro-steps of the batch that are planned after this one.
    pub left: usize,
}

/// The whole batch of which a rank has a share.
///
/// A loss that divides by these numbers instead of the share's own adds up over the ranks to the
/// loss of the whole batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Sequences of the whole: its rows, or its samples that have positions in shared rows.
    pub sequences: usize,
    /// Positions of the whole, padding included where rows are padded to the full length.
    pub positions: usize,
    /// Targets of the whole that are learned.
    pub learned: usize,
    /// Samples (of preference data, pairs) of the whole that come before this share.
    pub before: usize,
}

/// The part of every batch that one of several processes trains on: rank `rank` of `ranks`.
///
/// A batch's rows are divided in their order, each once: as many for every rank, or for the first
/// ones one more than for the others; for the last ones none where there are too few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The process's number, from 0.
    pub rank: usize,
    /// All processes.
    pub ranks: usize,
}

impl Part {
    /// The rows of this rank among `rows`.
    pub fn of(self, rows: usize) -> Range<usize> {
        let (each, more) = (rows / self.ranks, rows % self.ranks);
        let start = |rank: usize| rank * each + rank.min(more);
        start(self.rank)..start(self.rank + 1)
    }
}

impl Batch {
    /// Targets that are learned; 0 means a micro-step without trained tokens.
    pub fn trained_tokens(&self) -> usize {
        self.mask.iter().filter(|&&m| m != 0.0).count()
    }

    /// The same of some of its sequences.
    ///
    /// # Panics
    /// See [`Batch::select`].
    pub fn trained_tokens_of(&self, sequences: &[usize]) -> usize {
        let ranges = self.ranges();
        let learned = |&row: &usize| self.mask[ranges[row].clone()].iter().filter(|&&m| m != 0.0);
        sequences.iter().flat_map(learned).count()
    }

    /// The whole batch that this is, or is a share of.
    pub fn whole(&self) -> Share {
        self.share.unwrap_or_else(|| Share {
            sequences: self.sequences(),
            positions: self.x.len(),
            learned: self.trained_tokens(),
            before: 0,
        })
    }

    /// Sequences of this batch itself: rows, or samples of shared rows.
    pub fn sequences(&self) -> usize {
        if self.packed.is_empty() { self.batch } else { self.packed.len() }
    }

    /// The positions of each sequence in the flat arrays.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let lengths = match self.packed.is_empty() {
            true => vec![self.seq; self.batch],
            false => self.packed.clone(),
        };
        let mut start = 0;
        let range = |length: usize| {
            start += length;
            start - length..start
        };
        lengths.into_iter().map(range).collect()
    }

    /// The sequences that a micro-step is about, those of other processes included.
    pub fn rows(&self) -> Vec<usize> {
        let minibatch = self.rewarded.as_ref().and_then(|of| of.minibatch.as_ref());
        minibatch.map_or_else(|| (0..self.sequences()).collect(), |of| of.rows.clone())
    }

    /// The sequences that this process trains on in a micro-step.
    pub fn own_rows(&self) -> Vec<usize> {
        let rows = self.rows();
        match self.rewarded.as_ref().and_then(|of| of.part) {
            None => rows,
            Some(part) => rows[part.of(rows.len())].to_vec(),
        }
    }

    /// The sequences that each process trains on in a micro-step.
    pub fn rows_of_all(&self) -> Vec<Vec<usize>> {
        let rows = self.rows();
        let ranks = self.rewarded.as_ref().and_then(|of| of.part).map_or(1, |part| part.ranks);
        (0..ranks).map(|rank| rows[Part { rank, ranks }.of(rows.len())].to_vec()).collect()
    }

    /// The batch of some of the sequences that a micro-step is about; among several processes a share
    /// of them all.
    ///
    /// # Panics
    /// See [`Batch::select`].
    #[must_use]
    pub fn share_of(&self, sequences: &[usize]) -> Self {
        let share = self.rewarded.as_ref().and_then(|of| of.part).map(|_| {
            let (rows, ranges) = (self.rows(), self.ranges());
            Share {
                sequences: rows.len(),
                positions: rows.iter().map(|&row| ranges[row].len()).sum(),
                learned: self.trained_tokens_of(&rows),
                before: rows.iter().take_while(|row| !sequences.contains(row)).count(),
            }
        });
        Self { share, ..self.select(sequences) }
    }

    /// The batch of some of its sequences, in the order given.
    ///
    /// # Panics
    /// When an index is not below [`Batch::sequences`] (a bug of the caller).
    #[must_use]
    pub fn select(&self, sequences: &[usize]) -> Self {
        let ranges = self.ranges();
        let mut out = Self { seq: self.seq, batch: sequences.len(), ..Self::default() };
        let mut rewarded = self.rewarded.as_ref().map(|of| Rewarded {
            stale: of.stale,
            numbers: of.numbers.clone(),
            ..Rewarded::default()
        });
        for &i in sequences {
            let range = ranges[i].clone();
            out.x.extend(&self.x[range.clone()]);
            out.y.extend(&self.y[range.clone()]);
            out.mask.extend(&self.mask[range.clone()]);
            out.lines.extend(self.lines.get(i));
            if let (Some(to), Some(from)) = (&mut rewarded, &self.rewarded) {
                to.sampled.extend(&from.sampled[range.clone()]);
                to.rewards.push(from.rewards[i]);
                to.groups.push(from.groups[i]);
                to.cut_off.push(from.cut_off[i]);
            }
            if !self.packed.is_empty() {
                out.packed.push(range.len());
            }
        }
        if !self.packed.is_empty() {
            (out.batch, out.seq) = (usize::from(!out.x.is_empty()), out.x.len());
        }
        Self { rewarded, ..out }
    }
}

impl Dataset {
    /// The order of an epoch: file order, or a permutation that depends on `seed` and `epoch`
    /// alone. A run resumed at (epoch, index) goes on at this place of the same list.
    pub fn order(&self, seed: u64, epoch: u64, shuffle: bool) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        if shuffle {
            Random::new(seed, epoch).shuffle(&mut order);
        }
        order
    }

    /// The samples of one rank out of `ranks` where every rank must have as many as the others, so
    /// that at most `ranks - 1` samples of an epoch's order come twice. One rank: the order itself.
    /// Training needs no such repeats: there each batch is divided ([`crate::batches::Part`]).
    pub fn rank_order(order: &[u32], rank: usize, ranks: usize) -> Vec<u32> {
        let ranks = ranks.max(1);
        let each = order.len().div_ceil(ranks);
        (0..each)
            .filter_map(|i| order.get((i * ranks + rank) % order.len().max(1)).copied())
            .collect()
    }

    /// A batch of the given samples. `padded`: rows are as long as max_seq_len allows, as the
    /// reference has them (a balancing loss then counts padding too); else as the longest sample.
    ///
    /// # Shapes
    /// `[batch, seq]`; seq is max_seq_len - 1, or max_seq_len where the 2026 reference shifts
    /// inside the model (text and chats): the last position then has no target.
    ///
    /// # Panics
    /// When an index is not below [`Dataset::len`] (a bug of the caller).
    pub fn batch(&self, indices: &[u32], padded: bool) -> Batch {
        let rows: Vec<Sample> = indices
            .iter()
            .map(|&i| self.sample(i as usize))
            .chain(indices.iter().filter_map(|&i| self.rejected(i as usize)))
            .collect();
        let longest = rows.iter().map(|s| s.ids.len()).max().unwrap_or(0);
        let seq = self.positions(longest, padded);
        let mut batch = Batch { batch: rows.len(), seq, ..Batch::default() };
        for sample in &rows {
            self.push_row(&mut batch, sample);
        }
        batch
    }

    /// A rank's share of the batch of the given samples: those at `own` among them. Shapes and
    /// panics as [`Dataset::batch`]; a share may be without samples.
    pub fn share(&self, indices: &[u32], own: Range<usize>, padded: bool) -> Batch {
        let (rows, seq) = self.batch_size(indices, padded);
        let share = Share {
            sequences: rows,
            positions: rows * seq,
            learned: indices.iter().map(|&i| self.learned_of(i as usize)).sum(),
            before: own.start,
        };
        Batch { share: Some(share), ..self.batch(&indices[own], padded) }
    }

    /// Rows and positions of [`Dataset::batch`], which is not read for this.
    ///
    /// # Panics
    /// See [`Dataset::batch`].
    pub fn batch_size(&self, indices: &[u32], padded: bool) -> (usize, usize) {
        let longest = indices.iter().map(|&i| self.longest_of(i as usize)).max().unwrap_or(0);
        (indices.len() * self.per_sample(), self.positions(longest, padded))
    }

    /// Positions of a row whose longest sample has so many ids.
    fn positions(&self, longest: usize, padded: bool) -> usize {
        let length = if padded { self.options.max_seq_len } else { longest };
        if self.shifts_inside_model() { length } else { length.saturating_sub(1) }
    }

    /// The 2026 reference reads whole rows and shifts inside the model, except in DPO.
    pub fn shifts_inside_model(&self) -> bool {
        self.options.recipe == Recipe::R2026 && self.options.kind != Kind::Preference
    }

    fn push_row(&self, batch: &mut Batch, sample: &Sample) {
        let pad = i64::from(self.pad);
        let start = batch.mask.len();
        let id = |i: usize| sample.ids.get(i).map_or(pad, |&id| i64::from(id));
        batch.x.extend((0..batch.seq).map(id));
        batch.y.extend((1..=batch.seq).map(id));
        batch.mask.resize(start + batch.seq, 0.0);
        for span in &sample.spans {
            for target in span.start.max(1)..span.end {
                // the target at position i is the id at i + 1
                if let Some(m) = batch.mask.get_mut(start + target as usize - 1)
                    && (target as usize) <= batch.seq
                {
                    *m = 1.0;
                }
            }
        }
        batch.lines.push((sample.file, sample.line));
    }
}
