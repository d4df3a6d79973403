//! Errors: what can go wrong with a file of others, in one sentence with the file, the key or
//! tensor, what was expected and what was found, and a hint where there is one.

use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. `Display` is one line; [`Error::hint`] is what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The bytes of a file do not follow its format.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in the file, what was expected and what was found.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A key of a configuration is missing or has an impossible value.
    #[error("{}: key {key}: {message}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key, as spelled in the file.
        key: String,
        /// What was expected and what was found.
        message: String,
    },
    /// The tensors of a file are not those its configuration asks for. All faults at once.
    #[error("{}: {report}", path.display())]
    Tensors {
        /// The file or folder.
        path: PathBuf,
        /// Missing, unexpected and mismatched tensors.
        report: TensorReport,
    },
    /// The model cannot be carried exactly by the format asked for.
    #[error("{what}: {reason}")]
    Unsupported {
        /// The model, file or feature.
        what: String,
        /// Why it cannot be carried.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A file that mmx did not write, or that was changed since, lies where one is to be written.
    #[error("{}: expected no file or one that mmx wrote, found one that mmx did not write or that was changed since", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The output is one of the inputs.
    #[error("{}: expected another file or folder than the input, found the input {}", output.display(), input.display())]
    OwnInput {
        /// The file or folder to be written.
        output: PathBuf,
        /// The file or folder that is read.
        input: PathBuf,
    },
    /// A tokenizer that cannot be read, trained or carried.
    #[error("{}: {message}", path.display())]
    Tokenizer {
        /// The tokenizer's file or folder.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
    /// A chat template that does not compile or refused the messages.
    #[error("chat template: {message}")]
    Template {
        /// The engine's or the template's own words.
        message: String,
    },
    /// The job could not be done.
    #[error("{message}")]
    Failed {
        /// One sentence: what failed, where, expected and found.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A setting has a value that makes no sense.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// The setting, as the field of a request or configuration spells it: `max_seq_len`.
        name: String,
        /// The values it can have.
        expected: String,
        /// The value it has.
        found: String,
    },
    /// A request that does not fit what it is made of: a misuse of the caller's, no fault of a
    /// file.
    #[error("{message}")]
    Misuse {
        /// Expected and found.
        message: String,
    },
}

/// How the tensors found differ from the tensors expected.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct TensorReport {
    /// Tensors the architecture needs and the file lacks.
    pub missing: Vec<String>,
    /// Tensors the file has and the architecture does not know.
    pub unexpected: Vec<String>,
    /// `(tensor, expected, found)`: shapes or types that differ.
    pub mismatched: Vec<(String, String, String)>,
    /// The cause, where it is known: another number of layers, for instance.
    pub note: Option<String>,
}

impl TensorReport {
    /// True when nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

impl TensorReport {
    /// The unexpected tensors whose names are nearest to those missing: often a prefix or another
    /// spelling.
    fn hint(&self) -> Option<String> {
        let mut pairs = Vec::new();
        for missing in self.missing.iter().take(2) {
            // the unexpected names that are worth a comparison; more would be a file of another
            // kind
            let nearest =
                self.unexpected.iter().take(1000).map(|found| (edits(missing, found), found)).min();
            if let Some((distance, found)) = nearest
                && distance <= missing.len() / 2
            {
                pairs.push(format!("{missing} (nearest in the file: {found})"));
            }
        }
        (!pairs.is_empty()).then(|| format!("expected {}", pairs.join(", ")))
    }
}

/// Levenshtein's distance between two names, in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let new = (diagonal + usize::from(x != y)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, new);
            left = new;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

impl std::fmt::Display for TensorReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        /// At most this many names of a kind in one message; the count is always given.
        const SHOWN: usize = 6;
        let mut separator = "";
        if let Some(note) = &self.note {
            f.write_str(note)?;
            separator = "; ";
        }
        let list = |f: &mut std::fmt::Formatter<'_>, what: &str, names: &[String]| {
            let more = if names.len() > SHOWN { ", ..." } else { "" };
            write!(
                f,
                "{} {what}: {}{more}",
                names.len(),
                names[..names.len().min(SHOWN)].join(", ")
            )
        };
        for (tensor, expected, found) in self.mismatched.iter().take(SHOWN) {
            write!(f, "{separator}tensor {tensor}: expected {expected}, found {found}")?;
            separator = "; ";
        }
        if self.mismatched.len() > SHOWN {
            write!(f, "; {} more tensors differ", self.mismatched.len() - SHOWN)?;
        }
        if !self.missing.is_empty() {
            f.write_str(separator)?;
            list(f, "missing", &self.missing)?;
            separator = "; ";
        }
        if !self.unexpected.is_empty() {
            f.write_str(separator)?;
            list(f, "unexpected", &self.unexpected)?;
        }
        Ok(())
    }
}

impl Error {
    /// An I/O error with its path.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        // fs_err wraps the system's reason in a sentence that names the path again: keep the
        // reason.
        let source = match source.get_ref().and_then(|inner| inner.source()) {
            Some(inner) => std::io::Error::new(source.kind(), inner.to_string()),
            None => source,
        };
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// Bytes that do not follow their format.
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_owned(), message: message.into(), hint: None }
    }

    /// A key that is missing or impossible.
    pub fn key(path: impl AsRef<Path>, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Key { path: path.as_ref().to_owned(), key: key.into(), message: message.into() }
    }

    /// Something that cannot be carried exactly.
    pub fn unsupported(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), reason: reason.into(), hint: None }
    }

    /// A failure in a sentence.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None }
    }

    /// A failure in a sentence, and what to do about it.
    pub fn failed_with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::failed(message).with_hint(hint)
    }

    /// This error with what to do about it; of the kinds that hold no hint it stays as it is.
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Format { hint, .. }
        | Self::Unsupported { hint, .. }
        | Self::Failed { hint, .. } = &mut self
        {
            *hint = Some(text.into());
        }
        self
    }

    /// A setting with an impossible value.
    pub fn setting(
        name: impl Into<String>,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Self {
        Self::Setting { name: name.into(), expected: expected.into(), found: found.to_string() }
    }

    /// Something asked for that does not fit.
    pub fn misuse(message: impl Into<String>) -> Self {
        Self::Misuse { message: message.into() }
    }

    /// True where what was asked for makes no sense, whatever the files hold: a fault of the
    /// caller's.
    pub fn is_misuse(&self) -> bool {
        matches!(self, Self::Setting { .. } | Self::Misuse { .. })
    }

    /// A hint: what the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Format { hint, .. }
            | Self::Unsupported { hint, .. }
            | Self::Failed { hint, .. } => hint.clone(),
            Self::Tensors { report, .. } => report.hint(),
            Self::OwnInput { .. } => Some("give the output another name".to_owned()),
            _ => None,
        }
    }
}
