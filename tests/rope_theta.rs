//! Training on with another rotary base: what is computed is what config.json then says, a resumed
//! run is the unbroken one, and a base that contradicts a scaling is refused.

mod common;

use std::path::Path;

use common::{copy, mmx, mmx_error, mmx_json, shared, text};
use serde_json::{Value, json};

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(path).expect("a file")).expect("JSON")
}

/// Arguments of a short run on rows of 96 tokens.
fn train<'a>(
    stage: &'a str,
    from: &'a str,
    data: &'a str,
    tokenizer: &'a str,
    out: &'a str,
) -> Vec<&'a str> {
    let mut args = vec!["train", stage, "--from", from, "--data", data, "--tokenizer", tokenizer];
    args.extend(["--out", out, "--max-seq-len", "96", "--batch-size", "2", "--accum", "1"]);
    args.extend(["--max-steps", "4", "--lr", "1e-3", "--dtype", "f32", "--device", "cpu"]);
    args
}

/// A golden model with config.json changed.
fn changed(folder: &Path, family: &str, change: impl Fn(&mut Value)) {
    copy(&shared("golden").join(family), folder);
    let path = folder.join("config.json");
    let mut config = json_of(&path);
    change(&mut config);
    fs_err::write(path, config.to_string()).expect("a file");
}

#[test]
fn a_changed_base_reaches_the_rotary_tables_and_config_json_and_a_resumed_run_goes_on_with_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (data, tokenizer) = (shared("golden/pretrain.jsonl"), shared("golden"));
    for family in ["minimind2", "minimind3-moe"] {
        let name = |part: &str| at(&format!("{family}-{part}"));
        let golden = shared("golden").join(family);
        // the twin: a model whose own config.json has the base and the length
        let twin = name("twin");
        changed(&twin, family, |config| {
            config["rope_theta"] = json!(5e6);
            config["max_position_embeddings"] = json!(96);
        });
        let short = name("short");
        changed(&short, family, |config| config["max_position_embeddings"] = json!(48));
        let traced = |from: &Path, options: &[&str], out: &str| {
            let (out, trace) = (name(out), name(&format!("{out}.json")));
            let mut args = train("pretrain", text(from), text(&data), text(&tokenizer), text(&out));
            args.extend(["--save-every", "2", "--keep", "9", "--trace", text(&trace)]);
            args.extend(options);
            mmx_json(&args);
            json_of(&trace)
        };
        let theta = ["--rope-theta", "5e6"];
        let expected = traced(&twin, &[], "expected");
        let found = traced(&short, &theta, "found");
        assert_eq!(found["steps"], expected["steps"], "{family}");
        assert_eq!(found["final"], expected["final"], "{family}");
        let plain = traced(&golden, &[], "plain");
        assert_ne!(found["steps"][0]["loss"], plain["steps"][0]["loss"], "the base counts");
        let config = json_of(&name("found").join("checkpoint-000004/config.json"));
        assert_eq!(config["rope_theta"], 5e6);
        assert_eq!(config["max_position_embeddings"], 96, "as long as the samples");

        let resumed = name("resumed");
        fs_err::create_dir(&resumed).expect("a folder");
        let half = "checkpoint-000002";
        copy(&name("found").join(half), &resumed.join(half));
        let mut again =
            train("pretrain", text(&short), text(&data), text(&tokenizer), text(&resumed));
        again.extend(["--resume", "--rope-theta", "5e6"]);
        mmx_json(&again);
        let weights = |run: &Path| {
            fs_err::read(run.join("checkpoint-000004/model.safetensors")).expect("weights")
        };
        assert!(weights(&resumed) == weights(&name("found")), "{family}");
        // with another base it would be another run
        again.truncate(again.len() - 2);
        fs_err::remove_dir_all(resumed.join("checkpoint-000004")).expect("removed");
        let error = mmx_error(&again);
        assert!(error.contains("rope_theta") || error.contains("rope-theta"), "{error}");
    }
}

/// Runs mmx, which must end with exit code 2; stderr.
fn misuse(args: &[&str]) -> String {
    let out = mmx(args);
    assert_eq!(out.status.code(), Some(2), "{args:?}");
    String::from_utf8(out.stderr).expect("UTF-8")
}

#[test]
fn a_base_beside_a_scaling_or_adapters_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let scaled = at("scaled");
    changed(&scaled, "minimind2", |config| {
        config["rope_scaling"] = json!({"rope_type": "linear", "factor": 4.0});
    });
    let (data, tokenizer, out) = (shared("golden/pretrain.jsonl"), shared("golden"), at("out"));
    let theta = ["--rope-theta", "5e6"];
    let args = train("pretrain", text(&scaled), text(&data), text(&tokenizer), text(&out));
    let error = mmx_error(&[&args[..], &theta].concat());
    assert!(error.contains("scaled") && error.contains("found linear"), "{error}");
    let (golden, chats) = (shared("golden/minimind2"), shared("golden/sft.jsonl"));
    let args = train("lora", text(&golden), text(&chats), text(&tokenizer), text(&out));
    let error = misuse(&[&args[..], &theta].concat());
    assert!(error.contains("--rope-theta") && error.contains("adapters"), "{error}");
    for wrong in ["0.5", "nan", "inf"] {
        let args = train("pretrain", text(&golden), text(&data), text(&tokenizer), text(&out));
        let error = misuse(&[&args[..], &["--rope-theta", wrong]].concat());
        assert!(error.contains("--rope-theta: expected a number above 1"), "{error}");
    }
    assert!(!out.join("checkpoint-000004").exists());
}
