//! A run of several processes trains as one process does: the golden trajectories of all stages, with
//! the batches' rows divided among 2 and 4 ranks, rows that teach nothing, and ranks without rows.
//! The ranks are this test program itself, started anew for each.

mod common;
#[path = "common/port.rs"]
mod port;
#[path = "common/ranks.rs"]
mod ranks;
mod trajectory;

use std::path::Path;

use common::shared;
use mmx_converters::digest;
use mmx_converters::model::adapter::Adapters;
use mmx_converters::safetensors::SafeTensors;
use mmx_converters::tokenizer::Tokenizer;
use mmx_data::batches::{Batches, Part};
use mmx_data::{Batch, Recipe, Share};
use mmx_training::config::{DistillOptions, Logps, OptimizerName, TrainConfig};
use mmx_training::model::{HostTensor, Model};
use mmx_training::ranks::{Ranks, Reduce, Shard, Spread};
use mmx_training::report::log::trace;
use mmx_training::session::held_out_loss;
use mmx_training::stage::{self, Setup, Stage};
use mmx_training::trainer::{MicroStep, Trainer};
use ranks::run;
use serde_json::{Map, Value};
use tch::{Device, Kind};
use trajectory::{Recorded, assert_trajectory, config, json, model};

/// A rank of the tests below; the environment says what it does.
#[test]
#[ignore = "a process of the other tests, which start it"]
fn rank() {
    let (does, ranks) = ranks::this();
    match does.as_str() {
        "goldens of 2025" => goldens(&spread(&ranks), "golden"),
        "goldens of 2026" => goldens(&spread(&ranks), "golden-2026"),
        "goldens of 2025, gradients divided" => goldens(&divided(&ranks), "golden"),
        "goldens of 2026, gradients divided" => goldens(&divided(&ranks), "golden-2026"),
        "uneven" => uneven(&ranks),
        "spreads" => spreads(&ranks),
        "gradients" => gradients(&ranks),
        "muon" => muon(&ranks),
        "not finite" => not_finite(&ranks),
        other => panic!("{other}: unknown"),
    }
    ranks.meet("the end of the test").expect("all ranks");
}

#[test]
fn two_and_four_ranks_follow_the_2025_reference_in_all_stages() {
    [2, 4].iter().for_each(|&size| run("goldens of 2025", size));
}

#[test]
fn two_and_four_ranks_follow_the_2026_reference_in_all_stages() {
    [2, 4].iter().for_each(|&size| run("goldens of 2026", size));
}

#[test]
fn two_and_four_ranks_with_divided_gradients_follow_the_2025_reference_in_all_stages() {
    [2, 4].iter().for_each(|&size| run("goldens of 2025, gradients divided", size));
}

#[test]
fn two_and_four_ranks_with_divided_gradients_follow_the_2026_reference_in_all_stages() {
    [2, 4].iter().for_each(|&size| run("goldens of 2026, gradients divided", size));
}

#[test]
fn rows_that_teach_nothing_and_ranks_without_rows_take_part() {
    [2, 3].iter().for_each(|&size| run("uneven", size));
}

#[test]
fn divided_moments_change_no_bit_and_gradients_in_bfloat16_little() {
    [2, 3].iter().for_each(|&size| run("spreads", size));
}

#[test]
fn divided_gradients_change_roundings_only_and_lie_in_pieces() {
    [2, 3, 4].iter().for_each(|&size| run("gradients", size));
}

#[test]
fn muon_with_each_rank_a_share_of_the_matrices_is_muon() {
    [2, 3].iter().for_each(|&size| run("muon", size));
}

#[test]
fn a_share_that_is_not_finite_is_the_same_error_on_all_ranks() {
    run("not finite", 2);
}

/// A rank's share of a recorded batch: its rows, of preference pairs both.
fn share(batch: &Batch, part: Part, pairs: bool) -> Batch {
    let halves = if pairs { 2 } else { 1 };
    let samples = batch.batch / halves;
    let own = part.of(samples);
    let rows: Vec<usize> = (0..halves)
        .flat_map(|half| own.clone().map(move |sample| half * samples + sample))
        .collect();
    let cut = |row: &usize| row * batch.seq..(row + 1) * batch.seq;
    Batch {
        x: rows.iter().flat_map(|row| batch.x[cut(row)].to_vec()).collect(),
        y: rows.iter().flat_map(|row| batch.y[cut(row)].to_vec()).collect(),
        mask: rows.iter().flat_map(|row| batch.mask[cut(row)].to_vec()).collect(),
        batch: rows.len(),
        seq: batch.seq,
        lines: rows.iter().map(|&row| batch.lines[row]).collect(),
        share: Some(Share {
            sequences: batch.batch,
            positions: batch.x.len(),
            learned: batch.trained_tokens(),
            before: own.start,
        }),
        ..Batch::default()
    }
}

/// A golden run.
struct Golden<'a> {
    folder: &'a str,
    recipe: Recipe,
    stage: &'a str,
    /// The trajectory's file, without its ending.
    name: &'a str,
    batches: &'a str,
    kind: &'a str,
}

impl Golden<'_> {
    fn json(&self) -> Value {
        json(&shared(&format!("{}/train/{}.json", self.folder, self.name)))
    }

    /// The stage made ready, with its model.
    fn prepare(&self) -> (Box<dyn Stage>, TrainConfig, Model) {
        let Self { folder, recipe, kind, .. } = *self;
        let mut stage = stage::by_name(self.stage).expect("a stage");
        let mut config = config(stage.as_ref(), recipe, &self.json());
        if let Some(dpo) = &mut config.dpo {
            dpo.logps = if self.name.contains("mean") { Logps::Mean } else { Logps::Sum };
        }
        if self.name.contains("a0.5") {
            config.distill = Some(DistillOptions { alpha: 0.5, temperature: 1.5 });
        }
        let mut model = model(&format!("{folder}/{kind}"));
        let frozen = match self.stage {
            "dpo" => Some(self::model(&format!("{folder}/{kind}"))),
            "distill" => Some(teacher(folder)),
            _ => None,
        };
        let start = shared(&format!("{folder}/train/lora-start.safetensors"));
        let adapters = (self.stage == "lora")
            .then(|| (start.clone(), Adapters::open(&start).expect("golden adapters")));
        let tokenizer = Tokenizer::open(shared(folder)).expect("a tokenizer");
        let setup = Setup { frozen, adapters, tokenizer: Some(&tokenizer), ..Setup::new(&config) };
        stage.prepare(&mut model, setup).expect("made ready");
        (stage, config, model)
    }

    /// Trains on shares of the batches, or alone.
    fn train(&self, spread: &Spread, batches: &[Batch]) -> (Vec<MicroStep>, Moved) {
        self.train_with(spread, batches, OptimizerName::AdamW)
    }

    fn train_with(
        &self,
        spread: &Spread,
        batches: &[Batch],
        optimizer: OptimizerName,
    ) -> (Vec<MicroStep>, Moved) {
        let (stage, config, mut model) = self.prepare();
        let config = TrainConfig { optimizer, ..config };
        let start = model.to_host().expect("weights");
        let mut data = shares(batches, &spread.ranks, self.stage == "dpo");
        model.set_ranks(spread.ranks.clone());
        let mut trainer =
            Trainer::among(&model, stage.as_ref(), &config, &mut data, spread.clone())
                .expect("a run");
        trainer.agree().expect("the same weights");
        let mut steps = Vec::new();
        while let Some(report) = trainer.advance().expect("a micro-step") {
            steps.extend(report.micro_steps);
        }
        (steps, Moved { start, end: model.to_host().expect("weights") })
    }

    fn recorded(&self) -> Vec<Batch> {
        let path = format!("{}/train/{}-batches.safetensors", self.folder, self.batches);
        Recorded::open(&path).batches
    }
}

fn shares(batches: &[Batch], ranks: &Ranks, pairs: bool) -> Recorded {
    let own = |batch: &Batch| match ranks.part() {
        Some(part) => share(batch, part, pairs),
        None => batch.clone(),
    };
    Recorded { batches: batches.iter().map(own).collect() }
}

fn teacher(folder: &str) -> Model {
    let kind = if folder == "golden" { "golden/minimind2-moe" } else { "golden-2026/minimind3" };
    let open = mmx_converters::Model::open(shared(kind)).expect("a golden model");
    let path = format!("{folder}/train/distill-teacher.safetensors");
    let file = SafeTensors::open(shared(&path)).expect("a teacher");
    let names: Vec<&str> = file.names().collect();
    let source = |name: &str| file.get(name);
    Model::load(&open.config, Path::new(&path), names, source, Device::Cpu, Kind::Float)
        .expect("a teacher")
}

/// Weights before and after a run.
struct Moved {
    start: Vec<HostTensor>,
    end: Vec<HostTensor>,
}

impl Moved {
    fn bits(&self) -> String {
        let values = self.end.iter().flat_map(|tensor| &tensor.values);
        let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
        digest::of_bytes(&bytes)
    }

    /// How far each weight has moved, to 1e-3 of what another run gives.
    fn assert_close(&self, other: &Self, what: &str) {
        let of = |run: &Self| trace(Map::new(), &[], &run.start, &run.end)["final"].clone();
        let (found, expected) = (of(self), of(other));
        for (name, expected) in expected.as_object().expect("weights") {
            let number = |of: &Value, key: &str| of[key].as_f64().expect("a number");
            let size = number(expected, "moved_abs");
            for (key, scale) in [("moved_sum", size), ("moved_abs", size), ("moved_l2", 0.0)] {
                let (found, expected) = (number(&found[name], key), number(expected, key));
                let off = (found - expected).abs();
                let scale = expected.abs().max(scale).max(1e-9);
                assert!(off <= 1e-3 * scale, "{what}: {name} {key}: {expected}, found {found}");
            }
        }
    }
}

fn spread(ranks: &Ranks) -> Spread {
    Spread { ranks: ranks.clone(), ..Spread::default() }
}

/// Moments and gradients are divided.
fn divided(ranks: &Ranks) -> Spread {
    Spread { shard: Shard::Gradients, ..spread(ranks) }
}

/// All golden runs of a folder: trajectory, how far weights moved, equal weights on all ranks.
fn goldens(spread: &Spread, folder: &str) {
    let ranks = &spread.ranks;
    let (recipe, runs): (Recipe, &[[&str; 4]]) = match folder {
        "golden" => (
            Recipe::R2025,
            &[
                ["pretrain", "pretrain-minimind2", "pretrain", "minimind2"],
                ["pretrain", "pretrain-minimind2-moe", "pretrain", "minimind2-moe"],
                ["sft", "sft-minimind2", "sft", "minimind2"],
                ["lora", "lora-minimind2", "sft", "minimind2"],
                ["dpo", "dpo-mean-minimind2", "dpo", "minimind2"],
                ["dpo", "dpo-sum-minimind2", "dpo", "minimind2"],
                ["distill", "distill-a0.0-t1.0-minimind2", "sft", "minimind2"],
                ["distill", "distill-a0.5-t1.5-minimind2", "sft", "minimind2"],
                ["reason", "reason-minimind2", "reason", "minimind2"],
            ],
        ),
        _ => (
            Recipe::R2026,
            &[
                ["pretrain", "pretrain-minimind3", "pretrain", "minimind3"],
                ["pretrain", "pretrain-minimind3-moe", "pretrain", "minimind3-moe"],
                ["pretrain", "pretrain-minimind3-moe-top2", "pretrain", "minimind3-moe-top2"],
                ["sft", "sft-minimind3", "sft", "minimind3"],
                ["sft", "sft-minimind3-moe", "sft", "minimind3-moe"],
                ["lora", "lora-minimind3", "sft", "minimind3"],
                ["dpo", "dpo-minimind3", "dpo", "minimind3"],
                ["dpo", "dpo-minimind3-moe", "dpo", "minimind3-moe"],
                ["distill", "distill-minimind3-moe", "sft", "minimind3-moe"],
            ],
        ),
    };
    for &[stage, name, batches, kind] in runs {
        let golden = Golden { folder, recipe, stage, name, batches, kind };
        let what = format!("{folder}: {name}, rank {} of {}", ranks.rank(), ranks.size());
        let batches = golden.recorded();
        let (steps, moved) = golden.train(spread, &batches);
        assert_trajectory(&what, &steps, &golden.json());
        let (_, alone) = golden.train(&Spread::default(), &batches);
        moved.assert_close(&alone, &what);
        let first = ranks.text_of_first(&moved.bits()).expect("rank 0's");
        assert_eq!(moved.bits(), first, "{what}: other weights than rank 0's");
        let (again, moved_again) = golden.train(spread, &batches);
        assert!(steps == again, "{what}: another run gives other numbers");
        assert_eq!(moved.bits(), moved_again.bits(), "{what}: another run gives other weights");
    }
}

/// Batches that give ranks nothing: masked rows, fewer rows than ranks, none that is learned at all,
/// and rows whose tokens choose few experts.
fn uneven(ranks: &Ranks) {
    for (folder, recipe, stage, name, kind) in [
        ("golden", Recipe::R2025, "sft", "sft-minimind2", "minimind2"),
        ("golden", Recipe::R2025, "pretrain", "pretrain-minimind2-moe", "minimind2-moe"),
        ("golden", Recipe::R2025, "reason", "reason-minimind2", "minimind2"),
        ("golden-2026", Recipe::R2026, "sft", "sft-minimind3-moe", "minimind3-moe"),
        ("golden-2026", Recipe::R2026, "dpo", "dpo-minimind3-moe", "minimind3-moe"),
        ("golden-2026", Recipe::R2026, "distill", "distill-minimind3-moe", "minimind3-moe"),
        (
            "golden-2026",
            Recipe::R2026,
            "pretrain",
            "pretrain-minimind3-moe-top2",
            "minimind3-moe-top2",
        ),
    ] {
        let batches = match stage {
            "distill" => "sft",
            other => other,
        };
        let golden = Golden { folder, recipe, stage, name, batches, kind };
        let recorded = golden.recorded();
        let (first, pairs) = (recorded[0].clone(), stage == "dpo");
        let rows = |count: usize| {
            let part = Part { rank: 0, ranks: first.batch / count / if pairs { 2 } else { 1 } };
            Batch { share: None, ..share(&first, part, pairs) }
        };
        let masked = |from: usize, to: usize| {
            let mut batch = first.clone();
            batch.mask[from * batch.seq..to * batch.seq].fill(0.0);
            batch
        };
        let mut one_token = first.clone();
        let last = (first.batch - 1) * first.seq;
        one_token.x[last..].fill(7);
        let mut cases = vec![rows(1), first.clone(), one_token];
        if !pairs {
            // the last rank's rows, all but the first rank's, every row
            cases.extend([masked(2, 4), masked(0, 3), masked(0, 4), first.clone()]);
        }
        cases.push(rows(1));
        let what = format!("{name}, rank {} of {}", ranks.rank(), ranks.size());
        let (expected, alone) = golden.train(&Spread::default(), &cases);
        let golden_form: Vec<Value> = expected.iter().map(MicroStep::to_json).collect();
        let golden_form = serde_json::json!({ "steps": golden_form });
        let tokens = |of: &[MicroStep]| of.iter().map(|m| m.trained_tokens).collect::<Vec<_>>();
        for spread in [spread(ranks), divided(ranks)] {
            let (found, moved) = golden.train(&spread, &cases);
            assert_trajectory(&what, &found, &golden_form);
            assert_eq!(tokens(&found), tokens(&expected), "{what}");
            moved.assert_close(&alone, &what);
        }
        held_out(&golden, ranks, &cases, &what);
    }
}

/// The held-out loss of batches is that of one process.
fn held_out(golden: &Golden<'_>, ranks: &Ranks, batches: &[Batch], what: &str) {
    let (stage, _, mut model) = golden.prepare();
    let loss = |model: &Model, ranks: &Ranks| {
        let mut data = shares(batches, ranks, golden.stage == "dpo");
        assert_eq!(data.micro_steps(0), batches.len());
        held_out_loss(stage.as_ref(), model, &mut data, ranks).expect("computed").expect("a loss")
    };
    let alone = loss(&model, &Ranks::default());
    model.set_ranks(ranks.clone());
    let together = loss(&model, ranks);
    assert!((together / alone - 1.0).abs() < 1e-6, "{what}: held out {alone}, found {together}");
}

/// The moments divided, and gradients that travel in bfloat16.
fn spreads(ranks: &Ranks) {
    for (folder, recipe, stage, name, kind) in [
        ("golden", Recipe::R2025, "pretrain", "pretrain-minimind2", "minimind2"),
        ("golden-2026", Recipe::R2026, "pretrain", "pretrain-minimind3-moe", "minimind3-moe"),
        ("golden-2026", Recipe::R2026, "lora", "lora-minimind3", "minimind3"),
    ] {
        let batches = if stage == "lora" { "sft" } else { stage };
        let golden = Golden { folder, recipe, stage, name, batches, kind };
        let batches = golden.recorded();
        let (steps, moved) = golden.train(&spread(ranks), &batches);
        let sharded = Spread { shard: Shard::Optimizer, ..spread(ranks) };
        let (of_shards, moved_shards) = golden.train(&sharded, &batches);
        assert!(steps == of_shards, "{name}: other numbers with divided moments");
        assert_eq!(moved.bits(), moved_shards.bits(), "{name}: other weights");
        let half = Spread { reduce: Reduce::Bf16, ..spread(ranks) };
        let (of_halves, _) = golden.train(&half, &batches);
        for (a, b) in steps.iter().zip(&of_halves) {
            // gradients of 8 bits
            let (a, b) = (a.loss.expect("a loss"), b.loss.expect("a loss"));
            assert!((a / b - 1.0).abs() < 1e-2, "{name}: {a}, in bfloat16 {b}");
        }
        assert!(steps != of_halves, "{name}: nothing was rounded");
    }
}

/// The gradients divided: the numbers of those that are not but for roundings; accumulated over several
/// micro-steps, in bfloat16, and of adapters, whose gradients are fewer than processes have parts.
fn gradients(ranks: &Ranks) {
    for (folder, recipe, stage, name, kind) in [
        ("golden", Recipe::R2025, "pretrain", "pretrain-minimind2", "minimind2"),
        ("golden-2026", Recipe::R2026, "pretrain", "pretrain-minimind3-moe", "minimind3-moe"),
        ("golden-2026", Recipe::R2026, "lora", "lora-minimind3", "minimind3"),
    ] {
        let batches = if stage == "lora" { "sft" } else { stage };
        let golden = Golden { folder, recipe, stage, name, batches, kind };
        let batches = golden.recorded();
        let what = format!("{name}, rank {} of {}", ranks.rank(), ranks.size());
        let (expected, alone) = golden.train(&spread(ranks), &batches);
        let (steps, moved) = golden.train(&divided(ranks), &batches);
        for (a, b) in expected.iter().zip(&steps) {
            let off = |a: f64, b: f64| (b / a - 1.0).abs();
            let (loss, found) = (a.loss.expect("a loss"), b.loss.expect("a loss"));
            assert!(off(loss, found) < 1e-6, "{what}: {loss}, found {found}");
            assert_eq!(a.grad_norm.is_some(), b.grad_norm.is_some(), "{what}");
            if let (Some(norm), Some(found)) = (a.grad_norm, b.grad_norm) {
                assert!(off(norm, found) < 1e-4, "{what}: norm {norm}, found {found}");
            }
        }
        moved.assert_close(&alone, &what);
        let (again, moved_again) = golden.train(&divided(ranks), &batches);
        assert!(steps == again, "{what}: another run gives other numbers");
        assert_eq!(moved.bits(), moved_again.bits(), "{what}: another run gives other weights");
        let half = Spread { reduce: Reduce::Bf16, ..divided(ranks) };
        let (of_halves, _) = golden.train(&half, &batches);
        for (a, b) in steps.iter().zip(&of_halves) {
            // gradients of 8 bits
            let (a, b) = (a.loss.expect("a loss"), b.loss.expect("a loss"));
            assert!((a / b - 1.0).abs() < 1e-2, "{what}: {a}, in bfloat16 {b}");
        }
        assert!(steps != of_halves, "{what}: nothing was rounded");
    }
}

/// Each rank orthogonalizes its share of the matrices; with divided moments of the others too.
fn muon(ranks: &Ranks) {
    let golden = Golden {
        folder: "golden",
        recipe: Recipe::R2025,
        stage: "pretrain",
        name: "pretrain-minimind2",
        batches: "pretrain",
        kind: "minimind2",
    };
    let (batches, muon) = (golden.recorded(), OptimizerName::Muon);
    let (expected, alone) = golden.train_with(&Spread::default(), &batches, muon);
    let (steps, moved) = golden.train_with(&spread(ranks), &batches, muon);
    let expected: Vec<Value> = expected.iter().map(MicroStep::to_json).collect();
    let what = format!("muon, rank {} of {}", ranks.rank(), ranks.size());
    let expected = serde_json::json!({ "steps": expected });
    assert_trajectory(&what, &steps, &expected);
    moved.assert_close(&alone, &what);
    let (of_adamw, _) = golden.train(&spread(ranks), &batches);
    assert!(of_adamw.last() != steps.last(), "{what}: it is AdamW");
    let sharded = Spread { shard: Shard::Optimizer, ..spread(ranks) };
    let (of_shards, moved_shards) = golden.train_with(&sharded, &batches, muon);
    assert!(steps == of_shards, "{what}: other numbers with divided moments");
    assert_eq!(moved.bits(), moved_shards.bits(), "{what}");
    let first = ranks.text_of_first(&moved.bits()).expect("rank 0's");
    assert_eq!(moved.bits(), first, "{what}: other weights than rank 0's");
    let (of_parts, moved_parts) = golden.train_with(&divided(ranks), &batches, muon);
    assert_trajectory(&what, &of_parts, &expected);
    moved_parts.assert_close(&alone, &what);
    let first = ranks.text_of_first(&moved_parts.bits()).expect("rank 0's");
    assert_eq!(moved_parts.bits(), first, "{what}: other weights than rank 0's");
}

/// One rank's share gives no number: all ranks name the lines of the whole batch, and leave their weights
/// as they are.
fn not_finite(ranks: &Ranks) {
    let spreads = [spread(ranks), divided(ranks)];
    for (skip_non_finite, spread) in [false, true]
        .into_iter()
        .flat_map(|skip| spreads.iter().map(move |spread| (skip, spread.clone())))
    {
        let golden = Golden {
            folder: "golden",
            recipe: Recipe::R2025,
            stage: "pretrain",
            name: "pretrain-minimind2",
            batches: "pretrain",
            kind: "minimind2",
        };
        let (stage, config, model) = golden.prepare();
        let config = TrainConfig { skip_non_finite, ..config };
        let mut data = shares(&golden.recorded(), ranks, false);
        let mut trainer =
            Trainer::among(&model, stage.as_ref(), &config, &mut data, spread).expect("a run");
        trainer.agree().expect("the same weights");
        if ranks.rank() == 1 {
            let norm = &model.variables().last().expect("variables").tensor;
            let _ = tch::no_grad(|| norm.shallow_clone().fill_(f64::NAN));
        }
        let before = Moved { start: Vec::new(), end: model.to_host().expect("weights") };
        trainer.advance().expect("nothing is known yet");
        let said = match (trainer.advance(), skip_non_finite) {
            (Err(error), false) => error.to_string(),
            (Ok(Some(report)), true) => report.warning.expect("a warning"),
            (other, _) => panic!("{other:?}"),
        };
        let first = ranks.text_of_first(&said).expect("rank 0's");
        assert_eq!(said, first, "another decision than rank 0's");
        for part in ["micro-step 0 is NaN", "golden.jsonl:1,", "golden.jsonl:4"] {
            assert!(said.contains(part), "{part:?} is not in {said:?}");
        }
        assert_eq!(trainer.failed_together(), !skip_non_finite);
        let after = Moved { start: Vec::new(), end: model.to_host().expect("weights") };
        assert_eq!(after.bits(), before.bits(), "a weight has changed");
    }
}
