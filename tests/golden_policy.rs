//! The ladder's rung "batches to loss, gradient norm and final weights" of the stages that learn from
//! rewards: the reference's trajectories over given rollouts, float32 on CPU.

mod common;
mod trajectory;

use std::path::Path;

use common::shared;
use mmx_converters::error::Result;
use mmx_converters::safetensors::SafeTensors;
use mmx_data::batches::Batches;
use mmx_data::{Batch, Minibatch, Recipe};
use mmx_rollout::{Finish, Rollout};
use mmx_training::config::{Decline, TrainConfig};
use mmx_training::loss::{Entropies, Targets, log_probabilities};
use mmx_training::model::{HostTensor, Model};
use mmx_training::policy::advantage::Tracker;
use mmx_training::policy::layout::Layout;
use mmx_training::policy::source::{Origin, Source};
use mmx_training::schedule::Schedule;
use mmx_training::stage::{self, Setup, Stage};
use mmx_training::trainer::{MicroStep, Trainer};
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};
use trajectory::{config, json, model};

/// The largest distances of a second, padding-free computation of the reference from its own are 1.2e-5
/// (loss), 5e-5 (gradient's norm), 2e-4 (log-probabilities), 5e-5 (how far weights moved): these are a
/// few times as much.
const LOSS: f64 = 5e-5;
const NORM: f64 = 2e-4;
const LOGPS: f64 = 5e-4;
const MOVED: f64 = 1e-3;

/// A golden run: its JSON and its tensors.
struct Golden {
    name: &'static str,
    run: Value,
    tensors: SafeTensors,
}

impl Golden {
    fn open(name: &'static str) -> Self {
        let at = |extension: &str| shared(&format!("golden-rl/{name}.{extension}"));
        let tensors = SafeTensors::open(at("safetensors")).expect("golden tensors");
        Self { name, run: json(&at("json")), tensors }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no {name}", self.name)).to_f32()
    }

    fn whole(&self, name: &str) -> (Vec<i64>, Vec<usize>) {
        let view = self.tensors.get(name).unwrap_or_else(|| panic!("{}: no {name}", self.name));
        let bytes = view.data.chunks_exact(8).map(|b| b.try_into().expect("8 bytes"));
        (bytes.map(i64::from_le_bytes).collect(), view.shape.to_vec())
    }

    fn steps(&self) -> Vec<Value> {
        self.run["steps"].as_array().expect("steps").clone()
    }

    fn number(&self, key: &str) -> f64 {
        self.run[key].as_f64().unwrap_or_else(|| panic!("{}: no {key}", self.name))
    }

    /// The rollouts of batch `i`, from its tensors; `group_size` rows compare with each other.
    fn rollouts(&self, i: usize, group_size: usize) -> Vec<Rollout> {
        let (ids, shape) = self.whole(&format!("{i}.input_ids"));
        let (ends, _) = self.whole(&format!("{i}.prompt_end"));
        let (pads, _) = self.whole(&format!("{i}.left_pad"));
        let (mask, _) = self.whole(&format!("{i}.loss_mask"));
        // without a ratio there are none: the policy's own
        let old = format!("{i}.old_logps");
        let old = if self.tensors.get(&old).is_some() { old } else { format!("{i}.logps") };
        let old = self.floats(&old);
        let rewards = self.floats(&format!("{i}.rewards"));
        let width = mask.len() / shape[0];
        let row = |row: usize| {
            let all = &ids[row * shape[1]..(row + 1) * shape[1]];
            let (start, end) = (pads[row] as usize, ends[row] as usize);
            let of_row = row * width..(row + 1) * width;
            let length = mask[of_row.clone()].iter().filter(|&&m| m != 0).count();
            let ids = |from: &[i64]| from.iter().map(|&id| id as u32).collect::<Vec<u32>>();
            let answer = ids(&all[end..end + length]);
            Rollout {
                step: i as u64,
                group: (row / group_size) as u64,
                sample: row as u64,
                prompt: ids(&all[start..end]),
                sampled: vec![true; length],
                logps: old[of_row][..length].to_vec(),
                finish: if answer.last() == Some(&2) { Finish::Stop } else { Finish::Length },
                ids: answer,
                parts: Vec::new(),
                reward: f64::from(rewards[row]),
            }
        };
        (0..shape[0]).map(row).collect()
    }

    /// The trajectories of an agent's batch `i`.
    fn trajectories(&self, i: usize, group_size: usize) -> Vec<Rollout> {
        let of = &self.run["trajectories"][i];
        let ids = |key: &str, row: usize| -> Vec<u32> {
            serde_json::from_value(of[key][row].clone()).expect("ids")
        };
        let rewards: Vec<f64> = serde_json::from_value(of["rewards"].clone()).expect("rewards");
        let row = |(row, &reward): (usize, &f64)| Rollout {
            step: i as u64,
            group: (row / group_size) as u64,
            sample: row as u64,
            prompt: ids("prompt_ids", row),
            ids: ids("response_ids", row),
            sampled: ids("action_mask", row).iter().map(|&m| m == 1).collect(),
            logps: serde_json::from_value(of["old_logps"][row].clone()).expect("numbers"),
            finish: Finish::Stop,
            parts: Vec::new(),
            reward,
        };
        rewards.iter().enumerate().map(row).collect()
    }

    /// The configuration of the run, over the reference's.
    fn config(&self, stage: &dyn Stage) -> TrainConfig {
        let mut config = config(stage, Recipe::R2026, &self.run);
        let options = config.policy.as_mut().expect("options");
        if let Some(beta) = self.run["beta"].as_f64() {
            assert_eq!(options.kl_coef, beta, "{}: the default", self.name);
            assert_eq!(options.epsilon, self.number("epsilon"), "{}: the default", self.name);
        }
        config
    }

    fn start(&self) -> Model {
        model(&format!("golden-2026/{}", self.run["kind"].as_str().expect("a kind")))
    }

    /// The policy that the run is held to.
    fn reference(&self) -> Model {
        let file = self.run["reference"].as_str().expect("a reference");
        let kind = self.run["kind"].as_str().expect("a kind");
        let open = mmx_converters::Model::open(shared(&format!("golden-2026/{kind}")));
        let open = open.expect("a golden model");
        let weights = SafeTensors::open(shared(&format!("golden-2026/{file}"))).expect("weights");
        let names: Vec<&str> = weights.names().collect();
        let of = |name: &str| weights.get(name);
        Model::load(&open.config, Path::new(file), names, of, Device::Cpu, Kind::Float)
            .expect("a reference")
    }

    fn layout(&self, max_seq_len: usize) -> Layout {
        let filled = self.run["kind"] == "minimind3-moe";
        Layout { max_seq_len, filler: filled.then_some(2), mask_cut_off: false }
    }

    fn assert_near(&self, what: &str, found: f64, expected: f64, tolerance: f64) {
        assert!(
            (found - expected).abs() <= tolerance,
            "{}: {what}: expected {expected}, found {found}: off by {:e}",
            self.name,
            (found - expected).abs()
        );
    }

    /// Sums of the final weights, and of how far they moved.
    fn assert_final(&self, key: &str, start: &[HostTensor], found: &[HostTensor]) {
        let found = mmx_training::report::log::trace(Map::new(), &[], start, found);
        let (found, expected) =
            (found["final"].as_object().expect("sums"), self.run[key].as_object().expect("sums"));
        assert_eq!(found.len(), expected.len(), "{}: tensors", self.name);
        for (tensor, expected) in expected {
            let number = |of: &Value, key: &str| of[key].as_f64().expect("a number");
            let (abs, moved) = (number(expected, "abs"), number(expected, "moved_abs"));
            // the only expert of a token weighs 1 whatever the router says: without a balancing loss a
            // router's gradient is rounding, which Adam makes steps of; with one it moves 75 times as far
            let rounding = key == "critic_final" && tensor.ends_with("mlp.gate.weight");
            // sums cancel: they are compared with the sums of sizes
            for (key, scale) in [
                ("sum", abs),
                ("abs", abs),
                ("l2", number(expected, "l2")),
                ("moved_sum", moved),
                ("moved_abs", moved),
                ("moved_l2", number(expected, "moved_l2")),
            ] {
                let what = format!("{tensor} {key}");
                let found = number(&found[tensor], key);
                let allowed = if rounding && key.starts_with("moved") { 1.0 } else { MOVED };
                self.assert_near(&what, found, number(expected, key), allowed * scale);
            }
        }
    }

    /// The numbers of one micro-step.
    fn assert_step(&self, i: usize, found: &MicroStep, expected: &Value, scale: f64) {
        let found = found.to_json();
        for (key, expected) in expected.as_object().expect("a step") {
            let Some(expected) = expected.as_f64() else { continue };
            let (ours, tolerance) = match key.as_str() {
                "loss" => ("loss", LOSS),
                "policy" | "value" | "aux" | "approx_kl" | "kl" => (key.as_str(), LOSS),
                "kl_ref" => ("kl", LOSS),
                "tokens" => ("tokens", 0.0),
                "lr" | "critic_lr" => (key.as_str(), 1e-12),
                "grad_norm" | "critic_grad_norm" => (key.as_str(), NORM * expected.max(1e-3)),
                _ => continue,
            };
            let what = format!("step {i}: {key}");
            let number = found[ours].as_f64();
            let number = number.unwrap_or_else(|| panic!("{}: {what}: none", self.name));
            let number = if key == "loss" { number * scale } else { number };
            self.assert_near(&what, number, expected, tolerance);
        }
    }
}

/// Log-probabilities of a batch's learned targets.
fn logps(model: &Model, batch: &Batch) -> Vec<f32> {
    tch::no_grad(|| {
        let shape = [batch.batch as i64, batch.seq as i64];
        let ids = Tensor::from_slice(&batch.x).view(shape);
        let targets = Targets::new(batch, Device::Cpu).expect("targets").expect("some are learned");
        let hidden = model.hidden_of(&ids, batch, false).expect("hidden").hidden;
        let found = log_probabilities(model, &hidden, &targets, Entropies::Fixed);
        Vec::<f32>::try_from(&found.expect("numbers")).expect("numbers")
    })
}

/// A trajectory of the stages whose rewards are compared within groups.
fn assert_groups(name: &'static str, stage_name: &str, agent: bool) {
    let golden = Golden::open(name);
    let size = golden.number("num_generations") as usize;
    let steps = golden.steps();
    let rounds: Vec<Vec<Rollout>> = (0..steps.len())
        .map(|i| if agent { golden.trajectories(i, size) } else { golden.rollouts(i, size) })
        .collect();
    let mut stage = stage::by_name(stage_name).expect("a stage");
    let mut config = golden.config(stage.as_ref());
    if agent {
        config.max_seq_len = golden.number("max_total_len") as usize;
    }
    if agent && golden.run["loss_type"] == "grpo" {
        config.policy.as_mut().expect("options").choose("grpo").expect("a loss");
    }
    let mut model = golden.start();
    let start = model.to_host().expect("weights");
    let setup = Setup { frozen: Some(golden.reference()), ..Setup::new(&config) };
    stage.prepare(&mut model, setup).expect("made ready");
    let layout = golden.layout(config.max_seq_len);
    let batches: Vec<Batch> = rounds.iter().map(|round| layout.batch(round, true)).collect();
    let mut source = Source::new(Origin::File(rounds), layout, None, 1, name.into());
    let mut trainer = Trainer::new(&model, stage.as_ref(), &config, &mut source).expect("a run");
    assert_eq!(trainer.plan().steps as u64, golden.run["schedule"]["optimizer_steps"], "{name}");
    let (mut found, mut done) = (Vec::new(), 0);
    for batch in &batches {
        let (all, shape) = golden.whole(&format!("{done}.loss_mask"));
        let expected = golden.floats(&format!("{done}.logps"));
        assert_eq!(all.len(), expected.len(), "{name}: {shape:?}");
        let expected = all.iter().zip(&expected).filter(|(m, _)| **m != 0).map(|(_, &logp)| logp);
        let ours = logps(&model, batch);
        assert_eq!(ours.len(), expected.clone().count(), "{name}: step {done}: learned tokens");
        for (ours, expected) in ours.iter().zip(expected) {
            let what = format!("step {done}: a log-probability");
            golden.assert_near(&what, f64::from(*ours), f64::from(expected), LOGPS);
        }
        found.extend(trainer.advance().expect("a micro-step").expect("a report").micro_steps);
        done += 1;
    }
    assert!(trainer.advance().expect("the end").is_none(), "{name}: more than the golden run");
    assert_eq!(found.len(), steps.len(), "{name}");
    for (i, (found, expected)) in found.iter().zip(&steps).enumerate() {
        golden.assert_step(i, found, expected, 1.0);
    }
    golden.assert_final("final", &start, &model.to_host().expect("weights"));
}

#[test]
fn grpo_follows_the_reference_over_padding_cut_off_rows_clips_and_groups_without_signal() {
    assert_groups("grpo-minimind3", "grpo", false);
    assert_groups("grpo-onpolicy-minimind3", "grpo", false);
    assert_groups("grpo-ref-minimind3", "grpo", false);
}

#[test]
fn grpo_of_a_mixture_of_experts_counts_the_filler_in_its_balancing_loss() {
    assert_groups("grpo-minimind3-moe", "grpo", false);
}

#[test]
fn cispo_follows_the_reference_with_accumulation_and_an_empty_row() {
    assert_groups("cispo-minimind3", "cispo", false);
    assert_groups("cispo-ref-minimind3", "cispo", false);
    assert_groups("cispo-rightpad-minimind3", "cispo", false);
}

#[test]
fn agents_learn_from_what_they_sampled_over_several_turns() {
    assert_groups("agent-cispo-minimind3", "agent", true);
    assert_groups("agent-grpo-minimind3", "agent", true);
}

/// Batches of ppo whose minibatches are those of the golden run.
struct Minibatches {
    batches: Vec<Batch>,
    /// Rows of each (rollout, micro-step of it).
    rows: Vec<Vec<Vec<usize>>>,
    each: usize,
    passes: usize,
}

impl Minibatches {
    fn new(golden: &Golden) -> Self {
        let whole = |key: &str| golden.number(key) as usize;
        let (batch, minibatch) = (whole("batch"), whole("mini_batch_size"));
        let passes = whole("ppo_update_iters");
        let each = passes * batch.div_ceil(minibatch);
        let (mut rows, mut batches) = (Vec::<Vec<Vec<usize>>>::new(), Vec::new());
        for step in golden.steps() {
            let rollout = step["rollout"].as_u64().expect("a rollout") as usize;
            if rollout == rows.len() {
                rows.push(Vec::new());
                let layout = golden.layout(1792);
                batches.push(layout.batch(&golden.rollouts(rollout, 1), true));
            }
            rows[rollout].push(serde_json::from_value(step["rows"].clone()).expect("rows"));
        }
        Self { batches, rows, each, passes }
    }
}

impl Batches for Minibatches {
    fn micro_steps(&mut self, _epoch: usize) -> usize {
        self.batches.len() * self.each
    }

    fn batch(&mut self, _epoch: usize, index: usize) -> Result<Batch> {
        let (rollout, within) = (index / self.each, index % self.each);
        let mut batch = self.batches[rollout].clone();
        let pass = self.each / self.passes;
        batch.rewarded.as_mut().expect("rewards").minibatch = Some(Minibatch {
            rows: self.rows[rollout][within].clone(),
            first: within == 0,
            ends_pass: (within + 1).is_multiple_of(pass),
            left: self.each - 1 - within,
        });
        Ok(batch)
    }

    fn file(&self, _index: u32) -> String {
        "golden.jsonl".into()
    }
}

fn assert_ppo(name: &'static str) {
    let golden = Golden::open(name);
    let mut stage = stage::by_name("ppo").expect("a stage");
    let mut config = golden.config(stage.as_ref());
    let critic_lr = golden.run["optimizer"]["critic_lr"].as_f64().expect("a rate");
    let ppo = config.ppo.as_mut().expect("options");
    (ppo.critic_lr, ppo.early_stop) = (critic_lr, golden.number("early_stop_kl"));
    for (ours, key) in [
        (ppo.minibatch as f64, "mini_batch_size"),
        (ppo.passes as f64, "ppo_update_iters"),
        (ppo.gamma, "gamma"),
        (ppo.lambda, "lam"),
        (ppo.value_coef, "vf_coef"),
        (ppo.value_clip, "cliprange_value"),
    ] {
        let of_moe = key == "mini_batch_size" && golden.number(key) == 4.0;
        assert!(of_moe || ours == golden.number(key), "{name}: {key}: the default is {ours}");
    }
    ppo.minibatch = golden.number("mini_batch_size") as usize;
    assert_eq!(config.policy.as_ref().expect("options").kl_coef, golden.number("kl_coef"));
    let mut model = golden.start();
    let start = model.to_host().expect("weights");
    let (frozen, critic) = (Some(golden.reference()), Some(golden.start()));
    stage.prepare(&mut model, Setup { frozen, critic, ..Setup::new(&config) }).expect("ready");
    let mut batches = Minibatches::new(&golden);
    let mut trainer = Trainer::new(&model, stage.as_ref(), &config, &mut batches).expect("a run");
    let head = ["value_head.weight", "value_head.bias"].map(|name| {
        let shape = golden.tensors.get(name).expect("a value head").shape.to_vec();
        HostTensor { name: format!("critic.{name}"), shape, values: golden.floats(name) }
    });
    stage.restore(&head).expect("a value head");
    let of_critic = |stage: &dyn Stage| -> Vec<HostTensor> {
        let state = stage.state().expect("a state").into_iter();
        let critic = state.filter_map(|of| {
            let name = of.name.strip_prefix("critic.")?.to_owned();
            Some(HostTensor { name, ..of })
        });
        critic.collect()
    };
    let critic_start = of_critic(stage.as_ref());
    let mut found = Vec::new();
    while let Some(report) = trainer.advance().expect("a micro-step") {
        found.extend(report.micro_steps);
    }
    let steps = golden.steps();
    assert_eq!(found.len(), steps.len(), "{name}: micro-steps");
    for (i, (found, expected)) in found.iter().zip(&steps).enumerate() {
        golden.assert_step(i, found, expected, 1.0 / golden.number("accumulation_steps"));
        let stopped = found.to_json()["stopped"].as_f64();
        assert_eq!(stopped == Some(1.0), expected["stopped"] == true, "{name}: step {i}");
    }
    golden.assert_final("final", &start, &model.to_host().expect("weights"));
    golden.assert_final("critic_final", &critic_start, &of_critic(stage.as_ref()));
}

#[test]
fn ppo_follows_the_reference_through_whitening_value_clips_and_early_stops() {
    assert_ppo("ppo-minimind3");
    assert_ppo("ppo-earlystop-minimind3");
}

#[test]
fn ppo_of_a_mixture_of_experts_leaves_the_critics_balancing_loss_out() {
    assert_ppo("ppo-minimind3-moe");
}

#[test]
fn learning_rates_fall_with_every_optimizer_step() {
    let golden = json(&shared("golden-rl/schedule.json"));
    let lr = golden["lr"].as_f64().expect("a rate");
    for case in golden["cases"].as_array().expect("cases") {
        let steps = case["optimizer_steps"].as_u64().expect("steps") as usize;
        let schedule = Schedule {
            decline: Decline::CosineSteps,
            recipe: Recipe::R2026,
            micro_steps: 7 * steps,
            steps,
            accumulation: 7,
            warmup: 0,
        };
        for (step, expected) in case["lr_at_step"].as_array().expect("rates").iter().enumerate() {
            let expected = expected.as_f64().expect("a rate");
            let found = schedule.lr(lr, 7 * step, step);
            assert!((found / expected - 1.0).abs() < 1e-9, "{steps}, {step}: {found} {expected}");
        }
    }
}

#[test]
fn single_answers_are_measured_from_what_was_expected_of_the_ones_before() {
    let golden = Golden::open("spo-minimind3");
    let mut stage = stage::by_name("grpo").expect("a stage");
    let mut config = config(stage.as_ref(), Recipe::R2026, &golden.run);
    let options = config.policy.as_mut().expect("options");
    options.choose("spo").expect("a loss");
    assert_eq!(options.kl_coef, golden.number("beta"), "the default");
    let mut model = golden.start();
    let start = model.to_host().expect("weights");
    let setup = Setup { frozen: Some(golden.reference()), ..Setup::new(&config) };
    stage.prepare(&mut model, setup).expect("made ready");
    let (steps, layout) = (golden.steps(), golden.layout(config.max_seq_len));
    let rounds: Vec<Vec<Rollout>> = (0..steps.len()).map(|i| golden.rollouts(i, 1)).collect();
    let mut source = Source::new(Origin::File(rounds), layout, None, 1, "spo".into());
    let mut trainer = Trainer::new(&model, stage.as_ref(), &config, &mut source).expect("a run");
    let mut found = Vec::new();
    for step in &steps {
        found.extend(trainer.advance().expect("a micro-step").expect("a report").micro_steps);
        let state = trainer.stage().state().expect("a state");
        let tracker = Tracker::from_floats(&state[0].values).expect("a baseline");
        let of = |key: &str| step["tracker_after"][key].as_f64().expect("a number");
        golden.assert_near("alpha", tracker.alpha, of("alpha"), 1e-5);
        golden.assert_near("beta", tracker.beta, of("beta"), 1e-5);
        let logp = tracker.mean_logprob.expect("a mean");
        golden.assert_near("mean log-probability", logp, of("mean_logprob"), LOGPS);
    }
    assert!(trainer.advance().expect("the end").is_none(), "more than the golden run");
    for (i, (found, expected)) in found.iter().zip(&steps).enumerate() {
        golden.assert_step(i, found, expected, 1.0);
        let baseline = 6.0 * expected["baseline_normalised"].as_f64().expect("a share") - 3.0;
        let number = found.to_json()["expected_reward"].as_f64().expect("a number");
        golden.assert_near("expected reward", number, baseline, 1e-4);
    }
    golden.assert_final("final", &start, &model.to_host().expect("weights"));
}

#[test]
fn the_adaptive_baseline_forgets_by_how_far_the_policy_moved() {
    let golden = Golden::open("spo-minimind3");
    let mut tracker = Tracker::default();
    for (i, step) in golden.steps().iter().enumerate() {
        let baseline = step["baseline_normalised"].as_f64().expect("a share");
        golden.assert_near("baseline", tracker.expected(), baseline, 1e-6);
        let rewards = golden.floats(&format!("{i}.rewards"));
        let rewards: Vec<f64> = rewards.into_iter().map(f64::from).collect();
        let expected = golden.floats(&format!("{i}.advantages"));
        for (ours, expected) in tracker.advantages(&rewards).iter().zip(&expected) {
            golden.assert_near("advantage", *ours, f64::from(*expected), 1e-5);
        }
        let after = &step["tracker_after"];
        let number = |key: &str| after[key].as_f64().expect("a number");
        let kept = tracker.count(&rewards, number("mean_logprob"));
        golden.assert_near("rho", kept, number("rho"), 1e-6);
        golden.assert_near("alpha", tracker.alpha, number("alpha"), 1e-6);
        golden.assert_near("beta", tracker.beta, number("beta"), 1e-6);
    }
}
