//! Model families, tokenizers, chats and file formats in pure Rust: what all crates of mmx agree
//! on.
//!
//! Whoever reads, writes, trains or runs a model takes it from here what the model's tensors are
//! called and where each one lies in a file. Nothing is computed with weights here but conversions
//! of their values: the runner is the crate `mmx-ggml`, training `mmx-training`.
//!
//! ```
//! use std::path::Path;
//!
//! use mmx_converters::arch::{Config, Layout, presets, public_tensors, weights};
//! use mmx_converters::gguf::{self, GgmlType, Gguf, Metadata, TensorSpec, Value};
//!
//! # fn main() -> mmx_converters::Result<()> {
//! // a family's table: every weight, and where it lies in each format
//! let config = presets::preset("tiny").expect("the name of a preset");
//! let table = weights(&config);
//! assert_eq!(table[0].name, "model.embed_tokens.weight");
//! assert_eq!(table[0].gguf.tensor, "token_embd.weight");
//!
//! // a GGUF with all tensors of that model, all zeros
//! let tensors: Vec<TensorSpec> = public_tensors(&table, Layout::Gguf)
//!     .into_iter()
//!     .map(|public| TensorSpec { name: public.name, shape: public.shape, ty: GgmlType::F32 })
//!     .collect();
//! let mut keys = Metadata::new();
//! keys.set("general.architecture", Value::String(config.family.gguf_arch().to_owned()));
//! for (key, value) in config.to_gguf_keys()? {
//!     keys.set(key, value);
//! }
//! let name = Path::new("zeros.gguf");
//! let zeros = |i: usize| Ok(vec![0; tensors[i].bytes().unwrap_or_default()].into());
//! let bytes = gguf::to_bytes(name, &keys, &tensors, zeros)?;
//!
//! // and back: the file says which model it is
//! let file = Gguf::from_bytes(bytes, name)?;
//! assert_eq!(file.tensors().len(), tensors.len());
//! assert_eq!(Config::from_gguf_keys(file.metadata(), name, true)?, config);
//! # Ok(()) }
//! ```
//!
//! # Files
//!
//! - [`arch`]: families as tables: [`arch::Config`] and its JSON and GGUF keys,
//!   [`arch::weights`], presets, rotary positions
//! - [`tokenizer`]: text to ids and back, chats to prompts; training of a vocabulary
//! - [`chat`]: chat templates as Transformers renders them; an answer taken apart into thought,
//!   text and calls
//! - [`gguf`], [`safetensors`], [`pth`]: the containers of tensors, read by memory map, written
//!   whole
//! - [`model`]: a model as files: [`Model`] opens any of them; folders, GGUFs, adapters and
//!   runs are written and found
//! - [`quant`]: which type each tensor of a quantized file gets; importance matrices
//! - [`modelfile`]: Ollama's Modelfile
//! - [`tensor`]: element types, and conversions between them
//! - [`file`](mod@file), [`manifest`], [`digest`]: files that appear whole or not at all, what
//!   mmx wrote in a folder, SHA-256
//! - [`error`], [`progress`], [`words`]: one sentence for each fault, a trait that hears of
//!   progress, counts with their nouns
//! - [`random`], [`cpus`]: random numbers that are a function of their seed; how many CPUs a
//!   process may use
//! - [`wire`]: the protocol between `mmx` and its child `mmx-train`

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
