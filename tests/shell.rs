//! What shells and terminals get of mmx: completions, manual pages, how much is said, the version.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{TRAINS, mmx, mmx_ok, shared, text};

/// The commands of the help, but for `help` itself.
fn commands() -> Vec<String> {
    let help = mmx_ok(&["help"]);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// mmx with variables.
fn with(variables: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
    command
        .args(args)
        .env_remove("MMX_LOG")
        .envs(variables.iter().copied())
        .output()
        .expect("mmx starts")
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn every_shells_completions_name_every_command_and_the_options_of_training() {
    let commands = commands();
    assert!(commands.len() > 20, "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = mmx_ok(&["completions", shell]);
        for name in &commands {
            assert!(script.contains(name.as_str()), "{shell}: {name}");
        }
        for option in ["max-seq-len", "allowed-host", "api-key"] {
            assert!(script.contains(option), "{shell}: {option}");
        }
        assert_eq!(script.contains("dump-batches"), TRAINS, "{shell}");
        assert_eq!(script, mmx_ok(&["completions", shell]), "{shell}: another script");
    }
    let out = mmx(&["completions", "tcsh"]);
    assert_eq!(out.status.code(), Some(2));
}

/// Bash itself completes a word.
#[test]
fn bash_completes_commands_options_and_values() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = dir.path().join("mmx.bash");
    fs_err::write(&script, mmx_ok(&["completions", "bash"])).expect("a file");
    let complete = |words: &[&str]| -> Vec<String> {
        let last = words.len() - 1;
        let line = format!(
            "source {}; COMP_WORDS=({}); COMP_CWORD={last}; _mmx mmx {} {}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            text(&script),
            words.join(" "),
            words[last],
            words[last - 1],
        );
        let out = Command::new("bash").args(["--norc", "-c", &line]).output().expect("bash starts");
        String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
    };
    assert_eq!(complete(&["mmx", "veri"]), ["verify"]);
    assert!(complete(&["mmx", "serve", "--allow"]).contains(&"--allowed-host".to_owned()));
    assert_eq!(complete(&["mmx", "data", "check", "--stage", "dist"]), ["distill"]);
    if TRAINS {
        assert_eq!(complete(&["mmx", "train", "--batch"]), ["--batch-size"]);
    }
}

#[test]
fn every_command_has_a_manual_page_with_its_examples() {
    let dir = tempfile::tempdir().expect("a folder");
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    let listed = mmx_ok(&["man", "--out", text(&one)]);
    mmx_ok(&["man", "--out", text(&two)]);
    let files: Vec<PathBuf> = listed.lines().map(PathBuf::from).collect();
    for path in &files {
        let page = fs_err::read_to_string(path).expect("a page");
        assert!(page.contains(".TH ") && page.contains("NAME"), "{}", path.display());
        let again =
            fs_err::read_to_string(two.join(path.file_name().expect("a name"))).expect("a page");
        assert_eq!(page, again, "{}", path.display());
    }
    let has = |name: &str| files.contains(&one.join(name));
    for name in commands() {
        assert!(has(&format!("mmx-{name}.1")), "{name}");
    }
    assert!(has("mmx.1") && has("mmx-data-check.1"));
    let check = mmx_ok(&["man", "data", "check"]);
    assert_eq!(check, fs_err::read_to_string(one.join("mmx-data-check.1")).expect("a page"));
    assert!(check.contains("mmx data check") && check.contains("stage"), "{check}");
    assert_eq!(mmx_ok(&["man", "train"]).contains("gradient norm"), TRAINS);
    let out = mmx(&["man", "nothing"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("COMMAND: expected one of bench, chat"), "{}", stderr(&out));
}

#[test]
fn quiet_says_warnings_and_errors_alone_and_very_quiet_errors() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, tokenizer) = (common::reciting(dir.path(), None, 2.into(), 2), shared("golden"));
    // a run says its figures
    let run = |flags: &[&str]| {
        let out = with(&[], &[flags, &["run", text(&model), "-p", "a", "-n", "2"][..]].concat());
        assert!(out.status.success(), "{}", stderr(&out));
        stderr(&out)
    };
    assert!(run(&[]).contains("tokens"), "{}", run(&[]));
    assert_eq!((run(&["-q"]), run(&["-qq"])), (String::new(), String::new()));
    let data = dir.path().join("d.jsonl");
    fs_err::write(&data, "{\"text\": \"<|im_end|> in a text\"}\n").expect("a file");
    let check =
        ["data", "check", "--stage", "pretrain", "--tokenizer", text(&tokenizer), text(&data)];
    for (flags, warns) in
        [(&["-q"][..], true), (&["-qq"], false), (&["-q", "-q"], false), (&[], true)]
    {
        let said = stderr(&with(&[], &[flags, &check[..]].concat()));
        assert_eq!(said.contains("warning: "), warns, "{flags:?}: {said}");
    }
    for (value, warns) in [
        ("error", false),
        ("warn", true),
        ("off", false),
        ("", true),
        ("mmx=error,ureq=trace", false),
    ] {
        let said = stderr(&with(&[("MMX_LOG", value)], &check));
        assert_eq!(said.contains("warning: "), warns, "{value}: {said}");
    }
    let out = with(&[], &["-qq", "inspect", "nothing-there"]);
    assert!(
        out.status.code() == Some(1) && stderr(&out).starts_with("error: "),
        "{}",
        stderr(&out)
    );
}

#[test]
fn verbose_shows_what_libraries_record_of_the_targets_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let (cache, tokenizer) = (dir.path().join("cache"), shared("golden"));
    let data = shared("tables/texts.jsonl");
    let check =
        ["data", "check", "--stage", "pretrain", "--tokenizer", text(&tokenizer), text(&data)];
    let said = |variables: &[(&str, &str)], flags: &[&str]| {
        let all = [&[("MMX_CACHE", text(&cache))], variables].concat();
        let out = with(&all, &[flags, &check[..]].concat());
        assert!(out.status.success(), "{}", stderr(&out));
        stderr(&out)
    };
    let made = said(&[], &["-v"]);
    assert!(
        made.contains("debug mmx_data::cache: ") && made.contains("texts.jsonl: tokenized"),
        "{made}"
    );
    let found = said(&[("MMX_LOG", "mmx_data=debug")], &[]);
    assert!(found.contains("texts.jsonl: tokens found"), "{found}");
    for (value, flags) in
        [("", &[][..]), ("mmx_hub=debug", &[]), ("debug", &["-q"]), ("mmx_data=info", &[])]
    {
        let said = said(&[("MMX_LOG", value)], flags);
        assert!(!said.contains("debug"), "{value} {flags:?}: {said}");
    }
    let out = with(&[("MMX_LOG", "loud")], &["version"]);
    assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
    assert!(stderr(&out).contains("MMX_LOG: expected off, error, warn"), "{}", stderr(&out));
    // -v and -q together are misuse, also before `train`, whose options are mmx-train's
    assert_eq!(with(&[], &["-v", "-q", "version"]).status.code(), Some(2));
    if TRAINS {
        let out = with(&[], &["-v", "-q", "train", "sft"]);
        assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
    }
}

/// `--version` alone tells from which sources a program is.
#[test]
fn the_version_names_its_commit_and_no_path_of_the_machine_it_was_built_on() {
    let version = common::mmx_json(&["version"]);
    let line = mmx_ok(&["--version"]);
    let short = match version["commit"].as_str() {
        Some(commit) => format!(" ({})", &commit[..10]),
        None => String::new(),
    };
    assert_eq!(line, format!("mmx {}{short}\n", env!("CARGO_PKG_VERSION")));
    if TRAINS {
        let train = mmx_ok(&["train", "--version"]);
        assert_eq!(train, line.replace("mmx ", "mmx-train "));
    }
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    if checkout.join(".git").exists() {
        let git = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(checkout).output();
        if let Ok(head) = git
            && head.status.success()
        {
            // the build may be older than the last commit, never of another form
            let commit = version["commit"].as_str().expect("a commit, since there is a checkout");
            assert_eq!(commit.len(), String::from_utf8_lossy(&head.stdout).trim().len());
        }
    }
}
