//! Rewards: texts that a policy wrote to numbers, every part apart.
//!
//! | file | what it holds |
//! |---|---|
//! | `score.rs` | [`Score`], and the trait [`Scorer`] |
//! | `rewards.rs` | [`Rewards`]: a file of rewards, and those of records |
//! | `kind.rs`, `fields.rs` | the types of rewards, read from JSON |
//! | `part.rs`, `measure.rs` | one reward, and its values for a group's texts |
//! | `text.rs` | words, numbers, repetition |
//! | [`mod@reference`] | the reference's own rewards |
//! | `judge.rs` | models that judge |

mod fields;
mod judge;
mod kind;
mod measure;
mod part;
pub mod reference;
mod rewards;
mod score;
mod text;

pub use judge::{Judge, Judges, OpenJudge};
pub use rewards::Rewards;
pub use score::{Score, Scorer, check};
pub use text::{numbers, repetition, strip, words};
