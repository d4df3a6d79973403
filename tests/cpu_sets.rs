//! `MMX_CPU`: the same text on each instruction set, and what the program says of it.
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped here is a failed test")]

mod common;

use std::process::{Command, Output};

use common::{mmx_json, shared, text};
use mmx_ggml::CpuSet;
use serde_json::Value;

/// Runs mmx with a value of `MMX_CPU`.
fn mmx_on(cpu: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mmx")).args(args).env("MMX_CPU", cpu).output().unwrap()
}

/// The one JSON object that mmx prints on a set.
fn json_on(cpu: CpuSet, args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let out = mmx_on(cpu.name(), &args);
    assert!(out.status.success(), "{cpu}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn each_set_writes_the_same_text_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = shared("golden/minimind3");
    let tokenizer = shared("golden/tokenizer.json");
    let export =
        ["export", text(&model), "--tokenizer", text(&tokenizer), "--out", text(dir.path())];
    let types = ["--gguf", "f32", "--gguf", "q8_0", "--gguf", "q4_0"];
    let report = mmx_json(&[&export[..], &types].concat());
    let files =
        report["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap());
    let files: Vec<&str> = files.filter(|path| path.ends_with(".gguf")).collect();
    assert_eq!(files.len(), 3);
    let sets = CpuSet::here();
    // ggml's kernels, which are all there is without a set, add in another order: of few bits that is
    // enough for another token of this random model
    let own = sets.iter().copied().find(|&set| set != CpuSet::Portable);
    for cpu in sets {
        for file in &files {
            let args = ["run", file, "-p", "hello", "--raw", "--greedy", "-n", "12"];
            let exact = file.contains("f32");
            let twin = if exact { Some(CpuSet::Portable) } else { own };
            if let Some(twin) = twin.filter(|_| exact || cpu != CpuSet::Portable) {
                let expected = &json_on(twin, &args)["ids"];
                assert_eq!(&json_on(cpu, &args)["ids"], expected, "{file}: {cpu} and {twin}");
            }
        }
        let bench =
            ["bench", "--preset", "tiny", "--type", "q8_0", "-p", "4", "-n", "2", "-r", "1"];
        let report = json_on(cpu, &bench);
        assert_eq!(report["cpu"], cpu.name());
        for (kind, set) in mmx_ggml::kernel_sets(cpu) {
            assert_eq!(report["kernels"][kind], set, "{cpu}");
        }
        let report = json_on(cpu, &["doctor"]);
        let findings = report["findings"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["what"] == "cpu set").unwrap();
        assert!(finding["found"].as_str().unwrap().starts_with(cpu.name()), "{finding}");
    }
}

#[test]
fn a_set_that_is_unknown_or_not_there_is_refused() {
    let model = shared("golden/minimind3");
    let run = ["run", text(&model), "-p", "hello", "--greedy", "-n", "2"];
    let lacking = CpuSet::ALL.into_iter().find(|set| !set.is_here()).map(CpuSet::name);
    for name in ["sse9"].into_iter().chain(lacking) {
        let out = mmx_on(name, &run);
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{stderr}");
        for word in ["MMX_CPU", name, "portable"] {
            assert!(stderr.contains(word), "{word} in {stderr}");
        }
        let doctor = mmx_on(name, &["doctor"]);
        assert!(doctor.status.success(), "doctor goes on and names it");
        assert!(String::from_utf8(doctor.stdout).unwrap().contains(name));
    }
}
