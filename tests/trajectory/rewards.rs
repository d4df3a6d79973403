//! Golden runs of the stages that learn from rewards: the reference's rollouts, and what it made of
//! them.

use std::path::Path;

use mmx_converters::error::Result;
use mmx_converters::safetensors::SafeTensors;
use mmx_data::batches::{Batches, Part};
use mmx_data::{Batch, Minibatch, Recipe};
use mmx_rollout::{Finish, Rollout};
use mmx_training::config::TrainConfig;
use mmx_training::model::{HostTensor, Model};
use mmx_training::policy::layout::Layout;
use mmx_training::policy::options::PolicyOptions;
use mmx_training::policy::source::{Origin, Source};
use mmx_training::ranks::Spread;
use mmx_training::stage::{self, Setup, Stage};
use mmx_training::trainer::{MicroStep, Trainer};
use serde_json::{Map, Value};
use tch::{Device, Kind};

use super::{config, json, model};
use crate::common::shared;

/// The largest distances of a second, padding-free computation of the reference from its own are 1.2e-5
/// (loss), 5e-5 (gradient's norm), 2e-4 (log-probabilities), 5e-5 (how far weights moved): these are a
/// few times as much.
const LOSS: f64 = 5e-5;
const NORM: f64 = 2e-4;
pub(crate) const LOGPS: f64 = 5e-4;
const MOVED: f64 = 1e-3;

/// A golden run: its JSON and its tensors.
pub(crate) struct Golden {
    name: &'static str,
    pub(crate) run: Value,
    /// Batches are enlarged: the rows of group `i` are there `1 + grown * i` times, the answers of the
    /// last half of them three times as long.
    pub(crate) grown: usize,
    tensors: SafeTensors,
}

impl Golden {
    pub(crate) fn open(name: &'static str) -> Self {
        let at = |extension: &str| shared(&format!("golden-rl/{name}.{extension}"));
        let tensors = SafeTensors::open(at("safetensors")).expect("golden tensors");
        Self { name, run: json(&at("json")), grown: 0, tensors }
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no {name}", self.name)).to_f32()
    }

    pub(crate) fn whole(&self, name: &str) -> (Vec<i64>, Vec<usize>) {
        let view = self.tensors.get(name).unwrap_or_else(|| panic!("{}: no {name}", self.name));
        let bytes = view.data.chunks_exact(8).map(|b| b.try_into().expect("8 bytes"));
        (bytes.map(i64::from_le_bytes).collect(), view.shape.to_vec())
    }

    pub(crate) fn steps(&self) -> Vec<Value> {
        self.run["steps"].as_array().expect("steps").clone()
    }

    pub(crate) fn number(&self, key: &str) -> f64 {
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
        if self.name.starts_with("spo") {
            options.choose("spo").expect("a loss");
        } else if self.is_agent() && self.run["loss_type"] == "grpo" {
            options.choose("grpo").expect("a loss");
        }
        if let Some(beta) = self.run["beta"].as_f64() {
            assert_eq!(options.kl_coef, beta, "{}: the default", self.name);
        }
        if let Some(epsilon) = self.run["epsilon"].as_f64() {
            assert_eq!(options.epsilon, epsilon, "{}: the default", self.name);
        }
        if self.is_agent() {
            config.max_seq_len = self.max_seq_len();
        }
        config
    }

    fn is_agent(&self) -> bool {
        self.name.starts_with("agent")
    }

    /// Ids of a row at most.
    pub(crate) fn max_seq_len(&self) -> usize {
        match self.is_agent() {
            true => self.number("max_total_len") as usize,
            // the reference's default
            false => config(by_name("grpo").as_ref(), Recipe::R2026, &self.run).max_seq_len,
        }
    }

    /// The rollouts of all batches.
    pub(crate) fn rounds(&self) -> Vec<Vec<Rollout>> {
        let size = self.run["num_generations"].as_u64().unwrap_or(1) as usize;
        let round = |i: usize| match self.is_agent() {
            true => self.trajectories(i, size),
            false => self.rollouts(i, size),
        };
        let grow = |rows: Vec<Rollout>| -> Vec<Rollout> {
            let times = |row: &Rollout| 1 + self.grown as u64 * row.group;
            let mut rows: Vec<Rollout> =
                rows.into_iter().flat_map(|row| vec![row.clone(); times(&row) as usize]).collect();
            let half = if self.grown > 0 { rows.len() / 2 } else { rows.len() };
            for row in &mut rows[half..] {
                row.ids = row.ids.repeat(3);
                (row.sampled, row.logps) = (row.sampled.repeat(3), row.logps.repeat(3));
            }
            rows
        };
        (0..self.steps().len()).map(|i| grow(round(i))).collect()
    }

    /// Trains with rewards that are compared within groups, or with what was expected; `look` sees the
    /// policy before every micro-step, of which so many have been done, and at the end.
    pub(crate) fn groups(
        &self,
        stage: &str,
        spread: &Spread,
        look: &dyn Fn(usize, &Model, &dyn Stage),
    ) -> Run {
        self.groups_with(stage, spread, &|_| (), look)
    }

    /// The same with other options than the reference's.
    pub(crate) fn groups_with(
        &self,
        stage: &str,
        spread: &Spread,
        change: &dyn Fn(&mut PolicyOptions),
        look: &dyn Fn(usize, &Model, &dyn Stage),
    ) -> Run {
        let mut stage = by_name(stage);
        let mut config = self.config(stage.as_ref());
        change(config.policy.as_mut().expect("options"));
        let mut model = self.start();
        let start = model.to_host().expect("weights");
        let setup = Setup { frozen: Some(self.reference()), ..Setup::new(&config) };
        stage.prepare(&mut model, setup).expect("made ready");
        model.set_ranks(spread.ranks.clone());
        let layout = self.layout(config.max_seq_len);
        let source = Source::new(Origin::File(self.rounds()), layout, None, 1, self.name.into());
        let mut source = source.part(spread.ranks.part());
        let stage = stage.as_ref();
        let mut trainer =
            Trainer::among(&model, stage, &config, &mut source, spread.clone()).expect("a run");
        let mut steps = Vec::new();
        for done in 0.. {
            look(done, &model, stage);
            let Some(report) = trainer.advance().expect("a micro-step") else { break };
            steps.extend(report.micro_steps);
        }
        let planned = trainer.plan().steps as u64;
        if let Some(expected) = self.run["schedule"]["optimizer_steps"].as_u64() {
            assert_eq!(planned, expected, "{}", self.name);
        }
        Run { steps, policy: (start, model.to_host().expect("weights")), critic: None }
    }

    /// Trains with a critic.
    pub(crate) fn ppo(&self, spread: &Spread) -> Run {
        let name = self.name;
        let mut stage = by_name("ppo");
        let mut config = self.config(stage.as_ref());
        let critic_lr = self.run["optimizer"]["critic_lr"].as_f64().expect("a rate");
        let ppo = config.ppo.as_mut().expect("options");
        (ppo.critic_lr, ppo.early_stop) = (critic_lr, self.number("early_stop_kl"));
        for (ours, key) in [
            (ppo.minibatch as f64, "mini_batch_size"),
            (ppo.passes as f64, "ppo_update_iters"),
            (ppo.gamma, "gamma"),
            (ppo.lambda, "lam"),
            (ppo.value_coef, "vf_coef"),
            (ppo.value_clip, "cliprange_value"),
        ] {
            let of_moe = key == "mini_batch_size" && self.number(key) == 4.0;
            assert!(of_moe || ours == self.number(key), "{name}: {key}: the default is {ours}");
        }
        ppo.minibatch = self.number("mini_batch_size") as usize;
        assert_eq!(config.policy.as_ref().expect("options").kl_coef, self.number("kl_coef"));
        let mut model = self.start();
        let start = model.to_host().expect("weights");
        let (frozen, critic) = (Some(self.reference()), Some(self.start()));
        stage.prepare(&mut model, Setup { frozen, critic, ..Setup::new(&config) }).expect("ready");
        model.set_ranks(spread.ranks.clone());
        let mut batches = Minibatches::new(self, spread.ranks.part());
        let stage = stage.as_ref();
        let mut trainer =
            Trainer::among(&model, stage, &config, &mut batches, spread.clone()).expect("a run");
        let head = ["value_head.weight", "value_head.bias"].map(|name| {
            let shape = self.tensors.get(name).expect("a value head").shape.to_vec();
            HostTensor { name: format!("critic.{name}"), shape, values: self.floats(name) }
        });
        stage.restore(&head).expect("a value head");
        let of_critic = || -> Vec<HostTensor> {
            let state = stage.state().expect("a state").into_iter();
            let critic = state.filter_map(|of| {
                let name = of.name.strip_prefix("critic.")?.to_owned();
                Some(HostTensor { name, ..of })
            });
            critic.collect()
        };
        let critic_start = of_critic();
        let mut steps = Vec::new();
        while let Some(report) = trainer.advance().expect("a micro-step") {
            steps.extend(report.micro_steps);
        }
        let end = model.to_host().expect("weights");
        Run { steps, policy: (start, end), critic: Some((critic_start, of_critic())) }
    }

    /// The numbers of all micro-steps, and how far weights moved.
    pub(crate) fn assert_run(&self, run: &Run) {
        let expected = self.steps();
        assert_eq!(run.steps.len(), expected.len(), "{}: micro-steps", self.name);
        // the reference's ppo logs a loss that is divided already
        let scale = match run.critic {
            Some(_) => 1.0 / self.number("accumulation_steps"),
            None => 1.0,
        };
        for (i, (found, expected)) in run.steps.iter().zip(&expected).enumerate() {
            self.assert_step(i, found, expected, scale);
            if run.critic.is_some() {
                let stopped = found.to_json()["stopped"].as_f64() == Some(1.0);
                assert_eq!(stopped, expected["stopped"] == true, "{}: step {i}", self.name);
            }
        }
        self.assert_final("final", &run.policy.0, &run.policy.1);
        if let Some((start, end)) = &run.critic {
            self.assert_final("critic_final", start, end);
        }
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

    pub(crate) fn layout(&self, max_seq_len: usize) -> Layout {
        let filled = self.run["kind"] == "minimind3-moe";
        Layout { max_seq_len, filler: filled.then_some(2), mask_cut_off: false }
    }

    pub(crate) fn assert_near(&self, what: &str, found: f64, expected: f64, tolerance: f64) {
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

fn by_name(stage: &str) -> Box<dyn Stage> {
    stage::by_name(stage).expect("a stage")
}

/// What came of a run: numbers, and the weights before and after.
pub(crate) struct Run {
    pub(crate) steps: Vec<MicroStep>,
    pub(crate) policy: (Vec<HostTensor>, Vec<HostTensor>),
    pub(crate) critic: Option<(Vec<HostTensor>, Vec<HostTensor>)>,
}

/// Batches of ppo whose minibatches are those of the golden run.
struct Minibatches {
    batches: Vec<Batch>,
    /// Rows of each (rollout, micro-step of it).
    rows: Vec<Vec<Vec<usize>>>,
    each: usize,
    passes: usize,
    part: Option<Part>,
}

impl Minibatches {
    fn new(golden: &Golden, part: Option<Part>) -> Self {
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
        Self { batches, rows, each, passes, part }
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
        let rewarded = batch.rewarded.as_mut().expect("rewards");
        rewarded.part = self.part;
        rewarded.minibatch = Some(Minibatch {
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
