//! The layers' parts: bias-free linear layers, with adapters or without, and RMSNorm; and
//! [`Parts`], which makes them from the variables by name.

use tch::{Kind, TchError, Tensor};

use super::grouped::Groups;
use super::lora::{Factors, Lora};
use super::variable::{Torch, Variable, wide};
use crate::error::{Error, Result};
use crate::kernel;

/// RMSNorm, computed in float32 whatever type comes in.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    eps: f64,
}

impl Norm {
    /// The norm of `x [.., width]`, of the same shape, in `compute`.
    pub(super) fn forward(&self, x: &Tensor, compute: Kind) -> Torch<Tensor> {
        if kernel::takes(&[x, &self.weight]) {
            return kernel::norm(x, &self.weight, self.eps, compute);
        }
        x.f_to_kind(wide(compute))?
            .f_rms_norm(self.weight.size(), Some(&self.weight), self.eps)?
            .f_to_kind(compute)
    }
}

impl Norm {
    /// The residual stream and what is added to it, `[.., width]`: their sum, and its norm.
    pub(super) fn add(&self, x: &Tensor, added: &Tensor, compute: Kind) -> Torch<(Tensor, Tensor)> {
        if kernel::takes(&[x, added, &self.weight]) {
            return kernel::add_norm(x, added, &self.weight, self.eps, compute);
        }
        let sum = x.f_add(added)?;
        let normed = self.forward(&sum, compute)?;
        Ok((sum, normed))
    }
}

/// Product of x `[.., in]` and a weight `[out, in]`, in the type of `x`.
pub(super) fn linear(x: &Tensor, weight: &Tensor) -> Torch<Tensor> {
    if kernel::takes_products(&[x, weight]) {
        return kernel::linear(x, weight);
    }
    x.f_linear(&weight.f_to_kind(x.kind())?, None::<Tensor>)
}

/// A bias-free linear layer `[out, in]`, maybe with an adapter beside it.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    adapter: Option<Factors>,
}

impl Linear {
    /// `[.., in]` to `[.., out]`, in the type of `x`.
    pub(super) fn forward(&self, x: &Tensor) -> Torch<Tensor> {
        self.adapted(x, linear(x, &self.weight)?)
    }

    /// Several layers over the same input.
    pub(super) fn several<const N: usize>(x: &Tensor, layers: [&Self; N]) -> Torch<[Tensor; N]> {
        let all: Vec<&Tensor> = [x].into_iter().chain(layers.map(|layer| &layer.weight)).collect();
        let ys = match kernel::takes_products(&all) {
            true => kernel::linears(x, &all[1..])?,
            false => layers.iter().map(|layer| linear(x, &layer.weight)).collect::<Torch<_>>()?,
        };
        let ys = layers
            .iter()
            .zip(ys)
            .map(|(layer, y)| layer.adapted(x, y))
            .collect::<Torch<Vec<_>>>()?;
        ys.try_into().map_err(|ys: Vec<Tensor>| {
            TchError::Torch(format!("linear layers: expected {N} outputs, found {}", ys.len()))
        })
    }

    /// The weights of several layers of one size, `[layers, out, in]`, in type `kind`.
    fn stacked(layers: &[&Self], kind: Kind) -> Torch<Tensor> {
        let weights: Vec<&Tensor> = layers.iter().map(|layer| &layer.weight).collect();
        Tensor::f_stack(&weights, 0)?.f_to_kind(kind)
    }

    /// Several layers of one size, each over its own slots of `x`: see [`Groups::product`].
    pub(super) fn grouped(x: &Tensor, layers: &[&Self], groups: &Groups) -> Torch<Tensor> {
        let y = groups.product(x, &Self::stacked(layers, x.kind())?)?;
        let adapters: Option<Vec<&Factors>> =
            layers.iter().map(|layer| layer.adapter.as_ref()).collect();
        match adapters {
            Some(adapters) => y.f_add(&Factors::grouped(x, &adapters, groups)?),
            None => Ok(y),
        }
    }

    /// The sizes `[out, in]` of the weight.
    pub(super) fn sizes(&self) -> Torch<[i64; 2]> {
        self.weight.size2().map(|(out, inner)| [out, inner])
    }

    /// Whether there is an adapter beside the weight.
    pub(super) fn is_adapted(&self) -> bool {
        self.adapter.is_some()
    }

    /// The output `y` with what the adapter adds.
    fn adapted(&self, x: &Tensor, y: Tensor) -> Torch<Tensor> {
        match &self.adapter {
            Some(adapter) => y.f_add(&adapter.forward(x)?),
            None => Ok(y),
        }
    }
}

/// The variables by name while a model is put together, and the adapters that go beside them.
pub(super) struct Parts<'a>(pub(super) &'a [Variable], pub(super) Option<&'a Lora>);

impl Parts<'_> {
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        self.0
            .iter()
            .find(|v| v.name.strip_suffix(".weight") == Some(name))
            .map(|v| v.tensor.shallow_clone())
            .ok_or_else(|| {
                Error::failed(format!("tensor {name}.weight: not in the family's table"))
            })
    }

    pub(super) fn linear(&self, name: &str) -> Result<Linear> {
        let adapter = self.1.and_then(|lora| lora.factors(name));
        Ok(Linear { weight: self.tensor(name)?, adapter })
    }

    pub(super) fn norm(&self, name: &str, eps: f64) -> Result<Norm> {
        Ok(Norm { weight: self.tensor(name)?, eps })
    }
}
