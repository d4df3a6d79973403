//! A safe wrapper of ggml, llama.cpp as a judge, and the runner of mmx on top of it.

mod attention;
mod backend;
pub mod context;
pub mod error;
pub mod file_type;
pub mod graph;
mod importance;
pub mod llama;
mod log;
mod packed;
pub mod quantize;
pub mod random;
mod rng;
pub mod run;
pub mod tensor;

pub use error::{Error, Result};
pub use file_type::{Fallback, FileType, recipe};
