//! The containers that weights come in: safetensors with types that mmx does not compute with and files beside an index,
//! `.pth` with what is no weight, adapters under wrappers' names and with PEFT's patterns, split GGUFs, and NaN.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{mmx, mmx_error, mmx_json, mmx_ok, shared, text};
use mmx_converters::arch::weights;
use mmx_converters::gguf::{self, Gguf, Metadata};
use mmx_converters::model::adapter::Adapters;
use mmx_converters::safetensors::{SafeTensors, TensorSpec, write};
use mmx_converters::tensor::Dtype;
use mmx_converters::{Model, pth::Pth};
use mmx_ggml::judge::LlamaModel;
use serde_json::{Value, json};

fn fixture(path: &str) -> PathBuf {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/containers").join(path);
    assert!(full.exists(), "{}", full.display());
    full
}

/// What mmx says on stderr; it must succeed.
fn said(args: &[&str]) -> String {
    let out = mmx(args);
    let stderr = String::from_utf8(out.stderr).expect("UTF-8");
    assert!(out.status.success(), "mmx {args:?}: {stderr}");
    stderr
}

/// The golden model as a folder, its tensors changed by `change`.
fn golden_with(dir: &Path, change: impl Fn(&str, &mut Vec<f32>)) -> PathBuf {
    let folder = dir.join("changed");
    fs_err::create_dir_all(&folder).expect("a folder");
    let from = shared("golden/minimind2");
    fs_err::copy(from.join("config.json"), folder.join("config.json")).expect("a file");
    fs_err::copy(shared("golden/tokenizer.json"), folder.join("tokenizer.json")).expect("a file");
    let file = SafeTensors::open(from.join("model.safetensors")).expect("golden");
    let tensors: Vec<(TensorSpec, Vec<f32>)> = file
        .names()
        .map(|name| {
            let view = file.get(name).expect("a tensor");
            let spec =
                TensorSpec { name: name.into(), dtype: Dtype::F32, shape: view.shape.to_vec() };
            let mut values = view.to_f32();
            change(name, &mut values);
            (spec, values)
        })
        .collect();
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    write(&folder.join("model.safetensors"), &specs, &BTreeMap::new(), |i| {
        Ok(mmx_converters::tensor::encode_f32(&tensors[i].1, Dtype::F32).into())
    })
    .expect("written");
    folder
}

// ---- safetensors

/// A copy of a file with one more tensor, of any type.
fn with_tensor(from: &Path, to: &Path, name: &str, dtype: &str, bytes: usize) {
    let old = fs_err::read(from).expect("a file");
    let length = u64::from_le_bytes(old[..8].try_into().expect("8 bytes")) as usize;
    let mut header: Value = serde_json::from_slice(&old[8..8 + length]).expect("JSON");
    let data = &old[8 + length..];
    header[name] = json!({
        "dtype": dtype, "shape": [bytes], "data_offsets": [data.len(), data.len() + bytes],
    });
    let header = header.to_string();
    let mut new = (header.len() as u64).to_le_bytes().to_vec();
    new.extend(header.as_bytes());
    new.extend(data);
    new.resize(new.len() + bytes, 3);
    fs_err::write(to, new).expect("a file");
}

#[test]
fn a_tensor_of_another_type_is_left_aside_with_a_note_and_refused_where_it_is_needed() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = golden_with(dir.path(), |_, _| ());
    let file = folder.join("model.safetensors");
    let whole = fs_err::read(&file).expect("a file");
    let plain = dir.path().join("plain");
    mmx_ok(&["import", text(&folder), "--out", text(&plain)]);
    for (dtype, size) in [("I8", 8), ("U8", 8), ("F8_E4M3", 8), ("F8_E8M0", 8), ("BOOL", 8)] {
        with_tensor(
            &shared("golden/minimind2/model.safetensors"),
            &file,
            "extra.table",
            dtype,
            size,
        );
        let out = dir.path().join(dtype);
        let stderr = said(&["import", text(&folder), "--out", text(&out)]);
        assert!(stderr.contains(&format!("extra.table ({dtype})")), "{stderr}");
        let name = "model.safetensors";
        let read = |dir: &Path| fs_err::read(dir.join(name)).expect("weights");
        assert!(read(&out) == read(&plain), "{dtype}");
        let shown = mmx_json(&["inspect", text(&file), "--tensors"]);
        let all = shown["tensors"].as_array().expect("tensors");
        let extra = all.iter().find(|t| t["name"] == "extra.table").expect("shown");
        assert_eq!((&extra["type"], &extra["bytes"]), (&json!(dtype), &json!(size)));
    }
    // a weight of the model
    let mut header: Value = {
        let length = u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
        serde_json::from_slice(&whole[8..8 + length]).expect("JSON")
    };
    let data = &whole[whole.len() - header_data(&header)..];
    for (dtype, width) in [("U32", 4), ("C64", 8), ("F8_E5M2", 1)] {
        let entry = &mut header["model.norm.weight"];
        entry["dtype"] = json!(dtype);
        entry["shape"] = json!([64 * 4 / width]);
        let text_of = header.to_string();
        let mut bytes = (text_of.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text_of.as_bytes());
        bytes.extend(data);
        fs_err::write(&file, bytes).expect("a file");
        let error = mmx_error(&["import", text(&folder), "--out", text(&dir.path().join("bad"))]);
        let words = format!("tensor model.norm.weight: expected a float type, found {dtype}");
        assert!(error.contains(&words), "{error}");
    }
}

/// Bytes of data that a header speaks of.
fn header_data(header: &Value) -> usize {
    let entries = header.as_object().expect("an object").values();
    let ends = entries.filter_map(|entry| entry["data_offsets"][1].as_u64());
    ends.max().expect("a tensor") as usize
}

/// Source: Transformers 5.24.0 and 4.57.6, tried: both read the one file.
#[test]
fn a_file_beside_an_index_is_read_as_transformers_does_and_the_index_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = golden_with(dir.path(), |_, _| ());
    let sharded = dir.path().join("sharded");
    let args = ["export", text(&folder), "--hf", "f32", "--shard-size", "200kB", "--out"];
    mmx_ok(&[&args[..], &[text(&sharded)]].concat());
    let sharded = sharded.join("hf-f32");
    assert!(sharded.join("model.safetensors.index.json").exists());
    // another model's weights
    let other = golden_with(dir.path(), |_, values| values.iter_mut().for_each(|v| *v *= 2.0));
    let out = dir.path().join("other");
    mmx_ok(&["import", text(&other), "--out", text(&out)]);
    fs_err::copy(out.join("model.safetensors"), sharded.join("model.safetensors")).expect("a copy");
    let again = dir.path().join("again");
    let stderr = said(&["import", text(&sharded), "--out", text(&again)]);
    assert!(stderr.contains("model.safetensors.index.json beside it"), "{stderr}");
    let read = |dir: &Path| fs_err::read(dir.join("model.safetensors")).expect("weights");
    assert!(read(&again) == read(&out));
}

// ---- .pth

#[test]
fn what_is_no_weight_in_a_pth_is_left_aside_with_notes_and_expanded_views_are_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let import = |name: &str| {
        let out = dir.path().join(name);
        let (file, config) = (fixture(&format!("pth/{name}.pth")), fixture("pth/config.json"));
        let stderr = said(&["import", text(&file), "--config", text(&config), "--out", text(&out)]);
        (fs_err::read(out.join("model.safetensors")).expect("weights"), stderr)
    };
    let (odd, stderr) = import("odd");
    assert!(odd == import("plain").0);
    for tensor in [
        "steps (I64)",
        "done (BOOL)",
        "codes (I8)",
        "mask (BOOL)",
        "small (I16)",
        "wide (U16)",
        "phase (C64)",
        "f8 (F8_E4M3)",
    ] {
        assert!(stderr.contains(tensor), "{tensor}: {stderr}");
    }
    assert!(stderr.contains("left aside: epoch, best, note, none"), "{stderr}");
    let shown = said(&["inspect", text(&fixture("pth/odd.pth"))]);
    assert!(shown.contains("f8 (F8_E4M3)"), "{shown}");
}

#[test]
fn a_weight_of_another_type_in_a_pth_is_refused_by_name_and_type() {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, config) = (fixture("pth/needed.pth"), fixture("pth/config.json"));
    let out = dir.path().join("out");
    let error = mmx_error(&["import", text(&file), "--config", text(&config), "--out", text(&out)]);
    let words = "tensor model.norm.weight: expected a float type, found I8";
    assert!(error.contains(words), "{error}");
    let others: Vec<(String, &str)> = Pth::open(&file)
        .expect("readable")
        .others()
        .map(|(name, ty)| (name.to_owned(), ty))
        .collect();
    assert_eq!(others, [("model.norm.weight".to_owned(), "I8")]);
}

// ---- adapters

#[test]
fn adapters_are_found_under_the_names_of_wrappers_in_any_order() {
    let bare = Adapters::open(&fixture("pth/lora-bare.pth")).expect("readable");
    assert!(bare.modules.contains_key("model.layers.0.self_attn.q_proj"));
    for name in ["module-peft", "peft-module", "compiled"] {
        let found = Adapters::open(&fixture(&format!("pth/lora-{name}.pth"))).expect(name);
        assert_eq!(found, bare, "{name}");
    }
    // and as safetensors
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.safetensors");
    let (module, adapter) = bare.modules.iter().next().expect("one");
    for prefix in ["module.base_model.model.", "base_model.model._orig_mod.module.", "module."] {
        let specs =
            [("A", [2, adapter.inputs]), ("B", [adapter.outputs, 2])].map(|(half, shape)| {
                let name = format!("{prefix}{module}.lora_{half}.weight");
                TensorSpec { name, dtype: Dtype::F32, shape: shape.to_vec() }
            });
        write(&path, &specs, &BTreeMap::new(), |i| {
            let values = if i == 0 { &adapter.a } else { &adapter.b };
            Ok(mmx_converters::tensor::encode_f32(values, Dtype::F32).into())
        })
        .expect("written");
        assert_eq!(Adapters::open(&path).expect(prefix), bare, "{prefix}");
    }
}

/// What the weights are multiplied with before they are summed up: see make_peft.py.
fn weigh(values: impl Iterator<Item = f64>) -> f64 {
    values.enumerate().map(|(i, x)| x * (1 + i % 7) as f64).sum()
}

/// The numbers are PEFT's own (make_peft.py). 1e-3: PEFT merges in float32, sums of up to 12288 values near 1.
fn merges_as_peft(opened: &Model, case: &str) {
    let base = Model::open(shared("golden/minimind2")).expect("golden");
    let adapters = opened.adapters().expect("adapters");
    let expected = fs_err::read(fixture(&format!("{case}/expect.json"))).expect("a file");
    let expected: BTreeMap<String, Value> = serde_json::from_slice(&expected).expect("JSON");
    assert_eq!(adapters.modules.len(), expected.len());
    for weight in weights(&base.config) {
        let Some(adapter) = adapters.of(&weight) else { continue };
        let module = weight.name.strip_suffix(".weight").expect("a weight");
        let wanted = &expected[module];
        let scale = wanted["scale"].as_f64().expect("a number");
        let found = adapters.scale_of(adapter);
        assert!((found - scale).abs() < 1e-6 * scale, "{case} {module}: {found}, not {scale}");
        let (before, after) = (base.weight_f32(&weight), opened.weight_f32(&weight));
        let pairs = after.expect("values").into_iter().zip(before.expect("values"));
        let sum = weigh(pairs.map(|(a, b)| f64::from(a) - f64::from(b)));
        let wanted = wanted["sum"].as_f64().expect("a number");
        assert!((sum - wanted).abs() < 1e-3, "{case} {module}: {sum}, not {wanted}");
    }
}

#[test]
fn rslora_and_patterns_are_merged_as_peft_does_and_keep_their_scale_in_every_form() {
    let dir = tempfile::tempdir().expect("a folder");
    let golden = shared("golden/minimind2");
    for case in ["peft-rslora", "peft-patterns", "peft-both"] {
        let folder = fixture(case);
        let open = |path: &Path| Model::open_adapters(path, &golden, None).expect(case);
        merges_as_peft(&open(&folder), case);
        let out = dir.path().join(case);
        let args = ["export", text(&folder), "--base", text(&golden), "--name", "m"];
        let forms = ["--adapter", "peft", "--adapter", "gguf", "--out", text(&out)];
        mmx_ok(&[&args[..], &forms].concat());
        merges_as_peft(&open(&out.join("adapter-peft")), case);
        let written = open(&out.join("m-lora.gguf"));
        let merged = |model: &Model| -> Vec<Vec<f32>> {
            let values = |weight| model.weight_f32(weight).expect("values");
            weights(&model.config).iter().map(values).collect()
        };
        // a scale of its own goes into B, rounded once: 1e-6 of values around 1
        let (ours, theirs) = (merged(&open(&folder)), merged(&written));
        let far = ours.iter().flatten().zip(theirs.iter().flatten()).map(|(a, b)| (a - b).abs());
        let far = far.fold(0f32, f32::max);
        assert!(far < 1e-6, "{case}: {far}");
    }
    // one scale for all is a plain adapter
    let rslora = Adapters::open(&fixture("peft-rslora")).expect("readable");
    rslora.check_uniform(Path::new("a")).expect("one rank and scale");
    let mixed = Adapters::open(&fixture("peft-patterns")).expect("readable");
    let error = mixed.check_uniform(Path::new("a")).expect_err("several").to_string();
    assert!(error.contains("expected rank 4 and scale 2"), "{error}");
}

/// 1e-4: sums of float32 in another order (logits are up to 4).
#[test]
fn llama_cpp_applies_a_gguf_adapter_of_several_ranks_and_scales_as_the_merged_model_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let golden = shared("golden/minimind2");
    let tokenizer = shared("golden");
    let export = |model: &Path, out: &Path, more: &[&str]| {
        let args = [
            "export",
            text(model),
            "--name",
            "m",
            "--tokenizer",
            text(&tokenizer),
            "--gguf",
            "f32",
        ];
        mmx_ok(&[&args[..], &["--out", text(out)], more].concat());
        out.join("m-131K-f32.gguf")
    };
    let mut base = LlamaModel::open(&export(&golden, dir.path(), &[])).expect("the base");
    let ids = [1, 20, 300, 41, 5, 67, 2, 401];
    let plain = base.logits(&ids, 1).expect("logits");
    for case in ["peft-rslora", "peft-patterns", "peft-both"] {
        let out = dir.path().join(case);
        let more = ["--base", text(&golden), "--adapter", "gguf"];
        let merged = LlamaModel::open(&export(&fixture(case), &out, &more)).expect("merged");
        let expected = merged.logits(&ids, 1).expect("logits");
        let found = base.logits_adapted(&out.join("m-lora.gguf"), &ids, 1).expect("logits");
        let far =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(far(&found, &expected) < 1e-4, "{case}: {}", far(&found, &expected));
        assert!(far(&plain, &expected) > 1e-2, "{case}: the adapters count");
    }
}

// ---- split GGUFs

/// GGUFs of the golden model, whole and in parts; the paths of the parts.
fn split(dir: &Path, ty: &str) -> (PathBuf, Vec<PathBuf>) {
    let size = if ty == "f32" { "100kB" } else { "20kB" };
    let export = |out: &Path, more: &[&str]| {
        let golden = shared("golden/minimind2");
        let args = ["export", text(&golden), "--name", "m", "--gguf", ty, "--out", text(out)];
        let tokenizer = shared("golden");
        let tokenizer = ["--tokenizer", text(&tokenizer)];
        let report = mmx_json(&[&args[..], &tokenizer, more].concat());
        let files = report["files"].as_array().expect("files").clone();
        let ggufs = files.iter().filter(|f| f["format"] == "gguf");
        ggufs.map(|f| PathBuf::from(f["path"].as_str().expect("a path"))).collect::<Vec<_>>()
    };
    let whole = export(&dir.join(format!("whole-{ty}")), &[]);
    let parts = export(&dir.join(format!("parts-{ty}")), &["--split-size", size]);
    assert_eq!(whole.len(), 1);
    assert!(parts.len() > 2, "{parts:?}");
    for (i, part) in parts.iter().enumerate() {
        let end = format!("-{ty}-{:05}-of-{:05}.gguf", i + 1, parts.len());
        assert!(text(part).ends_with(&end), "{part:?}");
    }
    (whole[0].clone(), parts)
}

#[test]
fn a_split_gguf_is_opened_from_any_part_by_every_command() {
    let dir = tempfile::tempdir().expect("a folder");
    let (whole, parts) = split(dir.path(), "f32");
    let shown = |path: &Path| mmx_json(&["inspect", text(path), "--tensors"]);
    let expected = shown(&whole);
    for part in &parts {
        let found = shown(part);
        for key in ["tensors", "parameters", "type", "architecture"] {
            assert_eq!(found[key], expected[key], "{key}");
        }
        assert_eq!(found["files"].as_array().map(Vec::len), Some(parts.len()));
        let bytes: u64 = parts.iter().map(|p| p.metadata().expect("a file").len()).sum();
        assert_eq!(found["bytes"], json!(bytes));
        assert_eq!(found["warnings"], json!([]));
    }
    // mmx's runner and llama.cpp itself, bit for bit as of the whole file
    let ids = dir.path().join("ids.json");
    fs_err::write(&ids, "[1, 20, 300, 41, 5, 67]").expect("a file");
    let logits = |model: &Path, engine: &str| {
        let out = dir.path().join("logits.safetensors");
        let args = ["logits", text(model), "--ids", text(&ids), "--engine", engine, "--out"];
        mmx_ok(&[&args[..], &[text(&out)]].concat());
        fs_err::read(out).expect("logits")
    };
    for engine in ["ggml", "llama.cpp"] {
        let expected = logits(&whole, engine);
        for part in [&parts[0], &parts[1], &parts[parts.len() - 1]] {
            assert!(logits(part, engine) == expected, "{engine}");
        }
    }
    let report = mmx_json(&["verify", text(&whole), text(&parts[1]), "--tokens", "32"]);
    assert_eq!(report["ok"], true, "{report}");
    let said = mmx_json(&["run", text(&parts[1]), "-p", "a", "-n", "4", "--greedy"]);
    assert_eq!(
        said["ids"],
        mmx_json(&["run", text(&whole), "-p", "a", "-n", "4", "--greedy"])["ids"]
    );
    // back to a folder
    for (from, to) in [(&whole, "a"), (&parts[2], "b")] {
        mmx_ok(&["import", text(from), "--out", text(&dir.path().join(to))]);
    }
    let read = |name: &str| fs_err::read(dir.path().join(name).join("model.safetensors"));
    assert!(read("a").expect("weights") == read("b").expect("weights"));
}

#[test]
fn quantizing_joins_and_splits_without_changing_a_byte() {
    let dir = tempfile::tempdir().expect("a folder");
    let (whole, parts) = split(dir.path(), "f32");
    let out = |name: &str| dir.path().join(name);
    // joined again: the very file
    mmx_ok(&["quantize", text(&parts[1]), text(&out("joined.gguf")), "f32"]);
    let read = |path: &Path| fs_err::read(path).expect("a file");
    let keys = |path: &Path| -> Vec<String> {
        let file = Gguf::open(path).expect("a GGUF");
        file.metadata().iter().map(|(key, value)| format!("{key} {value:?}")).collect()
    };
    mmx_ok(&["quantize", text(&whole), text(&out("same.gguf")), "f32"]);
    assert!(read(&out("joined.gguf")) == read(&out("same.gguf")));
    assert!(!keys(&out("joined.gguf")).iter().any(|key| key.starts_with("split.")));
    // from parts to parts of another type
    let quantize = |to: &str, size: &str| {
        let args = ["quantize", text(&parts[0]), to, "q8_0", "--split-size", size];
        mmx_json(&args)
    };
    let report = quantize(text(&out("q.gguf")), "50kB");
    let first = PathBuf::from(report["path"].as_str().expect("a path"));
    assert!(text(&first).contains("q-00001-of-0000"), "{first:?}");
    mmx_ok(&["quantize", text(&whole), text(&out("q-whole.gguf")), "q8_0"]);
    let (a, b) =
        (Gguf::open(&first).expect("a GGUF"), Gguf::open(out("q-whole.gguf")).expect("a GGUF"));
    assert_eq!(a.tensors().len(), b.tensors().len());
    for (x, y) in a.tensors().iter().zip(b.tensors()) {
        assert_eq!((&x.name, &x.shape, x.ty), (&y.name, &y.shape, y.ty));
        assert!(a.data(x) == b.data(y), "{}", x.name);
    }
    // the keys of the file are the first part's alone, and those of the split stand at their end
    let own = Gguf::open(&first).expect("a GGUF");
    let last: Vec<&str> = own.metadata().iter().map(|(key, _)| key).collect();
    assert_eq!(last[last.len() - 3..], ["split.no", "split.count", "split.tensors.count"]);
    // none of the files that are read may be written
    let before = read(&parts[2]);
    for to in [&parts[2], &parts[0]] {
        let error = mmx_error(&["quantize", text(&parts[1]), text(to), "q8_0"]);
        assert!(error.contains("input"), "{error}");
    }
    let own = parts[0].with_file_name("m-131K-f32.gguf");
    let args = ["quantize", text(&parts[1]), text(&own), "f32", "--split-size", "100kB"];
    assert!(mmx_error(&args).contains("one of the input's own files"));
    assert!(read(&parts[2]) == before);
    // what fits in one file is one file, under its own name
    quantize(text(&out("one.gguf")), "1GB");
    assert!(read(&out("one.gguf")) == read(&out("q-whole.gguf")));
}

#[test]
fn a_part_that_is_missing_renamed_or_of_another_model_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_, parts) = split(dir.path(), "f32");
    let bytes = fs_err::read(&parts[1]).expect("a file");
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    fs_err::remove_file(&parts[1]).expect("removed");
    for part in [&parts[0], &parts[2]] {
        for command in ["inspect", "run"] {
            let prompt: &[&str] = if command == "run" { &["-p", "a"] } else { &[] };
            let error = mmx_error(&[&[command, text(part)], prompt].concat());
            assert!(error.contains(&format!("found no {}", name(&parts[1]))), "{error}");
        }
    }
    // another part under its name
    fs_err::copy(&parts[2], &parts[1]).expect("a copy");
    let error = mmx_error(&["inspect", text(&parts[0])]);
    assert!(error.contains("key split.no: expected 1, found 2"), "{error}");
    assert!(error.contains(&name(&parts[1])), "{error}");
    // of a model with other numbers
    let (_, others) = split(dir.path(), "q8_0");
    fs_err::copy(&others[1], &parts[1]).expect("a copy");
    let error = mmx_error(&["inspect", text(&parts[0])]);
    assert!(error.contains("key split.count: expected"), "{error}");
    // under a name of its own
    fs_err::write(&parts[1], bytes).expect("a file");
    let renamed = parts[0].with_file_name("renamed.gguf");
    fs_err::copy(&parts[0], &renamed).expect("a copy");
    let error = mmx_error(&["inspect", text(&renamed)]);
    assert!(error.contains(&format!("ends in -00001-of-{:05}.gguf", parts.len())), "{error}");
    assert!(Gguf::open(&parts[0]).is_ok());
}

#[test]
fn a_split_with_more_parts_than_can_be_written_and_one_for_ollama_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let specs: Vec<gguf::TensorSpec> = (0..600)
        .map(|i| gguf::TensorSpec {
            name: format!("t{i}"),
            shape: vec![8],
            ty: gguf::GgmlType::F32,
        })
        .collect();
    let path = dir.path().join("a.gguf");
    let error =
        gguf::write_split(&path, &Metadata::new(), &specs, Some(1), |_| Ok(vec![0; 32].into()))
            .expect_err("too many");
    assert!(error.to_string().contains("up to 512 parts, found 600"), "{error}");
    assert_eq!(fs_err::read_dir(dir.path()).expect("a folder").count(), 0);
    // a part whose tensors fail leaves none of them
    let fails = |i| match i {
        2 => Err(mmx_converters::Error::format("a", "the source failed")),
        _ => Ok(vec![0; 32].into()),
    };
    gguf::write_split(&path, &Metadata::new(), &specs[..4], Some(32), fails).expect_err("failed");
    assert_eq!(fs_err::read_dir(dir.path()).expect("a folder").count(), 0);
    let golden = shared("golden/minimind2");
    let args = ["export", text(&golden), "--gguf", "f32", "--split-size", "1MB", "--ollama"];
    assert_eq!(mmx(&args).status.code(), Some(2));
}

// ---- NaN and infinity

#[test]
fn a_weight_that_is_not_finite_is_refused_with_tensor_and_index_in_every_form() {
    let dir = tempfile::tempdir().expect("a folder");
    let norm = "model.layers.1.post_attention_layernorm.weight";
    for (bad, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        // a matrix and a norm, which every GGUF holds as float32
        for (tensor, at, place) in
            [("model.layers.1.mlp.up_proj.weight", 64 * 3 + 5, "[3, 5]"), (norm, 17, "[17]")]
        {
            let folder = golden_with(dir.path(), |name, values| {
                if name == tensor {
                    values[at] = bad;
                }
            });
            let out = dir.path().join("out");
            let targets = [
                ["--hf", "f32"],
                ["--hf", "f16"],
                ["--hf", "bf16"],
                ["--gguf", "f32"],
                ["--gguf", "f16"],
                ["--gguf", "bf16"],
                ["--gguf", "q8_0"],
                ["--gguf", "q4_k_m"],
                ["--pth", "--strict"],
            ];
            for target in targets {
                let args = ["export", text(&folder), "--out", text(&out)];
                let error = mmx_error(&[&args[..], &target].concat());
                for part in [tensor, place] {
                    assert!(error.contains(part), "{target:?}: expected {part} in: {error}");
                }
                let block = target[1].starts_with('q') && tensor != norm;
                assert!(
                    block || error.contains(&format!("found {word} at")),
                    "{target:?}: {error}"
                );
                let left = fs_err::read_dir(&out).map_or(0, Iterator::count);
                assert_eq!(left, 0, "{target:?} left something");
            }
            let error = mmx_error(&["import", text(&folder), "--out", text(&out)]);
            assert!(error.contains(tensor) && error.contains(place), "{error}");
        }
    }
}

#[test]
fn whoever_must_takes_values_that_are_not_finite() {
    let dir = tempfile::tempdir().expect("a folder");
    let tensor = "model.layers.1.mlp.up_proj.weight";
    let folder = golden_with(dir.path(), |name, values| {
        if name == tensor {
            values[7] = f32::NAN;
        }
    });
    let out = dir.path().join("out");
    let args = ["export", text(&folder), "--name", "m", "--hf", "f16", "--gguf", "f32", "--pth"];
    mmx_ok(&[&args[..], &["--allow-non-finite", "--out", text(&out)]].concat());
    let file = SafeTensors::open(out.join("hf-f16/model.safetensors")).expect("weights");
    assert!(file.get(tensor).expect("a tensor").value(7).is_nan());
    // block types hold finite values only, whatever is allowed
    let args = ["export", text(&folder), "--gguf", "q8_0", "--allow-non-finite", "--out"];
    let error = mmx_error(&[&args[..], &[text(&out)]].concat());
    assert!(error.contains("Q8_0 holds finite values only"), "{error}");
    // GGUF to GGUF
    let gguf = fs_err::read_dir(&out)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.extension().is_some_and(|e| e == "gguf"))
        .expect("a GGUF");
    let small = dir.path().join("small.gguf");
    for ty in ["f32", "bf16"] {
        let error = mmx_error(&["quantize", text(&gguf), text(&small), ty]);
        let words = "tensor blk.1.ffn_up.weight: expected finite values, found NaN at [0, 7]";
        assert!(error.contains(words), "{error}");
        assert!(!small.exists());
        mmx_ok(&["quantize", text(&gguf), text(&small), ty, "--allow-non-finite"]);
        fs_err::remove_file(&small).expect("written");
    }
    let back = dir.path().join("back");
    mmx_ok(&["import", text(&gguf), "--allow-non-finite", "--out", text(&back)]);
}

#[test]
fn an_adapter_that_is_not_finite_is_refused_alone_and_merged() {
    let dir = tempfile::tempdir().expect("a folder");
    let golden = shared("golden/minimind2");
    let mut adapters = Adapters::open(&fixture("peft-rslora")).expect("readable");
    let module = "model.layers.1.self_attn.q_proj";
    adapters.modules.get_mut(module).expect("a module").b[8 * 3 + 2] = f32::NAN;
    adapters.write(dir.path()).expect("written");
    let out = dir.path().join("out");
    for target in [["--adapter", "peft"], ["--adapter", "gguf"], ["--hf", "f32"]] {
        let args = ["export", text(dir.path()), "--base", text(&golden), "--out", text(&out)];
        let error = mmx_error(&[&args[..], &target].concat());
        assert!(error.contains(&format!("tensor {module}.lora_B.weight")), "{error}");
        assert!(error.contains("found NaN at [3, 2]"), "{error}");
    }
    let args = ["import", text(dir.path()), "--base", text(&golden), "--out", text(&out)];
    assert!(mmx_error(&args).contains("lora_B.weight: expected finite values"));
}

#[test]
fn a_key_that_is_missing_says_what_is_expected() {
    let dir = tempfile::tempdir().expect("a folder");
    let (whole, _) = split(dir.path(), "f32");
    let file = Gguf::open(&whole).expect("a GGUF");
    for (key, expected) in [
        ("llama.block_count", "a whole number"),
        ("llama.embedding_length", "a whole number"),
        ("llama.attention.layer_norm_rms_epsilon", "a number"),
    ] {
        let mut keys = Metadata::new();
        for (name, value) in file.metadata().iter().filter(|(name, _)| *name != key) {
            keys.set(name, value.clone());
        }
        let specs: Vec<gguf::TensorSpec> = file
            .tensors()
            .iter()
            .map(|t| gguf::TensorSpec { name: t.name.clone(), shape: t.shape.clone(), ty: t.ty })
            .collect();
        let path = dir.path().join("less.gguf");
        gguf::write(&path, &keys, &specs, |i| Ok(file.data(&file.tensors()[i]).into()))
            .expect("written");
        let error = mmx_error(&["run", text(&path), "-p", "a"]);
        assert!(error.contains(&format!("key {key}: expected {expected}, found none")), "{error}");
    }
}
