//! A model as files: opened ([`Model`]), written as a Transformers folder ([`folder`]) or a GGUF
//! ([`to_gguf`]), with adapters beside it ([`adapter`]) and the settings it is sampled with
//! ([`generation`]); where a training run keeps its checkpoints ([`run_folder`]).

pub mod adapter;
mod alone;
pub mod fallback;
pub mod folder;
pub mod generation;
mod grow;
mod open;
pub mod run_folder;
mod source;
pub mod to_gguf;
mod weights;

pub use alone::{holds_adapters, tokenizer_beside};
pub use open::*;
pub use weights::Dequantize;
