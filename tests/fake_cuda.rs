//! Training on a CUDA device that needs no GPU (tests/fake_cuda/fake_cuda.cpp, compiled here): a tensor left on the
//! host, device memory read by the host, a wrong device and a needless wait end a test.
//!
//! What only a GPU shows is not here: streams, races, memory limits, what CUDA's kernels compute (scripts/check-cuda).
#![cfg(target_os = "linux")]

mod common;
mod trajectory;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::{copy, shared, text};
use mmx_converters::safetensors::SafeTensors;
use serde_json::Value;
use trajectory::{assert_final_json, assert_trajectory_json, json};

/// The library that registers the devices, compiled once for each content and each libtorch.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let home = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sources =
            ["fake_cuda", "fake_nccl"].map(|name| home.join(format!("tests/fake_cuda/{name}.cpp")));
        let distributed = home.join("src/train/distributed");
        let libtorch = libtorch();
        let read = |path: &PathBuf| fs_err::read_to_string(path).expect("a source");
        let code: Vec<String> =
            sources.iter().chain([&distributed.join("c10d.h")]).map(read).collect();
        let digest = mmx_converters::digest::of_bytes(format!("{libtorch:?}{code:?}").as_bytes());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let built = folder.join(format!("fake-cuda-{}.so", &digest[..16]));
        if built.exists() {
            return built;
        }
        let home = std::env::var_os("LIBTORCH_INCLUDE").map(PathBuf::from);
        let include =
            home.as_deref().or(libtorch.parent()).expect("libtorch's folder").join("include");
        let made = folder.join(format!("fake-cuda-{}.making", std::process::id()));
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let mut command = Command::new(compiler);
        command.args(["-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-I"]).arg(&include);
        command.arg("-I").arg(include.join("torch/csrc/api/include"));
        command.arg("-I").arg(distributed.join("gloo_types")).args(sources);
        command.arg("-o").arg(&made).arg("-L").arg(&libtorch);
        command.args(["-Wl,--no-as-needed", "-ltorch_cpu", "-lc10", "-ldl"]);
        command.arg(format!("-Wl,-rpath,{}", libtorch.display()));
        succeed(&mut command);
        fs_err::rename(&made, &built).expect("the library");
        built
    })
}

/// The folder of libtorch's libraries, as the system's loader finds them for mmx-train.
fn libtorch() -> PathBuf {
    let mut asked = Command::new(env!("CARGO_BIN_EXE_mmx-train"));
    let out = succeed(asked.env("LD_TRACE_LOADED_OBJECTS", "1"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("libtorch_cpu.so => "));
    let file = line.unwrap_or_else(|| panic!("mmx-train loads no libtorch_cpu.so: {text}"));
    Path::new(file.split(" (").next().expect("a path")).parent().expect("a folder").to_owned()
}

/// Runs to the end, without a warning of libtorch's.
fn succeed(command: &mut Command) -> Output {
    let out = command.output().expect("it starts");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {}\n{stderr}", out.status);
    assert!(!stderr.contains("Warning"), "{command:?}: {stderr}");
    out
}

/// Has a program find the devices, and count what they do.
fn on_fake<'a>(command: &'a mut Command, counts: &Path) -> &'a mut Command {
    command.env("LD_PRELOAD", library()).env("FAKE_CUDA_COUNTS", counts)
}

/// A short training.
#[derive(Clone, Copy)]
struct Case {
    stage: &'static str,
    model: &'static str,
    /// The file of its golden trajectory, where it has one.
    golden: Option<&'static str>,
    options: &'static [&'static str],
    lr: &'static str,
}

const PRETRAIN: [Case; 6] = [
    case("pretrain", "golden/minimind2", Some("pretrain-minimind2"), &["--accum", "2"]),
    case("pretrain", "golden/minimind2-moe", Some("pretrain-minimind2-moe"), &["--accum", "2"]),
    case("pretrain", "golden-2026/minimind3", Some("pretrain-minimind3"), &["--accum", "3"]),
    case(
        "pretrain",
        "golden-2026/minimind3-moe",
        Some("pretrain-minimind3-moe"),
        &["--accum", "3"],
    ),
    case("pretrain", "golden/minimind2", None, &["--accum", "2", "--optimizer", "muon"]),
    case("pretrain", "golden-2026/minimind3-moe", None, &["--optimizer", "muon"]),
];
const SFT: [Case; 2] = [
    case("sft", "golden/minimind2", Some("sft-minimind2"), &[]),
    case("sft", "golden/minimind2-moe", None, &["--accum", "2"]),
];
const LORA: [Case; 2] = [
    case("lora", "golden/minimind2", Some("lora-minimind2"), &[]).at("1e-3"),
    case("lora", "golden/minimind3-moe", None, &["--lora-target", "all", "--accum", "2"]),
];
const DPO: [Case; 3] = [
    case("dpo", "golden/minimind2", Some("dpo-sum-minimind2"), &["--logps", "sum"]).at("1e-4"),
    case("dpo", "golden/minimind2", Some("dpo-mean-minimind2"), &["--logps", "mean"]).at("1e-4"),
    case("dpo", "golden-2026/minimind3-moe", None, &["--accum", "2"]).at("1e-4"),
];
const DISTILL: [Case; 2] = [
    case("distill", "golden/minimind2", None, &["--accum", "2"]),
    case("distill", "golden-2026/minimind3-moe", None, &[]),
];
const REASON: [Case; 2] = [
    case("reason", "golden/minimind2", Some("reason-minimind2"), &[]),
    case("reason", "golden/minimind3-moe", None, &["--accum", "2"]),
];

/// Over rollouts of a file.
const REWARDS: [Case; 8] = [
    case("grpo", "golden-2026/minimind3", None, &["--accum", "2"]),
    case("grpo", "golden-2026/minimind3-moe", None, &[]),
    case("cispo", "golden-2026/minimind3", None, &[]),
    case("cispo", "golden-2026/minimind3-moe", None, &[]),
    case("ppo", "golden-2026/minimind3", None, &["--accum", "2"]),
    case("ppo", "golden-2026/minimind3-moe", None, &[]),
    case("agent", "golden-2026/minimind3", None, &[]),
    case("agent", "golden-2026/minimind3-moe", None, &[]),
];

/// What stages learn from that learn from rewards.
const ROLLOUTS: &str = "golden-rl/rollouts.jsonl";
/// Rollouts of that file that a batch of one task has.
const ROLLOUTS_OF_BATCH: usize = 8;

const fn case(
    stage: &'static str,
    model: &'static str,
    golden: Option<&'static str>,
    options: &'static [&'static str],
) -> Case {
    Case { stage, model, golden, options, lr: "5e-4" }
}

/// Where and how a case is computed.
#[derive(Clone, Copy)]
struct Setting {
    device: &'static str,
    dtype: &'static str,
    pack: &'static str,
    batch_size: &'static str,
}

const PADDED: Setting = Setting { device: "cuda:0", dtype: "f32", pack: "off", batch_size: "4" };

impl Case {
    /// With another learning rate.
    const fn at(mut self, lr: &'static str) -> Self {
        self.lr = lr;
        self
    }

    fn name(&self) -> String {
        format!("{} {} {:?}", self.stage, self.model, self.options)
    }

    /// The folder of its tokenizer and data.
    fn folder(&self) -> &str {
        self.model.split('/').next().expect("a folder")
    }

    /// Whether one of its models is a mixture of experts.
    fn has_experts(&self) -> bool {
        self.model.ends_with("moe") || self.stage == "distill" // whose teacher is of the other kind
    }

    fn learns_from_rewards(&self) -> bool {
        mmx_data::stages::learns_from_rewards(self.stage)
    }

    fn packs(&self) -> bool {
        self.stage != "dpo"
    }

    /// The command line without its output and without rollouts to learn from.
    fn command(&self, setting: Setting) -> Command {
        let (model, tokenizer) = (shared(self.model), shared(self.folder()));
        let rewards = self.learns_from_rewards();
        let data = match self.stage {
            "lora" | "distill" => "sft",
            _ if rewards => "sft",
            stage => stage,
        };
        let data = shared(&format!("{}/{data}.jsonl", self.folder()));
        let (recipe, length) = match self.folder() {
            "golden" => ("2025", "128"),
            _ => ("2026", "160"),
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx-train"));
        command.args([self.stage, "--from", text(&model), "--tokenizer", text(&tokenizer)]);
        command.args(["--data", text(&data), "--recipe", recipe, "--max-seq-len", length]);
        command.args(["--shuffle", "off", "--epochs", "1", "--threads", "1"]);
        command.args(["--pack", if self.packs() { setting.pack } else { "off" }]);
        command.args(["--batch-size", setting.batch_size, "--device", setting.device]);
        command.args(["--dtype", setting.dtype, "--lr", self.lr]).args(self.options);
        if !self.options.contains(&"--accum") {
            command.args(["--accum", "1"]);
        }
        if self.stage == "distill" {
            // of the other kind, dense or with experts
            let teacher = match self.model {
                "golden/minimind2" => "golden/minimind2-moe",
                _ => "golden-2026/minimind3",
            };
            command.args(["--teacher", text(&shared(teacher))]);
        }
        if self.golden.is_some_and(|name| name.starts_with("lora")) {
            let start = shared(&format!("{}/train/lora-start.safetensors", self.folder()));
            command.args(["--adapter", text(&start)]);
        }
        command.env("GOMP_SPINCOUNT", "1000");
        command
    }
}

/// A training on the fake device: its trace and counts.
fn on_device(case: &Case, setting: Setting, more: &[&str]) -> (Value, Value) {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let mut command = case.command(setting);
    if case.learns_from_rewards() && !more.contains(&"--rollouts") {
        command.args(["--rollouts", text(&shared(ROLLOUTS))]);
    }
    command.args(more).args(["--trace", text(&at("trace")), "--out", text(&at("run"))]);
    succeed(on_fake(&mut command, &at("counts")));
    (json(&at("trace")), json(&at("counts")))
}

fn on_cpu(case: &Case, setting: Setting) -> Value {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let mut command = case.command(Setting { device: "cpu", ..setting });
    if case.learns_from_rewards() {
        command.args(["--rollouts", text(&shared(ROLLOUTS))]);
    }
    succeed(command.args(["--trace", text(&at("trace")), "--out", text(&at("run"))]));
    json(&at("trace"))
}

/// In float32 with padded rows the golden trajectory where there is one, and the CPU's; in bfloat16 with shared rows,
/// on the second device, the CPU's as far as the rounding lets it: there our kernels round in other places. Nothing is
/// ever put on the device that was not asked for.
fn assert_losses(cases: &[Case]) {
    for case in cases {
        let name = case.name();
        let (found, counts) = on_device(case, PADDED, &[]);
        if let Some(golden) = case.golden {
            let golden = json(&shared(&format!("{}/train/{golden}.json", case.folder())));
            assert_trajectory_json(&name, &found, &golden);
            assert_final_json(&name, &found, &golden);
        } else if case.options.contains(&"muon") {
            // Muon's iteration is in bfloat16 on devices
            assert_near(&name, &found, &on_cpu(case, PADDED), 1e-3);
        } else {
            assert_trajectory_json(&name, &found, &on_cpu(case, PADDED));
        }
        assert_only_on(&name, &counts, 0);

        let slow = case.at("1e-6"); // steps would make differences grow: an expert chosen otherwise, say
        // the first device has a kernel for products of the rows of experts, the second has none
        let devices = if case.has_experts() { &["cuda:0", "cuda:1"][..] } else { &["cuda:1"] };
        for &device in devices {
            let setting = Setting { device, dtype: "bf16", pack: "on", batch_size: "2" };
            let (found, counts) = on_device(&slow, setting, &[]);
            // a pair's loss is of a difference of sums, in which another expert for one token shows
            let loss = if case.stage == "dpo" { 0.1 } else { 0.02 };
            let name = format!("{name} in bfloat16 on {device}");
            assert_near(&name, &found, &on_cpu(&slow, setting), loss);
            assert_only_on(&name, &counts, usize::from(device == "cuda:1"));
            let by_kernel = counts["grouped"].as_i64().expect("a count") > 0;
            let expected = device == "cuda:0" && !case.options.contains(&"--lora-target");
            assert_eq!(by_kernel, expected, "{name}: {counts}");
        }
    }
}

fn assert_only_on(name: &str, counts: &Value, device: usize) {
    let made = |device: usize| counts["allocations"][device].as_i64().expect("a count");
    assert!(made(device) > 100, "{name}: {counts}");
    assert_eq!(made(1 - device), 0, "{name}: something lies on the other device: {counts}");
    assert_eq!(counts["peer_copies"], 0, "{name}: {counts}");
}

/// Losses to `loss`, 2 % say, and norms to 20 %: products of 8 bits of mantissa in two implementations, which now and
/// then choose another expert.
fn assert_near(name: &str, found: &Value, expected: &Value, loss: f64) {
    let steps = |of: &Value| of["steps"].as_array().expect("steps").clone();
    let (found, expected) = (steps(found), steps(expected));
    assert_eq!(found.len(), expected.len(), "{name}: micro-steps");
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        for (key, allowed) in [("loss", loss), ("grad_norm", 0.2)] {
            let (found, expected) = (found[key].as_f64(), expected[key].as_f64());
            assert_eq!(found.is_some(), expected.is_some(), "{name}: step {i}: {key}");
            let (Some(found), Some(expected)) = (found, expected) else { continue };
            if found == expected {
                continue; // zeros, say: what an early stop left out
            }
            let off = (found / expected - 1.0).abs();
            assert!(off < allowed, "{name}: step {i}: {key}: expected {expected}, found {found}");
        }
    }
}

#[test]
fn every_stage_has_a_case() {
    let all = [&PRETRAIN[..], &SFT, &LORA, &DPO, &DISTILL, &REASON, &REWARDS].concat();
    for stage in mmx_data::stages::STAGES {
        let of_stage = || all.iter().filter(|case| case.stage == stage.name);
        assert!(of_stage().any(|case| case.model.ends_with("moe")), "{}", stage.name);
        assert!(of_stage().any(|case| !case.model.ends_with("moe")), "{}", stage.name);
    }
}

#[test]
fn pretraining_gives_the_cpus_losses() {
    assert_losses(&PRETRAIN);
}

#[test]
fn fine_tuning_and_reasoning_give_the_cpus_losses() {
    assert_losses(&SFT);
    assert_losses(&REASON);
}

#[test]
fn adapters_give_the_cpus_losses() {
    assert_losses(&LORA);
}

#[test]
fn preferences_and_distillation_give_the_cpus_losses() {
    assert_losses(&DPO);
    assert_losses(&DISTILL);
}

/// Both sides of a clip are near each other: a token on the other side of it changes a loss.
#[test]
fn rewards_give_the_cpus_losses() {
    for case in &REWARDS {
        let name = case.name();
        let (found, counts) = on_device(case, PADDED, &[]);
        assert_near(&name, &found, &on_cpu(case, PADDED), 0.01);
        assert_only_on(&name, &counts, 0);
    }
}

/// Between two optimizer steps the host waits for the device once, whatever the losses and their parts are, and
/// whatever experts were chosen. Nothing is uploaded from memory that is not page-locked, and each micro-step brings a
/// few tensors.
#[test]
fn a_step_waits_for_the_device_once() {
    let all = [&PRETRAIN[..2], &PRETRAIN[4..], &SFT, &LORA, &DPO[1..], &DISTILL, &REASON, &REWARDS];
    for (i, case) in all.into_iter().flatten().enumerate() {
        let pack = if i % 2 == 0 { "on" } else { "off" };
        let dtypes = if case.has_experts() { &["f32", "bf16"][..] } else { &["f32"] };
        for &dtype in dtypes {
            let setting = Setting { pack, batch_size: "1", dtype, ..PADDED };
            assert_waits_once(case, setting);
        }
    }
}

fn assert_waits_once(case: &Case, setting: Setting) {
    let name = format!("{} {} pack {}", case.name(), setting.dtype, setting.pack);
    // a run and a longer one; a file of rollouts is read to its end
    let ((short, one), (long, three)) = match case.learns_from_rewards() {
        false => {
            let of = |steps: &str| on_device(case, setting, &["--max-steps", steps]);
            (of("1"), of("3"))
        }
        true => {
            let all = fs_err::read_to_string(shared(ROLLOUTS)).expect("rollouts");
            let dir = tempfile::tempdir().expect("a folder");
            let file = dir.path().join("rollouts.jsonl");
            let of = |batches: usize| {
                let lines: Vec<&str> = all.lines().take(batches * ROLLOUTS_OF_BATCH).collect();
                fs_err::write(&file, lines.join("\n")).expect("a file");
                on_device(case, setting, &["--rollouts", text(&file)])
            };
            // two batches are a step where two are accumulated
            (of(2), of(4))
        }
    };
    let micro_steps = |trace: &Value| trace["steps"].as_array().expect("steps").len() as i64;
    let steps = |trace: &Value| {
        let norms = trace["steps"].as_array().expect("steps").iter();
        norms.filter(|step| !step["grad_norm"].is_null()).count() as i64
    };
    // some data ends before the third step
    let (more, more_micro) =
        (steps(&long) - steps(&short), micro_steps(&long) - micro_steps(&short));
    assert!(more > 0, "{name}: no more steps");
    let grown = |key: &str| {
        let count = |of: &Value| of[key].as_i64().expect("a count");
        count(&three) - count(&one)
    };
    let waits = grown("scalars") + grown("downloads") + grown("waits");
    // ppo: whether to go on with a minibatch depends on what it gives, advantages on what is expected of its batch
    let of_ppo = if case.stage == "ppo" { more_micro + 2 } else { 0 };
    assert_eq!(waits, more + of_ppo, "{name}: {more} steps: from {one} to {three}");
    assert_eq!(grown("blocking_uploads"), 0, "{name}: from {one} to {three}");
    // ids, targets, their places and weights; for each model positions and samples, or the answers of pairs; what was
    // sampled, rewards and rows
    let models = if matches!(case.stage, "dpo" | "distill") { 2 } else { 1 };
    let of_rewards = match case.stage {
        "ppo" => 16, // also what was computed before, and by a model more
        _ if case.learns_from_rewards() => 10,
        _ => 0,
    };
    let (uploads, most) = (grown("uploads"), more_micro * (4 + 2 * models + of_rewards));
    assert!((1..=most).contains(&uploads), "{name}: {uploads} of {most}: from {one} to {three}");
}

#[test]
fn held_out_data_is_waited_for_once_however_much_it_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("val.jsonl");
    let case = &SFT[1];
    let data = fs_err::read_to_string(shared("golden/sft.jsonl")).expect("records");
    let waits = |records: usize| {
        let lines: Vec<&str> = data.lines().take(records).collect();
        fs_err::write(&file, lines.join("\n")).expect("a file");
        let setting = Setting { batch_size: "1", ..PADDED };
        let (_, counts) = on_device(case, setting, &["--max-steps", "1", "--val", text(&file)]);
        let of = |key: &str| counts[key].as_i64().expect("a count");
        (of("scalars") + of("downloads") + of("waits"), of("operators"))
    };
    // from three on as many sample texts are written, each token of which is waited for
    let ((few, work), (many, more_work)) = (waits(3), waits(12));
    assert!(more_work > work, "{more_work} operators for twelve records, {work} for three");
    assert_eq!(many, few, "waits for twelve records and for three");
}

/// Attention takes samples of about one length together: a kernel's start costs a device as much as the work of many
/// short samples.
#[test]
fn the_number_of_operators_does_not_grow_with_the_samples_in_a_batch() {
    let of = |case: &Case, rows: &'static str| {
        let setting = Setting { pack: "on", batch_size: rows, ..PADDED };
        let (_, counts) = on_device(case, setting, &["--max-steps", "1"]);
        counts["operators"].as_i64().expect("a count")
    };
    for case in [&SFT[0], &LORA[0]] {
        let (few, many) = (of(case, "1"), of(case, "16"));
        assert!(many < few * 3 / 2, "{}: {few} for a row, {many} for 16", case.name());
    }
}

/// A checkpoint with every optimizer step, a validation with each: from the first one on the run is the same bits.
#[test]
fn a_run_resumes_bit_for_bit_and_its_model_is_exported() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    for (i, case) in
        [&PRETRAIN[1], &PRETRAIN[4], &LORA[0], &DPO[2], &DISTILL[0]].into_iter().enumerate()
    {
        let setting = Setting { pack: "on", batch_size: "1", ..PADDED };
        let (unbroken, resumed) = (at(&format!("unbroken-{i}")), at(&format!("resumed-{i}")));
        let held_out = shared(&format!("{}/dpo.jsonl", case.folder()));
        let run = |out: &Path, more: &[&str]| {
            let mut command = case.command(setting);
            command.args(["--max-steps", "3", "--save-every", "1", "--keep", "9"]);
            if case.stage == "dpo" {
                command.args(["--val", text(&held_out)]);
            }
            succeed(on_fake(command.args(["--out", text(out)]).args(more), &at("counts")));
        };
        run(&unbroken, &[]);
        fs_err::create_dir(&resumed).expect("a folder");
        copy(&unbroken.join("checkpoint-000001"), &resumed.join("checkpoint-000001"));
        run(&resumed, &["--resume"]);
        let end = |run: &Path| -> Vec<Vec<u8>> {
            let weights = match case.stage {
                "lora" => "adapter_model.safetensors",
                _ => "model.safetensors",
            };
            let files = [weights, "training/optimizer.safetensors"];
            let read = |file: &&str| fs_err::read(run.join("checkpoint-000003").join(file));
            files.iter().map(|file| read(file).expect("a file")).collect()
        };
        assert!(end(&unbroken) == end(&resumed), "{}: other bits", case.name());
    }

    // the model of experts that was trained: the same logits on both devices and from the export
    let trained = at("unbroken-0");
    let (export, ids) = (at("export"), shared("golden/minimind2-moe/forward.safetensors"));
    let mmx = || Command::new(env!("CARGO_BIN_EXE_mmx"));
    let logits = |model: &Path, device: &str, fake: bool| -> Vec<f32> {
        let out = at(device);
        let mut command = mmx();
        command.args(["logits", text(model), "--ids", text(&ids), "--out", text(&out)]);
        command.args(["--engine", "native", "--device", device]);
        succeed(if fake { on_fake(&mut command, &at("counts")) } else { &mut command });
        let file = SafeTensors::open(&out).expect("logits");
        let view = file.get("logits").expect("logits");
        let values = view.data.chunks_exact(4).map(|bytes| bytes.try_into().expect("4 bytes"));
        values.map(f32::from_le_bytes).collect()
    };
    succeed(on_fake(
        mmx().args(["export", text(&trained), "--hf", "f32", "--out", text(&export)]),
        &at("counts"),
    ));
    let folder = fs_err::read_dir(&export)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.join("model.safetensors").exists())
        .unwrap_or(export);
    let expected = logits(&trained, "cpu", false);
    for (found, device) in [
        (logits(&trained, "cuda:0", true), "cuda:0"),
        (logits(&folder, "cuda:1", true), "the export on cuda:1"),
    ] {
        assert_eq!(found.len(), expected.len(), "{device}");
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // float32 sums in another order
        assert!(off < 1e-5, "{device}: logits differ by {off:e}");
    }
    succeed(mmx().args(["verify", text(&trained), text(&folder), "--tokens", "32"]));
}

/// Two processes, each with the device of its number, train as one, moments and gradients divided or not. The library that carries
/// device tensors over NCCL is the test's own, beside a link to the program.
#[test]
fn two_processes_with_a_device_each_train_as_one() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let program = at("mmx-train");
    fs_err::hard_link(env!("CARGO_BIN_EXE_mmx-train"), &program).expect("a link");
    std::os::unix::fs::symlink(library(), at("libmmx_nccl.so")).expect("a link");
    let divided = ["--shard", "optimizer"];
    let further = ["--shard", "gradients"];
    let cases: [(&Case, &[&str]); 5] = [
        (&PRETRAIN[0], &divided),
        (&PRETRAIN[3], &[]),
        (&SFT[0], &[]),
        (&DPO[1], &divided),
        (&PRETRAIN[3], &further),
    ];
    for (i, (case, more)) in cases.into_iter().enumerate() {
        let alone = case.command(Setting { device: "cuda", batch_size: "2", ..PADDED });
        let (trace, counts) = (at(&format!("trace-{i}")), at(&format!("counts-{i}")));
        let mut command = Command::new(&program);
        command.args(alone.get_args()).args(["--processes", "2"]).args(more);
        command.args(["--trace", text(&trace), "--out", text(&at(&format!("run-{i}")))]);
        succeed(on_fake(command.env("GOMP_SPINCOUNT", "1000"), &counts));
        let golden = case.golden.expect("a case with a golden trajectory");
        let golden = json(&shared(&format!("{}/train/{golden}.json", case.folder())));
        assert_trajectory_json(&case.name(), &json(&trace), &golden);
        assert_final_json(&case.name(), &json(&trace), &golden);
        for rank in [0, 1] {
            let counts = json(&PathBuf::from(format!("{}-{rank}", counts.display())));
            assert_only_on(&format!("{} rank {rank}", case.name()), &counts, rank);
        }
    }
}

/// Over rollouts of a file the losses of one process on the CPU; over tasks each process answers its part, and what
/// they wrote travels between their devices.
#[test]
fn two_processes_with_a_device_each_learn_from_rewards() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let program = at("mmx-train");
    fs_err::hard_link(env!("CARGO_BIN_EXE_mmx-train"), &program).expect("a link");
    std::os::unix::fs::symlink(library(), at("libmmx_nccl.so")).expect("a link");
    let on_two = |name: &str, case: &Case, more: &[&str]| {
        let alone = case.command(Setting { device: "cuda", batch_size: "2", ..PADDED });
        let (trace, counts) = (at(&format!("{name}.json")), at(&format!("{name}.counts")));
        let mut command = Command::new(&program);
        command.args(alone.get_args()).args(["--processes", "2"]).args(more);
        command.args(["--trace", text(&trace), "--out", text(&at(name))]);
        succeed(on_fake(command.env("GOMP_SPINCOUNT", "1000"), &counts));
        for rank in [0, 1] {
            let counts = json(&PathBuf::from(format!("{}-{rank}", counts.display())));
            assert_only_on(&format!("{name} rank {rank}"), &counts, rank);
        }
        json(&trace)
    };
    let rollouts = shared(ROLLOUTS);
    for (i, case) in [&REWARDS[1], &REWARDS[2], &REWARDS[4]].into_iter().enumerate() {
        let mut more = vec!["--rollouts", text(&rollouts)];
        if case.stage == "ppo" {
            more.extend(["--minibatch-size", "1"]); // of each process: two rows of both, the default
        }
        let found = on_two(&format!("read-{i}"), case, &more);
        assert_near(&case.name(), &found, &on_cpu(case, PADDED), 0.01);
    }
    let (reward, written) = (at("reward.json"), at("rollouts.jsonl"));
    let digits = r#"[{"type": "regex", "pattern": "[a-m]"}, {"type": "length", "max": 4}]"#;
    fs_err::write(&reward, digits).expect("a reward");
    let more = ["--reward", text(&reward), "--max-new-tokens", "8", "--group-size", "2"];
    let more = [&more[..], &["--rollouts-out", text(&written), "--max-steps", "2"]].concat();
    let found = on_two("sampled", &REWARDS[0], &more);
    let rows = fs_err::read_to_string(&written).expect("rollouts").lines().count();
    let batches = found["steps"].as_array().expect("steps").len();
    assert_eq!((batches, rows), (4, 4 * 4 * 2), "two prompts of each process, two answers each");
}

#[test]
fn a_device_beyond_those_there_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let mut command = PRETRAIN[0].command(Setting { device: "cuda:2", ..PADDED });
    on_fake(command.args(["--out", text(&at("run"))]), &at("counts"));
    let out = command.output().expect("it starts");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{stderr}");
    assert!(stderr.contains("cuda:2: expected fewer than 2"), "{stderr}");
}

/// That the device catches what it is there for, in this program started again with it.
mod faults {
    #![expect(unsafe_code, reason = "the fault is to read memory that is not the host's")]

    use std::os::unix::process::ExitStatusExt;

    use tch::{Device, Kind, Tensor};

    use super::{Command, Output, on_fake};

    /// The variable that tells the program which fault to make.
    const FAULT: &str = "FAKE_CUDA_FAULT";

    /// The output of this test's program with the device; nothing in that program.
    fn elsewhere(test: &str) -> Option<Output> {
        if std::env::var_os(FAULT).is_some() {
            return None;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", &format!("faults::{test}"), "--nocapture"]).env(FAULT, test);
        Some(on_fake(&mut command, &dir.path().join("counts")).output().expect("it starts"))
    }

    fn said(out: &Output) -> String {
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    #[test]
    fn a_host_read_of_device_memory_ends_the_program() {
        if let Some(out) = elsewhere("a_host_read_of_device_memory_ends_the_program") {
            assert_eq!(out.status.signal(), Some(libc::SIGSEGV), "{}", said(&out));
            let expected = "error: the host touched device memory of cuda:1";
            assert!(said(&out).contains(expected), "{}", said(&out));
            return;
        }
        let there = Tensor::ones([4], (Kind::Float, Device::Cuda(1)));
        assert_eq!(there.double_value(&[2]), 1.0); // a fetch may read it
        // SAFETY: none: device memory is not the host's, which this test is about.
        let stolen = unsafe { there.data_ptr().cast::<f32>().read_volatile() };
        panic!("the host read {stolen}");
    }

    #[test]
    fn an_operator_of_two_devices_is_refused() {
        if let Some(out) = elsewhere("an_operator_of_two_devices_is_refused") {
            assert!(out.status.success(), "{}", said(&out));
            return;
        }
        let ones = |device| Tensor::ones([2, 2], (Kind::Float, device));
        let (first, second, host) =
            (ones(Device::Cuda(0)), ones(Device::Cuda(1)), ones(Device::Cpu));
        type Product<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor, tch::TchError>;
        let products: [(&str, Product<'_>); 4] = [
            ("mm", &|other| first.f_mm(other)),
            ("add", &|other| first.f_add(other)),
            ("cat", &|other| Tensor::f_cat(&[&first, other], 0)),
            ("index_select", &|other| {
                first.f_index_select(0, &other.f_select(0, 0)?.f_to_kind(Kind::Int64)?)
            }),
        ];
        for (name, product) in products {
            for (other, what) in [(&second, "cuda:1"), (&host, "cpu")] {
                let error = product(other).expect_err("two devices").to_string();
                assert!(error.contains("on the same device"), "{name} with {what}: {error}");
            }
            assert!(product(&first).is_ok(), "{name}");
        }
        // a scalar of the host may take part
        assert_eq!((&first + Tensor::from(2.0)).sum(Kind::Float).double_value(&[]), 12.0);
    }

    #[test]
    fn memory_that_nobody_wrote_is_not_a_number() {
        if let Some(out) = elsewhere("memory_that_nobody_wrote_is_not_a_number") {
            assert!(out.status.success(), "{}", said(&out));
            return;
        }
        for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
            for _ in 0..2 {
                let fresh = Tensor::empty([3], (kind, Device::Cuda(0)));
                assert!(fresh.sum(kind).double_value(&[]).is_nan(), "{kind:?}");
                let _ = fresh.shallow_clone().fill_(1.0); // what is there when the memory is given again
            }
        }
    }
}
