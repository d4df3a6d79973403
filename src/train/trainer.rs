//! The one loop: learning rate, forward, loss, backward, clip, step. Stages differ in their loss
//! only.
//!
//! In: a model, a stage, a configuration, batches, and a position to begin at. Out: one [`Report`]
//! per micro-step, in which the losses of a whole accumulation arrive together with the optimizer
//! step, so that the device is waited for once per step. [`crate::session`] adds logs, checkpoints
//! and Ctrl-C.

use mmx_converters::words::counted;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::config::{OptimizerName, TrainConfig};
use crate::error::{Error, Result};
use crate::micro_step::{self, Pending};
use crate::model::Model;
use crate::optim::{Optimizer, Rates};
use crate::ranks::{Ranks, Shard, Spread};
use crate::schedule::Schedule;
use crate::stage::{Loss, Stage};
use mmx_data::Batch;
use mmx_data::batches::Batches;

pub use crate::micro_step::MicroStep;

/// A position in a run: everything before it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The epoch of the next micro-step, from 0.
    pub epoch: usize,
    /// The next micro-step's index in its epoch.
    pub index: usize,
    /// Micro-steps done.
    pub micro_step: usize,
    /// Optimizer steps done (or left out, where a gradient was not finite).
    pub step: usize,
    /// Micro-steps of the epoch that were left out: what a stage had no more use for.
    #[serde(default)]
    pub skipped: usize,
}

/// The length of a run in micro-steps and optimizer steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Batches over all epochs.
    pub micro_steps: usize,
    /// Updates of the weights.
    pub steps: usize,
}

impl Plan {
    /// `lengths`: micro-steps of each epoch.
    ///
    /// The optimizer steps when the index in the epoch, from 1, is a multiple of the accumulation;
    /// what is left at an epoch's end stays in the gradient, unless it steps there too.
    pub fn new(
        lengths: &[usize],
        accumulation: usize,
        step_at_epoch_end: bool,
        max_steps: Option<usize>,
    ) -> Self {
        let limit = max_steps.unwrap_or(usize::MAX);
        let mut plan = Self { micro_steps: 0, steps: 0 };
        for &length in lengths {
            let steps = match step_at_epoch_end {
                false => length / accumulation,
                true => length.div_ceil(accumulation),
            };
            let wanted = limit - plan.steps;
            if steps >= wanted {
                let micro_steps = (wanted * accumulation).min(length);
                return Self { micro_steps: plan.micro_steps + micro_steps, steps: limit };
            }
            plan.micro_steps += length;
            plan.steps += steps;
        }
        plan
    }
}

/// The report of one micro-step, and of all up to the optimizer step that ended with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The micro-steps whose numbers have arrived, oldest first; empty in the middle of an
    /// accumulation.
    pub micro_steps: Vec<MicroStep>,
    /// The weights changed.
    pub stepped: bool,
    /// Tokens read by the micro-step just done, without padding.
    pub tokens: usize,
    /// A sentence for the user: a batch that was left out.
    pub warning: Option<String>,
    /// What processes wished for before the optimizer step, where there are several.
    pub agreed: Wish,
}

/// What a process wants all to do after the next optimizer step. They agree on it with the step's
/// numbers, so that all do it at the same place of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// End the run.
    pub stop: bool,
    /// Save a checkpoint.
    pub save: bool,
}

/// A run in progress.
pub struct Trainer<'a> {
    model: &'a Model,
    stage: &'a dyn Stage,
    config: TrainConfig,
    batches: &'a mut dyn Batches,
    optimizer: Optimizer,
    /// Of a critic that is trained beside the model, with a learning rate of its own.
    critic: Option<Optimizer>,
    schedule: Schedule,
    plan: Plan,
    /// Micro-steps of each epoch.
    lengths: Vec<usize>,
    position: Position,
    /// The end of the last optimizer step, where a run that met an error can begin again; nothing
    /// while one is under way, and within an accumulation that was restored.
    whole: Option<Position>,
    pending: Vec<Pending>,
    spread: Spread,
    wish: Wish,
    failed_together: bool,
}

impl<'a> Trainer<'a> {
    /// A run at its beginning, in one process.
    ///
    /// # Errors
    /// See [`Trainer::among`].
    pub fn new(
        model: &'a Model,
        stage: &'a dyn Stage,
        config: &TrainConfig,
        batches: &'a mut dyn Batches,
    ) -> Result<Self> {
        Self::among(model, stage, config, batches, Spread::default())
    }

    /// A run at its beginning, among processes whose batches are shares of the same ones.
    ///
    /// # Errors
    /// A configuration that makes no run, or one without a single optimizer step; libtorch's.
    pub fn among(
        model: &'a Model,
        stage: &'a dyn Stage,
        config: &TrainConfig,
        batches: &'a mut dyn Batches,
        spread: Spread,
    ) -> Result<Self> {
        config.check()?;
        let recipe = config.recipe()?;
        let divided = spread.shard == Shard::Gradients && !spread.ranks.alone();
        if divided && config.policy.is_some() {
            // processes differ in the number of pieces in which they compute a batch
            let expected = "optimizer in a stage that learns from rewards";
            return Err(Error::setting("shard", expected, "gradients"));
        }
        let lengths: Vec<usize> = (0..config.epochs).map(|e| batches.micro_steps(e)).collect();
        let plan =
            Plan::new(&lengths, config.accumulation, config.step_at_epoch_end, config.max_steps);
        if plan.steps == 0 {
            return Err(Error::failed_with_hint(
                format!(
                    "expected at least one optimizer step, found none: {} per epoch, accumulation {}",
                    counted(lengths.first().copied().unwrap_or_default(), "micro-step"),
                    config.accumulation
                ),
                "lower `accum` or `batch_size`, or give more data",
            ));
        }
        let critic = match stage.critic() {
            variables if variables.is_empty() => None,
            variables => Some(Optimizer::new(&variables, config.optimizer())?),
        };
        let share = (config.warmup_share * plan.steps as f64).round() as usize;
        let schedule = Schedule {
            decline: config.schedule,
            recipe,
            micro_steps: plan.micro_steps,
            steps: plan.steps,
            accumulation: config.accumulation,
            warmup: if config.warmup > 0 { config.warmup } else { share },
        };
        Ok(Self {
            model,
            stage,
            config: config.clone(),
            batches,
            optimizer: Optimizer::among(
                &stage.trainable(model),
                config.optimizer(),
                spread.clone(),
            )?,
            critic,
            schedule,
            plan,
            lengths,
            position: Position::default(),
            whole: None,
            pending: Vec::new(),
            spread,
            wish: Wish::default(),
            failed_together: false,
        })
    }

    /// The processes of the run.
    pub fn ranks(&self) -> &Ranks {
        &self.spread.ranks
    }

    /// True after an error that all processes have met at the same place.
    pub fn failed_together(&self) -> bool {
        self.failed_together
    }

    /// Says what this process wants all to do after the next optimizer step.
    pub fn wish(&mut self, wish: Wish) {
        self.wish = wish;
    }

    /// Steps and micro-steps of the whole run.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// The position of the run.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The learning rates over the run.
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// The model that is trained.
    pub fn model(&self) -> &Model {
        self.model
    }

    /// The resolved configuration.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The optimizer, whose state goes into checkpoints.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// The stage.
    pub fn stage(&self) -> &dyn Stage {
        self.stage
    }

    /// The critic's optimizer, where there is a critic.
    pub fn critic(&self) -> Option<&Optimizer> {
        self.critic.as_ref()
    }

    /// The critic's optimizer, to restore its state.
    pub fn restore_critic(&mut self) -> Option<&mut Optimizer> {
        self.critic.as_mut()
    }

    /// The source of batches, whose state may go into checkpoints.
    pub fn batches(&mut self) -> &mut dyn Batches {
        self.batches
    }

    /// What the source of batches keeps for a checkpoint.
    ///
    /// # Errors
    /// See [`Batches::state`].
    pub fn batches_state(&self) -> Result<Option<String>> {
        self.batches.state()
    }

    /// Does a micro-step with a batch that nothing is learned from, to see that it fits.
    ///
    /// # Errors
    /// No memory.
    pub fn rehearse(&mut self, batch: &Batch) -> Result<()> {
        self.learn(batch, 0.0)?;
        self.discard();
        self.stage.rewound();
        Ok(())
    }

    /// Adds the gradient of a micro-step's loss times `share`, and gives the loss.
    fn learn(&mut self, batch: &Batch, share: f64) -> Result<Loss> {
        let (model, stage) = (self.model, self.stage);
        let mut first = true;
        let loss = stage.learn(model, batch, &mut |loss| {
            let further = !std::mem::take(&mut first);
            let critic = self.critic.as_mut().zip(loss.critic.as_ref());
            let policy = loss.total.as_ref().map(|total| (&mut self.optimizer, total));
            for (optimizer, of) in policy.into_iter().chain(critic) {
                optimizer.accumulate(of, share)?;
                if further {
                    optimizer.count_as_before(); // one micro-step, in parts
                }
            }
            Ok(())
        })?;
        Ok(loss.detached())
    }

    /// Drops what has been accumulated.
    fn discard(&mut self) {
        self.optimizer.discard();
        self.critic.iter_mut().for_each(Optimizer::discard);
    }

    /// The optimizer, to restore its state; the position goes with it.
    pub fn restore(&mut self, position: Position) -> &mut Optimizer {
        (self.position, self.whole) = (position, None);
        &mut self.optimizer
    }

    /// Gives all processes the weights of the first one, so that they begin with the same ones.
    ///
    /// # Errors
    /// Another process that fails.
    pub fn agree(&mut self) -> Result<()> {
        self.optimizer.agree()
    }

    /// Goes back to the end of the last optimizer step, after an error: what was accumulated since
    /// is dropped. False where that is not possible: the step itself failed halfway, or the run was
    /// resumed within this accumulation.
    pub fn rewind(&mut self) -> bool {
        let Some(whole) = self.whole else { return false };
        self.pending.clear();
        self.discard();
        self.stage.rewound();
        self.position = whole;
        true
    }

    /// Does one micro-step, and the optimizer step where it is due. Nothing when the run is over.
    ///
    /// # Errors
    /// A loss or gradient that is not finite (unless such batches are left out): the weights are
    /// then those of the step before. libtorch's.
    pub fn advance(&mut self) -> Result<Option<Report>> {
        while self.position.epoch < self.lengths.len()
            && self.position.index >= self.lengths[self.position.epoch]
        {
            self.position.epoch += 1;
            (self.position.index, self.position.skipped) = (0, 0);
        }
        if self.position.micro_step >= self.plan.micro_steps {
            return Ok(None);
        }
        self.mark();
        let Position { epoch, index, micro_step, step, skipped } = self.position;
        let batch = self.batches.batch(epoch, index)?;
        let peaks = self.config.rates();
        let rates = Rates {
            muon: self.schedule.lr(peaks.muon, micro_step, step),
            adamw: self.schedule.lr(peaks.adamw, micro_step, step),
        };
        let loss = self.learn(&batch, 1.0 / self.config.accumulation as f64)?;
        let skip = loss.skip;
        let tokens = real_tokens(&batch, i64::from(self.model.config().pad_token_id));
        let minibatch = batch.rewarded.as_ref().and_then(|of| of.minibatch.as_ref());
        let ends_batch = minibatch.map(|of| of.left == skip);
        self.pending.push(Pending {
            step: micro_step,
            rates,
            loss,
            lines: batch.lines,
            tokens,
            share: batch.share,
        });
        self.position.micro_step += 1 + skip;
        self.position.index += 1 + skip;
        self.position.skipped += skip;

        // those of all processes are known with the step
        let tokens = if self.ranks().alone() { tokens } else { 0 };
        let mut report = Report { tokens, ..Report::default() };
        let over_batches = self.config.ppo.as_ref().is_none_or(|ppo| ppo.accumulate_over_batches);
        let whole = match over_batches {
            true => (index + 1 - skipped).is_multiple_of(self.config.accumulation),
            false => self.optimizer.accumulated() >= self.config.accumulation,
        };
        let ends_epoch = self.position.index >= self.lengths[epoch];
        let due =
            whole || ends_batch == Some(true) || (self.config.step_at_epoch_end && ends_epoch);
        if due {
            self.step(rates, &mut report)?;
        } else if self.position.micro_step >= self.plan.micro_steps {
            // what is left at the end is not trained on, as the 2025 reference
            self.fetch_into(&mut report, &[])?;
        }
        self.mark();
        Ok(Some(report))
    }

    /// Remembers the position where nothing is accumulated.
    fn mark(&mut self) {
        if self.optimizer.accumulated() == 0 && self.pending.is_empty() {
            self.stage.stepped();
            self.whole = Some(self.position);
        }
    }

    /// The optimizer step: clip, update, fetch what is to be shown.
    fn step(&mut self, rates: Rates, report: &mut Report) -> Result<()> {
        self.position.step += 1;
        if self.optimizer.accumulated() == 0 {
            self.fetch_into(report, &[])?; // no token was learned: no weight changes
            return Ok(());
        }
        self.optimizer.reduce()?;
        let mut norms = vec![self.optimizer.gradient_norm()?];
        norms.extend(self.critic.as_ref().map(Optimizer::gradient_norm).transpose()?);
        let lines: Vec<Vec<(u32, u32)>> = self.pending.iter().map(|p| p.lines.clone()).collect();
        let norms = self.fetch_into(report, &norms)?;
        let (norm, of_critic) = (norms.first().copied().unwrap_or(f64::NAN), norms.get(1).copied());
        let worst = of_critic.filter(|norm| !norm.is_finite()).unwrap_or(norm);
        if let Some(fault) = self.non_finite(worst, &report.micro_steps, &lines)? {
            self.discard();
            if !self.config.skip_non_finite {
                self.failed_together = true;
                return Err(Error::failed_with_hint(
                    fault,
                    "the last checkpoint is from before it; lower `lr`, look at these lines, or leave \
                     such batches out with `non_finite` skip",
                ));
            }
            report.warning = Some(format!("{fault}: left out"));
            return Ok(());
        }
        self.whole = None;
        self.optimizer.step(rates, norm, self.config.grad_clip)?;
        report.stepped = true;
        if let Some(last) = report.micro_steps.last_mut() {
            last.grad_norm = Some(norm);
        }
        if let (Some(critic), Some(norm), Some(ppo)) =
            (&mut self.critic, of_critic, &self.config.ppo)
        {
            // the step that is under way has been counted
            let position = (self.position.micro_step - 1, self.position.step - 1);
            let lr = self.schedule.lr(ppo.critic_lr, position.0, position.1);
            critic.step(Rates { muon: lr, adamw: lr }, norm, self.config.grad_clip)?;
            if let Some(last) = report.micro_steps.last_mut() {
                last.parts.push(("critic_lr", serde_json::json!(lr)));
                last.parts.push(("critic_grad_norm", serde_json::json!(norm)));
            }
        }
        Ok(())
    }

    /// The error of a loss or gradient that is not finite, with the lines it was computed from.
    fn non_finite(
        &self,
        norm: f64,
        micro_steps: &[MicroStep],
        lines: &[Vec<(u32, u32)>],
    ) -> Result<Option<String>> {
        let bad = micro_steps.iter().position(|m| m.loss.is_some_and(|loss| !loss.is_finite()));
        let (what, lines) = match bad {
            Some(i) => {
                let loss = micro_steps[i].loss.unwrap_or(f64::NAN);
                (format!("the loss of micro-step {} is {loss}", micro_steps[i].step), &lines[i..=i])
            }
            None if !norm.is_finite() => (format!("the gradient's norm is {norm}"), lines),
            None => return Ok(None),
        };
        /// Places in one message.
        const SHOWN: usize = 32;
        let own: Vec<(u32, u32)> = lines.iter().flatten().copied().collect();
        let mut all = self.ranks().lists(&own[..own.len().min(SHOWN + 1)], SHOWN + 1)?;
        let more = if all.len() > SHOWN { ", ..." } else { "" };
        all.truncate(SHOWN);
        let places: Vec<String> =
            all.iter().map(|&(file, line)| format!("{}:{line}", self.batches.file(file))).collect();
        Ok(Some(format!(
            "step {}: {what}; its batch is {}{more}",
            self.position.step,
            places.join(", ")
        )))
    }

    /// Fetches the numbers of the micro-steps since the last fetch.
    ///
    /// # Errors
    /// libtorch's; another process that fails.
    pub fn fetch(&mut self) -> Result<Vec<MicroStep>> {
        let mut report = Report::default();
        self.fetch_into(&mut report, &[])?;
        Ok(report.micro_steps)
    }

    /// Puts the numbers of the micro-steps since the last fetch, of all processes, into a report;
    /// they come to the host at once, with the gradients' norms, which are returned.
    fn fetch_into(&mut self, report: &mut Report, norms: &[Tensor]) -> Result<Vec<f64>> {
        let pending = std::mem::take(&mut self.pending);
        let flags = [self.wish.stop, self.wish.save];
        let mut fetched = micro_step::fetch(&pending, &flags, norms, self.ranks())?;
        if self.config.optimizer == OptimizerName::AdamW {
            fetched.micro_steps.iter_mut().for_each(|micro| micro.adam_lr = None);
        }
        report.micro_steps = fetched.micro_steps;
        if !self.ranks().alone() {
            report.tokens = fetched.tokens;
            report.agreed = Wish { stop: fetched.flags[0], save: fetched.flags[1] };
        }
        Ok(fetched.norms)
    }
}

/// Tokens of a batch without the padding at the rows' ends.
fn real_tokens(batch: &Batch, pad: i64) -> usize {
    let minibatch = batch.rewarded.as_ref().and_then(|of| of.minibatch.as_ref());
    if let (Some(minibatch), false) = (minibatch, batch.packed.is_empty()) {
        return minibatch.rows.iter().filter_map(|&row| batch.packed.get(row)).sum();
    }
    (0..batch.batch)
        .map(|row| {
            let row = row * batch.seq..(row + 1) * batch.seq;
            let real = |i: usize| batch.x[i] != pad || batch.mask[i] != 0.0;
            row.clone().rev().find(|&i| real(i)).map_or(0, |last| last + 1 - row.start)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_counts_the_steps_at_the_ends_of_epochs() {
        let plan = |lengths: &[usize], tail, max| Plan::new(lengths, 2, tail, max);
        let expect = |micro_steps, steps| Plan { micro_steps, steps };
        assert_eq!(plan(&[7], false, None), expect(7, 3));
        assert_eq!(plan(&[7], true, None), expect(7, 4));
        assert_eq!(plan(&[7, 7], true, None), expect(14, 8));
        assert_eq!(plan(&[7, 7], true, Some(5)), expect(9, 5));
        assert_eq!(plan(&[7, 7], true, Some(4)), expect(7, 4));
        assert_eq!(plan(&[7, 7], false, Some(4)), expect(9, 4));
        assert_eq!(plan(&[1], false, None), expect(1, 0));
    }

    #[test]
    fn padding_is_not_counted_but_a_pad_token_within_the_text_is() {
        let batch = Batch {
            x: vec![5, 0, 6, 0, 7, 0, 0, 0],
            mask: vec![1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0],
            batch: 2,
            seq: 4,
            ..Batch::default()
        };
        assert_eq!(real_tokens(&batch, 0), 3 + 2);
    }
}
