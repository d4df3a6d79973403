//! The log of requests that `mmx serve --request-log` writes: what each cost, and nothing of what was said.

mod common;
#[path = "common/server.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod server;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{reciting, shared, text};
use serde_json::{Value, json};
use server::Server;

/// The lines of a log, once there are so many: a line is written when the answer has ended, which its client may see first.
fn lines(path: &Path, number: usize) -> Vec<Value> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let log = fs_err::read_to_string(path).expect("a log");
        let lines: Vec<Value> =
            log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if lines.len() >= number || Instant::now() > until {
            assert_eq!(lines.len(), number, "{log}");
            return lines;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_request_has_a_line_with_its_cost_and_nothing_of_what_was_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let log = dir.path().join("requests.jsonl");
    fs_err::write(&log, "{\"kept\": true}\n").expect("a file");
    let args =
        [text(&model), "--name", "m", "--api-key", "secret-key", "--request-log", text(&log)];
    let server = Server::start(&args);
    let key = "Authorization: Bearer secret-key\r\n";
    let said = "words that nobody should read";
    let ask = |stream: bool| {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": said}], "stream": stream, "max_tokens": 5});
        server.request("POST", "/v1/chat/completions", key, body.to_string().as_bytes())
    };
    let whole = ask(false);
    let usage = whole.json()["usage"].clone();
    let streamed = ask(true);
    assert_eq!((whole.status, streamed.status), (200, 200), "{}", whole.text());
    server.request("GET", "/v1/models?about=words", key, b"");
    server.request("GET", "/v1/models", "", b"");
    let all = lines(&log, 5);
    assert_eq!(all[0], json!({"kept": true}), "what was there before");
    for (line, stream) in [(&all[1], false), (&all[2], true)] {
        assert_eq!(
            (&line["method"], &line["path"]),
            (&json!("POST"), &json!("/v1/chat/completions")),
            "{line}"
        );
        assert_eq!(
            (&line["status"], &line["model"], &line["whole"]),
            (&json!(200), &json!("m"), &json!(true)),
            "{line}"
        );
        assert_eq!(
            (&line["prompt_tokens"], &line["completion_tokens"]),
            (&usage["prompt_tokens"], &usage["completion_tokens"]),
            "{line}"
        );
        let (began, ended) = (
            line["began_s"].as_f64().expect("seconds"),
            line["seconds"].as_f64().expect("seconds"),
        );
        assert!(began >= 0.0 && ended >= began, "{line}");
        assert!(
            line["time"].as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 24),
            "{line}"
        );
        if !stream {
            assert_eq!(line["bytes"], whole.text().len(), "{line}");
        }
    }
    assert_eq!(
        (&all[3]["path"], &all[3]["status"], &all[3]["prompt_tokens"]),
        (&json!("/v1/models"), &json!(200), &Value::Null)
    );
    assert_eq!((&all[4]["path"], &all[4]["status"]), (&json!("/v1/models"), &json!(401)));
    let text = fs_err::read_to_string(&log).expect("a log");
    for secret in [said, "secret-key", "about=words", "好"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[test]
fn a_client_that_leaves_is_told_in_its_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = shared("golden/minimind2");
    let out = dir.path().join("export");
    let tokenizer = shared("golden");
    let args =
        ["export", text(&model), "--tokenizer", text(&tokenizer), "--gguf", "f32", "--name", "m"];
    let report = common::mmx_json(&[&args[..], &["--out", text(&out)]].concat());
    let gguf = report["files"][0]["path"].as_str().expect("a path").to_owned();
    let log = dir.path().join("requests.jsonl");
    let server =
        Server::start(&[&gguf, "--name", "m", "--ctx", "4096", "--request-log", text(&log)]);
    let body = json!({"prompt": "a", "stream": true, "max_tokens": 4000, "logit_bias": {"0": -100, "2": -100}});
    let mut stream = server.send("POST", "/v1/completions", "", body.to_string().as_bytes());
    let mut byte = [0; 64];
    std::io::Read::read_exact(&mut stream, &mut byte).expect("a beginning");
    drop(stream);
    let line = &lines(&log, 1)[0];
    assert_eq!((&line["status"], &line["model"]), (&json!(200), &json!("m")), "{line}");
    assert_eq!(line["whole"], false, "{line}");
}

#[test]
fn a_log_that_cannot_be_written_is_one_error() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let line = common::mmx_error(&[
        "serve",
        text(&model),
        "--port",
        "0",
        "--request-log",
        text(dir.path()),
    ]);
    assert!(line.contains(text(dir.path())), "{line}");
}
