//! What must hold between a [`Config`]'s fields, and which layouts can carry a model exactly.

use std::path::Path;

use super::config::{Config, RopeScaling};
use super::rope_freqs::llama3_of;
use super::weight::Layout;
use crate::error::{Error, Result};

/// Tensors a model may have by its configuration: the largest mixtures of experts have some 50
/// thousand.
const MAX_ROWS: usize = 1 << 18;

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

    /// Longest text the model is meant for, tokens: where the base follows the length
    /// ([`RopeScaling::Dynamic`]), the trained length times the factor.
    pub fn longest(&self) -> usize {
        match &self.rope_scaling {
            Some(RopeScaling::Dynamic { factor }) => {
                (self.max_position_embeddings as f64 * factor).round() as usize
            }
            _ => self.max_position_embeddings,
        }
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
        match &self.rope_scaling {
            Some(RopeScaling::Yarn(yarn))
                if layout == Layout::Gguf && (yarn.beta_fast, yarn.beta_slow) != (32.0, 1.0) =>
            {
                return refuse(format!(
                    "expected YaRN with beta_fast 32 and beta_slow 1, which readers assume, found {} and {}",
                    yarn.beta_fast, yarn.beta_slow
                ));
            }
            Some(RopeScaling::Dynamic { .. }) if layout == Layout::Gguf => {
                return refuse(
                    "its rotary positions cannot follow the length of a text (dynamic NTK scaling), \
                     since kept keys were turned before the length was known; a fixed base can stand \
                     in for it (ntk)"
                        .to_owned(),
                );
            }
            Some(RopeScaling::Llama3(_))
                if layout == Layout::Gguf && !self.family.spec().gguf_reads_rope_freqs =>
            {
                return refuse(
                    "it has no key for Llama 3's rotary scaling, but a tensor, which it does not \
                     read; yarn with attention factor 1 is near it"
                        .to_owned(),
                );
            }
            Some(RopeScaling::Llama3(llama3)) if layout == Layout::Gguf => {
                let divisors = llama3.divisors(self.rope_theta, self.head_dim);
                let back = llama3_of(self.rope_theta, self.head_dim, &divisors);
                if back.is_none() && divisors.iter().any(|divisor| *divisor != 1.0) {
                    return refuse(format!(
                        "the divisors that it holds do not tell Llama 3's settings where no dimension \
                         turns slower by the whole factor ({}): the trained length {} is too long for it",
                        llama3.factor, llama3.original_max_position_embeddings
                    ));
                }
            }
            _ => {}
        }
        let spec = self.family.spec();
        if !spec.has_head_dim && self.head_dim * self.num_attention_heads != self.hidden_size {
            return refuse(format!(
                "it has no head_dim of its own: expected hidden_size / num_attention_heads = {}/{}, found {}",
                self.hidden_size, self.num_attention_heads, self.head_dim
            ));
        }
        let (Some(moe), Some(of_family)) = (&self.moe, &spec.moe) else { return Ok(()) };
        if layout != Layout::Gguf && !of_family.class_always_normalizes {
            return Ok(());
        }
        let one = moe.num_experts_per_tok == 1;
        if !(moe.norm_topk_prob || one && of_family.normalizes_single_expert) {
            return refuse(
                "it always divides the chosen experts' weights by their sum, and this model has \
                 norm_topk_prob false"
                    .to_owned(),
            );
        }
        if !moe.norm_topk_prob {
            return refuse(
                "with one expert per token its weight is always 1, and this model has norm_topk_prob \
                 false, which makes the weight the bare probability"
                    .to_owned(),
            );
        }
        if one && !of_family.normalizes_single_expert {
            return refuse(
                "with one expert per token its weight is always 1, and MiniMind2 weighs a single \
                 expert by its bare probability (it divides only when num_experts_per_tok > 1)"
                    .to_owned(),
            );
        }
        Ok(())
    }
}
