//! `mmx data generate` against a server that does everything wrong at times, killed and begun again, and with a model
//! that mmx opens itself.

mod common;

#[path = "common/hostile.rs"]
mod hostile;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{mmx_error, mmx_json, reciting, text};
use hostile::{Server, TROUBLE, Turn, question};
use serde_json::{Value, json};

/// A server whose answers are functions of what it is asked.
fn echoing(turns: &'static [Turn], delay: Duration) -> Server {
    Server::start(turns, delay, |body| format!("<think>so</think>to {}", question(body)))
}

fn prompts(dir: &Path, count: usize) -> std::path::PathBuf {
    let path = dir.join("prompts.jsonl");
    let lines: Vec<String> =
        (0..count).map(|i| json!({ "prompt": format!("q{i}") }).to_string()).collect();
    fs_err::write(&path, lines.join("\n")).expect("a file");
    path
}

fn arguments<'a>(input: &'a Path, model: &'a str, out: &'a Path) -> Vec<&'a str> {
    vec![
        "data",
        "generate",
        text(input),
        "--model",
        model,
        "--out",
        text(out),
        "--backoff",
        "0.01",
        "--timeout",
        "1",
    ]
}

#[test]
fn a_hostile_server_loses_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = prompts(dir.path(), 12);
    let [good, bad] = ["good.jsonl", "bad.jsonl"].map(|name| dir.path().join(name));
    let server = echoing(&[Turn::Good], Duration::ZERO);
    mmx_json(&arguments(&input, &server.model("m"), &good));
    let hostile = echoing(TROUBLE, Duration::ZERO);
    let report = mmx_json(&arguments(&input, &hostile.model("m"), &bad));
    assert_eq!(
        (&report["kept"], &report["requests"], &report["tokens"]),
        (&12.into(), &12.into(), &120.into())
    );
    let lines = fs_err::read_to_string(&bad).expect("a file");
    assert_eq!(lines, fs_err::read_to_string(&good).expect("a file"));
    let first: Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["conversations"][1]["content"], "<think>so</think>to q0");
    assert!(
        hostile.counts().values().all(|times| *times == TROUBLE.len()),
        "{:?}",
        hostile.counts()
    );
    let left: Vec<_> =
        fs_err::read_dir(dir.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("journal")), "{left:?}");
}

#[test]
fn a_killed_run_goes_on_at_the_request_and_gives_the_same_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = prompts(dir.path(), 60);
    let [whole, killed] = ["whole.jsonl", "killed.jsonl"].map(|name| dir.path().join(name));
    let server = echoing(&[Turn::Good], Duration::ZERO);
    mmx_json(&arguments(&input, &server.model("m"), &whole));
    let slow = echoing(&[Turn::Good], Duration::from_millis(50));
    let name = slow.model("m");
    let args = arguments(&input, &name, &killed);
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
    let mut child = command.args(&args).stderr(Stdio::null()).spawn().expect("mmx starts");
    let journal = dir.path().join("killed.jsonl.journal");
    let lines = || fs_err::read_to_string(&journal).unwrap_or_default().lines().count();
    while lines() < 20 {
        assert!(child.try_wait().expect("waited").is_none(), "it ended before it was killed");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(!killed.exists(), "half a file");
    let before = lines() - 1;
    let report = mmx_json(&args);
    assert_eq!(fs_err::read(&killed).expect("a file"), fs_err::read(&whole).expect("a file"));
    assert!(report["resumed"].as_u64() >= Some(before as u64 - 1), "{report}, {before} before");
    // eight were under way when it died
    let asked = slow.requests();
    assert!(asked <= 60 + 9, "{asked} requests");
    assert!(!journal.exists());
}

#[test]
fn refusals_for_good_are_told_and_what_was_answered_is_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = prompts(dir.path(), 3);
    let out = dir.path().join("out.jsonl");
    let server = echoing(&[Turn::Broken], Duration::ZERO);
    let name = server.model("m");
    let args = [&arguments(&input, &name, &out)[..], &["--retries", "1"]].concat();
    let error = mmx_error(&args);
    assert!(
        error.contains("3 prompts were not answered") && error.contains("prompts.jsonl:1"),
        "{error}"
    );
    assert!(error.contains("HTTP 500: oops") && !out.exists(), "{error}");
    let report = mmx_json(&[&args[..], &["--skip-failed"]].concat());
    assert_eq!((&report["kept"], &report["dropped"][0]["records"]), (&0.into(), &3.into()));
    // another file's journal, or none of mmx's, is not gone on with
    fs_err::write(dir.path().join("out.jsonl.journal"), "mine\n").expect("a file");
    let error = mmx_error(&args);
    assert!(error.contains("out.jsonl.journal: expected a journal"), "{error}");
}

#[test]
fn a_model_that_mmx_opens_answers() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let input = prompts(dir.path(), 5);
    let out = dir.path().join("out.jsonl");
    let args = ["data", "generate", text(&input), "--model", text(&model), "--temperature", "0"];
    let report = mmx_json(&[&args[..], &["--max-tokens", "40", "--out", text(&out)]].concat());
    assert_eq!((&report["read"], &report["kept"]), (&5.into(), &5.into()), "{report}");
    for line in fs_err::read_to_string(&out).expect("a file").lines() {
        let record: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(record["conversations"][1]["content"], common::RECITED, "{line}");
    }
    let checked = mmx_json(&["data", "check", "--stage", "sft", text(&out)]);
    assert_eq!(checked["samples"], 5);
}
