//! The README's commands are run as they stand there, on little data and for two steps: a reader who copies them meets
//! no error.
#![cfg(feature = "train")]

mod common;

use std::path::Path;
use std::process::Command;

use common::shared;

/// The commands of the first block of shell after a heading.
fn commands(heading: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs_err::read_to_string(path).expect("README.md");
    let (_, section) = readme.split_once(heading).expect("the heading");
    let (_, block) = section.split_once("```sh\n").expect("a block of commands");
    let (block, _) = block.split_once("```").expect("its end");
    block.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Through a shell, as its reader does, so that patterns become files; stdout.
fn shell(dir: &Path, command: &str) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_mmx")).parent().expect("a folder");
    let path = std::env::var("PATH").expect("PATH");
    let out = Command::new("sh")
        .args(["-c", command])
        .current_dir(dir)
        .env("PATH", format!("{}:{path}", binary.display()))
        .output()
        .expect("a shell");
    assert!(out.status.success(), "{command}:\n{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

#[test]
fn the_commands_from_text_to_a_chatting_model_work() {
    let dir = tempfile::tempdir().expect("a folder");
    for (fixture, name) in [("pretrain", "text.jsonl"), ("sft", "chats.jsonl")] {
        let bytes = fs_err::read(shared(&format!("golden/{fixture}.jsonl"))).expect("a fixture");
        fs_err::write(dir.path().join(name), bytes).expect("a file");
    }
    let commands = commands("## From text to a chatting model");
    let mut seen = Vec::new();
    for command in &commands {
        assert!(command.starts_with("mmx "), "{command}");
        let verb = command.split_whitespace().nth(1).expect("a command").to_owned();
        // smaller and shorter; everything else as written
        let mut smaller = command.replace("--preset minimind2-small", "--preset tiny");
        if verb == "train" {
            smaller.push_str(
                " --max-steps 2 --batch-size 4 --accum 1 --max-seq-len 64 --threads 1 --device cpu",
            );
        }
        let out = shell(dir.path(), &smaller);
        assert!(!out.trim().is_empty(), "{command}: nothing on stdout");
        seen.push(verb);
    }
    assert_eq!(seen, ["tokenizer", "train", "train", "export", "verify", "run"]);
    for file in ["tok/tokenizer.json", "runs/sft", "export/Modelfile", "export/hf-bf16/config.json"]
    {
        assert!(dir.path().join(file).exists(), "{file}");
    }
}
