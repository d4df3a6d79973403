//! The runner: our own ggml graphs for the four families, on the CPU.
//!
//! A GGUF becomes a [`Model`] (weights, shared), a [`Session`] of it keeps keys and values of one
//! text and turns token ids into logits, [`Slots`] do so for several texts together. [`sampler`]
//! turns logits into an id, [`mod@generate`] a prompt into text; a [`Drafter`] has several tokens
//! of a text computed in one step. A [`Policy`] is a model that is trained meanwhile: its weights are
//! overwritten in memory, and it writes after many prompts together. The crate's head shows the rest
//! at work.

mod bench;
pub mod clock;
mod decoder;
mod draw;
pub mod generate;
mod in_memory;
mod kv_cache;
mod loader;
mod model;
mod names;
mod options;
mod pace;
mod policy;
pub mod random_model;
pub mod sampler;
mod session;
mod slots;
mod speculate;
mod threads;
mod weights;

pub use bench::{bench, bench_steps, bench_streams};
pub use generate::{
    Finish, Generated, Generation, StopFilter, Writer, generate, generate_after, generate_shifting,
};
pub use model::Model;
pub use names::Values;
pub use options::{KvType, LoadOptions, SessionOptions, SlotsOptions};
pub use policy::{Next, Policy, PolicyOptions, Prompt, SLOTS, Written};
pub use sampler::{Sampler, Sampling, log_probabilities};
pub use session::{Session, reusable};
pub use slots::{BATCH, Held, Part, Slots};
pub use speculate::Drafter;
