//! Gradients of the stages' losses against finite differences, all in float64 on a toy model.

use mmx_converters::arch::{Config, presets};
use tch::{Device, Tensor, no_grad};

use super::{Setup, Stage, by_name};
use crate::config::{DistillOptions, DpoOptions, Logps, TrainConfig};
use crate::model::Model;
use mmx_data::{Batch, Recipe, Rewarded};

/// A preset's family at hidden 16 with two layers and 40 tokens.
fn toy(preset: &str) -> Config {
    let mut config = presets::preset(preset).expect("a preset");
    (config.hidden_size, config.num_hidden_layers, config.vocab_size) = (16, 2, 40);
    (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (4, 2, 4);
    config.intermediate_size = 24;
    if let Some(moe) = &mut config.moe {
        moe.intermediate_size = 24;
    }
    config
}

/// Initial weights times 20: from those the reference begins with, gradients are too small to
/// compare.
fn model(preset: &str, seed: u64) -> Model {
    let model = Model::random(&toy(preset), seed, Device::Cpu, tch::Kind::Double).expect("a model");
    no_grad(|| {
        for variable in model.variables().iter().filter(|v| v.tensor.dim() > 1) {
            let _ = variable.tensor.shallow_clone().g_mul_scalar_(20.0);
        }
    });
    model
}

/// Four rows of eight made-up tokens, two of three learned.
fn batch() -> Batch {
    let id = |i: usize| (i * 17 + i * i * 5) as i64 % 39 + 1;
    Batch {
        x: (0..32).map(id).collect(),
        y: (1..33).map(id).collect(),
        mask: (0..32).map(|i| if i % 3 == 0 { 0.0 } else { 1.0 }).collect(),
        batch: 4,
        seq: 8,
        rewarded: Some(Rewarded {
            sampled: (0..32).map(|i| -3.0 - (i as f32 * 0.7).sin()).collect(),
            rewards: vec![1.0, -0.5, 0.25, 2.0],
            groups: vec![0, 0, 1, 1],
            cut_off: vec![false; 4],
            stale: true,
            ..Rewarded::default()
        }),
        ..Batch::default()
    }
}

/// Compares the gradient of every weight at up to four places with the difference quotient.
fn check(stage: &dyn Stage, model: &Model, what: &str) {
    /// Rounding gives 1e-16 / STEP, the next term of the series STEP^2: both below 1e-9.
    const STEP: f64 = 1e-5;
    let value = || {
        let total = no_grad(|| stage.loss(model, &batch())).expect("a loss").total;
        total.expect("targets are learned").double_value(&[])
    };
    let total = stage.loss(model, &batch()).expect("a loss").total.expect("targets are learned");
    assert_eq!(total.kind(), tch::Kind::Double, "{what}");
    let leaves: Vec<&Tensor> = model.variables().iter().map(|v| &v.tensor).collect();
    let gradients = Tensor::run_backward(&[total], &leaves, false, false);
    let mut largest = 0.0f64;
    for (variable, gradient) in model.variables().iter().zip(gradients) {
        let flat = variable.tensor.detach().view(-1);
        let count = flat.size()[0];
        for place in [0, count / 3, count / 2, count - 1] {
            let analytic = match gradient.defined() {
                true => gradient.reshape(-1).double_value(&[place]),
                false => 0.0, // an expert without tokens
            };
            let kept = flat.double_value(&[place]);
            let at = |x: f64| {
                let _ = flat.get(place).fill_(x);
                value()
            };
            let quotient = (at(kept + STEP) - at(kept - STEP)) / (2.0 * STEP);
            at(kept);
            largest = largest.max(analytic.abs());
            assert!(
                (analytic - quotient).abs() < 1e-7 + 1e-6 * analytic.abs(),
                "{what}: {} at {place}: gradient {analytic:e}, difference quotient {quotient:e}",
                variable.name
            );
        }
    }
    assert!(largest > 1e-3, "{what}: gradients of at most {largest:e} show nothing");
}

#[test]
fn cross_entropy_and_the_balancing_losses() {
    for preset in ["minimind2", "minimind3", "minimind2-moe", "minimind-v1-moe", "minimind3-moe"] {
        check(by_name("pretrain").expect("a stage").as_ref(), &model(preset, 1), preset);
    }
}

/// The balancing loss by itself: beside the cross-entropy it is small.
#[test]
fn the_balancing_losses_alone() {
    struct AuxOnly;
    impl Stage for AuxOnly {
        fn info(&self) -> &'static mmx_data::StageInfo {
            super::Pretrain.info()
        }
        fn defaults(&self, recipe: Recipe) -> super::Defaults {
            super::Pretrain.defaults(recipe)
        }
        fn loss(&self, model: &Model, batch: &Batch) -> crate::Result<super::Loss> {
            let hidden = model.hidden(&super::language_model::inputs(model, batch)?, true)?;
            let total = hidden.aux.map(|aux| aux * 1000.0);
            Ok(super::Loss { total, trained_tokens: 1, ..super::Loss::nothing() })
        }
    }
    for preset in ["minimind2-moe", "minimind3-moe"] {
        check(&AuxOnly, &model(preset, 2), preset);
    }
}

#[test]
fn preference_optimization() {
    for (preset, logps) in
        [("minimind2", Logps::Mean), ("minimind2", Logps::Sum), ("minimind3-moe", Logps::Sum)]
    {
        let mut stage = by_name("dpo").expect("a stage");
        let mut config = TrainConfig::new(stage.as_ref(), Recipe::R2026);
        config.dpo = Some(DpoOptions { beta: 0.5, logps });
        let mut policy = model(preset, 3);
        let frozen = Some(model(preset, 4));
        stage.prepare(&mut policy, Setup { frozen, ..Setup::new(&config) }).expect("ready");
        check(stage.as_ref(), &policy, &format!("{preset}, {logps:?}"));
    }
}

#[test]
fn distillation() {
    for (recipe, alpha, temperature) in
        [(Recipe::R2025, 0.0, 1.0), (Recipe::R2026, 0.5, 1.5), (Recipe::R2025, 0.3, 2.0)]
    {
        let mut stage = by_name("distill").expect("a stage");
        let mut config = TrainConfig::new(stage.as_ref(), recipe);
        config.distill = Some(DistillOptions { alpha, temperature });
        let mut student = model("minimind2-moe", 5);
        let frozen = Some(model("minimind3", 6));
        stage.prepare(&mut student, Setup { frozen, ..Setup::new(&config) }).expect("ready");
        check(stage.as_ref(), &student, &format!("alpha {alpha}, temperature {temperature}"));
    }
}

/// With a part of the entropy; divergences are in tests/reward_losses.rs. Of cispo, whose weights have
/// no gradient, there is no difference quotient.
#[test]
fn rewards_within_groups_and_from_a_critic() {
    for (name, preset) in [("grpo", "minimind3"), ("ppo", "minimind3"), ("grpo", "minimind3-moe")] {
        let mut stage = by_name(name).expect("a stage");
        let mut config = TrainConfig::new(stage.as_ref(), Recipe::R2026);
        let options = config.policy.as_mut().expect("options");
        (options.kl_coef, options.entropy_coef) = (0.0, 0.3);
        options.score_temperature = 1.25;
        config.ppo.iter_mut().for_each(|ppo| ppo.early_stop = f64::MAX);
        let mut policy = model(preset, 7);
        let critic = Some(model(preset, 8));
        stage.prepare(&mut policy, Setup { critic, ..Setup::new(&config) }).expect("ready");
        check(stage.as_ref(), &policy, &format!("{name}, {preset}"));
    }
}
