//! Folders that other libraries quantized: every command that opens a model refuses them by that
//! library's name, before any tensor is read, and says what to do instead.

mod common;

use std::path::{Path, PathBuf};

use common::{mmx, shared, text};
use serde_json::{Value, json};

/// What each library writes into config.json, and the name it is refused by.
fn forms() -> Vec<(&'static str, Value)> {
    let mlx = json!({"group_size": 32, "bits": 4, "mode": "affine"});
    let of = |settings: Value| json!({ "quantization_config": settings });
    vec![
        ("MLX (4 bits)", json!({"quantization": mlx, "quantization_config": mlx})),
        ("gptq (4 bits)", of(json!({"quant_method": "gptq", "bits": 4, "group_size": 32}))),
        ("awq (4 bits)", of(json!({"quant_method": "awq", "bits": 4, "version": "gemm"}))),
        (
            "bitsandbytes (4 bits)",
            of(json!({"quant_method": "bitsandbytes", "load_in_4bit": true})),
        ),
        (
            "compressed-tensors",
            of(json!({"quant_method": "compressed-tensors", "format": "dense"})),
        ),
        ("fp8", of(json!({"quant_method": "fp8", "weight_block_size": [128, 128]}))),
        ("torchao", of(json!({"quant_method": "torchao", "quant_type": {"default": {}}}))),
        ("unheard_of", of(json!({"quant_method": "unheard_of"}))),
    ]
}

/// The golden model's folder with these keys in config.json; weights that are none, since they are
/// never read.
fn folder(dir: &Path, name: &str, keys: &Value) -> PathBuf {
    let folder = dir.join(name);
    fs_err::create_dir_all(&folder).expect("a folder");
    let config = fs_err::read_to_string(shared("golden/minimind2/config.json")).expect("a file");
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    for (key, value) in keys.as_object().expect("keys") {
        config[key] = value.clone();
    }
    fs_err::write(folder.join("config.json"), config.to_string()).expect("written");
    fs_err::write(folder.join("model.safetensors"), "no tensors").expect("written");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs_err::copy(shared("golden").join(name), folder.join(name)).expect("a copy");
    }
    folder
}

/// Fails with that library's name and a hint.
fn refused(args: &[&str], name: &str) {
    let out = mmx(args);
    let said = String::from_utf8(out.stderr).expect("UTF-8");
    assert_eq!(out.status.code(), Some(1), "mmx {args:?}: {said}");
    let expected = format!("expected a model of float weights, found one quantized by {name}\n");
    assert!(said.contains(&expected), "mmx {args:?}: {said}");
    assert!(said.contains("config.json: key quantization"), "mmx {args:?}: {said}");
    assert!(said.contains("hint: take the model it was made from"), "mmx {args:?}: {said}");
}

#[test]
fn quantized_folders_of_others_are_refused_by_name_in_every_command() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let chat = shared("golden/sft.jsonl");
    let plain = shared("golden/pretrain.jsonl");
    let ids = dir.path().join("ids.json");
    fs_err::write(&ids, "[1, 2, 3]").expect("written");
    for (i, (name, keys)) in forms().into_iter().enumerate() {
        let model = folder(dir.path(), &format!("model-{i}"), &keys);
        let (model, out, ids) = (text(&model), text(&out), text(&ids));
        let commands: [&[&str]; 12] = [
            &["run", model, "-p", "hi", "-n", "1"],
            &["serve", model, "--port", "0"],
            &["export", model, "--out", out, "--gguf", "q8_0"],
            &["export", model, "--out", out, "--hf", "f32"],
            &["import", model, "--out", out],
            &["import", model, "--preset", "minimind2-small", "--out", out],
            &["inspect", model],
            &["verify", model, model],
            &["logits", model, "--ids", ids, "--out", out],
            &["eval", model, "--ppl", text(&plain)],
            &["imatrix", model, "--data", text(&chat), "--out", out],
            &["doctor", model],
        ];
        for command in commands {
            refused(command, name);
            assert!(!Path::new(out).exists(), "mmx {command:?} wrote something");
        }
    }
}

#[test]
fn an_adapter_on_a_quantized_folder_is_refused_by_the_same_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let (name, keys) = forms().swap_remove(3);
    let base = folder(dir.path(), "base", &keys);
    let adapter = dir.path().join("adapter");
    fs_err::create_dir_all(&adapter).expect("a folder");
    let from = shared("containers/peft-rslora");
    let config = fs_err::read_to_string(from.join("adapter_config.json")).expect("a file");
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    config["base_model_name_or_path"] = json!(base);
    fs_err::write(adapter.join("adapter_config.json"), config.to_string()).expect("written");
    let weights = "adapter_model.safetensors";
    fs_err::copy(from.join(weights), adapter.join(weights)).expect("a copy");
    refused(&["run", text(&adapter), "-p", "hi"], name);
    refused(&["export", text(&adapter), "--gguf", "f16"], name);
}
