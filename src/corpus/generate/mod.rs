//! Records made by asking a model: answers to prompts, pairs of answers that a judge compares, new
//! instructions from seeds.
//!
//! Requests are answered by whatever implements [`Chat`], several at once. Every answer goes into a
//! journal beside the output as soon as it is there, so that a run that was killed goes on at the
//! request where it was. The output is written from the journal in the prompts' order: the same
//! answers give the same bytes, whatever came first and however often the run was begun anew.

mod run;
mod settings;
mod similar;
mod steps;
#[cfg(test)]
mod tests;

pub use mmx_data::asking::{Chat, JUDGE_PROMPT, Refused, Retries, missing_place};
pub use run::Generated;
pub use settings::{Generate, Mode, Sampling};
