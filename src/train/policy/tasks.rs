//! Held-out tasks: what a policy is rewarded for where it answers them greedily, one answer each.

use mmx_rollout::Rollout;

use super::sampling::Sampler;
use crate::error::Result;
use crate::held_out::{HeldOut, Measured, VAL_REWARD};
use crate::model::Model;
use crate::ranks::Ranks;
use crate::report::samples::Sample;
use crate::stage::Stage;

/// Answers that are shown.
const SHOWN: usize = 3;

/// Tasks that are not trained on.
pub struct HeldOutTasks<'a> {
    /// Samples at temperature 0, a group of one row for each prompt.
    pub sampler: Sampler<'a>,
}

impl HeldOut for HeldOutTasks<'_> {
    fn name(&self) -> &'static str {
        VAL_REWARD
    }

    fn in_words(&self) -> &'static str {
        "held-out reward"
    }

    fn before(&self) -> bool {
        true
    }

    fn measure(&mut self, _stage: &dyn Stage, _model: &Model, _ranks: &Ranks) -> Result<Measured> {
        let rollouts = self.sampler.answers(self.sampler.prompts.len())?;
        let tokenizer = self.sampler.tokenizer;
        let sample = |rollout: &Rollout| Sample {
            prompt: tokenizer.decode(&rollout.prompt, false),
            text: tokenizer.decode(&rollout.ids, true),
        };
        Ok(Measured {
            samples: rollouts.iter().take(SHOWN).map(sample).collect(),
            ..numbers(&rollouts)
        })
    }
}

/// The mean reward, and the means of its parts and of the lengths.
fn numbers(rollouts: &[Rollout]) -> Measured {
    let rows = rollouts.len().max(1) as f64;
    let mean = |of: &dyn Fn(&Rollout) -> f64| rollouts.iter().map(of).sum::<f64>() / rows;
    let length = |of: &Rollout| of.sampled.iter().filter(|&&by| by).count() as f64;
    let mut numbers = vec![("val_length".to_owned(), mean(&length))];
    for (name, _) in rollouts.iter().flat_map(|of| &of.parts) {
        let key = format!("{VAL_REWARD}_{name}");
        if numbers.iter().all(|(of, _)| *of != key) {
            let part = |of: &Rollout| {
                of.parts.iter().filter(|(of, _)| of == name).map(|(_, value)| value).sum()
            };
            numbers.push((key, mean(&part)));
        }
    }
    let value = (!rollouts.is_empty()).then(|| mean(&|of| of.reward));
    Measured { value, numbers, samples: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_all_tasks_and_a_part_that_some_lack_counts_as_nothing() {
        let rollout = |reward: f64, parts: &[(&str, f64)], ids: usize| Rollout {
            reward,
            parts: parts.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            sampled: vec![true; ids],
            ..Rollout::default()
        };
        let found = numbers(&[rollout(1.0, &[("exact", 1.0)], 3), rollout(0.5, &[], 5)]);
        assert_eq!(found.value, Some(0.75));
        let expected = [("val_length".to_owned(), 4.0), ("val_reward_exact".to_owned(), 0.5)];
        assert_eq!(found.numbers, expected);
        assert_eq!(numbers(&[]).value, None);
    }
}
