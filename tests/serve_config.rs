//! `mmx serve --config`: several models and keys from a file, and who may use what, in every protocol.

mod common;
#[path = "common/server.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod server;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{reciting, text};
use serde_json::{Value, json};
use server::{Answer, Server};

/// A file with two models and two keys, one of them for one model.
fn config(dir: &Path) -> PathBuf {
    let model = reciting(dir, None, json!(2), 2);
    let model = model.strip_prefix(dir).expect("beside the file");
    fs_err::write(dir.join("alice.key"), "alice-key\n").expect("a key");
    let path = dir.join("serve.toml");
    let file = format!(
        "port = 1\nmax-tokens = 7\nqueue = 9\n\
         [[models]]\npath = {model:?}\nname = \"small\"\naliases = [\"gpt-4o-mini\"]\nctx = 96\n\
         [[models]]\npath = {model:?}\nname = \"large\"\nparallel = 2\nprompt-cache = 0\n\
         [[keys]]\nkey = \"everything\"\n\
         [[keys]]\nkey-file = \"alice.key\"\nmodels = [\"gpt-4o-mini\"]\n"
    );
    fs_err::write(&path, file).expect("a file");
    path
}

/// Asks with a key.
fn ask(server: &Server, key: &str, path: &str, body: &Value) -> Answer {
    let (method, body) = match body {
        Value::Null => ("GET", String::new()),
        body => ("POST", body.to_string()),
    };
    let header = format!("Authorization: Bearer {key}\r\n");
    server.request(method, path, &header, body.as_bytes())
}

fn names(list: &Value, field: &str) -> Vec<String> {
    let list = list.as_array().expect("a list");
    list.iter().map(|m| m[field].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_key_reaches_its_models_in_every_protocol_and_no_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = config(dir.path());
    let server = Server::start(&["--config", text(&path)]);
    let (all, alice) = ("everything", "alice-key");
    let messages = json!([{"role": "user", "content": "hello"}]);

    for key in ["", "other", "alice-key\u{20}x"] {
        let answer = ask(&server, key, "/v1/models", &Value::Null);
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["code"]), (401, &json!("invalid_api_key")));
    }
    for (key, expected) in [(all, vec!["small", "large"]), (alice, vec!["small"])] {
        let get = |path: &str| ask(&server, key, path, &Value::Null).json();
        assert_eq!(names(&get("/v1/models")["data"], "id"), expected);
        assert_eq!(names(&get("/api/tags")["models"], "name"), expected);
        assert_eq!(names(&get("/api/ps")["models"], "name"), expected);
        let metrics = ask(&server, key, "/metrics", &Value::Null).text();
        assert!(metrics.contains("{model=\"small\"}"), "{metrics}");
        assert_eq!(metrics.contains("{model=\"large\"}"), key == all, "{metrics}");
    }
    let meta = |id: &str| ask(&server, all, &format!("/v1/models/{id}"), &Value::Null).json();
    assert_eq!(meta("gpt-4o-mini")["id"], "small");
    assert_eq!(meta("small")["meta"]["aliases"], json!(["gpt-4o-mini"]));
    assert_eq!(meta("small")["meta"]["n_ctx"], 96);
    assert_ne!(meta("large")["meta"]["n_ctx"], 96);

    let body = |model: &str, more: Value| {
        let mut body = json!({"model": model});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("one").clone());
        body
    };
    for (path, more) in [
        ("/v1/chat/completions", json!({"messages": messages, "max_tokens": 3})),
        ("/v1/chat/completions", json!({"messages": messages, "max_tokens": 3, "stream": true})),
        ("/v1/responses", json!({"input": "hello", "max_output_tokens": 16})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 3})),
        ("/v1/messages/count_tokens", json!({"messages": messages})),
        ("/v1/completions", json!({"prompt": "hello", "max_tokens": 3})),
        ("/v1/embeddings", json!({"input": "hello"})),
        ("/tokenize", json!({"content": "hello"})),
        ("/detokenize", json!({"tokens": [65]})),
        ("/apply-template", json!({"messages": messages})),
        ("/api/chat", json!({"messages": messages, "stream": false})),
        ("/api/generate", json!({"prompt": "hello", "stream": false})),
        ("/api/embed", json!({"input": "hello"})),
        ("/api/embeddings", json!({"prompt": "hello"})),
        ("/api/show", json!({})),
    ] {
        let status = |key: &str, model: &str| {
            let answer = ask(&server, key, path, &body(model, more.clone()));
            (answer.status, answer)
        };
        for (key, model) in
            [(all, "large"), (all, "small"), (alice, "small"), (alice, "gpt-4o-mini")]
        {
            let (found, answer) = status(key, model);
            assert_eq!(found, 200, "{path} of {model} with {key}: {}", answer.text());
        }
        let (found, answer) = status(alice, "large");
        assert_eq!(found, 403, "{path}: {}", answer.text());
        assert!(answer.text().contains("the API key is not for large"), "{}", answer.text());
        let (found, answer) = status(alice, "nothing");
        assert_eq!(found, 404, "{path}: {}", answer.text());
        assert!(!answer.text().contains("large"), "{path}: {}", answer.text());
    }
    let refused = ask(
        &server,
        alice,
        "/v1/chat/completions",
        &json!({"model": "large", "messages": messages}),
    );
    let error = &refused.json()["error"];
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_allowed"), &json!("model")));
    let gone = ask(&server, alice, "/v1/models/large", &Value::Null);
    assert_eq!(gone.status, 404, "{}", gone.text());
}

#[test]
fn responses_that_are_kept_are_those_of_the_key_they_were_made_with() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = config(dir.path());
    let server = Server::start(&["--config", text(&path)]);
    for stream in [false, true] {
        let body =
            json!({"model": "small", "input": "hello", "max_output_tokens": 16, "stream": stream});
        let made = ask(&server, "everything", "/v1/responses", &body);
        let said = made.text();
        let id = said.split("\"id\":\"resp_").nth(1).and_then(|rest| rest.split('"').next());
        let id = format!("resp_{}", id.unwrap_or_else(|| panic!("no id: {said}")));
        let one = format!("/v1/responses/{id}");
        let after = json!({"model": "small", "input": "and?", "previous_response_id": id, "max_output_tokens": 16});
        assert_eq!(ask(&server, "alice-key", &one, &Value::Null).status, 404);
        assert_eq!(ask(&server, "alice-key", "/v1/responses", &after).status, 400);
        let header = "Authorization: Bearer alice-key\r\n";
        assert_eq!(server.request("DELETE", &one, header, b"").status, 404);
        assert_eq!(ask(&server, "everything", &one, &Value::Null).status, 200);
        assert_eq!(ask(&server, "everything", "/v1/responses", &after).status, 200);
    }
}

#[test]
fn options_win_over_the_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = config(dir.path());
    let server = Server::start(&["--config", text(&path), "--ctx", "80", "--api-key", "mine"]);
    assert_eq!(ask(&server, "everything", "/v1/models", &Value::Null).status, 401);
    let list = ask(&server, "mine", "/v1/models", &Value::Null).json();
    let sizes: Vec<_> =
        list["data"].as_array().expect("two").iter().map(|m| m["meta"]["n_ctx"].clone()).collect();
    assert_eq!(sizes, [json!(80), json!(80)]);
    // what the file says and no option does: at most 7 tokens
    let messages = json!([{"role": "user", "content": "hello"}]);
    let body = json!({"model": "large", "messages": messages, "max_tokens": 100});
    let long = ask(&server, "mine", "/v1/chat/completions", &body);
    assert_eq!(long.json()["usage"]["completion_tokens"], 7, "{}", long.text());

    let model = reciting(&dir.path().join("other"), None, json!(2), 2);
    let server = Server::start(&[
        text(&model),
        "--name",
        "third",
        "--config",
        text(&path),
        "--api-key",
        "mine",
    ]);
    let list = ask(&server, "mine", "/v1/models", &Value::Null).json();
    assert_eq!(names(&list["data"], "id"), ["third"]);
}

#[test]
fn files_without_sense_are_refused_with_their_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = config(dir.path());
    let right = fs_err::read_to_string(&path).expect("a file");
    for (text_, expected) in [
        (right.replace("max-tokens", "max-token"), "serve.toml:2: unknown field \"max-token\""),
        (right.replace("\"large\"", "\"gpt-4o-mini\""), "two models are called gpt-4o-mini"),
        (
            right.replace("models = [\"gpt-4o-mini\"]", "models = [\"huge\"]"),
            "expected some of small, large, found huge",
        ),
        (right.replace("alice.key", "bob.key"), "bob.key"),
        ("port = 1\n".to_owned(), "expected a model in [[models]], found none"),
    ] {
        fs_err::write(&path, text_).expect("a file");
        let out = Command::new(env!("CARGO_BIN_EXE_mmx"))
            .args(["serve", "--config", text(&path)])
            .output();
        let out = out.expect("mmx starts");
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}, expected {expected}");
        assert!(
            !said.contains("everything") && !said.contains("alice-key"),
            "a key is told: {said}"
        );
    }
}
