//! Data sets of a hub as training data, through the binary: which files are taken, that they are fetched once, gone on
//! with and checked, and that their samples are those of the files themselves.

mod common;
mod hub;

use std::path::Path;
use std::process::{Command, Output};

use common::{shared, text};
use hub::Server;
use serde_json::Value;

fn table(name: &str) -> Vec<u8> {
    fs_err::read(shared("tables").join(name)).expect("a fixture")
}

/// mmx with a hub and a cache of its own.
fn run(hub: &Server, home: &Path, args: &[&str], more: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
    for name in [
        "HF_TOKEN",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
    ] {
        command.env_remove(name);
    }
    command.env("HOME", home).env("MMX_CACHE", home.join("mmx")).env("HF_HOME", home.join("hf"));
    command.env("MODELSCOPE_CACHE", home.join("ms")).env("MODELSCOPE_ENDPOINT", &hub.address);
    command.env("HF_ENDPOINT", &hub.address).envs(more.iter().copied());
    command.args(args).output().expect("mmx starts")
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn checked(
    hub: &Server,
    home: &Path,
    stage: &str,
    data: &[&str],
    more: &[(&str, &str)],
) -> (Value, String) {
    let tokenizer = shared("golden-2026");
    let args = ["data", "check", "--json", "--stage", stage, "--tokenizer", text(&tokenizer)];
    let out = run(hub, home, &[&args[..], data].concat(), more);
    assert!(out.status.success(), "{data:?}: {}", said(&out));
    (serde_json::from_slice(&out.stdout).expect("JSON"), said(&out))
}

/// A hub with a data set of three shards, one of them for tests.
fn shards() -> Server {
    let hub = Server::start(0);
    hub.state().put_dataset(
        "me/texts",
        &[
            ("README.md", b"# texts".to_vec()),
            ("data/train-00000-of-00002.parquet", table("texts-snappy.parquet")),
            ("data/train-00001-of-00002.parquet", table("texts-zstd.parquet")),
            ("data/test-00000-of-00001.parquet", table("texts-v2.parquet")),
            ("dataset_infos.json", b"{}".to_vec()),
        ],
    );
    hub
}

#[test]
fn the_shards_of_the_train_split_have_the_samples_of_their_files() {
    let (hub, dir) = (shards(), tempfile::tempdir().expect("a folder"));
    let files =
        ["texts-snappy.parquet", "texts-zstd.parquet"].map(|name| shared("tables").join(name));
    let [one, two] = files.each_ref().map(|path| text(path));
    let (expected, _) = checked(&hub, dir.path(), "pretrain", &[one, two], &[]);
    for name in [
        "hf:datasets/me/texts",
        "hf:datasets/me/texts@main",
        "hf:datasets/me/texts/data",
        "ms:datasets/me/texts",
    ] {
        let (found, talk) = checked(&hub, dir.path(), "pretrain", &[name], &[]);
        assert_eq!(found["samples_sha256"], expected["samples_sha256"], "{name}: {talk}");
        assert!(
            talk.contains("2 of 3 data files: data/train-00000-of-00002.parquet to"),
            "{name}: {talk}"
        );
    }
    let one = "hf:datasets/me/texts/data/test-00000-of-00001.parquet";
    assert_eq!(checked(&hub, dir.path(), "pretrain", &[one], &[]).0["samples"], 12);
    // what is here is not fetched again, also without the network
    let before = hub.state().downloads.len();
    let offline = [("HF_HUB_OFFLINE", "1")];
    let (found, _) = checked(&hub, dir.path(), "pretrain", &["hf:datasets/me/texts"], &offline);
    assert_eq!(found["samples_sha256"], expected["samples_sha256"]);
    assert_eq!(hub.state().downloads.len(), before);
    // what is asked can be seen, without what is signed
    let verbose = [("MMX_LOG", "mmx_hub=debug")];
    let (_, talk) = checked(&hub, dir.path(), "pretrain", &["hf:datasets/me/texts"], &verbose);
    assert!(
        talk.contains("debug mmx_hub::http: GET http://127.0.0.1:") && !talk.contains('?'),
        "{talk}"
    );
    let layout = dir.path().join("hf/hub/datasets--me--texts/snapshots");
    assert!(layout.is_dir(), "the official client's layout");
}

#[test]
fn a_download_that_was_cut_off_goes_on_and_a_spoilt_one_is_thrown_away() {
    let (hub, dir) = (shards(), tempfile::tempdir().expect("a folder"));
    let name = "hf:datasets/me/texts/data/train-00001-of-00002.parquet";
    let args = ["data", "check", "--stage", "pretrain", name];
    hub.state().cut_download = Some(1000);
    let out = run(&hub, dir.path(), &args, &[]);
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    assert!(said(&out).contains("the connection ended after 1000 of"), "{}", said(&out));
    let out = run(&hub, dir.path(), &args, &[]);
    assert!(out.status.success(), "{}", said(&out));
    assert!(hub.state().ranges.contains(&"bytes=1000-".to_owned()), "{:?}", hub.state().ranges);

    let other = tempfile::tempdir().expect("a folder");
    hub.state().spoil_download = true;
    let out = run(&hub, other.path(), &args, &[]);
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    assert!(said(&out).contains("expected SHA-256"), "{}", said(&out));
}

#[test]
fn a_data_set_trains_a_tokenizer_and_comes_to_a_folder() {
    let (hub, dir) = (shards(), tempfile::tempdir().expect("a folder"));
    let out = dir.path().join("tok");
    let args = [
        "tokenizer",
        "train",
        "--data",
        "hf:datasets/me/texts",
        "--vocab-size",
        "300",
        "--out",
        text(&out),
        "--json",
    ];
    let trained = run(&hub, dir.path(), &args, &[]);
    assert!(trained.status.success(), "{}", said(&trained));
    let report: Value = serde_json::from_slice(&trained.stdout).expect("JSON");
    assert_eq!(report["texts"], 24, "{report}");

    let folder = dir.path().join("copy");
    let args =
        ["pull", "me/texts", "--dataset", "--out", text(&folder), "--only", ".parquet", "--json"];
    let pulled = run(&hub, dir.path(), &args, &[]);
    assert!(pulled.status.success(), "{}", said(&pulled));
    let report: Value = serde_json::from_slice(&pulled.stdout).expect("JSON");
    assert_eq!(report["files"].as_array().map(Vec::len), Some(3), "{report}");
    let test = fs_err::read(folder.join("data/test-00000-of-00001.parquet")).expect("a file");
    assert!(test == table("texts-v2.parquet"));
    // a model of this name is not there
    let out = run(&hub, dir.path(), &["pull", "me/texts", "--out", text(&folder)], &[]);
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
}

#[test]
fn what_a_name_may_mean_is_said() {
    let (hub, dir) = (Server::start(0), tempfile::tempdir().expect("a folder"));
    let csv = b"text\na b c\n".to_vec();
    hub.state().put_dataset("me/two", &[("en/train.csv", csv.clone()), ("zh/train.csv", csv)]);
    for (name, words) in [
        ("hf:datasets/me/two", "expected data files in one folder, found them in en, zh"),
        ("hf:datasets/me/none", "expected a repository with revision main"),
        ("hf:datasets/me/two/fr", "expected fr, or in it a file of parquet"),
    ] {
        let out = run(&hub, dir.path(), &["data", "check", "--stage", "pretrain", name], &[]);
        assert_eq!(out.status.code(), Some(1), "{name}: {}", said(&out));
        assert!(said(&out).contains(words), "{name}: {}", said(&out));
    }
    let out = run(
        &hub,
        dir.path(),
        &["data", "check", "--stage", "pretrain", "hf:datasets/me/two/zh"],
        &[],
    );
    assert!(out.status.success(), "{}", said(&out));
}

#[cfg(feature = "train")]
#[test]
fn a_data_set_trains_a_model_to_the_weights_of_its_files() {
    let (hub, dir) = (shards(), tempfile::tempdir().expect("a folder"));
    let (tokenizer, model) = (shared("golden-2026"), shared("golden-2026/minimind3"));
    let files =
        ["texts-snappy.parquet", "texts-zstd.parquet"].map(|name| shared("tables").join(name));
    let train = |out: &str, data: &[&str]| {
        let out = dir.path().join(out);
        let mut args = vec![
            "train",
            "pretrain",
            "--from",
            text(&model),
            "--tokenizer",
            text(&tokenizer),
            "--data",
        ];
        args.extend(data);
        args.extend([
            "--out",
            text(&out),
            "--batch-size",
            "4",
            "--accum",
            "1",
            "--epochs",
            "1",
            "--max-seq-len",
            "64",
        ]);
        args.extend(["--dtype", "f32", "--device", "cpu", "--threads", "1", "--json"]);
        let done = run(&hub, dir.path(), &args, &[]);
        assert!(done.status.success(), "{}", said(&done));
        let end: Value = serde_json::from_slice(&done.stdout).expect("JSON");
        fs_err::read(
            Path::new(end["checkpoint"].as_str().expect("a path")).join("model.safetensors"),
        )
        .expect("weights")
    };
    let of_hub = train("hub", &["hf:datasets/me/texts"]);
    assert!(of_hub == train("files", &[text(&files[0]), text(&files[1])]));
}
