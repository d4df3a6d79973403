//! Answers of several models to the same questions, compared by a judge.
//!
//! In: questions, models that answer chats, a model that judges. Out: answers and verdicts in files
//! that later runs go on with, a ranking with intervals, a page with all answers side by side.
//!
//! | file | what it holds |
//! |---|---|
//! | `questions` | questions from files |
//! | `store` | answers and verdicts on disk, each under the digest of its request |
//! | `pool` | several requests at once |
//! | `answers` | questions to answers |
//! | `judging` | answers to a judge's verdicts, in both orders |
//! | `bradley_terry` | wins and ties to scores with intervals |
//! | `tally` | verdicts to a ranking, a matrix, and how much the judge went by places |
//! | `page` | answers side by side as HTML |
//! | `local` | a model in the runner as one that answers chats |

mod answers;
mod bradley_terry;
mod judging;
mod local;
mod page;
mod pool;
mod questions;
mod store;
mod tally;

pub use answers::{Answer, Answers, Asking, Contestant};
pub use bradley_terry::{ANCHOR, PRIOR, RESAMPLES, Score};
pub use judging::{Judging, Outcome, Pair, Said};
pub use local::Local;
pub use page::{Judged, Page, html, in_words, left_out};
pub use pool::Failures;
pub use questions::{Question, read};
pub use store::{Line, Store};
pub use tally::{Places, Standing, Tally, tally};
