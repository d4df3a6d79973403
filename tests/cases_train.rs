//! Faults that people met while training, each test named after its case, by `mmx train`.
#![cfg(feature = "train")]

mod common;

use std::path::{Path, PathBuf};

use common::{mmx, mmx_error, shared, text};
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
