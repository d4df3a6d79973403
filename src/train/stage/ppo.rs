//! Proximal policy optimization: a critic says what reward is expected before every token, and a
//! token counts by how much better it came.
//!
//! Source: Schulman et al. 2017; the reference's train_ppo of 2026-08 (docs/rl.md).

use std::cell::RefCell;

use tch::{Kind, TchError, Tensor};

use super::interface::{Loss, Part, Setup, Stage};
use super::language_model::inputs;
use super::policy::{
    log_probabilities, measure, of_rewards, reference, rewards_of, softened, trainable, with_aux,
};
use crate::config::Defaults;
use crate::error::{Error, Result, TorchError};
use crate::loss::{self, Entropies, Targets};
use crate::model::device::upload;
use crate::model::{HostTensor, Model, Variable, host_f32, wide};
use crate::policy::critic::Critic;
use crate::policy::options::{PolicyOptions, PpoOptions};
use crate::policy::rows::Rows;
use crate::policy::{advantage, importance, objective};
use crate::ranks::Ranks;
use mmx_data::{Batch, Minibatch, Recipe, StageInfo, stages};

/// The stage ppo.
#[derive(Debug, Default)]
pub struct Ppo {
    ready: Option<Ready>,
}

#[derive(Debug)]
struct Ready {
    reference: Option<Model>,
    critic: Critic,
    options: PolicyOptions,
    ppo: PpoOptions,
    /// What was computed of the batch that is trained on, before its first minibatch.
    in_hand: RefCell<InHand>,
}

/// The batch in hand, row by row, and whether its passes have been ended.
#[derive(Clone, Debug, Default, PartialEq)]
struct InHand {
    rows: Vec<Row>,
    stopped: bool,
}

/// One row's tokens before the update.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    logps: Vec<f32>,
    sampled: Vec<f32>,
    reference: Vec<f32>,
    values: Vec<f32>,
    advantages: Vec<f32>,
    returns: Vec<f32>,
}

impl Row {
    /// The lists, by name.
    fn lists(&self) -> [(&'static str, &Vec<f32>); 6] {
        [
            ("logps", &self.logps),
            ("sampled", &self.sampled),
            ("reference", &self.reference),
            ("values", &self.values),
            ("advantages", &self.advantages),
            ("returns", &self.returns),
        ]
    }
}

/// What is computed of some rows' tokens before the update, `[n]` each, on the device.
#[derive(Debug)]
struct Computed {
    logps: Option<Tensor>,
    reference: Option<Tensor>,
    values: Tensor,
}

/// The rows of a batch with what the engine says of their tokens.
fn rows_of(batch: &Batch) -> Result<Vec<Row>> {
    let sampled = &rewards_of(batch)?.sampled;
    let of_row = |range: std::ops::Range<usize>| {
        let learned = range.filter(|&i| batch.mask[i] != 0.0).map(|i| sampled[i]);
        Row { sampled: learned.collect(), ..Row::default() }
    };
    Ok(batch.ranges().into_iter().map(of_row).collect())
}

/// What a checkpoint puts before the names of the critic's weights, and of what is in hand.
const CRITIC: &str = "critic.";
const IN_HAND: &str = "in_hand.";

impl Stage for Ppo {
    fn info(&self) -> &'static StageInfo {
        &stages::PPO
    }

    fn defaults(&self, _recipe: Recipe) -> Defaults {
        Defaults { epochs: 1, batch_size: 2, lr: 3e-7, accumulation: 1 }
    }

    fn prepare(&mut self, model: &mut Model, mut setup: Setup<'_>) -> Result<()> {
        let (Some(options), Some(ppo), Some(critic)) =
            (setup.config.policy.clone(), setup.config.ppo.clone(), setup.critic.take())
        else {
            return Err(Error::failed("ppo: expected its options and a critic, found none"));
        };
        let critic = Critic::new(critic, setup.config.seed)?;
        let reference = reference(model, &mut setup, options.kl_coef)?;
        let in_hand = RefCell::default();
        self.ready = Some(Ready { reference, critic, options, ppo, in_hand });
        Ok(())
    }

    fn trainable(&self, model: &Model) -> Vec<Variable> {
        trainable(model)
    }

    fn critic(&self) -> Vec<Variable> {
        self.ready.as_ref().map_or_else(Vec::new, |ready| ready.critic.variables())
    }

    fn counts_padding(&self, _model: &Model) -> bool {
        false
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        let Some(ready) = &self.ready else {
            return Err(Error::failed("ppo: expected to be made ready before its first batch"));
        };
        let minibatch = rewards_of(batch)?.minibatch.as_ref();
        if minibatch.is_none_or(|of| of.first) {
            let rows = ready.before(model, batch)?;
            ready.in_hand.replace(InHand { rows, stopped: false });
        }
        let all = Minibatch { rows: batch.rows(), first: true, ends_pass: true, left: 0 };
        ready.of_minibatch(model, batch, minibatch.unwrap_or(&all))
    }

    fn state(&self) -> Result<Vec<HostTensor>> {
        let Some(ready) = &self.ready else { return Ok(Vec::new()) };
        let mut state = ready.critic.to_host()?;
        state.iter_mut().for_each(|tensor| tensor.name.insert_str(0, CRITIC));
        state.extend(ready.in_hand.borrow().to_host());
        Ok(state)
    }

    fn restore(&self, state: &[HostTensor]) -> Result<()> {
        let Some(ready) = &self.ready else { return Ok(()) };
        for tensor in state {
            if let Some(name) = tensor.name.strip_prefix(CRITIC) {
                ready.critic.restore(name, &tensor.values)?;
            }
        }
        ready.in_hand.replace(InHand::from_host(state));
        Ok(())
    }
}

impl Ready {
    /// What both models and the critic say of a batch before its update, and the advantages: some
    /// rows at a time, as the update has them. Each of several processes computes some rows, and
    /// all learn what the others found.
    fn before(&self, model: &Model, batch: &Batch) -> Result<Vec<Row>> {
        let (rewarded, ranks) = (rewards_of(batch)?, model.ranks());
        let all: Vec<usize> = (0..batch.sequences()).collect();
        let own = rewarded.part.map_or(0..all.len(), |part| part.of(all.len()));
        let mut computed = Vec::new();
        for chunk in all[own.clone()].chunks(self.ppo.minibatch.div_ceil(ranks.size())) {
            let chunk = batch.select(chunk);
            computed.extend(tch::no_grad(|| self.computed_before(model, &chunk))?);
        }
        let mut rows = rows_of(batch)?;
        self.fill(&mut rows[own], &computed, rewarded.stale)?;
        exchange(&mut rows, ranks)?;
        let mut whole = Vec::new();
        for (row, &reward) in rows.iter_mut().zip(&rewarded.rewards) {
            let values: Vec<f64> = row.values.iter().map(|&v| f64::from(v)).collect();
            let PpoOptions { gamma, lambda, .. } = self.ppo;
            let kl_coef = if self.options.kl_in_reward { self.options.kl_coef } else { 0.0 };
            let rewards = advantage::of_tokens(reward, &row.logps, &row.reference, kl_coef);
            let (advantages, returns) = advantage::generalized(&values, &rewards, gamma, lambda);
            whole.extend(advantages);
            row.returns = returns.into_iter().map(|v| v as f32).collect();
        }
        advantage::whiten(&mut whole);
        let mut whole = whole.into_iter().map(|v| v as f32);
        for row in &mut rows {
            row.advantages = whole.by_ref().take(row.values.len()).collect();
        }
        Ok(rows)
    }

    /// What is computed of some rows' tokens, left on the device: the log-probabilities of the
    /// policy, unless it samples elsewhere, and of the reference, where there is one, and the values.
    fn computed_before(&self, model: &Model, batch: &Batch) -> Result<Option<Computed>> {
        let Some(targets) = Targets::new(batch, model.device())? else { return Ok(None) };
        let ids = inputs(model, batch)?;
        let logps = |of: &Model| {
            log_probabilities(of, &ids, batch, &targets, self.options.score_temperature)
        };
        let stale = rewards_of(batch)?.stale;
        Ok(Some(Computed {
            logps: (!stale).then(|| logps(model)).transpose()?,
            reference: self.reference.as_ref().map(logps).transpose()?,
            values: self.critic.values(&ids, batch, &targets)?,
        }))
    }

    /// Brings what was computed to the host, all at once, and into the rows it was computed of.
    fn fill(&self, rows: &mut [Row], computed: &[Computed], stale: bool) -> Result<()> {
        type Get = fn(&Computed) -> Option<&Tensor>;
        let lists: [Get; 3] =
            [|of| of.logps.as_ref(), |of| of.reference.as_ref(), |of| Some(&of.values)];
        let host = || -> Result<Vec<f32>, TchError> {
            let tensors: Vec<&Tensor> =
                lists.iter().flat_map(|get| computed.iter().filter_map(get)).collect();
            match tensors.is_empty() {
                true => Ok(Vec::new()),
                false => host_f32(&Tensor::f_cat(&tensors, 0)?),
            }
        };
        let host = host().map_err(|e| Error::torch("reading what was before", &e))?;
        let tokens: usize = rows.iter().map(|row| row.sampled.len()).sum();
        let mut host = host.into_iter();
        let mut next = |given: bool| match given {
            true => host.by_ref().take(tokens).collect(),
            false => vec![0.0; tokens],
        };
        let (logps, reference) = (next(!stale), next(self.reference.is_some()));
        let values: Vec<f32> = next(true);
        let mut start = 0;
        for row in rows {
            let range = start..start + row.sampled.len();
            let cut = |all: &[f32]| all.get(range.clone()).unwrap_or_default().to_vec();
            row.logps = if stale { row.sampled.clone() } else { cut(&logps) };
            (row.reference, row.values) = (cut(&reference), cut(&values));
            start = range.end;
        }
        Ok(())
    }

    fn of_minibatch(&self, model: &Model, batch: &Batch, minibatch: &Minibatch) -> Result<Loss> {
        let ended = self.in_hand.borrow().stopped;
        let (own, ranks) = (batch.own_rows(), model.ranks());
        let chosen = batch.share_of(&own);
        // the passes that an early stop leaves out
        let skip = |stopped: bool| match stopped && minibatch.ends_pass {
            true => minibatch.left,
            false => 0,
        };
        let device = model.device();
        let Some(targets) = Targets::new(&chosen, device)? else {
            return Ok(Loss { skip: skip(ended), ..Loss::nothing() });
        };
        let kind = wide(model.compute());
        let rows = Rows::new(&chosen, false, kind, device)?;
        let rows = rows.among(targets.count(), minibatch.rows.len());
        let known = |of: &dyn Fn(&Row) -> &Vec<f32>| -> Result<Tensor> {
            let in_hand = self.in_hand.borrow();
            let rows = own.iter().filter_map(|&i| in_hand.rows.get(i));
            let values: Vec<f32> = rows.flat_map(|row| of(row).iter().copied()).collect();
            let tensor = || upload(&Tensor::f_from_slice(&values)?.f_to_kind(kind)?, device);
            tensor().map_err(|e| Error::torch("minibatch to the device", &e))
        };
        let old = known(&|row| &row.logps)?;
        let sampled = known(&|row| &row.sampled)?;
        let of_reference = known(&|row| &row.reference)?;
        let before = known(&|row| &row.values)?;
        let advantages = known(&|row| &row.advantages)?;
        let returns = known(&|row| &row.returns)?;
        let doing = |e| Error::torch("loss of ppo", &e);

        let ids = inputs(model, &chosen)?;
        let policy = model.hidden_of(&ids, &chosen, true)?;
        let hidden = softened(&policy.hidden, self.options.score_temperature)?;
        let measured = RefCell::new((Vec::new(), None));
        let stale = rewards_of(batch)?.stale;
        let of_scores = |logps: &Tensor, entropies: &Tensor| -> Result<Tensor, TchError> {
            let fixed = logps.detach();
            let weights = match self.options.importance.filter(|_| !stale) {
                Some(by) => Some(importance::weights(&old, &sampled, &rows, by)?),
                None => None,
            };
            let tokens = objective::Tokens {
                rows: &rows,
                old: &old,
                reference: self.reference.as_ref().map(|_| &of_reference),
                advantages: &advantages,
                weights: weights.as_ref(),
                entropies: None,
                all_entropies: None,
                max_length: self.options.max_new_tokens,
            };
            let parts = measure(&fixed, entropies, &sampled, &tokens, &self.options)?;
            let moved = rows.mean(&fixed.f_sub(&old)?.f_square()?)?.f_mul_scalar(0.5)?;
            measured.replace((parts, Some(moved)));
            objective::of_policy(logps, &tokens, &self.options)
        };
        let of_scores =
            |logps: &Tensor, entropies: &Tensor| of_scores(logps, entropies).map_err(doing);
        let loss = loss::of_scores(model, &hidden, &targets, Entropies::Fixed, &of_scores)?;
        let values = self.critic.values(&ids, &chosen, &targets)?;
        let of_values =
            objective::of_values(&values, &before, &returns, &rows, &self.ppo).map_err(doing)?;

        let (measured, moved) = measured.into_inner();
        let moved = moved.map_or(Ok(0.0), |moved| moved.f_double_value(&[])).map_err(doing)?;
        let moved: f64 = ranks.sum_numbers(&[moved])?.iter().sum();
        let stopped = ended || moved > self.ppo.early_stop;
        self.in_hand.borrow_mut().stopped = stopped;

        let mut parts = vec![
            ("policy", Part::Scalar(loss.shallow_clone())),
            ("value", Part::Scalar(of_values.shallow_clone())),
        ];
        let of_policy = with_aux(loss, policy.aux, &mut parts)?;
        parts.push(("approx_kl", Part::Number(moved)));
        parts.push(("stopped", Part::Number(f64::from(u8::from(stopped)))));
        parts.extend(measured);
        parts.push(("tokens", Part::Count(chosen.trained_tokens())));
        if minibatch.first {
            parts.extend(of_rewards(rewards_of(batch)?));
        }
        let add = || -> Result<(Tensor, Tensor), TchError> {
            let of_critic = of_values.f_mul_scalar(self.ppo.value_coef)?;
            Ok((of_policy.f_add(&of_critic)?, of_critic))
        };
        let (mut total, mut of_critic) = add().map_err(doing)?;
        if stopped && !self.ppo.step_after_stop {
            return Ok(Loss { parts, skip: skip(stopped), ..Loss::nothing() });
        }
        if stopped {
            // nothing is learned, yet momentum and weight decay go on
            let zero = || Tensor::f_zeros([], (Kind::Float, device)).map_err(doing);
            (total, of_critic) = (zero()?, zero()?);
        }
        Ok(Loss {
            total: Some(total),
            critic: Some(of_critic),
            parts,
            trained_tokens: targets.count(),
            skip: skip(stopped),
        })
    }
}

/// Gives all processes what each has found of its rows, where the others' rows have nothing.
fn exchange(rows: &mut [Row], ranks: &Ranks) -> Result<()> {
    if ranks.alone() {
        return Ok(());
    }
    let found = |row: &Row| [&row.logps, &row.reference, &row.values].map(|list| list.clone());
    let all = rows.iter().flat_map(|row| {
        let padded = found(row).map(|mut list| {
            list.resize(row.sampled.len(), 0.0);
            list
        });
        padded.concat().into_iter().map(f64::from)
    });
    let all = ranks.sum_numbers(&all.collect::<Vec<_>>())?;
    let mut all = all.into_iter().map(|value| value as f32);
    for row in rows {
        let tokens = row.sampled.len();
        let mut next = || all.by_ref().take(tokens).collect();
        (row.logps, row.reference, row.values) = (next(), next(), next());
    }
    Ok(())
}

impl InHand {
    fn to_host(&self) -> Vec<HostTensor> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        let tensor = |name: &str, values: Vec<f32>| HostTensor {
            name: format!("{IN_HAND}{name}"),
            shape: vec![values.len()],
            values,
        };
        // whole numbers below 2^24: float32 holds them
        let lengths = self.rows.iter().map(|row| row.values.len() as f32).collect();
        let mut state = vec![
            tensor("lengths", lengths),
            tensor("stopped", vec![f32::from(u8::from(self.stopped))]),
        ];
        for (i, (name, _)) in Row::default().lists().into_iter().enumerate() {
            let all = self.rows.iter().flat_map(|row| row.lists()[i].1.iter().copied());
            state.push(tensor(name, all.collect()));
        }
        state
    }

    fn from_host(state: &[HostTensor]) -> Self {
        let list = |name: &str| -> &[f32] {
            let found = state.iter().find(|t| t.name.strip_prefix(IN_HAND) == Some(name));
            found.map_or(&[], |tensor| &tensor.values)
        };
        let (mut rows, mut start) = (Vec::new(), 0);
        for &length in list("lengths") {
            let end = start + length as usize;
            let cut = |name: &str| list(name).get(start..end).unwrap_or_default().to_vec();
            rows.push(Row {
                logps: cut("logps"),
                sampled: cut("sampled"),
                reference: cut("reference"),
                values: cut("values"),
                advantages: cut("advantages"),
                returns: cut("returns"),
            });
            start = end;
        }
        Self { rows, stopped: list("stopped").first().is_some_and(|&flag| flag != 0.0) }
    }
}
