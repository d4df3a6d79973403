//! A run from its position to its end: logs, checkpoints, validation, and a clean stop.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mmx_converters::safetensors::{self, TensorSpec};
use mmx_converters::tensor::Dtype;
use serde_json::{Map, Value, json};

use super::batches::Batches;
use super::log::{Metrics, Progress, trace};
use super::{MicroStep, Trainer};
use crate::checkpoint::{self, Context};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::stage::{Part, Stage};

/// Between checkpoints where no number of steps is given: what an interruption may cost.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);

/// What a run writes, and when.
pub struct Session<'a> {
    /// Where checkpoints go, and with what.
    pub context: Context<'a>,
    /// Optimizer steps between checkpoints, or nothing for every ten minutes; there is always one at
    /// the end.
    pub save_every: Option<usize>,
    /// Where the trace goes.
    pub trace: Option<&'a Path>,
    /// Held-out batches: their loss is computed with each checkpoint.
    pub validation: Option<&'a mut dyn Batches>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// Optimizer steps, those before a resume included.
    pub steps: usize,
    /// Of the last optimizer step.
    pub loss: Option<f64>,
    /// Of the last validation.
    pub val_loss: Option<f64>,
    /// Without padding, over the whole session.
    pub tokens_per_s: f64,
    /// Of this session.
    pub seconds: f64,
    /// It was asked to stop before its end.
    pub interrupted: bool,
}

/// Runs to the end, or until `stop` is set: then the checkpoint is taken at once, in the middle of an
/// accumulation if need be.
///
/// # Errors
/// See [`Trainer::advance`] and [`checkpoint::save`]; files that cannot be written.
pub fn run(
    trainer: &mut Trainer<'_>,
    stage: &dyn Stage,
    session: &mut Session<'_>,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let dir = session.context.dir;
    fs_err::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let mut metrics = Metrics::open(dir, trainer.position().step)?;
    let mut progress = Progress::new(trainer.plan(), trainer.position());
    let mut traced: Vec<MicroStep> = Vec::new();
    let (begun, mut tokens) = (Instant::now(), 0);
    let (mut loss, mut val_loss, mut saved) = (None, None, None);
    let (mut interrupted, mut last_save) = (false, Instant::now());
    loop {
        if stop.load(Ordering::Relaxed) {
            interrupted = trainer.position().micro_step < trainer.plan().micro_steps;
            break;
        }
        let before = trainer.position().step;
        let Some(report) = trainer.advance()? else { break };
        tokens += report.tokens;
        metrics.read(report.tokens);
        if let Some(warning) = &report.warning {
            progress.say(&format!("warning: {warning}"));
        }
        let step = trainer.position().step;
        if step > before {
            let summary = metrics.step(trainer.position(), &report.micro_steps)?;
            progress.step(step, &summary);
            loss = summary.loss.or(loss);
        }
        if session.trace.is_some() {
            traced.extend(report.micro_steps);
        }
        let due = step > before
            && match session.save_every {
                Some(every) => step.is_multiple_of(every),
                None => last_save.elapsed() >= SAVE_INTERVAL,
            };
        if due && trainer.position().micro_step < trainer.plan().micro_steps {
            val_loss = validate(session, stage, trainer.model(), &metrics, &progress, step)?;
            saved = Some((trainer.position(), checkpoint::save(&session.context, trainer)?));
            last_save = Instant::now();
        }
    }
    if session.trace.is_some() {
        traced.extend(trainer.fetch()?);
    }
    let seconds = begun.elapsed().as_secs_f64();
    if !interrupted {
        let step = trainer.position().step;
        val_loss =
            validate(session, stage, trainer.model(), &metrics, &progress, step)?.or(val_loss);
    }
    let checkpoint = match saved {
        Some((position, path)) if position == trainer.position() => path,
        _ => checkpoint::save(&session.context, trainer)?,
    };
    progress.finish();
    if let Some(path) = session.trace {
        let trace = trace(head(trainer), &traced, &trainer.model().to_host()?);
        let text = serde_json::to_string_pretty(&trace)
            .map_err(|e| Error::failed(format!("{}: {e}", path.display())))?;
        mmx_converters::file::write_bytes(path, text.as_bytes())?;
    }
    Ok(Outcome {
        checkpoint,
        steps: trainer.position().step,
        loss,
        val_loss,
        tokens_per_s: tokens as f64 / seconds.max(1e-9),
        seconds,
        interrupted,
    })
}

/// The loss of the held-out batches, written to metrics.jsonl and shown.
fn validate(
    session: &mut Session<'_>,
    stage: &dyn Stage,
    model: &Model,
    metrics: &Metrics,
    progress: &Progress,
    step: usize,
) -> Result<Option<f64>> {
    let Some(batches) = session.validation.as_deref_mut() else { return Ok(None) };
    let Some(loss) = held_out_loss(stage, model, batches)? else { return Ok(None) };
    metrics.write(&json!({"step": step, "val_loss": loss}))?;
    progress.say(&format!("step {step}  held-out loss {loss:.4}"));
    Ok(Some(loss))
}

/// Mean cross-entropy per learned token of all batches, without gradients; where the stage has no part
/// `ce`, the mean of its loss over rows.
///
/// # Errors
/// libtorch's.
pub fn held_out_loss(
    stage: &dyn Stage,
    model: &Model,
    batches: &mut dyn Batches,
) -> Result<Option<f64>> {
    let (mut sum, mut count) = (0.0, 0usize);
    for index in 0..batches.micro_steps(0) {
        let batch = batches.batch(0, index);
        let loss = tch::no_grad(|| stage.loss(model, &batch))?;
        let entropy = loss.parts.iter().find_map(|(name, part)| match part {
            Part::Scalar(tensor) if *name == "ce" => Some(tensor),
            _ => None,
        });
        if let Some(tensor) = entropy.or(loss.total.as_ref()) {
            let value =
                tensor.f_double_value(&[]).map_err(|e| Error::torch("held-out loss", &e))?;
            let weight = if entropy.is_some() { loss.trained_tokens } else { batch.batch };
            sum += value * weight as f64;
            count += weight;
        }
    }
    Ok((count > 0).then(|| sum / count as f64))
}

/// What a trace says about the run before its steps.
fn head(trainer: &Trainer<'_>) -> Map<String, Value> {
    let config = trainer.config();
    let mut head = Map::new();
    let mut set = |key: &str, value: Value| head.insert(key.to_owned(), value);
    set("stage", json!(config.stage));
    set("kind", json!(trainer.model().config().family.name()));
    set("recipe", json!(config.recipe));
    set(
        "optimizer",
        json!({
            "name": "AdamW",
            "lr": config.lr,
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "weight_decay": config.weight_decay,
        }),
    );
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
            let batch = batches.batch(epoch, index);
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
