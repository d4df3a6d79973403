//! The command line's error: what went wrong below, in one sentence, with a hint where there is one.

use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, tokenizer, template or model that cannot be read, written or carried.
    #[error(transparent)]
    Converters(#[from] mmx_converters::Error),
    /// ggml, llama.cpp or the runner.
    #[error(transparent)]
    Ggml(#[from] mmx_ggml::Error),
    /// The operating system refused to read or write.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// libtorch refused; its first line.
    #[error("{doing}: {message}")]
    Torch {
        /// What mmx was doing.
        doing: String,
        /// libtorch's own words, first line.
        message: String,
    },
    /// The job could not be done.
    #[error("{message}")]
    Failed {
        /// What, where, expected and found.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The command line asks for something that makes no sense: exit code 2.
    #[error("{message}")]
    Usage {
        /// Which option, expected and found.
        message: String,
    },
}

impl Error {
    /// An I/O error with its path.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        mmx_converters::Error::io(path, source).into()
    }

    /// A failure in a sentence.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None }
    }

    /// A failure in a sentence, and what to do about it.
    pub fn failed_with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: Some(hint.into()) }
    }

    /// Misuse of the command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into() }
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Converters(error) => error.hint(),
            Self::Failed { hint, .. } => hint.clone(),
            Self::Usage { .. } => {
                Some("`mmx help` and `mmx COMMAND --help` show the options".into())
            }
            _ => None,
        }
    }

    /// 2 for misuse, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            _ => 1,
        }
    }
}

#[cfg(feature = "train")]
impl Error {
    /// A libtorch error with what mmx was doing.
    pub fn torch(doing: impl Into<String>, source: &tch::TchError) -> Self {
        let text = source.to_string();
        Self::Torch {
            doing: doing.into(),
            message: text.lines().next().unwrap_or_default().to_owned(),
        }
    }
}
