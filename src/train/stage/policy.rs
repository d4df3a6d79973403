//! The stages grpo, cispo and agent: what a policy sampled is made more or less likely, by how its
//! reward compares with those of its group.
//!
//! Source: Shao et al. 2024 (GRPO), MiniMax-M1 2025 (CISPO); the reference's train_grpo and
//! train_agent of 2026-08 (docs/rl.md).

use std::cell::RefCell;

use tch::{Kind, TchError, Tensor};

use super::interface::{Learn, Loss, Part, Setup, Stage, TIMES};
use super::language_model::inputs;
use super::lora::attach;
use super::sums::Sums;
use crate::config::Defaults;
use crate::error::{Error, Result, TorchError};
use crate::loss::{self, Entropies, Targets};
use crate::model::device::upload;
use crate::model::{Hidden, HostTensor, Model, Variable, wide};
use crate::policy::advantage::{self, Tracker};
use crate::policy::options::{PolicyOptions, Span};
use crate::policy::pieces::{POSITIONS, pieces};
use crate::policy::rows::Rows;
use crate::policy::shared::Shared;
use crate::policy::{importance, objective};
use crate::ranks::{Ranks, host_numbers};
use mmx_data::{Batch, Recipe, Rewarded, StageInfo};
use tch::Device;

/// A stage whose rewards are compared within groups, or with what was expected of them so far.
#[derive(Debug)]
pub struct Policy {
    info: &'static StageInfo,
    ready: Option<Ready>,
}

#[derive(Debug)]
struct Ready {
    reference: Option<Model>,
    options: PolicyOptions,
    expected: RefCell<Expected>,
}

/// What reward is expected, where that is followed over the run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Expected {
    now: Tracker,
    /// After the last optimizer step, where a run that met an error can begin again.
    stepped: Tracker,
}

/// What a piece of a batch has to know of the whole of it.
#[derive(Debug)]
struct Whole {
    /// Trained tokens.
    tokens: usize,
    /// Rows that a mean over rows counts.
    counted: usize,
    /// Of each row of the batch; nothing where they follow from what the policy gives the rows.
    advantages: Option<Vec<f64>>,
}

impl Policy {
    /// The stage of a row of the list.
    pub fn new(info: &'static StageInfo) -> Self {
        Self { info, ready: None }
    }

    fn ready(&self) -> Result<&Ready> {
        let ready = self.ready.as_ref();
        ready.ok_or_else(|| Error::failed("expected a stage that is ready before its first batch"))
    }
}

/// What a checkpoint calls the adaptive baseline.
const EXPECTED: &str = "expected_reward";
/// The part that holds the mean log-probability, where the expected reward is followed.
const LOGP: &str = "logp";

impl Stage for Policy {
    fn info(&self) -> &'static StageInfo {
        self.info
    }

    fn defaults(&self, _recipe: Recipe) -> Defaults {
        Defaults { epochs: 1, batch_size: 2, lr: 3e-7, accumulation: 1 }
    }

    fn prepare(&mut self, model: &mut Model, mut setup: Setup<'_>) -> Result<()> {
        let Some(options) = setup.config.policy.clone() else {
            return Err(Error::failed(format!(
                "{}: expected its options, found none",
                self.name()
            )));
        };
        let reference = reference(model, &mut setup, options.kl_coef)?;
        self.ready = Some(Ready { reference, options, expected: RefCell::default() });
        Ok(())
    }

    fn trainable(&self, model: &Model) -> Vec<Variable> {
        trainable(model)
    }

    fn counts_padding(&self, _model: &Model) -> bool {
        false
    }

    fn state(&self) -> Result<Vec<HostTensor>> {
        let Some(ready) = self.ready.as_ref().filter(|ready| ready.options.adaptive) else {
            return Ok(Vec::new());
        };
        let values = ready.expected.borrow().now.to_floats();
        Ok(vec![HostTensor { name: EXPECTED.into(), shape: vec![values.len()], values }])
    }

    fn restore(&self, state: &[HostTensor]) -> Result<()> {
        let found = state.iter().find(|tensor| tensor.name == EXPECTED);
        if let (Some(ready), Some(tensor)) = (&self.ready, found) {
            let tracker = Tracker::from_floats(&tensor.values).ok_or_else(|| {
                Error::failed(format!("{EXPECTED}: found {:?}, no baseline", tensor.values))
            })?;
            ready.expected.replace(Expected { now: tracker, stepped: tracker });
        }
        Ok(())
    }

    fn stepped(&self) {
        if let Some(ready) = &self.ready {
            let mut expected = ready.expected.borrow_mut();
            expected.stepped = expected.now;
        }
    }

    fn rewound(&self) {
        if let Some(ready) = &self.ready {
            let mut expected = ready.expected.borrow_mut();
            expected.now = expected.stepped;
        }
    }

    fn rows_at_a_time(&self, model: &Model, rows: usize, positions: usize) -> usize {
        match self.ready.as_ref().is_some_and(|ready| ready.adds_up(model)) {
            // pieces are divided by the middle of a row
            true => rows.min(POSITIONS.div_ceil(positions.max(1)) + 1),
            false => rows,
        }
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        let ready = self.ready()?;
        let Some(whole) = ready.whole(batch)? else { return Ok(Loss::nothing()) };
        let loss = ready.of_rows(model, batch, &batch.own_rows(), &whole)?;
        ready.described(loss, batch)
    }

    fn learn(&self, model: &Model, batch: &Batch, learn: &mut Learn<'_>) -> Result<Loss> {
        let ready = self.ready()?;
        let Some(whole) = ready.whole(batch)? else { return Ok(Loss::nothing()) };
        let pieces = ready.pieces(model, batch, &whole);
        let mut sums = Sums::default();
        for rows in pieces {
            let loss = ready.of_rows(model, batch, &rows, &whole)?;
            learn(&loss)?;
            sums.add(loss.detached())?;
        }
        let loss = ready.described(sums.loss(whole.tokens), batch)?;
        ready.counted(loss, batch, model.ranks())
    }
}

impl Ready {
    /// What there is to know of a batch before its pieces are computed; nothing where no token is
    /// trained.
    fn whole(&self, batch: &Batch) -> Result<Option<Whole>> {
        let (rewarded, tokens) = (rewards_of(batch)?, batch.trained_tokens());
        let trained = |range: std::ops::Range<usize>| batch.mask[range].iter().any(|&m| m != 0.0);
        let counted = match self.options.leave_out_empty {
            true => batch.ranges().into_iter().filter(|range| trained(range.clone())).count(),
            false => batch.sequences(),
        };
        let advantages = (!self.options.kl_in_reward)
            .then(|| self.advantages(&rewarded.rewards, &rewarded.groups));
        Ok((tokens > 0).then_some(Whole { tokens, counted, advantages }))
    }

    /// The advantages of all rows of a batch.
    fn advantages(&self, rewards: &[f64], groups: &[u64]) -> Vec<f64> {
        match self.options.adaptive {
            true => self.expected.borrow().now.advantages(rewards),
            false => advantage::of_groups(rewards, groups, self.options.scale),
        }
    }

    /// The rows of each piece in which this process computes its own, as many for all processes,
    /// which may add up their gradients piece by piece: some of them empty.
    fn pieces(&self, model: &Model, batch: &Batch, whole: &Whole) -> Vec<Vec<usize>> {
        if !self.comes_in_pieces(model, batch, whole) {
            return vec![batch.own_rows()];
        }
        let learned = |rows: &Vec<usize>| batch.trained_tokens_of(rows) > 0;
        let pieces = |rows: &[usize]| -> Vec<Vec<usize>> {
            pieces(batch, rows).into_iter().filter(learned).collect()
        };
        let all = batch.rows_of_all();
        let most = all.iter().map(|rows| pieces(rows).len()).max().unwrap_or_default();
        let mut own = pieces(&batch.own_rows());
        own.resize(most.max(1), Vec::new());
        own
    }

    /// Whether the losses of a batch's rows add up to its own, and it is worth computing them one
    /// after the other: devices are faster with all at once.
    fn comes_in_pieces(&self, model: &Model, batch: &Batch, whole: &Whole) -> bool {
        self.adds_up(model) && whole.advantages.is_some() && !batch.packed.is_empty()
    }

    fn adds_up(&self, model: &Model) -> bool {
        let alone = self.options.top_entropy >= 1.0 && !self.options.kl_in_reward;
        alone && model.config().moe.is_none() && model.device() == Device::Cpu
    }

    /// The loss of some rows of a batch: their part of its own.
    fn of_rows(&self, model: &Model, all: &Batch, own: &[usize], whole: &Whole) -> Result<Loss> {
        let Self { options, .. } = self;
        let batch = &all.share_of(own);
        let rewarded = rewards_of(batch)?;
        let input = Input::new(model, batch)?;
        let Some(targets) = &input.targets else { return Ok(Loss::nothing()) };
        let kind = wide(model.compute());
        let rows = Rows::new(batch, options.leave_out_empty, kind, model.device())?;
        let rows = rows.among(whole.tokens, whole.counted);
        let at = options.score_temperature;
        let of_reference = match &self.reference {
            Some(reference) => {
                let logps = || -> Result<Tensor> {
                    let hidden = softened(&input.hidden(reference, batch, false)?.hidden, at)?;
                    loss::log_probabilities(reference, &hidden, targets, Entropies::Fixed)
                };
                Some(tch::no_grad(logps)?)
            }
            None => None,
        };
        let doing = |e| Error::torch("rewards to the device", &e);
        let sampled = rows.of_positions(batch, &rewarded.sampled).map_err(doing)?;
        let policy = input.hidden(model, batch, true)?;
        let hidden = softened(&policy.hidden, at)?;
        let measured = RefCell::new(Vec::new());
        let use_of_entropies = match options.entropy_coef == 0.0 {
            true => Entropies::Fixed,
            false => Entropies::Learned,
        };
        let of_scores = |logps: &Tensor, entropies: &Tensor| -> Result<Tensor> {
            let doing = |e| Error::torch("loss of a policy", &e);
            let fixed = logps.detach();
            let old = if rewarded.stale { sampled.shallow_clone() } else { fixed.shallow_clone() };
            let advantages = match &whole.advantages {
                Some(advantages) => own.iter().map(|&row| advantages[row]).collect(),
                None => {
                    let moved = of_reference.as_ref().map(|of| old.f_sub(of)).transpose();
                    self.with_divergence(model.ranks(), &rows, moved.map_err(doing)?, all, own)?
                }
            };
            let all_entropies = match options.top_entropy < 1.0 && batch.share.is_some() {
                true => Some(of_all(entropies, all, own, model.ranks())?),
                false => None,
            };
            let loss = || -> Result<Tensor, TchError> {
                let weights = match options.importance.filter(|_| !rewarded.stale) {
                    Some(by) => Some(importance::weights(&old, &sampled, &rows, by)?),
                    None => None,
                };
                let advantages = rows.spread_host(&advantages)?;
                let tokens = objective::Tokens {
                    rows: &rows,
                    old: &old,
                    reference: of_reference.as_ref(),
                    advantages: &advantages,
                    weights: weights.as_ref(),
                    entropies: Some(entropies),
                    all_entropies: all_entropies.as_ref(),
                    max_length: options.max_new_tokens,
                };
                let mut parts = measure(&fixed, entropies, &sampled, &tokens, options)?;
                if options.adaptive {
                    parts.push((LOGP, Part::Scalar(rows.mean(&fixed)?)));
                }
                measured.replace(parts);
                objective::of_groups(logps, &fixed, &tokens, options)
            };
            loss().map_err(doing)
        };
        let loss = loss::of_scores(model, &hidden, targets, use_of_entropies, &of_scores)?;
        let mut parts = vec![("policy", Part::Scalar(loss.shallow_clone()))];
        let total = with_aux(loss, policy.aux, &mut parts)?;
        parts.extend(measured.into_inner());
        Ok(Loss { total: Some(total), parts, trained_tokens: whole.tokens, ..Loss::nothing() })
    }

    /// The advantages of some rows where rewards count the divergence from the reference, as far as
    /// it shows in what was sampled: log p - log p of the reference (Schulman's k1), summed over a row.
    /// `divergence` is that of these rows' tokens; all processes have to call this.
    fn with_divergence(
        &self,
        ranks: &Ranks,
        rows: &Rows,
        divergence: Option<Tensor>,
        all: &Batch,
        own: &[usize],
    ) -> Result<Vec<f64>> {
        let rewarded = rewards_of(all)?;
        let mut rewards = rewarded.rewards.clone();
        if let Some(divergence) = divergence {
            let host = rows.sums(&divergence).and_then(|sums| host_numbers(&sums));
            let host = host.map_err(|e| Error::torch("divergence of rows", &e))?;
            let mut sums = vec![0.0; rewards.len()];
            own.iter().zip(host).for_each(|(&row, sum)| sums[row] = sum);
            let sums = ranks.sum_numbers(&sums)?;
            let kl_coef = self.options.kl_coef;
            rewards.iter_mut().zip(sums).for_each(|(reward, sum)| *reward -= kl_coef * sum);
        }
        let advantages = self.advantages(&rewards, &rewarded.groups);
        Ok(own.iter().map(|&row| advantages[row]).collect())
    }

    /// The loss of a batch with what is told of it besides.
    fn described(&self, mut loss: Loss, batch: &Batch) -> Result<Loss> {
        if self.options.adaptive {
            let expected = self.expected.borrow().now.baseline();
            loss.parts.push(("expected_reward", Part::Number(expected)));
        }
        let own = batch.trained_tokens_of(&batch.own_rows());
        loss.parts.push(("tokens", Part::Count(own)));
        loss.parts.extend(of_rewards(rewards_of(batch)?));
        Ok(loss)
    }

    /// The loss of a batch whose rewards have been counted, where the expected one is followed.
    fn counted(&self, loss: Loss, batch: &Batch, ranks: &Ranks) -> Result<Loss> {
        if !self.options.adaptive {
            return Ok(loss);
        }
        let logp = loss.parts.iter().find_map(|(name, part)| match part {
            Part::Scalar(value) if *name == LOGP => Some(value.f_double_value(&[])),
            _ => None,
        });
        let logp = logp.transpose().map_err(|e| Error::torch("mean log-probability", &e))?;
        let logp: f64 = ranks.sum_numbers(&[logp.unwrap_or_default()])?.iter().sum();
        let rewards = &rewards_of(batch)?.rewards;
        self.expected.borrow_mut().now.count(rewards, logp);
        Ok(loss)
    }
}

/// Values of some rows' tokens, `[n]`, among those of all processes' rows, `[tokens of the batch]`.
/// All processes have to call it.
fn of_all(own: &Tensor, batch: &Batch, rows: &[usize], ranks: &Ranks) -> Result<Tensor> {
    let all = batch.rows();
    let before: Vec<usize> = all.iter().copied().take_while(|row| !rows.contains(row)).collect();
    let (before, tokens) = (batch.trained_tokens_of(&before), batch.trained_tokens_of(&all));
    let placed = || -> Result<Tensor, TchError> {
        let placed = Tensor::f_zeros([tokens as i64], (own.kind(), own.device()))?;
        let from = if rows.is_empty() { 0 } else { before as i64 };
        placed.f_narrow(0, from, own.numel() as i64)?.f_copy_(&own.detach())?;
        Ok(placed)
    };
    let mut placed = placed().map_err(|e| Error::torch("entropies of all processes", &e))?;
    ranks.sum(&mut placed)?;
    Ok(placed)
}

/// What goes into the models for some rows, and the targets that come out.
struct Input {
    /// `[batch, seq]`, or `[1, positions]` where common beginnings are there once.
    ids: Tensor,
    shared: Option<Shared>,
    targets: Option<Targets>,
}

impl Input {
    fn new(model: &Model, batch: &Batch) -> Result<Self> {
        let shared = Shared::of(batch).filter(|_| model.takes_branches());
        let Some(shared) = shared else {
            let targets = Targets::new(batch, model.device())?;
            return Ok(Self { ids: inputs(model, batch)?, shared: None, targets });
        };
        let targets = Targets::at(batch, &shared.places, model.device())?;
        let ids = || -> Result<Tensor, TchError> {
            let ids = Tensor::f_from_slice(&shared.ids)?.f_view([1, shared.ids.len() as i64])?;
            upload(&ids, model.device())
        };
        let ids = ids().map_err(|e| Error::torch("batch to the device", &e))?;
        Ok(Self { ids, shared: Some(shared), targets })
    }

    /// The final hidden states of a model of the same kind.
    fn hidden(&self, model: &Model, batch: &Batch, train: bool) -> Result<Hidden> {
        match &self.shared {
            Some(shared) => model.hidden_branched(&self.ids, &shared.branches),
            None => model.hidden_of(&self.ids, batch, train),
        }
    }
}

/// What a policy is measured from: the frozen model, or what lies below its adapters; nothing where
/// the divergence does not count. Attaches adapters where there are to be some.
pub(super) fn reference(
    model: &mut Model,
    setup: &mut Setup<'_>,
    kl_coef: f64,
) -> Result<Option<Model>> {
    let below = match setup.config.lora.is_some() {
        true => {
            let below = model.without_adapters()?;
            attach(model, setup)?;
            Some(below)
        }
        false => None,
    };
    match (kl_coef != 0.0, setup.frozen.take().or(below)) {
        (false, _) => Ok(None),
        (true, Some(reference)) => Ok(Some(reference)),
        (true, None) => Err(Error::failed("expected a reference model, found none")),
    }
}

/// All weights, or adapters where there are some.
pub(super) fn trainable(model: &Model) -> Vec<Variable> {
    match model.lora() {
        Some(lora) => lora.variables().iter().map(Variable::share).collect(),
        None => model.variables().iter().map(Variable::share).collect(),
    }
}

/// The rewards of a batch.
pub(super) fn rewards_of(batch: &Batch) -> Result<&Rewarded> {
    let rewarded = batch.rewarded.as_ref();
    rewarded.ok_or_else(|| Error::failed("batch: expected rollouts with rewards, found none"))
}

/// Hidden states whose logits are those divided by a temperature.
pub(super) fn softened(hidden: &Tensor, temperature: f64) -> Result<Tensor> {
    match temperature == 1.0 {
        true => Ok(hidden.shallow_clone()),
        false => hidden
            .f_div_scalar(temperature)
            .map_err(|e| Error::torch("logits over the temperature", &e)),
    }
}

/// The log-probabilities of a batch's targets, `[n]`, without a gradient.
pub(super) fn log_probabilities(
    model: &Model,
    ids: &Tensor,
    batch: &Batch,
    targets: &Targets,
    temperature: f64,
) -> Result<Tensor> {
    let hidden = softened(&model.hidden_of(ids, batch, false)?.hidden, temperature)?;
    loss::log_probabilities(model, &hidden, targets, Entropies::Fixed)
}

/// A loss with the balancing loss added, where there is one; and that as a part.
pub(super) fn with_aux(
    loss: Tensor,
    aux: Option<Tensor>,
    parts: &mut Vec<(&'static str, Part)>,
) -> Result<Tensor> {
    let Some(aux) = aux else {
        parts.push(("aux", Part::Zero));
        return Ok(loss);
    };
    let total = loss.f_add(&aux).map_err(|e| Error::torch("loss", &e))?;
    parts.push(("aux", Part::Scalar(aux)));
    Ok(total)
}

/// What is seen of a policy on its way: nothing of it has a gradient.
pub(super) fn measure(
    fixed: &Tensor,
    entropies: &Tensor,
    sampled: &Tensor,
    tokens: &objective::Tokens<'_>,
    options: &PolicyOptions,
) -> Result<Vec<(&'static str, Part)>, TchError> {
    let (mut parts, rows) = (Vec::new(), tokens.rows);
    if let Some(reference) = tokens.reference {
        let divergence = objective::divergence(fixed, reference)?;
        parts.push(("kl", Part::Scalar(rows.mean(&divergence)?)));
    }
    parts.push(("entropy", Part::Scalar(rows.mean(&entropies.detach())?)));
    let ratio = objective::ratio(fixed, tokens, Span::Token)?;
    let [low, high] = objective::clipped(&ratio, rows, options)?;
    parts.push(("clip_low", Part::Scalar(low)));
    parts.push(("clip_high", Part::Scalar(high)));
    let [mean, most, outside] = importance::mismatch(tokens.old, sampled, rows)?;
    parts.push(("sampler_ratio", Part::Scalar(mean)));
    parts.push(("sampler_ratio_max", Part::Most(most)));
    parts.push(("sampler_ratio_outside", Part::Scalar(outside)));
    let narrow = |(name, part)| Ok((name, narrow(part)?));
    parts.into_iter().map(narrow).collect()
}

/// Numbers for the log need no more than float32, whatever was computed in.
fn narrow(part: Part) -> Result<Part, TchError> {
    Ok(match part {
        Part::Scalar(tensor) => Part::Scalar(tensor.f_to_kind(Kind::Float)?),
        Part::Most(tensor) => Part::Most(tensor.f_to_kind(Kind::Float)?),
        other => other,
    })
}

/// Numbers of the rewards themselves.
pub(super) fn of_rewards(rewarded: &Rewarded) -> Vec<(&'static str, Part)> {
    let rewards = &rewarded.rewards;
    let rows = rewards.len().max(1) as f64;
    let cut_off = rewarded.cut_off.iter().filter(|&&cut| cut).count() as f64;
    let without = advantage::without_signal(rewards, &rewarded.groups);
    let numbers = rewarded.numbers.iter().cloned();
    let (times, numbers): (Vec<_>, Vec<_>) = numbers.partition(|(name, _)| name.ends_with("_s"));
    vec![
        ("reward", Part::Number(rewards.iter().sum::<f64>() / rows)),
        ("reward_std", Part::Number(advantage::deviation(rewards))),
        ("groups_without_signal", Part::Number(without)),
        ("cut_off", Part::Number(cut_off / rows)),
        ("rollout", Part::Numbers(numbers)),
        (TIMES, Part::Numbers(times)),
    ]
}
