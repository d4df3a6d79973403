//! The trait of rewards, and what it gives.

use std::path::Path;

use mmx_converters::{Error, Result};
use mmx_data::Task;

use crate::prompts::{Draw, Prompts};
use crate::written::Written;

/// The reward for one rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// Its parts by name, before their weights.
    pub parts: Vec<(String, f64)>,
    /// The reward.
    pub reward: f64,
}

/// What rewards rollouts.
pub trait Scorer: Sync {
    /// The scores of a group's rollouts, in their order.
    ///
    /// # Errors
    /// A reward that cannot be computed is an error, never a 0: a policy would learn from it.
    fn score(&self, draw: &Draw, written: &[Written]) -> Result<Vec<Score>>;

    /// Whether a task can be scored, as far as that is seen before anything is written: a task
    /// without an answer to compare with, for instance, fails before the run and not within it.
    ///
    /// # Errors
    /// What the task lacks.
    fn check(&self, task: &Task) -> Result<()> {
        let _ = task;
        Ok(())
    }
}

/// Refuses tasks that cannot be scored before anything is sampled, by file and line.
///
/// # Errors
/// The first task that [`Scorer::check`] refuses.
pub fn check(prompts: &Prompts, scorer: &dyn Scorer) -> Result<()> {
    for sample in 0..prompts.len() as u64 {
        scorer.check(&prompts.task(sample)?).map_err(|error| {
            let (path, line) = prompts.place(sample).unwrap_or((Path::new("tasks"), 0));
            let message = format!("{}:{line}: {error}", path.display());
            match error.hint() {
                Some(hint) => Error::failed_with_hint(message, hint),
                None => Error::failed(message),
            }
        })?;
    }
    Ok(())
}
