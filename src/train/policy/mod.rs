//! Learning from rewards: from rollouts to the losses of their tokens.
//!
//! In: [`Rollout`](mmx_rollout::Rollout)s, of a file or of an engine that samples them with the
//! weights of now. Out: batches for the stages grpo, cispo, agent and ppo, and the pure functions
//! that those stages are made of.
//!
//! | file | what it holds |
//! |---|---|
//! | [`options`] | the knobs of these stages, and the values of recipes |
//! | [`advantage`] | rewards to advantages: groups, generalized estimates, whitening, a tracker |
//! | [`objective`] | log-probabilities and advantages to a loss |
//! | [`importance`] | what another engine's log-probabilities weigh |
//! | [`rows`] | which row every trained token belongs to |
//! | [`layout`] | rollouts to a batch |
//! | [`shared`] | a batch's rows with their common beginnings once |
//! | [`pieces`] | a batch in pieces whose gradients add up |
//! | [`source`] | a position to its batch: rollouts of a file or of an engine |
//! | [`sampling`] | prompts, an engine and a scorer to rollouts |
//! | [`tasks`] | held-out tasks, answered greedily, to a mean reward |
//! | [`critic`] | what rewards are expected: a transformer with one output |

pub mod advantage;
pub mod critic;
pub mod importance;
pub mod layout;
pub mod objective;
pub mod options;
pub mod pieces;
pub mod rows;
pub mod sampling;
pub mod shared;
pub mod source;
pub mod tasks;

pub use options::{Baseline, Importance, Mean, Objective, PolicyOptions, PpoOptions, Span};
