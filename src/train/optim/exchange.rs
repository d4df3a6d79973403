//! Gradients on their way to the processes that update their weights, in buckets while the backward
//! pass runs, so that no process ever holds all of them. Source: ZeRO stage 2, Rajbhandari et al.
//! 2020.
//!
//! All processes send the same buckets in the same order, that in which a backward pass usually
//! fills them: a bucket waits for those before it. What does not come, since an expert has no rows
//! or a process no targets, is zero.

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};

use crate::distributed::Pending;
use crate::error::{Error, Result, TorchError};
use crate::ranks::{Ranks, Reduce};

/// Elements after which a bucket is sent: 8 MB. Smaller ones take longer (104 MB over gloo among
/// four processes on two cores in buckets of 1, 4 and 25 MB: 382, 178 and 205 ms) and save little,
/// since the largest variable's gradient is there as a whole.
const BUCKET: i64 = 1 << 21;

/// Bytes of the buckets that are there at a time: one on its way, one that is full and waits for it,
/// one that is being filled.
pub(crate) const EXCHANGED: u64 = 3 * 4 * BUCKET as u64;

/// A part of a variable's gradient in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// Where it begins in the flat buffers.
    start: i64,
    len: i64,
    /// Where it begins in the variable's gradient.
    from: i64,
    /// Where it begins in the bucket.
    at: i64,
}

/// What is sent to one process at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Bucket {
    owner: usize,
    pieces: Vec<Piece>,
    len: i64,
}

/// The buckets in the order in which they are sent: variables come from the last to the first, and
/// a process's bucket is sent when it is full.
fn plan(places: &[Range<i64>], owners: &[(Range<i64>, usize)], full: i64) -> Vec<Bucket> {
    let processes = owners.iter().map(|(_, owner)| owner + 1).max().unwrap_or_default();
    let mut open: Vec<Bucket> =
        (0..processes).map(|owner| Bucket { owner, ..Bucket::default() }).collect();
    let mut sent = Vec::new();
    for place in places.iter().rev() {
        for (region, owner) in owners {
            let (start, end) = (place.start.max(region.start), place.end.min(region.end));
            if start >= end {
                continue;
            }
            let bucket = &mut open[*owner];
            let (len, from, at) = (end - start, start - place.start, bucket.len);
            bucket.pieces.push(Piece { start, len, from, at });
            bucket.len += len;
            if bucket.len >= full {
                let next = Bucket { owner: *owner, ..Bucket::default() };
                sent.push(std::mem::replace(bucket, next));
            }
        }
    }
    sent.extend(open.into_iter().filter(|bucket| bucket.len > 0));
    sent
}

/// A bucket that is being filled.
#[derive(Debug, Default)]
struct Filling {
    /// Nothing before its first piece, and when it has been sent.
    values: Option<Tensor>,
    /// Its pieces that have come.
    pieces: usize,
}

/// A bucket on its way.
#[derive(Debug)]
struct Sent {
    number: usize,
    values: Tensor,
    pending: Pending,
}

/// Takes a part of this process's own gradient: where it begins in the flat buffers, its values.
pub(super) type Put<'a> = dyn Fn(i64, &Tensor) -> Result<(), TchError> + Sync + 'a;

/// The exchange of gradients, one backward pass after the other.
#[derive(Debug)]
pub(super) struct Exchange {
    ranks: Ranks,
    reduce: Reduce,
    device: Device,
    buckets: Vec<Bucket>,
    /// The pieces of each variable: bucket, and index in it.
    of_variable: Vec<Vec<(usize, usize)>>,
    filling: Vec<Filling>,
    /// The next bucket to send.
    next: usize,
    sent: Option<Sent>,
}

impl Exchange {
    /// An exchange of the variables at `places` of the flat buffers, whose regions have owners.
    pub(super) fn new(
        places: &[Range<i64>],
        owners: &[(Range<i64>, usize)],
        (ranks, reduce): (Ranks, Reduce),
        device: Device,
    ) -> Self {
        let buckets = plan(places, owners, BUCKET);
        let mut of_variable = vec![Vec::new(); places.len()];
        for (b, bucket) in buckets.iter().enumerate() {
            for (p, piece) in bucket.pieces.iter().enumerate() {
                let start = piece.start - piece.from;
                let of = places.iter().position(|place| place.start == start && place.end > start);
                of_variable[of.unwrap_or_default()].push((b, p));
            }
        }
        let (filling, next, sent) = (Vec::new(), 0, None);
        Self { ranks, reduce, device, buckets, of_variable, filling, next, sent }
    }

    /// Begins a backward pass.
    pub(super) fn begin(&mut self) {
        (self.next, self.sent) = (0, None);
        self.filling = self.buckets.iter().map(|_| Filling::default()).collect();
    }

    /// Takes a variable's gradient, and sends what is full. What has arrived of other buckets goes
    /// to `put`.
    pub(super) fn take(&mut self, variable: usize, gradient: &Tensor, put: &Put<'_>) -> Result<()> {
        let fill = |of: &mut Filling, bucket: &Bucket, piece: &Piece| -> Result<(), TchError> {
            let values = match of.values.take() {
                Some(values) => values,
                None => Tensor::f_zeros([bucket.len], (Kind::Float, self.device))?,
            };
            let from = gradient.f_reshape([-1])?.f_narrow(0, piece.from, piece.len)?;
            values.f_narrow(0, piece.at, piece.len)?.f_copy_(&from)?;
            of.values = Some(values);
            of.pieces += 1;
            Ok(())
        };
        for &(b, p) in &self.of_variable[variable] {
            let bucket = &self.buckets[b];
            fill(&mut self.filling[b], bucket, &bucket.pieces[p]).map_err(doing)?;
        }
        while self.next < self.buckets.len()
            && self.filling[self.next].pieces == self.buckets[self.next].pieces.len()
        {
            self.send(put)?;
        }
        Ok(())
    }

    /// Ends a backward pass: sends the rest, what did not come being zero.
    pub(super) fn end(&mut self, put: &Put<'_>) -> Result<()> {
        while self.next < self.buckets.len() {
            self.send(put)?;
        }
        self.arrive(put)
    }

    /// Sends the next bucket, after the one before it has arrived.
    fn send(&mut self, put: &Put<'_>) -> Result<()> {
        let number = self.next;
        let bucket = &self.buckets[number];
        let values = match self.filling[number].values.take() {
            Some(values) => Ok(values),
            None => Tensor::f_zeros([bucket.len], (Kind::Float, self.device)),
        };
        let values = values.and_then(|values| match self.reduce {
            Reduce::F32 => Ok(values),
            Reduce::Bf16 => values.f_to_kind(Kind::BFloat16),
        });
        let (values, owner) = (values.map_err(doing)?, bucket.owner);
        self.next += 1;
        self.arrive(put)?;
        if let Some(group) = self.ranks.group() {
            let pending = group.reduce_start(&values, owner)?;
            self.sent = Some(Sent { number, values, pending });
        }
        Ok(())
    }

    /// Waits for the bucket on its way.
    fn arrive(&mut self, put: &Put<'_>) -> Result<()> {
        let Some(Sent { number, values, pending }) = self.sent.take() else { return Ok(()) };
        pending.wait()?;
        let bucket = &self.buckets[number];
        if bucket.owner != self.ranks.rank() {
            return Ok(());
        }
        let put = |piece: &Piece| put(piece.start, &values.f_narrow(0, piece.at, piece.len)?);
        bucket.pieces.iter().try_for_each(put).map_err(doing)
    }
}

fn doing(error: TchError) -> Error {
    Error::torch("gradients of all processes", &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Variables side by side, each beginning at a multiple of 16.
    fn places(lens: &[i64]) -> Vec<Range<i64>> {
        let mut start = 0;
        let place = |&len: &i64| {
            let place = start..start + len;
            start += (len + 15) / 16 * 16;
            place
        };
        lens.iter().map(place).collect()
    }

    #[test]
    fn every_weight_is_in_one_bucket_of_its_owner() {
        let places = places(&[1000, 16, 7, 300, 7, 300, 7]);
        for cuts in [vec![1680], vec![560, 1120, 1680], vec![32, 64, 1008, 1680]] {
            let starts = std::iter::once(0).chain(cuts.iter().copied());
            let owners: Vec<(Range<i64>, usize)> = starts
                .zip(&cuts)
                .enumerate()
                .map(|(owner, (from, &to))| (from..to, owner))
                .collect();
            for full in [1, 100, 400, 10_000] {
                let buckets = plan(&places, &owners, full);
                let mut found = vec![0; 1680];
                for bucket in &buckets {
                    let mut at = 0;
                    for piece in &bucket.pieces {
                        assert_eq!(piece.at, at, "{bucket:?}");
                        at += piece.len;
                        let weights = piece.start..piece.start + piece.len;
                        let (region, _) = &owners[bucket.owner];
                        assert!(region.start <= weights.start && weights.end <= region.end);
                        let of = places.iter().find(|place| place.contains(&piece.start));
                        let of = of.expect("a variable");
                        assert_eq!(piece.from, piece.start - of.start);
                        assert!(weights.end <= of.end);
                        weights.for_each(|weight| found[weight as usize] += 1);
                    }
                    assert_eq!(at, bucket.len);
                    // the last piece has filled it
                    let last = bucket.pieces.last().expect("a piece").len;
                    assert!(bucket.len - last < full, "{bucket:?} of {full}");
                }
                for (weight, &count) in found.iter().enumerate() {
                    let inside = places.iter().any(|place| place.contains(&(weight as i64)));
                    assert_eq!(count, i32::from(inside), "weight {weight}");
                }
            }
        }
    }

    #[test]
    fn buckets_follow_the_backward_pass() {
        let places = places(&[64, 64, 64, 64]);
        let buckets = plan(&places, &[(0..128, 0), (128..256, 1)], 64);
        let order: Vec<(usize, i64)> =
            buckets.iter().map(|b| (b.owner, b.pieces[0].start)).collect();
        assert_eq!(order, [(1, 192), (1, 128), (0, 64), (0, 0)]);
        // a process's small variables lie together, in whatever order those of others come between
        let mixed = plan(&places, &[(0..64, 0), (64..128, 1), (128..192, 0), (192..256, 1)], 128);
        let order: Vec<(usize, i64)> = mixed.iter().map(|b| (b.owner, b.len)).collect();
        assert_eq!(order, [(1, 128), (0, 128)]);
    }
}
