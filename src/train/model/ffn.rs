//! The dense feed-forward network, SwiGLU; an expert of a mixture is one too.

use tch::Tensor;

use super::grouped::Groups;
use super::linear::{Linear, Parts};
use super::variable::Torch;
use crate::error::Result;
use crate::kernel;

/// A SwiGLU network: down(silu(gate(x)) * up(x)).
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

    /// Several networks of one size, each over its own slots of `x`: see [`Groups::product`].
    pub(super) fn grouped(x: &Tensor, networks: &[Self], groups: &Groups) -> Torch<Tensor> {
        let layers = |one: fn(&Self) -> &Linear| networks.iter().map(one).collect::<Vec<_>>();
        let gate = Linear::grouped(x, &layers(|n| &n.gate), groups)?;
        let up = Linear::grouped(x, &layers(|n| &n.up), groups)?;
        Linear::grouped(&gate.f_silu()?.f_mul(&up)?, &layers(|n| &n.down), groups)
    }

    /// The sizes `[ffn, hidden]`.
    pub(super) fn sizes(&self) -> Torch<[i64; 2]> {
        self.gate.sizes()
    }

    /// Beside which of gate, up and down there are adapters.
    pub(super) fn adapted(&self) -> [bool; 3] {
        [&self.gate, &self.up, &self.down].map(Linear::is_adapted)
    }

    /// The network's output: `[.., hidden]` to the same shape, through `[.., ffn]`.
    pub(super) fn forward(&self, x: &Tensor) -> Torch<Tensor> {
        let [gate, up] = Linear::several(x, [&self.gate, &self.up])?;
        let gated = match kernel::takes(&[&gate, &up]) {
            true => kernel::swiglu(&gate, &up)?,
            false => gate.f_silu()?.f_mul(&up)?,
        };
        self.down.forward(&gated)
    }
}
