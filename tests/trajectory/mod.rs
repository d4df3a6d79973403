//! What the tests of training share: golden models, batches and trajectories.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod rewards;

use std::path::Path;

use mmx_converters::error::Result;
use mmx_converters::safetensors::SafeTensors;
use mmx_data::batches::Batches;
use mmx_data::{Batch, Recipe};
use mmx_training::config::TrainConfig;
use mmx_training::model::{HostTensor, Model};
use mmx_training::stage::Stage;
use mmx_training::trainer::{MicroStep, Trainer};
use serde_json::Value;
use tch::{Device, Kind};

use crate::common::shared;

pub(crate) fn json(path: &Path) -> Value {
    let text = fs_err::read_to_string(path).expect("a fixture");
    serde_json::from_str(&text).expect("a JSON fixture")
}

/// A golden model, `golden/minimind2` say, float32 on the CPU.
pub(crate) fn model(folder: &str) -> Model {
    let open = mmx_converters::Model::open(shared(folder)).expect("a golden model");
    Model::from_model(&open, Device::Cpu, Kind::Float).expect("a golden model in tch")
}

/// Batches from a file: the same in every epoch.
pub(crate) struct Recorded {
    pub(crate) batches: Vec<Batch>,
}

impl Recorded {
    /// `I.x`, `I.y`, `I.mask` (2025), or `I.input_ids`, `I.labels` of which the model reads all ids and
    /// shifts the labels inside (2026).
    pub(crate) fn open(path: &str) -> Self {
        Self::open_at(&shared(path))
    }

    /// The same from anywhere.
    pub(crate) fn open_at(path: &Path) -> Self {
        let file = SafeTensors::open(path).expect("recorded batches");
        let read = |i: usize, name: &str| {
            file.get(&format!("{i}.{name}")).map(|view| {
                let bytes = view.data.chunks_exact(8).map(|b| b.try_into().expect("8 bytes"));
                let ids: Vec<i64> = bytes.map(i64::from_le_bytes).collect();
                (ids, view.shape.to_vec())
            })
        };
        let mut batches = Vec::new();
        for i in 0.. {
            let (x, y, mask, shape) = if let Some((x, shape)) = read(i, "x") {
                let (y, _) = read(i, "y").expect("y");
                let (mask, _) = read(i, "mask").expect("mask");
                (x, y, mask.iter().map(|&m| m as f32).collect::<Vec<f32>>(), shape)
            } else if let Some((x, shape)) = read(i, "input_ids") {
                let (labels, _) = read(i, "labels").expect("labels");
                let (mut y, mut mask) = (vec![0; x.len()], vec![0.0; x.len()]);
                for at in 0usize..x.len() {
                    let last = (at + 1).is_multiple_of(shape[1]);
                    if !last && labels[at + 1] != -100 {
                        (y[at], mask[at]) = (labels[at + 1], 1.0);
                    }
                }
                (x, y, mask, shape)
            } else {
                break;
            };
            let lines = (0..shape[0]).map(|row| (0, (i * shape[0] + row + 1) as u32)).collect();
            batches.push(Batch {
                x,
                y,
                mask,
                batch: shape[0],
                seq: shape[1],
                lines,
                ..Batch::default()
            });
        }
        assert!(!batches.is_empty(), "{}: no batches", path.display());
        Self { batches }
    }
}

impl Batches for Recorded {
    fn micro_steps(&mut self, _epoch: usize) -> usize {
        self.batches.len()
    }

    fn batch(&mut self, _epoch: usize, index: usize) -> Result<Batch> {
        Ok(self.batches[index].clone())
    }

    fn file(&self, _index: u32) -> String {
        "golden.jsonl".into()
    }
}

/// Compares a trajectory with a golden one. Learning rates, losses and their parts to 1e-5 relative,
/// norms to 1e-4: float32 sums in another order, over eight steps of training.
pub(crate) fn assert_trajectory(what: &str, found: &[MicroStep], golden: &Value) {
    let steps: Vec<Value> = found.iter().map(MicroStep::to_json).collect();
    assert_trajectory_json(what, &serde_json::json!({ "steps": steps }), golden);
}

/// The same of a trace.
pub(crate) fn assert_trajectory_json(what: &str, found: &Value, golden: &Value) {
    let steps = |of: &Value| of["steps"].as_array().expect("steps").clone();
    let (found, expected) = (steps(found), steps(golden));
    assert_eq!(found.len(), expected.len(), "{what}: micro-steps");
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        for (key, expected) in expected.as_object().expect("a step") {
            let tolerance = if key == "grad_norm" { 1e-4 } else { 1e-5 };
            let what = format!("{what}: step {i}: {key}");
            assert_close(&what, &found[key.as_str()], expected, tolerance);
        }
    }
}

fn assert_close(what: &str, found: &Value, expected: &Value, tolerance: f64) {
    match (found, expected) {
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{what}");
            for (found, expected) in found.iter().zip(expected) {
                assert_close(what, found, expected, tolerance);
            }
        }
        (Value::Number(_), Value::Number(_)) => {
            let (found, expected) = (found.as_f64().expect("f64"), expected.as_f64().expect("f64"));
            let difference = (found - expected).abs() / expected.abs().max(1e-6);
            // the margin of DPO is a difference of nearly equal numbers
            let tolerance = if what.ends_with("margin") { 1e-3 } else { tolerance };
            assert!(
                difference <= tolerance,
                "{what}: expected {expected}, found {found}: {difference:e} relative"
            );
        }
        _ => assert_eq!(found, expected, "{what}"),
    }
}

/// Final weights' sum (relative to the absolute sum where it cancels), absolute sum and L2 norm to 1e-4.
pub(crate) fn assert_final(what: &str, weights: &[HostTensor], golden: &Value) {
    let found = mmx_training::report::log::trace(serde_json::Map::new(), &[], &[], weights);
    assert_final_json(what, &found, golden);
}

/// The same of a trace.
pub(crate) fn assert_final_json(what: &str, found: &Value, golden: &Value) {
    let finals = |of: &Value| of["final"].as_object().expect("final weights").clone();
    let (found, expected) = (finals(found), finals(golden));
    assert_eq!(found.len(), expected.len(), "{what}: tensors");
    for (tensor, expected) in expected {
        let abs = expected["abs"].as_f64().expect("a number");
        for (key, scale) in [("sum", 1e-2 * abs), ("abs", 0.0), ("l2", 0.0)] {
            let number = |of: &Value| of[key].as_f64().expect("a number");
            let (found, expected) = (number(&found[&tensor]), number(&expected));
            let difference = (found - expected).abs() / expected.abs().max(scale);
            assert!(
                difference <= 1e-4,
                "{what}: {tensor} {key}: expected {expected}, found {found}: {difference:e}"
            );
        }
    }
}

/// The golden run's configuration: what its JSON says, else the reference's defaults.
pub(crate) fn config(stage: &dyn Stage, recipe: Recipe, golden: &Value) -> TrainConfig {
    TrainConfig {
        lr: golden["optimizer"]["lr"].as_f64().expect("lr"),
        weight_decay: golden["optimizer"]["weight_decay"].as_f64().expect("weight decay"),
        accumulation: golden["accumulation_steps"].as_u64().expect("accumulation") as usize,
        grad_clip: golden["grad_clip"].as_f64().expect("clip"),
        epochs: 1,
        ..TrainConfig::new(stage, recipe)
    }
}

/// All micro-steps of a run.
pub(crate) fn train(
    model: &Model,
    stage: &dyn Stage,
    config: &TrainConfig,
    data: &mut Recorded,
) -> Vec<MicroStep> {
    let mut trainer = Trainer::new(model, stage, config, data).expect("a run");
    let mut steps = Vec::new();
    while let Some(report) = trainer.advance().expect("a micro-step") {
        steps.extend(report.micro_steps);
    }
    steps
}
