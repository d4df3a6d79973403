//! Training data: files of records to samples of token ids, and samples to batches.
//!
//! Everything here is plain Rust and deterministic: the same files, tokenizer, options and seed
//! give the same batches, and a position (epoch, index) is enough to go on from.
//!
//! A file of one chat, to a batch whose answer alone is learned:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use mmx_converters::tokenizer::{SpecialSet, train::{WordCounts, train}};
//! use mmx_data::{Dataset, Recipe, SampleOptions, stages};
//!
//! # let folder = tempfile::tempdir()?;
//! let files = [folder.path().join("chats.jsonl")];
//! let chat = r#"{"conversations": [{"role": "user", "content": "1+1?"},
//!                {"role": "assistant", "content": "2"}]}"#;
//! fs_err::write(&files[0], chat.replace('\n', ""))?;
//!
//! let mut words = WordCounts::new(WordCounts::LIMIT_BYTES);
//! words.add(&["one and one is two"])?;
//! let tokenizer = train(words, 300, SpecialSet::MiniMind3)?;
//!
//! let stage = stages::stage("sft").ok_or("no such stage")?;
//! let options = SampleOptions {
//!     system_ratio: 0.0, // no random system prompt
//!     ..SampleOptions::new(Recipe::R2026, stage.kind, stage.max_seq_len)
//! };
//! let data = Dataset::load(&files, &tokenizer, &options)?;
//! let batch = data.batch(&data.order(1337, 0, true), false);
//! assert_eq!((batch.batch, data.len()), (1, 1));
//! let learned = batch.y.iter().zip(&batch.mask).filter(|(_, mask)| **mask == 1.0);
//! let learned: Vec<u32> = learned.map(|(id, _)| *id as u32).collect();
//! assert!(tokenizer.decode(&learned, false).ends_with("2<|im_end|>\n"));
//! # Ok(())
//! # }
//! ```
//!
//! The files, in the order in which data passes through them:
//!
//! | file | what it holds |
//! |---|---|
//! | [`source`] | a file's text, unpacked |
//! | [`blocks`], [`layout`], `table` | a file in blocks of records; where they lie in text; rows of Parquet and CSV |
//! | [`jsonl`] | a record's text to an object, or a fault with its line |
//! | [`forms`], [`fields`], `convert`, `turns` | the one table of forms, names that are mapped, an object to a record, turns of chats |
//! | [`mod@record`] | what a sample is made from, and the kinds of data |
//! | [`preview`] | a look at a file's beginning: its form, its first records |
//! | [`sample`] | a record to token ids and the spans that are learned |
//! | `make`, `tokens` | a data file to a token file, in parallel; the token file's format |
//! | [`cache`] | token files found again by everything they depend on |
//! | [`dataset`] | all samples of the files of a run, and what is to be said about them |
//! | [`batch`], [`pack`] | samples to a batch, padded or sharing rows |
//! | [`batches`], [`prefetch`] | a position to its batch; batches made a step ahead |
//! | [`stages`] | the one list of training stages |
//! | [`task`] | a record to a prompt that a policy answers and is rewarded for |
//! | [`asking`] | models asked: requests, their journal, a judge's verdicts |
//! | [`texts`] | the texts of files, for training a tokenizer |

pub mod asking;
pub mod batch;
pub mod batches;
pub mod blocks;
pub mod cache;
mod convert;
pub mod dataset;
pub mod fields;
pub mod forms;
pub mod jsonl;
pub mod layout;
mod make;
pub mod pack;
pub mod prefetch;
pub mod preview;
pub mod record;
pub mod sample;
pub mod source;
pub mod stages;
mod table;
pub mod task;
pub mod texts;
mod tokens;
mod turns;

pub use batch::{Batch, Minibatch, Rewarded, Share};
pub use blocks::is_guarded;
pub use cache::Cache;
pub use dataset::Dataset;
pub use fields::Fields;
pub use jsonl::Fault;
pub use pack::Rows;
pub use record::{Kind, Record};
pub use sample::{OnBad, Recipe, Sample, SampleOptions};
pub use stages::{StageInfo, reason_tag_ids};
pub use task::Task;
