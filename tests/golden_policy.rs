//! The ladder's rung "batches to loss, gradient norm and final weights" of the stages that learn from
//! rewards: the reference's trajectories over given rollouts, float32 on CPU.

mod common;
mod trajectory;

use common::shared;
use mmx_data::{Batch, Recipe};
use mmx_training::config::Decline;
use mmx_training::loss::{Entropies, Targets, log_probabilities};
use mmx_training::model::Model;
use mmx_training::policy::advantage::Tracker;
use mmx_training::ranks::Spread;
use mmx_training::schedule::Schedule;
use mmx_training::stage::Stage;
use tch::{Device, Tensor};
use trajectory::json;
use trajectory::rewards::{Golden, LOGPS};

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
fn assert_groups(name: &'static str, stage: &str) {
    let golden = Golden::open(name);
    let layout = golden.layout(golden.max_seq_len());
    let rounds = golden.rounds();
    let check = |done: usize, model: &Model, _: &dyn Stage| {
        if done == rounds.len() {
            return;
        }
        let (all, shape) = golden.whole(&format!("{done}.loss_mask"));
        let expected = golden.floats(&format!("{done}.logps"));
        assert_eq!(all.len(), expected.len(), "{name}: {shape:?}");
        let expected = all.iter().zip(&expected).filter(|(m, _)| **m != 0).map(|(_, &logp)| logp);
        let ours = logps(model, &layout.batch(&rounds[done], true));
        assert_eq!(ours.len(), expected.clone().count(), "{name}: step {done}: learned tokens");
        for (ours, expected) in ours.iter().zip(expected) {
            let what = format!("step {done}: a log-probability");
            golden.assert_near(&what, f64::from(*ours), f64::from(expected), LOGPS);
        }
    };
    let found = golden.groups(stage, &Spread::default(), &check);
    golden.assert_run(&found);
}

#[test]
fn grpo_follows_the_reference_over_padding_cut_off_rows_clips_and_groups_without_signal() {
    assert_groups("grpo-minimind3", "grpo");
    assert_groups("grpo-onpolicy-minimind3", "grpo");
    assert_groups("grpo-ref-minimind3", "grpo");
}

#[test]
fn grpo_of_a_mixture_of_experts_counts_the_filler_in_its_balancing_loss() {
    assert_groups("grpo-minimind3-moe", "grpo");
}

#[test]
fn cispo_follows_the_reference_with_accumulation_and_an_empty_row() {
    assert_groups("cispo-minimind3", "cispo");
    assert_groups("cispo-ref-minimind3", "cispo");
    assert_groups("cispo-rightpad-minimind3", "cispo");
}

#[test]
fn agents_learn_from_what_they_sampled_over_several_turns() {
    assert_groups("agent-cispo-minimind3", "agent");
    assert_groups("agent-grpo-minimind3", "agent");
}

fn assert_ppo(name: &'static str) {
    let golden = Golden::open(name);
    let found = golden.ppo(&Spread::default());
    golden.assert_run(&found);
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
    let steps = golden.steps();
    let check = |done: usize, _: &Model, stage: &dyn Stage| {
        let Some(step) = done.checked_sub(1).map(|last| &steps[last]) else { return };
        let state = stage.state().expect("a state");
        let tracker = Tracker::from_floats(&state[0].values).expect("a baseline");
        let of = |key: &str| step["tracker_after"][key].as_f64().expect("a number");
        golden.assert_near("alpha", tracker.alpha, of("alpha"), 1e-5);
        golden.assert_near("beta", tracker.beta, of("beta"), 1e-5);
        let logp = tracker.mean_logprob.expect("a mean");
        golden.assert_near("mean log-probability", logp, of("mean_logprob"), LOGPS);
    };
    let found = golden.groups("grpo", &Spread::default(), &check);
    golden.assert_run(&found);
    for (found, expected) in found.steps.iter().zip(&steps) {
        let baseline = 6.0 * expected["baseline_normalised"].as_f64().expect("a share") - 3.0;
        let number = found.to_json()["expected_reward"].as_f64().expect("a number");
        golden.assert_near("expected reward", number, baseline, 1e-4);
    }
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
