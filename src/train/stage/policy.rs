//! The stages grpo, cispo and agent: what a policy sampled is made more or less likely, by how its
//! reward compares with those of its group.
//!
//! Source: Shao et al. 2024 (GRPO), MiniMax-M1 2025 (CISPO); the reference's train_grpo and
//! train_agent of 2026-08 (docs/rl.md).

use std::cell::RefCell;

use tch::{Kind, TchError, Tensor};

use super::interface::{Loss, Part, Setup, Stage, TIMES};
use super::language_model::inputs;
use super::lora::attach;
use crate::config::Defaults;
use crate::error::{Error, Result, TorchError};
use crate::loss::{self, Targets};
use crate::model::{Model, Variable, wide};
use crate::policy::options::{PolicyOptions, Span};
use crate::policy::rows::Rows;
use crate::policy::{advantage, importance, objective};
use mmx_data::{Batch, Recipe, Rewarded, StageInfo};

/// A stage whose rewards are compared within groups.
#[derive(Debug)]
pub struct Policy {
    info: &'static StageInfo,
    ready: Option<Ready>,
}

#[derive(Debug)]
struct Ready {
    reference: Option<Model>,
    options: PolicyOptions,
}

impl Policy {
    /// The stage of a row of the list.
    pub fn new(info: &'static StageInfo) -> Self {
        Self { info, ready: None }
    }
}

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
        self.ready = Some(Ready { reference, options });
        Ok(())
    }

    fn trainable(&self, model: &Model) -> Vec<Variable> {
        trainable(model)
    }

    fn counts_padding(&self, _model: &Model) -> bool {
        false
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        let Some(Ready { reference, options }) = &self.ready else {
            return Err(Error::failed("expected a stage that is ready before its first batch"));
        };
        let rewarded = rewards_of(batch)?;
        let Some(targets) = Targets::new(batch, model.device())? else {
            return Ok(Loss::nothing());
        };
        let kind = wide(model.compute());
        let rows = Rows::new(batch, options.leave_out_empty, kind, model.device())?;
        let ids = inputs(model, batch)?;
        let at = options.score_temperature;
        let of_reference = match reference {
            Some(reference) => {
                Some(tch::no_grad(|| log_probabilities(reference, &ids, batch, &targets, at))?)
            }
            None => None,
        };
        let advantages = advantage::of_groups(&rewarded.rewards, &rewarded.groups, options.scale);
        let host = || -> Result<(Tensor, Tensor), TchError> {
            let sampled = rows.of_positions(batch, &rewarded.sampled)?;
            Ok((rows.spread_host(&advantages)?, sampled))
        };
        let (advantages, sampled) =
            host().map_err(|e| Error::torch("rewards to the device", &e))?;
        let policy = model.hidden_of(&ids, batch, true)?;
        let hidden = softened(&policy.hidden, at)?;
        let measured = RefCell::new(Vec::new());
        let with_entropies = true;
        let loss =
            loss::of_scores(model, &hidden, &targets, with_entropies, &|logps, entropies| {
                let fixed = logps.detach();
                let old =
                    if rewarded.stale { sampled.shallow_clone() } else { fixed.shallow_clone() };
                let weights = match options.importance.filter(|_| !rewarded.stale) {
                    Some(by) => Some(importance::weights(&old, &sampled, &rows, by)?),
                    None => None,
                };
                let tokens = objective::Tokens {
                    rows: &rows,
                    old: &old,
                    reference: of_reference.as_ref(),
                    advantages: &advantages,
                    weights: weights.as_ref(),
                    entropies: Some(entropies),
                    max_length: options.max_new_tokens,
                };
                measured.replace(measure(&fixed, entropies, &sampled, &tokens, options)?);
                objective::of_groups(logps, &fixed, &tokens, options)
            })?;
        let mut parts = vec![("policy", Part::Scalar(loss.shallow_clone()))];
        let total = with_aux(loss, policy.aux, &mut parts)?;
        parts.extend(measured.into_inner());
        parts.push(("tokens", Part::Count(targets.count())));
        parts.extend(of_rewards(rewarded));
        Ok(Loss { total: Some(total), parts, trained_tokens: targets.count(), ..Loss::nothing() })
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
    loss::log_probabilities(model, &hidden, targets)
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
    let mut parts = Vec::new();
    if let Some(reference) = tokens.reference {
        let divergence = objective::divergence(fixed, reference)?;
        parts.push(("kl", Part::Scalar(divergence.f_mean(divergence.kind())?)));
    }
    let entropies = entropies.detach();
    parts.push(("entropy", Part::Scalar(entropies.f_mean(entropies.kind())?)));
    let ratio = objective::ratio(fixed, tokens, Span::Token)?;
    let [low, high] = objective::clipped(&ratio, options)?;
    parts.push(("clip_low", Part::Scalar(low)));
    parts.push(("clip_high", Part::Scalar(high)));
    let [mean, most, outside] = importance::mismatch(tokens.old, sampled)?;
    parts.push(("sampler_ratio", Part::Scalar(mean)));
    parts.push(("sampler_ratio_max", Part::Scalar(most)));
    parts.push(("sampler_ratio_outside", Part::Scalar(outside)));
    Ok(parts.into_iter().map(|(name, part)| (name, narrow(part))).collect())
}

/// Numbers for the log need no more than float32, whatever was computed in.
fn narrow(part: Part) -> Part {
    match part {
        Part::Scalar(tensor) => match tensor.f_to_kind(Kind::Float) {
            Ok(tensor) => Part::Scalar(tensor),
            Err(_) => Part::Scalar(tensor),
        },
        other => other,
    }
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
