//! Corpora before training: records filtered by rules, deduplicated, converted and mixed, on files
//! larger than memory.
//!
//! Everything here is streamed, uses all threads, and gives the same bytes whatever their number.
//!
//! A text of too few characters is left out, and the report says why:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use mmx_corpus::filter::{Filter, Rules};
//! use mmx_corpus::{Output, Reading};
//!
//! # let folder = tempfile::tempdir()?;
//! let input = folder.path().join("in.jsonl");
//! fs_err::write(&input, "{\"text\": \"a\"}\n{\"text\": \"long enough\"}\n")?;
//!
//! let rules = Rules::parse("[length]\ncharacters = { min = 5 }", "rules.toml".as_ref())?;
//! let mut filter = Filter::new(rules, None)?;
//! let mut output = Vec::new();
//! let report = filter.run(&Reading::of(&[input]), &mut Output::lines(&mut output))?;
//! assert_eq!(output, b"{\"text\": \"long enough\"}\n");
//! assert_eq!((report.kept, report.dropped[0].rule.as_str()), (1, "length.characters"));
//! # Ok(())
//! # }
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | [`reading`] | files to records, in parallel and in order |
//! | [`writing`] | records to JSON Lines, also packed, or Parquet |
//! | [`report`] | what was kept, and what was dropped by which rule, with examples |
//! | [`words`] | scripts of characters, words of a text |
//! | [`language`] | the language of a text |
//! | [`tokens`] | what tokenizers make of texts, by language |
//! | [`convert`] | records of any form to JSON Lines of another, or Parquet |
//! | [`generate`] | records made by asking a model, resumed at the request |
//! | [`mix`] | files by weight or budget, shuffled though larger than memory |
//! | [`filter`] | rules from a TOML file, each judging or mending one record |
//! | [`dedup`] | exact and near duplicates, and records that are in evaluations |

pub mod convert;
pub mod dedup;
pub mod filter;
pub mod generate;
pub mod language;
pub mod mix;
pub mod reading;
pub mod report;
pub mod tokens;
pub mod words;
pub mod writing;

pub use reading::{Reading, Source};
pub use report::{Example, Report};
pub use writing::Output;
