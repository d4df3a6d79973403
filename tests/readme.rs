//! The commands of README and tutorial are run as they stand there, on little data and for two steps: a reader who copies
//! them meets no error.

mod common;

use std::path::Path;
use std::process::Command;

use common::shared;

/// A page of the repository.
fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs_err::read_to_string(path).expect("a page")
}

/// The commands in a text's blocks of shell, without the remarks behind them.
fn commands(text: &str) -> Vec<String> {
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or(""));
    let lines =
        blocks.flat_map(str::lines).map(|line| line.split("   #").next().unwrap_or("").trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
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

/// Runs commands on little data, smaller and shorter, everything else as written; what was run.
fn run(commands: &[String]) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a folder");
    for (fixture, names) in
        [("pretrain", &["text.jsonl"][..]), ("sft", &["chats.jsonl", "held-out.jsonl"])]
    {
        let bytes = fs_err::read(shared(&format!("golden/{fixture}.jsonl"))).expect("a fixture");
        for name in names {
            fs_err::write(dir.path().join(name), &bytes).expect("a file");
        }
    }
    let mut seen = Vec::new();
    for command in commands {
        assert!(command.starts_with("mmx "), "{command}");
        let verb = command.split_whitespace().nth(1).expect("a command").to_owned();
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
    for file in ["tok/tokenizer.json", "runs/sft", "export/Modelfile", "export/hf-bf16/config.json"]
    {
        assert!(dir.path().join(file).exists(), "{file}");
    }
    seen
}

#[test]
fn the_commands_from_text_to_a_chatting_model_work_in_both_languages() {
    let sections = [
        ("README.md", "## From text to a chatting model"),
        ("README.zh-CN.md", "## 从文本到会对话的模型"),
    ];
    let lists = sections.map(|(name, heading)| {
        let text = page(name);
        let (_, section) = text.split_once(heading).expect("the heading");
        commands(section.split("\n## ").next().unwrap_or(""))
    });
    assert_eq!(lists[0], lists[1], "both pages say the same");
    let seen = run(&lists[0]);
    assert_eq!(seen, ["tokenizer", "train", "train", "export", "verify", "run"]);
}

#[test]
fn the_tutorial_can_be_walked_in_both_languages() {
    for name in ["docs/tutorial.md", "docs/zh/tutorial.md"] {
        let mut all = commands(&page(name));
        // they wait for a person, or for a server elsewhere
        all.retain(|c| {
            !["chat", "serve", "push", "ollama"].iter().any(|v| c.starts_with(&format!("mmx {v} ")))
        });
        let seen = run(&all);
        assert_eq!(
            seen,
            ["tokenizer", "tokenizer", "train", "train", "export", "verify", "run"],
            "{name}"
        );
    }
}
