//! The configuration of a training run: every knob that changes its numbers. It is saved beside the
//! weights.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::optim::{AdamWOptions, MuonOptions, Options, Rates};
use crate::policy::options::{PolicyOptions, PpoOptions};
use mmx_data::{Fields, Kind, Recipe, SampleOptions, StageInfo, stages};

/// A resolved training configuration. Resuming with another one would not continue the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The stage's name: pretrain, sft, ...
    pub stage: String,
    /// 2025 or 2026: the reference's conventions (schedule, samples, what is left at an epoch's
    /// end); fast: 2026's samples, with what of the rest needs fewer tokens.
    pub recipe: String,
    /// Passes over the data.
    pub epochs: usize,
    /// Rows per micro-step, of all processes together.
    pub batch_size: usize,
    /// Micro-steps per optimizer step.
    pub accumulation: usize,
    /// Peak learning rate; with Muon the hidden matrices'.
    pub lr: f64,
    /// Decoupled weight decay: AdamW's on all weights, Muon's on the hidden matrices alone.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 for none.
    pub grad_clip: f64,
    /// Samples are cut to this many tokens.
    pub max_seq_len: usize,
    /// Base of the rotary frequencies from here on, in place of the model's own.
    #[serde(default)]
    pub rope_theta: Option<f64>,
    /// Ends the run after this many optimizer steps; the schedule ends there too.
    pub max_steps: Option<usize>,
    /// Optimizer steps over which the learning rate rises; the reference has none.
    pub warmup: usize,
    /// Initial weights, order and augmentations. The reference's: 1337.
    pub seed: u64,
    /// A new order each epoch; else file order.
    pub shuffle: bool,
    /// Samples share rows.
    pub pack: bool,
    /// f32 or bf16: what is computed in; master weights are float32 either way.
    pub dtype: String,
    /// 2026: share of chats without a system turn that get one.
    pub system_ratio: f64,
    /// 2026: share of chats whose empty think blocks are kept.
    pub empty_think_ratio: f64,
    /// Names of the data files' keys for those of the known forms.
    #[serde(default)]
    pub fields: Fields,
    /// The optimizer also steps at an epoch's end on what is left of an accumulation, its loss
    /// still divided by the whole accumulation. 2026: yes; 2025: no, it stays in the gradient.
    pub step_at_epoch_end: bool,
    /// A batch with a non-finite loss or gradient is left out instead of ending the run.
    pub skip_non_finite: bool,
    /// What changes the hidden matrices.
    #[serde(default)]
    pub optimizer: OptimizerName,
    /// With Muon: AdamW's peak learning rate, for everything else; nothing for `lr`.
    #[serde(default)]
    pub adam_lr: Option<f64>,
    /// Decay of AdamW's two moments.
    #[serde(default = "reference_betas")]
    pub betas: (f64, f64),
    /// How the learning rate falls.
    #[serde(default)]
    pub schedule: Decline,
    /// Where `warmup` is 0: the share of all optimizer steps over which the learning rate rises.
    #[serde(default)]
    pub warmup_share: f64,
    /// The options of stage lora.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraOptions>,
    /// The options of stage dpo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpo: Option<DpoOptions>,
    /// The options of stage distill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distill: Option<DistillOptions>,
    /// The options of the stages that learn from rewards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyOptions>,
    /// The options of stage ppo besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppo: Option<PpoOptions>,
}

/// The optimizer of the hidden matrices; everything else is always AdamW's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// AdamW, as the references.
    #[default]
    AdamW,
    /// Orthogonalized momentum ([`crate::optim`]).
    Muon,
}

/// How the learning rate falls from its peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decline {
    /// The reference's: in half a cosine to a tenth.
    #[default]
    Cosine,
    /// In a straight line to 0.
    Linear,
    /// The reference's where it learns from rewards: the cosine per optimizer step.
    #[serde(rename = "cosine-steps")]
    CosineSteps,
}

/// torch.optim.AdamW's, which both references keep.
fn reference_betas() -> (f64, f64) {
    AdamWOptions::default().betas
}

/// How an answer's log-probability is made from those of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Logps {
    /// The mean over the tokens.
    Mean,
    /// The sum over the tokens, as the paper has it.
    Sum,
}

/// The options of stage dpo: direct preference optimization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoOptions {
    /// How hard the policy is held to the reference: larger is harder.
    pub beta: f64,
    /// Mean or sum over an answer's tokens.
    pub logps: Logps,
}

impl DpoOptions {
    /// The reference's values.
    pub fn new(recipe: Recipe) -> Self {
        match recipe {
            Recipe::R2025 => Self { beta: 0.1, logps: Logps::Mean },
            Recipe::R2026 => Self { beta: 0.15, logps: Logps::Sum },
        }
    }
}

/// The options of stage distill: white-box distillation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillOptions {
    /// The cross-entropy's share; the rest is the divergence from the teacher.
    pub alpha: f64,
    /// The temperature that softens both distributions.
    pub temperature: f64,
}

impl DistillOptions {
    /// The reference's values.
    pub fn new(recipe: Recipe) -> Self {
        match recipe {
            Recipe::R2025 => Self { alpha: 0.0, temperature: 1.0 },
            Recipe::R2026 => Self { alpha: 0.5, temperature: 1.5 },
        }
    }
}

/// The options of stage lora: the adapters that are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraOptions {
    /// Inner dimension of the adapters.
    pub rank: usize,
    /// The adapters' product counts alpha / rank times.
    pub alpha: f64,
    /// `square`, `all`, or names of linear layers with commas between them.
    pub target: String,
}

impl LoraOptions {
    /// The reference's values: rank 8 (2026: 16), scale 1, every square projection.
    pub fn new(recipe: Recipe) -> Self {
        let rank = match recipe {
            Recipe::R2025 => 8,
            Recipe::R2026 => 16,
        };
        Self { rank, alpha: rank as f64, target: "square".into() }
    }
}

/// A stage's hyper-parameters where the command line gives none (docs/stages.md, stage by stage).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Passes over the data.
    pub epochs: usize,
    /// Rows per micro-step.
    pub batch_size: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Micro-steps per optimizer step.
    pub accumulation: usize,
}

/// The fields that may change when a run is resumed: they decide what a fault ends, not what is
/// computed. (Where and how often is saved, held-out data, threads and the files' places are not
/// part of the configuration at all.)
pub const HARMLESS: [&str; 1] = ["skip_non_finite"];

impl TrainConfig {
    /// A stage's hyper-parameters, and mmx's own values where the reference has no such knob.
    pub fn of_defaults(stage: &StageInfo, defaults: Defaults, recipe: Recipe) -> Self {
        let samples = SampleOptions::new(recipe, stage.kind, stage.max_seq_len);
        Self {
            stage: stage.name.to_owned(),
            recipe: recipe_name(recipe).to_owned(),
            epochs: defaults.epochs,
            batch_size: defaults.batch_size,
            accumulation: defaults.accumulation,
            lr: defaults.lr,
            weight_decay: 0.01,
            grad_clip: 1.0,
            max_seq_len: samples.max_seq_len,
            rope_theta: None,
            max_steps: None,
            warmup: 0,
            seed: samples.seed,
            shuffle: true,
            pack: stage.kind != Kind::Preference, // pairs have rows of their own
            dtype: "f32".into(),
            system_ratio: samples.system_ratio,
            empty_think_ratio: samples.empty_think_ratio,
            fields: samples.fields,
            step_at_epoch_end: recipe == Recipe::R2026,
            skip_non_finite: false,
            optimizer: OptimizerName::AdamW,
            adam_lr: None,
            betas: reference_betas(),
            schedule: match stages::learns_from_rewards(stage.name) {
                true => Decline::CosineSteps,
                false => Decline::Cosine,
            },
            warmup_share: 0.0,
            lora: (stage.name == stages::LORA.name).then(|| LoraOptions::new(recipe)),
            dpo: (stage.name == stages::DPO.name).then(|| DpoOptions::new(recipe)),
            distill: (stage.name == stages::DISTILL.name).then(|| DistillOptions::new(recipe)),
            policy: PolicyOptions::new(stage, true),
            ppo: PpoOptions::new(stage, true),
        }
    }

    /// Turns the 2026 reference's values into those of recipe fast. Pretraining alone differs in
    /// numbers: that Muon needs fewer tokens there has been measured (docs/performance.md).
    fn make_fast(&mut self) {
        self.recipe = FAST.to_owned();
        if self.stage == stages::PRETRAIN.name {
            self.optimizer = OptimizerName::Muon;
            (self.lr, self.adam_lr) = (3e-3, Some(4e-3));
            self.weight_decay = MuonOptions::default().weight_decay;
            self.betas = MUON_BETAS;
            self.schedule = Decline::Linear;
            self.warmup_share = 0.03;
        }
    }

    /// The configuration of a recipe's name over a stage's hyper-parameters: `defaults` gives those
    /// of a reference.
    ///
    /// # Errors
    /// Another name; one that the stage has not.
    pub fn of_recipe(
        recipe: &str,
        stage: &StageInfo,
        defaults: impl Fn(Recipe) -> Defaults,
    ) -> Result<Self> {
        match (stages::learns_from_rewards(stage.name), recipe) {
            (true, "2026" | OWN) => {}
            (true, _) => return Err(Error::setting("recipe", "2026 or mmx", recipe)),
            (false, OWN) => return Err(Error::setting("recipe", "2025, 2026 or fast", recipe)),
            (false, _) => {}
        }
        let conventions = conventions(recipe)?;
        let mut config = Self::of_defaults(stage, defaults(conventions), conventions);
        match recipe {
            FAST => config.make_fast(),
            OWN => {
                config.recipe = OWN.to_owned();
                config.policy = PolicyOptions::new(stage, false);
                config.ppo = PpoOptions::new(stage, false);
            }
            _ => {}
        }
        Ok(config)
    }

    /// The reference whose conventions the recipe follows.
    ///
    /// # Errors
    /// Neither 2025, 2026 nor fast.
    pub fn recipe(&self) -> Result<Recipe> {
        conventions(&self.recipe)
    }

    /// The updates that change the weights.
    pub fn optimizer(&self) -> Options {
        let weight_decay = self.weight_decay;
        let adamw = AdamWOptions { betas: self.betas, weight_decay, ..AdamWOptions::default() };
        match self.optimizer {
            OptimizerName::AdamW => Options { adamw, muon: None },
            OptimizerName::Muon => Options {
                adamw: AdamWOptions { weight_decay: 0.0, ..adamw },
                muon: Some(MuonOptions { weight_decay, ..MuonOptions::default() }),
            },
        }
    }

    /// The peak learning rates.
    pub fn rates(&self) -> Rates {
        Rates { muon: self.lr, adamw: self.adam_lr.unwrap_or(self.lr) }
    }

    /// Refuses values that make no run.
    ///
    /// # Errors
    /// The option, what was expected and what was found.
    pub fn check(&self) -> Result<()> {
        self.recipe()?;
        let whole = [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("accum", self.accumulation),
            ("max_steps", self.max_steps.unwrap_or(1)),
        ];
        if let Some((option, found)) = whole.into_iter().find(|(_, n)| *n == 0) {
            return Err(Error::setting(option, "at least 1", found));
        }
        let number = |option: &str, value: f64, ok: bool, expected: &str| match ok {
            true => Ok(()),
            false => Err(Error::setting(option, expected, value)),
        };
        number("lr", self.lr, self.lr > 0.0 && self.lr.is_finite(), "a number above 0")?;
        let decay = self.weight_decay;
        number("weight_decay", decay, (0.0..1e6).contains(&decay), "0 or more")?;
        let clip = self.grad_clip;
        number("grad_clip", clip, (0.0..1e30).contains(&clip), "0 (none) or more")?;
        for (option, share) in
            [("system_ratio", self.system_ratio), ("empty_think_ratio", self.empty_think_ratio)]
        {
            number(option, share, (0.0..=1.0).contains(&share), "a share from 0 to 1")?;
        }
        number(
            "warmup_share",
            self.warmup_share,
            (0.0..=1.0).contains(&self.warmup_share),
            "a share from 0 to 1",
        )?;
        if let Some(theta) = self.rope_theta {
            number("rope_theta", theta, theta > 1.0 && theta.is_finite(), "a number above 1")?;
            if self.lora.is_some() {
                let expected = "none with adapters, whose model stays as it is";
                return Err(Error::setting("rope_theta", expected, theta));
            }
        }
        let (first, second) = self.betas;
        let decays = [first, second].iter().all(|beta| (0.0..1.0).contains(beta));
        if !decays {
            let found = format!("{first},{second}");
            return Err(Error::setting("betas", "two numbers from 0 to below 1", found));
        }
        if let Some(lr) = self.adam_lr {
            number("adam_lr", lr, lr > 0.0 && lr.is_finite(), "a number above 0")?;
            if self.optimizer == OptimizerName::AdamW {
                return Err(Error::setting("adam_lr", "none, but with `optimizer` muon", lr));
            }
        }
        if let Some(lora) = &self.lora {
            if self.optimizer == OptimizerName::Muon {
                let expected = "adamw with lora, whose factors are no hidden matrices";
                return Err(Error::setting("optimizer", expected, "muon"));
            }
            if lora.rank == 0 {
                return Err(Error::setting("lora_rank", "at least 1", 0));
            }
            let alpha = lora.alpha;
            number("lora_alpha", alpha, alpha > 0.0 && alpha.is_finite(), "a number above 0")?;
        }
        if let Some(dpo) = &self.dpo {
            let beta = dpo.beta;
            number("beta", beta, beta > 0.0 && beta.is_finite(), "a number above 0")?;
            if self.pack {
                return Err(Error::setting("pack", "off with dpo", "on"));
            }
        }
        if let Some(DistillOptions { alpha, temperature }) = self.distill {
            number("alpha", alpha, (0.0..=1.0).contains(&alpha), "a share from 0 to 1")?;
            let fits = temperature > 0.0 && temperature.is_finite();
            number("temperature", temperature, fits, "a number above 0")?;
        }
        if let Some(policy) = &self.policy {
            policy.check()?;
        }
        if let Some(ppo) = &self.ppo {
            ppo.check()?;
        }
        match self.dtype.as_str() {
            "f32" | "bf16" => Ok(()),
            other => Err(Error::setting("dtype", "auto, f32 or bf16", other)),
        }
    }

    /// The fields that differ, as `name: was X, now Y`: those that make it another run, and the
    /// [`HARMLESS`].
    pub fn differences(&self, now: &Self) -> (Vec<String>, Vec<String>) {
        let fields = |config: &Self| match serde_json::to_value(config) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (was, now) = (fields(self), fields(now));
        let (mut changes, mut harmless) = (Vec::new(), Vec::new());
        for (name, value) in &was {
            let now = now.get(name).unwrap_or(&serde_json::Value::Null);
            if now != value {
                let list = match HARMLESS.contains(&name.as_str()) {
                    true => &mut harmless,
                    false => &mut changes,
                };
                list.push(format!("{name}: was {value}, now {now}"));
            }
        }
        (changes, harmless)
    }
}

/// The decay of AdamW's moments beside Muon. Source: nanochat, modded-nanogpt.
pub const MUON_BETAS: (f64, f64) = (0.9, 0.95);

/// The name of mmx's own recipe.
pub const FAST: &str = "fast";

/// The name of mmx's own recipe for learning from rewards.
pub const OWN: &str = "mmx";

/// The reference whose conventions a recipe follows, for samples and what is left at an epoch's end.
fn conventions(recipe: &str) -> Result<Recipe> {
    match recipe {
        "2025" => Ok(Recipe::R2025),
        "2026" | FAST | OWN => Ok(Recipe::R2026),
        other => Err(Error::setting("recipe", "2025, 2026 or fast", other)),
    }
}

/// The recipe's name: 2025 or 2026.
pub fn recipe_name(recipe: Recipe) -> &'static str {
    match recipe {
        Recipe::R2025 => "2025",
        Recipe::R2026 => "2026",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Sft;

    #[test]
    fn rejects_values_that_make_no_run_and_names_the_option() {
        let good = TrainConfig::new(&Sft, Recipe::R2025);
        good.check().expect("the defaults");
        let lora = TrainConfig::new(&crate::stage::Lora, Recipe::R2026);
        assert_eq!((good.lr, good.epochs, good.batch_size, good.accumulation), (5e-7, 2, 16, 1));
        for (bad, option) in [
            (TrainConfig { accumulation: 0, ..good.clone() }, "accum"),
            (TrainConfig { lr: f64::NAN, ..good.clone() }, "lr"),
            (TrainConfig { grad_clip: -1.0, ..good.clone() }, "grad_clip"),
            (TrainConfig { max_steps: Some(0), ..good.clone() }, "max_steps"),
            (TrainConfig { dtype: "f8".into(), ..good.clone() }, "dtype"),
            (TrainConfig { recipe: "slow".into(), ..good.clone() }, "recipe"),
            (TrainConfig { betas: (0.9, 1.0), ..good.clone() }, "betas"),
            (TrainConfig { adam_lr: Some(1e-3), ..good.clone() }, "adam_lr"),
            (TrainConfig { optimizer: OptimizerName::Muon, ..lora }, "optimizer"),
        ] {
            let error = bad.check().expect_err(option);
            assert!(error.to_string().starts_with(option), "{error}");
            assert!(error.is_misuse());
        }
    }

    #[test]
    fn differences_name_what_changed() {
        let was = TrainConfig::new(&Sft, Recipe::R2026);
        let now = TrainConfig { lr: 0.5, batch_size: 4, skip_non_finite: true, ..was.clone() };
        let (changes, harmless) = was.differences(&now);
        assert_eq!(changes, ["batch_size: was 16, now 4", "lr: was 0.00001, now 0.5"]);
        assert_eq!(harmless, ["skip_non_finite: was false, now true"]);
        assert_eq!(was.differences(&was), Default::default());
    }

    #[test]
    fn the_fast_recipe_is_muon_in_pretraining_and_the_2026_reference_elsewhere() {
        let fast = TrainConfig::named(&crate::stage::Pretrain, "fast").expect("a recipe");
        fast.check().expect("it runs");
        assert_eq!(fast.optimizer, OptimizerName::Muon);
        assert_eq!(fast.recipe().expect("conventions"), Recipe::R2026);
        let options = fast.optimizer();
        assert_eq!(options.adamw.weight_decay, 0.0);
        assert_eq!(options.muon.expect("Muon").weight_decay, 0.1);
        assert!(fast.pack && fast.step_at_epoch_end);

        let sft = TrainConfig::named(&Sft, "fast").expect("a recipe");
        let reference = TrainConfig::new(&Sft, Recipe::R2026);
        assert_eq!(sft, TrainConfig { recipe: "fast".into(), ..reference });
        assert!(TrainConfig::named(&Sft, "2024").is_err());
    }

    /// The state of a run before there was another optimizer.
    #[test]
    fn a_configuration_without_the_newer_fields_is_the_references() {
        let config = TrainConfig::new(&Sft, Recipe::R2026);
        let mut saved = serde_json::to_value(&config).expect("JSON");
        let fields = saved.as_object_mut().expect("fields");
        for newer in ["optimizer", "adam_lr", "betas", "schedule", "warmup_share"] {
            fields.remove(newer).expect("a field");
        }
        let read: TrainConfig = serde_json::from_value(saved).expect("a configuration");
        assert_eq!(read, config);
        let muon = TrainConfig { optimizer: OptimizerName::Muon, adam_lr: Some(0.5), ..config };
        let (mut changes, _) = read.differences(&muon);
        changes.sort_unstable();
        assert_eq!(
            changes,
            ["adam_lr: was null, now 0.5", "optimizer: was \"adamw\", now \"muon\""]
        );
    }
}
