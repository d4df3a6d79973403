//! The feed-forward network: SwiGLU, dense or as a mixture of experts.

use tch::Tensor;

use super::moe::Mixture;
use super::{Linear, Parts, Torch};
use crate::error::Result;
use crate::kernel;

/// One layer's feed-forward network.
#[derive(Debug)]
pub(super) enum FeedForward {
    Dense(Dense),
    Mixture(Mixture),
}

impl FeedForward {
    /// `[batch, seq, hidden]` to the same; in training also a mixture's balancing loss.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        train: bool,
        samples: Option<&[i64]>,
    ) -> Torch<(Tensor, Option<Tensor>)> {
        match self {
            Self::Dense(dense) => Ok((dense.forward(x)?, None)),
            Self::Mixture(mixture) => mixture.forward(x, train, samples),
        }
    }
}

/// down(silu(gate(x)) * up(x)).
#[derive(Debug)]
pub(super) struct Dense {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Dense {
    pub(super) fn new(parts: &Parts<'_>, base: &str) -> Result<Self> {
        Ok(Self {
            gate: parts.linear(&format!("{base}.gate_proj"))?,
            up: parts.linear(&format!("{base}.up_proj"))?,
            down: parts.linear(&format!("{base}.down_proj"))?,
        })
    }

    /// `[.., hidden]` to the same, through `[.., ffn]`.
    pub(super) fn forward(&self, x: &Tensor) -> Torch<Tensor> {
        let [gate, up] = Linear::several(x, [&self.gate, &self.up])?;
        let gated = match kernel::takes(&[&gate, &up]) {
            true => kernel::swiglu(&gate, &up)?,
            false => gate.f_silu()?.f_mul(&up)?,
        };
        self.down.forward(&gated)
    }
}
