//! Models asked over and over: what commands share that make records by asking, or compare answers.
//!
//! In: a record, or two answers to compare. Out: the body of a chat request, its answer once there
//! is a whole one, kept in a journal on disk; and a judge's verdict.
//!
//! | file | what it holds |
//! |---|---|
//! | `prompts` | a record to the turns that are asked |
//! | `chat` | one request, asked until it is answered or not worth asking again |
//! | `journal` | answers on disk, as they come: what a run goes on from |
//! | `judge` | two answers to a judge's prompt, and its words to a verdict |

mod chat;
mod journal;
mod judge;
mod prompts;

pub use chat::{Chat, Refused, Retries, asked, whole};
pub use journal::Journal;
pub use judge::{Compared, JUDGE_PROMPT, Verdict, missing_place, prompt, verdict};
pub use prompts::{Prompt, prompt_of, user};
