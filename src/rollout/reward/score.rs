//! The trait of rewards, and what it gives.

use mmx_converters::Result;
use mmx_data::Task;

use crate::prompts::Draw;
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
