//! Which part of the flat buffers each of several processes updates, and how all of them get the
//! rest.

use std::ops::Range;

use tch::{Kind, TchError, Tensor};

use crate::error::{Error, Result, TorchError};
use crate::ranks::Ranks;

/// A region of the flat buffers that is divided among processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Division {
    region: Range<i64>,
    /// This process's part of it, perhaps empty.
    own: Range<i64>,
}

impl Division {
    /// The region in equal parts, but for the last ones, that begin at multiples of `alignment`.
    pub(super) fn equal(region: Range<i64>, alignment: i64, ranks: &Ranks) -> Self {
        let (rank, size) = (ranks.rank() as i64, ranks.size() as i64);
        let units = (region.end - region.start + alignment - 1) / alignment;
        let part = (units + size - 1) / size * alignment;
        let at = |rank: i64| (region.start + rank * part).min(region.end);
        Self { own: at(rank)..at(rank + 1), region }
    }

    /// The region cut between some of its items, so that every process has about as much work:
    /// `items` are where each begins, ascending, and its work. Also which items are this process's.
    pub(super) fn by_work(
        region: Range<i64>,
        items: &[(i64, f64)],
        ranks: &Ranks,
    ) -> (Self, Range<usize>) {
        let total: f64 = items.iter().map(|(_, work)| work).sum();
        let share = total / ranks.size() as f64;
        let mut before = 0.0;
        // the process in whose share the item's middle lies
        let of: Vec<usize> = items
            .iter()
            .map(|(_, work)| {
                let middle = before + work / 2.0;
                before += work;
                ((middle / share) as usize).min(ranks.size() - 1)
            })
            .collect();
        let first = of.partition_point(|&rank| rank < ranks.rank());
        let last = of.partition_point(|&rank| rank <= ranks.rank());
        let at = |item: usize| items.get(item).map_or(region.end, |(start, _)| *start);
        (Self { own: at(first)..at(last), region }, first..last)
    }

    pub(super) fn own(&self) -> Range<i64> {
        self.own.clone()
    }

    /// Puts every process's part of a flat buffer into all of them, in place; all have to call it.
    ///
    /// A sum in which the others' parts are zero: gloo's gathering takes 1.5 times as long
    /// (measured: 26 M floats, 2 processes, 110 ms against 63), and parts need not be equal.
    pub(super) fn gather(&self, flat: &Tensor, ranks: &Ranks) -> Result<()> {
        let doing = |e| Error::torch("parts of all processes", &e);
        let cut = |from: i64, to: i64| flat.detach().f_narrow(0, from, to - from);
        tch::no_grad(|| {
            cut(self.region.start, self.own.start)?.f_zero_()?;
            cut(self.own.end, self.region.end)?.f_zero_()
        })
        .map_err(doing)?;
        ranks.sum(&mut cut(self.region.start, self.region.end).map_err(doing)?)
    }

    /// What all processes hold of the region, one after the other: `held` are parts of it, each with
    /// where it begins in the flat buffers. All have to call it.
    pub(super) fn whole(
        &self,
        held: &[(i64, Tensor)],
        like: &Tensor,
        ranks: &Ranks,
    ) -> Result<Whole> {
        let copy = || -> Result<Tensor, TchError> {
            let length = self.region.end - self.region.start;
            let all = Tensor::f_zeros([length], (Kind::Float, like.device()))?;
            for (start, part) in held {
                let length = part.numel() as i64;
                all.f_narrow(0, start - self.region.start, length)?.f_copy_(part)?;
            }
            Ok(all)
        };
        let copied = tch::no_grad(copy);
        let mut all = copied.map_err(|e| Error::torch("parts of all processes", &e))?;
        ranks.sum(&mut all)?;
        Ok(Whole { start: self.region.start, all })
    }
}

/// Values of a region of the flat buffers.
pub(super) struct Whole {
    start: i64,
    all: Tensor,
}

impl Whole {
    /// All of a flat buffer.
    pub(super) fn of(all: Tensor) -> Self {
        Self { start: 0, all }
    }

    /// `len` values that begin at `start` of the flat buffers.
    pub(super) fn cut(&self, start: i64, len: i64) -> Result<Tensor, TchError> {
        self.all.f_narrow(0, start - self.start, len)
    }
}
