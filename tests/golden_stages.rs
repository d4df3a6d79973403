//! The ladder's rung "batches to loss, gradient norm and final weights" of the stages after fine-tuning:
//! the reference's trajectories, float32 on CPU.
#![cfg(feature = "train")]

mod common;
mod trajectory;

use common::{mmx_error, mmx_json, mmx_ok, shared, text};
use mmx::config::{LoraOptions, TrainConfig};
use mmx::data::Recipe;
use mmx::model::Model;
use mmx::stage::{self, Setup, Stage};
use mmx::train::{MicroStep, Trainer};
use mmx_converters::adapter::Adapters;
use serde_json::Value;
use trajectory::{Recorded, assert_final, assert_trajectory, json, model};

/// The golden run's configuration: what its JSON says, else the reference's defaults.
fn config(stage: &dyn Stage, recipe: Recipe, golden: &Value) -> TrainConfig {
    TrainConfig {
        lr: golden["optimizer"]["lr"].as_f64().expect("lr"),
        weight_decay: golden["optimizer"]["weight_decay"].as_f64().expect("weight decay"),
        accumulation: golden["accumulation_steps"].as_u64().expect("accumulation") as usize,
        grad_clip: golden["grad_clip"].as_f64().expect("clip"),
        epochs: 1,
        ..TrainConfig::new(stage, recipe)
    }
}

fn train(
    model: &Model,
    stage: &dyn Stage,
    config: &TrainConfig,
    data: &mut Recorded,
) -> Vec<MicroStep> {
    let mut trainer = Trainer::new(model, stage, config, data).expect("a run");
    let mut steps = Vec::new();
    while let Some(report) = trainer.advance().expect("a micro-step") {
        steps.extend(report.micro_steps);
    }
    steps
}

/// From the golden start: the trajectory, the final sums, and each final adapter's values.
fn assert_lora(folder: &str, recipe: Recipe, kind: &str) {
    let golden = json(&shared(&format!("{folder}/train/lora-{kind}.json")));
    let mut stage = stage::by_name("lora").expect("a stage");
    let config = config(stage.as_ref(), recipe, &golden);
    let start = shared(&format!("{folder}/train/lora-start.safetensors"));
    let adapters = Adapters::open(&start).expect("golden adapters");
    let options = LoraOptions::new(recipe);
    assert_eq!((adapters.rank, adapters.alpha), (options.rank, options.alpha), "the defaults");

    // new adapters go where the reference has them
    let mut other = model(&format!("{folder}/{kind}"));
    stage.prepare(&mut other, Setup::new(&config)).expect("new adapters");
    let own = other.lora().expect("attached").to_host().expect("adapters");
    let shapes = |of: &Adapters| -> Vec<(String, usize, usize)> {
        of.modules.iter().map(|(name, m)| (name.clone(), m.outputs, m.inputs)).collect()
    };
    assert_eq!(shapes(&own), shapes(&adapters), "{folder}");
    assert!(own.modules.values().all(|m| m.b.iter().all(|&b| b == 0.0)), "B begins at zero");

    let mut model = model(&format!("{folder}/{kind}"));
    let before = model.to_host().expect("weights");
    let setup = Setup { adapters: Some((start, adapters)), ..Setup::new(&config) };
    stage.prepare(&mut model, setup).expect("adapters that fit");
    // the 2025 stages share the batches of SFT
    let mut data = Recorded::open(&format!("{folder}/train/sft-batches.safetensors"));
    let what = format!("{folder}: lora-{kind}");
    assert_trajectory(&what, &train(&model, stage.as_ref(), &config, &mut data), &golden);
    let after = model.to_host().expect("weights");
    assert_final(&what, &after, &golden);
    assert!(after[..before.len()] == before, "{what}: a weight of the base has changed");

    let found = model.lora().expect("attached").to_host().expect("adapters");
    let expected = shared(&format!("{folder}/train/lora-final.safetensors"));
    let expected = Adapters::open(&expected).expect("golden adapters");
    for (name, expected) in &expected.modules {
        let found = &found.modules[name];
        for (half, found, expected) in [("A", &found.a, &expected.a), ("B", &found.b, &expected.b)]
        {
            let off = found.iter().zip(expected).map(|(x, y)| (x - y).abs());
            let (at, off) = off
                .enumerate()
                .fold((0, 0.0), |max, (i, off)| if off > max.1 { (i, off) } else { max });
            // Adam's first steps are lr times the gradient's sign: one part in ten of a step
            assert!(
                off <= 1e-4,
                "{what}: {name} {half}: largest difference {off:e} at {at}: expected {}, found {}",
                expected[at],
                found[at]
            );
        }
    }
}

#[test]
fn lora_follows_both_references_and_leaves_the_base_as_it_is() {
    assert_lora("golden", Recipe::R2025, "minimind2");
    assert_lora("golden-2026", Recipe::R2026, "minimind3");
}

#[test]
fn adapters_can_go_beside_every_linear_layer_and_names_are_checked() {
    for (kind, expected) in [("golden/minimind2", 2 * 7), ("golden/minimind3-moe", 2 * (4 + 3 * 4))]
    {
        let mut stage = stage::by_name("lora").expect("a stage");
        let mut config = TrainConfig::new(stage.as_ref(), Recipe::R2026);
        let options = |target: &str| LoraOptions { rank: 2, alpha: 4.0, target: target.into() };
        config.lora = Some(options("all"));
        let mut model = model(kind);
        stage.prepare(&mut model, Setup::new(&config)).expect("adapters");
        assert_eq!(stage.trainable(&model).len(), 2 * expected, "{kind}");
        config.lora = Some(options("q_proj,nothing"));
        let said = stage.prepare(&mut model, Setup::new(&config)).expect_err("no such layer");
        assert!(said.to_string().contains("found nothing"), "{said}");
    }
}

fn lora_args<'a>(base: &'a str, data: &'a str, tokenizer: &'a str, out: &'a str) -> Vec<&'a str> {
    let mut args = vec!["train", "lora", "--from", base, "--data", data, "--tokenizer", tokenizer];
    args.extend(["--recipe", "2025", "--batch-size", "4", "--epochs", "1", "--lr", "1e-2"]);
    args.extend(["--max-seq-len", "128", "--dtype", "f32", "--device", "cpu", "--out", out]);
    args
}

/// The whole way of adapters: trained, resumed bit for bit, opened as a model, exported merged.
#[test]
fn a_checkpoint_of_adapters_is_small_resumes_exactly_and_opens_merged() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (base, data, tokenizer) =
        (shared("golden/minimind2"), shared("golden/sft.jsonl"), shared("golden"));
    let (unbroken, resumed) = (at("unbroken"), at("resumed"));
    let args = |out| lora_args(text(&base), text(&data), text(&tokenizer), out);

    let mut whole = args(text(&unbroken));
    whole.extend(["--save-every", "1", "--keep", "9"]);
    let end = mmx_json(&whole);
    let steps = end["steps"].as_u64().expect("steps");
    assert!(steps >= 2, "{steps} steps");
    let last = format!("checkpoint-{steps:06}");
    let names = |dir: &std::path::Path| -> Vec<String> {
        let entries = fs_err::read_dir(dir).expect("a folder");
        let mut names: Vec<String> = entries
            .map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    };
    let files = names(&unbroken.join(&last));
    assert!(files.contains(&"adapter_config.json".to_owned()), "{files:?}");
    assert!(!files.iter().any(|name| name == "model.safetensors"), "{files:?}");

    fs_err::create_dir(&resumed).expect("a folder");
    copy(&unbroken.join("checkpoint-000001"), &resumed.join("checkpoint-000001"));
    let mut again = args(text(&resumed));
    again.push("--resume");
    assert_eq!(mmx_json(&again)["steps"], steps);
    let read = |run: &std::path::Path| {
        fs_err::read(run.join(&last).join("adapter_model.safetensors")).expect("a file")
    };
    assert!(read(&unbroken) == read(&resumed), "the resumed run ends elsewhere");
    // another base is another run
    let other = shared("golden/minimind3");
    let mut elsewhere = args(text(&resumed));
    elsewhere[3] = text(&other);
    elsewhere.push("--resume");
    let said = mmx_error(&elsewhere);
    assert!(said.contains("--from: another content than before"), "{said}");

    // opened: the base with the adapters merged; exported: the same weights
    let export = at("export");
    mmx_ok(&["export", text(&unbroken), "--hf", "f32", "--out", text(&export)]);
    let folder = fs_err::read_dir(&export)
        .expect("a folder")
        .map(|e| e.expect("an entry").path())
        .find(|path| path.join("model.safetensors").exists())
        .unwrap_or_else(|| export.clone());
    let merged = mmx_converters::Model::open(unbroken.join(&last)).expect("adapters");
    let exported = mmx_converters::Model::open(&folder).expect("the export");
    let plain = mmx_converters::Model::open(&base).expect("the base");
    let mut changed = 0;
    for weight in merged.weights() {
        let values = |of: &mmx_converters::Model| of.weight_f32(weight).expect("values");
        assert!(values(&merged) == values(&exported), "{}", weight.name);
        changed += usize::from(values(&merged) != values(&plain));
    }
    assert_eq!(changed, 4, "q_proj and o_proj of two layers");
    let said = mmx_ok(&["verify", text(&unbroken), text(&folder), "--tokens", "32"]);
    assert!(!said.is_empty());
    // adapters of adapters are refused, not piled up
    let out = at("more");
    let mut more = args(text(&out));
    more[3] = text(&unbroken);
    let said = mmx_error(&more);
    assert!(said.contains("expected a whole model, found adapters"), "{said}");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs_err::create_dir_all(to).expect("a folder");
    for entry in fs_err::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target);
        } else {
            fs_err::copy(source, target).expect("a copy");
        }
    }
}

/// Case lora-merge-rounding: W + BA in float32 or more, rounded once to float16.
#[test]
fn merged_weights_are_rounded_once() {
    use half::f16;
    use sha2::{Digest, Sha256};
    use tch::{Device, Kind, Tensor};

    let dir = tempfile::tempdir().expect("a folder");
    let final_adapters = shared("golden/train/lora-final.safetensors");
    let mut adapters = Adapters::open(&final_adapters).expect("golden adapters");
    adapters.base = Some(shared("golden/minimind2").display().to_string());
    adapters.write(dir.path()).expect("written");
    let merged = mmx_converters::Model::open(dir.path()).expect("adapters");
    let base = mmx_converters::Model::open(shared("golden/minimind2")).expect("the base");

    let expect = json(&shared("cases/files/lora-merge-rounding/expect.json"));
    let expect = expect["tensors"].as_object().expect("tensors");
    let mut compared = 0;
    for weight in merged.weights() {
        let (values, plain) =
            (merged.weight_f32(weight).expect("values"), base.weight_f32(weight).expect("values"));
        let Some(expected) = expect.get(&weight.name) else {
            assert!(values == plain, "{}: no adapter, yet changed", weight.name);
            continue;
        };
        // digests are of the float16 values as float32
        let rounded: Vec<f32> = values.iter().map(|&v| f16::from_f32(v).to_f32()).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&rounded);
        let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(expected["sha256"], digest.as_str(), "{}", weight.name);
        compared += 1;
    }
    assert_eq!(compared, expect.len());

    // the same logits as with the adapters beside the weights
    let mut beside = model("golden/minimind2");
    let mut stage = stage::by_name("lora").expect("a stage");
    let config = TrainConfig::new(stage.as_ref(), Recipe::R2025);
    let setup = Setup { adapters: Some((final_adapters, adapters)), ..Setup::new(&config) };
    stage.prepare(&mut beside, setup).expect("adapters that fit");
    let merged = Model::from_model(&merged, Device::Cpu, Kind::Float).expect("a model");
    let ids = Tensor::from_slice(&(0..64i64).collect::<Vec<_>>()).view([2, 32]);
    let (a, b) = (beside.logits(&ids).expect("logits"), merged.logits(&ids).expect("logits"));
    let off = (a - b).abs().max().double_value(&[]);
    assert!(off < 1e-3, "merged and beside differ by {off:e}");
}
