//! The runner: our own ggml graphs for the four families, on the CPU.
//!
//! A GGUF becomes a [`Model`] (weights, shared), a [`Session`] of it keeps keys and values of one text and
//! turns token ids into logits, [`Slots`] do so for several texts together. [`sampler`] turns logits into
//! an id, [`mod@generate`] a prompt into text.
//!
//! ```no_run
//! use mmx_ggml::run::{LoadOptions, Model, Session, SessionOptions};
//! # fn main() -> mmx_ggml::Result<()> {
//! let model = Model::load("model.gguf".as_ref(), LoadOptions::default())?;
//! let mut session = Session::new(&model, SessionOptions::default())?;
//! let logits = session.prefill(&[1, 42, 7])?; // of the last position, [vocab]
//! assert_eq!(logits.len(), model.config().vocab_size);
//! # Ok(()) }
//! ```

mod bench;
mod decoder;
pub mod generate;
mod kv_cache;
mod model;
mod pace;
pub mod sampler;
mod session;
mod slots;
mod weights;

pub use bench::{bench, bench_streams};
pub use generate::{Finish, Generated, Generation, StopFilter, generate, generate_after};
pub use model::{LoadOptions, Model};
pub use sampler::{Sampler, Sampling, log_probabilities};
pub use session::{KvType, Session, SessionOptions};
pub use slots::{BATCH, Part, Slots, SlotsOptions};
