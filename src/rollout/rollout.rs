//! A rollout: one row that a policy wrote, as training reads it and as a line of a file.

use std::path::Path;

use mmx_converters::{Error, Result};
use serde::{Deserialize, Serialize};

/// The reason why a row ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The policy wrote a stop id.
    Stop,
    /// The limit of new ids was reached.
    #[default]
    Length,
    /// Tool calls in the last turn that was allowed.
    Unfinished,
}

/// A prompt and what followed it, with the reward for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Index of the sample in its data.
    pub sample: u64,
    /// The group, whose rewards are compared with each other: rows of one draw of a prompt.
    pub group: u64,
    /// Ids of the prompt, the generation prompt included.
    pub prompt: Vec<u32>,
    /// Everything after the prompt: what the policy wrote, and what a template put between turns.
    pub ids: Vec<u32>,
    /// Per id of `ids`, whether the policy sampled it.
    pub sampled: Vec<bool>,
    /// Per id of `ids`, the log-probability in the distribution it was sampled from; 0 where the
    /// policy did not sample it.
    pub logps: Vec<f32>,
    /// Why it ends.
    pub finish: Finish,
    /// Parts of the reward by name, before their weights.
    #[serde(default)]
    pub parts: Vec<(String, f64)>,
    /// The reward.
    pub reward: f64,
}

impl Rollout {
    /// The line of a file of rollouts, without its line feed.
    #[must_use]
    pub fn to_json(&self) -> String {
        // strings and numbers only: nothing that could fail
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The rollout of a line.
    ///
    /// # Errors
    /// A line that is none, or whose lists differ in length.
    pub fn from_json(line: &str) -> Result<Self> {
        let fault = |message: String| Error::Format {
            path: Path::new("rollouts").into(),
            message,
            hint: None,
        };
        let rollout: Self = serde_json::from_str(line)
            .map_err(|e| fault(format!("expected a rollout, found a line that is none: {e}")))?;
        let ids = rollout.ids.len();
        for (key, found) in [("sampled", rollout.sampled.len()), ("logps", rollout.logps.len())] {
            if found != ids {
                return Err(fault(format!("key {key}: expected {ids} values, found {found}")));
            }
        }
        Ok(rollout)
    }
}
