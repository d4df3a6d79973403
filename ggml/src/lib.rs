//! A safe wrapper of ggml, llama.cpp as a judge, and the runner of mmx on top of it.

pub mod error;

pub use error::{Error, Result};
