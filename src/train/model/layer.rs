//! One transformer layer: attention and a feed-forward network, dense or a mixture of experts, each
//! after its RMSNorm.

use mmx_converters::arch::Config;
use tch::Tensor;

use super::attention::Attention;
use super::ffn::Dense;
use super::linear::{Norm, Parts};
use super::moe::{Balance, MoeLayer};
use super::samples::Samples;
use super::variable::Torch;
use crate::error::Result;

/// One layer's weights.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) input_norm: Norm,
    pub(super) attention: Attention,
    pub(super) post_attention_norm: Norm,
    pub(super) feed_forward: FeedForward,
}

/// One layer's feed-forward network.
#[derive(Debug)]
pub(super) enum FeedForward {
    Dense(Dense),
    Moe(MoeLayer),
}

impl FeedForward {
    /// The network's output: `[batch, seq, hidden]` to the same shape; in training also a mixture's
    /// balance. `share`: the batch is a share of a larger one.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        train: bool,
        samples: Option<&Samples>,
        share: bool,
    ) -> Torch<(Tensor, Option<Balance>)> {
        match self {
            Self::Dense(dense) => Ok((dense.forward(x)?, None)),
            Self::Moe(mixture) => mixture.forward(x, train, samples, share),
        }
    }
}

/// The layers over variables and adapters.
pub(super) fn layers(config: &Config, parts: &Parts<'_>) -> Result<Vec<Layer>> {
    let eps = config.rms_norm_eps;
    let layer = |layer: usize| {
        let base = format!("model.layers.{layer}");
        let ffn = format!("{base}.mlp");
        Ok(Layer {
            input_norm: parts.norm(&format!("{base}.input_layernorm"), eps)?,
            attention: Attention::new(config, parts, &format!("{base}.self_attn"))?,
            post_attention_norm: parts.norm(&format!("{base}.post_attention_layernorm"), eps)?,
            feed_forward: match &config.moe {
                Some(moe) => FeedForward::Moe(MoeLayer::new(config.family, moe, parts, &ffn)?),
                None => FeedForward::Dense(Dense::new(parts, &ffn)?),
            },
        })
    };
    (0..config.num_hidden_layers).map(layer).collect()
}
