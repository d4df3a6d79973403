//! Models across formats: checkpoint to Transformers folder to GGUF and back, bit for bit, and the
//! numbers of the golden models and cases.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mmx_converters::arch::{self, Config, Layout, presets};
use mmx_converters::gguf::{GgmlType, Gguf, Value};
use mmx_converters::model::fallback::Fallback;
use mmx_converters::model::folder::{self, Folder, Written};
use mmx_converters::model::generation::Generation;
use mmx_converters::model::to_gguf::ToGguf;
use mmx_converters::safetensors::{TensorSpec, write};
use mmx_converters::tensor::{Dtype, encode_f32};
use mmx_converters::{Error, Model, Result};
use sha2::{Digest, Sha256};

include!("../../tests/fixtures/models.rs");

fn shared(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(path)
}

fn case(path: &str) -> PathBuf {
    shared("cases/files").join(path)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

fn digest(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    values.iter().for_each(|v| hash.update(v.to_le_bytes()));
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn write_folder(model: &Model, dir: &Path, layout: Layout, dtype: Dtype) -> Result<Written> {
    let metadata = BTreeMap::new();
    let folder = Folder {
        config: &model.config,
        layout,
        dtype,
        generation: &model.generation,
        tokenizer: None,
        metadata: &metadata,
        strict: false,
        shard_bytes: None,
    };
    folder::write(dir, &folder, &mut |w| model.weight(w))
}

fn float_file_type(ty: GgmlType) -> u32 {
    match ty {
        GgmlType::F16 => 1,
        GgmlType::BF16 => 32,
        _ => 0,
    }
}

fn to_gguf(model: &Model, ty: GgmlType) -> Result<(Gguf, Vec<Fallback>)> {
    let spec = ToGguf {
        config: &model.config,
        name: "golden",
        license: Some("mit"),
        generation: &model.generation,
        file_type: float_file_type(ty),
        tokenizer: &[("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2))],
        recipe: &|_, _| (ty, None),
        quantize: &|_, _, _, _| Err(Error::unsupported("test", "no quantizer")),
        extra: &[],
        strict: false,
    };
    let name = Path::new("golden.gguf");
    let (bytes, fallbacks) = spec.to_bytes(name, &mut |w| model.weight(w))?;
    let (again, _) = spec.to_bytes(name, &mut |w| model.weight(w))?;
    assert_eq!(bytes, again, "the same model gives the same bytes");
    Ok((Gguf::from_bytes(bytes, name)?, fallbacks))
}

/// All weights as float32, and their digests by name.
fn digests(model: &Model) -> Vec<(String, String)> {
    let of = |w: &arch::Weight| (w.name.clone(), digest(&model.weight_f32(w).unwrap()));
    model.weights().iter().map(of).collect()
}

/// A copy of a folder's files that may be changed.
fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        // not `copy`: it would keep the read-only mode
        fs_err::write(to.join(entry.file_name()), fs_err::read(entry.path()).unwrap()).unwrap();
    }
}

#[test]
fn checkpoint_to_transformers_and_back_is_bit_for_bit() {
    for name in GOLDEN {
        let source = Model::open(shared(name)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (hf, own) = (dir.path().join("hf"), dir.path().join("own"));
        write_folder(&source, &hf, Layout::Transformers, Dtype::F32).unwrap();
        let there = Model::open(&hf).unwrap();
        assert_eq!(there.layout, Layout::Transformers, "{name}");
        assert_eq!(there.config, source.config, "{name}");
        assert_eq!(digests(&there), digests(&source), "{name}");
        write_folder(&there, &own, Layout::Reference, Dtype::F32).unwrap();
        let back = Model::open(&own).unwrap();
        assert_eq!(back.config, source.config, "{name}");
        assert_eq!(digests(&back), digests(&source), "{name}");

        let bytes = fs_err::read(hf.join("model.safetensors")).unwrap();
        let again = dir.path().join("again");
        write_folder(&source, &again, Layout::Transformers, Dtype::F32).unwrap();
        let again = fs_err::read(again.join("model.safetensors")).unwrap();
        assert!(bytes == again, "{name}: the same model gives the same bytes");
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 3, "no temporary folder is left");
    }
}

/// What others save of the same classes: Transformers 5 with experts fused, mlx-lm with them
/// stacked.
#[test]
fn experts_are_read_as_transformers_5_and_mlx_pack_them() {
    for name in GOLDEN {
        let source = Model::open(shared(name)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for layout in [Layout::Transformers5, Layout::Mlx] {
            let back = dir.path().join(format!("{layout:?}"));
            write_folder(&source, &back, Layout::Transformers, Dtype::F32).unwrap();
            let publics = arch::public_tensors(source.weights(), layout);
            let spec = |public: &arch::Public| TensorSpec {
                name: public.name.clone(),
                dtype: Dtype::F32,
                shape: public.shape.clone(),
            };
            let specs: Vec<TensorSpec> = publics.iter().map(spec).collect();
            let file = back.join("model.safetensors");
            fs_err::remove_file(&file).unwrap();
            write(&file, &specs, &BTreeMap::new(), |i| {
                arch::gather(&publics[i], source.weights(), layout, 4, |weight| {
                    Ok(encode_f32(&source.weight_f32(weight)?, Dtype::F32).into())
                })
            })
            .unwrap();
            assert_eq!(
                digests(&Model::open(&back).unwrap()),
                digests(&source),
                "{name} {layout:?}"
            );
        }
        let stacked = source.config.moe.is_some() && source.config.family.qk_norm();
        let publics = arch::public_tensors(source.weights(), Layout::Mlx);
        let found = publics.iter().any(|p| p.name.ends_with("mlp.switch_mlp.up_proj.weight"));
        assert_eq!(found, stacked, "{name}");
    }
}

#[test]
fn checkpoint_to_gguf_and_back_is_bit_for_bit() {
    for name in GOLDEN {
        let source = Model::open(shared(name)).unwrap();
        let (file, fallbacks) = to_gguf(&source, GgmlType::F32).unwrap();
        assert!(fallbacks.is_empty());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs_err::write(&path, file.bytes()).unwrap();
        let back = Model::open(&path).unwrap();
        assert_eq!(digests(&back), digests(&source), "{name}");
        assert_eq!(back.layout, Layout::Gguf);
        // the balancing loss is for training only, and GGUF has no key for it
        let mut expected = source.config.clone();
        if let (Some(moe), Some(found)) = (&mut expected.moe, &back.config.moe) {
            moe.aux_loss = found.aux_loss;
        }
        assert_eq!(back.config, expected, "{name}");
        assert_eq!(back.generation, Generation::default(), "{name}");
    }
}

#[test]
fn half_exports_of_half_models_are_bit_for_bit() {
    // float16 in, float16 out: no rounding anywhere
    let source = Model::open(case("cfg-head-dim")).unwrap();
    assert_eq!(source.dtype(), Dtype::F16);
    let (file, _) = to_gguf(&source, GgmlType::F16).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs_err::write(&path, file.bytes()).unwrap();
    assert_eq!(digests(&Model::open(&path).unwrap()), digests(&source));
    write_folder(&source, &dir.path().join("hf"), Layout::Transformers, Dtype::F16).unwrap();
    assert_eq!(digests(&Model::open(dir.path().join("hf")).unwrap()), digests(&source));
}

#[test]
fn gguf_tensors_have_the_digests_of_the_case() {
    let expected = json(&case("gguf-qk-permute/expect.json"));
    for (model, key) in
        [("golden/minimind2", "minimind2 (llama)"), ("golden/minimind3", "minimind3 (qwen3)")]
    {
        let model = Model::open(shared(model)).unwrap();
        let (file, _) = to_gguf(&model, GgmlType::F32).unwrap();
        let tensors = expected[key].as_object().unwrap();
        assert_eq!(tensors.len(), 4);
        for (name, wanted) in tensors {
            let data = file.data(file.tensor(name).unwrap());
            let values: Vec<f32> =
                data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert_eq!(digest(&values), wanted.as_str().unwrap(), "{key} {name}");
        }
    }
}

#[test]
fn tied_models_have_no_output_tensor_and_untied_ones_do() {
    for (name, count) in [("golden/minimind2", 20), ("golden/minimind3", 24)] {
        let model = Model::open(shared(name)).unwrap();
        let (file, _) = to_gguf(&model, GgmlType::F32).unwrap();
        assert_eq!(file.tensors().len(), count, "{name}");
        assert!(file.tensor("output.weight").is_none());
    }
    let dir = tempfile::tempdir().unwrap();
    let model = untied(dir.path());
    let (file, _) = to_gguf(&model, GgmlType::F32).unwrap();
    assert_eq!(file.tensors().len(), 21);
    let head = file.data(file.tensor("output.weight").unwrap());
    assert_eq!(&head[..4], 0.5f32.to_le_bytes());
    let hf = dir.path().join("hf");
    write_folder(&model, &hf, Layout::Transformers, Dtype::F32).unwrap();
    assert_eq!(digests(&Model::open(&hf).unwrap()), digests(&model));
}

/// golden/minimind2 with a head of its own, all 0.5.
fn untied(dir: &Path) -> Model {
    let tied = Model::open(shared("golden/minimind2")).unwrap();
    let mut config = tied.config.clone();
    config.tie_word_embeddings = false;
    let metadata = BTreeMap::new();
    let folder = Folder {
        config: &config,
        layout: Layout::Reference,
        dtype: Dtype::F32,
        generation: &tied.generation,
        tokenizer: None,
        metadata: &metadata,
        strict: true,
        shard_bytes: None,
    };
    let path = dir.join("untied");
    folder::write(&path, &folder, &mut |w| match w.role {
        arch::Role::Head => Ok((Dtype::F32, Cow::Owned(0.5f32.to_le_bytes().repeat(w.elements())))),
        _ => tied.weight(w),
    })
    .unwrap();
    Model::open(path).unwrap()
}

#[test]
fn a_tied_config_with_another_head_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    untied(dir.path());
    let path = dir.path().join("untied/config.json");
    let mut config = json(&path);
    config["tie_word_embeddings"] = true.into();
    fs_err::write(&path, config.to_string()).unwrap();
    let text = Model::open(dir.path().join("untied")).unwrap_err().to_string();
    assert!(text.contains("tie_word_embeddings") && text.contains("lm_head.weight"), "{text}");
}

#[test]
fn gguf_keys_are_those_of_the_cases() {
    let model = Model::open(case("cfg-head-dim")).unwrap();
    let (file, _) = to_gguf(&model, GgmlType::F32).unwrap();
    let expected = json(&case("cfg-head-dim/expect.json"));
    for (key, value) in expected["gguf"].as_object().unwrap() {
        assert_eq!(file.metadata().get(key).and_then(Value::as_u64), value.as_u64(), "{key}");
    }
    let dir = tempfile::tempdir().unwrap();
    write_folder(&model, &dir.path().join("hf"), Layout::Transformers, Dtype::F16).unwrap();
    assert_eq!(json(&dir.path().join("hf/config.json"))["head_dim"], 16);

    let model = Model::open(case("cfg-rope-theta-v5")).unwrap();
    assert_eq!(model.config.rope_theta, 1e6);
    let (file, _) = to_gguf(&model, GgmlType::F32).unwrap();
    assert_eq!(file.metadata().get("llama.rope.freq_base"), Some(&Value::F32(1e6)));
    write_folder(&model, &dir.path().join("v5"), Layout::Transformers, Dtype::F16).unwrap();
    let config = json(&dir.path().join("v5/config.json"));
    assert_eq!(config["rope_theta"], 1e6);
    assert_eq!(config["rope_parameters"]["rope_theta"], 1e6);
    assert_eq!(config["dtype"], "float16");

    let model = Model::open(case("yarn-kept")).unwrap();
    let (file, _) = to_gguf(&model, GgmlType::F32).unwrap();
    let get = |key: &str| file.metadata().get(&format!("qwen3.rope.scaling.{key}")).cloned();
    assert_eq!(get("type"), Some(Value::String("yarn".into())));
    assert_eq!(get("factor"), Some(Value::F32(16.0)));
    assert_eq!(get("original_context_length"), Some(Value::U32(2048)));
    let Some(Value::F32(factor)) = get("attn_factor") else { panic!("no attn_factor") };
    assert!((factor - 0.782_926_6).abs() < 1e-6, "attn_factor {factor}");
    write_folder(&model, &dir.path().join("yarn"), Layout::Transformers, Dtype::F16).unwrap();
    let config = json(&dir.path().join("yarn/config.json"));
    assert_eq!(config["rope_scaling"]["attention_factor"], 1.0);
}

#[test]
fn general_keys_say_what_the_file_is() {
    let model = Model::open(shared("golden/minimind2-moe")).unwrap();
    let (file, _) = to_gguf(&model, GgmlType::F16).unwrap();
    let get = |key: &str| file.metadata().get(key).cloned();
    let text = |s: &str| Some(Value::String(s.into()));
    assert_eq!(get("general.architecture"), text("granitemoe"));
    assert_eq!(get("general.type"), text("model"));
    assert_eq!(get("general.name"), text("golden"));
    assert_eq!(get("general.license"), text("mit"));
    assert_eq!(get("general.file_type"), Some(Value::U32(1)));
    assert_eq!(get("general.quantization_version"), None, "nothing is quantized");
    assert_eq!(get("general.sampling.temp"), Some(Value::F32(0.85)));
    assert_eq!(get("tokenizer.ggml.eos_token_id"), Some(Value::U32(2)));
    // norms and the router are float32 whatever the file type
    for tensor in file.tensors() {
        let kept = tensor.shape.len() == 1 || tensor.name.contains("ffn_gate_inp");
        let expected = if kept { GgmlType::F32 } else { GgmlType::F16 };
        assert_eq!(tensor.ty, expected, "{}", tensor.name);
    }
    let label = |preset: &str| {
        let config = presets::preset(preset).unwrap();
        mmx_converters::model::to_gguf::size_label(&config, &arch::weights(&config))
    };
    assert_eq!(label("minimind2-small"), "26M");
    assert_eq!(label("minimind3"), "64M");
    assert_eq!(label("minimind3-moe"), "4x64M");
    assert_eq!(label("tiny"), "508K");
}

#[test]
fn every_preset_survives_config_json_and_gguf_keys() {
    for name in presets::NAMES {
        let config = presets::preset(name).unwrap();
        let path = Path::new("config.json");
        let there = config.to_transformers_json(Dtype::Bf16).unwrap();
        assert_eq!(Config::from_json(&there, path).unwrap(), (config.clone(), vec![]), "{name}");
        let there = config.to_minimind_json(Dtype::Bf16);
        assert_eq!(Config::from_json(&there, path).unwrap(), (config.clone(), vec![]), "{name}");
        let mut metadata = mmx_converters::gguf::Metadata::new();
        metadata.set("general.architecture", Value::String(config.family.gguf_arch().into()));
        for (key, value) in config.to_gguf_keys().unwrap() {
            metadata.set(key, value);
        }
        let back = Config::from_gguf_keys(&metadata, path, config.tie_word_embeddings).unwrap();
        assert_eq!(back, config, "{name}");
    }
}

#[test]
fn values_beyond_f16_are_kept_as_f32_and_named() {
    let model = Model::open(case("f16-range")).unwrap();
    assert_eq!(model.dtype(), Dtype::Bf16);
    let dir = tempfile::tempdir().unwrap();
    let hf = dir.path().join("hf");
    let written = write_folder(&model, &hf, Layout::Transformers, Dtype::F16).unwrap();
    let reasons: Vec<String> = written.fallbacks.iter().map(ToString::to_string).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(reasons.iter().any(|r| r.contains("down_proj.weight[3, 5] is 131072")), "{reasons:?}");
    // -80000, as near as bf16 has it
    assert!(reasons.iter().any(|r| r.contains("q_proj.weight[0, 0] is -79872")), "{reasons:?}");
    // a reader converts all weights to the type of config.json: it must hold them
    assert_eq!(json(&hf.join("config.json"))["torch_dtype"], "float32");
    let back = Model::open(&hf).unwrap();
    for weight in back.weights() {
        let values = back.weight_f32(weight).unwrap();
        assert!(values.iter().all(|v| v.is_finite()), "{}", weight.name);
    }

    let (file, fallbacks) = to_gguf(&model, GgmlType::F16).unwrap();
    assert_eq!(fallbacks.len(), 2);
    assert_eq!(file.tensor("blk.0.ffn_down.weight").unwrap().ty, GgmlType::F32);
    assert_eq!(file.tensor("blk.0.ffn_up.weight").unwrap().ty, GgmlType::F16);
    for ty in [GgmlType::F32, GgmlType::BF16] {
        assert!(to_gguf(&model, ty).unwrap().1.is_empty(), "{ty:?} holds every value");
    }

    // strict: an error, and nothing written
    let folder = Folder {
        config: &model.config,
        layout: Layout::Transformers,
        dtype: Dtype::F16,
        generation: &model.generation,
        tokenizer: None,
        metadata: &BTreeMap::new(),
        strict: true,
        shard_bytes: None,
    };
    let strict = dir.path().join("strict");
    let error = folder::write(&strict, &folder, &mut |w| model.weight(w)).unwrap_err().to_string();
    assert!(error.contains("1 more tensors") && error.contains("F32 instead of F16"), "{error}");
    assert!(!strict.exists());
}

#[test]
fn what_the_architecture_cannot_carry_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("moe");
    copy(&shared("golden/minimind2-moe"), &from);
    for (key, value, reason) in [
        ("norm_topk_prob", serde_json::json!(false), "norm_topk_prob"),
        ("num_experts_per_tok", 1.into(), "one expert per token"),
    ] {
        let mut config = json(&shared("golden/minimind2-moe/config.json"));
        config[key] = value;
        fs_err::write(from.join("config.json"), config.to_string()).unwrap();
        let model = Model::open(&from).unwrap();
        let hf = dir.path().join("hf");
        let error = write_folder(&model, &hf, Layout::Transformers, Dtype::F32).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        let error = to_gguf(&model, GgmlType::F32).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert!(!hf.exists());
        // a checkpoint can: in MiniMind's own form
        assert_eq!(folder::carrying_layout(&model.config), Layout::Reference);
        let own = dir.path().join(key);
        write_folder(&model, &own, Layout::Reference, Dtype::F32).unwrap();
        let back = Model::open(&own).unwrap();
        assert_eq!((back.config.clone(), digests(&back)), (model.config.clone(), digests(&model)));
    }
}

#[test]
fn stop_sets_of_all_sources_are_united_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    copy(&case("cfg-rope-theta-v5"), &from);
    copy(&case("eos-union"), &from);
    let model = Model::open(&from).unwrap();
    assert_eq!(model.config.eos_token_id, [2, 0]);
    let hf = dir.path().join("hf");
    write_folder(&model, &hf, Layout::Transformers, Dtype::F16).unwrap();
    for file in ["config.json", "generation_config.json"] {
        assert_eq!(json(&hf.join(file))["eos_token_id"], serde_json::json!([2, 0]), "{file}");
    }
    assert_eq!(Model::open(&hf).unwrap().config.eos_token_id, [2, 0]);
}

#[test]
fn every_fault_of_a_folder_is_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    copy(&shared("golden/minimind2"), &path);
    let with = |key: &str, value: serde_json::Value| {
        let mut config = json(&shared("golden/minimind2/config.json"));
        config[key] = value;
        fs_err::write(path.join("config.json"), config.to_string()).unwrap();
        Model::open(&path).unwrap_err()
    };
    let text = with("num_hidden_layers", 1.into()).to_string();
    assert!(text.contains("expected 1 layers") && text.contains("found 2"), "{text}");
    assert!(text.contains("too many is model.layers.1.input_layernorm.weight"), "{text}");
    let text = with("num_hidden_layers", 2_000_000_000.into()).to_string();
    assert!(text.contains("num_hidden_layers: expected at most 262144 tensors"), "{text}");
    let text = with("kind", "minimind3".into()).to_string();
    assert!(text.contains("4 missing") && text.contains("q_norm.weight"), "{text}");
    let text = with("intermediate_size", 128.into()).to_string();
    assert!(
        text.contains("mlp.gate_proj.weight: expected shape [128, 64], found [192, 64]"),
        "{text}"
    );
    // a model with q and k norms under a configuration without them
    copy(&shared("golden/minimind3"), &path);
    let text = with("intermediate_size", 256.into()).to_string();
    assert!(text.contains("4 unexpected") && text.contains("q_norm.weight"), "{text}");
}

#[test]
fn renamed_tensors_are_reported_with_the_nearest_names() {
    let source = Model::open(shared("golden/minimind2")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    copy(&shared("golden/minimind2"), &path);
    let specs: Vec<_> = source
        .weights()
        .iter()
        .map(|w| mmx_converters::safetensors::TensorSpec {
            name: w.name.replace("mlp.", "ffn."),
            dtype: Dtype::F32,
            shape: w.shape.clone(),
        })
        .collect();
    let weights = source.weights();
    mmx_converters::safetensors::write(
        &path.join("model.safetensors"),
        &specs,
        &BTreeMap::new(),
        |i| source.weight(&weights[i]).map(|(_, bytes)| bytes),
    )
    .unwrap();
    let error = Model::open(&path).unwrap_err();
    assert!(error.to_string().contains("6 missing"), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("nearest in the file: model.layers.0.ffn.gate_proj.weight"), "{hint}");
}

#[test]
fn rejects_what_is_no_model() {
    for (path, words) in [
        ("cases/files/st-index-missing-shard", "model-00002-of-00002.safetensors"),
        ("cases/files/st-lfs-pointer/model.safetensors", "Git LFS pointer"),
        ("cases/files/gguf-counts/tensors.gguf", "tensors.gguf"),
        ("cases/files/upload-pointer/folder", "Git LFS pointer"),
        ("golden/pretrain.jsonl", "expected a folder"),
        ("golden", "config.json"),
        ("golden/nothing-here", "nothing-here"),
    ] {
        let text = Model::open(shared(path)).unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn pth_files_open_as_models() {
    for (folder, file) in [
        ("pth-compile-prefix", "model.pth"),
        ("pth-strides", "model.pth"),
        ("pth-resume-file", "resume.pth"),
    ] {
        let model = Model::open(case(folder).join(file)).unwrap();
        let expected = json(&case(folder).join("expect.json"));
        let expected = expected["tensors"].as_object().unwrap();
        assert_eq!(model.weights().len(), expected.len(), "{folder}");
        for (name, digest) in digests(&model) {
            assert_eq!(digest, expected[&name]["sha256"].as_str().unwrap(), "{folder} {name}");
        }
        assert_eq!(model.dtype(), Dtype::F16);
    }
    let resume = Model::open(case("pth-resume-file/resume.pth")).unwrap();
    assert!(resume.warnings.iter().any(|w| w.contains("entry model")), "{:?}", resume.warnings);
}

#[test]
fn one_storage_under_two_names_is_written_once() {
    let model = Model::open(case("pth-tied-one-storage/model.pth")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let hf = dir.path().join("hf");
    write_folder(&model, &hf, Layout::Transformers, Dtype::F16).unwrap();
    let expected = json(&case("pth-tied-one-storage/expect.json"));
    let wanted: Vec<&str> =
        expected["tensors_written"].as_array().unwrap().iter().filter_map(|n| n.as_str()).collect();
    let file = mmx_converters::safetensors::SafeTensors::open_folder(&hf).unwrap();
    let mut names: Vec<&str> = file.names().collect();
    names.sort_unstable();
    assert_eq!(names, wanted);
    let config = json(&hf.join("config.json"));
    assert_eq!(config["tie_word_embeddings"], true);
    for (key, id) in [("eos_token_id", 2), ("bos_token_id", 1), ("pad_token_id", 0)] {
        assert_eq!(config[key], id, "{key}");
    }
    assert!(to_gguf(&model, GgmlType::F16).unwrap().0.tensor("output.weight").is_none());
}

#[test]
fn a_pth_with_another_number_of_layers_is_refused() {
    let file = case("pth-layer-count/model.pth");
    let config = Config::read(&case("pth-layer-count/config.json")).unwrap().0;
    assert_eq!(Model::open(&file).unwrap().config, config);
    let one = Config { num_hidden_layers: 1, ..config };
    let text = Model::open_with(&file, Some(one)).unwrap_err().to_string();
    for words in ["expected 1 layers", "found 2", "model.layers.1.input_layernorm.weight"] {
        assert!(text.contains(words), "{text}");
    }
    let text = Model::open_with(&file, presets::preset("minimind2-small")).unwrap_err().to_string();
    assert!(text.contains("expected 8 layers") && text.contains("found 2"), "{text}");
}

#[test]
fn rejects_a_hostile_pth_and_one_of_no_published_dimensions() {
    let error = Model::open(case("pth-hostile-global/model.pth")).unwrap_err();
    assert!(error.to_string().contains("posix.system"), "{error}");
    // 2 heads, 1 for keys: the half of a width of 16, which v1 divides into 16 heads of odd width
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("alone.pth");
    fs_err::write(&path, fs_err::read(case("pth-strides/model.pth")).unwrap()).unwrap();
    let error = Model::open(&path).unwrap_err();
    assert!(error.to_string().contains("head_dim"), "{error}");
}

#[test]
fn checkpoint_to_pth_and_back_is_bit_for_bit() {
    for name in GOLDEN {
        let source = Model::open(shared(name)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.pth");
        let write = || {
            let config = &source.config;
            mmx_converters::pth::write(&path, config, Dtype::F32, &mut |w| source.weight(w))
        };
        let size = write().unwrap();
        let bytes = fs_err::read(&path).unwrap();
        assert_eq!(size, bytes.len() as u64);
        write().unwrap();
        assert!(bytes == fs_err::read(&path).unwrap(), "{name}: the same weights, the same bytes");
        let back = Model::open_with(&path, Some(source.config.clone())).unwrap();
        assert_eq!(digests(&back), digests(&source), "{name}");
        // strict loading in the reference wants the tied head's name too
        let file = back.pth().unwrap();
        assert!(file.tensor("lm_head.weight").is_some());
    }
}
