//! Files put together by weight or budget, repeated where they are too small, and shuffled as a whole
//! though they do not fit into memory.
//!
//! Two passes. The first measures: a record's size goes to one of 65 536 buckets of its file by the
//! record's random key. From the buckets follows which keys are taken once more than the others, so
//! that a budget is met to about 1 / 65 536 of its file. The second gives every copy of a record a
//! random place, writes it to the part of the output that holds it, and sorts part after part.
//!
//! All that is random is a function of the seed, the file's index and the record's: parts of the
//! output that are made apart ([`Mix::part`]) are, one after the other, the output of one run.

mod measure;
mod run;
mod settings;

pub use run::{Mixed, Taken};
pub use settings::{Mix, Share, Unit};
