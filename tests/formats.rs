//! Every form a model leaves in and comes back from: adapters four ways, shards, cards, quantized files with and without
//! an importance matrix, types chosen by measurement; and what a killed export leaves behind.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{mmx, mmx_error, mmx_json, mmx_ok, shared, text};
use mmx_converters::arch::{Config, presets, weights};
use mmx_converters::gguf::Gguf;
use mmx_converters::model::adapter::Adapters;
use mmx_converters::quant::imatrix::Imatrix;
use mmx_converters::safetensors::SafeTensors;
use mmx_ggml::FileType;
use mmx_ggml::judge::LlamaModel;
use mmx_ggml::run::random_model::write_random_gguf;
use serde_json::{Value, json};

/// The files of `mmx export MODEL ARGS.. --name m --out OUT`, by their names.
fn export(model: &Path, out: &Path, more: &[&str]) -> BTreeMap<String, PathBuf> {
    let args = ["export", text(model), "--name", "m", "--out", text(out)];
    let report = mmx_json(&[&args[..], more].concat());
    let files = report["files"].as_array().expect("files").iter();
    let path = |file: &Value| PathBuf::from(file["path"].as_str().expect("a path"));
    let name = |path: &Path| text(path.strip_prefix(out).expect("inside")).to_owned();
    files.map(path).map(|path| (name(&path), path)).collect()
}

fn ids_of(name: &str) -> Vec<u32> {
    let file = SafeTensors::open(shared(name).join("forward.safetensors")).expect("golden");
    let ids = file.get("input_ids").expect("ids");
    let row = ids.shape[1];
    ids.to_f32()[..row].iter().map(|&id| id as u32).collect()
}

/// Logits of a model by `mmx logits`.
fn logits(model: &Path, ids: &[u32], engine: &str) -> Vec<f32> {
    let dir = tempfile::tempdir().expect("a folder");
    let (list, out) = (dir.path().join("ids.json"), dir.path().join("out.safetensors"));
    fs_err::write(&list, json!(ids).to_string()).expect("a file");
    let args = ["logits", text(model), "--ids", text(&list), "--out", text(&out)];
    mmx_ok(&[&args[..], &["--engine", engine]].concat());
    SafeTensors::open(&out).expect("logits").get("logits").expect("the tensor").to_f32()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The engine a checkpoint is computed by in this build.
const OWN: &str = if cfg!(feature = "train") { "native" } else { "ggml" };

/// PEFT folder, GGUF adapter in llama.cpp, merged folder, merged GGUF: the logits of the training checkpoint (1e-4:
/// float32 sums in another order), which are not the base's.
#[test]
fn adapters_give_the_checkpoints_logits_four_ways() {
    let dir = tempfile::tempdir().expect("a folder");
    let (base, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let source = shared("golden/train/lora-final.safetensors"); // MiniMind's own names
    let checkpoint = dir.path().join("lora");
    let args = ["import", text(&source), "--base", text(&base), "--tokenizer", text(&tokenizer)];
    mmx_json(&[&args[..], &["--out", text(&checkpoint)]].concat());
    let ids = ids_of("golden/minimind2");
    let expected = logits(&checkpoint, &ids, OWN);
    assert!(largest_difference(&expected, &logits(&base, &ids, OWN)) > 1e-2, "the adapters count");

    let out = dir.path().join("out");
    let targets = [
        "--adapter",
        "peft",
        "--adapter",
        "gguf",
        "--hf",
        "f32",
        "--gguf",
        "f32",
        "--language",
        "zh",
    ];
    let files = export(&checkpoint, &out, &targets);
    let plain = export(&base, &dir.path().join("base"), &["--gguf", "f32"]);
    let close = |what: &str, found: &[f32]| {
        let far = largest_difference(&expected, found);
        assert!(far <= 1e-4, "{what}: largest difference {far:e}");
    };
    let peft = files["adapter-peft/adapter_config.json"].parent().expect("a folder");
    close("PEFT folder", &logits(peft, &ids, OWN));
    let merged = files["hf-f32/config.json"].parent().expect("a folder");
    close("merged folder", &logits(merged, &ids, OWN));
    for engine in ["ggml", "llama.cpp"] {
        close("merged GGUF", &logits(&files["m-131K-f32.gguf"], &ids, engine));
    }
    let mut model = LlamaModel::open(&plain["m-131K-f32.gguf"]).expect("the base");
    let adapter = &files["m-lora.gguf"];
    close("GGUF adapter", &model.logits_adapted(adapter, &ids, 1).expect("applied"));
    // and without it the base is as it was
    let before = model.logits(&ids, 1).expect("computed");
    assert!(largest_difference(&expected, &before) > 1e-2);

    // the GGUF adapter comes back as it was
    let back = dir.path().join("back");
    mmx_json(&["import", text(adapter), "--base", text(&base), "--out", text(&back)]);
    let (one, two) = (Adapters::open(&checkpoint), Adapters::open(&back));
    let (one, two) = (one.expect("adapters"), two.expect("adapters"));
    assert_eq!((one.rank, one.alpha, &one.modules), (two.rank, two.alpha, &two.modules));
    // the same adapters straight to the targets, with the base named beside them
    let direct = dir.path().join("direct");
    let files = export(&source, &direct, &["--base", text(&base), "--adapter", "gguf"]);
    let same =
        |a: &Path, b: &Path| fs_err::read(a).expect("a file") == fs_err::read(b).expect("a file");
    assert!(same(&files["m-lora.gguf"], adapter));
}

#[test]
fn adapters_of_another_model_or_none_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let source = shared("golden/train/lora-final.safetensors");
    let base = shared("cases/files/cfg-head-dim"); // hidden 16, not 64
    let line = mmx_error(&["import", text(&source), "--base", text(&base), "--out", text(&out)]);
    assert!(line.contains("lora-final.safetensors"), "{line}");
    let line = mmx_error(&["export", text(&base), "--adapter", "peft", "--out", text(&out)]);
    assert!(line.contains("expected adapters, found a whole model"), "{line}");
    assert!(!out.exists());
}

#[test]
fn shards_are_read_back_and_replace_what_was_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = shared("golden/minimind3-moe");
    let out = dir.path().join("out");
    export(&model, &out, &["--hf", "f32"]);
    let whole = out.join("hf-f32/model.safetensors");
    assert!(whole.exists());
    let files = export(&model, &out, &["--hf", "f32", "--shard-size", "300kB"]);
    assert!(!whole.exists(), "readers would take the old file");
    let shards: Vec<&String> = files.keys().filter(|name| name.contains("-of-")).collect();
    assert!(shards.len() > 2, "{shards:?}");
    let index = fs_err::read_to_string(out.join("hf-f32/model.safetensors.index.json"));
    let index: Value = serde_json::from_str(&index.expect("an index")).expect("JSON");
    let mut total = 0;
    for name in &shards {
        let file = SafeTensors::open(&files[*name]).expect("a shard");
        let bytes: usize = file.names().map(|n| file.get(n).expect("a tensor").data.len()).sum();
        assert!(bytes <= 300_000, "{name}: {bytes}");
        total += bytes;
        for tensor in file.names() {
            assert!(name.ends_with(index["weight_map"][tensor].as_str().expect("a shard's name")));
        }
    }
    assert_eq!(index["metadata"]["total_size"], total);
    let ids = ids_of("golden/minimind3-moe");
    let far =
        largest_difference(&logits(&out.join("hf-f32"), &ids, OWN), &logits(&model, &ids, OWN));
    assert_eq!(far, 0.0);
    // and back to one file
    export(&model, &out, &["--hf", "f32"]);
    let names = fs_err::read_dir(out.join("hf-f32")).expect("a folder").flatten();
    let names: Vec<String> = names.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().all(|n| !n.contains("-of-") && !n.contains("index")), "{names:?}");
    for bad in ["0", "x", "5 parsecs"] {
        let args = ["export", text(&model), "--hf", "f32", "--shard-size", bad];
        assert_eq!(mmx(&args).status.code(), Some(2), "{bad}");
    }
}

/// The card says what the model is, what was measured, and how to load it; no path of this machine is in it.
#[test]
fn cards_hold_what_was_said_and_what_was_measured() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let words = ["--license", "apache-2.0", "--language", "zh", "--language", "en"];
    let more = ["--base-model", "me/base", "--dataset", "me/data", "--verify", "--ollama"];
    let targets = ["--hf", "f32", "--gguf", "f32", "--gguf", "q8_0", "--tokenizer"];
    let tokenizer = shared("golden");
    let args = [&targets[..], &[text(&tokenizer)], &words, &more].concat();
    let files = export(&shared("golden/minimind2-moe"), &out, &args);
    for (name, library, words) in [
        ("hf-f32/README.md", "transformers", ["AutoModelForCausalLM", "vllm serve", "`hf-f32`"]),
        ("README.md", "gguf", ["llama-cli -m m-", "ollama create m", "-q8_0.gguf` | llama.cpp |"]),
    ] {
        let card = fs_err::read_to_string(&files[name]).expect("a card");
        let (front, body) =
            card.strip_prefix("---\n").expect("front matter").split_once("---\n").expect("its end");
        for line in [
            "license: apache-2.0",
            "- zh",
            "- en",
            "- me/base",
            "- me/data",
            "pipeline_tag: text-generation",
            &format!("library_name: {library}"),
        ] {
            assert!(front.lines().any(|l| l == line), "{line:?} in {front}");
        }
        for word in words.iter().chain(&["## Parity", "minimind2-moe"]) {
            assert!(body.contains(word), "{word:?} in {body}");
        }
        assert!(!card.contains(text(dir.path())), "{card}");
    }
    let (config, jinja) = ("hf-f32/tokenizer_config.json", "hf-f32/chat_template.jinja");
    let config: Value =
        serde_json::from_str(&fs_err::read_to_string(&files[config]).expect("a file"))
            .expect("JSON");
    assert_eq!(config["chat_template"], fs_err::read_to_string(&files[jinja]).expect("a file"));
}

/// A text for the golden tokenizer.
fn text_file(dir: &Path) -> PathBuf {
    let path = dir.join("text.txt");
    let lines = fs_err::read_to_string(shared("golden/pretrain.jsonl")).expect("texts");
    let texts = lines.lines().map(|line| {
        let value: Value = serde_json::from_str(line).expect("JSON");
        value["text"].as_str().expect("a text").to_owned()
    });
    fs_err::write(&path, texts.collect::<Vec<_>>().join("\n")).expect("written");
    path
}

/// Types and digests of a GGUF's tensors.
fn tensors(gguf: &Path) -> Vec<(String, String, String)> {
    let shown = mmx_json(&["inspect", text(gguf), "--tensors"]);
    let tensor =
        |t: &Value| (t["name"].to_string(), t["type"].to_string(), t["sha256_f32"].to_string());
    shown["tensors"].as_array().expect("tensors").iter().map(tensor).collect()
}

#[test]
fn quantize_gives_what_export_gives() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, tokenizer) = (shared("golden/minimind3"), shared("golden"));
    let out = dir.path().join("out");
    let more =
        ["--tokenizer", text(&tokenizer), "--gguf", "f32", "--gguf", "q4_k_m", "--license", "mit"];
    let files = export(&model, &out, &more);
    let ggufs: Vec<&PathBuf> =
        files.values().filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    let (full, small) = (ggufs[0], ggufs[1]);
    let again = dir.path().join("again.gguf");
    let report = mmx_json(&["quantize", text(full), text(&again), "q4_k_m"]);
    assert_eq!(tensors(&again), tensors(small));
    assert!(!report["fallbacks"].as_array().expect("fallbacks").is_empty(), "rows of 64");
    let keys = |path: &Path| -> BTreeMap<String, String> {
        let file = Gguf::open(path).expect("a GGUF");
        file.metadata().iter().map(|(k, v)| (k.to_owned(), v.describe())).collect()
    };
    assert_eq!(keys(&again), keys(small));
    LlamaModel::open(&again).expect("llama.cpp opens it");

    let line = mmx_error(&["quantize", text(full), text(&out.join("x")), "q4_k_m", "--strict"]);
    assert!(line.contains("instead of"), "{line}");
    let line = mmx_error(&["quantize", text(small), text(&out.join("x")), "q8_0"]);
    assert!(line.contains("rounded twice"), "{line}");
    mmx_json(&["quantize", text(small), text(&again), "q8_0", "--allow-requantize"]);
    let line = mmx_error(&["quantize", text(&model), text(&out.join("x")), "q8_0"]);
    assert!(line.contains("expected a GGUF"), "{line}");
    assert!(!out.join("x").exists());
}

/// Every quantized type moves the distribution equally far in our runner and in llama.cpp: 1e-3 nats, since both round
/// activations to eight bits, but add in another order. The most likely token of one is that of the other, or as likely
/// there up to 0.05 of a logit (largest found: 0.026; random weights are full of near ties).
#[test]
fn quantized_types_cost_the_same_in_the_runner_and_in_llama_cpp() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, out) = (shared("golden/minimind2"), dir.path().join("out"));
    let types = FileType::ALL.iter().filter(|ty| ty.is_quantized() && **ty != FileType::MXFP4_MOE);
    let names: Vec<String> = types.map(FileType::to_string).collect();
    let asked: Vec<&str> = names.iter().flat_map(|name| ["--gguf", name.as_str()]).collect();
    let files = export(&model, &out, &asked);
    let ids = dir.path().join("ids.json");
    fs_err::write(&ids, json!(ids_of("golden/minimind2")).to_string()).expect("a file");
    let ggufs = files.values().filter(|path| path.extension().is_some_and(|e| e == "gguf"));
    let ggufs: Vec<&str> = ggufs.map(|path| text(path)).collect();
    assert_eq!(ggufs.len(), names.len());
    let args = [&["verify", text(&model), "--ids", text(&ids)][..], &ggufs].concat();
    let out = mmx(&[&args[..], &["--json"]].concat()); // two bits may be beyond the limit
    let report: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let mut by_file: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for row in report["rows"].as_array().expect("rows") {
        by_file.entry(row["path"].as_str().expect("a path")).or_default().push(row);
    }
    for file in ggufs {
        let [one, two] = by_file[file][..] else { panic!("{file}: two engines") };
        let number = |row: &Value, key: &str| row[key].as_f64().expect("a number");
        let apart = |key: &str| (number(one, key) - number(two, key)).abs();
        eprintln!("{file}: KL {:.2e}, top-1 {}", number(one, "mean_kl"), one["top1_agreement"]);
        assert!(apart("mean_kl") <= 1e-3, "{file}: KL {} and {}", one["mean_kl"], two["mean_kl"]);
        let ids = ids_of("golden/minimind2");
        let [one, two] = ["ggml", "llama.cpp"].map(|engine| logits(Path::new(file), &ids, engine));
        let vocab = one.len() / ids.len();
        for (position, (one, two)) in one.chunks(vocab).zip(two.chunks(vocab)).enumerate() {
            let best = |row: &[f32]| {
                (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("a token")
            };
            let (mine, theirs) = (best(one), best(two));
            let gap = (one[mine] - one[theirs]).max(two[theirs] - two[mine]);
            assert!(gap <= 0.05, "{file}: position {position}: {mine} and {theirs}, {gap} apart");
        }
    }
}

/// Every matrix of a layer has an importance, every expert's is of its own, and the quantizer uses it.
#[test]
fn an_importance_matrix_covers_every_expert_and_is_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = text_file(dir.path());
    let tokenizer = shared("golden");
    for name in ["minimind2", "minimind3-moe"] {
        let out = dir.path().join(name);
        let model = shared("golden").join(name);
        let more = ["--tokenizer", text(&tokenizer), "--hf", "f32", "--gguf", "f32"];
        let files = export(&model, &out, &more);
        let folder = files["hf-f32/config.json"].parent().expect("a folder");
        let (one, two) = (out.join("one.gguf"), out.join("two.gguf"));
        let args = ["--chunk", "64", "--chunks", "2", "--threads", "1"];
        let collect = |model: &Path, to: &Path, data: &Path| {
            let fixed = ["imatrix", text(model), "--data", text(data), "--out", text(to)];
            mmx_json(&[&fixed[..], &args].concat())
        };
        let report = collect(folder, &one, &data);
        assert_eq!(report["chunks"], 2);
        let imatrix = Imatrix::open(&one).expect("readable");
        let config = Config::read(&model.join("config.json")).expect("a config").0;
        let table = weights(&config);
        let wanted = table.iter().filter(|w| w.layer.is_some() && w.shape.len() == 2);
        let wanted: std::collections::BTreeSet<&str> =
            wanted.map(|w| w.gguf.tensor.as_str()).collect();
        let found: std::collections::BTreeSet<&str> =
            imatrix.entries.keys().map(String::as_str).collect();
        assert_eq!(found, wanted, "{name}");
        for (tensor, entry) in &imatrix.entries {
            assert!(entry.idle().is_empty(), "{tensor}");
            assert!(entry.weights().iter().all(|x| x.is_finite() && *x >= 0.0), "{tensor}");
            if entry.counts.len() == 1 {
                assert_eq!(entry.counts, [128.0], "{tensor}");
            }
        }
        // the same of the GGUF: the same sums
        let gguf =
            files.values().find(|p| p.extension().is_some_and(|e| e == "gguf")).expect("a GGUF");
        collect(gguf, &two, &data);
        assert_eq!(Imatrix::open(&two).expect("readable"), imatrix);

        // quantized with it: other bytes, and closer where it matters (a mean over the text)
        let (plain, weighted) = (out.join("plain.gguf"), out.join("weighted.gguf"));
        mmx_json(&["quantize", text(gguf), text(&plain), "q4_0"]);
        let with = ["--imatrix", text(&one)];
        mmx_json(&[&["quantize", text(gguf), text(&weighted), "q4_0"][..], &with].concat());
        assert_ne!(tensors(&plain), tensors(&weighted), "{name}");
        let file = Gguf::open(&weighted).expect("a GGUF");
        assert_eq!(file.metadata().string("quantize.imatrix.file"), Some("one.gguf"));
        assert_eq!(file.metadata().string("quantize.imatrix.dataset"), Some("text.txt"));
        let exported =
            export(&model, &out.join("again"), &[&["--gguf", "q4_0"][..], &with].concat());
        let exported = exported.values().find(|p| p.extension().is_some_and(|e| e == "gguf"));
        assert_eq!(
            tensors(exported.expect("a GGUF")),
            tensors(&weighted),
            "{name}: export --imatrix"
        );
    }
    // of another model
    let (gguf, other) = (dir.path().join("minimind2"), dir.path().join("minimind3-moe/one.gguf"));
    let gguf = fs_err::read_dir(gguf).expect("a folder").flatten().map(|e| e.path());
    let gguf = gguf.into_iter().find(|p| text(p).ends_with("f32.gguf")).expect("a GGUF");
    let out = dir.path().join("x.gguf");
    let line = mmx_error(&["quantize", text(&gguf), text(&out), "q4_0", "--imatrix", text(&other)]);
    assert!(line.contains("one.gguf") && line.contains("expected a tensor of the model"), "{line}");
    assert!(!out.exists());
}

#[test]
fn types_are_chosen_by_what_they_cost() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = text_file(dir.path());
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let auto = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let fixed = ["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "m"];
        let goal = ["--gguf", "auto", "--text", text(&data), "--tokens", "64", "--out", text(&out)];
        let report = mmx_json(&[&fixed[..], &goal, more].concat());
        let chosen =
            report["frontier"].as_array().expect("points").iter().find(|p| p["chosen"] == true);
        let chosen = chosen.expect("the one written").clone();
        let file = report["files"].as_array().expect("files").iter().find(|f| f["type"] == "auto");
        assert_eq!(file.expect("a GGUF")["bytes"], chosen["bytes"]);
        assert!(out.join("m-frontier.svg").exists());
        (report, chosen, out.join("m-131K-auto.gguf"))
    };
    let (report, within, gguf) = auto("kl", &["--max-kl", "0.004"]);
    assert!(within["mean_kl"].as_f64().expect("a number") <= 0.004, "{within}");
    // nothing smaller that was tried is within it
    let smaller = report["frontier"]
        .as_array()
        .expect("points")
        .iter()
        .filter(|p| p["bytes"].as_u64() < within["bytes"].as_u64() && p["name"] == "mixed");
    assert!(smaller.into_iter().all(|p| p["mean_kl"].as_f64().expect("a number") > 0.004));
    assert!(within["types"].as_object().expect("types").len() > 1, "a mixture: {within}");
    LlamaModel::open(&gguf).expect("llama.cpp opens it");
    let limit = within["bytes"].as_u64().expect("bytes");
    let (_, fits, _) = auto("size", &["--target-size", &limit.to_string()]);
    assert_eq!(fits["bytes"], within["bytes"], "the same line of files");
    let common = ["export", text(&model), "--gguf", "auto"];
    let line =
        mmx_error(&[&common[..], &["--target-size", "1000", "--out", text(dir.path())]].concat());
    assert!(line.contains("--target-size: expected at least"), "{line}");
    let line =
        mmx_error(&[&common[..], &["--max-kl", "1e-12", "--out", text(dir.path())]].concat());
    assert!(line.contains("--max-kl: expected at least"), "{line}");
    assert_eq!(mmx(&common).status.code(), Some(2));
}

#[test]
fn doctor_says_what_becomes_of_a_preset_and_a_file() {
    let report = mmx_json(&["doctor", "--preset", "minimind2-moe"]);
    let findings = report["findings"].as_array().expect("findings");
    assert!(findings.iter().any(|f| f["what"] == "libtorch"));
    let types = report["model"]["types"].as_array().expect("types");
    let q4 = types.iter().find(|t| t["type"] == "q4_k_m").expect("the type");
    assert!(q4["fallbacks"].as_u64().expect("a count") > 0, "hidden 640: every K type falls back");
    let shown = mmx_ok(&["doctor", text(&shared("golden/minimind3"))]);
    for word in ["Qwen3ForCausalLM", "llama.cpp", "GPUs only", "no multiple of 256"] {
        assert!(shown.contains(word), "{word:?} in {shown}");
    }
    assert_eq!(mmx(&["doctor", "--preset", "gpt5"]).status.code(), Some(2));
}

/// A model of 104M parameters with random weights, as GGUF.
fn large(dir: &Path) -> PathBuf {
    let path = dir.join("large.gguf");
    let config = presets::preset("minimind2").expect("a preset");
    write_random_gguf(&path, &config, FileType::F32, 1).expect("written");
    path
}

/// Killed at any moment an export leaves no file that is cut off under its name; whole, it needs at most 1.3 times the
/// model's size (the mapped source counts as memory here).
#[test]
fn exports_appear_whole_or_not_at_all_in_bounded_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = large(dir.path());
    let start = |out: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        command.args(["export", text(&model), "--name", "m", "--hf", "bf16", "--gguf", "q8_0"]);
        command.args(["--gguf", "f16", "--pth", "--out", text(out)]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.spawn().expect("mmx starts")
    };
    let whole = dir.path().join("whole");
    let begin = Instant::now();
    let mut child = start(&whole);
    let peak = peak_rss(&mut child);
    let duration = begin.elapsed();
    let size = fs_err::metadata(&model).expect("a file").len();
    assert!(peak as f64 <= 1.3 * size as f64, "{peak} bytes for a model of {size}");
    let sizes: BTreeMap<PathBuf, u64> = files(&whole).into_iter().collect();
    assert!(sizes.len() >= 7, "{sizes:?}");
    let mut seen = 0;
    for part in 1..=8 {
        let out = dir.path().join("killed");
        let mut child = start(&out);
        std::thread::sleep(duration * part / 9 + Duration::from_millis(7 * u64::from(part)));
        child.kill().expect("killed");
        child.wait().expect("gone");
        for (name, bytes) in files(&out) {
            assert_eq!(sizes.get(&name), Some(&bytes), "{} is cut off", name.display());
            seen += 1;
        }
        if out.exists() {
            fs_err::remove_dir_all(&out).expect("removed");
        }
    }
    assert!(seen > 0, "some files were finished before the end");
}

/// Waits for a child; the most memory it had, bytes.
fn peak_rss(child: &mut std::process::Child) -> u64 {
    let mut peak = 0;
    let path = format!("/proc/{}/status", child.id());
    loop {
        let status = fs_err::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes =
            line.and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse().ok());
        peak = peak.max(kilobytes.unwrap_or(0) * 1024);
        if let Some(code) = child.try_wait().expect("a child") {
            assert!(code.success());
            return peak;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Files under their final names, and their sizes: what is still being written is called otherwise.
fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut all = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs_err::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            match (hidden, path.is_dir()) {
                (true, _) => (),
                (false, true) => folders.push(path),
                (false, false) => {
                    let bytes = fs_err::metadata(&path).expect("a file").len();
                    all.push((path.strip_prefix(dir).expect("inside").to_owned(), bytes));
                }
            }
        }
    }
    all
}
