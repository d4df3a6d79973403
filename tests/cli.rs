//! The command line's manners: exit codes, help, one error line.

mod common;

use common::{mmx, mmx_error, mmx_ok};

/// The commands that a help text lists.
fn listed(help: &str) -> Vec<&str> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect()
}

#[test]
fn every_command_has_help_with_examples() {
    let help = mmx_ok(&["help"]);
    let commands = listed(&help);
    assert!(commands.contains(&"verify") && commands.len() > 1, "{help}");
    let mut asked = 0;
    for name in commands {
        let help = mmx_ok(&[name, "--help"]);
        let nested = listed(&help);
        let below: Vec<(String, String)> = match nested.is_empty() {
            true => vec![(format!("mmx {name}"), help.clone())],
            false => nested
                .into_iter()
                .map(|below| (format!("mmx {name} {below}"), mmx_ok(&[name, below, "--help"])))
                .collect(),
        };
        for (command, help) in below {
            let examples = help.split_once("Examples:\n").map_or("", |(_, after)| after);
            assert!(examples.contains(&command), "{command} --help shows no example:\n{help}");
            asked += 1;
        }
    }
    assert!(asked > 22, "{asked} commands");
}

/// The notices go with every copy of the program: each crate with its licence, and the texts.
#[test]
fn licenses_are_those_of_every_crate_that_is_linked() {
    let said = mmx_ok(&["licenses"]);
    for crate_and_licence in ["llama-cpp-sys-2 ", "tokenizers ", "clap "] {
        assert!(
            said.lines().any(|line| line.starts_with(crate_and_licence)),
            "{crate_and_licence}"
        );
    }
    assert!(said.contains("Permission is hereby granted"), "no text of a licence");
    assert_eq!(common::mmx_json(&["licenses"])["notices"], said);
    assert!(mmx_ok(&["help"]).contains("  licenses "));
}

#[test]
fn misuse_exits_2() {
    for args in [&["no-such-command"][..], &["verify"], &["logits", "x", "--engine", "none"], &[]] {
        let out = mmx(args);
        assert_eq!(out.status.code(), Some(2), "mmx {args:?}");
        assert!(out.stdout.is_empty(), "mmx {args:?} put talk on stdout");
    }
}

#[test]
fn an_unreadable_path_is_one_clear_error() {
    let line = mmx_error(&["verify", "no/such/model", "no/such/other.gguf"]);
    assert!(line.contains("no/such/model"), "{line}");
    let line =
        mmx_error(&["logits", "no/such/model", "--ids", "no/such/ids.json", "--out", "never"]);
    assert!(line.contains("no/such/ids.json"), "{line}");
    assert!(!std::path::Path::new("never").exists());
}

/// The program alone, as an archive without training has it.
#[test]
fn mmx_without_mmx_train_beside_it_says_what_to_do() {
    // a link, since a copy may still be open for writing in a process that another test just started: "text file busy"
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let alone = dir.path().join("mmx");
    fs_err::hard_link(env!("CARGO_BIN_EXE_mmx"), &alone).expect("a link");
    let run = |args: &[&str]| {
        let out = std::process::Command::new(&alone).args(args).output().expect("it starts");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, said) = run(&["train", "sft", "--data", "chats.jsonl", "--epochs", "2"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("expected the program mmx-train beside mmx, found none"), "{said}");
    assert!(said.contains("hint: "), "{said}");
    let model = common::shared("golden/minimind2");
    let ids = dir.path().join("ids.json");
    fs_err::write(&ids, "[1, 2]").expect("a file");
    let out = dir.path().join("l");
    let [model, ids, out] = [&model, &ids, &out].map(|p| p.to_str().expect("text"));
    let logits = ["logits", model, "--ids", ids, "--out", out];
    let (code, said) = run(&[&logits[..], &["--engine", "native"]].concat());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("mmx-train"), "{said}");
    assert_eq!(run(&logits).0, Some(0), "the runner needs no other program");
}
