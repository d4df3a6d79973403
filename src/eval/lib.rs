//! Measurements of how good a model is: the perplexity of a text, the share of multiple-choice
//! questions that it answers rightly, and the share of chats that it continues with exactly the
//! right text.
//!
//! In: a model in an engine, and texts or questions. Out: numbers with their intervals, as
//! structures and as a page with plots.
//!
//! ```
//! use std::path::Path;
//!
//! use mmx_eval::perplexity::{Cut, Text, leading_bos, perplexity};
//! use mmx_models::engines::{self, Kind};
//! use mmx_models::open::Form;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("tiny.gguf");
//! # std::fs::write(&path, mmx_ggml::run::random_model::tiny_gguf(1)?)?;
//! // `path` is any model: a run's folder, a Transformers folder, a GGUF, hf:owner/name
//! let form = Form::open(&path)?;
//! let tokenizer = form.expect_tokenizer()?;
//! let mut engine = engines::open(Kind::Ggml, &form, 1)?;
//!
//! let text = Text {
//!     path: Path::new("text.txt").to_owned(),
//!     documents: vec!["the quick brown fox jumps over the lazy dog".to_owned()],
//! };
//! let cut = Cut::Sliding { window: 16, stride: 8 };
//! let bos = leading_bos(&tokenizer);
//! let found = perplexity(engine.as_mut(), &tokenizer, bos, &text, cut, &mut |_, _| ())?;
//! assert!(found.ppl() > 1.0 && found.bits_per_byte() > 0.0);
//! # Ok(()) }
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | [`perplexity`] | texts, how they are cut into windows, and what their tokens cost |
//! | [`benchmarks`] | the known benchmarks: how each is told, asked, and which split of it |
//! | [`questions`] | multiple-choice questions from benchmarks' files and folders |
//! | [`prompt`] | a question as the ids of a context and of each answer |
//! | `request` | what is asked, its parts, and the measures that decide |
//! | [`choice`] | which answers a model chooses, and the shares that are right |
//! | [`exact`] | chats that are answered greedily and compared as text |
//! | [`judged`] | answers of several models, compared by a judge |
//! | [`tasks`] | tasks that are answered, with tools, and rewarded |
//! | [`report`], `svg` | the page with tables and plots |
//! | [`curves`] | training curves as a picture |
//! | `row`, `stats`, `fault` | a row of the tables, intervals, faults of data files |

pub mod benchmarks;
pub mod choice;
pub mod curves;
pub mod exact;
mod fault;
pub mod judged;
pub mod perplexity;
pub mod prompt;
pub mod questions;
pub mod report;
mod request;
mod row;
mod stats;
mod svg;
pub mod tasks;

pub use row::Row;
pub use stats::{Z95, interval};
pub use svg::columns;
