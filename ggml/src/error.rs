//! Errors of ggml, llama.cpp and the runner.

/// The result of every fallible function of this crate.
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
        /// The request that the library was given.
        doing: String,
        /// The last lines of its log.
        message: String,
    },
    /// A setting of a request has a value that makes no sense.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// The setting, as its field is spelled: `top_p`.
        name: String,
        /// The values it can have.
        expected: &'static str,
        /// The value it has.
        found: f64,
    },
    /// A request that the model or session cannot serve (context full, id out of range, ...).
    #[error("{message}")]
    Request {
        /// Expected and found.
        message: String,
    },
}

impl From<Error> for mmx_converters::Error {
    /// An error for callers that know errors of models and files only.
    fn from(error: Error) -> Self {
        match error {
            Error::Converters(error) => error,
            Error::Setting { name, expected, found } => Self::setting(name, expected, found),
            other => Self::failed(other.to_string()),
        }
    }
}
