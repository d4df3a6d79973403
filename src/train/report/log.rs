//! The log of a run: progress for a listener, metrics.jsonl with its twin for TensorBoard, and the
//! trace in the golden format.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mmx_converters::progress::{self, Listener};
use mmx_converters::words::counted;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::held_out::{Measured, VAL_LOSS, VAL_REWARD};
use crate::model::HostTensor;
use crate::report::samples::Sample;
use crate::report::tensorboard::Events;
use crate::trainer::{MicroStep, Plan, Position};

/// The metrics of a run: metrics.jsonl with one object per optimizer step and one per validation,
/// and tb/ for TensorBoard.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: fs_err::File,
    events: Events,
    begun: Instant,
    tokens: usize,
    since: Instant,
    /// Step and loss or reward of the last validation.
    validated: Option<(usize, Option<f64>)>,
    /// The loss of the last step that learned something, in the log as it was opened.
    last_loss: Option<f64>,
}

impl Metrics {
    /// Opens `dir/metrics.jsonl` and `dir/tb`; of a run that is resumed after `step` optimizer
    /// steps, what is there of later ones is dropped, and a line that was cut short.
    ///
    /// # Errors
    /// The files cannot be read or written.
    pub fn open(dir: &Path, step: usize) -> Result<Self> {
        let path = dir.join("metrics.jsonl");
        // cut in place: nothing is left over by a kill, and a full disk has room for it
        let (mut kept, mut validated, mut last_loss) = (0, None, None);
        if step > 0 && path.exists() {
            let text = fs_err::read(&path).map_err(|e| Error::io(&path, e))?;
            for line in text.split_inclusive(|&byte| byte == b'\n') {
                let value: Option<Value> = serde_json::from_slice(line).ok();
                let of = value.as_ref().and_then(|v| v.get("step").and_then(Value::as_u64));
                let Some(of) = of.filter(|&n| n <= step as u64 && line.ends_with(b"\n")) else {
                    break;
                };
                kept += line.len() as u64;
                let measured = [VAL_LOSS, VAL_REWARD]
                    .into_iter()
                    .find_map(|name| value.as_ref().and_then(|line| line.get(name)));
                if let Some(measured) = measured {
                    validated = Some((of as usize, measured.as_f64()));
                }
                let loss = value.as_ref().and_then(|v| v.get("loss")).and_then(Value::as_f64);
                last_loss = loss.or(last_loss);
            }
        }
        let file = fs_err::OpenOptions::new().append(true).create(true).open(&path);
        let file = file.map_err(|e| Error::io(&path, e))?;
        file.set_len(kept).map_err(|e| Error::io(&path, e))?;
        let events = Events::open(dir, step)?;
        let now = Instant::now();
        Ok(Self { path, file, events, begun: now, tokens: 0, since: now, validated, last_loss })
    }

    /// The loss of the last step that was logged by a session before this one.
    pub fn last_loss(&self) -> Option<f64> {
        self.last_loss
    }

    /// Step and loss or reward of the last validation in the log, also of a session before this one.
    pub fn validated(&self) -> Option<(usize, Option<f64>)> {
        self.validated
    }

    /// Counts a micro-step's tokens.
    pub fn read(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// Writes the line of an optimizer step: losses are means over its micro-steps.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn step(&mut self, position: Position, micro_steps: &[MicroStep]) -> Result<Summary> {
        let seconds = self.since.elapsed().as_secs_f64();
        let summary = Summary {
            loss: mean(micro_steps.iter().filter_map(|m| m.loss)),
            lr: micro_steps.last().map_or(0.0, |m| m.lr),
            grad_norm: micro_steps.last().and_then(|m| m.grad_norm),
            tokens_per_s: self.tokens as f64 / seconds.max(1e-9),
        };
        let mut line = Map::new();
        let mut set = |key: &str, value: Value| line.insert(key.to_owned(), value);
        set("step", json!(position.step));
        set("micro_step", json!(position.micro_step));
        set("epoch", json!(position.epoch));
        set("lr", json!(summary.lr));
        set("loss", json!(summary.loss));
        let mut scalars = vec![("lr", summary.lr), ("tokens_per_s", summary.tokens_per_s)];
        scalars.extend(summary.loss.map(|loss| ("loss", loss)));
        scalars.extend(summary.grad_norm.map(|norm| ("grad_norm", norm)));
        let parts = parts_of(micro_steps);
        for (name, mean) in &parts {
            set(name, json!(mean));
            scalars.push((name.as_str(), *mean));
        }
        set("grad_norm", json!(summary.grad_norm));
        set("tokens", json!(self.tokens));
        set("tokens_per_s", json!(summary.tokens_per_s));
        set("seconds", json!(self.begun.elapsed().as_secs_f64()));
        self.write(&Value::Object(line))?;
        self.events.scalars(position.step, &scalars)?;
        self.tokens = 0;
        self.since = Instant::now();
        Ok(summary)
    }

    /// Writes the line of a validation after `step` optimizer steps.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn validation(
        &mut self,
        step: usize,
        name: &'static str,
        measured: &Measured,
    ) -> Result<()> {
        let Measured { value, numbers, samples } = measured;
        let mut line = json!({"step": step, name: value});
        let mut scalars: Vec<(&str, f64)> = value.map(|value| (name, value)).into_iter().collect();
        for (name, number) in numbers {
            line[name] = json!(number);
            scalars.push((name, *number));
        }
        if !samples.is_empty() {
            line["samples"] = samples
                .iter()
                .map(|sample| json!({"prompt": sample.prompt, "text": sample.text}))
                .collect();
            let texts: Vec<String> = samples.iter().map(Sample::to_markdown).collect();
            self.events.texts(step, "samples", &texts)?;
        }
        if !scalars.is_empty() {
            self.events.scalars(step, &scalars)?;
        }
        self.write(&line)?;
        self.validated = Some((step, *value));
        Ok(())
    }

    fn write(&self, line: &Value) -> Result<()> {
        let text = format!("{line}\n");
        (&self.file).write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

/// An optimizer step in four numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Mean loss over the micro-steps that learned something.
    pub loss: Option<f64>,
    /// Learning rate of the last micro-step.
    pub lr: f64,
    /// The gradient's norm before clipping.
    pub grad_norm: Option<f64>,
    /// Tokens read, without padding.
    pub tokens_per_s: f64,
}

/// Means over micro-steps of their parts, those of the first one that learned something first;
/// numbers within a part have names of their own.
fn parts_of(micro_steps: &[MicroStep]) -> Vec<(String, f64)> {
    let mut found: Vec<(String, f64, usize)> = Vec::new();
    let mut add = |name: &str, value: Option<f64>| {
        let Some(value) = value else { return };
        match found.iter_mut().find(|(of, ..)| of == name) {
            Some((_, sum, count)) => (*sum, *count) = (*sum + value, *count + 1),
            None => found.push((name.to_owned(), value, 1)),
        }
    };
    for (name, value) in micro_steps.iter().flat_map(|m| &m.parts) {
        match value {
            Value::Object(numbers) => {
                numbers.iter().for_each(|(name, value)| add(name, value.as_f64()));
            }
            _ => add(name, value.as_f64()),
        }
    }
    found.into_iter().map(|(name, sum, count)| (name, sum / count as f64)).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
    (count > 0).then(|| sum / count as f64)
}

/// Tells a listener how far the run is; once the run is warm, also how long it will take.
#[derive(Debug)]
pub struct Progress<'a> {
    listener: &'a dyn Listener,
    total: usize,
    /// The end of the first step, which chooses kernels and fills caches; nothing once the time is
    /// said.
    warm: Option<(usize, Instant)>,
    cold: bool,
}

impl<'a> Progress<'a> {
    /// The progress of a run of `plan`, at `position`.
    pub fn new(plan: Plan, position: Position, listener: &'a dyn Listener) -> Self {
        let (done, total) = (position.step, plan.steps);
        listener.progress(progress::Progress::Steps { done, total, message: "" });
        Self { listener, total, warm: None, cold: true }
    }

    /// Shows a step.
    pub fn step(&mut self, step: usize, summary: &Summary) {
        self.estimate(step);
        let loss = match summary.loss {
            Some(loss) => format!("loss {loss:.4}"),
            None => "no trained tokens".to_owned(),
        };
        let norm = summary.grad_norm.map_or_else(String::new, |n| format!("  norm {n:.2}"));
        let message =
            format!("{loss}{norm}  lr {:.2e}  {:.0} tokens/s", summary.lr, summary.tokens_per_s);
        let (done, total) = (step, self.total);
        self.listener.progress(progress::Progress::Steps { done, total, message: &message });
    }

    /// Says once how long the rest will take.
    fn estimate(&mut self, step: usize) {
        /// Steps that are measured, unless they take longer than the time.
        const STEPS: usize = 10;
        const TIME: Duration = Duration::from_secs(20);
        if self.cold {
            (self.cold, self.warm) = (false, Some((step, Instant::now())));
        }
        let Some((first, since)) = self.warm else { return };
        let (measured, took) = (step - first, since.elapsed());
        if measured < STEPS && (measured == 0 || took < TIME) {
            return;
        }
        self.warm = None;
        let (each, left) = (took.as_secs_f64() / measured as f64, self.total - step);
        if left > 0 {
            self.say(&format!(
                "time: about {} for the {} left, by {} of {each:.3} s",
                in_words(each * left as f64),
                counted(left, "step"),
                counted(measured, "step")
            ));
        }
    }

    /// A sentence for the user.
    pub fn say(&self, sentence: &str) {
        self.listener.say(sentence);
    }

    /// Ends the display.
    pub fn finish(&self) {
        self.listener.progress(progress::Progress::Finished);
    }
}

/// A time that one can plan with: 42 s, 12 min, 3 h 20 min, 5 d 3 h.
fn in_words(seconds: f64) -> String {
    let whole = seconds.ceil() as u64;
    let minutes = (seconds / 60.0).round() as u64;
    match whole {
        0..=119 => format!("{whole} s"),
        120..=7199 => format!("{minutes} min"),
        7200..=172_799 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => format!("{} d {} h", minutes / 1440, minutes % 1440 / 60),
    }
}

/// A trace in the golden format: `head` first, then `steps` and `final`: of every weight the sums of
/// its values, and of how far they have moved from `start`, the weights before the first step.
pub fn trace(
    head: Map<String, Value>,
    steps: &[MicroStep],
    start: &[HostTensor],
    weights: &[HostTensor],
) -> Value {
    fn sums(values: impl Iterator<Item = f64>) -> [f64; 3] {
        let add = |[sum, abs, square]: [f64; 3], v: f64| [sum + v, abs + v.abs(), square + v * v];
        let [sum, abs, square] = values.fold([0.0; 3], add);
        [sum, abs, square.sqrt()]
    }
    let sums = weights.iter().map(|tensor| {
        let values = || tensor.values.iter().map(|&v| f64::from(v));
        let [sum, abs, l2] = sums(values());
        let mut of = json!({"sum": sum, "abs": abs, "l2": l2});
        if let Some(start) = start.iter().find(|start| start.name == tensor.name) {
            let moved = values().zip(&start.values).map(|(now, &then)| now - f64::from(then));
            let names = ["moved_sum", "moved_abs", "moved_l2"];
            for (name, value) in names.into_iter().zip(sums(moved)) {
                of[name] = json!(value);
            }
        }
        (tensor.name.clone(), of)
    });
    let mut out = head;
    out.insert("steps".into(), steps.iter().map(MicroStep::to_json).collect());
    out.insert("final".into(), Value::Object(sums.collect()));
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_the_units_one_plans_with() {
        let said = [0.2, 119.0, 120.0, 3_601.0, 12_000.0, 442_800.0].map(in_words);
        assert_eq!(said, ["1 s", "119 s", "2 min", "60 min", "3 h 20 min", "5 d 3 h"]);
    }

    #[test]
    fn a_resumed_run_keeps_the_lines_up_to_its_step() {
        let dir = tempfile::tempdir().expect("a folder");
        let micro = |loss| MicroStep {
            step: 0,
            lr: 0.5,
            adam_lr: None,
            loss,
            grad_norm: Some(2.0),
            parts: vec![("ce", json!(loss))],
            trained_tokens: 1,
        };
        let mut metrics = Metrics::open(dir.path(), 0).expect("opened");
        for step in 1..=3 {
            metrics.read(7);
            let position = Position { step, ..Position::default() };
            metrics.step(position, &[micro(Some(1.0)), micro(None)]).expect("written");
            let measured = Measured { value: Some(1.5), ..Measured::default() };
            metrics.validation(step, VAL_LOSS, &measured).expect("written");
        }
        let path = dir.path().join("metrics.jsonl");
        let mut text = fs_err::read_to_string(&path).expect("a file");
        text.push_str("{\"step\": 2, \"lo"); // killed while it wrote
        fs_err::write(&path, text).expect("a file");
        let metrics = Metrics::open(dir.path(), 2).expect("opened");
        assert_eq!(metrics.validated(), Some((2, Some(1.5))));
        assert_eq!(metrics.last_loss(), Some(1.0));
        drop(metrics);
        let text = fs_err::read_to_string(&path).expect("a file");
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let steps: Vec<u64> = lines.iter().map(|l| l["step"].as_u64().expect("a step")).collect();
        assert_eq!(steps, [1, 1, 2, 2]);
        assert_eq!((&lines[0]["loss"], &lines[0]["tokens"]), (&json!(1.0), &json!(7)));
        assert_eq!(lines[1], json!({"step": 1, "val_loss": 1.5}));
    }
}
