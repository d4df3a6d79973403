//! Runs of the built binary that are killed, stopped or starved, and whether they then end as the unbroken one.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{shared, text};

/// What each stage trains, tiny: packed rows where the stage has them, accumulations that an epoch's end cuts
/// short, a checkpoint with every optimizer step.
pub(crate) const STAGES: [&str; 12] = [
    "pretrain",
    "pretrain with muon",
    "sft",
    "lora",
    "dpo",
    "distill",
    "reason",
    "grpo",
    "grpo by spo",
    "cispo",
    "ppo",
    "agent",
];

/// The command line of a stage; `--resume` goes on from what is there, or begins.
pub(crate) fn command(stage: &str, out: &Path) -> Command {
    keeping(stage, out, "2")
}

/// The same with so many checkpoints kept.
pub(crate) fn keeping(stage: &str, out: &Path, keep: &str) -> Command {
    let (stage, optimizer) = stage.split_once(" with ").unwrap_or((stage, "adamw"));
    let (stage, loss) = stage.split_once(" by ").map_or((stage, None), |(a, b)| (a, Some(b)));
    let (model, teacher) = (shared("golden/minimind2"), shared("golden/minimind3"));
    let (tokenizer, data) = (shared("golden"), format!("golden/{}.jsonl", data_of(stage)));
    let data = shared(&data);
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
    command.args(["train", stage, "--tokenizer", text(&tokenizer), "--data", text(&data)]);
    match stage {
        "pretrain" => command.args(["--preset", "tiny"]),
        "grpo" | "cispo" | "ppo" | "agent" => {
            let rollouts = shared("golden-rl/rollouts.jsonl");
            let policy = shared("golden-2026/minimind3");
            command.args(["--from", text(&policy), "--rollouts", text(&rollouts)])
        }
        "distill" => command.args(["--from", text(&model), "--teacher", text(&teacher)]),
        _ => command.args(["--from", text(&model)]),
    };
    command.args(["--batch-size", "1", "--accum", "3", "--epochs", "3", "--lr", "1e-3"]);
    command.args(["--max-seq-len", "96", "--dtype", "f32", "--device", "cpu", "--threads", "1"]);
    command.args(["--optimizer", optimizer]);
    command.args(loss.into_iter().flat_map(|loss| ["--loss", loss]));
    command.args(["--save-every", "1", "--keep", keep, "--resume", "--out", text(out)]);
    // no second start of the process: every moment until the kill is the run's own
    command.env("GOMP_SPINCOUNT", "1000").stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn data_of(stage: &str) -> &str {
    match stage {
        "lora" | "distill" | "grpo" | "cispo" | "ppo" | "agent" => "sft",
        other => other,
    }
}

/// Runs to the end, which must succeed.
pub(crate) fn finish(mut command: Command) {
    let out = command.output().expect("mmx starts");
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Starts with stderr in a pipe.
pub(crate) fn start(mut command: Command) -> Child {
    command.stderr(Stdio::piped()).spawn().expect("mmx starts")
}

/// The files of the newest checkpoint that hold what was learned, and the log without its times.
#[derive(PartialEq)]
pub(crate) struct End {
    checkpoint: String,
    weights: Vec<u8>,
    optimizer: Vec<u8>,
    log: Vec<Value>,
}

impl End {
    pub(crate) fn of(run: &Path) -> Self {
        let newest = mmx_converters::model::run_folder::checkpoints(run)
            .expect("a folder")
            .pop()
            .expect("a checkpoint");
        let read = |name: &str| fs_err::read(newest.join(name));
        let weights = read("model.safetensors").or_else(|_| read("adapter_model.safetensors"));
        let log = fs_err::read_to_string(run.join("metrics.jsonl")).expect("a log");
        let line = |line: &str| {
            let mut line: Value = serde_json::from_str(line).expect("a JSON line");
            let fields = line.as_object_mut().expect("an object");
            // times, and tokens since the last line: a session begins to count anew
            for field in ["seconds", "tokens_per_s", "tokens"] {
                fields.remove(field);
            }
            line
        };
        let name = newest.file_name().expect("a name").to_string_lossy().into_owned();
        Self {
            checkpoint: name,
            weights: weights.expect("weights"),
            optimizer: read("training/optimizer.safetensors").expect("moments"),
            log: log.lines().map(line).collect(),
        }
    }

    /// Bit for bit.
    pub(crate) fn assert_same(&self, other: &Self, what: &str) {
        assert_eq!(self.checkpoint, other.checkpoint, "{what}");
        assert!(self.weights == other.weights, "{what}: other weights");
        assert!(self.optimizer == other.optimizer, "{what}: other moments");
        assert_eq!(self.log, other.log, "{what}");
    }
}

/// How the kills of a stage fell.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) kills: usize,
    /// A half-written checkpoint lay there afterwards.
    pub(crate) within_a_write: usize,
    /// Runs that came to their end after at least one kill, each equal to the unbroken one.
    pub(crate) ends: usize,
}

/// Kills a stage's run `kills` times, resuming it each time, and compares every end with the unbroken run's.
/// Every second kill waits for a checkpoint to be under way, and does not count where the checkpoint was
/// finished first; the others fall at any time. With several processes one of them is killed, and the
/// others end by themselves.
pub(crate) fn kill_and_resume(stage: &str, kills: usize, seed: u64, processes: usize) -> Counts {
    let dir = tempfile::tempdir().expect("a folder");
    let unbroken = dir.path().join("unbroken");
    let begun = Instant::now();
    let command = |stage: &str, out: &Path| {
        let mut command = command(stage, out);
        if processes > 1 {
            command.args(["--processes", &processes.to_string()]);
        }
        command
    };
    finish(command(stage, &unbroken));
    let (expected, whole) = (End::of(&unbroken), begun.elapsed());
    let mut random = Random(seed);
    let mut counts = Counts::default();
    let (mut number, mut killed_here) = (0, false);
    let mut out = dir.path().join("run-0");
    let what = |number: usize| format!("{stage}, seed {seed}, run {number}");
    while counts.kills < kills {
        let mut child = start(command(stage, &out));
        let moment = whole.mul_f64(random.share());
        let write = counts.kills % 2 == 0;
        let victim = match write {
            true => counts.kills / 2 % processes, // rank 0, which writes, first
            false => (random.share() * processes as f64) as usize % processes,
        };
        let begun = Instant::now();
        let alive = loop {
            if let Some(status) = child.try_wait().expect("a child") {
                assert!(status.success(), "{}: {}", what(number), said(child));
                break false;
            }
            if begun.elapsed() >= moment && (!write || half_written(&out)) {
                if processes == 1 {
                    child.kill().expect("SIGKILL");
                    child.wait().expect("dead");
                    break true;
                }
                let Some(rank) = rank_of(&child, victim, processes) else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue; // it is about to start, or to end
                };
                let sent = Command::new("kill").args(["-KILL", &rank.to_string()]).status();
                if !sent.expect("kill").success() {
                    continue;
                }
                let status = child.wait().expect("its end");
                if status.success() {
                    break false; // it had ended, and nobody had looked yet
                }
                let stderr = said(child);
                assert_eq!(status.code(), Some(1), "{}: {stderr}", what(number));
                let names = format!("rank {victim} ");
                assert!(stderr.contains(&names), "{}, {names}: {stderr}", what(number));
                break true;
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        if alive {
            let within = half_written(&out);
            // what is seen may be gone when the signal arrives; a rank is found by a program, which takes longer still
            counts.kills += usize::from(within || !write || processes > 1);
            counts.within_a_write += usize::from(within);
            killed_here = true;
        } else {
            counts.ends += usize::from(killed_here);
            End::of(&out).assert_same(&expected, &what(number));
            fs_err::remove_dir_all(&out).expect("removed");
            (number, killed_here) = (number + 1, false);
            out = dir.path().join(format!("run-{number}"));
        }
    }
    finish(command(stage, &out));
    End::of(&out).assert_same(&expected, &what(number));
    assert!(!half_written(&out), "{}: a half-written checkpoint was left", what(number));
    counts.ends += usize::from(killed_here);
    counts
}

/// The process that `--processes` has started as a rank, once all are there. It starts them in order.
fn rank_of(launcher: &Child, rank: usize, processes: usize) -> Option<u32> {
    let id = launcher.id();
    let children = fs_err::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    let children: Vec<&str> = children.split_whitespace().collect();
    (children.len() == processes).then(|| children[rank].parse().ok())?
}

/// What a child said on stderr.
pub(crate) fn said(child: Child) -> String {
    let out = child.wait_with_output().expect("its output");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn half_written(run: &Path) -> bool {
    let Ok(entries) = fs_err::read_dir(run) else { return false };
    let part = |path: PathBuf| path.extension().is_some_and(|e| e == "part");
    entries.flatten().any(|entry| part(entry.path()))
}

/// Moments from a seed (splitmix64: Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
