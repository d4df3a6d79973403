//! The ladder's rung "batches to loss, gradient norm and final weights" of the stages after fine-tuning:
//! the reference's trajectories, float32 on CPU.

mod common;
mod trajectory;

use std::path::Path;

use common::{copy, mmx, mmx_error, mmx_json, mmx_ok, shared, text};
use mmx_converters::model::adapter::Adapters;
use mmx_converters::safetensors::SafeTensors;
use mmx_converters::tokenizer::Tokenizer;
use mmx_data::{Batch, Dataset, Recipe, SampleOptions};
use mmx_training::config::{DpoOptions, Logps, LoraOptions, TrainConfig};
use mmx_training::model::Model;
use mmx_training::stage::{self, Part, Setup};
use tch::{Device, Kind, Tensor};
use trajectory::{Recorded, assert_final, assert_trajectory, config, json, model, train};

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
    let names = |dir: &Path| -> Vec<String> {
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
    assert_eq!(mmx_json(&again)["total_steps"], steps);
    let read = |run: &Path| {
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

    let shown = mmx_json(&["inspect", text(&unbroken), "--tensors"]);
    assert_eq!(shown["format"], "peft");
    assert!(shown.to_string().contains("base_model.model.model.layers.1.self_attn.o_proj.lora_B"));

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

/// Case lora-merge-rounding: W + BA in float32 or more, rounded once to float16.
#[test]
fn lora_merge_rounding() {
    use half::f16;
    use sha2::{Digest, Sha256};

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

/// A stage made ready, then its golden trajectory: `name` is the trajectory's, `batches` the batches'.
fn assert_golden(
    folder: &str,
    recipe: Recipe,
    (stage_name, name, batches): (&str, &str, &str),
    kind: &str,
    change: &dyn Fn(&mut TrainConfig),
    frozen: Option<Model>,
) {
    let golden = json(&shared(&format!("{folder}/train/{name}-{kind}.json")));
    let mut stage = stage::by_name(stage_name).expect("a stage");
    let mut config = config(stage.as_ref(), recipe, &golden);
    change(&mut config);
    let mut model = model(&format!("{folder}/{kind}"));
    let tokenizer = Tokenizer::open(shared(folder)).expect("a tokenizer");
    let setup = Setup { frozen, tokenizer: Some(&tokenizer), ..Setup::new(&config) };
    stage.prepare(&mut model, setup).expect("made ready");
    let mut data = Recorded::open(&format!("{folder}/train/{batches}-batches.safetensors"));
    let what = format!("{folder}: {name}-{kind}");
    assert_trajectory(&what, &train(&model, stage.as_ref(), &config, &mut data), &golden);
    assert_final(&what, &model.to_host().expect("weights"), &golden);
}

#[test]
fn dpo_follows_both_references_with_the_mean_and_with_the_sum() {
    for (name, logps) in [("dpo-mean", Logps::Mean), ("dpo-sum", Logps::Sum)] {
        let change = |config: &mut TrainConfig| {
            let options = config.dpo.as_mut().expect("options");
            assert_eq!((options.beta, options.logps), (0.1, Logps::Mean), "the defaults of 2025");
            options.logps = logps;
        };
        let reference = Some(model("golden/minimind2"));
        let names = ("dpo", name, "dpo");
        assert_golden("golden", Recipe::R2025, names, "minimind2", &change, reference);
    }
    for kind in ["minimind3", "minimind3-moe"] {
        let reference = Some(model(&format!("golden-2026/{kind}")));
        let names = ("dpo", "dpo", "dpo");
        assert_golden("golden-2026", Recipe::R2026, names, kind, &|_| (), reference);
    }
}

/// A teacher's weights, in the configuration of another golden model.
fn teacher(weights: &str, kind: &str) -> Model {
    let open = mmx_converters::Model::open(shared(kind)).expect("a golden model");
    let file = SafeTensors::open(shared(weights)).expect("a teacher");
    let names: Vec<&str> = file.names().collect();
    let path = Path::new(weights);
    Model::load(&open.config, path, names, |name| file.get(name), Device::Cpu, Kind::Float)
        .expect("a teacher")
}

#[test]
fn distillation_follows_both_references_from_teachers_of_other_families() {
    let old_teacher =
        || teacher("golden/train/distill-teacher.safetensors", "golden/minimind2-moe");
    for (name, alpha, temperature) in
        [("distill-a0.0-t1.0", 0.0, 1.0), ("distill-a0.5-t1.5", 0.5, 1.5)]
    {
        let change = |config: &mut TrainConfig| {
            let options = config.distill.as_mut().expect("options");
            assert_eq!((options.alpha, options.temperature), (0.0, 1.0), "the defaults of 2025");
            (options.alpha, options.temperature) = (alpha, temperature);
        };
        let names = ("distill", name, "sft");
        let teacher = Some(old_teacher());
        assert_golden("golden", Recipe::R2025, names, "minimind2", &change, teacher);
    }
    let names = ("distill", "distill", "sft");
    let dense = teacher("golden-2026/train/distill-teacher.safetensors", "golden-2026/minimind3");
    assert_golden("golden-2026", Recipe::R2026, names, "minimind3-moe", &|_| (), Some(dense));
}

#[test]
fn reasoning_follows_the_reference() {
    let names = ("reason", "reason", "reason");
    assert_golden("golden", Recipe::R2025, names, "minimind2", &|_| (), None);
}

#[test]
fn a_larger_vocabulary_of_the_teacher_is_cut_and_a_smaller_one_refused() {
    let mut stage = stage::by_name("distill").expect("a stage");
    let config = TrainConfig::new(stage.as_ref(), Recipe::R2026);
    let (mut small, mut large) = (model("golden/minimind2"), model("golden-2026/minimind3"));
    assert!(small.config().vocab_size < large.config().vocab_size);
    let with = |teacher: &str| Setup { frozen: Some(model(teacher)), ..Setup::new(&config) };
    let said = stage.prepare(&mut large, with("golden/minimind2")).expect_err("too small");
    assert!(said.to_string().contains("expected at least 640, the student's, found 512"), "{said}");

    stage.prepare(&mut small, with("golden-2026/minimind3")).expect("cut");
    let data = Recorded::open("golden/train/sft-batches.safetensors");
    let batch = &data.batches[0];
    let loss = stage.loss(&small, batch).expect("a loss");
    // by libtorch, on all logits
    let ids = Tensor::from_slice(&batch.x).view([batch.batch as i64, batch.seq as i64]);
    let learned: Vec<i64> =
        (0..batch.mask.len() as i64).filter(|&i| batch.mask[i as usize] != 0.0).collect();
    let softened = |model: &Model| {
        let logits =
            model.logits(&ids).expect("logits").view([-1, model.config().vocab_size as i64]);
        let rows = logits.index_select(0, &Tensor::from_slice(&learned)).narrow(1, 0, 512);
        (rows / 1.5).log_softmax(-1, Kind::Float)
    };
    let (student, wanted) = (softened(&small), softened(&model("golden-2026/minimind3")));
    let sum: Tensor = (wanted.exp() * (&wanted - student)).sum(Kind::Double);
    let expected = sum.double_value(&[]) * 1.5 * 1.5 / learned.len() as f64;
    let found = loss.parts.iter().find_map(|(name, part)| match part {
        Part::Scalar(value) if *name == "kl" => Some(value.double_value(&[])),
        _ => None,
    });
    let found = found.expect("a part kl");
    assert!((found / expected - 1.0).abs() < 1e-5, "expected {expected}, found {found}");
}

/// Every target that is a tag weighs ten, learned or not; the divisor is the mask's sum.
#[test]
fn tags_outside_the_answers_weigh_too() {
    let tokenizer = Tokenizer::open(shared("golden")).expect("a tokenizer");
    let tag = i64::from(mmx_data::reason_tag_ids(&tokenizer).expect("ids")[0]);
    let mut stage = stage::by_name("reason").expect("a stage");
    let config = TrainConfig::new(stage.as_ref(), Recipe::R2025);
    let mut model = model("golden/minimind2");
    let setup = Setup { tokenizer: Some(&tokenizer), ..Setup::new(&config) };
    stage.prepare(&mut model, setup).expect("made ready");
    let batch = Batch {
        x: vec![5, 6, 7, 8],
        y: vec![tag, 301, tag, 302],
        mask: vec![0.0, 1.0, 1.0, 0.0],
        batch: 1,
        seq: 4,
        ..Batch::default()
    };
    let loss = stage.loss(&model, &batch).expect("a loss");
    let ids = Tensor::from_slice(&batch.x).view([1, 4]);
    let logps = model.logits(&ids).expect("logits").log_softmax(-1, Kind::Float);
    let of = |at: i64, id: i64| -logps.double_value(&[0, at, id]);
    let expected = (10.0 * of(0, tag) + of(1, 301) + 10.0 * of(2, tag)) / 2.0;
    let found = loss.total.expect("learned tokens").double_value(&[]);
    assert!((found / expected - 1.0).abs() < 1e-5, "expected {expected}, found {found}");
}

/// Case dpo-truncated: a pair without a token of an answer left is out, in both forms.
#[test]
fn a_truncated_pair_is_left_out_and_counted() {
    let expect = json(&shared("cases/files/dpo-truncated/expect.json"));
    let tokenizer = Tokenizer::open(shared("golden")).expect("a tokenizer");
    let file = shared("cases/files/dpo-truncated/data.jsonl");
    for (name, logps) in [("mean", Logps::Mean), ("sum", Logps::Sum)] {
        let mut stage = stage::by_name("dpo").expect("a stage");
        let mut config = TrainConfig::new(stage.as_ref(), Recipe::R2025);
        config.dpo = Some(DpoOptions { beta: 0.1, logps });
        let options = SampleOptions::new(Recipe::R2025, stage.kind(), 64);
        let data = Dataset::load(&[&file].map(Into::into), &tokenizer, &options).expect("data");
        let lines: Vec<usize> = data.nothing_to_learn.iter().map(|(_, line)| *line).collect();
        assert_eq!(serde_json::json!(lines), expect["left_out_lines"]);
        assert!(data.warnings.iter().any(|w| w.ends_with("line 1")), "{:?}", data.warnings);
        let batch = data.batch(&data.order(0, 0, false), true);
        let ones = |row: usize| {
            batch.mask[row * batch.seq..(row + 1) * batch.seq].iter().sum::<f32>() as u64
        };
        assert_eq!(batch.batch, 2, "one pair");
        assert_eq!(serde_json::json!(ones(0)), expect["mask_ones"]["chosen"]);
        assert_eq!(serde_json::json!(ones(1)), expect["mask_ones"]["rejected"]);

        let mut policy = model("golden/minimind2");
        let norm = policy.variables().last().expect("variables");
        assert_eq!(norm.name, "model.norm.weight");
        let mut norm = norm.tensor.shallow_clone();
        let _ = tch::no_grad(|| norm.multiply_scalar_(1.5));
        let frozen = Some(model("golden/minimind2"));
        stage.prepare(&mut policy, Setup { frozen, ..Setup::new(&config) }).expect("ready");
        let loss = stage.loss(&policy, &batch).expect("a loss").total.expect("learned tokens");
        let (found, expected) =
            (loss.double_value(&[]), expect["loss"][name].as_f64().expect("f64"));
        // six digits are given
        assert!((found - expected).abs() < 2e-6, "{name}: expected {expected}, found {found}");
    }
    // with only such pairs: an error
    let dir = tempfile::tempdir().expect("a folder");
    let only = dir.path().join("only.jsonl");
    let all = fs_err::read_to_string(&file).expect("a fixture");
    fs_err::write(&only, all.lines().next().expect("a line")).expect("a file");
    let options = SampleOptions::new(Recipe::R2025, mmx_data::Kind::Preference, 64);
    let said = Dataset::load(&[only], &tokenizer, &options).expect_err("nothing to learn");
    assert!(said.to_string().contains("expected at least one sample to learn from"), "{said}");
}

/// Each stage through the binary, in processes of their own.
#[test]
fn resumed_runs_of_the_stages_end_as_unbroken_ones_with_the_model_they_do_not_change() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let teacher = shared("golden/minimind2-moe");
    let cases = [
        ("dpo", shared("golden/dpo.jsonl"), vec!["--logps", "sum"]),
        ("distill", shared("golden/sft.jsonl"), vec!["--teacher", text(&teacher)]),
        ("reason", shared("golden/reason.jsonl"), vec![]),
    ];
    for (stage, data, options) in cases {
        let args = |out: &str, more: &[&str]| {
            let mut args = vec!["train", stage, "--data", text(&data), "--out", out];
            args.extend(["--tokenizer", text(&tokenizer), "--recipe", "2025", "--epochs", "1"]);
            args.extend(["--batch-size", "4", "--lr", "1e-4", "--max-seq-len", "128"]);
            args.extend(["--device", "cpu", "--threads", "1", "--from", text(&model)]);
            args.extend(&options);
            args.extend(more);
            args.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let run = |args: &[String]| {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            mmx_json(&args)
        };
        let (whole, part) = (dir.path().join(stage), dir.path().join(format!("{stage}-part")));
        let end = run(&args(text(&whole), &["--save-every", "1", "--keep", "9"]));
        let steps = end["steps"].as_u64().expect("steps");
        assert!(steps >= 2, "{stage}: {steps} steps");
        copy(&whole.join("checkpoint-000001"), &part.join("checkpoint-000001"));
        assert_eq!(run(&args(text(&part), &["--resume"]))["total_steps"], steps, "{stage}");
        let read = |run: &Path| {
            let last = run.join(format!("checkpoint-{steps:06}"));
            fs_err::read(last.join("model.safetensors")).expect("weights")
        };
        assert!(read(&whole) == read(&part), "{stage}: the resumed run ends elsewhere");
    }
    // options of another stage are a mistake
    let out = dir.path().join("none");
    let sft = ["train", "sft", "--data", "x", "--out", text(&out), "--from", "y", "--beta", "1"];
    let said = mmx(&sft);
    assert_eq!(said.status.code(), Some(2));
    let said = String::from_utf8(said.stderr).expect("UTF-8");
    assert!(said.contains("--beta: expected with stage dpo only, found with sft"), "{said}");
}
