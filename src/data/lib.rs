//! Training data: JSON Lines and arrays ([`layout`]) to records ([`jsonl`]), records to token ids with a loss mask ([`sample`]),
//! those into a memory-mapped file ([`make`], found again by [`cache`]), samples to batches ([`batch`]).
//!
//! Everything here is plain Rust and deterministic: the same files, tokenizer, options and seed give
//! the same batches, and a position (epoch, index) is enough to go on from.

pub mod batch;
pub mod batches;
pub mod cache;
pub mod dataset;
pub mod jsonl;
pub mod layout;
mod make;
pub mod pack;
pub mod prefetch;
pub mod sample;
pub mod source;
pub mod stages;
pub mod texts;
mod tokens;

pub use batch::Batch;
pub use cache::Cache;
pub use dataset::Dataset;
pub use jsonl::{Fault, Kind, Record};
pub use pack::Rows;
pub use sample::{OnBad, Recipe, Sample, SampleOptions};
pub use stages::{StageInfo, reason_tag_ids};
