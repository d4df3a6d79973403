//! Trains tiny language models on libtorch: the only crate of mmx that knows it.
//!
//! Give [`job`] a resolved request and it makes and runs the whole training, or goes on from the
//! newest checkpoint; a program that wants the loop in its own hands makes a [`trainer::Trainer`].
//! Nothing here prints: sentences and progress go to a listener.
//!
//! The files, in the order in which a run passes through them:
//!
//! | file or folder | what it holds |
//! |---|---|
//! | [`job`] | a request to an outcome: everything below, put together |
//! | [`learn`] | the part of a job that learns from rewards: an engine and a scorer come in |
//! | [`config`] | the knobs that change a run's numbers, checked and saved with it |
//! | [`start`] | the models a run begins with, and the checkpoint it goes on from |
//! | [`model`] | the families in tch: ids to logits; initial values; adapters; devices |
//! | `kernel` | our own CPU operators behind the model, with their gradients |
//! | [`stage`] | a file for each stage: what is learned from a batch |
//! | [`loss`] | cross-entropy, divergence and log-probabilities without whole logits |
//! | [`policy`] | learning from rewards: rollouts, advantages, losses, a critic |
//! | [`ranks`] | the processes of a run as the loop sees them: shares, sums over all, who writes |
//! | [`trainer`] | the one loop: learning rate, forward, loss, backward, clip, step |
//! | `micro_step` | the numbers of micro-steps, of all processes, brought to the host |
//! | [`schedule`], [`optim`] | the learning rate of a micro-step; the update: AdamW |
//! | [`session`] | a trainer from its position to its end, with checkpoints and validation |
//! | [`held_out`] | what a model is measured with besides its training data |
//! | [`checkpoint`] | a run's state in a model's folder, whole or not at all |
//! | [`report`] | metrics.jsonl, TensorBoard's files, continued samples, the trace |
//! | [`distributed`] | many processes that train one model: how they meet, sums over all of them |
//! | [`memory`] | how much there is and how much a run takes, before its first step |
//! | [`logits`], [`about`] | answers for the engine `native`; libtorch's version and device |
//! | [`threads`], [`error`] | libtorch's worker threads; its refusals as errors of mmx |
//!
//! Two steps of training, from a file of texts to the loss:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use mmx_training::config::TrainConfig;
//! use mmx_data::{Dataset, Kind, Recipe, SampleOptions};
//! use mmx_training::model::Model;
//! use mmx_training::stage::Pretrain;
//! use mmx_data::batches::Packed;
//! use mmx_training::trainer::Trainer;
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
//! ```

pub mod about;
pub mod checkpoint;
pub mod config;
pub mod distributed;
pub mod error;
pub mod held_out;
pub mod job;
mod kernel;
pub mod learn;
pub mod logits;
pub mod loss;
pub mod memory;
mod micro_step;
pub mod model;
pub mod optim;
pub mod policy;
pub mod ranks;
pub mod report;
pub mod schedule;
pub mod session;
pub mod stage;
pub mod start;
pub mod threads;
pub mod trainer;

pub use error::{Error, Result};
