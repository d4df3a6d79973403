//! What can go wrong in ggml, llama.cpp and the runner.

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model's file could not be read.
    #[error(transparent)]
    Converters(#[from] mmx_converters::Error),
    /// The C library returned a failure.
    #[error("{doing}: {message}")]
    Library {
        /// What was asked of it.
        doing: String,
        /// What it logged, last lines.
        message: String,
    },
    /// A request that the model or session cannot serve (context full, id out of range, ...).
    #[error("{message}")]
    Request {
        /// Expected and found.
        message: String,
    },
}

impl From<Error> for mmx_converters::Error {
    /// For those who speak of models and files only.
    fn from(error: Error) -> Self {
        match error {
            Error::Converters(error) => error,
            other => Self::failed(other.to_string()),
        }
    }
}
