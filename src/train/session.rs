//! A run from its position to its end: logs, checkpoints, validation, a clean stop, and a last
//! checkpoint when it cannot go on.
//!
//! Of several processes the first one alone writes and speaks; all of them come to the same places
//! and decide the same.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mmx_converters::safetensors::{self, TensorSpec};
use mmx_converters::tensor::Dtype;
use mmx_converters::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use tch::Tensor;

use crate::checkpoint::{self, Context};
use crate::error::{Error, Result, TorchError};
use crate::held_out::{HeldOut, Measured, VAL_LOSS, VAL_REWARD};
use crate::model::Model;
use crate::ranks::{Ranks, host_numbers};
use crate::report::log::{Metrics, Progress, trace};
use crate::report::samples::Prompts;
use crate::stage::{Part, Stage};
use crate::trainer::{MicroStep, Position, Trainer, Wish};
use mmx_converters::model::run_folder::{self, Claim};
use mmx_data::batches::Batches;

/// Time between checkpoints where no number of steps is given: the most that an interruption costs.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);

/// The places and times at which a run writes.
pub struct Session<'a> {
    /// The run's folder, if it was there and has been taken already.
    pub claim: Option<Claim>,
    /// Where checkpoints go, and with what.
    pub context: Context<'a>,
    /// Optimizer steps between checkpoints, or nothing for every ten minutes; there is always one
    /// at the end.
    pub save_every: Option<usize>,
    /// Where the trace goes.
    pub trace: Option<&'a Path>,
    /// What the model is measured with besides.
    pub held_out: Option<Box<dyn HeldOut + 'a>>,
}

/// Held-out batches: with each checkpoint their loss, and how the model continues the first of
/// them.
pub struct Validation<'a> {
    batches: &'a mut dyn Batches,
    /// Of the first process.
    prompts: Option<Prompts>,
    tokenizer: &'a Tokenizer,
}

impl<'a> Validation<'a> {
    /// The validation over batches that the tokenizer made, or this process's shares of them;
    /// `prompts` are of whole ones, and continued by the process that has them.
    pub fn new(
        batches: &'a mut dyn Batches,
        prompts: Option<Prompts>,
        tokenizer: &'a Tokenizer,
    ) -> Self {
        Self { batches, prompts, tokenizer }
    }
}

impl HeldOut for Validation<'_> {
    fn name(&self) -> &'static str {
        VAL_LOSS
    }

    fn in_words(&self) -> &'static str {
        "held-out loss"
    }

    fn measure(&mut self, stage: &dyn Stage, model: &Model, ranks: &Ranks) -> Result<Measured> {
        let value = held_out_loss(stage, model, self.batches, ranks)?;
        let samples = match &self.prompts {
            Some(prompts) => prompts.continued(model, self.tokenizer)?,
            None => Vec::new(),
        };
        Ok(Measured { value, numbers: Vec::new(), samples })
    }
}

/// The end of a run in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// Optimizer steps of this session.
    pub steps: usize,
    /// Optimizer steps of the whole run, those before a resume included.
    pub total_steps: usize,
    /// The loss of the last optimizer step of this session; none where it made none, or learned
    /// nothing in them.
    pub loss: Option<f64>,
    /// The run was complete before this session: nothing was done.
    pub nothing_left: bool,
    /// The loss of the last step that an earlier session logged.
    pub loss_before: Option<f64>,
    /// The loss of the last validation.
    pub val_loss: Option<f64>,
    /// The mean reward of the last validation.
    pub val_reward: Option<f64>,
    /// Tokens a second without padding, over the whole session.
    pub tokens_per_s: f64,
    /// Duration of this session.
    pub seconds: f64,
    /// The run was asked to stop before its end.
    pub interrupted: bool,
}

/// Runs to the end, or until `stop` is set: then the checkpoint is taken at once, in the middle of
/// an accumulation if need be; several processes, where `stop` may be set in any, end with the
/// optimizer step. What a killed run left half-written is removed first.
///
/// # Errors
/// See [`Trainer::advance`] and [`checkpoint::save`]; files that cannot be written; another process
/// that trains into the same folder. Unless it was the checkpoint that could not be written, the
/// last optimizer step is saved before the error is returned.
pub fn run(
    trainer: &mut Trainer<'_>,
    stage: &dyn Stage,
    session: &mut Session<'_>,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let dir = session.context.dir;
    let claim = match trainer.ranks().is_first() {
        true => {
            fs_err::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
            let claim = match session.claim.take() {
                Some(claim) => claim,
                None => run_folder::claim(dir)?,
            };
            checkpoint::sweep(dir)?;
            Some(claim)
        }
        false => None,
    };
    // a run at its beginning has nothing to lose
    let saved = (trainer.position(), None);
    let mut run = Run { saved, saving: false, measured: None, last_save: Instant::now() };
    let outcome = run.finish(trainer, stage, session, stop);
    if outcome.is_err() {
        run.rescue(trainer, session);
    }
    drop(claim);
    outcome
}

/// The state of a run that goes on.
struct Run {
    /// The position that is safe, and its checkpoint if this session wrote it.
    saved: (Position, Option<PathBuf>),
    /// A checkpoint is being written.
    saving: bool,
    /// Name and value of what was measured last.
    measured: Option<(&'static str, f64)>,
    last_save: Instant,
}

impl Run {
    fn finish(
        &mut self,
        trainer: &mut Trainer<'_>,
        stage: &dyn Stage,
        session: &mut Session<'_>,
        stop: &AtomicBool,
    ) -> Result<Outcome> {
        let dir = session.context.dir;
        let first = trainer.position();
        let nothing_left = first.micro_step >= trainer.plan().micro_steps;
        let (alone, writes) = (trainer.ranks().alone(), trainer.ranks().is_first());
        let mut metrics = match writes {
            true => Some(Metrics::open(dir, first.step)?),
            false => None,
        };
        let loss_before = metrics.as_ref().and_then(Metrics::last_loss);
        let start = match session.trace {
            Some(_) if writes => Some(trainer.model().to_host()?),
            _ => None,
        };
        let mut progress =
            Progress::new(trainer.plan(), trainer.position(), session.context.listener);
        let mut traced: Vec<MicroStep> = Vec::new();
        let (begun, mut tokens) = (Instant::now(), 0);
        let (mut loss, mut interrupted) = (None, false);
        if first.micro_step == 0 && session.held_out.as_ref().is_some_and(|of| of.before()) {
            self.validate(trainer, stage, session, &mut metrics, &progress)?;
        }
        loop {
            let asked = stop.load(Ordering::Relaxed);
            if alone && asked {
                interrupted = trainer.position().micro_step < trainer.plan().micro_steps;
                break;
            }
            let late = self.last_save.elapsed() >= SAVE_INTERVAL;
            trainer.wish(Wish { stop: asked, save: late && writes });
            let before = trainer.position().step;
            let Some(report) = trainer.advance()? else { break };
            tokens += report.tokens;
            if let Some(metrics) = &mut metrics {
                metrics.read(report.tokens);
            }
            if let Some(warning) = &report.warning {
                session.context.listener.warn(warning);
            }
            let step = trainer.position().step;
            if step > before
                && let Some(metrics) = &mut metrics
            {
                let summary = metrics.step(trainer.position(), &report.micro_steps)?;
                progress.step(step, &summary);
                loss = summary.loss.or(loss);
            }
            let unfinished = trainer.position().micro_step < trainer.plan().micro_steps;
            if report.agreed.stop {
                interrupted = unfinished;
                break;
            }
            if start.is_some() {
                traced.extend(report.micro_steps);
            }
            let due = step > before
                && match session.save_every {
                    Some(every) => step.is_multiple_of(every),
                    None if alone => self.last_save.elapsed() >= SAVE_INTERVAL,
                    None => report.agreed.save,
                };
            if due && unfinished {
                self.save(trainer, session)?;
                self.validate(trainer, stage, session, &mut metrics, &progress)?;
            }
        }
        if session.trace.is_some() {
            traced.extend(trainer.fetch()?);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let checkpoint = match &self.saved {
            (position, Some(path)) if *position == trainer.position() => path.clone(),
            // nothing was done: the checkpoint that was gone on from is this one, with whatever
            // lies in it
            _ if first.micro_step == trainer.position().micro_step => {
                match self.untouched(trainer, dir)? {
                    Some(path) => path,
                    None => self.save(trainer, session)?,
                }
            }
            _ => self.save(trainer, session)?,
        };
        if !interrupted {
            self.validate(trainer, stage, session, &mut metrics, &progress)?;
        }
        progress.finish();
        if let (Some(path), Some(start)) = (session.trace, start) {
            let trace = trace(head(trainer), &traced, &start, &trainer.model().to_host()?);
            let text = serde_json::to_string_pretty(&trace)
                .map_err(|e| Error::failed(format!("{}: {e}", path.display())))?;
            mmx_converters::file::write_bytes(path, text.as_bytes())?;
        }
        Ok(Outcome {
            checkpoint,
            steps: trainer.position().step - first.step,
            total_steps: trainer.position().step,
            loss,
            nothing_left,
            loss_before,
            val_loss: self.last(VAL_LOSS),
            val_reward: self.last(VAL_REWARD),
            tokens_per_s: tokens as f64 / seconds.max(1e-9),
            seconds,
            interrupted,
        })
    }

    /// The checkpoint that a run went on from which has nothing left to do, if it is there.
    fn untouched(&self, trainer: &Trainer<'_>, dir: &Path) -> Result<Option<PathBuf>> {
        let here = trainer.position().micro_step;
        let found = match trainer.ranks().is_first() {
            true => checkpoint::newest(dir)?.0,
            false => None,
        };
        let found = found.filter(|(_, state)| state.position.micro_step == here);
        let there = f64::from(u8::from(found.is_some()));
        let there = trainer.ranks().numbers_of_first(&[there])?.first() == Some(&1.0);
        Ok(there.then(|| found.map_or_else(|| checkpoint::place(dir, trainer), |(path, _)| path)))
    }

    /// All processes take part; the first one writes.
    fn save(&mut self, trainer: &Trainer<'_>, session: &Session<'_>) -> Result<PathBuf> {
        self.saving = true;
        let path = checkpoint::save(&session.context, trainer)?;
        trainer.ranks().meet("the writing of a checkpoint")?;
        self.saving = false;
        self.saved = (trainer.position(), Some(path.clone()));
        self.last_save = Instant::now();
        Ok(path)
    }

    /// What was measured last, if it has this name.
    fn last(&self, name: &str) -> Option<f64> {
        self.measured.filter(|(of, _)| *of == name).map(|(_, value)| value)
    }

    /// Measures the model with what is held out; written to the logs and shown, once per step.
    fn validate(
        &mut self,
        trainer: &Trainer<'_>,
        stage: &dyn Stage,
        session: &mut Session<'_>,
        metrics: &mut Option<Metrics>,
        progress: &Progress<'_>,
    ) -> Result<()> {
        let Some(held_out) = &mut session.held_out else { return Ok(()) };
        let (name, in_words) = (held_out.name(), held_out.in_words());
        let (model, step, ranks) = (trainer.model(), trainer.position().step, trainer.ranks());
        // the model has not changed since the session before
        let logged = metrics.as_ref().and_then(Metrics::validated).filter(|(of, _)| *of == step);
        let known = ranks.numbers_of_first(&[f64::from(u8::from(logged.is_some()))])?;
        if known.first() == Some(&1.0) {
            self.measured = logged.and_then(|(_, value)| Some((name, value?)));
            if let Some((_, value)) = self.measured {
                progress.say(&format!("step {step}  {in_words} {value:.4}, as logged before"));
            }
            return Ok(());
        }
        let measured = held_out.measure(stage, model, ranks)?;
        if let Some(metrics) = metrics {
            metrics.validation(step, name, &measured)?;
        }
        if let Some(value) = measured.value {
            progress.say(&format!("step {step}  {in_words} {value:.4}"));
        }
        measured.samples.iter().for_each(|sample| progress.say(&sample.to_line()));
        self.measured = measured.value.map(|value| (name, value)).or(self.measured);
        Ok(())
    }

    /// Saves the last optimizer step of a run that met an error: no memory, a full disk where the
    /// logs are, a loss that is not finite. Says what came of it.
    fn rescue(&mut self, trainer: &mut Trainer<'_>, session: &Session<'_>) {
        // what the disk has just refused it refuses again
        if self.saving || !trainer.rewind() || trainer.position() == self.saved.0 {
            return;
        }
        // unless all processes are here with the same error, nothing can be had of the others
        let alone = trainer.ranks().is_first() && trainer.optimizer().is_whole();
        if !alone && !trainer.failed_together() {
            return;
        }
        let step = trainer.position().step;
        match checkpoint::save(&session.context, trainer) {
            Ok(path) => session
                .context
                .listener
                .say(&format!("saved step {step} before ending: {}", path.display())),
            Err(error) => {
                session.context.listener.say(&format!("step {step} could not be saved: {error}"))
            }
        }
    }
}

/// Mean cross-entropy per learned token of all batches, without gradients; where the stage has no
/// part `ce`, the mean of its loss over rows. Of processes with shares of the batches each computes
/// its own, and all learn the mean.
///
/// # Errors
/// libtorch's; another process that fails.
pub fn held_out_loss(
    stage: &dyn Stage,
    model: &Model,
    batches: &mut dyn Batches,
    ranks: &Ranks,
) -> Result<Option<f64>> {
    let (mut values, mut weights) = (Vec::new(), Vec::new());
    for index in 0..batches.micro_steps(0) {
        let batch = batches.batch(0, index)?;
        let loss = tch::no_grad(|| stage.loss(model, &batch))?;
        let entropy = loss.parts.iter().find_map(|(name, part)| match part {
            Part::Scalar(tensor) if *name == "ce" => Some(tensor),
            _ => None,
        });
        if let Some(tensor) = entropy.or(loss.total.as_ref()) {
            values.push(tensor.shallow_clone());
            // of a share: what the mean of the whole batch counts as, of which this is a part
            let rows = batch.share.map_or(batch.batch, |whole| whole.sequences);
            weights.push(if entropy.is_some() { loss.trained_tokens } else { rows });
        }
    }
    // brought to the host at once: a device computes batch after batch meanwhile
    let values = match values.is_empty() {
        true => Ok(Vec::new()),
        false => Tensor::f_stack(&values, 0).and_then(|values| host_numbers(&values)),
    };
    let values = values.map_err(|e| Error::torch("held-out loss", &e))?;
    let sum: f64 = values.iter().zip(&weights).map(|(value, &weight)| value * weight as f64).sum();
    let count: usize = weights.iter().sum();
    let sum = ranks.sum_numbers(&[sum])?.first().copied().unwrap_or(sum);
    Ok((count > 0).then(|| sum / count as f64))
}

/// The head of a trace: the run before its steps.
fn head(trainer: &Trainer<'_>) -> Map<String, Value> {
    let config = trainer.config();
    let mut head = Map::new();
    let mut set = |key: &str, value: Value| head.insert(key.to_owned(), value);
    set("stage", json!(config.stage));
    set("kind", json!(trainer.model().config().family.name()));
    set("recipe", json!(config.recipe));
    let (options, rates) = (config.optimizer(), config.rates());
    let adamw = json!({
        "name": "AdamW",
        "lr": rates.adamw,
        "betas": [options.adamw.betas.0, options.adamw.betas.1],
        "eps": options.adamw.eps,
        "weight_decay": options.adamw.weight_decay,
    });
    let optimizer = match options.muon {
        None => adamw,
        Some(muon) => json!({
            "name": "Muon",
            "lr": rates.muon,
            "weight_decay": muon.weight_decay,
            "momentum": muon.momentum,
            "nesterov": true,
            "others": adamw,
        }),
    };
    set("optimizer", optimizer);
    let warmup = trainer.schedule().warmup;
    set("schedule", json!({ "name": config.schedule, "warmup_steps": warmup }));
    set("accumulation_steps", json!(config.accumulation));
    set("grad_clip", json!(config.grad_clip));
    head
}

/// Writes the batches of a whole run, `lengths[epoch]` each, as `I.x`, `I.y`, `I.mask`, int64.
///
/// # Errors
/// The file cannot be written.
pub fn dump_batches(path: &Path, batches: &mut dyn Batches, epochs: usize) -> Result<()> {
    let mut tensors: Vec<(TensorSpec, Vec<i64>)> = Vec::new();
    let mut number = 0;
    for epoch in 0..epochs {
        for index in 0..batches.micro_steps(epoch) {
            let batch = batches.batch(epoch, index)?;
            let shape = vec![batch.batch, batch.seq];
            let mask = batch.mask.iter().map(|&m| m as i64).collect();
            for (name, values) in [("x", batch.x), ("y", batch.y), ("mask", mask)] {
                let name = format!("{number}.{name}");
                tensors
                    .push((TensorSpec { name, dtype: Dtype::I64, shape: shape.clone() }, values));
            }
            number += 1;
        }
    }
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    safetensors::write(path, &specs, &Default::default(), |i| {
        Ok(bytemuck::cast_slice(&tensors[i].1).into())
    })?;
    Ok(())
}
