//! Ollama's API of `mmx serve` as its clients use it: what they send is obeyed, or refused by name in Ollama's form.

mod common;
#[path = "common/server.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod server;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use common::{mmx_json, shared, text};
use serde_json::{Value, json};
use server::{Answer, Server};

/// A golden model as a GGUF with its tokenizer.
fn golden(dir: &Path, set: &str, model: &str) -> PathBuf {
    let (source, tokenizer) = (shared(&format!("{set}/{model}")), shared(set));
    let args = ["export", text(&source), "--tokenizer", text(&tokenizer), "--gguf", "f32"];
    let report = mmx_json(&[&args[..], &["--name", "m", "--out", text(&dir.join(set))]].concat());
    PathBuf::from(report["files"][0]["path"].as_str().expect("a path"))
}

/// A server of golden/minimind2 (no tools, no thoughts), or golden-2026/minimind3 (both), called `m`.
fn serve(dir: &Path, set: &str, more: &[&str]) -> Server {
    let name = if set == "golden" { "minimind2" } else { "minimind3" };
    let model = golden(dir, set, name);
    Server::start(&[&[text(&model), "--name", "m", "--kv", "f32"], more].concat())
}

fn case(id: &str, file: &str) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cases/turn2");
    let text = fs_err::read_to_string(root.join(id).join(file)).expect("a case");
    serde_json::from_str(&text).expect("JSON")
}

/// The sentence of an error in Ollama's form, and nothing beside it.
fn sentence(answer: &Answer) -> String {
    let body = answer.json();
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{body}");
    body["error"].as_str().unwrap_or_else(|| panic!("no sentence: {body}")).to_owned()
}

/// A request that must be refused with 400, its sentence beginning with the field's name.
fn refused(server: &Server, path: &str, body: &Value, field: &str) {
    let answer = server.post(path, body);
    assert_eq!(answer.status, 400, "{path} {body}: {}", answer.text());
    let said = sentence(&answer);
    assert!(said.starts_with(field), "{path} {body}: expected {field}, found: {said}");
}

fn user(content: &str) -> Value {
    json!([{"role": "user", "content": content}])
}

#[test]
fn ollama_gaps() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(dir.path(), "golden", &["--ctx", "256"]);
    let requests = case("ollama-gaps", "requests.json");
    let body = |path: &str| {
        let found = requests.as_array().expect("a list").iter().find(|r| r["POST"] == path);
        found.unwrap_or_else(|| panic!("no request for {path}"))["body"].clone()
    };
    // the older form of the same vector
    let older = server.ask("/api/embeddings", &body("/api/embeddings"));
    let newer = server.ask("/api/embed", &json!({"model": "m", "input": "hello"}));
    assert_eq!(older["embedding"].as_array().map(Vec::len), Some(64));
    assert_eq!(older["embedding"], newer["embeddings"][0]);
    // a text that is too long is cut, unless that is forbidden
    let mut long = body("/api/embed");
    assert!(long["input"].as_str().expect("text").contains("3000 times"));
    long["input"] = "hello ".repeat(3000).into();
    let cut = server.ask("/api/embed", &long);
    assert_eq!(cut["prompt_eval_count"], 256, "cut to the context");
    let shorter = json!({"model": "m", "input": long["input"], "options": {"num_ctx": 7}});
    assert_eq!(server.ask("/api/embed", &shorter)["prompt_eval_count"], 7);
    let prompt = json!({"model": "m", "prompt": long["input"]});
    let older = server.ask("/api/embeddings", &prompt);
    assert_eq!(older["embedding"], cut["embeddings"][0], "the older form cuts, too");
    long["truncate"] = false.into();
    refused(&server, "/api/embed", &long, "input: ");
    // an image is not dropped
    refused(&server, "/api/chat", &body("/api/chat"), "messages[0].images");
    // what a model can be asked for
    let tags = server.get("/api/tags").json();
    let shown = server.ask("/api/show", &json!({"model": "m"}));
    assert_eq!(tags["models"][0]["capabilities"], json!(["completion"]));
    assert_eq!(tags["models"][0]["capabilities"], shown["capabilities"]);
    let pulled = server.post("/api/pull", &body("/api/pull"));
    assert_eq!(pulled.status, 501);
    assert!(sentence(&pulled).starts_with("pull: mmx serve serves the models"));
}

#[test]
fn capabilities_are_what_the_template_has_places_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(dir.path(), "golden-2026", &[]);
    let tags = server.get("/api/tags").json();
    // never `embedding`: `ollama run` would answer with a vector
    assert_eq!(tags["models"][0]["capabilities"], json!(["completion", "tools", "thinking"]));
    for think in [json!(true), json!("high"), json!(false)] {
        let body = json!({"messages": user("x"), "think": think, "stream": false,
            "options": {"num_predict": 2}});
        server.ask("/api/chat", &body);
    }
    refused(&server, "/api/chat", &json!({"messages": user("x"), "think": "often"}), "think: ");
    refused(&server, "/api/chat", &json!({"messages": user("x"), "think": 1}), "think: ");
    let plain = serve(dir.path(), "golden", &[]);
    refused(&plain, "/api/chat", &json!({"messages": user("x"), "think": true}), "think: ");
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    refused(&plain, "/api/chat", &json!({"messages": user("x"), "tools": tool}), "tools: ");
}

/// Unknown paths, wrong methods, what is not there, broken JSON, a wrong key, a body that is too large.
#[test]
fn every_error_under_api_has_ollamas_form() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let server = Server::start(&[text(&model), "--name", "m", "--max-body", "5000"]);
    let status = |method: &str, path: &str, body: &[u8]| {
        let answer = server.request(method, path, "", body);
        let said = sentence(&answer);
        assert!(!said.is_empty());
        (answer.status, said)
    };
    for path in ["/api", "/api/", "/api/nothing", "/api/experimental/web_search", "/api/chat/x"] {
        assert_eq!(status("POST", path, b"{}").0, 404, "{path}");
    }
    for (method, path) in [
        ("GET", "/api/chat"),
        ("GET", "/api/generate"),
        ("GET", "/api/embed"),
        ("GET", "/api/embeddings"),
        ("GET", "/api/show"),
        ("GET", "/api/pull"),
        ("POST", "/api/tags"),
        ("POST", "/api/ps"),
        ("POST", "/api/version"),
        ("POST", "/api/delete"),
    ] {
        assert_eq!(status(method, path, b"{}").0, 405, "{method} {path}");
    }
    for action in ["pull", "push", "create", "copy"] {
        let (code, said) = status("POST", &format!("/api/{action}"), b"{\"model\": \"m\"}");
        assert_eq!(code, 501);
        assert!(said.starts_with(action) && said.contains("(m)"), "{said}");
    }
    let (code, said) = status("DELETE", "/api/delete", b"{\"model\": \"\", \"name\": \"m\"}");
    assert!(code == 501 && said.starts_with("delete: "), "{said}");
    for path in ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"] {
        for body in [&b"{\"model\": "[..], b"", b"[1]", b"\"m\"", b"{\"options\": 3}"] {
            let (code, said) = status("POST", path, body);
            assert_eq!(code, 400, "{path} {body:?}: {said}");
        }
        assert_eq!(status("POST", path, &[b' '; 6000]).0, 413, "{path}");
    }
    // a file that is sent is read to its end, though it is not taken: else nobody would see why
    let digest = format!("/api/blobs/sha256:{}", "0".repeat(64));
    let (code, said) = status("POST", &digest, &vec![b'x'; 3 << 20]);
    assert!(code == 501 && said.starts_with("blobs: "), "{said}");
    assert_eq!(server.request("HEAD", &digest, "", b"").status, 501);
    let locked = Server::start(&[text(&model), "--api-key", "k"]);
    let answer = locked.get("/api/tags");
    assert_eq!(answer.status, 401);
    sentence(&answer);
    let foreign = server.request("GET", "/api/nothing", "Origin: http://evil.example\r\n", b"");
    assert_eq!(foreign.status, 403);
    sentence(&foreign);
    // and elsewhere it is OpenAI's
    assert!(server.get("/apis").json()["error"]["message"].is_string());
}

#[test]
fn a_field_that_would_change_the_answer_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(dir.path(), "golden", &["--ctx", "128"]);
    let chat = |key: &str, value: Value| {
        let mut body = json!({"model": "m", "messages": user("x"), "stream": false,
            "options": {"num_predict": 1, "seed": 1}});
        body[key] = value;
        body
    };
    for (key, value, field) in [
        ("temperature", json!(0), "temperature: expected within options"),
        ("tool_choice", json!("none"), "tool_choice: "),
        ("shift", json!(true), "shift: "),
        ("_debug_render_only", json!(true), "_debug_render_only: "),
        ("stream", json!("yes"), "stream: expected true or false, found a string"),
        ("messages", json!("x"), "messages: expected a list"),
        ("format", json!(5), "format: "),
        ("format", json!({"type": "nonsense"}), "format: "),
        ("top_logprobs", json!(3), "top_logprobs: "),
        ("keep_alive", json!([1]), "keep_alive: "),
        (
            "messages",
            json!([{"role": "user", "content": "x", "audio": "aGk="}]),
            "messages[0].audio",
        ),
        ("messages", json!([{"role": "user", "content": "x"}, 7]), "messages[1]"),
        ("options", json!({"mirostat": 2}), "options.mirostat: "),
        ("options", json!({"temprature": 0}), "options.temprature: "),
        ("options", json!({"num_predict": 0}), "options.num_predict: "),
        ("options", json!({"temperature": -1}), "options.temperature: expected 0"),
        ("options", json!({"top_p": 1.5}), "options.top_p: expected"),
        ("options", json!({"repeat_penalty": 0}), "options.repeat_penalty: expected"),
        ("options", json!({"presence_penalty": 3}), "options.presence_penalty: expected"),
        ("options", json!({"stop": [""]}), "options.stop: "),
        ("options", json!({"seed": -2}), "options.seed: "),
        ("options", json!({"num_ctx": 3}), "messages: the prompt has"),
    ] {
        refused(&server, "/api/chat", &chat(key, value), field);
    }
    for (key, value) in [
        ("shift", json!(false)),
        ("truncate", json!(true)),
        ("keep_alive", json!("5m")),
        ("keep_alive", json!(-1)),
        ("think", json!(false)),
        ("format", json!("")),
        ("tools", json!([])),
        ("unheard_of", json!(null)),
        ("messages", json!([{"role": "User", "content": "x", "images": [], "tool_calls": null}])),
        ("options", json!({"num_ctx": 100000, "num_thread": 1, "num_predict": 1.0, "num_keep": 4})),
    ] {
        server.ask("/api/chat", &chat(key, value));
    }
    let answer = server.post("/api/chat", &chat("options", json!({"num_ctx": 3})));
    assert!(sentence(&answer).contains("options.num_ctx: 3"), "{}", answer.text());
    // prompt and answer share num_ctx
    let whole = server.ask("/api/chat", &{
        let mut body = chat("options", json!({"num_ctx": 56, "temperature": 0}));
        body["logprobs"] = true.into();
        body
    });
    let count = |key: &str| whole[key].as_u64().expect("a count");
    assert!(count("prompt_eval_count") + count("eval_count") <= 56, "{whole}");
    let prompt = |key: &str, value: Value| {
        let mut body = json!({"model": "m", "prompt": "x"});
        body[key] = value;
        body
    };
    for (key, value) in [
        ("images", json!(["aGk="])),
        ("suffix", json!("end")),
        ("template", json!("{{ .Prompt }}")),
        ("context", json!([1, 2])),
        ("messages", user("x")),
        ("tools", json!([{}])),
    ] {
        refused(&server, "/api/generate", &prompt(key, value), &format!("{key}: "));
    }
    let raw = json!({"prompt": "x", "raw": true, "system": "y"});
    refused(&server, "/api/generate", &raw, "system: ");
    for (key, value) in
        [("dimensions", json!(65)), ("dimensions", json!(-1)), ("normalize", json!(false))]
    {
        let mut body = json!({"input": "x"});
        body[key] = value;
        refused(&server, "/api/embed", &body, key);
    }
    refused(&server, "/api/embed", &json!({"input": 5}), "input: ");
    refused(&server, "/api/embeddings", &json!({"input": "x"}), "input: ");
    refused(&server, "/api/show", &json!({"model": "m", "system": "other"}), "system: ");
}

/// What Ollama's own command line sends, empty fields and all.
#[test]
fn both_names() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(dir.path(), "golden", &[]);
    let show = json!({"model": "", "system": "", "template": "", "verbose": false,
        "options": null, "name": "m"});
    assert_eq!(server.ask("/api/show", &show)["details"]["family"], "llama");
    for (path, body) in [
        ("/api/show", json!({})),
        ("/api/chat", json!({"messages": []})),
        ("/api/generate", json!({})),
        ("/api/embed", json!({})),
        ("/api/embeddings", json!({})),
    ] {
        let with = |model: &str, name: &str| {
            let mut body = body.clone();
            body["model"] = model.into();
            body["name"] = name.into();
            body
        };
        server.ask(path, &with("m", "m"));
        server.ask(path, &with("m", "m:latest"));
        server.ask(path, &with("", "m"));
        refused(&server, path, &with("m", "other"), "model, name: ");
    }
    let verbose = server.ask("/api/show", &json!({"model": "m", "verbose": true}));
    let tensors = verbose["tensors"].as_array().expect("a list");
    let embed = tensors.iter().find(|t| t["name"] == "token_embd.weight").expect("the embedding");
    assert_eq!(embed["shape"], json!([64, 512]), "the file's order");
    assert_eq!(embed["type"], "F32");
}

/// Case seed-minus-one, in Ollama's words.
#[test]
fn seed_minus_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(dir.path(), "golden", &[]);
    let request = case("seed-minus-one", "request.json");
    let ask = |seed: i64| {
        let body = json!({"messages": request["messages"], "stream": false, "options": {
            "temperature": request["temperature"], "top_p": request["top_p"],
            "top_k": request["top_k"], "num_predict": request["max_tokens"], "seed": seed}});
        server.ask("/api/chat", &body)["message"]["content"].clone()
    };
    let texts: Vec<Value> = (0..5).map(|_| ask(-1)).collect();
    assert!(texts.iter().any(|t| *t != texts[0]), "chosen anew each time: {texts:?}");
    assert_eq!(ask(3), ask(3));
}

#[test]
fn vectors_are_cut_to_dimensions_and_have_length_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(dir.path(), "golden", &[]);
    let vector = |body: Value| -> Vec<f64> {
        serde_json::from_value(server.ask("/api/embed", &body)["embeddings"][0].clone())
            .expect("numbers")
    };
    let (full, some) =
        (vector(json!({"input": "hello"})), vector(json!({"input": ["hello"], "dimensions": 16})));
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert_eq!((full.len(), some.len()), (64, 16));
    // float32 sums
    assert!((norm(&full) - 1.0).abs() < 1e-5 && (norm(&some) - 1.0).abs() < 1e-5);
    let ratio = norm(&full[..16]);
    for (a, b) in full.iter().zip(&some) {
        assert!((a / ratio - b).abs() < 1e-5, "{a} {b}");
    }
    for nothing in [json!({}), json!({"input": ""}), json!({"input": []})] {
        assert_eq!(server.ask("/api/embed", &nothing)["embeddings"], json!([]), "{nothing}");
    }
    assert_eq!(server.ask("/api/embeddings", &json!({"prompt": ""}))["embedding"], json!([]));
}

/// `logprobs` in streams and whole answers, equal to those of OpenAI's form.
#[test]
fn logprobs_are_those_of_openais_form() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(dir.path(), "golden", &[]);
    let openai = server.ask(
        "/v1/chat/completions",
        &json!({"messages": user("hi"), "temperature": 0, "max_tokens": 8, "logprobs": true,
            "top_logprobs": 2}),
    );
    let expected = openai["choices"][0]["logprobs"]["content"].as_array().expect("a list");
    assert!(!expected.is_empty());
    for path in ["/api/chat", "/api/generate"] {
        let mut body = json!({"logprobs": true, "top_logprobs": 2,
            "options": {"temperature": 0, "num_predict": 8}});
        match path {
            "/api/chat" => body["messages"] = user("hi"),
            _ => body["prompt"] = "hi".into(),
        }
        let lines = server.post(path, &body).text();
        let lines = lines.lines().map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
        let streamed: Vec<Value> =
            lines.filter_map(|l| l["logprobs"].as_array().cloned()).flatten().collect();
        body["stream"] = false.into();
        let whole = server.ask(path, &body);
        assert_eq!(whole["logprobs"].as_array(), Some(expected), "{path}");
        assert_eq!(&streamed, expected, "{path}");
    }
}

/// `ollama list`, `ps`, `stop`, `--version` ask in these ways.
#[test]
fn what_the_command_line_asks_is_answered() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(dir.path(), "golden", &[]);
    for path in ["/", "/api/tags", "/api/version", "/api/ps"] {
        let head = server.request("HEAD", path, "", b"");
        assert_eq!((head.status, head.text().as_str()), (200, ""), "HEAD {path}");
    }
    let listed = &server.get("/api/tags").json()["models"][0];
    assert!(listed["digest"].as_str().is_some_and(|d| d.len() == 64), "its first 12 are shown");
    assert!(listed["size"].as_u64() > Some(0));
    assert_eq!(listed["details"]["embedding_length"], 64);
    let running = &server.get("/api/ps").json()["models"][0];
    assert_eq!((&running["size_vram"], &running["context_length"]), (&json!(0), &json!(512)));
    assert_eq!(server.get("/api/status").json()["cloud"]["disabled"], true);
    // loading is done already, and unloading is not done
    let load = json!({"model": "m", "prompt": "", "suffix": "", "system": "", "template": "",
        "options": null, "keep_alive": "5m0s"});
    assert_eq!(server.ask("/api/generate", &load)["done_reason"], "load");
    for zero in [json!(0), json!("0s"), json!("0")] {
        let stop = json!({"model": "m", "prompt": "", "keep_alive": zero});
        refused(&server, "/api/generate", &stop, "keep_alive: m stays loaded");
        // beside a prompt it changes nothing in the answer
        let ask = json!({"model": "m", "prompt": "x", "keep_alive": zero, "stream": false,
            "options": {"num_predict": 1}});
        server.ask("/api/generate", &ask);
    }
}

/// A file of which not all has come yet is not waited for without end, and others are served meanwhile.
#[test]
fn a_file_that_is_sent_slowly_is_in_nobodys_way() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(dir.path(), "golden", &[]);
    let mut slow = std::net::TcpStream::connect(&server.address).expect("a connection");
    let head = format!(
        "POST /api/blobs/sha256:0 HTTP/1.1\r\nHost: {}\r\nContent-Length: 10\r\n\
         Connection: close\r\n\r\n12345",
        server.address
    );
    slow.write_all(head.as_bytes()).expect("sent");
    assert_eq!(server.get("/api/version").status, 200);
    slow.write_all(b"67890").expect("sent");
    let mut all = String::new();
    slow.read_to_string(&mut all).expect("an answer");
    assert!(all.starts_with("HTTP/1.1 501"), "{all}");
}
