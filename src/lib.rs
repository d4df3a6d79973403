//! mmx trains tiny language models from scratch and puts them everywhere, provably unchanged.
//!
//! The data flow, each word a file or folder:
//! `jsonl -> sample -> batch -> model -> loss -> train -> checkpoint -> export -> run -> verify`.
//! Families, tokenizer and file formats live in [`mmx_converters`], the runner in [`mmx_ggml`].
//! Everything that needs libtorch is behind the feature `train`.

pub mod cli;
pub mod compare;
pub mod data;
pub mod engine;
pub mod error;
pub mod eval;
pub mod export;
pub mod form;
#[cfg(feature = "train")]
pub mod model;
pub mod quantizing;
mod sample_text;
pub mod verify;

pub use error::{Error, Result};
