//! `mmx train` as several processes: the numbers of one process on real data, held-out losses, resuming
//! with any number of processes, a clean stop, and errors of one that end all.

mod common;
mod interrupted;
#[path = "common/port.rs"]
mod port;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{copy, shared, text};
use interrupted::End;
use port::free_port;
use serde_json::Value;

/// Starts the same command in `size` processes; one process alone is given no place.
fn start(args: &[&str], size: usize) -> Vec<Child> {
    let port = free_port();
    let start = |rank: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        command.arg("train").args(args).args(["--device", "cpu", "--threads", "1", "--json"]);
        if size > 1 {
            command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        }
        command.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("mmx starts")
    };
    (0..size).map(start).collect()
}

fn ends(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(|child| child.wait_with_output().expect("it ends")).collect()
}

/// Runs to the end, which must succeed: the first process's JSON, the only output.
fn train(args: &[&str], size: usize) -> Value {
    let outs = ends(start(args, size));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for (rank, out) in outs.iter().enumerate() {
        let stderr = said(&out.stderr);
        assert!(out.status.success(), "rank {rank} of {size}, {args:?}: {stderr}");
        if rank > 0 {
            assert_eq!((said(&out.stdout), stderr), (String::new(), String::new()), "rank {rank}");
        }
    }
    serde_json::from_slice(&outs[0].stdout).expect("one JSON object")
}

/// A stage's run on golden data: `out` and further options follow.
fn arguments<'a>(stage: &'a str, more: &[&'a str]) -> Vec<String> {
    let (folder, kind, data) = match stage {
        "pretrain" => ("golden-2026", "minimind3-moe-top2", "pretrain"),
        "lora" => ("golden", "minimind2", "sft"),
        "sft" => ("golden", "minimind2-moe", "sft"),
        other => ("golden", "minimind2", other),
    };
    let path = |name: String| text(&shared(&name)).to_owned();
    let mut args: Vec<String> = vec![stage.into(), "--from".into()];
    args.push(path(format!("{folder}/{kind}")));
    args.extend(["--tokenizer".into(), path(folder.into())]);
    args.extend(["--data".into(), path(format!("{folder}/{data}.jsonl"))]);
    let common = ["--epochs", "1", "--lr", "1e-3", "--max-seq-len", "96", "--dtype", "f32"];
    args.extend(common.iter().chain(more).map(|&arg| arg.to_owned()));
    args
}

fn json(path: &Path) -> Value {
    let text = fs_err::read_to_string(path).expect("a file");
    serde_json::from_str(&text).expect("JSON")
}

/// Losses of a trace's micro-steps.
fn losses(trace: &Value) -> Vec<Option<f64>> {
    trace["steps"].as_array().expect("steps").iter().map(|step| step["loss"].as_f64()).collect()
}

fn assert_close(what: &str, found: &[Option<f64>], expected: &[Option<f64>], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: micro-steps");
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        match (found, expected) {
            (Some(found), Some(expected)) => assert!(
                (found / expected - 1.0).abs() <= tolerance,
                "{what}: micro-step {step}: expected {expected}, found {found}"
            ),
            _ => assert_eq!(found, expected, "{what}: micro-step {step}"),
        }
    }
}

/// Packed and padded rows, a mixture of experts, pairs, adapters; numbers of rows that do not divide; data held
/// out, each sample of which counts once whatever the number of processes.
#[test]
fn real_data_gives_the_numbers_of_one_process_with_any_number() {
    let dir = tempfile::tempdir().expect("a folder");
    for (stage, more) in [
        ("pretrain", vec!["--global-batch", "14", "--accum", "2"]),
        ("sft", vec!["--global-batch", "10", "--pack", "off", "--recipe", "2025"]),
        ("dpo", vec!["--global-batch", "5"]),
        ("lora", vec!["--global-batch", "4", "--shard", "optimizer"]),
        ("reason", vec!["--global-batch", "8", "--accum", "2", "--shard", "gradients"]),
    ] {
        let run = |size: usize| {
            let at = |ending: &str| dir.path().join(format!("{stage}-{size}{ending}"));
            let (out, trace) = (at(""), at(".json"));
            let mut args = arguments(stage, &more);
            let held_out = args[6].clone();
            args.extend(["--val".into(), held_out]);
            args.extend(["--out", text(&out), "--trace", text(&trace)].map(str::to_owned));
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let end = train(&args, size);
            (end["val_loss"].as_f64().expect("held out"), json(&trace), end["steps"].clone())
        };
        let (held_out, expected, steps) = run(1);
        assert!(expected["final"].to_string().contains("moved_l2"), "{stage}");
        for size in [2, 4] {
            let (held_out_here, found, steps_here) = run(size);
            let what = format!("{stage}, {size} processes");
            assert_eq!(steps_here, steps, "{what}");
            assert_close(&what, &losses(&found), &losses(&expected), 1e-5);
            assert_close(&what, &[Some(held_out_here)], &[Some(held_out)], 1e-5);
        }
    }
}

#[test]
fn fewer_samples_than_processes_are_trained_on_once_each() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("three.jsonl");
    let all = fs_err::read_to_string(shared("golden/sft.jsonl")).expect("a fixture");
    fs_err::write(&data, all.lines().take(3).collect::<Vec<_>>().join("\n")).expect("a file");
    let run = |size: usize| {
        let at = |ending: &str| dir.path().join(format!("{size}{ending}"));
        let (out, trace) = (at(""), at(".json"));
        let mut args = arguments("sft", &["--global-batch", "4", "--epochs", "2"]);
        args[6] = text(&data).to_owned();
        let first = args.iter().position(|arg| arg == "--epochs").expect("given");
        args.drain(first..first + 2);
        args.extend(["--out", text(&out), "--trace", text(&trace)].map(str::to_owned));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        train(&args, size);
        losses(&json(&trace))
    };
    let expected = run(1);
    assert_eq!(expected.len(), 2);
    assert_close("four processes", &run(4), &expected, 1e-5);
}

/// Checkpoints are whole: 1 process, then 2 with divided moments, then 4 with divided gradients, then 1 again end as
/// one process does;
/// and two processes that go on end bit for bit as two that were not interrupted.
#[test]
fn runs_go_on_with_another_number_of_processes_and_with_the_same_one_exactly() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let run = |name: &str, size: usize, shard: &[&str]| {
        let (out, trace) = (at(name), at(&format!("{name}.json")));
        let more = ["--global-batch", "8", "--accum", "2", "--pack", "off"];
        let mut args = arguments("pretrain", &more);
        args.extend(["--save-every", "1", "--keep", "9", "--resume"].map(str::to_owned));
        args.extend(["--out", text(&out), "--trace", text(&trace)].map(str::to_owned));
        args.extend(shard.iter().map(|&arg| arg.to_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        train(&args, size);
        (losses(&json(&trace)), out)
    };
    // from a checkpoint of another run and its log
    let beginning = |from: &Path, step: usize, name: &str| {
        let checkpoint = format!("checkpoint-{step:06}");
        copy(&from.join(&checkpoint), &at(name).join(&checkpoint));
        fs_err::copy(from.join("metrics.jsonl"), at(name).join("metrics.jsonl")).expect("a copy");
    };
    let (whole, one) = run("one", 1, &[]);
    assert_eq!(whole.len(), 8);
    beginning(&one, 1, "two");
    let (rest, two) = run("two", 2, &["--shard", "optimizer"]);
    assert_close("1, then 2", &rest, &whole[2..], 1e-6);
    beginning(&two, 2, "four");
    let (rest, four) = run("four", 4, &["--shard", "gradients"]);
    assert_close("1, 2, then 4", &rest, &whole[4..], 1e-6);
    beginning(&four, 3, "again");
    let (rest, _) = run("again", 1, &[]);
    assert_close("1, 2, 4, then 1", &rest, &whole[6..], 1e-6);

    for (name, shard) in [
        ("plain", &[][..]),
        ("divided", &["--shard", "optimizer"]),
        ("divided-further", &["--shard", "gradients"]),
    ] {
        let (_, unbroken) = run(name, 2, shard);
        let resumed = format!("{name}-resumed");
        beginning(&unbroken, 2, &resumed);
        let (_, resumed) = run(&resumed, 2, shard);
        End::of(&resumed).assert_same(&End::of(&unbroken), name);
    }
    // another global batch is another run, and the one that goes on is named
    let more = ["--batch-size", "1", "--accum", "2", "--pack", "off", "--resume"];
    let args = arguments("pretrain", &more);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["--out", text(&one)]);
    let outs = ends(start(&args, 2));
    let said = String::from_utf8_lossy(&outs[0].stderr).into_owned();
    assert!(outs.iter().all(|out| !out.status.success()), "{said}");
    assert!(
        said.contains("batch_size: was 4, now 2") && said.contains("--global-batch 8"),
        "{said}"
    );
}

/// A signal to one process stops all at the same step, with a checkpoint from which two processes end bit for bit
/// as if nothing had been.
#[cfg(unix)]
#[test]
fn a_process_that_is_asked_to_stop_stops_all_at_one_step() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = |out: &Path| {
        let more = ["--global-batch", "2", "--save-every", "1", "--keep", "99", "--resume"];
        let mut args = arguments("reason", &more);
        let epochs = args.iter().position(|arg| arg == "--epochs").expect("given");
        args[epochs + 1] = "12".into();
        args.extend(["--out".into(), text(out).to_owned()]);
        args
    };
    let run = |out: &Path| {
        let args = args(out);
        train(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2)
    };
    let (unbroken, stopped) = (dir.path().join("unbroken"), dir.path().join("stopped"));
    run(&unbroken);
    let args = args(&stopped);
    let children = start(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2);
    let begun = Instant::now();
    while !stopped.join("checkpoint-000003").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no step in a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = children[1].id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    let outs = ends(children);
    let said = String::from_utf8_lossy(&outs[0].stderr).into_owned();
    assert_eq!(outs[0].status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted after step"), "{said}");
    assert_eq!(run(&stopped)["interrupted"], false);
    End::of(&stopped).assert_same(&End::of(&unbroken), "stopped and gone on");
}

/// A run that learns from rewards over some tasks, `out` and further options following.
fn of_rewards<'a>(stage: &'a str, dir: &Path, more: &[&'a str]) -> Vec<String> {
    let (tasks, reward) = (dir.join("tasks.jsonl"), dir.join("reward.json"));
    let lines: String = (0..6).map(|i| format!("{{\"prompt\": \"{i} + {i} = ?\"}}\n")).collect();
    fs_err::write(&tasks, lines).expect("tasks");
    let parts = r#"[{"type": "contains", "text": ["a", "e", "i", "o", "u", "1", "2"]},
        {"type": "regex", "pattern": "[m-z]", "weight": 0.5}]"#;
    fs_err::write(&reward, parts).expect("a reward");
    let (model, tokenizer) = (shared("golden-2026/minimind3"), shared("golden-2026"));
    let mut args = vec![stage, "--from", text(&model), "--tokenizer", text(&tokenizer)];
    args.extend(["--data", text(&tasks), "--reward", text(&reward), "--val", text(&tasks)]);
    args.extend(["--global-batch", "4", "--group-size", "4", "--epochs", "2", "--lr", "1e-3"]);
    args.extend(["--max-new-tokens", "12", "--max-seq-len", "96", "--system-ratio", "0"]);
    args.extend(["--dtype", "f32", "--accum", "1"].iter().chain(more));
    args.into_iter().map(str::to_owned).collect()
}

/// Each process answers its part of the prompts: what is sampled, and what is learned from it, is what one
/// process samples and learns. Rollouts are written by the first one.
#[test]
fn answers_sampled_by_several_processes_are_those_of_one() {
    let dir = tempfile::tempdir().expect("a folder");
    for (stage, more) in [
        ("grpo", &["--dynamic-sampling", "1"][..]),
        ("agent", &["--shard", "optimizer"]),
        ("ppo", &["--minibatch-size", "6"]),
    ] {
        let run = |size: usize| {
            let at = |ending: &str| dir.path().join(format!("{stage}-{size}{ending}"));
            let (out, trace, rollouts) = (at(""), at(".json"), at(".jsonl"));
            let mut args = of_rewards(stage, dir.path(), more);
            args.extend(["--out", text(&out), "--trace", text(&trace)].map(str::to_owned));
            args.extend(["--rollouts-out", text(&rollouts)].map(str::to_owned));
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let end = train(&args, size);
            let rollouts = fs_err::read_to_string(rollouts).expect("rollouts");
            (json(&trace), rollouts, end["val_reward"].as_f64().expect("a reward"))
        };
        let (expected, sampled, held_out) = run(1);
        let batch = |text: &str| -> Vec<Value> {
            let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
            lines.filter(|row: &Value| row["step"] == 0).collect()
        };
        assert_eq!(batch(&sampled).len(), 16);
        for size in [2, 3] {
            let (found, others, held_out_here) = run(size);
            let what = format!("{stage}, {size} processes");
            assert_eq!(batch(&others), batch(&sampled), "{what}: the first answers");
            assert_eq!(others.lines().count(), sampled.lines().count(), "{what}");
            let number = |of: &Value, key: &str| of["steps"][0][key].as_f64().expect("a number");
            for key in
                ["grad_norm", "reward", "tokens", "entropy", "sampler_ratio", "sampler_ratio_max"]
            {
                let (found, expected) = (number(&found, key), number(&expected, key));
                assert!((found / expected - 1.0).abs() < 1e-4, "{what}: {key}: {found} {expected}");
            }
            // after updates whose sums are in another order, greedy answers are the same, but for a tie
            assert!((held_out_here - held_out).abs() < 0.3, "{what}: {held_out_here} {held_out}");
        }
    }
}

/// Exact at the same number of processes, sampling included, and within a batch of ppo; and at another number the
/// run goes on too.
#[test]
fn runs_that_learn_from_rewards_go_on_in_several_processes() {
    let dir = tempfile::tempdir().expect("a folder");
    for (stage, first) in [("grpo", 1), ("ppo", 3)] {
        let run = |name: &str, size: usize| {
            let (out, rollouts) = (dir.path().join(name), dir.path().join(format!("{name}.jsonl")));
            let mut args = of_rewards(stage, dir.path(), &["--save-every", "1", "--keep", "99"]);
            args.extend(["--resume", "--out", text(&out)].map(str::to_owned));
            args.extend(["--rollouts-out", text(&rollouts)].map(str::to_owned));
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            (train(&args, size)["total_steps"].clone(), out)
        };
        let (steps, whole) = run(&format!("{stage}-whole"), 2);
        for (name, size) in [("same", 2), ("other", 3)] {
            let name = format!("{stage}-{name}");
            let (checkpoint, part) = (format!("checkpoint-{first:06}"), dir.path().join(&name));
            copy(&whole.join(&checkpoint), &part.join(&checkpoint));
            fs_err::copy(whole.join("metrics.jsonl"), part.join("metrics.jsonl")).expect("a copy");
            let (steps_here, part) = run(&name, size);
            assert_eq!(steps_here, steps, "{name}");
            let last =
                |run: &Path| run.join(format!("checkpoint-{:06}", steps.as_u64().expect("steps")));
            let files = ["model", "training/optimizer", "training/critic", "training/stage"];
            let files = files.map(|file| format!("{file}.safetensors"));
            for file in files.iter().filter(|file| last(&whole).join(file).exists()) {
                let read = |run: &Path| fs_err::read(last(run).join(file)).expect("a file");
                let same = read(&part) == read(&whole);
                assert!(same || size != 2, "{name}: {file} is another one");
            }
        }
    }
}

#[test]
fn an_error_of_the_first_process_ends_all() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (dir.path().join("bad.jsonl"), dir.path().join("out"));
    fs_err::write(&data, "{\"text\": 1}\n").expect("a file");
    let mut args = arguments("pretrain", &["--out", text(&out)]);
    args[6] = text(&data).to_owned();
    let outs = ends(start(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2));
    let said = String::from_utf8_lossy(&outs[0].stderr).into_owned();
    assert!(outs.iter().all(|out| out.status.code() == Some(1)), "{said}");
    assert!(said.contains("bad.jsonl: line 1"), "{said}");
}
