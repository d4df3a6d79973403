//! Runs the four MiniMind model families from a GGUF, on ggml: load, tokenize, generate, logits.
//!
//! The file is all that is needed: weights, configuration, tokenizer, chat template and sampling
//! settings. No Python, no libtorch. [`run`] is the runner; beneath it lies a safe wrapper of ggml
//! ([`wrap`]) with kernels of our own ([`kernel`]), beside it llama.cpp as the judge ([`judge`])
//! and ggml's quantizers ([`quant`], [`FileType`]). Formats, tokenizer and chat templates are in
//! [`converters`].
//!
//! ```
//! use mmx_ggml::converters::chat;
//! use mmx_ggml::run::{Generation, LoadOptions, Model, Sampling, Session, SessionOptions, generate};
//!
//! # fn main() -> mmx_ggml::Result<()> {
//! // A model of random weights, made here; from a file: Model::load(path, LoadOptions::default())
//! let bytes = mmx_ggml::run::random_model::tiny_gguf(1)?;
//! let model = Model::from_bytes(bytes, "tiny.gguf", LoadOptions::default())?;
//! let mut session = Session::new(&model, SessionOptions::default())?;
//!
//! // text to ids and back; a chat becomes a prompt by the model's own template
//! let tokenizer = model.tokenizer()?;
//! let ids = tokenizer.encode("Hello")?;
//! assert_eq!(tokenizer.decode(&ids, true), "Hello");
//! let messages = [chat::message("user", "Hello")];
//! let prompt = tokenizer.encode_chat(&messages, &chat::Options::generation())?.ids;
//!
//! // what follows a text, as numbers: one logit for each token there is
//! let logits = session.prefill(&ids)?;
//! assert_eq!(logits.len(), model.config().vocab_size);
//!
//! // and as text, piece by piece
//! session.truncate(0); // another text
//! let request = Generation {
//!     max_tokens: 16,
//!     sampling: Sampling { temperature: 0.8, top_p: 0.9, seed: 7, ..Sampling::default() },
//!     stop: vec!["\n\n".to_owned()],
//!     ignore_end: false,
//!     speculate: 0,
//! };
//! let mut streamed = String::new();
//! let answer = generate(&mut session, &prompt, &request, |piece| {
//!     streamed.push_str(piece);
//!     true // false ends it
//! })?;
//! assert_eq!(streamed, answer.text);
//! # Ok(()) }
//! ```
//!
//! A [`run::Model`] is cheap to clone and may be used by any number of threads; a [`run::Session`]
//! is one text in progress, which moves between threads but computes on one at a time.
//! [`run::Slots`] computes several texts together. Longer programs: `examples/generate_text.rs` and
//! `examples/next_tokens.rs`; from C: the crate `mmx-capi`.
//!
//! # Files
//!
//! - [`wrap`]: the C boundary: contexts, tensors, operations, memory, threads, devices, graphs
//!   that are computed; the log
//! - [`kernel`]: our own operations: attention, products with float and with quantized matrices
//!   (a file for each type), and the instruction sets they are written for
//! - [`quant`]: float32 to ggml's blocks and back, as llama-quantize writes them; collecting an
//!   importance matrix
//! - [`run`]: the runner: options, loader, weights, decoder (configuration to graph), cache,
//!   slots, session, sampler, generation
//! - [`judge`]: llama.cpp itself, to compare with
//! - [`version`], [`error`]: which ggml is linked; what can go wrong

pub mod error;
pub mod judge;
pub mod kernel;
pub mod quant;
pub mod run;
pub mod version;
pub mod wrap;

pub use error::{Error, Result};
pub use kernel::cpu::CpuSet;
pub use kernel::kernel_sets;
pub use mmx_converters as converters;
pub use mmx_converters::cpus::cpus;
pub use mmx_converters::quant::file_type::{Fallback, FileType, recipe};
pub use run::clock::Clock;
pub use wrap::cpu::cpu_kernels;
pub use wrap::device::Device;
pub use wrap::placement::devices;
pub use wrap::pool::MAX_THREADS;
