//! Low-rank adapters in tch: y = Wx + scale * B(Ax), of which only A and B are trained.
//!
//! In: a configuration and which weights to adapt, or adapters from a file. Out: variables named as
//! MiniMind names them, and the adapters alone as a file takes them.

use std::collections::BTreeMap;
use std::path::Path;

use mmx_converters::arch::{Config, Weight, weights};
use mmx_converters::model::adapter::{Adapter, Adapters};
use tch::{Device, Tensor};

use super::grouped::Groups;
use super::init;
use super::variable::{Torch, Variable, host_f32};
use crate::error::{Error, Result, TorchError};

/// Which linear layers get an adapter. The router, the embedding and the head never do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Layers with as many outputs as inputs, as the reference has it: q_proj and o_proj.
    Square,
    /// All linear layers.
    All,
    /// Layers of these names: `q_proj`, `v_proj`.
    Named(Vec<String>),
}

impl Target {
    /// `square`, `all`, or names with commas between them.
    pub fn parse(text: &str) -> Self {
        match text {
            "square" => Self::Square,
            "all" => Self::All,
            names => Self::Named(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }

    /// Whether a row of a family's table is meant.
    fn takes(&self, weight: &Weight) -> bool {
        let Some(module) = weight.name.strip_suffix(".weight") else { return false };
        let last = module.rsplit('.').next().unwrap_or(module);
        let &[outputs, inputs] = weight.shape.as_slice() else { return false };
        last.ends_with("_proj")
            && match self {
                Self::Square => outputs == inputs,
                Self::All => true,
                Self::Named(names) => names.iter().any(|name| name == last),
            }
    }
}

/// A and B of one linear layer.
#[derive(Debug)]
pub(super) struct Factors {
    /// `[rank, in]`
    a: Tensor,
    /// `[out, rank]`
    b: Tensor,
    scale: f64,
}

impl Factors {
    /// `[.., in]` to `[.., out]`, in the type of `x`.
    pub(super) fn forward(&self, x: &Tensor) -> Torch<Tensor> {
        let cast = |weight: &Tensor| weight.f_to_kind(x.kind());
        let inner = x.f_linear(&cast(&self.a)?, None::<Tensor>)?; // [.., rank]
        let y = inner.f_linear(&cast(&self.b)?, None::<Tensor>)?;
        if self.scale == 1.0 { Ok(y) } else { y.f_mul_scalar(self.scale) }
    }

    /// The same for several layers of one size, each over its own slots of `x`: see
    /// [`Groups::product`].
    pub(super) fn grouped(x: &Tensor, layers: &[&Self], groups: &Groups) -> Torch<Tensor> {
        let stacked = |half: fn(&Self) -> &Tensor| -> Torch<Tensor> {
            let all: Vec<&Tensor> = layers.iter().map(|&layer| half(layer)).collect();
            Tensor::f_stack(&all, 0)?.f_to_kind(x.kind())
        };
        let inner = groups.product(x, &stacked(|layer| &layer.a)?)?; // [.., rank]
        let y = groups.product(&inner, &stacked(|layer| &layer.b)?)?;
        match layers.first().map_or(1.0, |layer| layer.scale) {
            1.0 => Ok(y),
            scale => y.f_mul_scalar(scale),
        }
    }

    /// The weight `[out, in]` with the factors' product added.
    pub(super) fn merged(&self, weight: &Tensor) -> Torch<Tensor> {
        weight.f_add(&self.b.f_mm(&self.a)?.f_mul_scalar(self.scale)?)
    }
}

/// The adapters of a model.
#[derive(Debug)]
pub struct Lora {
    rank: usize,
    alpha: f64,
    /// The model they are for, as their files name it.
    base: Option<String>,
    modules: Vec<String>,
    /// A and B of each module, in that order.
    variables: Vec<Variable>,
}

impl Lora {
    /// New adapters: A from normal(0, 0.02), B zero, so that nothing changes at first. The values
    /// depend on the seed and the module's number only.
    ///
    /// # Errors
    /// No linear layer is meant; libtorch's.
    pub fn random(
        config: &Config,
        target: &Target,
        (rank, alpha): (usize, f64),
        seed: u64,
        device: Device,
    ) -> Result<Self> {
        let rows = weights(config);
        let known = |name: &String| {
            let one = Target::Named(vec![name.clone()]);
            rows.iter().any(|row| one.takes(row))
        };
        let missing = match target {
            Target::Named(names) => names.iter().find(|name| !known(name)),
            Target::Square | Target::All => None,
        };
        let chosen: Vec<&Weight> = rows.iter().filter(|row| target.takes(row)).collect();
        if let Some(name) = missing {
            return Err(Error::setting(
                "lora_target",
                "square, all or names of linear layers (q_proj, v_proj, ...)",
                name,
            ));
        }
        if chosen.is_empty() {
            return Err(Error::failed_with_hint(
                "adapters: expected linear layers with as many outputs as inputs, found none",
                "`lora_target` all adapts every linear layer",
            ));
        }
        let mut modules = BTreeMap::new();
        for (i, row) in chosen.into_iter().enumerate() {
            let (outputs, inputs) = (row.shape[0], row.shape[1]);
            let a = init::adapter_values(seed, i, rank * inputs);
            let b = vec![0.0; outputs * rank];
            let adapter = Adapter { a, b, inputs, outputs, alpha: None };
            let name = row.name.strip_suffix(".weight").unwrap_or(&row.name);
            modules.insert(name.to_owned(), adapter);
        }
        Self::build(&Adapters { rank, alpha, base: None, modules }, &rows, device)
    }

    /// The adapters of a file.
    ///
    /// # Errors
    /// Modules that the model does not have, or shapes that differ, all at once, naming `path`;
    /// several ranks or scales.
    pub fn load(config: &Config, adapters: &Adapters, path: &Path, device: Device) -> Result<Self> {
        let rows = weights(config);
        adapters.check(path, &rows)?;
        adapters.check_uniform(path)?;
        Self::build(adapters, &rows, device)
    }

    fn build(adapters: &Adapters, rows: &[Weight], device: Device) -> Result<Self> {
        let (mut modules, mut variables) = (Vec::new(), Vec::new());
        let rank = adapters.rank as i64;
        // in the table's order
        for row in rows {
            let Some(adapter) = adapters.of(row) else { continue };
            let module = row.name.strip_suffix(".weight").unwrap_or(&row.name).to_owned();
            let halves = [
                ("A", &adapter.a, [rank, adapter.inputs as i64]),
                ("B", &adapter.b, [adapter.outputs as i64, rank]),
            ];
            for (half, values, shape) in halves {
                let name = format!("{module}.lora.{half}.weight");
                let leaf = || -> Torch<Tensor> {
                    let tensor = Tensor::f_from_slice(values)?.f_view(shape)?;
                    Ok(tensor.f_to_device(device)?.set_requires_grad(true))
                };
                let tensor = leaf().map_err(|e| Error::torch(format!("loading {name}"), &e))?;
                variables.push(Variable { name, role: None, tensor });
            }
            modules.push(module);
        }
        let base = adapters.base.clone();
        Ok(Self { rank: adapters.rank, alpha: adapters.alpha, base, modules, variables })
    }

    /// Names the model that the adapters are for.
    pub fn set_base(&mut self, base: Option<String>) {
        self.base = base;
    }

    /// A and B of each module, named `MODULE.lora.A.weight`: what is trained.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// The factors that go beside a linear layer.
    pub(super) fn factors(&self, module: &str) -> Option<Factors> {
        let i = self.modules.iter().position(|name| name == module)?;
        let (a, b) = (self.variables.get(2 * i)?, self.variables.get(2 * i + 1)?);
        let scale = self.alpha / self.rank as f64;
        Some(Factors { a: a.tensor.shallow_clone(), b: b.tensor.shallow_clone(), scale })
    }

    /// The adapters on the host, as files take them.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_host(&self) -> Result<Adapters> {
        let read = || -> Torch<BTreeMap<String, Adapter>> {
            let pairs = self.modules.iter().zip(self.variables.chunks(2));
            let modules = pairs.map(|(module, pair)| {
                let (a, b) = (&pair[0].tensor, &pair[1].tensor);
                let (inputs, outputs) = (a.size2()?.1 as usize, b.size2()?.0 as usize);
                let (a, b) = (host_f32(a)?, host_f32(b)?);
                Ok((module.clone(), Adapter { a, b, inputs, outputs, alpha: None }))
            });
            modules.collect()
        };
        let modules = read().map_err(|e| Error::torch("reading the adapters", &e))?;
        Ok(Adapters { rank: self.rank, alpha: self.alpha, base: self.base.clone(), modules })
    }
}
