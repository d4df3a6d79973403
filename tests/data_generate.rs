//! `mmx data generate` against a server that does everything wrong at times, killed and begun again, and with a model
//! that mmx opens itself.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{mmx_error, mmx_json, reciting, text};
use serde_json::{Value, json};

/// What happens to the requests of one body, in order; the last goes on.
#[derive(Clone, Copy)]
enum Turn {
    Busy,
    Broken,
    Half,
    Slow,
    NoChoice,
    Hangs,
    Good,
}

/// A server whose answers are functions of what it is asked; how often each was asked.
struct Server {
    address: String,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Server {
    fn start(turns: &'static [Turn], delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(BTreeMap::new()));
        let shared = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let asked = shared.clone();
                std::thread::spawn(move || {
                    // a client that left is no fault of the server's
                    let _ = answer(stream, turns, delay, &asked);
                });
            }
        });
        Self { address, asked }
    }

    fn name(&self) -> String {
        format!("openai:{}#m", self.address)
    }

    fn counts(&self) -> BTreeMap<String, usize> {
        self.asked.lock().expect("counts").clone()
    }
}

fn answer(
    mut stream: TcpStream,
    turns: &[Turn],
    delay: Duration,
    asked: &Mutex<BTreeMap<String, usize>>,
) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let question =
        body["messages"].as_array().expect("turns").last().expect("a turn")["content"].clone();
    let question = question.as_str().expect("a text").to_owned();
    let time = {
        let mut asked = asked.lock().expect("counts");
        let times = asked.entry(format!("{question} {}", body["seed"])).or_default();
        *times += 1;
        *times - 1
    };
    let good = json!({
        "choices": [{ "message": { "role": "assistant", "content": format!("<think>so</think>to {question}") },
            "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10 },
    })
    .to_string();
    let (status, mut text) = match turns[time.min(turns.len() - 1)] {
        Turn::Busy => (
            "429 Too Many Requests\r\nRetry-After: 0",
            json!({"error": {"message": "busy"}}).to_string(),
        ),
        Turn::Broken => ("500 Broken", "oops".to_owned()),
        Turn::Half => ("200 OK", good[..good.len() / 2].to_owned()),
        Turn::NoChoice => ("200 OK", json!({"choices": []}).to_string()),
        Turn::Slow | Turn::Hangs | Turn::Good => ("200 OK", good),
    };
    std::thread::sleep(delay);
    let mut announced = text.len();
    match turns[time.min(turns.len() - 1)] {
        Turn::Slow => std::thread::sleep(Duration::from_millis(1500)),
        Turn::Hangs => {
            // more is announced than comes
            announced += 100;
            text.truncate(10);
        }
        _ => {}
    }
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(text.as_bytes())
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
    const TURNS: &[Turn] = &[
        Turn::Busy,
        Turn::Broken,
        Turn::Half,
        Turn::Slow,
        Turn::NoChoice,
        Turn::Hangs,
        Turn::Good,
    ];
    let dir = tempfile::tempdir().expect("a folder");
    let input = prompts(dir.path(), 12);
    let [good, bad] = ["good.jsonl", "bad.jsonl"].map(|name| dir.path().join(name));
    let server = Server::start(&[Turn::Good], Duration::ZERO);
    mmx_json(&arguments(&input, &server.name(), &good));
    let hostile = Server::start(TURNS, Duration::ZERO);
    let report = mmx_json(&arguments(&input, &hostile.name(), &bad));
    assert_eq!(
        (&report["kept"], &report["requests"], &report["tokens"]),
        (&12.into(), &12.into(), &120.into())
    );
    let lines = fs_err::read_to_string(&bad).expect("a file");
    assert_eq!(lines, fs_err::read_to_string(&good).expect("a file"));
    let first: Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["conversations"][1]["content"], "<think>so</think>to q0");
    assert!(hostile.counts().values().all(|times| *times == TURNS.len()), "{:?}", hostile.counts());
    let left: Vec<_> =
        fs_err::read_dir(dir.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("journal")), "{left:?}");
}

#[test]
fn a_killed_run_goes_on_at_the_request_and_gives_the_same_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = prompts(dir.path(), 60);
    let [whole, killed] = ["whole.jsonl", "killed.jsonl"].map(|name| dir.path().join(name));
    let server = Server::start(&[Turn::Good], Duration::ZERO);
    mmx_json(&arguments(&input, &server.name(), &whole));
    let slow = Server::start(&[Turn::Good], Duration::from_millis(50));
    let name = slow.name();
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
    let asked: usize = slow.counts().values().sum();
    assert!(asked <= 60 + 9, "{asked} requests");
    assert!(!journal.exists());
}

#[test]
fn refusals_for_good_are_told_and_what_was_answered_is_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = prompts(dir.path(), 3);
    let out = dir.path().join("out.jsonl");
    let server = Server::start(&[Turn::Broken], Duration::ZERO);
    let name = server.name();
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
