//! The knobs of the stages that learn from rewards.

use mmx_data::{StageInfo, stages};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What is maximized per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// min(r A, clip(r) A), r being the ratio to the policy that sampled. Source: Shao et al. 2024.
    Grpo,
    /// min(r, cap) A log p, the weight without a gradient. Source: MiniMax-M1, 2025.
    Cispo,
    /// A soft gate in place of the clip. Source: SAPO, Gao et al. 2025.
    Sapo,
    /// A log p, without a ratio. Source: Williams 1992; SPO, Xu and Ding 2025.
    Reinforce,
}

/// How the losses of tokens become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mean {
    /// The mean of each row, then of all rows.
    Rows,
    /// The mean over all tokens. Source: DAPO, Yu et al. 2025.
    Tokens,
    /// The sum over rows times the longest completion. Source: Dr. GRPO, Liu et al. 2025.
    MaxLength,
    /// The sum of each row, then the mean over rows. Source: LUSPO, 2026.
    SumOfRows,
}

/// What one ratio is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// A token.
    Token,
    /// A row: the exponential of its mean difference. Source: GSPO, Zheng et al. 2025.
    Sequence,
}

/// What the difference of a group's rewards from their mean is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// Their standard deviation plus 1e-4.
    Group,
    /// The standard deviation of all rewards of the batch plus 1e-4.
    Batch,
    /// Nothing. Source: Dr. GRPO.
    None,
}

/// The correction of what the engine that sampled gives other log-probabilities than the trainer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Importance {
    /// A weight for each token, or one for a row: the product of its tokens'.
    pub span: Span,
    /// Weights above the cap become 0 instead of the cap.
    pub mask: bool,
    /// The cap.
    pub cap: f64,
}

/// The names of losses.
pub const LOSSES: [&str; 9] =
    ["grpo", "cispo", "dapo", "bnpo", "dr_grpo", "gspo", "luspo", "sapo", "spo"];

/// The options of the stages that learn from rewards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyOptions {
    /// What is maximized.
    pub objective: Objective,
    /// How tokens' losses become one.
    pub mean: Mean,
    /// What a ratio is of.
    pub span: Span,
    /// The ratio counts down to 1 - epsilon.
    pub epsilon: f64,
    /// The ratio counts up to 1 + this; of cispo the weights up to this.
    pub epsilon_high: f64,
    /// The largest ratio of a token with a negative advantage; nothing for no bound.
    pub delta: Option<f64>,
    /// How much the divergence from the reference counts; 0 for no reference.
    pub kl_coef: f64,
    /// What advantages are divided by.
    pub scale: Baseline,
    /// The correction for the engine's log-probabilities.
    pub importance: Option<Importance>,
    /// Rows with a negative advantage whose mean difference from the policy that sampled is larger
    /// are left out. Source: DeepSeek-V3.2.
    pub off_policy: Option<f64>,
    /// The share of tokens with the highest entropy that is trained.
    pub top_entropy: f64,
    /// How much the mean entropy is rewarded.
    pub entropy_coef: f64,
    /// Rows without a trained token are not counted among the rows.
    pub leave_out_empty: bool,
    /// Rows that a limit cut off are not trained.
    pub mask_cut_off: bool,
    /// Completions of each prompt.
    pub group_size: usize,
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// The temperature of sampling.
    pub temperature: f64,
    /// Tokens that sampling keeps at most; 0 for all.
    pub top_k: usize,
    /// Probability that sampling keeps at least.
    pub top_p: f64,
    /// The temperature at which the trainer scores.
    pub score_temperature: f64,
    /// Share of prompts that ask for thoughts.
    pub thinking_ratio: f64,
    /// A mixture of experts is trained on full rectangles, filled with the stop id.
    pub filled: bool,
    /// Advantages are measured from what reward was expected so far
    /// ([`Tracker`](super::advantage::Tracker)), not from the group's mean.
    #[serde(default)]
    pub adaptive: bool,
    /// The divergence from the reference counts in the reward (log p - log p of the reference of what
    /// was sampled), not in the loss.
    #[serde(default)]
    pub kl_in_reward: bool,
    /// Times that other prompts are drawn in place of those whose answers have equal rewards. Source:
    /// DAPO, section 3.2.
    #[serde(default)]
    pub resample: usize,
    /// New tokens before the limit over which the reward falls by 1. Source: DAPO, eq. 13.
    #[serde(default)]
    pub overlong_buffer: usize,
}

/// The options of stage ppo alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PpoOptions {
    /// Rows of a minibatch.
    pub minibatch: usize,
    /// Passes over a batch.
    pub passes: usize,
    /// How much a later reward counts, per token.
    pub gamma: f64,
    /// The decay of what later errors tell about a token.
    pub lambda: f64,
    /// How much the critic's loss counts.
    pub value_coef: f64,
    /// How far a value counts from the one before the update.
    pub value_clip: f64,
    /// A pass ends where a minibatch's mean of half the squared difference is larger.
    pub early_stop: f64,
    /// The optimizers step on what an early stop left, as the reference.
    pub step_after_stop: bool,
    /// An accumulation goes on over the batches, as the reference; what is left steps with each.
    pub accumulate_over_batches: bool,
    /// The critic's peak learning rate.
    pub critic_lr: f64,
}

impl PolicyOptions {
    /// The values of a stage that learns from rewards: the reference's of 2026, or mmx's own.
    /// Nothing for other stages.
    #[must_use]
    pub fn new(stage: &StageInfo, reference: bool) -> Option<Self> {
        let of_reference = match stage.name {
            name if name == stages::GRPO.name => Self::grpo(),
            name if name == stages::CISPO.name => Self::cispo(),
            name if name == stages::AGENT.name => Self {
                group_size: 4,
                max_new_tokens: 768,
                thinking_ratio: 0.1,
                leave_out_empty: true,
                ..Self::cispo()
            },
            name if name == stages::PPO.name => {
                Self { group_size: 1, kl_coef: 0.02, mean: Mean::Tokens, ..Self::grpo() }
            }
            _ => return None,
        };
        Some(match reference {
            true => of_reference,
            false => of_reference.own(),
        })
    }

    /// Source: docs/rl.md, the reference's train_grpo of 2026-08.
    fn grpo() -> Self {
        Self {
            objective: Objective::Grpo,
            mean: Mean::Rows,
            span: Span::Token,
            epsilon: 0.2,
            epsilon_high: 0.2,
            delta: None,
            kl_coef: 0.1,
            scale: Baseline::Group,
            importance: None,
            off_policy: None,
            top_entropy: 1.0,
            entropy_coef: 0.0,
            leave_out_empty: false,
            mask_cut_off: false,
            group_size: 6,
            max_new_tokens: 1024,
            temperature: 0.8,
            top_k: 50,
            top_p: 0.85,
            score_temperature: 1.0,
            thinking_ratio: 0.9,
            filled: true,
            adaptive: false,
            kl_in_reward: false,
            resample: 0,
            overlong_buffer: 0,
        }
    }

    fn cispo() -> Self {
        Self { objective: Objective::Cispo, epsilon_high: 5.0, ..Self::grpo() }
    }

    /// One distribution on both sides, all tokens alike, room above, and the engine's differences
    /// corrected for. Source: docs/rl.md.
    fn own(self) -> Self {
        let clipped = self.objective == Objective::Grpo;
        Self {
            mean: Mean::Tokens,
            epsilon_high: if clipped { 0.28 } else { self.epsilon_high },
            importance: Some(Importance { span: Span::Token, mask: false, cap: 2.0 }),
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            score_temperature: 1.0,
            thinking_ratio: 0.0,
            filled: false,
            ..self
        }
    }

    /// Takes the objective and the mean of a loss by the name that TRL gives it.
    ///
    /// # Errors
    /// Another name.
    pub fn choose(&mut self, loss: &str) -> Result<()> {
        let clipped = |this: &mut Self, mean| {
            if this.objective != Objective::Grpo {
                this.epsilon_high = this.epsilon;
            }
            (this.objective, this.mean) = (Objective::Grpo, mean);
        };
        match loss {
            "grpo" => clipped(self, Mean::Rows),
            "dapo" | "bnpo" => clipped(self, Mean::Tokens),
            "dr_grpo" => {
                clipped(self, Mean::MaxLength);
                self.scale = Baseline::None;
            }
            "gspo" => {
                clipped(self, Mean::Rows);
                self.span = Span::Sequence;
                (self.epsilon, self.epsilon_high) = (3e-4, 4e-4); // GSPO, section 5.1
            }
            "luspo" => {
                clipped(self, Mean::SumOfRows);
                self.span = Span::Sequence;
            }
            "cispo" if self.objective == Objective::Cispo => {}
            "cispo" => (self.objective, self.epsilon_high) = (Objective::Cispo, 5.0),
            "sapo" => (self.objective, self.mean) = (Objective::Sapo, Mean::Rows),
            "spo" => {
                (self.objective, self.mean) = (Objective::Reinforce, Mean::Rows);
                (self.adaptive, self.group_size, self.kl_coef) = (true, 1, 0.02);
            }
            other => return Err(Error::setting("loss", LOSSES.join(", "), other)),
        }
        Ok(())
    }

    /// Takes a mean by its name: rows, tokens, max_length or sum_of_rows.
    ///
    /// # Errors
    /// Another name.
    pub fn choose_mean(&mut self, name: &str) -> Result<()> {
        self.mean = match name {
            "rows" => Mean::Rows,
            "tokens" => Mean::Tokens,
            "max_length" => Mean::MaxLength,
            "sum_of_rows" => Mean::SumOfRows,
            other => {
                let expected = "rows, tokens, max_length or sum_of_rows";
                return Err(Error::setting("loss_mean", expected, other));
            }
        };
        Ok(())
    }

    /// Takes a correction for the engine by the name that TRL gives it, or off.
    ///
    /// # Errors
    /// Another name.
    pub fn choose_importance(&mut self, name: &str) -> Result<()> {
        let cap = self.importance.map_or(2.0, |of| of.cap);
        let of = |span, mask| Some(Importance { span, mask, cap });
        self.importance = match name {
            "off" => None,
            "token_truncate" => of(Span::Token, false),
            "token_mask" => of(Span::Token, true),
            "sequence_truncate" => of(Span::Sequence, false),
            "sequence_mask" => of(Span::Sequence, true),
            other => {
                let expected =
                    "off, token_truncate, token_mask, sequence_truncate or sequence_mask";
                return Err(Error::setting("importance_sampling", expected, other));
            }
        };
        Ok(())
    }

    /// Whether the divergence from the reference counts in the loss.
    #[must_use]
    pub fn kl_in_loss(&self) -> bool {
        self.kl_coef != 0.0 && !self.kl_in_reward
    }

    /// Refuses values that make no run.
    ///
    /// # Errors
    /// The option, what was expected and what was found.
    pub fn check(&self) -> Result<()> {
        if self.kl_in_reward && self.kl_coef == 0.0 {
            return Err(Error::setting("kl_coef", "above 0 where `kl_in` is reward", 0));
        }
        if self.resample > 0 && self.group_size < 2 {
            let expected = "groups of at least 2 answers (`group_size`), which can differ";
            return Err(Error::setting("dynamic_sampling", expected, self.group_size));
        }
        if self.overlong_buffer > self.max_new_tokens {
            let expected = format!("at most `max_new_tokens`, {}", self.max_new_tokens);
            return Err(Error::setting("overlong_buffer", expected, self.overlong_buffer));
        }
        let number = |option: &str, value: f64, ok: bool, expected: &str| match ok {
            true => Ok(()),
            false => Err(Error::setting(option, expected, value)),
        };
        let above = |value: f64| value > 0.0 && value.is_finite();
        number("epsilon", self.epsilon, above(self.epsilon), "a number above 0")?;
        let high = self.epsilon_high;
        number("epsilon_high", high, above(high), "a number above 0")?;
        let kl = self.kl_coef;
        number("kl_coef", kl, kl >= 0.0 && kl.is_finite(), "0 (no reference) or more")?;
        if let Some(delta) = self.delta {
            let fits = delta > 1.0 && delta.is_finite();
            number("delta", delta, fits, "a number above 1")?;
        }
        if let Some(of) = self.importance {
            number("importance_cap", of.cap, above(of.cap), "a number above 0")?;
        }
        let temperature = self.temperature;
        number("temperature", temperature, above(temperature), "a number above 0")?;
        let top_p = self.top_p;
        number("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0, to 1")?;
        let thinking = self.thinking_ratio;
        number("thinking_ratio", thinking, (0.0..=1.0).contains(&thinking), "a share from 0 to 1")?;
        let whole = [("group_size", self.group_size), ("max_new_tokens", self.max_new_tokens)];
        match whole.into_iter().find(|(_, n)| *n == 0) {
            Some((option, found)) => Err(Error::setting(option, "at least 1", found)),
            None => Ok(()),
        }
    }
}

impl PpoOptions {
    /// The values of stage ppo: the reference's of 2026, or mmx's own. Nothing for other stages.
    #[must_use]
    pub fn new(stage: &StageInfo, reference: bool) -> Option<Self> {
        (stage.name == stages::PPO.name).then_some(Self {
            minibatch: 2,
            passes: 2,
            gamma: 1.0,
            lambda: 0.95,
            value_coef: 0.5,
            value_clip: 0.2,
            early_stop: 0.25,
            step_after_stop: reference,
            accumulate_over_batches: reference,
            critic_lr: 5e-7,
        })
    }

    /// Refuses values that make no run.
    ///
    /// # Errors
    /// The option, what was expected and what was found.
    pub fn check(&self) -> Result<()> {
        let whole = [("minibatch", self.minibatch), ("passes", self.passes)];
        if let Some((option, found)) = whole.into_iter().find(|(_, n)| *n == 0) {
            return Err(Error::setting(option, "at least 1", found));
        }
        match self.critic_lr > 0.0 && self.critic_lr.is_finite() {
            true => Ok(()),
            false => Err(Error::setting("critic_lr", "a number above 0", self.critic_lr)),
        }
    }
}
