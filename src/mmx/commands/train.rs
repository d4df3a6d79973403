//! `mmx train`: starts `mmx-train`, which lies beside this program, in its place.

use std::ffi::OsString;

use mmx_models::trainer;

use crate::error::{Error, Result};

/// The arguments for `mmx-train`, if these ask for it: `[--json] [-v] [-q] train ...` or `help
/// train`. They are its own: clap sees none of them here.
pub(crate) fn arguments(given: impl Iterator<Item = OsString>) -> Option<Vec<OsString>> {
    let mut given = given.peekable();
    let mut flags: Vec<OsString> = Vec::new();
    while let Some(flag) = given.next_if(is_of_both) {
        // said twice it is meant once; -v -v is meant twice
        if flag != "--json" || !flags.contains(&flag) {
            flags.push(flag);
        }
    }
    let first = given.next()?;
    if first == "train" {
        flags.extend(given);
        return Some(flags);
    }
    let second = given.next();
    (first == "help" && second.is_some_and(|of| of == "train")).then(|| vec!["--help".into()])
}

/// True of a flag that both programs have.
fn is_of_both(argument: &OsString) -> bool {
    let short = |text: &str| {
        let letters = text.strip_prefix('-').unwrap_or_default();
        !letters.is_empty() && letters.chars().all(|letter| "vq".contains(letter))
    };
    let text = argument.to_str().unwrap_or_default();
    matches!(text, "--json" | "--verbose" | "--quiet") || short(text)
}

/// Becomes `mmx-train`: signals reach it and its exit code is this program's.
///
/// # Errors
/// It is not there or cannot be started.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<()> {
    let mut command = trainer::command("train")?;
    command.args(arguments);
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        let error = command.exec(); // returns only if it failed
        Err(Error::failed(format!("{}: {error}", command.get_program().display())))
    }
    #[cfg(not(unix))]
    {
        let status = command.status();
        let status = status.map_err(|error| {
            Error::failed(format!("{}: {error}", command.get_program().display()))
        })?;
        std::process::exit(status.code().unwrap_or(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mmx_train_is_asked() {
        let of = |line: &str| {
            arguments(line.split_whitespace().map(OsString::from))
                .map(|found| found.join(" ".as_ref()).into_string().expect("text"))
        };
        assert_eq!(of("train sft --lr 1"), Some("sft --lr 1".into()));
        assert_eq!(of("--json train sft"), Some("--json sft".into()));
        assert_eq!(of("-vv --json --json -q train sft"), Some("-vv --json -q sft".into()));
        assert_eq!(of("help train"), Some("--help".into()));
        assert_eq!(of("train"), Some(String::new()));
        for other in ["", "help", "--json", "run train", "help run", "--help train"] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
