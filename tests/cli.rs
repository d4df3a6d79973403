//! The command line's manners: exit codes, help, one error line.

mod common;

use common::{mmx, mmx_error, mmx_ok};

#[test]
fn every_command_has_help_with_examples() {
    let help = mmx_ok(&["help"]);
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help" && *name != "version")
        .collect();
    assert!(commands.contains(&"verify") && commands.len() > 1, "{help}");
    for name in commands {
        let help = mmx_ok(&[name, "--help"]);
        let nested = help.contains("\nCommands:\n");
        assert!(
            nested || help.contains(&format!("mmx {name}")),
            "mmx {name} --help shows no example:\n{help}"
        );
    }
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

#[cfg(not(feature = "train"))]
#[test]
fn a_build_without_libtorch_says_so_where_one_trains() {
    let line = mmx_error(&["train", "sft", "--data", "chats.jsonl", "--epochs", "2"]);
    assert!(line.contains("without it"), "{line}");
}
