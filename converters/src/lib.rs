//! What all crates of mmx agree on, in pure Rust: model families as tables ([`arch`]), tensors, and the
//! formats they are kept in.

pub mod arch;
pub mod chat;
pub mod cpus;
pub mod digest;
pub mod error;
pub mod file;
pub mod gguf;
pub mod manifest;
pub mod model;
pub mod modelfile;
pub mod progress;
pub mod pth;
pub mod quant;
pub mod random;
pub mod safetensors;
pub mod tensor;
pub mod tokenizer;
pub mod wire;
pub mod words;

pub use error::{Error, Result};
pub use model::Model;

/// The source of what turns messages into text and text into ids. Whoever keeps ids keeps a digest of it with them:
/// with other code they may be others.
pub const CODE_OF_TEXT: [&str; 11] = [
    include_str!("random.rs"),
    include_str!("chat/mod.rs"),
    include_str!("chat/python.rs"),
    include_str!("chat/tags.rs"),
    include_str!("tokenizer/bytes.rs"),
    include_str!("tokenizer/codec.rs"),
    include_str!("tokenizer/encoder.rs"),
    include_str!("tokenizer/fast.rs"),
    include_str!("tokenizer/open.rs"),
    include_str!("tokenizer/special.rs"),
    include_str!("tokenizer/words.rs"),
];
