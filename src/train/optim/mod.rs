//! The optimizer: weights and gradients lie in two flat float32 buffers, so clipping, the update and
//! a checkpoint are each one pass, and the norm before clipping is returned. Each variable goes to
//! one of two updates, which hold their own state over the part of the buffers that they change:
//! `muon.rs` takes the hidden matrices where it is asked for, `adamw.rs` all others. Of the gradients
//! a process may hold its part only (`gradients.rs`).
//!
//! In: a scalar loss per micro-step ([`Optimizer::accumulate`]). Out: changed master weights
//! ([`Optimizer::step`]).

mod adamw;
mod backward;
mod division;
mod exchange;
mod gradients;
mod muon;
mod slices;

use std::ops::Range;

use mmx_converters::arch::{Role, Weight};
use tch::{Device, Kind, TchError, Tensor};

use self::adamw::AdamW;
use self::division::Division;
use self::gradients::Gradients;
use self::muon::{Muon, Place};
use crate::error::{Error, Result, TorchError};
use crate::memory::give_back_memory;
use crate::model::{Variable, host_f32};
use crate::ranks::{Shard, Spread};

pub use self::adamw::AdamWOptions;
pub(crate) use self::exchange::EXCHANGED;
pub use self::muon::MuonOptions;

/// The updates and their constants.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// Of every variable that is not Muon's.
    pub adamw: AdamWOptions,
    /// Of the hidden matrices; without it they are AdamW's too.
    pub muon: Option<MuonOptions>,
}

impl Options {
    /// Whether Muon changes what has this role: a matrix between hidden states.
    fn is_muons(&self, role: Option<Role>) -> bool {
        self.muon.is_some() && role.is_some_and(Role::is_hidden_matrix)
    }

    /// Values of the moments of `variables`: two for each of AdamW's weights, one for each of
    /// Muon's.
    pub fn moments(&self, variables: &[Variable]) -> usize {
        let of = |v: &Variable| v.tensor.numel() * if self.is_muons(v.role) { 1 } else { 2 };
        variables.iter().map(of).sum()
    }

    /// The same of a weight of a model that is not made yet.
    pub(crate) fn moments_of(&self, weight: &Weight) -> u64 {
        weight.elements() as u64 * if self.is_muons(Some(weight.role)) { 1 } else { 2 }
    }
}

/// Muon's operations a step over those that the hidden matrices' forward and backward take for a
/// token: the tokens a step at which both would take the same time. `idle` weights of the matrices
/// (experts that are not chosen) take none. Zero without hidden matrices.
pub fn muon_tokens(variables: &[Variable], idle: usize) -> f64 {
    let hidden = variables.iter().filter(|v| v.role.is_some_and(Role::is_hidden_matrix));
    let (mut update, mut per_token) = (0.0, -6.0 * idle as f64);
    for (rows, columns) in hidden.filter_map(|v| v.tensor.size2().ok()) {
        update += muon::operations(rows as usize, columns as usize);
        per_token += 6.0 * (rows * columns) as f64;
    }
    if per_token > 0.0 { update / per_token } else { 0.0 }
}

/// The learning rates of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Muon's.
    pub muon: f64,
    /// AdamW's.
    pub adamw: f64,
}

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

impl Slot {
    fn place(&self) -> Range<i64> {
        self.start..self.start + self.len
    }
}

/// The optimizer and its state.
#[derive(Debug)]
pub struct Optimizer {
    slots: Vec<Slot>,
    weights: Tensor,
    gradients: Gradients,
    adamw: AdamW,
    muon: Option<Muon>,
    /// Optimizer steps taken.
    steps: u64,
    /// Micro-steps in `gradients`.
    accumulated: usize,
    /// The processes that add their gradients up.
    spread: Spread,
    /// Where Muon's matrices begin in the flat buffers.
    end_of_adamw: i64,
    /// How AdamW's weights are divided among them, where they are.
    of_adamw: Option<Division>,
    /// How Muon's matrices are, wherever there are several: each is a lot of work.
    of_muon: Option<Division>,
}

/// The parts of the state that a checkpoint keeps, by the names of their buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// AdamW's running mean of the gradient.
    First,
    /// AdamW's running mean of the squared gradient.
    Second,
    /// Muon's running mean of the gradient.
    Momentum,
    /// What has been accumulated since the last step.
    Gradient,
}

impl Part {
    /// All of them, with the prefix that a checkpoint puts before a variable's name.
    pub const ALL: [(&'static str, Self); 4] = [
        ("first", Self::First),
        ("second", Self::Second),
        ("momentum", Self::Momentum),
        ("gradient", Self::Gradient),
    ];
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

    /// Takes over `variables`, which all of several processes have: where the state is divided among
    /// them, each holds its part.
    ///
    /// # Errors
    /// See [`Optimizer::new`].
    pub fn among(variables: &[Variable], options: Options, spread: Spread) -> Result<Self> {
        Self::build(variables, options, spread)
            .map_err(|e| Error::torch("setting up the optimizer", &e))
    }

    fn build(variables: &[Variable], options: Options, spread: Spread) -> Result<Self, TchError> {
        let device = variables.first().map_or(Device::Cpu, |v| v.tensor.device());
        // AdamW's first, then Muon's with those of one shape side by side
        let mut order: Vec<usize> = (0..variables.len()).collect();
        let key = |i: usize| match options.is_muons(variables[i].role) {
            true => (true, variables[i].tensor.size()),
            false => (false, Vec::new()),
        };
        order.sort_by_key(|&i| key(i));
        let (mut starts, mut matrices) = (vec![0; variables.len()], Vec::new());
        let (mut end, mut end_of_adamw) = (0, 0);
        for i in order {
            starts[i] = end;
            let tensor = &variables[i].tensor;
            if options.is_muons(variables[i].role) {
                let (rows, columns) = tensor.size2()?;
                let (rows, columns) = (rows as usize, columns as usize);
                matrices.push(Place { start: end, rows, columns });
            }
            let len = tensor.numel() as i64;
            end += (len + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
            if matrices.is_empty() {
                end_of_adamw = end;
            }
        }
        let mut slots = Vec::with_capacity(variables.len());
        for (variable, start) in variables.iter().zip(starts) {
            let (shape, len) = (variable.tensor.size(), variable.tensor.numel() as i64);
            let leaf = variable.tensor.shallow_clone();
            slots.push(Slot { name: variable.name.clone(), shape, start, len, leaf });
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
        give_back_memory(); // what the variables had lies in pieces, of no use to what follows
        let ranks = &spread.ranks;
        let place = (ranks.rank(), ranks.size());
        let of_adamw = (spread.shard != Shard::Nothing && !ranks.alone())
            .then(|| Division::equal(0..end_of_adamw, ALIGNMENT, place));
        let mut of_muon = None;
        if options.muon.is_some() && !ranks.alone() {
            let work = |m: &Place| (m.start, muon::operations(m.rows, m.columns));
            let items: Vec<_> = matrices.iter().map(work).collect();
            let (division, own) = Division::by_work(end_of_adamw..end, &items, place);
            matrices = matrices[own].to_vec();
            of_muon = Some(division);
        }
        let range = of_adamw.as_ref().map_or(0..end_of_adamw, Division::own);
        let among = (ranks.clone(), spread.reduce);
        let places = slots.iter().map(Slot::place).collect();
        let gradients = match (spread.shard, ranks.alone()) {
            (Shard::Gradients, false) => {
                let divisions = [&of_adamw, &of_muon].into_iter().flatten();
                let parts = divisions.flat_map(|of| of.parts().iter().cloned().zip(0..));
                Gradients::divided(places, &parts.collect::<Vec<_>>(), among, device)?
            }
            _ => Gradients::whole(places, end, among, device)?,
        };
        let adamw = AdamW::new(options.adamw, range, device)?;
        let muon = options.muon.map(|options| Muon::new(options, matrices, device)).transpose()?;
        let (steps, accumulated) = (0, 0);
        Ok(Self {
            slots,
            weights,
            gradients,
            adamw,
            muon,
            steps,
            accumulated,
            spread,
            end_of_adamw,
            of_adamw,
            of_muon,
        })
    }

    /// Variables it changes.
    pub fn variables(&self) -> usize {
        self.slots.len()
    }

    /// True where this process holds all of the state.
    pub fn is_whole(&self) -> bool {
        self.of_adamw.is_none() && self.of_muon.is_none()
    }

    /// Optimizer steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Micro-steps accumulated since the last step.
    pub fn accumulated(&self) -> usize {
        self.accumulated
    }

    /// Adds the gradient of `loss` (a scalar) times `scale`. Where gradients are divided among
    /// processes, all have to call this, and as often.
    ///
    /// # Errors
    /// libtorch's; a process that is gone.
    pub fn accumulate(&mut self, loss: &Tensor, scale: f64) -> Result<()> {
        let scaled = match (loss.requires_grad(), scale == 1.0) {
            (false, _) => None, // a share of a batch without anything to learn
            (true, true) => Some(loss.shallow_clone()),
            (true, false) => {
                let scaled = loss.f_mul_scalar(scale);
                Some(scaled.map_err(|e| Error::torch("backward pass", &e))?)
            }
        };
        let leaves: Vec<&Tensor> = self.slots.iter().map(|slot| &slot.leaf).collect();
        self.gradients.accumulate(scaled.as_ref(), &leaves, self.accumulated == 0)?;
        self.accumulated += 1;
        Ok(())
    }

    /// Counts the last micro-step that was added as a part of the one before it.
    pub fn count_as_before(&mut self) {
        self.accumulated = self.accumulated.saturating_sub(1).max(1);
    }

    /// Adds the accumulated gradients of all processes up, which all have to call.
    ///
    /// # Errors
    /// A process that is gone; libtorch's.
    pub fn reduce(&mut self) -> Result<()> {
        self.gradients.reduce()
    }

    /// The accumulated gradient's norm over all variables, a float64 scalar on the device; after
    /// [`Optimizer::reduce`] that of all processes, which all have to call.
    ///
    /// # Errors
    /// libtorch's; a process that is gone.
    pub fn gradient_norm(&self) -> Result<Tensor> {
        self.gradients.norm()
    }

    /// One update with the accumulated gradient, scaled so that its norm (`norm`, as
    /// [`Optimizer::gradient_norm`] gives it) is at most `max_norm` (0: unscaled); then the gradient is
    /// empty.
    ///
    /// # Errors
    /// libtorch's.
    pub fn step(&mut self, rates: Rates, norm: f64, max_norm: f64) -> Result<()> {
        // eps as torch.nn.utils.clip_grad_norm_
        let clip = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        self.accumulated = 0;
        let (weights, gradients) = (&mut self.weights, &mut self.gradients);
        let mut step = || -> Result<(), TchError> {
            let of_muon = self.of_muon.as_ref().map(Division::own);
            let of_muon = of_muon.unwrap_or(self.end_of_adamw..weights.size1()?);
            if let (Some(muon), Some(of)) = (&mut self.muon, gradients.around(&of_muon)) {
                muon.step(weights, of, rates.muon, clip)?;
            }
            match gradients.held(self.adamw.range())? {
                Some((_, of)) => self.adamw.step(weights, of, rates.adamw, clip, self.steps),
                None => Ok(()), // no weight is this process's
            }
        };
        step().map_err(|e| Error::torch("optimizer step", &e))?;
        let mut divisions = [&self.of_adamw, &self.of_muon].into_iter().flatten();
        divisions.try_for_each(|of| of.gather(&self.weights, &self.spread.ranks))
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

    /// Drops what has been accumulated.
    pub fn discard(&mut self) {
        self.accumulated = 0;
    }

    /// Whether a variable has a part of the state, in whichever process.
    fn has(&self, part: Part, slot: &Slot) -> bool {
        let muons = self.muon.is_some() && slot.start >= self.end_of_adamw;
        match part {
            Part::First | Part::Second => !muons,
            Part::Momentum => muons,
            Part::Gradient => true,
        }
    }

    /// What this process holds of a part of a variable's state: where that begins in the flat
    /// buffers.
    fn held(&self, part: Part, slot: &Slot) -> Result<Option<(i64, Tensor)>, TchError> {
        let held = match part {
            Part::Momentum => match &self.muon {
                Some(muon) => muon.momentum(slot.start)?.map(|moment| (slot.start, moment)),
                None => None,
            },
            Part::Gradient => self.gradients.held(&slot.place())?,
            Part::First | Part::Second => {
                let (range, moment) = self.adamw.held(part == Part::Second);
                let (from, to) = (slot.start.max(range.start), slot.place().end.min(range.end));
                match from < to {
                    true => Some((from, moment.f_narrow(0, from - range.start, to - from)?)),
                    false => None,
                }
            }
        };
        Ok(held)
    }

    /// The variables that have a part of the state, with their shapes.
    pub fn tensors(&self, part: Part) -> impl Iterator<Item = (&str, Vec<usize>)> {
        let slots = self.slots.iter().filter(move |slot| self.has(part, slot));
        slots.map(|slot| (slot.name.as_str(), slot.shape.iter().map(|&n| n as usize).collect()))
    }

    /// A part of a variable's state on the host of the first of several processes; on the others,
    /// which all have to call it, nothing.
    ///
    /// # Errors
    /// A variable that has no such part; libtorch's; a process that is gone.
    pub fn state(&self, part: Part, name: &str) -> Result<Vec<f32>> {
        let reading = |e| Error::torch("reading the optimizer's state", &e);
        let slot = self.slots.iter().find(|slot| slot.name == name && self.has(part, slot));
        let Some(slot) = slot else {
            return Err(Error::failed(format!(
                "optimizer state of {name}: expected one of a variable that has it, found none"
            )));
        };
        let ranks = &self.spread.ranks;
        let divided = match part {
            Part::First | Part::Second => self.of_adamw.is_some(),
            Part::Momentum => self.of_muon.is_some(),
            Part::Gradient => !ranks.alone(), // not added up yet
        };
        let held = self.held(part, slot).map_err(reading)?;
        let whole = match (divided, held) {
            (false, Some((_, tensor))) => tensor,
            (_, held) => {
                let place = || -> Result<Tensor, TchError> {
                    let all = Tensor::f_zeros([slot.len], (Kind::Float, self.weights.device()))?;
                    if let Some((start, part)) = held {
                        let (from, length) = (start - slot.start, part.numel() as i64);
                        all.f_narrow(0, from, length)?.f_copy_(&part)?;
                    }
                    Ok(all)
                };
                let mut all = tch::no_grad(place).map_err(reading)?;
                ranks.sum(&mut all)?;
                all
            }
        };
        match ranks.is_first() {
            true => host_f32(&whole).map_err(reading),
            false => Ok(Vec::new()),
        }
    }

    /// Puts a part of a variable's state back, as [`Optimizer::state`] gave it: what of it this
    /// process holds; of an accumulated gradient that is not divided the first process all.
    ///
    /// # Errors
    /// A variable that is not known or has no such part, or another number of values.
    pub fn restore(&mut self, part: Part, name: &str, values: &[f32]) -> Result<()> {
        let slot = self.slots.iter().find(|slot| slot.name == name);
        let (slot, expected) = match slot {
            Some(slot) if !self.has(part, slot) => (None, "none of this kind".into()),
            Some(slot) if slot.len == values.len() as i64 => (Some(slot), String::new()),
            Some(slot) => (None, slot.len.to_string()),
            None => (None, "no such variable".into()),
        };
        let Some(slot) = slot else {
            return Err(Error::failed(format!(
                "optimizer state of {name}: expected {expected}, found {} values",
                values.len()
            )));
        };
        if part == Part::Gradient && !self.gradients.is_divided() && !self.spread.ranks.is_first() {
            return Ok(());
        }
        let copy = || -> Result<(), TchError> {
            let Some((start, mut to)) = self.held(part, slot)? else { return Ok(()) };
            let from = (start - slot.start) as usize;
            to.f_copy_(&Tensor::f_from_slice(&values[from..from + to.numel()])?)
        };
        tch::no_grad(copy).map_err(|e| Error::torch("restoring the optimizer's state", &e))
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
        Variable { name: name.into(), role: Some(Role::Norm), tensor }
    }

    fn rates(lr: f64) -> Rates {
        Rates { muon: lr, adamw: lr }
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
        let adamw = AdamWOptions { weight_decay: 0.1, ..AdamWOptions::default() };
        let options = Options { adamw, muon: None };
        let mut optimizer = Optimizer::new(&variables, options).expect("state");
        let (mut m, mut v) = ([0.0f64; 4], [0.0f64; 4]);
        for step in 1..=10 {
            let (x, y) = (&variables[0].tensor, &variables[1].tensor);
            let loss = (&ca * x * x).sum(Kind::Float) + (&cb * y * y).sum(Kind::Float);
            optimizer.accumulate(&loss, 0.5).expect("gradient");
            optimizer.accumulate(&loss_again(&variables, &ca, &cb), 0.5).expect("gradient");
            let norm = optimizer.gradient_norm().expect("norm").double_value(&[]);
            optimizer.step(rates(1e-2), norm, 1.0).expect("step");

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
        let state = |name| optimizer.state(Part::Second, name).expect("state");
        assert_eq!((state("a"), state("b")), (vec![7.0, 8.0, 9.0], vec![0.0]));
        assert!(optimizer.restore(Part::First, "a", &[1.0]).is_err(), "too few");
        assert!(optimizer.restore(Part::First, "c", &[1.0]).is_err(), "unknown");
    }

    /// Matrices between others, of two shapes and not in their order.
    fn with_matrices() -> Vec<Variable> {
        let matrix = |name: &str, role, rows: usize, columns: usize| {
            let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * 0.7).cos()).collect();
            let tensor = Tensor::from_slice(&values).view([rows as i64, columns as i64]);
            Variable { name: name.into(), role: Some(role), tensor: tensor.set_requires_grad(true) }
        };
        vec![
            matrix("embedding", Role::Embedding, 5, 4),
            matrix("query", Role::Query, 4, 4),
            variable("norm", &[1.0, 2.0, 3.0]),
            matrix("gate", Role::Gate, 6, 4),
            matrix("router", Role::Router, 2, 4),
            matrix("output", Role::AttentionOutput, 4, 4),
        ]
    }

    #[test]
    fn muon_takes_the_hidden_matrices_and_each_variable_has_the_state_of_its_update() {
        let variables = with_matrices();
        let before: Vec<Vec<f32>> =
            variables.iter().map(|v| host_f32(&v.tensor).expect("values")).collect();
        let options = Options { muon: Some(MuonOptions::default()), ..Options::default() };
        assert_eq!(options.moments(&variables), 2 * (20 + 3 + 8) + 16 + 24 + 16);
        let mut optimizer = Optimizer::new(&variables, options).expect("state");
        for (variable, before) in variables.iter().zip(&before) {
            assert_eq!(&host_f32(&variable.tensor).expect("values"), before, "{}", variable.name);
        }
        let squares = variables.iter().map(|v| v.tensor.square().sum(Kind::Float));
        let loss = squares.reduce(|a, b| a + b).expect("variables");
        optimizer.accumulate(&loss, 1.0).expect("gradient");
        // AdamW at rate 0: only Muon's change
        optimizer.step(Rates { muon: 0.1, adamw: 0.0 }, 1.0, 0.0).expect("step");
        let names = |part| -> Vec<String> {
            let names: Vec<String> = optimizer.tensors(part).map(|(n, _)| n.to_owned()).collect();
            for name in &names {
                let state = optimizer.state(part, name).expect("state");
                assert!(state.iter().any(|v| *v != 0.0), "{part:?} of {name}");
            }
            names
        };
        assert_eq!(names(Part::Momentum), ["query", "gate", "output"]);
        assert_eq!(names(Part::First), ["embedding", "norm", "router"]);
        assert_eq!(names(Part::Second), ["embedding", "norm", "router"]);
        assert_eq!(names(Part::Gradient).len(), 6);
        assert!(optimizer.state(Part::First, "query").is_err(), "it has none");
        for (variable, before) in variables.iter().zip(&before) {
            let changed = &host_f32(&variable.tensor).expect("values") != before;
            let muons = ["query", "gate", "output"].contains(&variable.name.as_str());
            assert_eq!(changed, muons, "{}", variable.name);
        }
        let error = optimizer.restore(Part::First, "query", &[0.0; 16]).expect_err("Muon's");
        assert!(error.to_string().contains("query: expected none of this kind"), "{error}");
        optimizer.restore(Part::Momentum, "query", &[0.5; 16]).expect("fits");
        let state = |name| optimizer.state(Part::Momentum, name).expect("state");
        assert_eq!(state("query"), [0.5; 16]);
        assert_ne!(state("output"), [0.5; 16], "the other of that shape");
    }

    #[test]
    fn muons_cost_in_tokens_follows_the_shapes() {
        let square = with_matrices().swap_remove(1);
        // 5 (4 m^3 + 2 m^3) / (6 m^2) = 5 m
        assert_eq!(muon_tokens(&[square.share()], 0), 20.0);
        assert_eq!(muon_tokens(&[square], 8), 40.0, "half of its work does nothing for a token");
        assert_eq!(muon_tokens(&[variable("norm", &[1.0])], 0), 0.0);
    }
}
