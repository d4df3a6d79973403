//! Learning from rewards through the program: the runner samples with the weights of now, runs go on exactly, and a
//! file of rollouts takes the place of the runner.

mod common;

use std::path::{Path, PathBuf};

use common::{copy, mmx, mmx_error, mmx_json, shared, text};
use serde_json::Value;

/// Tasks, and a reward in which chance makes the answers of a group differ.
fn tasks(dir: &Path) -> (PathBuf, PathBuf) {
    let (tasks, reward) = (dir.join("tasks.jsonl"), dir.join("reward.json"));
    let lines: String = (0..6).map(|i| format!("{{\"prompt\": \"{i} + {i} = ?\"}}\n")).collect();
    fs_err::write(&tasks, lines).expect("tasks");
    let parts = r#"[{"type": "contains", "text": ["a", "e", "i", "o", "u", "1", "2"]},
        {"type": "regex", "pattern": "[m-z]", "weight": 0.5}]"#;
    fs_err::write(&reward, parts).expect("a reward");
    (tasks, reward)
}

/// A short run of a stage over some tasks.
fn args(stage: &str, dir: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let (tasks, reward) = tasks(dir);
    let (model, tokenizer) = (shared("golden-2026/minimind3"), shared("golden-2026"));
    let mut args = vec!["train", stage, "--from", text(&model), "--tokenizer", text(&tokenizer)];
    args.extend(["--data", text(&tasks), "--reward", text(&reward), "--out", text(out)]);
    args.extend(["--batch-size", "2", "--accum", "1", "--epochs", "1", "--lr", "1e-3"]);
    args.extend(["--max-new-tokens", "12", "--max-seq-len", "96", "--system-ratio", "0"]);
    args.extend(["--dtype", "f32", "--device", "cpu", "--threads", "1", "--group-size", "4"]);
    args.extend(more);
    args.into_iter().map(str::to_owned).collect()
}

fn run(args: &[String]) -> Value {
    mmx_json(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(path).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Sampling included: what is sampled after a resume is what would have been sampled without.
#[test]
fn resumed_runs_sample_and_end_as_unbroken_ones() {
    let dir = tempfile::tempdir().expect("a folder");
    for (stage, first) in [("grpo", 1), ("cispo", 2), ("agent", 1), ("ppo", 3)] {
        let at = |name: &str| dir.path().join(format!("{stage}-{name}"));
        let (whole, part) = (at("whole"), at("part"));
        let (rollouts, again) = (at("rollouts.jsonl"), at("again.jsonl"));
        let more = ["--save-every", "1", "--keep", "99", "--rollouts-out", text(&rollouts)];
        let end = run(&args(stage, dir.path(), &whole, &more));
        let steps = end["steps"].as_u64().expect("steps");
        assert!(steps > first, "{stage}: {steps} steps");
        let name = format!("checkpoint-{first:06}");
        copy(&whole.join(&name), &part.join(&name));
        // what was written until then, and more
        fs_err::copy(&rollouts, &again).expect("a copy");
        let more = ["--rollouts-out", text(&again), "--resume"];
        let resumed = run(&args(stage, dir.path(), &part, &more));
        assert_eq!(resumed["total_steps"], steps, "{stage}");
        let read = |run: &Path| {
            let last = run.join(format!("checkpoint-{steps:06}"));
            fs_err::read(last.join("model.safetensors")).expect("weights")
        };
        assert!(read(&whole) == read(&part), "{stage}: the resumed run ends elsewhere");
        let both = [&rollouts, &again].map(|path| fs_err::read(path).expect("a file"));
        assert!(both[0] == both[1], "{stage}: other rollouts");
    }
}

/// With equal float32 weights the trainer finds what was sampled as probable as the runner did.
#[test]
fn trainer_and_runner_agree_on_what_was_sampled() {
    let dir = tempfile::tempdir().expect("a folder");
    let (out, trace) = (dir.path().join("run"), dir.path().join("trace.json"));
    run(&args("grpo", dir.path(), &out, &["--trace", text(&trace)]));
    let trace = &lines_of(&trace)["steps"];
    let steps = trace.as_array().expect("steps");
    assert_eq!(steps.len(), 3);
    for step in steps {
        let number = |key: &str| step[key].as_f64().unwrap_or_else(|| panic!("{key}: {step}"));
        assert!((number("sampler_ratio") - 1.0).abs() <= 1e-3, "{step}");
        assert!(number("sampler_ratio_outside") == 0.0, "{step}");
        assert!(number("entropy") > 0.0 && number("reward_std") > 0.0, "{step}");
        assert!(step["rollout"]["reward_contains"].is_number(), "{step}");
    }
}

fn lines_of(path: &Path) -> Value {
    serde_json::from_str(&fs_err::read_to_string(path).expect("a file")).expect("JSON")
}

/// What was written can be trained from, with the same first step: its policy is that of the file.
#[test]
fn a_file_of_rollouts_gives_the_step_that_it_was_sampled_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let rollouts = at("rollouts.jsonl");
    let more =
        ["--rollouts-out", text(&rollouts), "--trace", text(&at("a.json"))].map(str::to_owned);
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    run(&args("grpo", dir.path(), &at("a"), &more));
    let rows = lines(&rollouts);
    assert_eq!(rows.len(), 3 * 2 * 4);
    for row in &rows {
        let length = row["response_ids"].as_array().expect("ids").len();
        assert!(length > 0 && row["mask"].as_array().expect("a mask").len() == length, "{row}");
        assert!(row["step"].is_u64() && row["logps"].as_array().expect("numbers").len() == length);
    }
    let (model, tokenizer) = (shared("golden-2026/minimind3"), shared("golden-2026"));
    let (out, trace) = (at("b"), at("b.json"));
    let mut from_file = vec!["train", "grpo", "--from", text(&model), "--tokenizer"];
    from_file.extend([text(&tokenizer), "--rollouts", text(&rollouts), "--out", text(&out)]);
    from_file.extend(["--accum", "1", "--lr", "1e-3", "--dtype", "f32", "--device", "cpu"]);
    from_file.extend(["--threads", "1", "--trace", text(&trace)]);
    mmx_json(&from_file);
    let norm = |path: &Path| lines_of(path)["steps"][0]["grad_norm"].as_f64().expect("a norm");
    let (sampled, read) = (norm(&at("a.json")), norm(&trace));
    assert!((sampled / read - 1.0).abs() < 1e-3, "{sampled} {read}");
}

/// LoRA: the adapters are trained, and merged for the runner.
#[test]
fn adapters_learn_from_rewards() {
    let dir = tempfile::tempdir().expect("a folder");
    let (out, trace) = (dir.path().join("run"), dir.path().join("trace.json"));
    run(&args("grpo", dir.path(), &out, &["--lora-rank", "2", "--trace", text(&trace)]));
    let steps = lines_of(&trace)["steps"].as_array().expect("steps").clone();
    let kl = |i: usize| steps[i]["kl"].as_f64().expect("a divergence");
    assert!(kl(0).abs() < 1e-6 && kl(2) > 0.0, "the base is the reference: {} {}", kl(0), kl(2));
    let ratio = steps[2]["sampler_ratio"].as_f64().expect("a ratio");
    assert!((ratio - 1.0).abs() < 1e-3, "the runner samples without the adapters: {ratio}");
}

#[test]
fn rewards_that_are_always_equal_end_the_run_with_a_sentence() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let mut args = args("grpo", dir.path(), &out, &["--epochs", "9"]);
    let at = args.iter().position(|of| of == "--epochs").expect("epochs");
    args.drain(at..at + 2);
    let equal = r#"[{"type": "length", "min": 0}]"#;
    fs_err::write(dir.path().join("reward.json"), equal).expect("a reward");
    let said = mmx_error(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(said.contains("expected rewards that differ within a group"), "{said}");
}

#[test]
fn options_of_these_stages_are_refused_elsewhere_and_many_processes_here() {
    let usage = |args: &[&str]| {
        let out = mmx(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        String::from_utf8(out.stderr).expect("UTF-8")
    };
    let sft = ["train", "sft", "--data", "x", "--out", "y", "--from", "z", "--group-size", "2"];
    let said = usage(&sft);
    assert!(
        said.contains("--group-size: expected with a stage that learns from rewards"),
        "{said}"
    );
    let said = usage(&["train", "grpo", "--out", "y", "--from", "z"]);
    assert!(said.contains("--data"), "{said}");
    let grpo = ["train", "grpo", "--data", "x", "--out", "y", "--from", "z", "--recipe", "2025"];
    let said = usage(&grpo);
    assert!(said.contains("--recipe: expected 2026 or mmx, found 2025"), "{said}");
}
