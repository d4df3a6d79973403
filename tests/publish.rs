//! `mmx push`, `pull` and `ollama create` through the binary, against servers on this machine: what arrives, what is
//! not sent again, what happens when the connection ends in between.

#[path = "common/answering.rs"]
mod answering;
mod common;
mod hub;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use answering::answering;
use common::{mmx_ok, shared, text};
use hub::Server;
use serde_json::{Value, json};
use sha2::Digest as _;

fn run(hub: &Server, args: &[&str], more: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
    command.args(args).env("HF_ENDPOINT", &hub.address).env_remove("HF_TOKEN");
    command.env("HF_HOME", "/nonexistent").envs(more.iter().copied());
    command.output().expect("mmx starts")
}

fn ok(hub: &Server, args: &[&str]) -> Value {
    let out = run(hub, &[args, &["--json"]].concat(), &[]);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("one JSON object")
}

fn refused(hub: &Server, args: &[&str]) -> String {
    let out = run(hub, args, &[]);
    let stderr = String::from_utf8(out.stderr).expect("UTF-8");
    assert_eq!(out.status.code(), Some(1), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().filter(|l| l.starts_with("error:")).count(), 1, "{stderr}");
    stderr
}

/// A golden model, exported: a Transformers folder and a GGUF beside it.
fn exported(dir: &Path) -> PathBuf {
    let out = dir.join("export");
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let args = ["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "gold"];
    mmx_ok(
        &[&args[..], &["--hf", "f32", "--gguf", "q8_0", "--ollama", "--out", text(&out)]].concat(),
    );
    out
}

/// Every file of a folder by its path in it, but for hidden ones, which stay here.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).expect("a folder").flatten() {
            if text(Path::new(&entry.file_name())).starts_with('.') {
                continue;
            }
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => {
                    let name = entry.path().strip_prefix(dir).expect("inside").to_owned();
                    let bytes = fs_err::read(entry.path()).expect("a file");
                    all.push((text(&name).to_owned(), bytes));
                }
            }
        }
    }
    all.sort();
    all
}

#[test]
fn what_was_pushed_comes_back_and_is_not_sent_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let export = exported(dir.path());
    let hub = Server::start(0);
    let report = ok(&hub, &["push", text(&export), "me/gold", "--private"]);
    assert!(hub.state().is_private("me/gold"));
    assert_eq!(hub.state().commits, 1);
    let large: Vec<&str> = report["files"]
        .as_array()
        .expect("files")
        .iter()
        .filter(|file| file["lfs"] == true)
        .map(|file| file["path"].as_str().expect("a path"))
        .collect();
    assert_eq!(large, ["gold-131K-q8_0.gguf", "hf-f32/model.safetensors"]);
    for (path, bytes) in files(&export) {
        let (held, lfs) = hub.state().file("me/gold", "main", &path).expect("uploaded");
        assert!(held == bytes, "{path}");
        assert_eq!(lfs, large.contains(&path.as_str()), "{path}");
    }

    let out = dir.path().join("back");
    let pulled = ok(&hub, &["pull", "me/gold", "--out", text(&out)]);
    assert_eq!(pulled["commit"], report["commit"]);
    assert!(files(&out) == files(&export), "what came back differs");
    assert!(
        ok(&hub, &["pull", "me/gold", "--out", text(&out)])["files"]
            .as_array()
            .expect("files")
            .iter()
            .all(|file| file["fetched"] == 0)
    );
    let only = dir.path().join("only");
    ok(&hub, &["pull", "me/gold", "--out", text(&only), "--only", "q8_0.gguf"]);
    assert_eq!(files(&only).len(), 1);

    // the same again: nothing to send and no commit
    let again = ok(&hub, &["push", text(&export), "me/gold"]);
    assert!(again["files"].as_array().expect("files").iter().all(|file| file["sent"] == false));
    assert_eq!((hub.state().commits, &again["commit"]), (1, &report["commit"]));

    // another branch; shards in place of the one file, which must go
    let shards = dir.path().join("shards");
    let model = export.join("hf-f32");
    mmx_ok(&[
        "export",
        text(&model),
        "--hf",
        "f32",
        "--shard-size",
        "200kB",
        "--out",
        text(&shards),
    ]);
    ok(&hub, &["push", text(&model), "me/gold", "--revision", "v2"]);
    ok(&hub, &["push", text(&shards.join("hf-f32")), "me/gold", "--revision", "v2"]);
    let paths = hub.state().paths("me/gold", "v2");
    assert!(paths.iter().any(|p| p == "model.safetensors.index.json"), "{paths:?}");
    assert!(!paths.iter().any(|p| p == "model.safetensors"), "{paths:?}");
    assert!(!hub.state().paths("me/gold", "main").iter().any(|p| p == "config.json"));

    // and as a model's name
    let cache = dir.path().join("cache");
    let args = ["inspect", "hf:me/gold@v2", "--json"];
    let caches = [("MMX_CACHE", text(&cache)), ("HF_HUB_CACHE", text(&cache))];
    let out = run(&hub, &args, &caches);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let shown: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(shown["family"], "minimind2");
}

/// Case upload-pointer: what a user could not open is not uploaded.
#[test]
fn upload_pointer() {
    let hub = Server::start(0);
    let folder = shared("cases/files/upload-pointer/folder");
    let error = refused(&hub, &["push", text(&folder), "me/pointer"]);
    assert!(error.contains("model.safetensors") && error.contains("Git LFS pointer"), "{error}");
    assert!(hub.state().paths("me/pointer", "main").is_empty(), "no repository was made");

    let dir = tempfile::tempdir().expect("a folder");
    fs_err::write(dir.path().join("notes.txt"), "x").expect("a file");
    let error = refused(&hub, &["push", text(dir.path()), "me/x"]);
    assert!(error.contains("expected a model"), "{error}");
    for bad in ["a/b/c", "../x", "a b"] {
        let out = run(&hub, &["push", text(&folder), bad], &[]);
        assert_eq!(out.status.code(), Some(2), "{bad}");
    }
}

#[test]
fn an_interrupted_upload_leaves_no_commit_and_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let export = exported(dir.path());
    let hub = Server::start(0);
    hub.state().cut_upload = Some(1000);
    refused(&hub, &["push", text(&export), "me/gold"]);
    assert_eq!(hub.state().commits, 0);
    assert!(hub.state().file("me/gold", "main", "README.md").is_none());
    // the first large file arrives, the second one's connection ends
    ok(&hub, &["push", text(&export.join("hf-f32")), "me/other"]);
    let before = hub.state().uploads;
    ok(&hub, &["push", text(&export), "me/gold"]);
    // the folder's weights are there from the other repository: only the GGUF was sent
    let sent = hub.state().uploads - before;
    assert_eq!((sent, hub.state().commits), (1, 2));
    assert!(hub.state().file("me/gold", "main", "hf-f32/model.safetensors").is_some());
}

#[test]
fn large_files_go_in_parts_where_the_hub_asks_for_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let export = exported(dir.path());
    let hub = Server::start(0);
    hub.state().part_size = Some(100_000);
    ok(&hub, &["push", text(&export.join("hf-f32")), "me/gold"]);
    let weights = fs_err::read(export.join("hf-f32/model.safetensors")).expect("weights");
    assert_eq!(hub.state().uploads, weights.len().div_ceil(100_000));
    let (held, _) = hub.state().file("me/gold", "main", "model.safetensors").expect("uploaded");
    assert!(held == weights);
}

#[test]
fn an_interrupted_download_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("a folder");
    let export = exported(dir.path());
    let hub = Server::start(0);
    ok(&hub, &["push", text(&export.join("hf-f32")), "me/gold"]);
    let out = dir.path().join("back");
    hub.state().cut_download = Some(70_000);
    let error = refused(&hub, &["pull", "me/gold", "--out", text(&out)]);
    assert!(error.contains("model.safetensors") && error.contains("run it again"), "{error}");
    assert!(!out.join("model.safetensors").exists(), "nothing half-written under its name");
    let report = ok(&hub, &["pull", "me/gold", "--out", text(&out)]);
    assert_eq!(hub.state().ranges, ["bytes=70000-"]);
    let weights = fs_err::read(export.join("hf-f32/model.safetensors")).expect("weights");
    assert!(fs_err::read(out.join("model.safetensors")).expect("weights") == weights);
    let fetched = report["files"].as_array().expect("files").iter();
    let fetched: Vec<&Value> = fetched
        .filter(|f| f["path"].as_str().is_some_and(|p| p.ends_with("model.safetensors")))
        .collect();
    assert_eq!(fetched[0]["fetched"], weights.len() - 70_000);

    // bytes that are not what the hub reports are thrown away
    let other = dir.path().join("other");
    hub.state().spoil_download = true;
    let error = refused(&hub, &["pull", "me/gold", "--out", text(&other)]);
    assert!(error.contains("model.safetensors: expected SHA-256"), "{error}");
    assert!(!other.join("model.safetensors").exists());
    ok(&hub, &["pull", "me/gold", "--out", text(&other)]);
    // a repository or revision that is not there
    let error = refused(&hub, &["pull", "me/none", "--out", text(&other)]);
    assert!(error.contains("me/none"), "{error}");
    let error = refused(&hub, &["pull", "me/gold", "--revision", "v9", "--out", text(&other)]);
    assert!(error.contains("v9"), "{error}");
}

#[test]
fn a_token_is_sent_and_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let export = exported(dir.path()).join("hf-f32");
    let hub = Server::start(0);
    hub.state().token = Some("hf_secret".to_owned());
    let error = refused(&hub, &["push", text(&export), "me/gold"]);
    assert!(error.contains("401") && error.contains("HF_TOKEN"), "{error}");
    let out = run(&hub, &["push", text(&export), "me/gold"], &[("HF_TOKEN", "hf_secret")]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // the official client's login
    let file = dir.path().join("token");
    fs_err::write(&file, "hf_secret\n").expect("a file");
    let login = [("HF_TOKEN_PATH", text(&file))];
    let out = run(&hub, &["push", text(&export), "me/gold"], &login);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let out = run(&hub, &["doctor"], &login);
    let shown = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(shown.contains(&format!("in {}", file.display())), "{shown}");
    assert!(!shown.contains("hf_secret"), "a token is not shown");
    let gone = Server::start(0).address; // a server that nobody talks to is no server
    let closed = gone.replace(|c: char| c.is_ascii_digit(), "1");
    let out = run(&hub, &["pull", "me/gold", "--out", "x"], &[("HF_ENDPOINT", &closed)]);
    assert_eq!(out.status.code(), Some(1));
}

/// What a made-up Ollama was asked: method, path, body.
type Asked = Arc<Mutex<Vec<(String, String, Vec<u8>)>>>;

/// A server with Ollama's two addresses; `answer` is what create says, line by line.
fn ollama(has_blob: bool, answer: &'static str) -> (String, Asked) {
    let asked: Asked = Arc::default();
    let seen = asked.clone();
    let address = answering(move |method, path, body| {
        let create = path == "/api/create";
        let status = match (method, has_blob) {
            ("HEAD", false) => 404,
            ("POST", _) if !create => 201,
            _ => 200,
        };
        seen.lock().expect("no panic").push((method.to_owned(), path.to_owned(), body));
        (status, if create { answer } else { "" }.to_owned())
    });
    (address, asked)
}

#[test]
fn ollama_create_sends_the_gguf_and_what_the_modelfile_says() {
    let dir = tempfile::tempdir().expect("a folder");
    let export = exported(dir.path());
    let gguf = fs_err::read(export.join("gold-131K-q8_0.gguf")).expect("a GGUF");
    let digest: String =
        sha2::Sha256::digest(&gguf).iter().map(|byte| format!("{byte:02x}")).collect();
    let done = "{\"status\":\"parsing GGUF\"}\n{\"status\":\"success\"}\n";
    for has_blob in [false, true] {
        let (address, asked) = ollama(has_blob, done);
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        command.args(["ollama", "create", "gold", text(&export), "--json"]);
        let out = command.env("OLLAMA_HOST", &address).output().expect("mmx starts");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let report: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        assert_eq!((&report["sent"], &report["bytes"]), (&json!(!has_blob), &json!(gguf.len())));
        let asked = asked.lock().expect("no panic").clone();
        let blob = format!("/api/blobs/sha256:{digest}");
        let calls: Vec<(&str, &str)> =
            asked.iter().map(|(method, path, _)| (method.as_str(), path.as_str())).collect();
        let mut expected = vec![("HEAD", blob.as_str()), ("POST", "/api/create")];
        if !has_blob {
            expected.insert(1, ("POST", blob.as_str()));
            assert!(asked[1].2 == gguf, "the GGUF arrives whole");
        }
        assert_eq!(calls, expected);
        let body: Value = serde_json::from_slice(&asked.last().expect("create").2).expect("JSON");
        assert_eq!(body["model"], "gold");
        assert_eq!(body["files"]["gold-131K-q8_0.gguf"], format!("sha256:{digest}"));
        let stops = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"];
        assert_eq!(body["parameters"]["stop"], json!(stops));
        assert_eq!(body["parameters"]["temperature"], 0.85);
        assert!(body["parameters"]["num_ctx"].is_u64(), "{body}");
    }
}

#[test]
fn an_ollama_that_refuses_or_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().expect("a folder");
    let export = exported(dir.path());
    let create = |host: &str, folder: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        command.args(["ollama", "create", "gold", text(folder)]).env("OLLAMA_HOST", host);
        let out = command.output().expect("mmx starts");
        assert_eq!(out.status.code(), Some(1));
        String::from_utf8(out.stderr).expect("UTF-8")
    };
    let (address, _) = ollama(true, "{\"error\":\"unsupported architecture\"}\n");
    assert!(
        create(&address, &export).contains("error: gold: creating it: unsupported architecture")
    );
    let (address, _) = ollama(true, "{\"status\":\"parsing GGUF\"}\n");
    assert!(create(&address, &export).contains("expected success"));
    // no server, no Modelfile
    let error = create("127.0.0.1:1", &export);
    assert!(error.contains("127.0.0.1:1") && error.contains("hint:"), "{error}");
    assert!(create(&address, dir.path()).contains("expected a Modelfile"));
}
