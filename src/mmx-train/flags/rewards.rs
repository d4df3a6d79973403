//! The options of learning from rewards.

use mmx_training::policy::options::{Objective, PolicyOptions};

use super::knobs::{KlIn, Knobs, Switch};
use crate::error::{Error, Result};
use crate::talk::note;

impl Knobs {
    /// The options of learning from rewards.
    pub(super) fn of_rewards(&self, policy: &mut PolicyOptions, recipe: &str) -> Result<()> {
        if let Some(loss) = &self.loss {
            policy.choose(loss)?;
        }
        if let Some(mean) = &self.loss_mean {
            policy.choose_mean(mean)?;
        }
        if let Some(name) = &self.importance_sampling {
            policy.choose_importance(name)?;
        }
        if let Some(epsilon) = self.epsilon {
            policy.epsilon = epsilon;
            let clipped = policy.objective == Objective::Grpo;
            if clipped && (recipe == "2026" || policy.epsilon_high < epsilon) {
                policy.epsilon_high = epsilon;
            }
        }
        match self.epsilon_high {
            // the reference's grpo clips at epsilon on both sides, whatever this says
            Some(high) if recipe == "2026" && policy.objective == Objective::Grpo => {
                note!("--epsilon-high {high}: recipe 2026 clips at --epsilon on both sides");
            }
            Some(high) => policy.epsilon_high = high,
            None => {}
        }
        policy.kl_coef = self.kl_coef.unwrap_or(policy.kl_coef);
        policy.group_size = self.group_size.unwrap_or(policy.group_size);
        policy.max_new_tokens = self.max_new_tokens.unwrap_or(policy.max_new_tokens);
        policy.top_k = self.top_k.unwrap_or(policy.top_k);
        policy.top_p = self.top_p.unwrap_or(policy.top_p);
        policy.thinking_ratio = self.thinking_ratio.unwrap_or(policy.thinking_ratio);
        if let Some(temperature) = self.temperature {
            policy.temperature = temperature;
            if recipe != "2026" {
                policy.score_temperature = temperature;
            }
        }
        if let Some(mask) = self.mask_truncated {
            policy.mask_cut_off = mask == Switch::On;
        }
        policy.kl_in_reward = self.kl_in == Some(KlIn::Reward);
        policy.resample = self.dynamic_sampling.unwrap_or(policy.resample);
        policy.overlong_buffer = self.overlong_buffer.unwrap_or(policy.overlong_buffer);
        Ok(())
    }

    /// An option of learning from rewards is a mistake with another stage.
    pub(super) fn refuse_rewards_elsewhere(&self, stage: &str) -> Result<()> {
        let knobs = self;
        let of_rewards = mmx_data::stages::learns_from_rewards(stage);
        let for_rewards = [
            ("--reference", knobs.reference.is_some()),
            ("--reward", knobs.reward.is_some()),
            ("--group-size", knobs.group_size.is_some()),
            ("--epsilon", knobs.epsilon.is_some()),
            ("--epsilon-high", knobs.epsilon_high.is_some()),
            ("--kl-coef", knobs.kl_coef.is_some()),
            ("--max-new-tokens", knobs.max_new_tokens.is_some()),
            ("--loss", knobs.loss.is_some()),
            ("--tools", knobs.tools.is_some()),
            ("--rollouts-out", knobs.rollouts_out.is_some()),
            ("--rollouts", knobs.rollouts.is_some()),
            ("--loss-mean", knobs.loss_mean.is_some()),
            ("--importance-sampling", knobs.importance_sampling.is_some()),
            ("--top-k", knobs.top_k.is_some()),
            ("--top-p", knobs.top_p.is_some()),
            ("--mask-truncated", knobs.mask_truncated.is_some()),
            ("--engine", knobs.engine.is_some()),
            ("--allow-unsandboxed", knobs.allow_unsandboxed.is_some()),
            ("--thinking-ratio", knobs.thinking_ratio.is_some()),
            ("--kl-in", knobs.kl_in.is_some()),
            ("--dynamic-sampling", knobs.dynamic_sampling.is_some()),
            ("--overlong-buffer", knobs.overlong_buffer.is_some()),
            ("--rollout-dtype", knobs.rollout_dtype.is_some()),
        ];
        if let Some((option, _)) = for_rewards.iter().find(|(_, given)| *given && !of_rewards) {
            return Err(Error::usage(format!(
                "{option}: expected with a stage that learns from rewards (grpo, cispo, ppo, agent), found with \
                 {stage}"
            )));
        }
        Ok(())
    }
}
