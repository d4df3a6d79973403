//! A model's dimensions and constants ([`Config`]), what must hold between them, and which layouts
//! can carry them.

use std::path::Path;

use super::family::Family;
use super::weight::Layout;
use crate::error::{Error, Result};

/// Tensors a model may have by its configuration: the largest mixtures of experts have some 50
/// thousand.
const MAX_ROWS: usize = 1 << 18;

/// A model's dimensions and constants. Fields carry config.json's names.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which family's table applies.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the dense feed-forward network (of one expert in MiniMind2's mixture).
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Longest sequence the model is meant for, tokens.
    pub max_position_embeddings: usize,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// YaRN, if on.
    pub rope_scaling: Option<RopeScaling>,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Mixture of experts, in the two `*Moe` families.
    pub moe: Option<Moe>,
    /// Beginning of a text or turn.
    pub bos_token_id: u32,
    /// Ends of generation, the first one being the main one; at least one.
    pub eos_token_id: Vec<u32>,
    /// Padding.
    pub pad_token_id: u32,
}

/// YaRN's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeScaling {
    /// How many times longer the context becomes.
    pub factor: f64,
    /// Trained length, tokens.
    pub original_max_position_embeddings: usize,
    /// Turns above which a dimension is kept as it is.
    pub beta_fast: f64,
    /// Turns below which a dimension is fully slowed down.
    pub beta_slow: f64,
    /// Multiplies cosine and sine.
    pub attention_factor: f64,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// Routed experts.
    pub num_experts: usize,
    /// Experts chosen per token (k).
    pub num_experts_per_tok: usize,
    /// Width of one routed expert (and of one shared expert).
    pub intermediate_size: usize,
    /// Shared experts, each of `intermediate_size`; their output is added unweighted.
    pub shared_experts: usize,
    /// The k weights are divided by their sum.
    pub norm_topk_prob: bool,
    /// Load-balancing loss, in training only.
    pub aux_loss: AuxLoss,
}

/// The load-balancing losses of the two generations (docs/models.md).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AuxLoss {
    /// MiniMind2, `seq_aux`: per sequence, averaged.
    PerSequence {
        /// Coefficient.
        alpha: f64,
    },
    /// MiniMind2 without `seq_aux`: over the whole batch.
    PerBatch {
        /// Coefficient.
        alpha: f64,
    },
    /// MiniMind-3: experts * sum of load times mean score.
    Switch {
        /// Coefficient.
        coefficient: f64,
    },
}

impl Config {
    /// Constraints between the fields, and what bounds the table of a model's tensors: it is made
    /// before they are looked for in a file.
    ///
    /// # Errors
    /// The first one that does not hold, naming `path` and the key.
    pub fn check(&self, path: &Path) -> Result<()> {
        let fault = |key: &str, message: String| Err(Error::key(path, key, message));
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return fault(
                "num_key_value_heads",
                format!(
                    "expected a divisor of num_attention_heads ({}), found {}",
                    self.num_attention_heads, self.num_key_value_heads
                ),
            );
        }
        if !self.head_dim.is_multiple_of(2) {
            return fault("head_dim", format!("expected an even number, found {}", self.head_dim));
        }
        if self.rms_norm_eps <= 0.0 {
            return fault("rms_norm_eps", format!("expected > 0, found {}", self.rms_norm_eps));
        }
        if self.rope_theta <= 1.0 {
            return fault("rope_theta", format!("expected > 1, found {}", self.rope_theta));
        }
        if let Some(moe) = &self.moe
            && moe.num_experts_per_tok > moe.num_experts
        {
            return fault(
                "num_experts_per_tok",
                format!(
                    "expected at most the number of experts ({}), found {}",
                    moe.num_experts, moe.num_experts_per_tok
                ),
            );
        }
        let experts = self.moe.as_ref().map_or(0, |m| m.num_experts + m.shared_experts);
        let rows = self.num_hidden_layers.saturating_mul(experts.saturating_mul(3) + 12);
        if rows > MAX_ROWS {
            return fault(
                "num_hidden_layers",
                format!("expected at most {MAX_ROWS} tensors in all, found some {rows}"),
            );
        }
        Ok(())
    }

    /// Refuses a model that `layout` cannot carry exactly.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason (docs/formats/transformers.md, docs/formats/gguf.md).
    pub fn check_carried_by(&self, layout: Layout) -> Result<()> {
        let refuse = |reason: String| {
            let target = match layout {
                Layout::Gguf => format!("GGUF architecture {}", self.family.gguf_arch()),
                _ => format!("Transformers class {}", self.family.transformers_class()),
            };
            Err(Error::unsupported(target, reason))
        };
        if layout == Layout::Reference {
            return Ok(());
        }
        if let Some(yarn) = self.rope_scaling.as_ref().filter(|_| layout == Layout::Gguf)
            && (yarn.beta_fast, yarn.beta_slow) != (32.0, 1.0)
        {
            return refuse(format!(
                "expected YaRN with beta_fast 32 and beta_slow 1, which readers assume, found {} and {}",
                yarn.beta_fast, yarn.beta_slow
            ));
        }
        let granite = self.family == Family::MiniMind2Moe;
        if granite && self.head_dim * self.num_attention_heads != self.hidden_size {
            return refuse(format!(
                "it has no head_dim of its own: expected hidden_size / num_attention_heads = {}/{}, found {}",
                self.hidden_size, self.num_attention_heads, self.head_dim
            ));
        }
        let Some(moe) = &self.moe else { return Ok(()) };
        let always_normalizes = granite || layout == Layout::Gguf;
        if always_normalizes && !moe.norm_topk_prob && (granite || moe.num_experts_per_tok != 1) {
            return refuse(
                "it always divides the chosen experts' weights by their sum, and this model has \
                 norm_topk_prob false"
                    .to_owned(),
            );
        }
        if always_normalizes && !moe.norm_topk_prob {
            return refuse(
                "with one expert per token its weight is always 1, and this model has norm_topk_prob \
                 false, which makes the weight the bare probability"
                    .to_owned(),
            );
        }
        if granite && moe.num_experts_per_tok == 1 {
            return refuse(
                "with one expert per token its weight is always 1, and MiniMind2 weighs a single \
                 expert by its bare probability (it divides only when num_experts_per_tok > 1)"
                    .to_owned(),
            );
        }
        Ok(())
    }
}
