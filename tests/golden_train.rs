//! The ladder's rung "batches to loss, gradient norm and final weights": the reference's trajectories,
//! float32 on CPU.

mod common;
mod trajectory;

use common::shared;
use mmx_data::Recipe;
use mmx_training::config::TrainConfig;
use mmx_training::stage;
use mmx_training::trainer::Trainer;
use trajectory::{Recorded, assert_final, assert_trajectory, config, json, model, train};

fn assert_golden(folder: &str, recipe: Recipe, stage_name: &str, kind: &str) {
    let golden = json(&shared(&format!("{folder}/train/{stage_name}-{kind}.json")));
    let stage = stage::by_name(stage_name).expect("a stage");
    let model = model(&format!("{folder}/{kind}"));
    let mut data = Recorded::open(&format!("{folder}/train/{stage_name}-batches.safetensors"));
    let config = config(stage.as_ref(), recipe, &golden);
    let what = format!("{folder}: {stage_name}-{kind}");
    assert_trajectory(&what, &train(&model, stage.as_ref(), &config, &mut data), &golden);
    assert_final(&what, &model.to_host().expect("weights"), &golden);
}

#[test]
fn pretraining_follows_the_2025_reference() {
    assert_golden("golden", Recipe::R2025, "pretrain", "minimind2");
    assert_golden("golden", Recipe::R2025, "pretrain", "minimind2-moe");
}

#[test]
fn sft_follows_the_2025_reference() {
    assert_golden("golden", Recipe::R2025, "sft", "minimind2");
}

#[test]
fn pretraining_follows_the_2026_reference_with_its_step_at_the_end_of_an_epoch() {
    assert_golden("golden-2026", Recipe::R2026, "pretrain", "minimind3");
    assert_golden("golden-2026", Recipe::R2026, "pretrain", "minimind3-moe");
    assert_golden("golden-2026", Recipe::R2026, "pretrain", "minimind3-moe-top2");
}

#[test]
fn sft_follows_the_2026_reference() {
    assert_golden("golden-2026", Recipe::R2026, "sft", "minimind3");
    assert_golden("golden-2026", Recipe::R2026, "sft", "minimind3-moe");
}

/// Case accumulation-tail: seven micro-steps, accumulation 2, with the 2025 learning rates.
#[test]
fn what_is_left_of_an_accumulation_is_dropped_or_applied_as_asked() {
    let expect = json(&shared("cases/files/accumulation-tail/expect.json"));
    for (name, step_at_epoch_end) in [("dropped", false), ("applied", true)] {
        let expect = &expect[name];
        let stage = stage::by_name("sft").expect("a stage");
        let config = TrainConfig {
            lr: 5e-4,
            accumulation: 2,
            epochs: 1,
            step_at_epoch_end,
            ..TrainConfig::new(stage.as_ref(), Recipe::R2025)
        };
        let model = model("golden/minimind2");
        let mut data = Recorded::open("golden/train/sft-batches.safetensors");
        data.batches.truncate(7);
        let mut trainer = Trainer::new(&model, stage.as_ref(), &config, &mut data).expect("a run");
        let steps = expect["optimizer_steps"].as_u64().expect("a count") as usize;
        assert_eq!(trainer.plan().steps, steps, "{name}: the count before training");
        let (mut micro_steps, mut stepped) = (Vec::new(), 0);
        while let Some(report) = trainer.advance().expect("a micro-step") {
            micro_steps.extend(report.micro_steps);
            stepped += usize::from(report.stepped);
        }
        assert_eq!((stepped, trainer.position().step), (steps, steps), "{name}");
        let losses = expect["losses"].as_array().expect("losses");
        assert_eq!(micro_steps.len(), losses.len(), "{name}");
        for (found, expected) in micro_steps.iter().zip(losses) {
            let (found, expected) = (found.loss.expect("a loss"), expected.as_f64().expect("f64"));
            assert!((found / expected - 1.0).abs() <= 1e-4, "{name}: {expected}, found {found}");
        }
        let weights = model.to_host().expect("weights");
        for (tensor, expected) in expect["final_l2"].as_object().expect("norms") {
            let found = weights.iter().find(|w| w.name == *tensor).expect("a tensor");
            let found = found.values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let expected = expected.as_f64().expect("a norm");
            // the two answers differ by 3e-5 for the embedding: half of that must tell them apart
            let difference = (found / expected - 1.0).abs();
            assert!(difference <= 2e-6, "{name}: {tensor}: {expected}, found {found}");
        }
    }
}

/// A micro-step in which no target is learned changes nothing and shows no loss.
#[test]
fn a_batch_without_a_learned_token_changes_no_weight() {
    for kind in ["minimind2", "minimind2-moe"] {
        let stage = stage::by_name("sft").expect("a stage");
        let model = model(&format!("golden/{kind}"));
        let before = model.to_host().expect("weights");
        let mut data = Recorded::open("golden/train/sft-batches.safetensors");
        data.batches.truncate(1);
        data.batches[0].mask.fill(0.0);
        let config =
            TrainConfig { lr: 1.0, epochs: 1, ..TrainConfig::new(stage.as_ref(), Recipe::R2025) };
        let steps = train(&model, stage.as_ref(), &config, &mut data);
        assert_eq!(steps[0].loss, None);
        assert_eq!(steps[0].grad_norm, None);
        assert_eq!(steps[0].to_json()["note"], "no trained tokens");
        assert!(model.to_host().expect("weights") == before, "{kind}: a weight has changed");
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_step_and_names_the_lines() {
    let stage = stage::by_name("pretrain").expect("a stage");
    for skip_non_finite in [false, true] {
        let model = model("golden/minimind2");
        let last_norm = &model.variables().last().expect("variables").tensor;
        assert_eq!(model.variables().last().expect("variables").name, "model.norm.weight");
        let mut data = Recorded::open("golden/train/pretrain-batches.safetensors");
        let config = TrainConfig {
            accumulation: 2,
            epochs: 1,
            skip_non_finite,
            ..TrainConfig::new(stage.as_ref(), Recipe::R2025)
        };
        let mut trainer = Trainer::new(&model, stage.as_ref(), &config, &mut data).expect("a run");
        trainer.advance().expect("finite");
        let _ = tch::no_grad(|| last_norm.shallow_clone().fill_(f64::NAN));
        let before = model.to_host().expect("weights");
        let result = trainer.advance();
        let said = match skip_non_finite {
            false => result.expect_err("not a number").to_string(),
            true => {
                let report = result.expect("left out").expect("a micro-step");
                assert!(!report.stepped);
                report.warning.expect("a warning")
            }
        };
        // micro-step 1 holds rows 5 to 8 of the file
        for part in ["micro-step 1 is NaN", "golden.jsonl:5", "golden.jsonl:8"] {
            assert!(said.contains(part), "{part:?} is not in {said:?}");
        }
        assert!(!said.contains("golden.jsonl:4"), "{said:?} blames a batch that was finite");
        let after = model.to_host().expect("weights");
        let bits = |of: &[mmx_training::model::HostTensor]| -> Vec<u32> {
            of.iter().flat_map(|t| t.values.iter().map(|v| v.to_bits())).collect()
        };
        assert_eq!(bits(&after), bits(&before), "a weight has changed");
    }
}

#[test]
fn a_run_without_an_optimizer_step_is_refused() {
    let stage = stage::by_name("sft").expect("a stage");
    let model = model("golden/minimind2");
    let mut data = Recorded::open("golden/train/sft-batches.safetensors");
    let config = TrainConfig {
        accumulation: 9,
        epochs: 1,
        ..TrainConfig::new(stage.as_ref(), Recipe::R2025)
    };
    let refused = Trainer::new(&model, stage.as_ref(), &config, &mut data).err();
    let said = refused.expect("8 micro-steps, accumulation 9").to_string();
    assert!(said.contains("expected at least one optimizer step, found none"), "{said}");
}

/// Samples that share rows: the same loss and gradient as with a row each, to 1e-5 (float32 sums in
/// another order).
#[test]
fn packed_rows_have_the_loss_and_gradient_of_separate_ones() {
    use mmx_converters::tokenizer::Tokenizer;
    use mmx_data::batches::{Batches, Ordered, Packed};
    use mmx_data::{Batch, Dataset, SampleOptions};

    for (folder, kind, recipe) in
        [("golden", "minimind2", Recipe::R2025), ("golden-2026", "minimind3", Recipe::R2026)]
    {
        let tokenizer = Tokenizer::open(shared(folder)).expect("a tokenizer");
        let files = [shared(&format!("{folder}/sft.jsonl"))];
        let stage = stage::by_name("sft").expect("a stage");
        // long enough that several of the samples fit into one row
        let options = SampleOptions::new(recipe, stage.kind(), 512);
        let data = Dataset::load(&files, &tokenizer, &options).expect("golden data");
        let all: Batch =
            Ordered::new(&data, &files, 1, false, data.len(), false).batch(0, 0).expect("a batch");
        let mut packed = Packed::new(&data, &files, 1, false, data.len());
        assert_eq!(packed.micro_steps(0), 1);
        let shared_rows = packed.batch(0, 0).expect("a batch");
        assert_eq!(shared_rows.packed.len(), all.batch, "all in one row");
        assert!(shared_rows.seq < all.batch * all.seq, "without padding");
        assert_eq!(shared_rows.lines.len(), data.len(), "each sample once");
        assert_eq!(shared_rows.trained_tokens(), all.trained_tokens());

        assert_same_loss(&format!("{folder}/{kind}"), stage.as_ref(), &all, &shared_rows);
    }
}

/// The same for mixtures of experts, whose balancing losses count samples, not rows: six samples of ten tokens.
#[test]
fn packed_rows_have_the_balancing_loss_of_separate_ones() {
    use mmx_data::Batch;

    let token = |sample: usize, i: usize| 3 + (sample * 131 + i * i * 17 + i) as i64 % 200;
    let separate = Batch {
        x: (0..60).map(|i| token(i / 10, i % 10)).collect(),
        y: (0..60).map(|i| token(i / 10, i % 10 + 1)).collect(),
        mask: vec![1.0; 60],
        batch: 6,
        seq: 10,
        ..Batch::default()
    };
    let packed = Batch { batch: 1, seq: 60, packed: vec![10; 6], ..separate.clone() };
    let stage = stage::by_name("pretrain").expect("a stage");
    for name in
        ["golden/minimind2-moe", "golden-2026/minimind3-moe", "golden-2026/minimind3-moe-top2"]
    {
        assert_same_loss(name, stage.as_ref(), &separate, &packed);
    }
}

/// Loss and gradients of two batches, to 1e-5.
fn assert_same_loss(
    name: &str,
    stage: &dyn stage::Stage,
    separate: &mmx_data::Batch,
    packed: &mmx_data::Batch,
) {
    let run = |batch: &mmx_data::Batch| {
        let model = model(name);
        let loss = stage.loss(&model, batch).expect("a loss").total.expect("learned tokens");
        let gradients = mmx_training::model::host_gradients(&model, &loss).expect("gradients");
        (loss.double_value(&[]), gradients)
    };
    let ((separate, gradients), (together, packed_gradients)) = (run(separate), run(packed));
    assert!((together / separate - 1.0).abs() < 1e-5, "{name}: {separate} {together}");
    for (a, b) in gradients.iter().zip(&packed_gradients) {
        let size = a.values.iter().map(|v| v * v).sum::<f32>().sqrt();
        let off = a.values.iter().zip(&b.values).map(|(x, y)| (x - y).powi(2)).sum::<f32>().sqrt();
        assert!(off <= 1e-5 * size, "{name}: {}: {off:e} of {size:e}", a.name);
    }
}
