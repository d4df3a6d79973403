//! Rules that leave records out or mend them: lengths, scripts, languages, symbols, broken
//! encodings, Gopher's and C4's rules, personal data.
//!
//! In: records, and [`Rules`] from a TOML file. Out: the records that pass, and a report in which
//! every rule has its name. Each record is judged by itself, so shards give what one run gives.

mod c4;
mod encoding;
mod gopher;
mod judge;
mod personal;
mod rules;
mod shares;

pub use judge::{Filter, Verdict};
pub use rules::{DEFAULT, Range, Rules};
