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
    for (name, preset, loss) in [
        ("grpo", "minimind3", "grpo"),
        ("ppo", "minimind3", "grpo"),
        ("grpo", "minimind3-moe", "grpo"),
        ("grpo", "minimind3", "spo"),
    ] {
        let mut stage = by_name(name).expect("a stage");
        let mut config = TrainConfig::new(stage.as_ref(), Recipe::R2026);
        let options = config.policy.as_mut().expect("options");
        options.choose(loss).expect("a loss");
        (options.kl_coef, options.entropy_coef) = (0.0, 0.3);
        options.score_temperature = 1.25;
        config.ppo.iter_mut().for_each(|ppo| ppo.early_stop = f64::MAX);
        let mut policy = model(preset, 7);
        let critic = Some(model(preset, 8));
        stage.prepare(&mut policy, Setup { critic, ..Setup::new(&config) }).expect("ready");
        check(stage.as_ref(), &policy, &format!("{name}, {preset}, {loss}"));
    }
}

/// Rows of groups with a prompt of 40 ids each, so many positions that they come in pieces: one row
/// ends with its prompt, one has no token to learn.
fn groups() -> Batch {
    let mut batch = Batch::default();
    let mut rewarded = Rewarded::default();
    for row in 0..12usize {
        let answer = [300, 250, 1, 280][row % 4];
        let ids = |count: usize| -> Vec<i64> {
            let of_prompt = (0..40).map(|i| (i * 7 + row / 4 * 3) as i64 % 40);
            let of_answer = (0..300).map(|i| (i * i + i * row + 3 * row) as i64 % 40);
            of_prompt.chain(of_answer).take(count).collect()
        };
        let (all, learned) = (ids(40 + answer), row != 7);
        batch.x.extend(&all[..all.len() - 1]);
        batch.y.extend(&all[1..]);
        let mask = (1..all.len()).map(|i| if i >= 40 && learned { 1.0 } else { 0.0 });
        batch.mask.extend(mask);
        rewarded.sampled.extend((1..all.len()).map(|i| -3.6 - (i as f32 * 0.9).sin() * 0.1));
        rewarded.rewards.push((row as f64 * 1.7).sin());
        rewarded.groups.push(row as u64 / 4);
        rewarded.cut_off.push(false);
        batch.packed.push(all.len() - 1);
    }
    (batch.batch, batch.seq) = (1, batch.x.len());
    Batch { rewarded: Some(rewarded), ..batch }
}

/// In float32 a batch comes in pieces in which prompts are computed once; in float64 as a whole,
/// every row by itself.
#[test]
fn rows_in_pieces_that_share_their_prompts_learn_what_the_batch_does() {
    let config = toy("minimind3");
    let whole = groups();
    assert!(crate::policy::pieces::pieces(&whole).len() > 1);
    for (loss, mean, entropy_coef) in [
        ("grpo", "tokens", 0.2),
        ("grpo", "rows", 0.0),
        ("cispo", "tokens", 0.0),
        ("spo", "rows", 0.0),
    ] {
        let made = [tch::Kind::Float, tch::Kind::Double].map(|kind| {
            let open = |seed| Model::random(&config, seed, Device::Cpu, kind).expect("a model");
            let mut stage = by_name("grpo").expect("a stage");
            let mut config = TrainConfig::named(stage.as_ref(), "mmx").expect("a recipe");
            let options = config.policy.as_mut().expect("options");
            options.choose(loss).expect("a loss");
            options.choose_mean(mean).expect("a mean");
            (options.entropy_coef, options.kl_coef) = (entropy_coef, 0.3);
            let (mut model, frozen) = (open(3), Some(open(4)));
            stage.prepare(&mut model, Setup { frozen, ..Setup::new(&config) }).expect("ready");
            let mut gradients: Vec<Vec<f64>> = Vec::new();
            let mut pieces = 0;
            let loss = stage.learn(&model, &whole, &mut |loss| {
                let leaves: Vec<&Tensor> = model.variables().iter().map(|v| &v.tensor).collect();
                let total = loss.total.as_ref().expect("targets are learned");
                let found = Tensor::run_backward(&[total], &leaves, false, false);
                let found =
                    found.iter().map(|of| Vec::<f64>::try_from(&of.reshape(-1)).expect("numbers"));
                match gradients.is_empty() {
                    true => gradients = found.collect(),
                    false => gradients.iter_mut().zip(found).for_each(|(sum, of)| {
                        sum.iter_mut().zip(of).for_each(|(sum, of)| *sum += of);
                    }),
                }
                pieces += 1;
                Ok(())
            });
            let loss = loss.expect("a loss");
            let numbers: Vec<(&str, f64)> = loss
                .parts
                .iter()
                .filter_map(|(name, part)| match part {
                    super::Part::Scalar(value) => Some((*name, value.double_value(&[]))),
                    _ => None,
                })
                .collect();
            (loss.total.expect("a loss").double_value(&[]), numbers, gradients, pieces)
        });
        let [(ours, parts, gradients, pieces), (theirs, of_whole, expected, _)] = made;
        assert!(pieces > 1, "{loss}: {pieces} pieces");
        assert!((ours - theirs).abs() < 1e-5, "{loss}: {ours} {theirs}");
        for ((name, a), (of, b)) in parts.iter().zip(&of_whole) {
            assert!(
                name == of && (a - b).abs() < 1e-4 * b.abs().max(0.1),
                "{loss}: {name} {a}, {of} {b}"
            );
        }
        let norm = |of: &mut dyn Iterator<Item = f64>| of.map(|v| v * v).sum::<f64>().sqrt();
        for (a, b) in gradients.iter().zip(&expected) {
            let off = norm(&mut a.iter().zip(b).map(|(x, y)| x - y));
            let size = norm(&mut b.iter().copied());
            assert!(off <= 1e-4 * size, "{loss}: a gradient is off by {off:e} of {size:e}");
        }
    }
}

/// Where the divergence counts in the reward, the gradient is that of rewards that are less by it.
#[test]
fn divergence_in_the_reward_is_taken_off_it_row_by_row() {
    let open = |seed| Model::random(&toy("minimind3"), seed, Device::Cpu, tch::Kind::Float);
    let gradient = |in_reward: bool, batch: &Batch| -> Vec<f64> {
        let mut stage = by_name("grpo").expect("a stage");
        let mut config = TrainConfig::named(stage.as_ref(), "mmx").expect("a recipe");
        let options = config.policy.as_mut().expect("options");
        options.kl_in_reward = in_reward;
        options.kl_coef = if in_reward { 0.5 } else { 0.0 };
        let (mut model, frozen) = (open(3).expect("a model"), open(4).expect("a model"));
        let frozen = Some(frozen);
        stage.prepare(&mut model, Setup { frozen, ..Setup::new(&config) }).expect("ready");
        let loss = stage.loss(&model, batch).expect("a loss").total.expect("targets");
        let found = crate::model::host_gradients(&model, &loss).expect("gradients");
        found.into_iter().flat_map(|of| of.values).map(f64::from).collect()
    };
    let whole = groups();
    let mut paid = whole.clone();
    let logps = |seed| -> Vec<f64> {
        let model = open(seed).expect("a model");
        let ids = Tensor::from_slice(&whole.x).unsqueeze(0);
        let hidden = model.hidden_packed(&ids, &whole.packed, false).expect("hidden").hidden;
        let all = model.head(&hidden).expect("logits").log_softmax(-1, tch::Kind::Float);
        let ids = Tensor::from_slice(&whole.y).view([1, -1, 1]);
        Vec::try_from(&all.gather(2, &ids, false).reshape(-1)).expect("numbers")
    };
    let (policy, reference) = (logps(3), logps(4));
    let rewarded = paid.rewarded.as_mut().expect("rewards");
    for (row, range) in whole.ranges().into_iter().enumerate() {
        let divergence: f64 =
            range.filter(|&i| whole.mask[i] != 0.0).map(|i| policy[i] - reference[i]).sum();
        rewarded.rewards[row] -= 0.5 * divergence;
    }
    let (ours, expected) = (gradient(true, &whole), gradient(false, &paid));
    let norm = |of: &mut dyn Iterator<Item = f64>| of.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut ours.iter().zip(&expected).map(|(a, b)| a - b));
    let size = norm(&mut expected.iter().copied());
    assert!(size > 1e-4 && off < 1e-3 * size, "off by {off:e} of {size:e}");
    let apart = gradient(false, &whole);
    let moved = norm(&mut ours.iter().zip(&apart).map(|(a, b)| a - b));
    assert!(moved > 0.1 * size, "the divergence changes next to nothing: {moved:e} of {size:e}");
}
