//! The samples that share rows: how many positions each has, and for devices where they lie.
//!
//! In: their lengths. Out: index tensors, put on the device once for all layers of a forward pass.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use tch::{Device, Tensor};

use super::device::upload;
use super::variable::Torch;

/// The samples of a batch that follow one another.
#[derive(Debug)]
pub(super) struct Samples {
    lengths: Vec<i64>,
    /// The sample that each one goes on from; empty where each begins by itself.
    parents: Vec<Option<usize>>,
    device: Device,
    padded: OnceCell<Padded>,
    owners: OnceCell<(Tensor, Tensor)>,
}

/// The samples with rows of their own, those of about one length beside each other: a device then
/// computes a few tables of rows and not each sample by itself.
#[derive(Debug)]
pub(super) struct Padded {
    /// Where each position of the tables comes from, int64 `[padded]`. What fills a row up is its
    /// sample's last position.
    pub(super) from: Tensor,
    /// Where each position of the samples is in the tables, int64 `[positions]`.
    pub(super) back: Tensor,
    /// Rows and positions of each table.
    pub(super) tables: Vec<(i64, i64)>,
}

impl Samples {
    pub(super) fn new(lengths: Vec<i64>, device: Device) -> Self {
        let (padded, owners) = (OnceCell::new(), OnceCell::new());
        Self { lengths, parents: Vec::new(), device, padded, owners }
    }

    /// Samples some of which go on from another one.
    pub(super) fn branched(self, parents: &[Option<usize>]) -> Self {
        Self { parents: parents.to_vec(), ..self }
    }

    /// The sample that each one goes on from; empty where each begins by itself.
    pub(super) fn parents(&self) -> &[Option<usize>] {
        &self.parents
    }

    /// The rotary position of each position.
    pub(super) fn positions(&self) -> Vec<i64> {
        let first = |i: usize| match self.parents.get(i).copied().flatten() {
            Some(parent) => self.lengths.get(parent).copied().unwrap_or_default(),
            None => 0,
        };
        let of = |(i, &length): (usize, &i64)| first(i)..first(i) + length;
        self.lengths.iter().enumerate().flat_map(of).collect()
    }

    /// Positions of each sample.
    pub(super) fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// The samples in tables of rows.
    pub(super) fn padded(&self) -> Torch<&Padded> {
        let make = || {
            let (from, back, tables) = in_tables(&self.lengths);
            let both =
                upload(&Tensor::f_from_slice(&[from.as_slice(), &back].concat())?, self.device)?;
            let (cut, count) = (from.len() as i64, back.len() as i64);
            let from = both.f_narrow(0, 0, cut)?;
            Ok(Padded { from, back: both.f_narrow(0, cut, count)?, tables })
        };
        kept(&self.padded, make)
    }

    /// The sample of each position, int64 `[positions]`, and the positions of each sample, int64
    /// `[samples]`.
    pub(super) fn owners(&self) -> Torch<&(Tensor, Tensor)> {
        let make = || {
            let of = |(sample, &length): (i64, &i64)| std::iter::repeat_n(sample, length as usize);
            let owners: Vec<i64> = (0i64..).zip(&self.lengths).flat_map(of).collect();
            let both = [owners.as_slice(), &self.lengths].concat();
            let both = upload(&Tensor::f_from_slice(&both)?, self.device)?;
            let (cut, count) = (owners.len() as i64, self.lengths.len() as i64);
            Ok((both.f_narrow(0, 0, cut)?, both.f_narrow(0, cut, count)?))
        };
        kept(&self.owners, make)
    }
}

/// What a cell holds, made where it holds nothing.
fn kept<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Torch<T>) -> Torch<&T> {
    match cell.get() {
        Some(made) => Ok(made),
        None => {
            let made = make()?;
            Ok(cell.get_or_init(|| made))
        }
    }
}

/// Samples of up to 1, 2, 4, 8, ... positions share a table, whose rows are as long as its longest
/// sample: no row is more than half filler. See [`Padded`].
fn in_tables(lengths: &[i64]) -> (Vec<i64>, Vec<i64>, Vec<(i64, i64)>) {
    let mut classes: BTreeMap<u64, Vec<(i64, i64)>> = BTreeMap::new(); // (start, length)
    let mut start = 0;
    for &length in lengths.iter().filter(|&&length| length > 0) {
        let class = length.unsigned_abs().next_power_of_two();
        classes.entry(class).or_default().push((start, length));
        start += length;
    }
    let (mut from, mut back) = (Vec::new(), vec![0; start as usize]);
    let mut tables = Vec::with_capacity(classes.len());
    for samples in classes.values() {
        let longest = samples.iter().map(|&(_, length)| length).max().unwrap_or_default();
        for &(start, length) in samples {
            for i in 0..length {
                back[(start + i) as usize] = from.len() as i64 + i;
            }
            from.extend((0..longest).map(|i| start + i.min(length - 1)));
        }
        tables.push((samples.len() as i64, longest));
    }
    (from, back, tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_about_one_length_share_a_table() {
        let (from, back, tables) = in_tables(&[3, 1, 4, 0, 6]);
        assert_eq!(tables, [(1, 1), (2, 4), (1, 6)]);
        assert_eq!(from, [3, 0, 1, 2, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
        assert_eq!(back, [1, 2, 3, 0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        for (position, &at) in back.iter().enumerate() {
            assert_eq!(from[at as usize], position as i64);
        }
        assert!(from.len() < 2 * back.len());
    }

    #[test]
    fn a_sample_that_goes_on_from_another_is_numbered_after_it() {
        let samples = Samples::new(vec![3, 2, 1, 2], Device::Cpu);
        assert_eq!(samples.positions(), [0, 1, 2, 0, 1, 0, 0, 1]);
        let samples = samples.branched(&[None, Some(0), Some(0), None]);
        assert_eq!(samples.positions(), [0, 1, 2, 3, 4, 3, 0, 1]);
    }

    #[test]
    fn each_position_knows_its_sample() {
        let samples = Samples::new(vec![2, 1, 3], Device::Cpu);
        let (owners, lengths) = samples.owners().expect("tensors");
        assert_eq!(Vec::<i64>::try_from(owners).expect("ids"), [0, 0, 1, 2, 2, 2]);
        assert_eq!(Vec::<i64>::try_from(lengths).expect("lengths"), [2, 1, 3]);
    }
}
