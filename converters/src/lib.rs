//! What all crates of mmx agree on, in pure Rust: model families as tables ([`arch`]), tensors, and the
//! formats they are kept in.

pub mod adapter;
pub mod arch;
pub mod carry;
pub mod chat;
pub mod error;
pub mod file;
pub mod folder;
pub mod generation;
pub mod gguf;
pub mod imatrix;
pub mod model;
pub mod modelfile;
pub mod pth;
pub mod safetensors;
pub mod shards;
pub mod tensor;
pub mod to_gguf;
pub mod tokenizer;

pub use error::{Error, Result};
pub use model::Model;
