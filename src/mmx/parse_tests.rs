use std::ffi::OsString;

use crate::cli::Cli;
use crate::parse::*;

fn error(words: &[&str]) -> clap::Error {
    let words = ["mmx"].iter().chain(words).map(OsString::from).collect();
    parse_from::<Cli>(words).expect_err("misuse")
}

/// Every kind of error to which clap adds a tip, and what follows the tip is no misuse of the same
/// kind.
#[test]
fn every_tip_works() {
    for (words, tip, better) in [
        // a value that begins with a dash
        (
            &["export", "m", "--name", "-x"][..],
            "joined to its option: '--name=-x'",
            &["export", "m", "--name=-x"][..],
        ),
        (
            &["export", "m", "--license", "-mit"],
            "'--license=-mit'",
            &["export", "m", "--license=-mit"],
        ),
        (
            &["verify", "a", "b", "-x.gguf"],
            "written './-x.gguf'",
            &["verify", "a", "b", "./-x.gguf"],
        ),
        (
            &["inspect", "-x.gguf", "--keys"],
            "written './-x.gguf'",
            &["inspect", "./-x.gguf", "--keys"],
        ),
        // a word that is nearly one
        (
            &["verify", "a", "b", "--tolerence", "1"],
            "similar argument exists: '--tolerance'",
            &["verify", "a", "b", "--tolerance", "1"],
        ),
        (
            &["--tensors", "inspect", "m"],
            "'inspect --tensors' exists",
            &["inspect", "--tensors", "m"],
        ),
        (&["verfy", "a", "b"], "similar subcommand exists: 'verify'", &["verify", "a", "b"]),
        (
            &["data", "chek", "--stage", "sft", "f"],
            "similar subcommand exists: 'check'",
            &["data", "check", "--stage", "sft", "f"],
        ),
        (
            &["export", "m", "--hf", "f33"],
            "similar value exists: 'f32'",
            &["export", "m", "--hf", "f32"],
        ),
        (&["--", "inspect", "m"], "remove the '--' before it", &["inspect", "m"]),
    ] {
        let said = error(words).to_string();
        assert!(said.contains(tip), "{words:?}: expected {tip}, found {said}");
        assert!(said.matches("tip:").count() == 1, "{words:?}: {said}");
        let better = ["mmx"].iter().chain(better).map(OsString::from).collect();
        parse_from::<Cli>(better).unwrap_or_else(|e| panic!("{words:?}: the tip ends in {e}"));
    }
}

#[test]
fn no_tip_is_given_where_none_works() {
    for words in [
        &["quantize", "a", "b", "q4_0", "-5"][..],
        &["inspect", "m", "--keys", "-x"],
        &["inspect", "m", "--zzzz"],
        &["version", "-5"],
        &["nothing"],
        &["help", "nothing"],
        &["-x"],
    ] {
        let said = error(words).to_string();
        assert!(!said.contains("tip:"), "{words:?}: {said}");
    }
}

#[test]
fn numbers_say_what_was_expected() {
    for (words, expected) in [
        (&["eval", "m", "--show", "x"][..], "'x' for '--show <N>': expected a whole number from 0"),
        (&["eval", "m", "--show", ""], "'' for '--show <N>': expected a whole number from 0"),
        (&["eval", "m", "--show", "-1"], "'-1' for '--show <N>': expected a whole number from 0"),
        (&["eval", "m", "--show", "99999999999999999999"], "expected a smaller number"),
        (
            &["verify", "a", "b", "--tolerance", "much"],
            "'much' for '--tolerance <X>': expected a number",
        ),
        (&["eval", "m", "--stride", "x"], "'x' for '--stride <N>': expected a whole number from 0"),
    ] {
        let found = error(words);
        let said = found.to_string();
        assert!(said.contains(expected), "{words:?}: expected {expected}, found {said}");
        assert!(said.starts_with("error: invalid value"), "{said}");
        assert_eq!(found.exit_code(), 2);
    }
}

#[test]
fn examples_are_broken_where_a_shell_goes_on() {
    let short = "  mmx inspect m";
    assert_eq!(example(short), short);
    let long = "  mmx train distill --from runs/small --teacher runs/large --data \"a - b\" --out runs/distilled";
    let broken = example(long);
    assert_eq!(broken.replace(" \\\n     ", ""), long);
    assert_eq!(broken.lines().count(), 2);
    assert!(broken.lines().all(|line| line.len() <= EXAMPLE_WIDTH), "{broken}");
    assert_eq!(paragraphs("a\nb\n\nc:\n  d\n  e\n\nf\ng"), "a b\n\nc:\n  d\n  e\n\nf g");
}
