//! Interrupted and resumed runs end as the unbroken one, bit for bit; damaged checkpoints are noticed.
//!
//! `scripts/kill-test` kills each stage more often than a test should take: MMX_KILLS times.

mod common;
mod interrupted;
mod trajectory;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use common::{copy, mmx, mmx_error, mmx_json, shared, text};
use interrupted::{End, STAGES, command, keeping, kill_and_resume, said, start};
use mmx_converters::error::{Error, Result};
use mmx_converters::model::generation::Generation;
use mmx_data::{Batch, Recipe, StageInfo};
use mmx_training::checkpoint::{self, Context};
use mmx_training::config::{Decline, OptimizerName, TrainConfig};
use mmx_training::error::TorchError;
use mmx_training::model::{HostTensor, Model};
use mmx_training::session::{self, Session};
use mmx_training::stage::{self, Defaults, Loss, Pretrain, Stage};
use mmx_training::trainer::{MicroStep, Trainer};
use tch::{Device, Kind};
use trajectory::{Recorded, assert_final, json, model};

/// Golden pretraining through the binary: 8 micro-steps, accumulation 2.
fn pretrain<'a>(data: &'a str, golden: &'a str, tokenizer: &'a str, out: &'a str) -> Vec<&'a str> {
    vec![
        "train",
        "pretrain",
        "--from",
        golden,
        "--tokenizer",
        tokenizer,
        "--data",
        data,
        "--recipe",
        "2025",
        "--pack",
        "off",
        "--shuffle",
        "off",
        "--batch-size",
        "4",
        "--accum",
        "2",
        "--epochs",
        "1",
        "--lr",
        "5e-4",
        "--max-seq-len",
        "128",
        "--dtype",
        "f32",
        "--device",
        "cpu",
        "--out",
        out,
    ]
}

/// Case resume-exact, in processes of their own.
#[test]
fn a_resumed_run_equals_the_golden_one_and_the_unbroken_one_bit_for_bit() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (data, golden, tokenizer) =
        (shared("golden/pretrain.jsonl"), shared("golden/minimind2"), shared("golden"));
    let args = |out| pretrain(text(&data), text(&golden), text(&tokenizer), out);

    let (unbroken, trace) = (at("unbroken"), at("unbroken.json"));
    let mut whole = args(text(&unbroken));
    whole.extend(["--save-every", "1", "--keep", "9", "--trace", text(&trace)]);
    let end = mmx_json(&whole);
    assert_eq!(end["steps"], 4);
    let reference = json(&shared("golden/train/pretrain-minimind2.json"));
    let traced = json(&trace);
    assert_eq!(traced["steps"].as_array().map(Vec::len), Some(8));

    // only what was there after 4 micro-steps
    let resumed = at("resumed");
    fs_err::create_dir(&resumed).expect("a folder");
    copy(&unbroken.join("checkpoint-000002"), &resumed.join("checkpoint-000002"));
    fs_err::copy(unbroken.join("metrics.jsonl"), resumed.join("metrics.jsonl")).expect("a copy");
    let rest = at("rest.json");
    let mut again = args(text(&resumed));
    again.extend(["--resume", "--trace", text(&rest)]);
    let end = mmx_json(&again);
    assert_eq!(end["steps"], 2, "those of this call");
    assert_eq!(end["total_steps"], 4);
    let rest = json(&rest);
    for (i, step) in rest["steps"].as_array().expect("steps").iter().enumerate() {
        assert_eq!(*step, traced["steps"][4 + i], "micro-step {}", 4 + i);
        let (found, expected) = (&step["loss"], &reference["steps"][4 + i]["loss"]);
        let (found, expected) = (found.as_f64().expect("f64"), expected.as_f64().expect("f64"));
        assert!((found / expected - 1.0).abs() <= 1e-5, "{found} {expected}");
    }
    for file in ["model.safetensors", "training/optimizer.safetensors"] {
        let read = |run: &Path| fs_err::read(run.join("checkpoint-000004").join(file));
        let same = read(&unbroken).expect("a file") == read(&resumed).expect("a file");
        assert!(same, "{file} differs from the unbroken run's");
    }
    let lines = fs_err::read_to_string(resumed.join("metrics.jsonl")).expect("metrics");
    let steps: Vec<u64> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .map(|line| line["step"].as_u64().expect("a step"))
        .collect();
    assert_eq!(steps, [1, 2, 3, 4], "each optimizer step once");

    // other settings or other data are no continuation
    let mut other = args(text(&resumed));
    other.extend(["--resume", "--seed", "7"]);
    let said = mmx_error(&other);
    assert!(said.contains("seed: was 1337, now 7"), "{said}");
    let other_data = at("other.jsonl");
    fs_err::write(&other_data, "{\"text\": \"another text\"}\n").expect("a file");
    let mut other = pretrain(text(&other_data), text(&golden), text(&tokenizer), text(&resumed));
    other.push("--resume");
    let said = mmx_error(&other);
    assert!(said.contains("other.jsonl: another content than before"), "{said}");
    let said = mmx_error(&args(text(&resumed)));
    assert!(said.contains("a checkpoint of an earlier run is here already"), "{said}");

    // a flipped bit in the newest checkpoint: the one before it is used, and said so
    let damaged = at("damaged");
    for name in ["checkpoint-000002", "checkpoint-000003"] {
        copy(&unbroken.join(name), &damaged.join(name));
    }
    let weights = damaged.join("checkpoint-000003/model.safetensors");
    let mut bytes = fs_err::read(&weights).expect("weights");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs_err::write(&weights, bytes).expect("weights");
    let mut again = args(text(&damaged));
    again.push("--resume");
    let out = mmx(&again);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{stderr}");
    assert!(stderr.contains("checkpoint-000003/model.safetensors: expected SHA-256"), "{stderr}");
    assert!(stderr.contains("resumed after step 2 (micro-step 4"), "{stderr}");
    let read = |run: &Path| fs_err::read(run.join("checkpoint-000004/model.safetensors"));
    assert!(read(&unbroken).expect("a file") == read(&damaged).expect("a file"));

    // a file that is missing is damage; another version's state is not, and nothing older is used then
    for name in ["checkpoint-000002", "checkpoint-000003"] {
        copy(&unbroken.join(name), &at("missing").join(name));
    }
    let newest = at("missing").join("checkpoint-000003/training");
    let state = fs_err::read_to_string(newest.join("state.json")).expect("a state");
    fs_err::remove_file(newest.join("optimizer.safetensors")).expect("removed");
    let (found, warnings) = checkpoint::newest(&at("missing")).expect("readable");
    assert_eq!(found.expect("the one before").0, at("missing").join("checkpoint-000002"));
    assert!(warnings[0].contains("optimizer.safetensors: expected a file"), "{warnings:?}");
    fs_err::write(newest.join("state.json"), &state[..state.len() / 2]).expect("cut");
    let (_, warnings) = checkpoint::newest(&at("missing")).expect("readable");
    assert!(warnings[0].contains("state.json: expected a training state"), "{warnings:?}");
    let other = state.replace("\"format\": 1", "\"format\": 99");
    fs_err::write(newest.join("state.json"), other).expect("a state");
    let error = checkpoint::newest(&at("missing")).expect_err("another version").to_string();
    assert!(error.contains("key format: expected 1, found 99"), "{error}");
}

/// SIGKILL at any moment, also within the writing of a checkpoint, of an accumulation and of an epoch.
#[test]
fn a_killed_run_of_each_stage_ends_bit_for_bit_as_the_unbroken_one() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let kills = number("MMX_KILLS").unwrap_or(2);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number("MMX_KILL_SEED").unwrap_or(clock.expect("after 1970").as_secs());
    let processes = number("MMX_PROCESSES").unwrap_or(1) as usize;
    for stage in STAGES {
        let counts = kill_and_resume(stage, kills as usize, seed, processes);
        eprintln!("{stage}: {counts:?}, seed {seed}");
        assert!(counts.ends > 0 && counts.within_a_write > 0, "{stage}, seed {seed}: {counts:?}");
    }
}

/// SIGKILL of one process of two: the other ends, and both go on from the last checkpoint.
#[test]
fn a_run_whose_process_is_killed_ends_bit_for_bit_as_the_unbroken_one() {
    // how many kills fall within a write is a matter of luck here: a rank is found and killed by a program
    let counts = kill_and_resume("sft", 3, 7, 2);
    assert!(counts.ends > 0, "{counts:?}");
}

/// Ctrl-C and SIGTERM: a checkpoint, one sentence, exit code 1, and the run goes on from there exactly.
#[test]
fn a_stopped_run_saves_and_goes_on_exactly() {
    let dir = tempfile::tempdir().expect("a folder");
    // with several processes the one that started them is signalled
    for (signal, processes) in [("-INT", "1"), ("-TERM", "1"), ("-TERM", "2")] {
        let command = |out: &Path| {
            let mut command = command("sft", out);
            command.args(["--processes", processes]);
            command
        };
        let unbroken = dir.path().join(format!("unbroken-{processes}"));
        interrupted::finish(command(&unbroken));
        let expected = End::of(&unbroken);
        let out = dir.path().join(format!("{signal}-{processes}"));
        let mut child = start(command(&out));
        let lines = || fs_err::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        let begun = Instant::now();
        while lines().lines().count() < 3 {
            assert!(begun.elapsed() < Duration::from_secs(120), "three steps in two minutes");
            assert!(child.try_wait().expect("a child").is_none(), "{}", said(child));
            std::thread::sleep(Duration::from_millis(1));
        }
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(sent.expect("kill").success());
        let status = child.wait().expect("its end");
        let stderr = said(child);
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("error: interrupted after step"), "{stderr}");
        assert!(stderr.contains("hint: the same command with --resume"), "{stderr}");
        let newest = mmx_converters::model::run_folder::checkpoints(&out)
            .expect("a folder")
            .pop()
            .expect("a checkpoint");
        checkpoint::check(&newest).expect("whole");
        interrupted::finish(command(&out));
        End::of(&out).assert_same(&expected, &format!("{signal}, {processes} processes"));
    }
}

/// A disk that fills up while a checkpoint is written: an error that says so, the one before stays and resumes.
#[test]
fn a_full_disk_leaves_the_last_good_checkpoint() {
    let dir = tempfile::tempdir().expect("a folder");
    let unbroken = dir.path().join("unbroken");
    interrupted::finish(keeping("sft", &unbroken, "99"));
    let expected = End::of(&unbroken);
    let goes_on = |out: &Path, stderr: &str, reason: &str| {
        let error = stderr.lines().find(|line| line.starts_with("error:")).unwrap_or_default();
        assert!(error.contains(reason) && error.contains(".safetensors"), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        let left = fs_err::read_dir(out).expect("a folder").flatten();
        let left: Vec<_> = left.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        assert!(!left.iter().any(|name| name.ends_with(".part")), "{left:?}");
        let newest = mmx_converters::model::run_folder::checkpoints(out)
            .expect("a folder")
            .pop()
            .expect("a checkpoint");
        checkpoint::check(&newest).expect("whole");
        interrupted::finish(command("sft", out));
        End::of(out).assert_same(&expected, reason);
    };

    // files cannot grow beyond 800 KB: the weights (525 KB) fit, the moments do not
    let limited = dir.path().join("limited");
    copy(&unbroken.join("checkpoint-000003"), &limited.join("checkpoint-000003"));
    let log = fs_err::read_to_string(unbroken.join("metrics.jsonl")).expect("a log");
    fs_err::write(limited.join("metrics.jsonl"), log).expect("a log");
    let script = "trap '' XFSZ; exec prlimit --fsize=800000 \"$@\"";
    let out = under(&["sh", "-c", script, "sh"], &command("sft", &limited));
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    goes_on(&limited, &stderr, "File too large");

    // a disk of 4 MB holds two checkpoints (1.7 MB each), not the third before the first is removed; a user may mount
    // one in a namespace of his own, or root can
    let ways = [&["unshare", "-Urm"][..], &["unshare", "-m"]];
    let mut refusals = Vec::new();
    for (number, way) in ways.iter().enumerate() {
        let at = |name: &str| dir.path().join(format!("{name}-{number}"));
        let (disk, kept, mounted) = (at("disk"), at("kept"), at("mounted"));
        fs_err::create_dir(&disk).expect("a folder");
        let script = format!(
            "mount -t tmpfs -o size=4m none '{disk}' && : >'{mounted}' || exit; \"$@\"; code=$?; cp -a '{disk}/run' '{kept}'; exit $code",
            disk = text(&disk),
            kept = text(&kept),
            mounted = text(&mounted),
        );
        let small = command("sft", &disk.join("run"));
        let out = under(&[way, &["sh", "-c", &script, "sh"][..]].concat(), &small);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        if mounted.exists() {
            assert_eq!(out.status.code(), Some(1), "{stderr}");
            goes_on(&kept, &stderr, "No space left on device");
            return;
        }
        refusals.push(stderr);
    }
    panic!("expected {ways:?} to let one of them mount a small disk, found {refusals:?}");
}

/// A command behind another one, `prlimit` say.
fn under(way: &[&str], command: &Command) -> std::process::Output {
    let mut all = Command::new(way[0]);
    all.args(&way[1..]).arg(command.get_program()).args(command.get_args());
    all.env("GOMP_SPINCOUNT", "1000").output().expect("it starts")
}

/// What befalls a micro-step.
#[derive(Clone, Copy, Debug)]
enum Fault {
    OutOfMemory,
    NotANumber,
}

/// Pretraining whose micro-step `at`, from 1, meets a fault.
struct Faulty {
    at: usize,
    done: Cell<usize>,
    fault: Fault,
}

impl Stage for Faulty {
    fn info(&self) -> &'static StageInfo {
        Pretrain.info()
    }

    fn defaults(&self, recipe: Recipe) -> Defaults {
        Pretrain.defaults(recipe)
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        let loss = Pretrain.loss(model, batch)?;
        self.done.set(self.done.get() + 1);
        match self.fault {
            _ if self.done.get() != self.at => Ok(loss),
            Fault::OutOfMemory => {
                let wanted = tch::Tensor::f_zeros([1 << 50], (Kind::Float, Device::Cpu));
                wanted.map(|_| loss).map_err(|e| Error::torch("forward pass", &e))
            }
            Fault::NotANumber => {
                Ok(Loss { total: loss.total.map(|total| total * f64::NAN), ..loss })
            }
        }
    }
}

/// libtorch out of memory, and a loss that is not a number: the last optimizer step is saved on the way out.
#[test]
fn a_run_that_cannot_go_on_saves_its_last_step() {
    let config = TrainConfig { accumulation: 3, ..TrainConfig::new(&Pretrain, Recipe::R2026) };
    let config = TrainConfig { epochs: 2, lr: 1e-3, ..config };
    let data = || Recorded::open("golden/train/pretrain-batches.safetensors");
    let whole = model("golden/minimind2");
    let mut batches = data();
    let mut trainer = Trainer::new(&whole, &Pretrain, &config, &mut batches).expect("a run");
    finish(&mut trainer);
    for (fault, word) in [(Fault::OutOfMemory, "memory"), (Fault::NotANumber, "NaN")] {
        let dir = tempfile::tempdir().expect("a folder");
        let first = model("golden/minimind2");
        let mut batches = data();
        let faulty = Faulty { at: 8, done: Cell::new(0), fault }; // of the third step's three
        let mut trainer = Trainer::new(&first, &faulty, &config, &mut batches).expect("a run");
        let context = Context {
            dir: dir.path(),
            tokenizer: None,
            generation: &Generation::default(),
            sources: &[],
            keep: 1,
            listener: &mmx_converters::progress::Silent,
        };
        let mut session =
            Session { claim: None, context, save_every: None, trace: None, held_out: None };
        let error = session::run(&mut trainer, &faulty, &mut session, &AtomicBool::new(false));
        let error = error.expect_err("a fault").to_string();
        assert!(error.contains(word), "{error}");

        let (found, _) = checkpoint::newest(dir.path()).expect("readable");
        let (path, state) = found.expect("a checkpoint");
        assert_eq!((state.position.step, state.position.micro_step), (2, 6), "{word}");
        let open = mmx_converters::Model::open(&path).expect("a model folder");
        let second = Model::from_model(&open, Device::Cpu, Kind::Float).expect("a model");
        let mut batches = data();
        let mut trainer = Trainer::new(&second, &Pretrain, &config, &mut batches).expect("a run");
        checkpoint::restore(&path, &state, &mut trainer).expect("fits");
        finish(&mut trainer);
        assert!(bits(&second) == bits(&whole), "{word}: weights differ from the unbroken run's");
    }
}

/// The golden SFT run exactly as the command line's documentation has it.
#[test]
fn the_golden_sft_command_writes_the_golden_trace_and_batches() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let (from, tokenizer, data) =
        (shared("golden/minimind2"), shared("golden"), shared("golden/sft.jsonl"));
    let (trace, out, dump) = (at("t.json"), at("runs/x"), at("batches.safetensors"));
    #[rustfmt::skip]
    let end = mmx_json(&[
        "train", "sft", "--from", text(&from), "--tokenizer", text(&tokenizer), "--data", text(&data),
        "--recipe", "2025", "--pack", "off", "--shuffle", "off", "--batch-size", "4", "--accum", "1",
        "--epochs", "1", "--lr", "5e-4", "--max-seq-len", "128", "--dtype", "f32", "--device", "cpu", "--threads", "1",
        "--trace", text(&trace), "--out", text(&out), "--dump-batches", text(&dump),
    ]);
    let golden = json(&shared("golden/train/sft-minimind2.json"));
    let found = json(&trace);
    for key in ["stage", "kind", "optimizer", "accumulation_steps", "grad_clip"] {
        assert_eq!(found[key], golden[key], "{key}");
    }
    trajectory::assert_trajectory_json("sft-minimind2", &found, &golden);
    trajectory::assert_final_json("sft-minimind2", &found, &golden);

    let batches = Recorded::open_at(&dump);
    assert_eq!(batches.batches, Recorded::open("golden/train/sft-batches.safetensors").batches);

    let checkpoint = out.join("checkpoint-000008");
    assert_eq!(end["checkpoint"].as_str().map(Path::new), Some(checkpoint.as_path()));
    assert_eq!(end["steps"], 8);
    for field in ["loss", "tokens_per_s", "seconds"] {
        assert!(end[field].as_f64().is_some_and(|x| x > 0.0), "{field}: {}", end[field]);
    }
    // what was saved is what was trained
    let saved = mmx_converters::Model::open(&checkpoint).expect("a model folder");
    let saved = Model::from_model(&saved, Device::Cpu, Kind::Float).expect("a model");
    assert_final("checkpoint", &saved.to_host().expect("weights"), &golden);
    assert!(checkpoint.join("tokenizer.json").exists());
}

/// The gradient of an unfinished accumulation is part of a checkpoint.
#[test]
fn a_run_stopped_within_an_accumulation_goes_on_bit_for_bit() {
    let stage = stage::by_name("pretrain").expect("a stage");
    let adamw = TrainConfig {
        accumulation: 3,
        epochs: 2,
        ..TrainConfig::new(stage.as_ref(), Recipe::R2025)
    };
    let muon = TrainConfig {
        optimizer: OptimizerName::Muon,
        adam_lr: Some(1e-3),
        schedule: Decline::Linear,
        warmup_share: 0.3,
        ..adamw.clone()
    };
    for (kind, config) in [
        ("minimind2", &adamw),
        ("minimind2-moe", &adamw),
        ("minimind2", &muon),
        ("minimind2-moe", &muon),
    ] {
        let data = || Recorded::open("golden/train/pretrain-batches.safetensors");
        let whole = model(&format!("golden/{kind}"));
        let mut batches = data();
        let mut trainer =
            Trainer::new(&whole, stage.as_ref(), config, &mut batches).expect("a run");
        let all = finish(&mut trainer);

        // 7 micro-steps: two optimizer steps and one micro-step; the tail of epoch 1 follows
        let dir = tempfile::tempdir().expect("a folder");
        let first = model(&format!("golden/{kind}"));
        let mut batches = data();
        let mut trainer =
            Trainer::new(&first, stage.as_ref(), config, &mut batches).expect("a run");
        for _ in 0..7 {
            trainer.advance().expect("a micro-step");
        }
        let context = Context {
            dir: dir.path(),
            tokenizer: None,
            generation: &Generation::default(),
            sources: &[],
            keep: 1,
            listener: &mmx_converters::progress::Silent,
        };
        let saved = checkpoint::save(&context, &trainer).expect("saved");
        assert_eq!(saved, dir.path().join("checkpoint-000002.1"));

        let (found, warnings) = checkpoint::newest(dir.path()).expect("readable");
        let (path, state) = found.expect("a checkpoint");
        assert!(warnings.is_empty(), "{warnings:?}");
        let open = mmx_converters::Model::open(&path).expect("a model folder");
        let second = Model::from_model(&open, Device::Cpu, Kind::Float).expect("a model");
        let mut batches = data();
        let mut trainer =
            Trainer::new(&second, stage.as_ref(), config, &mut batches).expect("a run");
        checkpoint::restore(&path, &state, &mut trainer).expect("fits");
        let rest = finish(&mut trainer);
        assert_eq!(rest, all[7..], "{kind}");
        assert!(bits(&second) == bits(&whole), "{kind}: weights differ from the unbroken run's");
    }
}

fn finish(trainer: &mut Trainer<'_>) -> Vec<MicroStep> {
    let mut steps = Vec::new();
    while let Some(report) = trainer.advance().expect("a micro-step") {
        steps.extend(report.micro_steps);
    }
    steps
}

fn bits(model: &Model) -> BTreeMap<String, Vec<u32>> {
    let bits = |t: HostTensor| (t.name, t.values.iter().map(|v| v.to_bits()).collect());
    model.to_host().expect("weights").into_iter().map(bits).collect()
}
