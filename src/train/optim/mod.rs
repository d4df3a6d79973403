//! The optimizer: weights and gradients lie in two flat float32 buffers, so clipping, the update and
//! a checkpoint are each one pass, and the norm before clipping is returned. An update's own state
//! lies in buffers of its own, over the part of the flat ones that it changes: [`adamw`].
//!
//! In: a scalar loss per micro-step ([`Optimizer::accumulate`]). Out: changed master weights
//! ([`Optimizer::step`]).

mod adamw;

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};

use self::adamw::AdamW;
use crate::error::{Error, Result, TorchError};
use crate::model::{HostTensor, Variable, host_f32};
use crate::ranks::{Reduce, Shard, Spread};

pub use self::adamw::Options;

/// Where a variable lies in the flat buffers.
#[derive(Debug)]
struct Slot {
    name: String,
    shape: Vec<i64>,
    start: i64,
    len: i64,
    /// The model's own tensor, a leaf of autograd that views the flat weights.
    leaf: Tensor,
}

/// The optimizer and its state.
#[derive(Debug)]
pub struct Optimizer {
    slots: Vec<Slot>,
    weights: Tensor,
    gradients: Tensor,
    adamw: AdamW,
    /// Optimizer steps taken.
    steps: u64,
    /// Micro-steps in `gradients`.
    accumulated: usize,
    /// The processes that add their gradients up, and what of the state is divided among them.
    spread: Spread,
    /// The part of the flat buffers whose weights this process updates: all, unless the state is
    /// divided.
    own: Range<i64>,
}

/// The parts of the state that a checkpoint keeps, by the names of their buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Running mean of the gradient.
    First,
    /// Running mean of the squared gradient.
    Second,
    /// What has been accumulated since the last step.
    Gradient,
}

/// Starts of variables are multiples of this many floats (64 bytes: a cache line, an AVX-512
/// vector).
const ALIGNMENT: i64 = 16;

impl Optimizer {
    /// Takes over `variables`: their tensors become views of one flat buffer.
    ///
    /// # Errors
    /// libtorch's: no memory for gradients and moments (three times the weights).
    pub fn new(variables: &[Variable], options: Options) -> Result<Self> {
        Self::among(variables, options, Spread::default())
    }

    /// Takes over `variables`, which all processes have: where the state is divided among them,
    /// each holds its part.
    ///
    /// # Errors
    /// See [`Optimizer::new`].
    pub fn among(variables: &[Variable], options: Options, spread: Spread) -> Result<Self> {
        Self::build(variables, options, spread)
            .map_err(|e| Error::torch("setting up the optimizer", &e))
    }

    fn build(
        variables: &[Variable],
        options: Options,
        spread: Spread,
    ) -> Result<Self, TchError> {
        let device = variables.first().map_or(Device::Cpu, |v| v.tensor.device());
        let mut slots = Vec::with_capacity(variables.len());
        let mut end = 0;
        for variable in variables {
            let (shape, len) = (variable.tensor.size(), variable.tensor.numel() as i64);
            let leaf = variable.tensor.shallow_clone();
            slots.push(Slot { name: variable.name.clone(), shape, start: end, len, leaf });
            end += (len + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        }
        let mut own = 0..end;
        if spread.shard == Shard::Optimizer {
            let (rank, size) = (spread.ranks.rank() as i64, spread.ranks.size() as i64);
            let part = (end + size * ALIGNMENT - 1) / (size * ALIGNMENT) * ALIGNMENT;
            (own, end) = (rank * part..(rank + 1) * part, size * part);
        }
        let zeros = || Tensor::f_zeros([end], (Kind::Float, device));
        let weights = zeros()?;
        tch::no_grad(|| {
            for slot in &mut slots {
                let view = weights.f_narrow(0, slot.start, slot.len)?.f_view(&slot.shape[..])?;
                view.shallow_clone().f_copy_(&slot.leaf)?;
                slot.leaf.f_set_data(&view)?;
            }
            Ok::<(), TchError>(())
        })?;
        let (gradients, adamw) = (zeros()?, AdamW::new(options, own.clone(), device)?);
        Ok(Self { slots, weights, gradients, adamw, steps: 0, accumulated: 0, spread, own })
    }

    /// Variables it changes.
    pub fn variables(&self) -> usize {
        self.slots.len()
    }

    /// True where this process holds all of the state.
    pub fn is_whole(&self) -> bool {
        self.spread.shard == Shard::Nothing
    }

    /// Optimizer steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Micro-steps accumulated since the last step.
    pub fn accumulated(&self) -> usize {
        self.accumulated
    }

    /// Adds the gradient of `loss` (a scalar) times `scale`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn accumulate(&mut self, loss: &Tensor, scale: f64) -> Result<()> {
        let add = || -> Result<(), TchError> {
            if !loss.requires_grad() {
                // a share of a batch without anything to learn
                return match self.accumulated {
                    0 => self.gradients.shallow_clone().f_zero_().map(drop),
                    _ => Ok(()),
                };
            }
            let scaled =
                if scale == 1.0 { loss.shallow_clone() } else { loss.f_mul_scalar(scale)? };
            let leaves: Vec<&Tensor> = self.slots.iter().map(|slot| &slot.leaf).collect();
            let gradients = Tensor::f_run_backward(&[scaled], &leaves, false, false)?;
            tch::no_grad(|| {
                for (slot, gradient) in self.slots.iter().zip(gradients) {
                    let mut sum = self
                        .gradients
                        .f_narrow(0, slot.start, slot.len)?
                        .f_view(&slot.shape[..])?;
                    match (gradient.defined(), self.accumulated) {
                        (true, 0) => sum.f_copy_(&gradient)?,
                        (true, _) => drop(sum.f_add_(&gradient)?),
                        // an expert without tokens: its gradient is zero
                        (false, 0) => drop(sum.f_zero_()?),
                        (false, _) => (),
                    }
                }
                Ok(())
            })
        };
        add().map_err(|e| Error::torch("backward pass", &e))?;
        self.accumulated += 1;
        Ok(())
    }

    /// Adds the accumulated gradients of all processes up, which all have to call.
    ///
    /// # Errors
    /// A process that is gone; libtorch's.
    pub fn reduce(&mut self) -> Result<()> {
        let ranks = &self.spread.ranks;
        if ranks.alone() {
            return Ok(());
        }
        let doing = |e| Error::torch("gradients of all processes", &e);
        match self.spread.reduce {
            Reduce::F32 => ranks.sum(&mut self.gradients),
            Reduce::Bf16 => {
                let mut half = self.gradients.f_to_kind(Kind::BFloat16).map_err(doing)?;
                ranks.sum(&mut half)?;
                tch::no_grad(|| self.gradients.f_copy_(&half)).map_err(doing)
            }
        }
    }

    /// The accumulated gradient's norm over all variables, a float64 scalar on the device: one
    /// square sum per variable, as torch's, so float32 sums stay short.
    ///
    /// # Errors
    /// libtorch's.
    pub fn gradient_norm(&self) -> Result<Tensor> {
        let norm = || -> Result<Tensor, TchError> {
            let norms = self.slots.iter().map(|slot| {
                self.gradients.f_narrow(0, slot.start, slot.len)?.f_norm()?.f_to_kind(Kind::Double)
            });
            let norms = norms.collect::<Result<Vec<_>, TchError>>()?;
            Tensor::f_stack(&norms, 0)?.f_norm()
        };
        norm().map_err(|e| Error::torch("gradient norm", &e))
    }

    /// One update with the accumulated gradient, scaled so that its norm (`norm`, as
    /// [`Optimizer::gradient_norm`] gives it) is at most `max_norm` (0: unscaled); then the gradient is
    /// empty.
    ///
    /// # Errors
    /// libtorch's.
    pub fn step(&mut self, lr: f64, norm: f64, max_norm: f64) -> Result<()> {
        // eps as torch.nn.utils.clip_grad_norm_
        let clip = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        self.accumulated = 0;
        let (weights, gradients) = (&mut self.weights, &mut self.gradients);
        self.adamw
            .step(weights, gradients, lr, clip, self.steps)
            .map_err(|e| Error::torch("optimizer step", &e))?;
        self.gather(&self.weights)
    }

    /// Puts the parts that the processes have of a flat buffer into all of them, in place.
    fn gather(&self, flat: &Tensor) -> Result<()> {
        let (Some(group), Shard::Optimizer) = (self.spread.ranks.group(), self.spread.shard) else {
            return Ok(());
        };
        // a copy: what is gathered must not lie in where it goes
        let own = flat.f_narrow(0, self.own.start, self.own.end - self.own.start);
        let own = tch::no_grad(|| own?.detach().f_mul_scalar(1.0));
        let own = own.map_err(|e| Error::torch("weights of all processes", &e))?;
        group.all_gather(&mut flat.detach(), &own)
    }

    /// Drops what has been accumulated.
    pub fn discard(&mut self) {
        self.accumulated = 0;
    }

    /// One part of the state of all processes on the first one's host, per variable; nothing on the
    /// others, which all have to call it.
    ///
    /// # Errors
    /// libtorch's; a process that is gone.
    pub fn state(&self, part: Part) -> Result<Vec<HostTensor>> {
        let reading = |e| Error::torch("reading the optimizer's state", &e);
        let ranks = &self.spread.ranks;
        let flat = match (part, ranks.alone()) {
            (Part::Gradient, true) => self.gradients.shallow_clone(),
            // parts of gradients that were not added up yet
            (Part::Gradient, false) => {
                let mut sum = self.gradients.f_mul_scalar(1.0).map_err(reading)?;
                ranks.sum(&mut sum)?;
                sum
            }
            (Part::First | Part::Second, _) => {
                let own = self.adamw.part(part == Part::Second);
                match self.spread.shard {
                    Shard::Nothing => own.shallow_clone(),
                    Shard::Optimizer => {
                        let all = tch::no_grad(|| {
                            let all = self.weights.detach().f_zeros_like()?;
                            let mut place = all.f_narrow(0, self.own.start, own.numel() as i64)?;
                            place.f_copy_(own)?;
                            Ok(all)
                        });
                        let all = all.map_err(reading)?;
                        self.gather(&all)?;
                        all
                    }
                }
            }
        };
        if !ranks.is_first() {
            return Ok(Vec::new());
        }
        let read = |slot: &Slot| -> Result<HostTensor, TchError> {
            let values = host_f32(&flat.f_narrow(0, slot.start, slot.len)?)?;
            let shape = slot.shape.iter().map(|&n| n as usize).collect();
            Ok(HostTensor { name: slot.name.clone(), shape, values })
        };
        self.slots.iter().map(read).collect::<Result<_, _>>().map_err(reading)
    }

    /// Puts a part of a variable's state back, as [`Optimizer::state`] gave it: of a divided state,
    /// what of it is this process's; of the accumulated gradient, all on the first process.
    ///
    /// # Errors
    /// An unknown variable, or another number of values.
    pub fn restore(&mut self, part: Part, name: &str, values: &[f32]) -> Result<()> {
        let slot = self.slots.iter().find(|slot| slot.name == name);
        let Some(slot) = slot.filter(|slot| slot.len == values.len() as i64) else {
            let expected = slot.map_or_else(|| "no such variable".into(), |s| s.len.to_string());
            return Err(Error::failed(format!(
                "optimizer state of {name}: expected {expected}, found {} values",
                values.len()
            )));
        };
        let (flat, range) = match part {
            Part::Gradient if !self.spread.ranks.is_first() => return Ok(()),
            Part::Gradient => (&self.gradients, 0..i64::MAX),
            Part::First | Part::Second => (self.adamw.part(part == Part::Second), self.own.clone()),
        };
        let (from, to) = (slot.start.max(range.start), (slot.start + slot.len).min(range.end));
        if from >= to {
            return Ok(());
        }
        let values = &values[(from - slot.start) as usize..(to - slot.start) as usize];
        let copy = || -> Result<(), TchError> {
            let mut target = flat.f_narrow(0, from - range.start, to - from)?;
            target.f_copy_(&Tensor::f_from_slice(values)?)
        };
        tch::no_grad(copy).map_err(|e| Error::torch("restoring the optimizer's state", &e))
    }

    /// Gives all processes the first one's weights, which all have to call.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn agree(&mut self) -> Result<()> {
        match self.spread.ranks.group() {
            Some(group) => group.broadcast(&mut self.weights, 0),
            None => Ok(()),
        }
    }

    /// Sets the counters that belong to restored state.
    pub fn restore_counts(&mut self, steps: u64, accumulated: usize) {
        (self.steps, self.accumulated) = (steps, accumulated);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, values: &[f32]) -> Variable {
        let tensor = Tensor::from_slice(values).set_requires_grad(true);
        Variable { name: name.into(), tensor }
    }

    /// Ten steps of sum(c * w^2) against the formulas written out in float64.
    #[test]
    fn equals_the_formulas_in_double_precision() {
        let (mut w, c) = ([0.5f64, -1.5, 2.0, 0.1], [3.0f64, 0.2, -1.0, 40.0]);
        let start: Vec<f32> = w.iter().map(|&x| x as f32).collect();
        let a = variable("a", &start[..1]);
        let b = variable("b", &start[1..]);
        let (ca, cb) = (Tensor::from_slice(&[3.0f32]), Tensor::from_slice(&[0.2f32, -1.0, 40.0]));
        let variables = [a, b];
        let options = Options { weight_decay: 0.1, ..Options::default() };
        let mut optimizer = Optimizer::new(&variables, options).expect("state");
        let (mut m, mut v) = ([0.0f64; 4], [0.0f64; 4]);
        for step in 1..=10 {
            let (x, y) = (&variables[0].tensor, &variables[1].tensor);
            let loss = (&ca * x * x).sum(Kind::Float) + (&cb * y * y).sum(Kind::Float);
            optimizer.accumulate(&loss, 0.5).expect("gradient");
            optimizer.accumulate(&loss_again(&variables, &ca, &cb), 0.5).expect("gradient");
            let norm = optimizer.gradient_norm().expect("norm").double_value(&[]);
            optimizer.step(1e-2, norm, 1.0).expect("step");

            let g: Vec<f64> = (0..4).map(|i| 2.0 * c[i] * w[i]).collect();
            let expected = g.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!((norm / expected - 1.0).abs() < 1e-5, "step {step}: norm {norm}, {expected}");
            let clip = (1.0 / (expected + 1e-6)).min(1.0);
            for i in 0..4 {
                let g = g[i] * clip;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let root = (v[i] / (1.0 - 0.999f64.powi(step))).sqrt() + 1e-8;
                w[i] -= 1e-2 * 0.1 * w[i] + 1e-2 * m[i] / (1.0 - 0.9f64.powi(step)) / root;
            }
        }
        let found: Vec<f32> = [&variables[0].tensor, &variables[1].tensor]
            .iter()
            .flat_map(|t| host_f32(t).expect("values"))
            .collect();
        for (found, expected) in found.iter().zip(w) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
        }
        assert_eq!(optimizer.steps(), 10);
    }

    fn loss_again(variables: &[Variable; 2], ca: &Tensor, cb: &Tensor) -> Tensor {
        let (x, y) = (&variables[0].tensor, &variables[1].tensor);
        (ca * x * x).sum(Kind::Float) + (cb * y * y).sum(Kind::Float)
    }

    #[test]
    fn state_goes_out_and_in_per_variable() {
        let variables = [variable("a", &[1.0, 2.0, 3.0]), variable("b", &[4.0])];
        let mut optimizer = Optimizer::new(&variables, Options::default()).expect("state");
        optimizer.restore(Part::Second, "a", &[7.0, 8.0, 9.0]).expect("fits");
        let state = optimizer.state(Part::Second).expect("state");
        assert_eq!(state[0].values, [7.0, 8.0, 9.0]);
        assert_eq!(state[1].values, [0.0]);
        assert!(optimizer.restore(Part::First, "a", &[1.0]).is_err(), "too few");
        assert!(optimizer.restore(Part::First, "c", &[1.0]).is_err(), "unknown");
    }
}
