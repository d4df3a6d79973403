//! Rewards: texts that a policy wrote to numbers, every part apart.

use mmx_converters::Result;

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
}
