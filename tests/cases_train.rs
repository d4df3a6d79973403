//! Faults that people met while training, each test named after its case, by `mmx train`.

mod common;

use std::path::{Path, PathBuf};

use common::{mmx, mmx_error, shared, text};
use mmx_converters::wire;
use serde_json::Value;

/// SFT on golden/minimind2 as the cases say: in order, no packing, 2025.
fn sft(data: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let fixed = ["--recipe", "2025", "--pack", "off", "--shuffle", "off", "--accum", "1"];
    let rest = ["--epochs", "1", "--max-seq-len", "64", "--dtype", "f32", "--device", "cpu"];
    let paths = ["train", "sft", "--from", text(&model), "--tokenizer", text(&tokenizer)];
    let files = ["--data", text(data), "--out", text(out), "--threads", "1"];
    let all = paths.iter().chain(&fixed).chain(&rest).chain(&files).chain(more);
    all.map(|s| (*s).to_owned()).collect()
}

fn refs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn case(name: &str) -> PathBuf {
    shared("cases/files").join(name)
}

/// The caller ends while its child computes: a Ctrl-C that reached the caller alone.
#[test]
fn a_native_engine_whose_caller_has_ended_says_nothing() {
    use std::io::Read as _;
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_mmx-train"))
        .args(["logits", "--serve", text(&shared("golden/minimind2"))])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mmx-train starts");
    let mut answers = child.stdout.take().expect("a pipe");
    let vocab = wire::read_greeting(&mut answers).expect("a greeting").expect("a model");
    let mut requests = child.stdin.take().expect("a pipe");
    wire::write_ids(&mut requests, &[1; 400]).expect("a request");
    // more than a pipe holds: it writes while nobody reads, and then nobody will
    assert!(400 * vocab * 4 > 1 << 16);
    drop(answers);
    drop(requests);
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("UTF-8");
    assert!(child.wait().expect("an end").success() && said.is_empty(), "{said}");
}

#[test]
fn sft_all_masked() {
    let dir = tempfile::tempdir().expect("a folder");
    let (out, trace) = (dir.path().join("run"), dir.path().join("trace.json"));
    let data = case("sft-all-masked/data.jsonl");
    let args = sft(&data, &out, &["--batch-size", "2", "--lr", "5e-4", "--trace", text(&trace)]);
    let done = mmx(&refs(&args));
    let stderr = String::from_utf8(done.stderr).expect("UTF-8");
    assert!(done.status.success(), "{stderr}");
    assert_eq!(stderr.matches("warning:").count(), 1, "once: {stderr}");
    assert!(stderr.contains("warning: 2 samples") && stderr.contains("lines 1, 2"), "{stderr}");
    assert!(stderr.contains("no trained tokens") && !stderr.contains("NaN"), "{stderr}");
    let read = |path: &Path| fs_err::read_to_string(path).expect("a file");
    let trace: Value = serde_json::from_str(&read(&trace)).expect("JSON");
    assert_eq!(trace["steps"][0]["loss"], Value::Null);
    let expected: Value =
        serde_json::from_str(&read(&case("sft-all-masked/expect.json"))).expect("JSON");
    let (found, expected) = (trace["steps"][1]["loss"].as_f64(), expected["loss"].as_f64());
    let (found, expected) = (found.expect("a loss"), expected.expect("a loss"));
    // 1e-5: the case's own tolerance; a weight changed by the step before would show far above it
    assert!((found - expected).abs() <= 1e-5, "expected {expected}, found {found}");
    assert!(!read(&out.join("metrics.jsonl")).contains("NaN"));

    let nothing = dir.path().join("nothing");
    let line = mmx_error(&refs(&sft(&case("sft-all-masked/only.jsonl"), &nothing, &[])));
    assert!(line.contains("only.jsonl: expected at least one sample"), "{line}");
    assert!(!nothing.exists());
}

/// Data of another kind or with bad bytes: refused before training, with file, line and what to do.
#[test]
fn jsonl_faults_stop_before_training() {
    let dir = tempfile::tempdir().expect("a folder");
    let (out, tokenizer) = (dir.path().join("run"), shared("golden"));
    let pretrain = |file: &str| {
        let data = case(file);
        let args = ["train", "pretrain", "--preset", "tiny", "--tokenizer", text(&tokenizer)];
        mmx(&[&args[..], &["--data", text(&data), "--device", "cpu", "--out", text(&out)]].concat())
    };
    for (file, words) in [
        ("jsonl-missing-key/data.jsonl", &["data.jsonl: line 2", "key text", "found content"][..]),
        ("jsonl-missing-key/sft-as-pretrain.jsonl", &["looks like SFT data", "mmx train sft"]),
        ("jsonl-bad-bytes/data.jsonl", &["data.jsonl: line 2", "offset 27"]),
        ("jsonl-bad-bytes/gbk.jsonl", &["gbk.jsonl: line 1", "not UTF-8"]),
    ] {
        let found = pretrain(file);
        let stderr = String::from_utf8(found.stderr).expect("UTF-8");
        assert_eq!(found.status.code(), Some(1), "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "{file}: expected {word:?} in: {stderr}");
        }
        assert!(!out.exists(), "{file}: something was written");
    }
    let line = mmx_error(&refs(&sft(&case("sft-roles/data.jsonl"), &out, &[])));
    assert!(line.contains("line 2") && line.contains("turn 2"), "{line}");
    assert!(!out.exists());
    let args = sft(&case("sft-roles/data.jsonl"), &out, &["--on-bad", "skip"]);
    let skipped = mmx(&refs(&args));
    let stderr = String::from_utf8(skipped.stderr).expect("UTF-8");
    assert!(skipped.status.success() && stderr.contains("5 faulty lines"), "{stderr}");
}

/// Case accumulation-tail: how many optimizer steps there will be is said first, and none at all is an error.
#[test]
fn accumulation_tail() {
    let dir = tempfile::tempdir().expect("a folder");
    // 28 chats in batches of 4: seven micro-steps
    let text_of = fs_err::read_to_string(shared("golden/sft.jsonl")).expect("a fixture");
    let data = dir.path().join("sft.jsonl");
    let lines: Vec<&str> = text_of.lines().take(28).collect();
    fs_err::write(&data, lines.join("\n")).expect("a file");
    for (tail, steps) in [("off", 3), ("on", 4)] {
        let out = dir.path().join(tail);
        let mut args = sft(&data, &out, &["--batch-size", "4", "--accum-tail", tail, "--json"]);
        let at = args.iter().position(|a| a == "--accum").expect("the option");
        args[at + 1] = "2".into();
        let done = mmx(&refs(&args));
        let stderr = String::from_utf8(done.stderr).expect("UTF-8");
        assert!(done.status.success(), "{stderr}");
        let said = format!("run: {steps} optimizer steps in 7 micro-steps");
        let (before, _) = stderr.split_once("step 1/").expect("a first step");
        assert!(before.contains(&said), "{stderr}");
        let report: Value = serde_json::from_slice(&done.stdout).expect("one JSON object");
        assert_eq!(report["steps"], steps);
        for field in ["checkpoint", "loss", "tokens_per_s", "seconds"] {
            assert!(!report[field].is_null(), "{field}: {report}");
        }
        args[at + 1] = "9".into();
        args.extend(["--accum-tail".to_owned(), "off".to_owned()]);
        let position = args.iter().position(|a| a == "--accum-tail").expect("the option");
        args.drain(position..position + 2);
        let none = dir.path().join("none");
        let place = args.iter().position(|a| a == "--out").expect("the option");
        args[place + 1] = text(&none).to_owned();
        let line = mmx_error(&refs(&args));
        assert!(line.contains("expected at least one optimizer step, found none"), "{line}");
        assert!(!none.exists());
    }
}

/// A batch that no machine holds is refused before the first step, with the option to lower; a run that fits says what
/// it takes.
#[test]
fn what_cannot_fit_into_memory_is_refused_before_the_first_step() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (dir.path().join("long.jsonl"), dir.path().join("run"));
    // 400 texts of 10 000 words: 4 million positions in one batch need 2.5 TB for their activations
    let line = format!("{{\"text\": \"{}\"}}\n", "the ".repeat(10_000));
    fs_err::write(&data, line.repeat(400)).expect("a file");
    let tokenizer = shared("golden");
    let train = |batch_size: &str| {
        let mut args =
            vec!["train", "pretrain", "--preset", "minimind2", "--tokenizer", text(&tokenizer)];
        args.extend(["--data", text(&data), "--batch-size", batch_size, "--max-seq-len", "10000"]);
        args.extend(["--pack", "off", "--dtype", "f32", "--device", "cpu", "--out", text(&out)]);
        mmx(&args)
    };
    let done = train("400");
    let stderr = String::from_utf8(done.stderr).expect("UTF-8");
    assert_eq!(done.status.code(), Some(1), "{stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error:")).expect("an error");
    assert!(error.contains("memory: expected a run that fits into the "), "{error}");
    assert!(error.contains("a batch of 400 rows of 10000 positions"), "{error}");
    assert!(stderr.contains("hint: lower --"), "{stderr}");
    assert!(!out.exists(), "something was written");

    // the same number of rows is no reason where there are few samples
    let few = dir.path().join("few");
    let args = sft(&shared("golden/sft.jsonl"), &few, &["--batch-size", "1000000000"]);
    let done = mmx(&refs(&args));
    let stderr = String::from_utf8(done.stderr).expect("UTF-8");
    assert!(done.status.success(), "{stderr}");
    let (before, _) = stderr.split_once("step 1/").expect("a first step");
    assert!(before.contains("memory: about 0."), "{stderr}");
    assert!(before.contains("can be had"), "{stderr}");
}

/// A place for tokens that cannot be written costs a warning, not the run.
#[test]
fn training_goes_on_without_a_place_for_its_tokens() {
    let dir = tempfile::tempdir().expect("a folder");
    let in_the_way = dir.path().join("file");
    fs_err::write(&in_the_way, "no folder").expect("a file");
    let args = sft(&shared("golden/sft.jsonl"), &dir.path().join("run"), &["--max-steps", "1"]);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mmx"));
    command.args(&args).env("MMX_CACHE", &in_the_way).env("TMPDIR", dir.path().join("none"));
    let done = command.output().expect("mmx starts");
    let stderr = String::from_utf8(done.stderr).expect("UTF-8");
    assert!(done.status.success(), "{stderr}");
    assert!(stderr.contains("the tokens of") && stderr.contains("are not kept"), "{stderr}");
    assert!(stderr.contains("are held in memory"), "{stderr}");
}

/// Held-out loss: once per step, however often a run that is over is resumed.
#[test]
fn a_finished_run_that_is_resumed_validates_no_second_time() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (shared("golden/sft.jsonl"), dir.path().join("run"));
    let more = ["--max-steps", "2", "--save-every", "1", "--val", text(&data), "--json"];
    let args = sft(&data, &out, &[&more[..], &["--batch-size", "4"]].concat());
    let log = || fs_err::read_to_string(out.join("metrics.jsonl")).expect("a log");
    let run = |args: &[String]| {
        let done = mmx(&refs(args));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice::<Value>(&done.stdout).expect("one JSON object")["val_loss"].clone()
    };
    let loss = run(&args);
    let first = log();
    assert_eq!(first.matches("val_loss").count(), 2, "{first}");
    let again = [&args[..], &["--resume".to_owned()]].concat();
    assert_eq!(run(&again), loss, "the loss of the end is known without computing it");
    assert_eq!(log(), first);
}

/// Case resume-exact: changed settings and data are reported, and the run's folder stays as it was.
#[test]
fn resuming_with_other_settings_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (shared("golden/sft.jsonl"), dir.path().join("run"));
    let common = ["--batch-size", "4", "--lr", "5e-4"];
    let begin = sft(&data, &out, &[&common[..], &["--max-steps", "2"]].concat());
    assert!(mmx(&refs(&begin)).status.success());
    let listing = || {
        let entries = fs_err::read_dir(&out).expect("a folder").flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name()).collect();
        names.sort();
        names
    };
    let before = listing();
    let other = dir.path().join("other.jsonl");
    let mut changed = fs_err::read_to_string(&data).expect("a fixture");
    changed.push_str(changed.clone().lines().next().expect("a line"));
    fs_err::write(&other, changed).expect("a file");
    for (file, settings, words) in [
        (
            &data,
            ["--batch-size", "8", "--lr", "1e-4"],
            &["batch_size: was 4, now 8", "lr: was"][..],
        ),
        (&other, common, &["other.jsonl"]),
    ] {
        let more = [&settings[..], &["--max-steps", "2", "--resume"]].concat();
        let line = mmx_error(&refs(&sft(file, &out, &more)));
        for word in words {
            assert!(line.contains(word), "expected {word:?} in: {line}");
        }
        assert_eq!(listing(), before);
    }
}

/// The keys of a recipe file stand there without dashes: a message that spelled them as options would name what the
/// file cannot hold.
#[test]
fn a_recipe_files_keys_are_named_as_they_stand_in_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let (recipe, out) = (dir.path().join("recipe.toml"), dir.path().join("run"));
    fs_err::write(&recipe, "preset = \"tiny\"\nmax_steps = 1\n").expect("a recipe");
    let (data, tokenizer) = (shared("golden/pretrain.jsonl"), shared("golden"));
    let files = ["--data", text(&data), "--tokenizer", text(&tokenizer), "--out", text(&out)];
    let args = ["train", "pretrain", "--recipe-file", text(&recipe)];
    let error = mmx_error(&[&args[..], &files].concat());
    assert!(
        error.contains("recipe.toml:") && error.contains("unknown field \"max_steps\""),
        "{error}"
    );
    assert!(error.contains("\"max-steps\"") && !error.contains("--max-steps"), "{error}");
    assert!(!out.exists());
}
