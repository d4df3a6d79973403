//! mmx trains tiny language models from scratch and puts them everywhere, provably unchanged.
//!
//! The data flow, each word a file or folder:
//! `jsonl -> sample -> batch -> model -> loss -> train -> checkpoint -> export -> run -> verify`.
//! Families, tokenizer and file formats live in [`mmx_converters`], the runner in [`mmx_ggml`].
//! Everything that needs libtorch is behind the feature `train`.
//!
//! Two steps of training, from a file of texts to the loss:
//!
//! ```
//! # #[cfg(feature = "train")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use mmx::config::TrainConfig;
//! use mmx::data::{Dataset, Kind, Recipe, SampleOptions};
//! use mmx::model::Model;
//! use mmx::stage::Pretrain;
//! use mmx::train::{Trainer, batches::Packed};
//! use mmx_converters::arch::presets;
//! use mmx_converters::tokenizer::{SpecialSet, train::{WordCounts, train}};
//!
//! # let folder = tempfile::tempdir()?;
//! let files = [folder.path().join("text.jsonl")];
//! let texts = ["one two three four", "four three two one"];
//! fs_err::write(&files[0], texts.map(|text| format!("{{\"text\": \"{text}\"}}\n")).concat())?;
//!
//! let mut words = WordCounts::new(WordCounts::LIMIT_BYTES);
//! words.add(&texts)?;
//! let tokenizer = train(words, 300, SpecialSet::MiniMind3)?;
//! let options = SampleOptions::new(Recipe::R2026, Kind::Text, 32);
//! let data = Dataset::load(&files, &tokenizer, &options)?;
//!
//! let mut dimensions = presets::preset("tiny").ok_or("no such preset")?;
//! dimensions.vocab_size = 300;
//! let model = Model::random(&dimensions, 1, tch::Device::Cpu, tch::Kind::Float)?;
//! let config = TrainConfig {
//!     epochs: 2,
//!     accumulation: 1,
//!     lr: 1e-3,
//!     ..TrainConfig::new(&Pretrain, Recipe::R2026)
//! };
//! let mut batches = Packed::new(&data, &files, config.seed, config.shuffle, 1);
//! let mut trainer = Trainer::new(&model, &Pretrain, &config, &mut batches)?;
//! assert_eq!(trainer.plan().steps, 2); // both texts share one row, seen twice
//!
//! let mut losses = Vec::new();
//! while let Some(report) = trainer.advance()? {
//!     losses.extend(report.micro_steps.iter().filter_map(|step| step.loss));
//! }
//! assert!(losses[1] < losses[0]); // about ln 300 at first
//! assert!((losses[0] - 300f64.ln()).abs() < 0.5);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "train"))]
//! # fn main() {}
//! ```

mod answer;
#[cfg(feature = "train")]
pub mod autograd;
#[cfg(feature = "train")]
pub mod checkpoint;
pub mod cli;
pub mod compare;
#[cfg(feature = "train")]
pub mod config;
pub mod data;
mod digest;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod eval;
pub mod export;
pub mod form;
pub mod imatrix;
#[cfg(feature = "train")]
mod kernel;
#[cfg(feature = "train")]
pub mod loss;
#[cfg(feature = "train")]
pub mod model;
#[cfg(feature = "train")]
pub mod omp;
#[cfg(feature = "train")]
pub mod optim;
pub mod plot;
pub mod publish;
pub mod quantize;
pub mod quantizing;
pub mod runs;
mod sample_text;
#[cfg(feature = "train")]
pub mod schedule;
mod serve;
#[cfg(feature = "train")]
pub mod stage;
#[cfg(feature = "train")]
pub mod train;
pub mod verify;

pub use error::{Error, Result};

/// Bounds the threads that tokenize, quantize and export by what [`mmx_ggml::cpus`] allows, where that is less than the
/// pool would take by itself and RAYON_NUM_THREADS does not say otherwise.
pub fn bound_pool() {
    let (most, all) =
        (mmx_ggml::cpus(), std::thread::available_parallelism().map_or(1, usize::from));
    if most < all && std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // a pool that is there already stays as it is
        let _ = rayon::ThreadPoolBuilder::new().num_threads(most).build_global();
    }
}

/// A seed from the operating system, by way of the standard library's hash maps.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}
