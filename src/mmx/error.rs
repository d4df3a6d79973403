//! The command line's error: what went wrong below, in one sentence, with a hint where there is
//! one.
#![allow(dead_code, reason = "each program uses a part of it")]

use std::path::Path;
use std::process::ExitCode;

use mmx_converters::error::Error as LibraryError;

/// The result of every command.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An error of a library.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The command line asks for something that makes no sense: exit code 2.
    #[error("{message}")]
    Usage {
        /// Which option, expected and found.
        message: String,
    },
}

impl From<mmx_ggml::Error> for Error {
    fn from(error: mmx_ggml::Error) -> Self {
        Self::Library(error.into())
    }
}

impl Error {
    /// An I/O error with its path.
    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        LibraryError::io(path, source).into()
    }

    /// A failure in a sentence.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        LibraryError::failed(message).into()
    }

    /// A failure in a sentence, and what to do about it.
    pub(crate) fn failed_with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        LibraryError::failed_with_hint(message, hint).into()
    }

    /// Misuse of the command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into() }
    }

    /// What the user can do about it, where that is known.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Library(LibraryError::Setting { .. } | LibraryError::Misuse { .. })
            | Self::Usage { .. } => {
                Some("`mmx help` and `mmx COMMAND --help` show the options".into())
            }
            Self::Library(error) => error.hint(),
        }
    }

    /// The exit code: 2 for misuse, 1 for everything else.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            Self::Library(error) => 1 + u8::from(error.is_misuse()),
        }
    }

    /// The error in a sentence; settings are spelled as the options they are on the command line.
    fn sentence(&self, options: &[String]) -> String {
        match self {
            Self::Library(LibraryError::Setting { name, expected, found }) => {
                let option = format!("--{}", name.replace('_', "-"));
                let name = if options.contains(&option) { &option } else { name };
                format!("{name}: expected {}, found {found}", spelled(expected, options))
            }
            // what is said of a file names the file's keys, which are no options
            Self::Library(
                LibraryError::Io { .. }
                | LibraryError::Format { .. }
                | LibraryError::Key { .. }
                | LibraryError::Tensors { .. }
                | LibraryError::Tokenizer { .. }
                | LibraryError::Template { .. },
            ) => self.to_string(),
            other => spelled(&other.to_string(), options),
        }
    }
}

/// The options of a command and of those below it.
pub(crate) fn options_of(command: &clap::Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(clap::Arg::get_long);
    let mut options: Vec<String> = own.map(|long| format!("--{long}")).collect();
    command.get_subcommands().for_each(|below| options.extend(options_of(below)));
    options
}

/// A library's text with the settings it names in backticks, `max_seq_len`, as options:
/// --max-seq-len.
pub(crate) fn spelled(text: &str, options: &[String]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('`') {
        out.push_str(before);
        rest = after;
        let Some((inside, after)) = rest.split_once('`') else {
            out.push('`');
            break;
        };
        let option = format!("--{}", inside.replace('_', "-"));
        match options.contains(&option) {
            true => out.push_str(&option),
            false => out.extend(["`", inside, "`"]),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Prints an error and its hint, and gives the exit code.
pub(crate) fn exit_code(result: Result<()>, options: &[String]) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.sentence(options));
            if let Some(hint) = error.hint() {
                eprintln!("\nhint: {}", spelled(&hint, options));
            }
            ExitCode::from(error.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_spelled_as_options() {
        let options = ["--accum".to_owned(), "--max-seq-len".to_owned()];
        for (text, expected) in [
            ("lower `max_seq_len` or `accum`", "lower --max-seq-len or --accum"),
            (
                "`accum` of a step, see `mmx train --help`",
                "--accum of a step, see `mmx train --help`",
            ),
            ("`mmx data check` lists `all`", "`mmx data check` lists `all`"),
            ("a ` alone", "a ` alone"),
        ] {
            assert_eq!(spelled(text, &options), expected);
        }
        let error = Error::from(LibraryError::setting("max_seq_len", "at least 2", 1));
        assert_eq!(error.sentence(&options), "--max-seq-len: expected at least 2, found 1");
        assert_eq!((error.code(), Error::failed("x").code()), (2, 1));
        let error = Error::from(LibraryError::setting("stage", "one", "two"));
        assert_eq!(error.sentence(&options), "stage: expected one, found two");
    }

    #[test]
    fn keys_of_files_are_not_spelled_as_options() {
        let options = ["--seed".to_owned()];
        let words = "unknown field `seed`, expected `model`";
        let of_file = Error::from(LibraryError::format("tokenizer.json", words));
        assert_eq!(of_file.sentence(&options), format!("tokenizer.json: {words}"));
        let of_request = Error::failed("expected another `seed`");
        assert_eq!(of_request.sentence(&options), "expected another --seed");
    }
}
