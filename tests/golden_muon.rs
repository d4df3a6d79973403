//! The ladder's rung "batches to loss, gradient norm and final weights" for Muon: trajectories in float64 of both
//! families, followed in float32.

mod common;
mod trajectory;

use common::{mmx, mmx_error, shared, text};
use mmx_converters::arch::Role;
use mmx_training::config::{Decline, OptimizerName, TrainConfig};
use mmx_training::model::{HostTensor, Variable};
use mmx_training::stage::Pretrain;
use mmx_training::trainer::Trainer;
use serde_json::Value;
use trajectory::{Recorded, json, model};

fn number(of: &Value) -> f64 {
    of.as_f64().unwrap_or_else(|| panic!("expected a number, found {of}"))
}

/// What the golden run says of itself, as a configuration.
fn config(golden: &Value) -> TrainConfig {
    let (optimizer, schedule) = (&golden["optimizer"], &golden["schedule"]);
    let others = &optimizer["others"];
    assert_eq!((&schedule["name"], number(&schedule["final"])), (&"linear".into(), 0.0));
    let betas = (number(&others["betas"][0]), number(&others["betas"][1]));
    let config = TrainConfig {
        optimizer: OptimizerName::Muon,
        lr: number(&optimizer["lr"]),
        adam_lr: Some(number(&others["lr"])),
        weight_decay: number(&optimizer["weight_decay"]),
        betas,
        schedule: Decline::Linear,
        warmup: number(&schedule["warmup_steps"]) as usize,
        grad_clip: number(&golden["grad_clip"]),
        accumulation: number(&golden["accumulation_steps"]) as usize,
        epochs: 1,
        ..TrainConfig::named(&Pretrain, "2026").expect("a recipe")
    };
    let options = config.optimizer();
    assert_eq!(options.muon.expect("Muon").momentum, number(&optimizer["momentum"]));
    assert_eq!(options.adamw.eps, number(&others["eps"]));
    assert_eq!(options.adamw.weight_decay, number(&others["weight_decay"]));
    config
}

fn moved(before: &HostTensor, after: &HostTensor) -> f64 {
    let both = before.values.iter().zip(&after.values);
    both.map(|(a, b)| (f64::from(*b) - f64::from(*a)).powi(2)).sum::<f64>().sqrt()
}

/// Tolerances: float32 sums over eight steps against float64, through five matrix products of
/// products a step that are as steep as 3.4 near zero.
fn assert_golden(folder: &str, kind: &str) {
    let golden = json(&shared(&format!("golden-muon/pretrain-{kind}.json")));
    let model = model(&format!("{folder}/{kind}"));
    let before = model.to_host().expect("weights");
    let mut data = Recorded::open(&format!("{folder}/train/pretrain-batches.safetensors"));
    let config = config(&golden);
    let mut trainer = Trainer::new(&model, &Pretrain, &config, &mut data).expect("a run");
    let mut steps = Vec::new();
    while let Some(report) = trainer.advance().expect("a micro-step") {
        steps.extend(report.micro_steps.iter().map(|step| step.to_json()));
    }
    let expected = golden["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), expected.len(), "{kind}");
    for (i, (found, expected)) in steps.iter().zip(expected).enumerate() {
        for (key, tolerance) in
            [("lr", 1e-12), ("adam_lr", 1e-12), ("loss", 5e-5), ("grad_norm", 5e-4)]
        {
            let (found, expected) = (number(&found[key]), number(&expected[key]));
            let off = (found / expected - 1.0).abs();
            assert!(
                off <= tolerance,
                "{kind}, step {i}, {key}: {expected}, found {found}: {off:e}"
            );
        }
    }

    let muons = |v: &&Variable| v.role.is_some_and(Role::is_hidden_matrix);
    let mut found: Vec<&str> =
        model.variables().iter().filter(muons).map(|v| v.name.as_str()).collect();
    let names = golden["hidden_matrices"].as_array().expect("names");
    let mut hidden: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
    found.sort_unstable();
    hidden.sort_unstable();
    assert_eq!(found, hidden, "{kind}: the matrices that Muon changes");

    let after = model.to_host().expect("weights");
    let finals = golden["final"].as_object().expect("final weights");
    assert_eq!(after.len(), finals.len(), "{kind}");
    for (before, after) in before.iter().zip(&after) {
        let expected = &finals[&after.name];
        let off = moved(before, after) / number(&expected["moved_l2"]) - 1.0;
        assert!(off.abs() <= 2e-3, "{kind}: {} moved {off:e} off", after.name);
        let sum = after.values.iter().map(|&v| f64::from(v)).sum::<f64>();
        let off = (sum - number(&expected["sum"])).abs() / number(&expected["abs"]);
        assert!(off <= 1e-4, "{kind}: {} sum {off:e} off", after.name);
    }
}

#[test]
fn muon_follows_the_trajectory_of_minimind2() {
    assert_golden("golden", "minimind2");
}

#[test]
fn muon_follows_the_trajectory_of_minimind3() {
    assert_golden("golden-2026", "minimind3");
}

/// The options of a tiny run of some stage.
fn args<'a>(stage: &'a str, files: &'a [std::path::PathBuf; 4], more: &[&'a str]) -> Vec<&'a str> {
    let [data, tokenizer, from, out] = files;
    #[rustfmt::skip]
    let mut args = vec![
        "train", stage, "--data", text(data), "--tokenizer", text(tokenizer), "--from", text(from), "--out", text(out),
        "--batch-size", "1", "--accum", "2", "--max-seq-len", "96", "--dtype", "f32", "--device", "cpu",
        "--threads", "1", "--max-steps", "4",
    ];
    args.extend(more);
    args
}

#[test]
fn the_fast_recipe_takes_muon_for_pretraining_and_says_what_it_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let of = |data: &str, out: &str| {
        [
            shared(&format!("golden/{data}.jsonl")),
            shared("golden"),
            shared("golden/minimind2"),
            at(out),
        ]
    };
    let (files, trace, recipe) = (of("pretrain", "run"), at("trace.json"), at("recipe.toml"));
    fs_err::write(&recipe, "recipe = \"fast\"\nadam-lr = 2e-3\nschedule = \"linear\"\n")
        .expect("a file");
    let more = ["--recipe-file", text(&recipe), "--trace", text(&trace)];
    let out = mmx(&args("pretrain", &files, &more));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    for part in
        ["optimizer: muon for 14 hidden matrices", "a step has at most 192 tokens", "recipe fast"]
    {
        assert!(said.contains(part), "expected {part:?} in {said}");
    }
    let head = json(&trace);
    let optimizer = &head["optimizer"];
    assert_eq!((&optimizer["name"], number(&optimizer["lr"])), (&"Muon".into(), 3e-3));
    assert_eq!(number(&optimizer["others"]["lr"]), 2e-3);
    assert_eq!(head["schedule"]["name"], "linear");

    // what changes the numbers is no continuation
    let error = mmx_error(&args("pretrain", &files, &["--recipe", "fast", "--resume"]));
    assert!(error.contains("adam_lr: was 0.002, now 0.004"), "{error}");
    let error = mmx_error(&args("pretrain", &files, &["--resume"]));
    assert!(error.contains("optimizer: was \"muon\", now \"adamw\""), "{error}");

    let out = mmx(&args("sft", &of("sft", "sft"), &["--recipe", "fast"]));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    assert!(said.contains("recipe fast: stage sft is as in 2026"), "{said}");
    let out = mmx(&args("dpo", &of("dpo", "dpo"), &["--optimizer", "muon"]));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn options_of_the_optimizer_that_make_no_run_are_misuse() {
    let dir = tempfile::tempdir().expect("a folder");
    let files = [
        shared("golden/sft.jsonl"),
        shared("golden"),
        shared("golden/minimind2"),
        dir.path().join("run"),
    ];
    for (stage, more, expected) in [
        ("lora", &["--optimizer", "muon"][..], "--optimizer: expected adamw with lora"),
        ("sft", &["--adam-lr", "1e-3"], "--adam-lr: expected none, but with --optimizer muon"),
        ("sft", &["--betas", "0.9"], "--betas: expected two numbers"),
        ("sft", &["--betas", "0.9,1"], "--betas: expected two numbers from 0 to below 1"),
        ("sft", &["--optimizer", "muon", "--adam-lr", "0"], "--adam-lr: expected a number above 0"),
        ("sft", &["--recipe", "slow"], "--recipe: expected 2025, 2026 or fast, found slow"),
    ] {
        let out = mmx(&args(stage, &files, more));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{more:?}: {said}");
        assert!(said.contains(expected), "expected {expected:?} in {said}");
        assert!(!files[3].exists(), "{more:?}");
    }
}
