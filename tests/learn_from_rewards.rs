//! Learning from rewards through the program: the runner samples with the weights of now, runs go on exactly, and a
//! file of rollouts takes the place of the runner.

#[path = "common/answering.rs"]
mod answering;
mod common;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

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
    args.extend(["--device", "cpu", "--threads", "1"]);
    for default in [["--dtype", "f32"], ["--group-size", "4"]] {
        args.extend(default.into_iter().filter(|_| !more.contains(&default[0])));
    }
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

/// Sampling included: what is sampled after a resume is what would have been sampled without. Of ppo
/// the break is within a batch, of spo within an accumulation's steps.
#[test]
fn resumed_runs_sample_and_end_as_unbroken_ones() {
    let drawn = ["--dynamic-sampling", "2", "--group-size", "2"];
    for (stage, first, more) in [
        ("grpo", 1, &[][..]),
        ("cispo", 2, &[]),
        ("agent", 1, &[]),
        ("ppo", 3, &[]),
        ("grpo", 2, &["--loss", "spo", "--group-size", "2"]),
        ("grpo", 1, &drawn),
        ("ppo", 3, &["--kl-in", "reward"]),
    ] {
        assert_resumes(stage, first, more);
    }
}

/// In bfloat16 the trainer rounds and the runner does not: see the test of how far they are apart.
#[test]
fn resumed_runs_in_bfloat16_end_as_unbroken_ones() {
    for (stage, first) in [("grpo", 1), ("cispo", 2), ("agent", 1), ("ppo", 3)] {
        assert_resumes(stage, first, &["--dtype", "bf16"]);
    }
}

fn assert_resumes(stage: &str, first: u64, more: &[&str]) {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (whole, part) = (at("whole"), at("part"));
    let (rollouts, again) = (at("rollouts.jsonl"), at("again.jsonl"));
    let of_whole = ["--save-every", "1", "--keep", "99", "--rollouts-out", text(&rollouts)];
    let end = run(&args(stage, dir.path(), &whole, &[&of_whole, more].concat()));
    let what = format!("{stage} {more:?}");
    let steps = end["steps"].as_u64().expect("steps");
    assert!(steps > first, "{what}: {steps} steps");
    let name = format!("checkpoint-{first:06}");
    copy(&whole.join(&name), &part.join(&name));
    // what was written until then, and more
    fs_err::copy(&rollouts, &again).expect("a copy");
    let of_part = ["--rollouts-out", text(&again), "--resume"];
    let resumed = run(&args(stage, dir.path(), &part, &[&of_part, more].concat()));
    assert_eq!(resumed["total_steps"], steps, "{what}");
    let read = |run: &Path| {
        let last = run.join(format!("checkpoint-{steps:06}"));
        let state = last.join("training/stage.safetensors");
        let state = if state.exists() { fs_err::read(state).expect("a state") } else { Vec::new() };
        (fs_err::read(last.join("model.safetensors")).expect("weights"), state)
    };
    assert!(read(&whole) == read(&part), "{what}: the resumed run ends elsewhere");
    let both = [&rollouts, &again].map(|path| fs_err::read(path).expect("a file"));
    assert!(both[0] == both[1], "{what}: other rollouts");
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

/// What is computed in bfloat16, or sampled from rounded weights, is of a slightly other distribution:
/// the weights that correct for it stay near 1. Bounds: eight bits of a mantissa, over the layers of a
/// golden model, measured 4 times below.
#[test]
fn rounded_weights_are_told_apart_from_the_trainers_by_a_little() {
    let dir = tempfile::tempdir().expect("a folder");
    let types = ["bf16", "f16", "q8_0"].map(|dtype| ["--rollout-dtype", dtype]);
    for more in [["--dtype", "bf16"]].into_iter().chain(types) {
        let (out, trace) = (dir.path().join(more.concat()), dir.path().join("trace.json"));
        let more = [&more[..], &["--trace", text(&trace)]].concat();
        run(&args("grpo", dir.path(), &out, &more));
        for step in lines_of(&trace)["steps"].as_array().expect("steps") {
            let number = |key: &str| step[key].as_f64().expect("a number");
            assert!((number("sampler_ratio") - 1.0).abs() < 0.05, "{more:?}: {step}");
            assert!(number("sampler_ratio_max") != 1.0, "{more:?}: nothing is rounded: {step}");
        }
    }
}

/// Prompts whose answers are all rewarded alike make room for others, and the log says how many.
#[test]
fn groups_without_signal_are_drawn_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    let (rollouts, trace) = (dir.path().join("rollouts.jsonl"), dir.path().join("trace.json"));
    let silent = |more: &[&str]| -> (f64, f64, Vec<Value>) {
        let out = tempfile::tempdir_in(dir.path()).expect("a folder");
        let given =
            ["--group-size", "2", "--rollouts-out", text(&rollouts), "--trace", text(&trace)];
        fs_err::write(&rollouts, "").expect("a file");
        run(&args("grpo", dir.path(), &out.path().join("run"), &[&given, more].concat()));
        let steps = lines_of(&trace)["steps"].as_array().expect("steps").clone();
        let sum = |of: &dyn Fn(&Value) -> Option<f64>| steps.iter().filter_map(of).sum::<f64>();
        let silent = sum(&|step| step["groups_without_signal"].as_f64());
        (silent, sum(&|step| step["rollout"]["groups_dropped"].as_f64()), lines(&rollouts))
    };
    let (without, dropped, rows) = silent(&[]);
    assert!(without > 0.0, "this reward is to leave groups without signal: {without}");
    assert_eq!((dropped, rows.len()), (0.0, 3 * 2 * 2));
    let (with, dropped, rows) = silent(&["--dynamic-sampling", "4"]);
    assert!(with < without && dropped >= 1.0, "{with} {without}, {dropped} dropped");
    assert_eq!(rows.len(), 3 * 2 * 2, "a batch stays as large as it is");
    let groups: Vec<u64> = rows.iter().map(|row| row["group"].as_u64().expect("a group")).collect();
    assert!(groups.iter().any(|&group| group > 100), "{groups:?}: none was drawn anew");
}

#[test]
fn long_answers_cost_what_the_options_say() {
    let dir = tempfile::tempdir().expect("a folder");
    let rollouts = dir.path().join("rollouts.jsonl");
    let more = ["--overlong-buffer", "8", "--rollouts-out", text(&rollouts)];
    run(&args("grpo", dir.path(), &dir.path().join("run"), &more));
    let rows = lines(&rollouts);
    for row in &rows {
        let ids = row["response_ids"].as_array().expect("ids").len() as f64;
        let parts = row["parts"].as_array().expect("parts");
        let value = |name: &str| {
            let part = parts.iter().find(|part| part[0] == name).expect(name);
            part[1].as_f64().expect("a number")
        };
        assert_eq!(value("overlong"), -((ids - 4.0) / 8.0).clamp(0.0, 1.0), "{row}");
        let sum = value("contains") + 0.5 * value("regex") + value("overlong");
        assert!((row["reward"].as_f64().expect("a reward") - sum).abs() < 1e-9, "{row}");
    }
    assert!(rows.iter().any(|row| row["finish"] == "length"), "none was cut off");
    let said = mmx(&args("agent", dir.path(), &dir.path().join("agent"), &more)
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>());
    assert_eq!(said.status.code(), Some(2));
    let said = String::from_utf8(said.stderr).expect("UTF-8");
    assert!(said.contains("--overlong-buffer: expected none with stage agent"), "{said}");
}

/// Held-out tasks are answered greedily before the first step, with every checkpoint and at the end.
#[test]
fn held_out_tasks_are_answered_and_rewarded_before_and_after() {
    let dir = tempfile::tempdir().expect("a folder");
    let (val, out) = (dir.path().join("val.jsonl"), dir.path().join("run"));
    let tasks: String = (0..5).map(|i| format!("{{\"prompt\": \"7 + {i} = ?\"}}\n")).collect();
    fs_err::write(&val, tasks).expect("tasks");
    let more = ["--val", text(&val), "--save-every", "2"];
    let end = run(&args("grpo", dir.path(), &out, &more));
    let measured: Vec<Value> = lines(&out.join("metrics.jsonl"))
        .into_iter()
        .filter(|line| line.get("val_reward").is_some())
        .collect();
    let steps: Vec<u64> = measured.iter().map(|of| of["step"].as_u64().expect("a step")).collect();
    assert_eq!(steps, [0, 2, 3]);
    for line in &measured {
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key}: {line}"));
        let parts = number("val_reward_contains") + 0.5 * number("val_reward_regex");
        assert!((number("val_reward") - parts).abs() < 1e-9, "{line}");
        assert!(
            number("val_length") > 0.0 && line["samples"].as_array().expect("texts").len() == 3
        );
    }
    assert_eq!(end["val_reward"], measured[2]["val_reward"]);
    // greedy, with the weights of the start: whoever answers them is rewarded the same
    let again = dir.path().join("again");
    let first = args("grpo", dir.path(), &again, &["--val", text(&val), "--max-steps", "1"]);
    run(&first);
    let lines = lines(&again.join("metrics.jsonl"));
    assert_eq!(lines[0]["val_reward"], measured[0]["val_reward"]);
    assert_eq!(lines[0]["samples"], measured[0]["samples"]);
    // nothing samples where there is a file of rollouts
    let (model, tokenizer) = (shared("golden-2026/minimind3"), shared("golden-2026"));
    let mut refused =
        vec!["train", "grpo", "--from", text(&model), "--tokenizer", text(&tokenizer)];
    let out = dir.path().join("from-file");
    refused.extend(["--rollouts", text(&val), "--val", text(&val), "--out", text(&out)]);
    let refused = mmx(&refused);
    let said = String::from_utf8(refused.stderr).expect("UTF-8");
    assert!(said.contains("--val: expected none with"), "{said}");
    assert_eq!(refused.status.code(), Some(2), "{said}");
}

/// A server that tells ids as vLLM does: what it answers is trained on, each id as probable as it
/// says, with the prompts and settings that the run has.
#[test]
fn a_server_that_tells_ids_samples_for_a_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let asked = Arc::new(Mutex::new(Vec::<Value>::new()));
    let heard = asked.clone();
    let address = answering::answering(move |method, path, body| match (method, path) {
        ("GET", "/v1/models") => (200, r#"{"data": [{"id": "policy"}]}"#.to_owned()),
        ("POST", "/v1/completions") => {
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            // other ids for another seed, the last one a stop id
            let seed = body["seed"].as_u64().expect("a seed");
            let count = 2 + seed % 3;
            let mut ids: Vec<u64> = (0..count).map(|i| 100 + (seed >> (8 * i)) % 200).collect();
            ids.push(body["stop_token_ids"][0].as_u64().expect("a stop id"));
            let logps: Vec<f64> = ids.iter().map(|id| -0.5 - *id as f64 / 512.0).collect();
            heard.lock().expect("a list").push(body);
            let choice = serde_json::json!({"token_ids": ids, "finish_reason": "stop",
                "logprobs": {"token_logprobs": logps}});
            (200, serde_json::json!({"choices": [choice]}).to_string())
        }
        other => panic!("asked for {other:?}"),
    });
    let (out, rollouts) = (dir.path().join("run"), dir.path().join("rollouts.jsonl"));
    let trace = dir.path().join("trace.json");
    let engine = format!("openai:http://{address}");
    let more = ["--engine", &engine, "--rollouts-out", text(&rollouts), "--trace", text(&trace)];
    run(&args("grpo", dir.path(), &out, &more));
    let rows = lines(&rollouts);
    let asked = asked.lock().expect("a list");
    assert_eq!((rows.len(), asked.len()), (3 * 2 * 4, 3 * 2 * 4));
    for row in &rows {
        let found = asked.iter().filter(|body| body["prompt"] == row["prompt_ids"]).count();
        assert!(found >= 4, "{row}: a group asks for its prompt");
        let (ids, logps) = (row["response_ids"].as_array(), row["logps"].as_array());
        for (id, logp) in ids.expect("ids").iter().zip(logps.expect("numbers")) {
            let told = -0.5 - id.as_f64().expect("an id") / 512.0;
            assert!((logp.as_f64().expect("a number") - told).abs() < 1e-6, "{row}");
        }
        assert_eq!(row["finish"], "stop");
    }
    for body in asked.iter() {
        assert_eq!((&body["model"], &body["max_tokens"]), (&"policy".into(), &12.into()), "{body}");
        assert_eq!(
            (&body["temperature"], body["return_token_ids"].as_bool()),
            (&1.0.into(), Some(true))
        );
    }
    // its weights are not the trainer's, and the log says how far apart they are
    for step in lines_of(&trace)["steps"].as_array().expect("steps") {
        assert!(step["sampler_ratio_outside"].as_f64().expect("a share") > 0.5, "{step}");
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
fn options_of_these_stages_are_refused_elsewhere() {
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
