//! A longer context by stretched rotary positions: what export writes is what run and eval compute,
//! and a format that cannot carry a scaling refuses it with the reason.

mod common;

use std::path::Path;

use common::{mmx_error, mmx_json, mmx_ok, shared, text};
use serde_json::Value;

/// A text of some 400 tokens.
fn words(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("words.txt");
    let line = |i: usize| format!("{i} one two three and {} more\n", i * i % 17);
    fs_err::write(&path, (0..60).map(line).collect::<String>()).expect("written");
    path
}

fn export(model: &Path, out: &Path, options: &[&str]) -> Vec<String> {
    let (out, tokenizer) = (text(out), shared("golden"));
    let mut args = vec!["export", text(model), "--tokenizer", text(&tokenizer), "--out", out];
    args.extend(options);
    let report = mmx_json(&args);
    let files = report["files"].as_array().expect("files").iter();
    files.map(|file| file["path"].as_str().expect("a path").to_owned()).collect()
}

fn perplexity(model: &str, text_file: &Path, options: &[&str]) -> Value {
    let mut args = vec!["eval", model, "--ppl", text(text_file), "--ctx", "128"];
    args.extend(options);
    mmx_json(&args)["rows"][0]["perplexity"].clone()
}

#[test]
fn a_stretched_gguf_is_the_file_that_export_writes() {
    let dir = tempfile::tempdir().expect("a folder");
    let sample = words(dir.path());
    for family in ["minimind2", "minimind2-moe", "minimind3", "minimind3-moe"] {
        let model = shared("golden").join(family);
        let out = dir.path().join(family);
        let plain = export(&model, &out, &["--gguf", "f32", "--hf", "f32"]);
        let plain: Vec<_> = plain.into_iter().filter(|path| path.ends_with(".gguf")).collect();
        let whole = out.join("hf-f32");
        let before = perplexity(&plain[0], &sample, &[])["nll"].as_f64().expect("a number");
        // Llama 3's is a tensor, which the readers of half of the families take
        let kinds = if family.starts_with("minimind2") { 4 } else { 3 };
        for scaling in &["linear:4:32", "ntk:4", "yarn:4:32", "llama3:4:32"][..kinds] {
            let out = dir.path().join(format!("{family}-{}", &scaling[..3]));
            let options = ["--rope-scaling", *scaling];
            let files = export(&model, &out, &[&options[..], &["--gguf", "f32"]].concat());
            let written = perplexity(&files[0], &sample, &[]);
            let stretched = perplexity(&plain[0], &sample, &options);
            let folder = perplexity(text(&whole), &sample, &options);
            let nll = |value: &Value| value["nll"].as_f64().expect("a number");
            assert_eq!(nll(&written), nll(&stretched), "{family} {scaling}");
            assert!((nll(&folder) / nll(&written) - 1.0).abs() < 1e-5, "{family} {scaling}");
            assert!((nll(&written) - before).abs() > 1e-3, "{family} {scaling} changes something");
        }
    }
}

#[test]
fn engines_agree_beyond_the_trained_length() {
    let dir = tempfile::tempdir().expect("a folder");
    let ids: Vec<u32> = (0..256).map(|i| 3 + i * 37 % 500).collect();
    let ids_file = dir.path().join("ids.json");
    fs_err::write(&ids_file, format!("{ids:?}")).expect("written");
    for (family, scaling) in [
        ("minimind2", "linear:4:64"),
        ("minimind3", "ntk:4"),
        ("minimind2-moe", "yarn:4:64"),
        ("minimind3-moe", "linear:4:64"),
        ("minimind2", "llama3:4:64"),
        ("minimind2-moe", "llama3:4:64"),
    ] {
        let out = dir.path().join(format!("{family}-{}", &scaling[..3]));
        let options = ["--rope-scaling", scaling, "--gguf", "f32", "--hf", "f32"];
        let files = export(&shared("golden").join(family), &out, &options);
        let logits = |model: &str, engine: &str| {
            let file = dir.path().join(format!("{family}-{engine}.safetensors"));
            mmx_ok(&[
                "logits",
                model,
                "--ids",
                text(&ids_file),
                "--out",
                text(&file),
                "--engine",
                engine,
            ]);
            let bytes = fs_err::read(&file).expect("logits");
            let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
            let values = bytes[8 + header..].chunks_exact(4);
            let values = values.map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")));
            values.collect::<Vec<f32>>()
        };
        let gguf = files.iter().find(|path| path.ends_with(".gguf")).expect("a GGUF");
        let folder = out.join("hf-f32");
        let runner = logits(gguf, "ggml");
        let mut others = vec![("llama.cpp", logits(gguf, "llama.cpp"))];
        if common::TRAINS {
            others.push(("native", logits(text(&folder), "native")));
        }
        for (engine, found) in others {
            assert_eq!(found.len(), runner.len(), "{family} {engine}");
            let far = found.iter().zip(&runner).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-4, "{family} {scaling} {engine}: {far}");
        }
    }
}

#[test]
fn a_scaling_that_gguf_cannot_carry_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, tokenizer) = (shared("golden/minimind3"), shared("golden"));
    for (scaling, reason) in [("dynamic:4", "the length of a text"), ("llama3:8", "has no key")] {
        let out = dir.path().join(&scaling[..4]);
        let args = [
            "export",
            text(&model),
            "--tokenizer",
            text(&tokenizer),
            "--out",
            text(&out),
            "--rope-scaling",
            scaling,
        ];
        let error = mmx_error(&[&args[..], &["--gguf", "f32"]].concat());
        assert!(error.contains("GGUF architecture qwen3") && error.contains(reason), "{error}");
        mmx_ok(&[&args[..], &["--hf", "f32"]].concat());
        let config = fs_err::read_to_string(out.join("hf-f32/config.json")).expect("a file");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        let kind = config["rope_parameters"]["rope_type"].as_str();
        assert_eq!(kind, scaling.split(':').next(), "{config}");
    }
}

#[test]
fn perplexity_by_position_covers_the_window() {
    let dir = tempfile::tempdir().expect("a folder");
    let sample = words(dir.path());
    let files = export(&shared("golden/minimind3"), &dir.path().join("out"), &["--gguf", "f32"]);
    let html = dir.path().join("page.html");
    let found = perplexity(&files[0], &sample, &["--positions", "--html", text(&html)]);
    let parts = found["by_position"].as_array().expect("parts");
    let (first, last) = (&parts[0], &parts[parts.len() - 1]);
    assert_eq!((first["from"].as_u64(), last["to"].as_u64()), (Some(0), Some(128)));
    assert!(
        parts.iter().all(|part| part["ppl"].as_f64().is_some_and(|ppl| ppl > 1.0)),
        "{parts:?}"
    );
    let page = fs_err::read_to_string(&html).expect("a page");
    assert!(page.contains("perplexity by position"));
}

/// The tensor comes in again: as a scaling of a Transformers folder, in a file quantized anew, and
/// replaced by another scaling that is asked for.
#[test]
fn llama_3s_divisors_are_read_back_from_a_gguf() {
    let dir = tempfile::tempdir().expect("a folder");
    let sample = words(dir.path());
    let model = shared("golden/minimind2-moe");
    let options = ["--rope-scaling", "llama3:8:256", "--gguf", "f32"];
    let files = export(&model, &dir.path().join("out"), &options);
    let nll = |model: &str, options: &[&str]| {
        perplexity(model, &sample, options)["nll"].as_f64().expect("a number")
    };
    let scaled = nll(&files[0], &[]);
    let back = dir.path().join("back");
    mmx_ok(&["import", &files[0], "--out", text(&back)]);
    let config = fs_err::read_to_string(back.join("config.json")).expect("a file");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let rope = &config["rope_parameters"];
    assert_eq!((rope["rope_type"].as_str(), rope["factor"].as_f64()), (Some("llama3"), Some(8.0)));
    assert!((nll(text(&back), &[]) / scaled - 1.0).abs() < 1e-5);
    let again = dir.path().join("again.gguf");
    mmx_ok(&["quantize", &files[0], text(&again), "f32"]);
    assert_eq!(nll(text(&again), &[]), scaled);
    let plain = export(&model, &dir.path().join("plain"), &["--gguf", "f32"]);
    for scaling in ["linear:4:64", "llama3:4:64"] {
        let options = ["--rope-scaling", scaling];
        assert_eq!(nll(&files[0], &options), nll(&plain[0], &options), "{scaling}");
    }
}
