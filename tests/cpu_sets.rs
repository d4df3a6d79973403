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
    let types = "f32,q8_0,q4_0";
    let export = ["export", text(&model), "--tokenizer", text(&tokenizer), "--gguf", types];
    mmx_json(&[&export[..], &["--name", "m", "--out", text(dir.path())]].concat());
    for cpu in CpuSet::here() {
        for file in ["m-f32.gguf", "m-q8_0.gguf", "m-q4_0.gguf"] {
            let file = dir.path().join(file);
            let args = ["run", text(&file), "-p", "hello", "--raw", "--greedy", "-n", "12"];
            let expected = &json_on(CpuSet::Portable, &args)["ids"];
            assert_eq!(&json_on(cpu, &args)["ids"], expected, "{cpu}");
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
