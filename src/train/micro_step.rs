//! The numbers of micro-steps: left on the device while an accumulation is under way, added up over
//! all processes, and brought to the host at once.

use serde_json::{Map, Value, json};
use tch::{Device, Kind, TchError, Tensor};

use crate::error::{Error, Result, TorchError};
use crate::model::device::upload;
use crate::optim::Rates;
use crate::ranks::{Ranks, host_numbers};
use crate::stage::{Loss, Part, TIMES};
use mmx_data::Share;

/// One micro-step's numbers, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct MicroStep {
    /// The micro-step's number, from 0.
    pub step: usize,
    /// Learning rate; with Muon the hidden matrices'.
    pub lr: f64,
    /// With Muon: AdamW's learning rate.
    pub adam_lr: Option<f64>,
    /// The loss before it is divided by the accumulation; nothing when no token was learned.
    pub loss: Option<f64>,
    /// The gradient's norm before clipping, where the optimizer stepped.
    pub grad_norm: Option<f64>,
    /// Parts of the loss.
    pub parts: Vec<(&'static str, Value)>,
    /// Learned targets.
    pub trained_tokens: usize,
}

impl MicroStep {
    /// The numbers in the golden format.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        out.insert("step".into(), json!(self.step));
        out.insert("lr".into(), json!(self.lr));
        if let Some(lr) = self.adam_lr {
            out.insert("adam_lr".into(), json!(lr));
        }
        out.insert("loss".into(), json!(self.loss));
        out.insert("grad_norm".into(), json!(self.grad_norm));
        if self.loss.is_none() {
            out.insert("note".into(), json!("no trained tokens"));
        }
        let parts = self.parts.iter().filter(|(name, _)| *name != TIMES);
        out.extend(parts.map(|(name, value)| ((*name).to_owned(), value.clone())));
        Value::Object(out)
    }
}

/// A micro-step whose numbers are still on the device.
pub(crate) struct Pending {
    pub(crate) step: usize,
    pub(crate) rates: Rates,
    pub(crate) loss: Loss,
    /// Where each sample comes from: (file's index, line).
    pub(crate) lines: Vec<(u32, u32)>,
    /// Tokens read, without padding.
    pub(crate) tokens: usize,
    /// The batch of all processes, where this is a share of it.
    pub(crate) share: Option<Share>,
}

/// The numbers of some micro-steps, of all processes together.
pub(crate) struct Fetched {
    pub(crate) micro_steps: Vec<MicroStep>,
    /// The gradients' norms, as many as were given.
    pub(crate) norms: Vec<f64>,
    /// Tokens read.
    pub(crate) tokens: usize,
    /// True where one of the processes raised the flag.
    pub(crate) flags: Vec<bool>,
}

/// Brings the numbers of micro-steps to the host, added up over all processes: a loss and its parts
/// are those of a process's share of the batch. `flags` are raised where one process raises them;
/// `norms` are every process's own.
///
/// # Errors
/// libtorch's; another process that fails.
pub(crate) fn fetch(
    pending: &[Pending],
    flags: &[bool],
    norms: &[Tensor],
    ranks: &Ranks,
) -> Result<Fetched> {
    let mut tensors = Vec::new();
    let mut counts = Vec::new();
    let place = (ranks.rank(), ranks.size());
    for micro in pending {
        micro.push_tensors(place, &mut tensors).map_err(reading)?;
        counts.extend(micro.loss.parts.iter().filter_map(|(_, part)| match part {
            Part::Count(count) => Some(*count as f64),
            _ => None,
        }));
        counts.push(micro.tokens as f64);
    }
    counts.extend(flags.iter().map(|&flag| f64::from(u8::from(flag))));
    let own = counts.len();
    // the processes' also where nothing was learned: between GPUs no tensor of the host is added up
    let own_device = norms.first().or(tensors.first()).map(Tensor::device);
    let device = ranks.device().or(own_device).unwrap_or(Device::Cpu);
    if !ranks.alone() {
        let counts = Tensor::f_from_slice(&counts).and_then(|counts| upload(&counts, device));
        tensors.push(counts.map_err(reading)?);
    }
    let mut values = match tensors.is_empty() && norms.is_empty() {
        true => Vec::new(),
        false => {
            let mut sums = flat(&tensors, device).map_err(reading)?;
            ranks.sum(&mut sums)?;
            let all = norms.iter().map(Tensor::shallow_clone);
            let all: Vec<Tensor> = std::iter::once(sums).chain(all).collect();
            flat(&all, device).and_then(|all| host_numbers(&all)).map_err(reading)?
        }
    };
    let norms = values.split_off(values.len().saturating_sub(norms.len()));
    if !ranks.alone() {
        counts = values.split_off(values.len().saturating_sub(own));
    }
    let (mut values, mut counts) = (values.into_iter(), counts.into_iter());
    let mut tokens = 0;
    let mut micro_steps = Vec::with_capacity(pending.len());
    for micro in pending {
        micro_steps.push(micro.read(ranks.size(), &mut values, &mut counts));
        tokens += counts.next().unwrap_or_default() as usize;
    }
    Ok(Fetched { micro_steps, norms, tokens, flags: counts.map(|count| count > 0.0).collect() })
}

fn reading(error: TchError) -> Error {
    Error::torch("reading the loss", &error)
}

/// A number at this process's place among those of all, `[processes]`: their sum lists them.
fn beside(own: &Tensor, (rank, processes): (usize, usize)) -> Result<Tensor, TchError> {
    if processes == 1 {
        return Ok(own.shallow_clone());
    }
    let all = Tensor::f_zeros([processes as i64], (own.kind(), own.device()))?;
    all.f_narrow(0, rank as i64, 1)?.f_copy_(&own.f_reshape([1])?)?;
    Ok(all)
}

/// Numbers one after another, float64.
fn flat(tensors: &[Tensor], device: Device) -> Result<Tensor, TchError> {
    let wide = |tensor: &Tensor| tensor.f_to_kind(Kind::Double)?.f_reshape([-1]);
    match tensors {
        [] => Tensor::f_zeros([0], (Kind::Double, device)),
        [one] => wide(one),
        _ => Tensor::f_cat(&tensors.iter().map(wide).collect::<Result<Vec<_>, _>>()?, 0),
    }
}

impl Pending {
    /// The numbers that are on the device, in the order of [`Pending::read`]. `place`: this process
    /// and all of them.
    fn push_tensors(&self, place: (usize, usize), out: &mut Vec<Tensor>) -> Result<(), TchError> {
        out.extend(self.loss.total.as_ref().map(Tensor::shallow_clone));
        for (_, part) in &self.loss.parts {
            match part {
                Part::Scalar(tensor) => out.push(tensor.shallow_clone()),
                Part::Most(tensor) => out.push(beside(tensor, place)?),
                Part::PerSample(own) => out.push(self.in_place(own)?),
                Part::Zero | Part::Count(_) | Part::Number(_) | Part::Numbers(_) => {}
            }
        }
        Ok(())
    }

    /// Values of preference pairs, first all chosen, then all rejected, at their places among those
    /// of all processes.
    fn in_place(&self, own: &Tensor) -> Result<Tensor, TchError> {
        let Some(whole) = self.share else { return Ok(own.shallow_clone()) };
        let (before, half) = (whole.before as i64, own.numel() as i64 / 2);
        let all = Tensor::f_zeros([whole.sequences as i64], (own.kind(), own.device()))?;
        for (from, to) in [(0, before), (half, whole.sequences as i64 / 2 + before)] {
            all.f_narrow(0, to, half)?.f_copy_(&own.f_narrow(0, from, half)?)?;
        }
        Ok(all)
    }

    /// The micro-step, its numbers being the next ones.
    fn read(
        &self,
        processes: usize,
        values: &mut impl Iterator<Item = f64>,
        counts: &mut impl Iterator<Item = f64>,
    ) -> MicroStep {
        let mut next = || values.next().unwrap_or(f64::NAN);
        let loss = self.loss.total.as_ref().map(|_| next());
        let parts = self.loss.parts.iter().map(|(name, part)| {
            let value = match part {
                Part::Scalar(_) => json!(next()),
                Part::Most(_) => json!((0..processes).map(|_| next()).fold(f64::MIN, f64::max)),
                Part::PerSample(own) => {
                    let count = self.share.map_or(own.numel(), |whole| whole.sequences);
                    json!((0..count).map(|_| next()).collect::<Vec<_>>())
                }
                Part::Zero => json!(0.0),
                Part::Number(number) => json!(number),
                Part::Numbers(numbers) => {
                    let object = numbers.iter().map(|(name, number)| (name.clone(), json!(number)));
                    Value::Object(object.collect())
                }
                Part::Count(_) => json!(counts.next().unwrap_or_default() as usize),
            };
            (*name, value)
        });
        MicroStep {
            step: self.step,
            lr: self.rates.muon,
            adam_lr: Some(self.rates.adamw),
            loss,
            grad_norm: None,
            parts: parts.collect(),
            trained_tokens: self.loss.trained_tokens,
        }
    }
}
