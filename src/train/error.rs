//! The error of all libraries, and libtorch's refusals as one.

pub use mmx_converters::error::{Error, Result};

/// libtorch's refusals.
pub trait TorchError {
    /// A libtorch error with what mmx was doing: its own words, first line.
    fn torch(doing: impl Into<String>, source: &tch::TchError) -> Self;
}

impl TorchError for Error {
    fn torch(doing: impl Into<String>, source: &tch::TchError) -> Self {
        let text = source.to_string();
        Self::failed(format!("{}: {}", doing.into(), text.lines().next().unwrap_or_default()))
    }
}
