//! The words a user meets: help at every width, tables, versions, and messages that say what was expected.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{mmx, mmx_error, mmx_json, mmx_ok, shared, text};

/// Runs mmx in a terminal of so many columns; stdout.
fn at_width(width: usize, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
    let out = command.args(args).env("COLUMNS", width.to_string()).output().expect("mmx starts");
    assert!(out.status.success(), "mmx {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

/// The names below a line `Commands:`.
fn commands(help: &str) -> Vec<&str> {
    let below = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let rows = below.take_while(|line| !line.is_empty());
    let rows = rows.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    rows.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect()
}

/// Every command, and every one below it.
fn all_commands() -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    let mut i = 0;
    while i < all.len() {
        let words: Vec<&str> = all[i].iter().map(String::as_str).chain(["--help"]).collect();
        // a build without training passes every word behind `train` on
        if all[i] != ["train"] || cfg!(feature = "train") {
            let help = at_width(100, &words);
            let below = commands(&help)
                .into_iter()
                .map(|name| all[i].iter().cloned().chain([name.to_owned()]).collect::<Vec<_>>());
            let below: Vec<_> = below.collect();
            all.extend(below);
        }
        i += 1;
    }
    assert!(all.len() > 25, "{all:?}");
    all
}

fn indent(line: &str) -> usize {
    line.chars().take_while(|c| *c == ' ').count()
}

/// No line is longer than the terminal is wide, and none is broken before it is full: the word it goes on with would
/// not have fitted.
#[test]
fn help_fits_every_terminal_and_no_paragraph_is_broken_by_hand() {
    let all = all_commands();
    for width in [80, 100, 120] {
        for words in &all {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let help = match words[..] {
                ["train"] if cfg!(not(feature = "train")) => continue,
                _ => at_width(width, &[&words[..], &["--help"]].concat()),
            };
            let lines: Vec<&str> = help.lines().collect();
            for line in &lines {
                let length = line.chars().count();
                let one_word = line.split_whitespace().count() == 1;
                assert!(
                    length <= width || one_word || line.starts_with("Usage: "),
                    "mmx {words:?} at {width}: a line of {length}: {line}"
                );
            }
            for pair in lines.windows(2) {
                let (line, next) = (pair[0], pair[1]);
                let prose = |line: &str| {
                    let text = line.trim();
                    !text.is_empty() && !text.starts_with(['-', '[']) && !text.ends_with(':')
                };
                // continued lines of options stand below their text; examples and tables of commands do not go on
                let in_column = indent(line) == indent(next);
                let below_option = line.trim().starts_with('-') && indent(next) > 12;
                let example =
                    indent(next) == 2 || line.ends_with('\\') || next.starts_with("      mmx");
                if example || !prose(next) || !(in_column && prose(line) || below_option) {
                    continue;
                }
                let word = next.split_whitespace().next().expect("prose");
                let whole = line.chars().count() + 1 + word.chars().count();
                assert!(whole > width, "mmx {words:?} at {width}: broken early: {line}\n{next}");
            }
        }
    }
}

/// A shell that is given an example's lines joins those that end with a backslash.
#[test]
fn broken_examples_are_still_commands() {
    let help = at_width(80, &["eval", "--help"]);
    let joined = help.replace(" \\\n     ", "");
    assert!(help.contains(" \\\n      "), "{help}");
    assert!(joined.contains(
        "  mmx eval model-f16.gguf model-q8_0.gguf model-q4_0.gguf --ppl poems.txt --html report.html\n"
    ));
}

#[test]
fn version_says_what_mmx_was_built_with() {
    let short = mmx_ok(&["--version"]);
    // and the commit, where it is known: tests/shell.rs
    assert!(short.starts_with(&format!("mmx {}", env!("CARGO_PKG_VERSION"))), "{short}");
    let long = mmx_ok(&["version"]);
    assert!(long.starts_with(&format!("mmx        {}\n", env!("CARGO_PKG_VERSION"))), "{long}");
    for name in ["commit", "target", "features", "llama.cpp", "ggml", "kernels", "libtorch"] {
        assert!(long.lines().any(|line| line.starts_with(name)), "no {name}: {long}");
    }
    let all = mmx_json(&["version"]);
    assert_eq!(all["version"], env!("CARGO_PKG_VERSION"));
    let features = all["features"].as_array().expect("a list");
    assert_eq!(features.contains(&"train".into()), cfg!(feature = "train"));
    assert_eq!(all["libtorch"].is_string(), cfg!(feature = "train"));
    assert!(all["llama_cpp"]["ggml"].as_str().is_some_and(|v| v.split('.').count() == 3), "{all}");
    assert!(all["kernels"].as_str().is_some_and(|names| !names.is_empty()), "{all}");
    assert!(all["target"].as_str().is_some_and(|t| t.starts_with(std::env::consts::ARCH)), "{all}");
    // in a checkout it is the commit that git names; elsewhere none
    let git = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()
        .filter(|out| out.status.success());
    if Path::new(env!("CARGO_MANIFEST_DIR")).join(".git").exists()
        && let Some(out) = git
    {
        assert_eq!(all["commit"], String::from_utf8_lossy(&out.stdout).trim());
        assert!(long.contains(all["commit"].as_str().expect("a commit")));
    }
}

/// The golden model as a q8_0 GGUF, with its tokenizer.
fn exported(dir: &Path) -> PathBuf {
    let report = mmx_json(&[
        "export",
        text(&shared("golden/minimind2")),
        "--tokenizer",
        text(&shared("golden")),
        "--gguf",
        "q8_0",
        "--name",
        "m",
        "--out",
        text(dir),
    ]);
    PathBuf::from(report["files"][0]["path"].as_str().expect("a path"))
}

/// The built-in text is made to walk every branch: its perplexity would be read as the model's.
#[test]
fn perplexity_is_shown_for_a_text_of_ones_own_only() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = exported(dir.path());
    let own = dir.path().join("own.txt");
    fs_err::write(&own, "Time and tide wait for no man.").expect("a file");
    let verify = ["verify", text(&file), text(&file)];
    let on_own = [&verify[..], &["--text", text(&own)]].concat();
    let built_in = mmx_ok(&verify);
    assert!(!built_in.contains("ppl") && !built_in.contains("perplexity"), "{built_in}");
    let header = built_in.lines().find(|line| line.starts_with("form")).expect("a header");
    let row = built_in.lines().find(|line| line.starts_with("m-")).expect("a row");
    let end = |line: &str, word: &str| line.find(word).map(|at| at + word.len());
    assert_eq!(end(header, "ids"), end(row, "equal"), "{built_in}");
    let given = mmx_ok(&on_own);
    assert!(given.contains("  ppl  ") && given.contains(", perplexity "), "{given}");
    for args in [&verify[..], &on_own] {
        let report = mmx_json(args);
        assert!(report["rows"][0]["ppl"].is_number() && report["reference_ppl"].is_number());
    }

    let out = dir.path().join("verified");
    let source = text(&file);
    let shown = mmx_ok(&["export", source, "--gguf", "f16", "--verify", "--out", text(&out)]);
    assert!(shown.contains("mean KL") && !shown.contains("ppl"), "{shown}");
    let card = fs_err::read_to_string(out.join("README.md")).expect("a card");
    assert!(card.contains("| same top token |\n|---|---|---|---|---|\n"), "{card}");
    assert!(!card.contains("perplexity"), "{card}");

    let auto = ["export", source, "--gguf", "auto", "--max-kl", "0.5", "--tokens", "24"];
    let frontier = |more: &[&str]| mmx_ok(&[&auto[..], &["--out", text(&out)], more].concat());
    assert!(!frontier(&[]).contains("ppl"));
    assert!(frontier(&["--text", text(&own)]).contains("ppl"));
}

#[test]
fn names_that_become_part_of_file_names_are_checked_first() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    for name in ["a/b", "", "..", ".hidden", "a\\b", "a\nb"] {
        let model = shared("golden/minimind2");
        let name = format!("--name={name}");
        let found = mmx(&["export", text(&model), "--gguf", "q8_0", &name, "--out", text(&out)]);
        let stderr = String::from_utf8_lossy(&found.stderr);
        assert_eq!(found.status.code(), Some(2), "{name}: {stderr}");
        assert!(stderr.starts_with("error: --name: expected a part of file names"), "{stderr}");
        assert!(!out.exists(), "{name}");
    }
    for model in ["hf:me/model@", "hf:me/model@.."] {
        let found = mmx(&["inspect", model]);
        assert_eq!(found.status.code(), Some(2), "{model}");
        let stderr = String::from_utf8_lossy(&found.stderr);
        assert!(stderr.contains("revision: expected a branch, tag or commit"), "{stderr}");
    }
}

/// Misuse: exit code 2, and a message with the option, what it should be and what was found.
#[test]
fn misuse_names_the_option_what_is_expected_and_what_was_found() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = exported(dir.path());
    let model = text(&file);
    let golden = shared("golden/minimind2");
    let golden = text(&golden);
    let any = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    for (args, nouns) in [
        (
            &["verify", model, model, "--tolerance", "-1"][..],
            &["--tolerance", "expected 0 or more", "-1"][..],
        ),
        (
            &["verify", model, model, "--tolerance", "nan"],
            &["--tolerance", "expected 0 or more", "NaN"],
        ),
        (
            &["verify", model, golden, "--engine", "llama.cpp"],
            &[golden, "--engine", "expected", "ggml", "found llama.cpp"],
        ),
        (
            &["eval", golden, "--ppl", any, "--engine", "llama.cpp"],
            &["--engine", "expected", "found llama.cpp"],
        ),
        (
            &["eval", model, "--exact", any, "--min-accuracy", "90"],
            &["--min-accuracy", "from 0 to 1", "found 90"],
        ),
        (
            &["imatrix", model, "--data", any, "--out", "i", "--chunks", "0"],
            &["--chunks", "at least 1", "found 0"],
        ),
        (
            &["bench", golden, "--llama", "-p", "1", "-n", "1"],
            &["--llama", "expected a GGUF", golden],
        ),
        (&["export", model, "--gguf", "q4"], &["--gguf", "expected auto or one of f32", "q4"]),
        (
            &["run", model, "-p", "x", "--seed", "-2"],
            &["--seed", "expected 0 or more, or -1 to choose one", "-2"],
        ),
    ] {
        let out = mmx(args);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "mmx {args:?}: {stderr}");
        for noun in nouns {
            assert!(stderr.contains(noun), "mmx {args:?}: expected {noun} in {stderr}");
        }
    }
}

/// What fails: exit code 1, and one line with the file, what was expected and what was found.
#[test]
fn failures_name_the_file_what_is_expected_and_what_was_found() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = exported(dir.path());
    let model = text(&file);
    let written = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs_err::write(&path, content).expect("a file");
        path
    };
    let empty = written("empty.txt", "");
    let chat = written("chat.json", "{\"messages\": 7}");
    let golden = shared("golden/minimind2");
    let weights = golden.join("model.safetensors");
    let out = dir.path().join("out");
    for (args, nouns) in [
        (
            &["verify", model, model, "--text", text(&empty)][..],
            &["empty.txt", "expected a text", "found an empty file"][..],
        ),
        (
            &["verify", text(&golden), model, "--text", text(&chat)],
            &["minimind2", "expected a tokenizer", "found none"],
        ),
        (
            &["logits", model, "--ids", text(&weights), "--out", text(&out)],
            &[
                "model.safetensors",
                "expected a tensor input_ids",
                "found",
                "model.embed_tokens.weight",
            ],
        ),
        (
            &["tokenizer", "show", model, "--chat", text(&chat)],
            &["chat.json", "key messages", "expected a list", "found 7"],
        ),
        (
            &["run", model, "-p", "x", "--stop="],
            &["stop", "expected at least one character", "found an empty text"],
        ),
        (
            &["run", model, "--prompt=", "--raw"],
            &["prompt", "expected at least one token", "found none"],
        ),
        (&["push", text(&chat), "me/model"], &["chat.json", "expected a folder", "found a file"]),
    ] {
        let line = mmx_error(args);
        for noun in nouns {
            assert!(line.contains(noun), "mmx {args:?}: expected {noun} in {line}");
        }
    }
}

#[test]
fn one_of_a_kind_is_no_plural() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = exported(dir.path());
    let model = text(&file);
    let shown = mmx_ok(&["tokenizer", "show", model, "a"]);
    assert!(shown.ends_with("1 token, 1 byte\n"), "{shown}");
    let compared = mmx_ok(&["verify", model, model, "--tokens", "1"]);
    assert!(compared.contains(" 1 token\n"), "{compared}");
    let timed = mmx_ok(&["bench", model, "-p", "4", "-n", "1", "-r", "1"]);
    assert!(timed.contains(": 1 thread, prefill 4, decode 1 token,"), "{timed}");
    let other = shared("golden/minimind3");
    let line = mmx_error(&["verify", model, text(&other), "--engine", "ggml", "--tokens", "8"]);
    assert!(line.ends_with("1 of 1 comparison is beyond its limit"), "{line}");
    let doctor = mmx_ok(&["doctor"]);
    assert!(!doctor.contains(" 1 cores"), "{doctor}");
}
