//! mmx trains tiny language models from scratch and puts them everywhere, provably unchanged.
//!
//! The data flow, each word a file or folder:
//! `jsonl -> sample -> batch -> model -> loss -> train -> checkpoint -> export -> run -> verify`.
//! Families, tokenizer and file formats live in [`mmx_converters`], the runner in [`mmx_ggml`].
//! Everything that needs libtorch is behind the feature `train`.

#[cfg(feature = "train")]
pub mod checkpoint;
pub mod cli;
pub mod compare;
#[cfg(feature = "train")]
pub mod config;
pub mod data;
pub mod engine;
pub mod error;
pub mod eval;
pub mod export;
pub mod form;
#[cfg(feature = "train")]
pub mod loss;
#[cfg(feature = "train")]
pub mod model;
#[cfg(feature = "train")]
pub mod omp;
#[cfg(feature = "train")]
pub mod optim;
pub mod quantizing;
pub mod runs;
mod sample_text;
#[cfg(feature = "train")]
pub mod schedule;
#[cfg(feature = "train")]
pub mod stage;
#[cfg(feature = "train")]
pub mod train;
pub mod verify;

pub use error::{Error, Result};
