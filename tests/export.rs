//! `mmx export`, `import` and `inspect` through the binary: files, JSON, exit codes, and what happens to files
//! that were there when something goes wrong.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mmx_converters::Model;
use mmx_converters::gguf::{GgmlType, Gguf, Value as Key};
use serde_json::Value;

fn shared(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(path)
}

fn mmx(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mmx")).args(args).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs with `--json`; the one object on stdout.
fn json(args: &[&str]) -> Value {
    let out = mmx(&[args, &["--json"]].concat());
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Exit 1, nothing on stdout, one `error:` line with these words, no panic.
fn refused(args: &[&str], words: &[&str]) {
    let out = mmx(args);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(out.stdout.is_empty(), "{args:?} printed on stdout");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    for word in words {
        assert!(errors[0].contains(word), "expected {word:?} in: {}", errors[0]);
    }
}

fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs_err::write(to.join(entry.file_name()), fs_err::read(entry.path()).unwrap()).unwrap();
    }
}

#[test]
fn several_targets_in_one_call() {
    let dir = tempfile::tempdir().unwrap();
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let args = |out: &str| {
        let fixed = ["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "gold"];
        let targets =
            ["--hf", "bf16", "--gguf", "f32", "--gguf", "q4_0", "--license", "mit", "--out"];
        fixed.iter().chain(&targets).map(|s| (*s).to_owned()).chain([out.to_owned()]).collect()
    };
    let out = dir.path().join("out");
    let run = |out: &Path| {
        let args: Vec<String> = args(text(out));
        json(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let report = run(&out);
    let files = report["files"].as_array().unwrap();
    for file in files {
        let path = Path::new(file["path"].as_str().unwrap());
        assert_eq!(fs_err::metadata(path).unwrap().len(), file["bytes"].as_u64().unwrap());
        assert!(file["seconds"].as_f64().unwrap() >= 0.0);
    }
    let names: Vec<_> = files
        .iter()
        .map(|f| Path::new(f["path"].as_str().unwrap()).strip_prefix(&out).unwrap())
        .map(|p| p.to_str().unwrap().to_owned())
        .collect();
    for name in [
        "hf-bf16/config.json",
        "hf-bf16/generation_config.json",
        "hf-bf16/model.safetensors",
        "hf-bf16/tokenizer.json",
        "hf-bf16/tokenizer_config.json",
        "gold-131K-f32.gguf",
        "gold-131K-q4_0.gguf",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
    }
    // a tied model's table is the head: Q6_K, and Q8_0 where rows of 64 do not fit
    let fallbacks = report["fallbacks"].as_array().unwrap();
    assert_eq!(fallbacks.len(), 1);
    assert_eq!(fallbacks[0]["tensor"], "token_embd.weight");
    assert_eq!((&fallbacks[0]["wanted"], &fallbacks[0]["used"]), (&"Q6_K".into(), &"Q8_0".into()));
    assert!(fallbacks[0]["reason"].as_str().unwrap().contains("64"));

    let quantized = Gguf::open(out.join("gold-131K-q4_0.gguf")).unwrap();
    let ty = |name: &str| quantized.tensor(name).unwrap().ty;
    assert_eq!(ty("token_embd.weight"), GgmlType::Q8_0);
    assert_eq!(ty("blk.0.attn_q.weight"), GgmlType::Q4_0);
    assert_eq!(ty("blk.0.attn_norm.weight"), GgmlType::F32);
    let key = |name: &str| quantized.metadata().get(name).cloned();
    assert_eq!(key("general.quantization_version"), Some(Key::U32(2)));
    assert_eq!(key("general.file_type"), Some(Key::U32(2)));
    assert_eq!(key("general.license"), Some(Key::String("mit".into())));
    assert_eq!(key("tokenizer.ggml.pre"), Some(Key::String("gpt-2".into())));
    assert_eq!(key("tokenizer.ggml.tokens").unwrap().array_len(), Some(512));
    for (name, id) in [("bos", 1), ("eos", 2), ("eot", 2), ("padding", 0)] {
        assert_eq!(key(&format!("tokenizer.ggml.{name}_token_id")), Some(Key::U32(id)), "{name}");
    }
    assert_eq!(key("tokenizer.ggml.add_bos_token"), Some(Key::Bool(false)));

    // the same bytes again, elsewhere: no path and no clock inside
    let again = dir.path().join("again");
    run(&again);
    for name in names {
        let same =
            fs_err::read(out.join(&name)).unwrap() == fs_err::read(again.join(&name)).unwrap();
        assert!(same, "{name} differs between two runs");
    }
}

#[test]
fn cfg_model_type() {
    let dir = tempfile::tempdir().unwrap();
    for (name, class, model_type, arch) in [
        ("minimind2", "LlamaForCausalLM", "llama", "llama"),
        ("minimind2-moe", "GraniteMoeSharedForCausalLM", "granitemoeshared", "granitemoe"),
        ("minimind3", "Qwen3ForCausalLM", "qwen3", "qwen3"),
        ("minimind3-moe", "Qwen3MoeForCausalLM", "qwen3_moe", "qwen3moe"),
    ] {
        let (model, tokenizer) = (shared("golden").join(name), shared("golden"));
        let out = dir.path().join(name);
        json(&[
            "export",
            text(&model),
            "--tokenizer",
            text(&tokenizer),
            "--hf",
            "f32",
            "--gguf",
            "q8_0",
            "--out",
            text(&out),
        ]);
        let config = fs_err::read_to_string(out.join("hf-f32/config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["architectures"][0], class);
        assert_eq!(config["model_type"], model_type);
        assert!(config.get("auto_map").is_none());
        let mut files = fs_err::read_dir(&out).unwrap().flatten().map(|e| e.path());
        let gguf = files.find(|p| p.extension().is_some_and(|e| e == "gguf")).unwrap();
        let shown = json(&["inspect", text(&gguf), "--tensors", "--keys"]);
        assert_eq!(shown["architecture"], arch);
        assert_eq!(shown["family"], name);
        assert_eq!(shown["warnings"].as_array().unwrap().len(), 0, "{shown}");
    }
}

#[test]
fn import_brings_a_gguf_and_a_pth_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (model, tokenizer) = (shared("golden/minimind2-moe"), shared("golden"));
    let out = dir.path().join("out");
    let base = ["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "m", "--out"];
    let report = json(&[&base[..], &[text(&out), "--gguf", "f32", "--pth"]].concat());
    let before = Model::open(&model).unwrap();
    let config = model.join("config.json");
    for file in report["files"].as_array().unwrap().iter().filter(|f| f["format"] != "card") {
        let (path, format) = (file["path"].as_str().unwrap(), file["format"].as_str().unwrap());
        let back = dir.path().join(format);
        let beside: &[&str] = match format {
            "pth" => &["--config", text(&config), "--tokenizer", text(&tokenizer)],
            _ => &[],
        };
        let report = json(&[&["import", path, "--out", text(&back)], beside].concat());
        assert!(report["files"].as_array().unwrap().len() >= 5, "{report}");
        let after = Model::open(&back).unwrap();
        for (a, b) in before.weights().iter().zip(after.weights()) {
            assert_eq!(a.name, b.name);
            assert!(before.weight(a).unwrap() == after.weight(b).unwrap(), "{format} {}", a.name);
        }
        assert!(back.join("tokenizer.json").exists());
    }
}

#[test]
fn gguf_qk_permute() {
    let dir = tempfile::tempdir().unwrap();
    let model = shared("golden/minimind2");
    json(&["export", text(&model), "--gguf", "f32", "--name", "m", "--out", text(dir.path())]);
    let expected = shared("cases/files/gguf-qk-permute/expect.json");
    let expected: Value = serde_json::from_str(&fs_err::read_to_string(expected).unwrap()).unwrap();
    let shown = json(&["inspect", text(&dir.path().join("m-131K-f32.gguf")), "--tensors"]);
    let tensors = shown["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 20);
    for (name, digest) in expected["minimind2 (llama)"].as_object().unwrap() {
        let found = tensors.iter().find(|t| t["name"] == name.as_str()).unwrap();
        assert_eq!(&found["sha256_f32"], digest, "{name}");
    }
}

/// Files of a case, each refused with these words by inspect, import and export, by turns; nothing is written.
fn hostile(case: &str, files: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (i, (file, words)) in files.iter().enumerate() {
        let path = shared("cases/files").join(case).join(file);
        assert!(path.exists(), "missing fixture {}", path.display());
        let name = if path.is_dir() { "model.safetensors" } else { file };
        // each file through one of the three: all open it the same way
        let commands = [
            &["inspect", text(&path)][..],
            &["import", text(&path), "--out", text(&out)],
            &["export", text(&path), "--gguf", "f32", "--out", text(&out)],
        ];
        refused(commands[i % 3], &[name, words]);
        assert!(!out.exists(), "{file}: something was written");
    }
}

#[test]
fn gguf_counts() {
    hostile(
        "gguf-counts",
        &[
            ("tensors.gguf", "1152921504606846976"),
            ("keys.gguf", "2305843009213693952"),
            ("array.gguf", "4611686018427387904"),
            ("dims.gguf", "200"),
            ("version.gguf", "version"),
        ],
    );
}

#[test]
fn gguf_size_wraps() {
    hostile("gguf-size-wraps", &[("wrap.gguf", "output_norm.weight")]);
}

#[test]
fn gguf_alignment() {
    let files = ["zero.gguf", "odd.gguf", "type.gguf", "huge.gguf"];
    hostile("gguf-alignment", &files.map(|file| (file, "general.alignment")));
}

#[test]
fn gguf_strings() {
    hostile(
        "gguf-strings",
        &[
            ("length.gguf", "18446744073709551615"),
            ("value.gguf", "1099511627776"),
            ("utf8.gguf", "UTF-8"),
            ("empty.gguf", "empty"),
        ],
    );
}

#[test]
fn st_lfs_pointer() {
    let files = ["model.gguf", "model.safetensors", "model.pth"];
    hostile(
        "st-lfs-pointer",
        &files.map(|file| (file, "Git LFS pointer of a file of 52193280 bytes")),
    );
    hostile("upload-pointer", &[("folder", "Git LFS pointer")]);
}

#[test]
fn st_index_missing_shard() {
    hostile("", &[("st-index-missing-shard", "model-00002-of-00002.safetensors")]);
}

#[test]
fn st_header_length() {
    for file in ["max", "beyond", "short", "notjson", "zero"] {
        let path = shared(&format!("cases/files/st-header-length/{file}.safetensors"));
        refused(&["inspect", text(&path)], &[file]);
    }
}

#[test]
fn st_shape_vs_offsets() {
    for file in ["small-range", "overflow", "reversed", "dtype"] {
        let path = shared(&format!("cases/files/st-shape-vs-offsets/{file}.safetensors"));
        refused(&["inspect", text(&path)], &[file]);
    }
}

#[test]
fn pth_hostile_global() {
    hostile("pth-hostile-global", &[("model.pth", "posix.system")]);
}

#[test]
fn moe_shared_expert_and_a_refused_export_leaves_the_old_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("moe"), dir.path().join("out"));
    copy(&shared("golden/minimind2-moe"), &model);
    let export = |more: &[&str]| {
        let args = ["export", text(&model), "--hf", "f16", "--gguf", "f16", "--name", "m", "--out"];
        [&args[..], &[text(&out)], more].concat().iter().map(|s| (*s).to_owned()).collect()
    };
    let args: Vec<String> = export(&[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    json(&args);
    let snapshot = || {
        let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        for dir in [out.clone(), out.join("hf-f16")] {
            for entry in fs_err::read_dir(dir).unwrap().flatten().filter(|e| e.path().is_file()) {
                files.push((entry.path(), fs_err::read(entry.path()).unwrap()));
            }
        }
        files.sort();
        files
    };
    let before = snapshot();
    assert_eq!(before.len(), 7, "{:?}", before.iter().map(|f| &f.0).collect::<Vec<_>>());
    let path = model.join("config.json");
    let config: Value = serde_json::from_str(&fs_err::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in [("norm_topk_prob", Value::from(false)), ("num_experts_per_tok", 1.into())]
    {
        let mut changed = config.clone();
        changed[key] = value;
        fs_err::write(&path, changed.to_string()).unwrap();
        refused(&args, &["GraniteMoeSharedForCausalLM", "its weight is always 1"][..1]);
        assert!(snapshot() == before, "{key}: files changed");
    }
    // damaged weights
    fs_err::write(&path, config.to_string()).unwrap();
    let weights = model.join("model.safetensors");
    let bytes = fs_err::read(&weights).unwrap();
    fs_err::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    refused(&args, &["model.safetensors"]);
    assert!(snapshot() == before, "files changed");
}

#[test]
fn f16_range_and_strict() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let model = shared("cases/files/f16-range");
    for target in [["--hf", "f16"], ["--gguf", "f16"], ["--gguf", "q8_0"]] {
        let args = ["export", text(&model), target[0], target[1], "--out", text(&out)];
        refused(&[&args[..], &["--strict"]].concat(), &["instead of"]);
        assert!(!out.exists());
    }
    let report = json(&["export", text(&model), "--gguf", "f16", "--out", text(&out)]);
    let reasons = report["fallbacks"].to_string();
    assert!(reasons.contains("down_proj.weight[3, 5] is 131072"), "{reasons}");
}

#[test]
fn a_modelfile_names_the_gguf_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let system = "你叫 mmx。\nSay \"hello\".";
    let base = ["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "m", "--out"];
    let out = dir.path().join("out");
    let more =
        ["--gguf", "q8_0", "--gguf", "f16", "--ollama", "--ollama-template", "--system", system];
    json(&[&base[..], &[text(&out)], &more].concat());
    let read = |name: &str| {
        let written = fs_err::read_to_string(out.join(name)).unwrap();
        mmx_converters::modelfile::Modelfile::read(&written).unwrap()
    };
    let file = read("Modelfile");
    assert_eq!(file.from, "./m-131K-q8_0.gguf");
    assert_eq!(read("Modelfile-f16").from, "./m-131K-f16.gguf");
    assert_eq!(file.system.as_deref(), Some(system));
    assert!(file.template.unwrap().contains("<|im_start|>"));
    let has =
        |name: &str, value: &str| file.parameters.contains(&(name.to_owned(), value.to_owned()));
    for stop in ["<|im_end|>", "<|im_start|>", "<|endoftext|>"] {
        assert!(has("stop", stop), "{:?}", file.parameters);
    }
    assert!(has("temperature", "0.85") && has("top_p", "0.85") && has("num_ctx", "512"));

    // without a template Ollama would send bare text; MiniMind-3's has no Go form
    let bare = dir.path().join("bare");
    refused(&["export", text(&model), "--ollama", "--out", text(&bare)], &["chat template"]);
    let (model, tokenizer) = (shared("golden-2026/minimind3"), shared("golden-2026"));
    let args = ["export", text(&model), "--tokenizer", text(&tokenizer), "--ollama", "--out"];
    refused(&[&args[..], &[text(&bare), "--ollama-template"]].concat(), &["--ollama-template"]);
    assert!(!bare.exists());
    json(&[&args[..], &[text(&bare)]].concat());
}

#[test]
fn misuse_exits_with_2() {
    for args in [
        &["export", "--gguf", "q9_9"][..],
        &["export", "--hf", "f99"],
        &["import", "x"],
        &["import", "x", "--out", "y", "--preset", "huge"],
        &["inspect"],
        &["export", "--system", "x"],
    ] {
        let out = mmx(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
    }
}

/// In the GGUF, in the Modelfile, and when the GGUF is run.
#[test]
fn a_greedy_model_stays_greedy() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    copy(&shared("golden/minimind2"), &source);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs_err::copy(shared("golden").join(name), source.join(name)).unwrap();
    }
    let settings = r#"{"do_sample": false, "temperature": 0.9, "repetition_penalty": 1.25}"#;
    fs_err::write(source.join("generation_config.json"), settings).unwrap();
    let args = ["export", text(&source), "--gguf", "f32", "--ollama", "--name", "m", "--out"];
    json(&[&args[..], &[text(&out)]].concat());
    let modelfile = fs_err::read_to_string(out.join("Modelfile")).unwrap();
    for line in ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1.25"] {
        assert!(modelfile.lines().any(|found| found == line), "{line}: {modelfile}");
    }
    let gguf = out.join("m-131K-f32.gguf");
    let file = Gguf::open(&gguf).unwrap();
    let found = |key: &str| file.metadata().get(&format!("general.sampling.{key}"));
    assert_eq!(found("temp").and_then(Key::as_f64), Some(0.0));
    assert_eq!(found("penalty_repeat").and_then(Key::as_f64), Some(1.25));
    let ids = |seed: &str| {
        let args = ["run", text(&gguf), "-p", "one", "--raw", "-n", "12", "--seed", seed];
        json(&args)["ids"].clone()
    };
    assert_eq!(ids("1"), ids("2"));
}

/// Also where the folder holds runs, and below folders of other things.
#[test]
fn a_folder_of_models_names_those_to_choose_from() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let out = dir.path().join("export");
    let args = ["export", text(&model), "--tokenizer", text(&tokenizer), "--hf", "f32", "--gguf"];
    json(&[&args[..], &["f16", "--name", "m", "--out", text(&out)]].concat());
    let said = mmx(&["inspect", text(&out)]);
    let said = String::from_utf8(said.stderr).expect("UTF-8");
    for name in ["hf-f32", "m-131K-f16.gguf"] {
        assert!(said.contains(text(&out.join(name))), "{name} is not in: {said}");
    }
    let runs = dir.path().join("runs");
    let checkpoint = runs.join("sft/checkpoint-000001");
    fs_err::create_dir_all(&checkpoint).expect("a folder");
    fs_err::write(checkpoint.join("config.json"), "{}").expect("a file");
    for command in [&["run", text(&runs), "-p", "x"][..], &["inspect", text(&runs)]] {
        let said = String::from_utf8(mmx(command).stderr).expect("UTF-8");
        assert!(said.contains(text(&runs.join("sft"))) && said.contains("hint: "), "{said}");
    }
}

#[test]
fn without_a_model_the_newest_checkpoint_is_taken_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        command.args(args).current_dir(dir.path()).output().unwrap()
    };
    assert_eq!(run(&["export"]).status.code(), Some(1));
    copy(&shared("golden/minimind3"), &dir.path().join("runs/first"));
    let out = run(&["export", "--gguf", "f16"]);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{stderr}");
    assert!(stderr.contains("runs/first"), "{stderr}");
    let files: Vec<_> = fs_err::read_dir(dir.path().join("runs/first/export")).unwrap().collect();
    assert_eq!(files.len(), 3, "the GGUF, its card, and the list of both");
}
