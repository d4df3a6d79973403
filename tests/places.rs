//! Models from where people keep them, through the binary: a hub, ModelScope, Ollama's store; what is fetched, what is
//! kept and where, what is used again without the network.

mod common;
mod hub;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{mmx_ok, shared, text};
use hub::Server;
use serde_json::{Value, json};
use sha2::Digest as _;

/// One user's machine: folders of its own, and a hub.
struct Machine {
    dir: tempfile::TempDir,
    hub: Server,
}

impl Machine {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder"), hub: Server::start(0) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        command.args(args);
        for name in [
            "HF_TOKEN",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "HF_TOKEN_PATH",
            "OLLAMA_MODELS",
            "HUGGINGFACE_HUB_CACHE",
            "MODELSCOPE_API_TOKEN",
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command.env("HOME", self.dir.path()).env("MMX_CACHE", self.path("mmx"));
        command.env("HF_HOME", self.path("hf")).env("MODELSCOPE_CACHE", self.path("ms"));
        command.env("HF_ENDPOINT", &self.hub.address).env("MODELSCOPE_ENDPOINT", &self.hub.address);
        command
    }

    fn run(&self, args: &[&str], more: &[(&str, &str)]) -> Output {
        self.command(args).envs(more.iter().copied()).output().expect("mmx starts")
    }

    /// The path of a model as `mmx inspect` reports it, and what was said.
    fn opened(&self, model: &str, more: &[(&str, &str)]) -> (PathBuf, String) {
        let out = self.run(&["inspect", model, "--json"], more);
        let said = String::from_utf8(out.stderr).expect("UTF-8");
        assert!(out.status.success(), "{model}: {said}");
        let shown: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        (PathBuf::from(shown["path"].as_str().expect("a path")), said)
    }

    fn refused(&self, model: &str, more: &[(&str, &str)]) -> String {
        let out = self.run(&["inspect", model], more);
        assert_eq!(out.status.code(), Some(1), "{model}");
        String::from_utf8(out.stderr).expect("UTF-8")
    }

    /// A repository `me/gold` with a Transformers folder and GGUFs of these types.
    fn with_repository(types: &[&str]) -> Self {
        let machine = Self::new();
        let out = machine.path("export");
        let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
        let mut args = vec!["export", text(&model), "--tokenizer", text(&tokenizer)];
        args.extend(["--name", "gold", "--hf", "f32", "--out", text(&out)]);
        args.extend(types.iter().flat_map(|ty| ["--gguf", ty]));
        mmx_ok(&args);
        let pushed = machine.run(&["push", text(&out), "me/gold"], &[]);
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        machine.hub.state().downloads.clear();
        machine
    }

    fn repository(&self) -> PathBuf {
        self.path("hf/hub/models--me--gold")
    }
}

/// An address at which nobody listens.
const NOBODY: (&str, &str) = ("HF_ENDPOINT", "http://127.0.0.1:9");
const OFFLINE: (&str, &str) = ("HF_HUB_OFFLINE", "1");

#[test]
fn a_gguf_repository_takes_one_file_and_says_which() {
    let machine = Machine::with_repository(&["f16", "q4_0", "q8_0"]);
    // no q4_k_m: the smallest of four bits or more
    let (path, said) = machine.opened("hf:me/gold", &[]);
    assert!(path.ends_with("gold-131K-q4_0.gguf"), "{}", path.display());
    assert!(said.contains("taking gold-131K-q4_0.gguf (one of 3 GGUFs)"), "{said}");
    assert_eq!(machine.hub.state().downloads, ["gold-131K-q4_0.gguf"]);
    let (path, said) = machine.opened("hf:me/gold:Q8_0", &[]);
    assert!(path.ends_with("gold-131K-q8_0.gguf") && said.is_empty(), "{said}");
    let (path, _) = machine.opened("hf:me/gold/gold-131K-f16.gguf", &[]);
    assert!(path.ends_with("gold-131K-f16.gguf"));
    let (path, _) = machine.opened("hf:me/gold/hf-f32@main", &[]);
    assert!(path.ends_with("hf-f32") && path.join("tokenizer.json").is_file());
    let error = machine.refused("hf:me/gold:q3_k_m", &[]);
    assert!(
        error.contains("expected a GGUF of type q3_k_m") && error.contains("q8_0 ("),
        "{error}"
    );
    let error = machine.refused("hf:me/gold/none.gguf", &[]);
    assert!(error.contains("none.gguf") && error.contains("gold-131K-f16.gguf"), "{error}");
    let missing = machine.repository().join(".no_exist");
    let commit = fs_err::read_dir(missing).expect("a folder").flatten().next().expect("a commit");
    assert!(commit.path().join("none.gguf").is_file());
    // the model runs from there
    let out =
        machine.run(&["run", "hf:me/gold:q8_0", "-p", "1 2", "-n", "2", "--greedy", "--json"], &[]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn copies_lie_in_the_official_clients_layout() {
    let machine = Machine::with_repository(&["q8_0"]);
    let (path, _) = machine.opened("hf:me/gold", &[]);
    let root = machine.repository();
    let commit = fs_err::read_to_string(root.join("refs/main")).expect("a commit");
    assert_eq!(path, root.join("snapshots").join(&commit).join("gold-131K-q8_0.gguf"));
    let bytes = fs_err::read(&path).expect("the file");
    let digest: String = sha2::Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let blob = root.join("blobs").join(&digest);
    assert!(fs_err::read(&blob).expect("its content") == bytes);
    #[cfg(unix)]
    assert_eq!(fs_err::read_link(&path).expect("a link"), Path::new("../../blobs").join(&digest));
    let tree = fs_err::read(root.join("trees").join(format!("{commit}.json"))).expect("a list");
    let tree: Value = serde_json::from_slice(&tree).expect("JSON");
    assert_eq!(tree["files"]["gold-131K-q8_0.gguf"]["lfs_sha256"], digest);
    let lock = machine.path("hf/hub/.locks/models--me--gold").join(format!("{digest}.lock"));
    assert!(lock.is_file());
    assert!(fs_err::read_dir(root.join("blobs")).expect("a folder").count() == 1, "no parts left");
}

#[test]
fn without_the_network_the_copy_is_used() {
    let machine = Machine::with_repository(&["q4_0", "q8_0"]);
    machine.opened("hf:me/gold:q8_0", &[]);
    let before = machine.hub.state().requests.len();
    // the automatic choice would be another file: the one that is here is taken
    let (path, said) = machine.opened("hf:me/gold", &[OFFLINE]);
    assert!(path.ends_with("gold-131K-q8_0.gguf"), "{said}");
    assert_eq!(machine.hub.state().requests.len(), before, "nothing is asked");
    let (path, said) = machine.opened("hf:me/gold:q8_0", &[NOBODY]);
    assert!(path.ends_with("gold-131K-q8_0.gguf"));
    assert!(said.contains("http://127.0.0.1:9 does not answer: using the copy"), "{said}");
    for variable in ["TRANSFORMERS_OFFLINE", "HF_HUB_OFFLINE"] {
        let error = machine.refused("hf:me/other", &[(variable, "yes")]);
        assert!(error.contains("me/other: expected a copy of revision main"), "{error}");
    }
    let error = machine.refused("hf:me/gold:q4_0", &[OFFLINE]);
    assert!(error.contains("gold-131K-q4_0.gguf") && error.contains("HF_HUB_OFFLINE"), "{error}");
    // a commit never changes: nobody need be asked for it
    let commit = fs_err::read_to_string(machine.repository().join("refs/main")).expect("a commit");
    let (_, said) = machine.opened(&format!("hf:me/gold:q8_0@{commit}"), &[NOBODY]);
    assert!(said.is_empty(), "{said}");
}

/// Equal size and time: it is not read again, whatever is in it. Another time: it is, and fetched anew.
#[test]
fn what_was_verified_once_is_not_read_through_again() {
    let machine = Machine::with_repository(&["q8_0"]);
    let (path, _) = machine.opened("hf:me/gold", &[]);
    let time = fs_err::metadata(&path).and_then(|meta| meta.modified()).expect("a time");
    let good = fs_err::read(&path).expect("the file");
    let mut bad = good.clone();
    *bad.last_mut().expect("a byte") ^= 1;
    let place = fs_err::canonicalize(&path).expect("its content");
    fs_err::write(&place, &bad).expect("written");
    let file = fs_err::OpenOptions::new().write(true).open(&place).expect("a file");
    file.file().set_modified(time).expect("a time");
    machine.opened("hf:me/gold", &[]);
    assert!(fs_err::read(&path).expect("the file") == bad, "it was not read");
    // a start without the network: nobody is asked, nothing is read through
    let asked = machine.hub.state().requests.len();
    machine.opened("hf:me/gold", &[OFFLINE]);
    assert!(fs_err::read(&path).expect("the file") == bad, "it was not read");
    assert_eq!(machine.hub.state().requests.len(), asked);

    fs_err::write(&place, &bad).expect("written, at another time");
    let error = machine.refused("hf:me/gold", &[OFFLINE]);
    assert!(error.contains("the copy is damaged: expected SHA-256"), "{error}");
    machine.opened("hf:me/gold", &[]);
    assert!(fs_err::read(&path).expect("the file") == good, "it was fetched anew");
}

#[test]
fn two_processes_fetch_a_file_once() {
    let machine = Machine::with_repository(&["q8_0"]);
    let start = || {
        let mut command = machine.command(&["inspect", "hf:me/gold", "--json"]);
        command.stdout(std::process::Stdio::null()).spawn().expect("mmx starts")
    };
    let mut both = [start(), start()];
    assert!(both.iter_mut().all(|child| child.wait().expect("it ends").success()));
    assert_eq!(machine.hub.state().downloads, ["gold-131K-q8_0.gguf"]);
}

#[test]
fn a_download_that_was_cut_off_goes_on() {
    let machine = Machine::with_repository(&["q8_0"]);
    machine.hub.state().cut_download = Some(70_000);
    let error = machine.refused("hf:me/gold", &[]);
    assert!(error.contains("run it again"), "{error}");
    machine.opened("hf:me/gold", &[]);
    assert_eq!(machine.hub.state().ranges, ["bytes=70000-"]);
}

/// Where mmx 0.1.0 kept copies of its own.
#[test]
fn earlier_copies_are_taken_over() {
    let machine = Machine::with_repository(&["q8_0"]);
    let host = machine.hub.address.replace(':', "_3A").replace('/', "_2F");
    let folder = machine.path("mmx/hub").join(format!("{host}--me_2Fgold")).join("main");
    fs_err::create_dir_all(&folder).expect("a folder");
    let name = "gold-131K-q8_0.gguf";
    fs_err::copy(machine.path("export").join(name), folder.join(name)).expect("a copy");
    let (path, said) = machine.opened("hf:me/gold", &[OFFLINE]);
    assert!(path.starts_with(&folder) && said.contains("mmx's earlier copy"), "{said}");
    let (path, _) = machine.opened("hf:me/gold", &[]);
    assert!(path.starts_with(machine.repository()), "{}", path.display());
    assert!(machine.hub.state().downloads.is_empty(), "nothing is fetched");
    assert!(!folder.join(name).exists(), "it is not kept twice");
}

#[test]
fn modelscope_is_read_by_its_own_interface() {
    let machine = Machine::with_repository(&["q4_0", "q8_0"]);
    let (path, said) = machine.opened("ms:me/gold", &[]);
    let folder = machine.path("ms/models/me--gold/snapshots/master");
    assert_eq!(path, folder.join("gold-131K-q4_0.gguf"));
    assert!(said.contains("taking gold-131K-q4_0.gguf"), "{said}");
    machine.opened("ms:me/gold", &[]);
    assert_eq!(machine.hub.state().downloads.len(), 1, "it is fetched once");
    let (path, _) = machine.opened("ms:me/gold/hf-f32", &[]);
    assert!(path.join("model.safetensors").is_file());
    let nobody = ("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9");
    let (_, said) = machine.opened("ms:me/gold:q4_0", &[nobody]);
    assert!(said.contains("does not answer: using the copy"), "{said}");
    let error = machine.refused("ms:me/none", &[]);
    assert!(error.contains("me/none: expected a repository with revision master"), "{error}");
    machine.hub.state().spoil_download = true;
    let error = machine.refused("ms:me/gold:q8_0", &[]);
    assert!(error.contains("expected SHA-256"), "{error}");
}

#[test]
fn a_model_of_ollamas_store_is_opened_by_its_name() {
    let machine = Machine::new();
    let export = machine.path("export");
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let args = ["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "gold"];
    mmx_ok(&[&args[..], &["--gguf", "q8_0", "--out", text(&export)]].concat());
    let bytes = fs_err::read(export.join("gold-131K-q8_0.gguf")).expect("a GGUF");
    let digest: String = sha2::Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let store = machine.path(".ollama/models");
    let tags = store.join("manifests/registry.ollama.ai/me/gold");
    fs_err::create_dir_all(&tags).expect("a folder");
    fs_err::create_dir_all(store.join("blobs")).expect("a folder");
    fs_err::write(store.join("blobs").join(format!("sha256-{digest}")), &bytes).expect("a file");
    let layer = json!({"mediaType": "application/vnd.ollama.image.model",
        "digest": format!("sha256:{digest}"), "size": bytes.len()});
    let manifest = json!({"schemaVersion": 2, "layers": [layer]});
    fs_err::write(tags.join("latest"), manifest.to_string()).expect("a file");
    let (path, _) = machine.opened("ollama:me/gold", &[]);
    assert!(path.ends_with(format!("sha256-{digest}")), "{}", path.display());
    let error = machine.refused("ollama:gold:q4", &[]);
    assert!(error.contains("me/gold:latest") && error.contains("hint:"), "{error}");
    let elsewhere = machine.path("elsewhere");
    fs_err::rename(&store, &elsewhere).expect("moved");
    machine.opened("ollama:me/gold:latest", &[("OLLAMA_MODELS", text(&elsewhere))]);
}

/// A proxy that hands on what it is asked for, and how often it was asked.
fn proxy() -> (String, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let count = asked.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).expect("a head");
                let target = head.split(' ').nth(1).expect("a target").to_owned();
                let (host, connect) = match target.strip_prefix("http://") {
                    Some(rest) => (rest.split('/').next().expect("a host").to_owned(), false),
                    None => (target.clone(), true),
                };
                let mut server = TcpStream::connect(host).expect("the server");
                match connect {
                    true => stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("an answer"),
                    false => server.write_all(head.as_bytes()).expect("handed on"),
                }
                let (mut from, mut to) =
                    (stream.try_clone().expect("it"), server.try_clone().expect("it"));
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                let _ = std::io::copy(&mut server, &mut stream);
            });
        }
    });
    (address, asked)
}

#[test]
fn a_proxy_is_used_but_for_hosts_that_need_none() {
    let machine = Machine::with_repository(&["q8_0"]);
    let (address, asked) = proxy();
    let all = ("ALL_PROXY", address.as_str());
    machine.opened("hf:me/gold", &[all, ("NO_PROXY", "127.0.0.1")]);
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 0);
    machine.opened("hf:me/gold/hf-f32", &[all, ("NO_PROXY", "example.org")]);
    assert!(asked.load(std::sync::atomic::Ordering::Relaxed) > 0);
}
