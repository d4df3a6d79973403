//! The accumulated gradient: all of it, or, where it is divided among processes, the sum over all of
//! them for the weights that this one updates.

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};

use super::backward::backward;
use super::exchange::Exchange;
use crate::error::{Error, Result, TorchError};
use crate::ranks::{Ranks, Reduce};

/// The accumulated gradient, float32.
#[derive(Debug)]
pub(super) struct Gradients {
    /// Where each variable lies in the flat buffers.
    places: Vec<Range<i64>>,
    /// The regions of the flat buffers that are held, with their values.
    held: Vec<Region>,
    /// Where it is divided.
    exchange: Option<Exchange>,
    ranks: Ranks,
    reduce: Reduce,
}

/// A region of the flat buffers and the gradient there.
#[derive(Debug)]
struct Region {
    range: Range<i64>,
    values: Tensor,
}

impl Region {
    fn new(range: Range<i64>, device: Device) -> Result<Self, TchError> {
        let values = Tensor::f_zeros([range.end - range.start], (Kind::Float, device))?;
        Ok(Self { range, values })
    }

    /// Where a range overlaps with it.
    fn of(&self, range: &Range<i64>) -> Option<Range<i64>> {
        let both = self.range.start.max(range.start)..self.range.end.min(range.end);
        (both.start < both.end).then_some(both)
    }

    /// The gradient of a range within it.
    fn narrow(&self, range: &Range<i64>) -> Result<Tensor, TchError> {
        self.values.f_narrow(0, range.start - self.range.start, range.end - range.start)
    }
}

/// Puts what is new to what is there, of one shape: over it, where nothing is there yet.
fn add(sum: &mut Tensor, new: &Tensor, first: bool) -> Result<(), TchError> {
    tch::no_grad(|| match first {
        true => sum.f_copy_(new),
        false => sum.f_add_(new).map(drop),
    })
}

impl Gradients {
    /// Zeros for flat buffers of `len` in which variables lie at `places`.
    pub(super) fn whole(
        places: Vec<Range<i64>>,
        len: i64,
        (ranks, reduce): (Ranks, Reduce),
        device: Device,
    ) -> Result<Self, TchError> {
        let held = vec![Region::new(0..len, device)?];
        Ok(Self { places, held, exchange: None, ranks, reduce })
    }

    /// The same with each process holding the gradient of the regions of which it is the `owner`.
    pub(super) fn divided(
        places: Vec<Range<i64>>,
        owners: &[(Range<i64>, usize)],
        (ranks, reduce): (Ranks, Reduce),
        device: Device,
    ) -> Result<Self, TchError> {
        let own = owners.iter().filter(|(_, owner)| *owner == ranks.rank());
        let held = own.map(|(range, _)| Region::new(range.clone(), device));
        let held = held.collect::<Result<_, TchError>>()?;
        let exchange = Some(Exchange::new(&places, owners, (ranks.clone(), reduce), device));
        Ok(Self { places, held, exchange, ranks, reduce })
    }

    /// True where it is divided: then it is the sum over all processes.
    pub(super) fn is_divided(&self) -> bool {
        self.exchange.is_some()
    }

    /// Adds the gradient of `loss`; nothing is there yet when this is the `first` one. Where it is
    /// divided, all processes have to call this, without a loss where they have none.
    ///
    /// # Errors
    /// libtorch's; a process that is gone.
    pub(super) fn accumulate(
        &mut self,
        loss: Option<&Tensor>,
        leaves: &[&Tensor],
        first: bool,
    ) -> Result<()> {
        let Self { places, held, exchange, .. } = self;
        let Some(exchange) = exchange else {
            return accumulate_whole(&held[0].values, places, (loss, leaves), first);
        };
        // libtorch's handles are Send only
        let held = std::sync::Mutex::new(held);
        let put = |start: i64, values: &Tensor| -> Result<(), TchError> {
            let range = start..start + values.numel() as i64;
            let held = held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match held.iter().find(|region| region.of(&range).is_some()) {
                Some(region) => add(&mut region.narrow(&range)?, values, first),
                None => Ok(()),
            }
        };
        exchange.begin();
        if let Some(loss) = loss {
            backward(loss, leaves, &mut |i, gradient| exchange.take(i, gradient, &put))?;
        }
        exchange.end(&put)
    }

    /// Adds those of all processes up, where that has not been done on the way.
    ///
    /// # Errors
    /// A process that is gone; libtorch's.
    pub(super) fn reduce(&mut self) -> Result<()> {
        if self.ranks.alone() || self.is_divided() {
            return Ok(());
        }
        let doing = |e| Error::torch("gradients of all processes", &e);
        let whole = &mut self.held[0].values;
        match self.reduce {
            Reduce::F32 => self.ranks.sum(whole),
            Reduce::Bf16 => {
                let mut half = whole.f_to_kind(Kind::BFloat16).map_err(doing)?;
                self.ranks.sum(&mut half)?;
                tch::no_grad(|| whole.f_copy_(&half)).map_err(doing)
            }
        }
    }

    /// The norm over all variables, a float64 scalar on the device: one square sum per variable, as
    /// torch's, so float32 sums stay short. Where it is divided, all processes have to call this.
    ///
    /// # Errors
    /// libtorch's; a process that is gone.
    pub(super) fn norm(&self) -> Result<Tensor> {
        let doing = |e| Error::torch("gradient norm", &e);
        let own = || -> Result<Tensor, TchError> {
            let mut norms = Vec::with_capacity(self.places.len());
            for place in &self.places {
                for region in &self.held {
                    if let Some(range) = region.of(place) {
                        norms.push(region.narrow(&range)?.f_norm()?.f_to_kind(Kind::Double)?);
                    }
                }
            }
            match (norms.is_empty(), self.held.first()) {
                (true, Some(region)) => {
                    Tensor::f_zeros([0i64; 0], (Kind::Double, region.values.device()))
                }
                _ => Tensor::f_stack(&norms, 0)?.f_norm(),
            }
        };
        let norm = own().map_err(doing)?;
        if !self.is_divided() {
            return Ok(norm);
        }
        let mut square = norm.f_square().map_err(doing)?;
        self.ranks.sum(&mut square)?;
        square.f_sqrt().map_err(doing)
    }

    /// The held region in which a range lies: where it begins in the flat buffers, and its gradient.
    pub(super) fn around(&mut self, range: &Range<i64>) -> Option<(i64, &mut Tensor)> {
        let around = |of: &Region| of.range.start <= range.start && range.end <= of.range.end;
        let region = self.held.iter_mut().find(|region| around(region))?;
        Some((region.range.start, &mut region.values))
    }

    /// What is held of a range: where that begins in the flat buffers, and its gradient.
    pub(super) fn held(&self, range: &Range<i64>) -> Result<Option<(i64, Tensor)>, TchError> {
        let region = self.held.iter().find_map(|of| Some((of, of.of(range)?)));
        region.map(|(region, both)| Ok((both.start, region.narrow(&both)?))).transpose()
    }
}

/// The same where all of it is held: `sum` is flat.
fn accumulate_whole(
    sum: &Tensor,
    places: &[Range<i64>],
    (loss, leaves): (Option<&Tensor>, &[&Tensor]),
    first: bool,
) -> Result<()> {
    let doing = |e| Error::torch("backward pass", &e);
    let at = |place: &Range<i64>| sum.f_narrow(0, place.start, place.end - place.start);
    let mut came = vec![false; places.len()];
    if let Some(loss) = loss {
        let sum = sum.shallow_clone();
        let came = &mut came;
        backward(loss, leaves, &mut move |i, gradient| {
            let place = &places[i];
            let part = sum.f_narrow(0, place.start, place.end - place.start);
            came[i] = true;
            let put = |part: Tensor| add(&mut part.f_view(&gradient.size()[..])?, gradient, first);
            part.and_then(put).map_err(doing)
        })?;
    }
    if first {
        // an expert without tokens: its gradient is zero
        let mut rest = places.iter().zip(came).filter(|(_, came)| !came);
        let zero =
            |(place, _): (&Range<i64>, bool)| tch::no_grad(|| at(place)?.f_zero_().map(drop));
        rest.try_for_each(zero).map_err(doing)?;
    }
    Ok(())
}
