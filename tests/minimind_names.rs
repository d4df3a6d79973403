//! MiniMind's public names, 2024 to 2026: a `.pth` opens by itself, in every command, as the folder
//! with the same weights does; so do the folders of its classes; a broken one is refused by name.

mod common;
mod minimind;

use std::path::{Path, PathBuf};

use common::{mmx, mmx_error, mmx_json, mmx_ok, shared, text};
use half::f16;
use minimind::{Class, Generation, HIDDEN, Tensor, pairs, safetensors_folder, save};
use mmx_converters::random::SplitMix64;
use serde_json::json;

const GENERATIONS: [(Generation, &[&str]); 8] = [
    (of(Class::V1, false), &["pretrain_128.pth", "full_sft_128.pth", "dpo_128.pth"]),
    (of(Class::V1, true), &["pretrain_128_moe.pth", "full_sft_128_moe.pth"]),
    (of(Class::V2LmConfig, false), &["rlhf_128.pth", "reason_128.pth", "full_dist_128.pth"]),
    (of(Class::V2LmConfig, true), &["rlhf_128_moe.pth"]),
    (
        of(Class::V2, false),
        &["full_sft_128.pth", "dpo_128.pth", "reason_128.pth", "grpo_128.pth", "ppo_actor_128.pth"],
    ),
    (of(Class::V2, true), &["full_sft_128_moe.pth", "spo_128_moe.pth"]),
    (
        of(Class::V3, false),
        &["pretrain_128.pth", "full_sft_128.pth", "grpo_128.pth", "agent_128.pth"],
    ),
    (of(Class::V3, true), &["full_sft_128_moe.pth", "dpo_128_moe.pth"]),
];

const fn of(class: Class, moe: bool) -> Generation {
    Generation { class, moe }
}

/// Ids that every model of these tests knows, more than the longest period of the fast frequencies.
fn ids(dir: &Path) -> PathBuf {
    let path = dir.join("ids.json");
    let ids: Vec<u32> = (0..40).map(|i| 3 + i * 37 % 500).collect();
    fs_err::write(&path, format!("{ids:?}")).expect("written");
    path
}

/// A model's logits by the runner, and what was said on stderr.
fn logits(dir: &Path, model: &Path) -> (Vec<f32>, String) {
    let file = dir.join("logits.safetensors");
    let ids = ids(dir);
    let out = mmx(&[
        "logits",
        text(model),
        "--ids",
        text(&ids),
        "--out",
        text(&file),
        "--engine",
        "ggml",
    ]);
    let said = String::from_utf8(out.stderr).expect("UTF-8");
    assert!(out.status.success(), "{}: {said}", model.display());
    (read(&file), said)
}

/// The values of a file of logits.
fn read(file: &Path) -> Vec<f32> {
    let bytes = fs_err::read(file).expect("logits");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let values = bytes[8 + header..].chunks_exact(4);
    values.map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
}

#[test]
fn every_public_name_opens_by_itself_as_the_folder_of_the_same_weights() {
    let dir = tempfile::tempdir().expect("a folder");
    for (i, (generation, names)) in GENERATIONS.into_iter().enumerate() {
        let out = dir.path().join(i.to_string());
        fs_err::create_dir(&out).expect("a folder");
        let folder = dir.path().join(format!("folder-{i}"));
        generation.plain_folder(&folder, &generation.tensors());
        let (expected, _) = logits(dir.path(), &folder);
        for name in names {
            let file = out.join(name);
            save(&file, &generation.state_dict());
            let (found, said) = logits(dir.path(), &file);
            assert!(found == expected, "{name} of {generation:?}");
            let lines: Vec<&str> =
                said.lines().filter(|line| line.contains("no config.json beside it")).collect();
            let [line] = lines.as_slice() else { panic!("{name}: {said}") };
            let (heads, kv_heads) = generation.heads();
            let words = match generation.class {
                Class::V3 => format!("by its tensors {} (2 layers", generation.family()),
                _ => format!("{heads} heads, {kv_heads} for keys and values"),
            };
            assert!(line.contains(&words) && line.contains("rope theta"), "{line}");
            fs_err::remove_file(&file).expect("removed");
        }
    }
}

/// What a naive forward pass in torch computes, turning neighbours of a head as complex numbers
/// (scripts/golden/make_lm_config.py).
#[test]
fn files_of_the_first_class_compute_what_torch_computes() {
    let dir = tempfile::tempdir().expect("a folder");
    let rows = fs_err::read(shared("lm-config/logits.json")).expect("a file");
    let rows: serde_json::Value = serde_json::from_slice(&rows).expect("JSON");
    let (ids, out) = (dir.path().join("ids.json"), dir.path().join("logits.safetensors"));
    for row in rows.as_array().expect("rows") {
        let file = shared("lm-config").join(row["file"].as_str().expect("a name"));
        fs_err::write(&ids, row["ids"].to_string()).expect("written");
        let mut engines = vec!["ggml"];
        engines.extend(common::TRAINS.then_some("native"));
        for engine in engines {
            let args = ["logits", text(&file), "--ids", text(&ids), "--out", text(&out)];
            mmx_ok(&[&args[..], &["--engine", engine]].concat());
            let values = read(&out);
            let expected = row["logits"].as_array().expect("logits");
            let last = &values[values.len() - expected.len()..];
            for (found, expected) in last.iter().zip(expected) {
                let expected = expected.as_f64().expect("a number");
                let far = (f64::from(*found) - expected).abs();
                assert!(far < 2e-4, "{}: {engine}: {found}, {expected}", file.display());
            }
        }
    }
}

/// As the reference's repository has them: weights in `out`, the tokenizer in `model`.
#[test]
fn a_file_alone_is_a_model_to_every_command_and_its_tokenizer_is_found() {
    let dir = tempfile::tempdir().expect("a folder");
    let (out, tokenizer) = (dir.path().join("out"), dir.path().join("model"));
    for folder in [&out, &tokenizer] {
        fs_err::create_dir(folder).expect("a folder");
    }
    let file = out.join("full_sft_128_moe.pth");
    save(&file, &of(Class::V1, true).state_dict());
    // without one the sentence says what to do
    let error = mmx_error(&["run", text(&file), "--raw", "-p", "one", "-n", "4"]);
    assert!(error.contains("expected a tokenizer"), "{error}");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs_err::copy(shared("golden").join(name), tokenizer.join(name)).expect("copied");
    }
    let run = mmx(&["run", text(&file), "--raw", "-p", "one two", "-n", "4"]);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && said.contains("tokenizer of"), "{said}");
    let shown = mmx_json(&["inspect", text(&file)]);
    assert_eq!(shown["family"], "minimind2-moe");
    assert!(shown["warnings"].to_string().contains("2 of 4 experts a token"), "{shown}");
    mmx_ok(&["doctor", text(&file)]);
    let exported = dir.path().join("export");
    mmx_ok(&["export", text(&file), "--out", text(&exported), "--gguf", "f32", "--hf", "f32"]);
    let report =
        mmx_json(&["verify", text(&file), text(&exported.join("hf-f32")), "--tokens", "24"]);
    assert_eq!(report["ok"], true, "{report}");
    let words = dir.path().join("words.txt");
    fs_err::write(&words, "one two three four five six seven\n".repeat(40)).expect("written");
    let measured = mmx_json(&["eval", text(&file), "--ppl", text(&words), "--ctx", "64"]);
    assert!(measured["rows"][0]["perplexity"]["nll"].as_f64().is_some_and(|nll| nll > 0.0));
    if common::TRAINS {
        let (data, run) = (shared("golden/sft.jsonl"), dir.path().join("run"));
        let args =
            ["--max-steps", "1", "--max-seq-len", "64", "--device", "cpu", "--out", text(&run)];
        let from = ["train", "sft", "--from", text(&file), "--data", text(&data)];
        let end = mmx_json(&[&from[..], &args].concat());
        assert_eq!(end["steps"], 1);
        let config = fs_err::read_to_string(run.join("checkpoint-000001/config.json"));
        assert!(config.expect("a file").contains("granitemoeshared"));
    }
}

#[test]
fn folders_of_every_class_open_by_their_config() {
    let dir = tempfile::tempdir().expect("a folder");
    for (i, (generation, _)) in GENERATIONS.into_iter().enumerate() {
        let plain = dir.path().join(format!("plain-{i}"));
        generation.plain_folder(&plain, &generation.tensors());
        let expected = logits(dir.path(), &plain).0;
        // v1's are pytorch_model.bin, later ones model.safetensors too
        let old = dir.path().join(format!("bin-{i}"));
        fs_err::create_dir(&old).expect("a folder");
        fs_err::write(old.join("config.json"), generation.config().to_string()).expect("a file");
        save(&old.join("pytorch_model.bin"), &generation.state_dict());
        assert!(logits(dir.path(), &old).0 == expected, "{generation:?} as pytorch_model.bin");
        let new = dir.path().join(format!("safetensors-{i}"));
        safetensors_folder(&new, &generation.config(), &generation.state_dict());
        assert!(logits(dir.path(), &new).0 == expected, "{generation:?} as model.safetensors");
    }
}

/// Random adapters of every square projection, under Transformers' names: name, A, B.
fn adapters(generation: Generation) -> Vec<(String, Vec<f16>, Vec<f16>)> {
    let mut rng = SplitMix64::new(4);
    let mut values =
        |n: usize| (0..n).map(|_| f16::from_f64(0.2 * (rng.next_f64() - 0.5))).collect::<Vec<_>>();
    let square = |(_, shape, _): &Tensor| *shape == [HIDDEN, HIDDEN];
    let square = generation.tensors().into_iter().filter(square);
    square.map(|(name, ..)| (name, values(RANK * HIDDEN), values(HIDDEN * RANK))).collect()
}

const RANK: usize = 4;

#[test]
fn adapters_open_with_the_model_beside_them() {
    let dir = tempfile::tempdir().expect("a folder");
    for (generation, name) in
        [(of(Class::V1, false), "attention.wq"), (of(Class::V2, true), "self_attn.q_proj")]
    {
        let at = dir.path().join(generation.family());
        let lora = at.join("lora");
        fs_err::create_dir_all(&lora).expect("a folder");
        let suffix = if generation.moe { "_moe" } else { "" };
        let base = at.join(format!("full_sft_{HIDDEN}{suffix}.pth"));
        let file = lora.join(format!("lora_identity_{HIDDEN}{suffix}.pth"));
        let all = adapters(generation);
        let (heads, _) = generation.heads();
        let mut saved = Vec::new();
        for (name, a, b) in &all {
            let module = name.trim_end_matches(".weight").to_owned();
            let (module, b) = match generation.is_lm_config() {
                true if name.contains("q_proj") => {
                    let module = module.replace("self_attn.q_proj", "attention.wq");
                    (module.replace("model.", ""), pairs(b, HIDDEN / heads, RANK))
                }
                true => {
                    let module = module.replace("self_attn.o_proj", "attention.wo");
                    (module.replace("model.", ""), b.clone())
                }
                false => (module, b.clone()),
            };
            saved.push((format!("{module}.lora.A.weight"), vec![RANK, HIDDEN], a.clone()));
            saved.push((format!("{module}.lora.B.weight"), vec![HIDDEN, RANK], b));
        }
        assert!(saved.iter().any(|(saved, ..)| saved.contains(name)), "{name}");
        save(&file, &saved);
        let error = mmx_error(&["logits", text(&file), "--ids", text(&ids(&at)), "--out", "none"]);
        let words = format!("full_sft_{HIDDEN}{suffix}.pth");
        assert!(error.contains(&words) && error.contains("lora_identity"), "{error}");
        save(&base, &generation.state_dict());

        // W + B A, number by number, in float16 as the base is
        let mut merged = generation.tensors();
        for (name, shape, values) in &mut merged {
            let Some((_, a, b)) = all.iter().find(|(adapted, ..)| adapted == name) else {
                continue;
            };
            for (i, value) in values.iter_mut().enumerate() {
                let (row, column) = (i / shape[1], i % shape[1]);
                let product: f64 = (0..RANK)
                    .map(|r| b[row * RANK + r].to_f64() * a[r * shape[1] + column].to_f64())
                    .sum();
                *value = f16::from_f64(value.to_f64() + product);
            }
        }
        let folder = at.join("merged");
        generation.plain_folder(&folder, &merged);
        let (expected, _) = logits(&at, &folder);
        let (plain, _) = logits(&at, &base);
        let (found, said) = logits(&at, &file);
        assert!(said.contains("adapters, put on"), "{said}");
        let far =
            |of: &[f32]| of.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        // the merged weights of the test are rounded to float16
        assert!(far(&found) < 0.05 * far(&plain), "{} of {}", far(&found), far(&plain));
    }
}

#[test]
fn a_broken_file_is_refused_by_tensor_and_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("full_sft_128.pth");
    let (name, out) = (text(&file).to_owned(), dir.path().join("out"));
    let refused = |words: &[&str]| {
        let error = mmx_error(&["import", &name, "--out", text(&out)]);
        for word in words.iter().chain(&["full_sft_128.pth"]) {
            assert!(error.contains(word), "{word}: {error}");
        }
        assert!(!out.exists());
    };
    for class in [Class::V1, Class::V3] {
        let whole = of(class, false).state_dict();
        let lm = class == Class::V1;
        let deep = if lm {
            "layers.1.attention.wk.weight"
        } else {
            "model.layers.1.self_attn.k_proj.weight"
        };
        let first = if lm {
            "layers.0.attention.wk.weight"
        } else {
            "model.layers.0.self_attn.k_proj.weight"
        };
        let embedding = if lm { "tok_embeddings.weight" } else { "model.embed_tokens.weight" };
        for missing in [deep, first] {
            let less: Vec<Tensor> =
                whole.iter().filter(|(name, ..)| name != missing).cloned().collect();
            save(&file, &less);
            refused(&[missing]);
        }
        for odd in [deep, first, embedding] {
            let mut other = whole.clone();
            for (name, shape, values) in &mut other {
                if name == odd {
                    shape[0] -= 3;
                    values.truncate(shape[0] * shape[1]);
                }
            }
            save(&file, &other);
            let head = if lm { "output.weight" } else { "lm_head.weight" };
            refused(&[if odd == embedding { head } else { odd }]);
        }
    }
    // a protocol-2 file whose first opcode runs something
    save(&file, &of(Class::V3, false).state_dict());
    let mut bytes = fs_err::read(&file).expect("a file");
    let at = bytes.windows(4).position(|four| four == b"\x80\x02}(").expect("the pickle");
    bytes[at + 2..at + 4].copy_from_slice(b"(i");
    fs_err::write(&file, bytes).expect("a file");
    refused(&["data.pkl"]);
    // adapters of no model, and tensors of no model at all
    save(&file, &[("vision_proj.weight".to_owned(), vec![2, 2], vec![f16::ONE; 4])]);
    refused(&["model.embed_tokens.weight"]);
    assert_eq!(json!(fs_err::read_dir(dir.path()).expect("a folder").count()), json!(1));
}
