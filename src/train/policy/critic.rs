//! The critic of stage ppo: a transformer that begins with the policy's weights, and one linear
//! output per position, the reward that is expected from there.

use mmx_converters::random::Random;
use mmx_data::Batch;
use tch::{Kind, TchError, Tensor};

use crate::error::{Error, Result, TorchError};
use crate::loss::Targets;
use crate::model::{HostTensor, Model, Variable, host_f32, wide};

/// A transformer and its value head; all of it is trained but an output head of its own.
#[derive(Debug)]
pub struct Critic {
    model: Model,
    /// `[1, hidden]`.
    weight: Tensor,
    /// `[1]`.
    bias: Tensor,
}

impl Critic {
    /// A critic over a model, whose value head begins as torch's linear layers do: uniform within
    /// 1 / sqrt(hidden). The values depend on the seed alone.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(model: Model, seed: u64) -> Result<Self> {
        /// The stream of random numbers beside those of order and prompts.
        const STREAM: u64 = 0x637269746963;
        let hidden = model.config().hidden_size;
        let bound = 1.0 / (hidden as f64).sqrt();
        let mut random = Random::new(seed, STREAM);
        let values: Vec<f64> = (0..=hidden).map(|_| (2.0 * random.unit() - 1.0) * bound).collect();
        let leaf = |values: &[f64], shape: &[i64]| -> Result<Tensor, TchError> {
            let tensor = Tensor::f_from_slice(values)?.f_to_kind(wide(model.compute()))?;
            let tensor = tensor.f_view(shape)?.f_to_device(model.device())?;
            Ok(tensor.set_requires_grad(true))
        };
        let doing = |e| Error::torch("value head", &e);
        let weight = leaf(&values[..hidden], &[1, hidden as i64]).map_err(doing)?;
        let bias = leaf(&values[hidden..], &[1]).map_err(doing)?;
        Ok(Self { model, weight, bias })
    }

    /// What is trained: the transformer's weights and the value head's.
    #[must_use]
    pub fn variables(&self) -> Vec<Variable> {
        let head = [("value_head.weight", &self.weight), ("value_head.bias", &self.bias)];
        let head = head.map(|(name, tensor)| Variable {
            name: name.into(),
            role: None,
            tensor: tensor.shallow_clone(),
        });
        let untied = |v: &&Variable| v.name != "lm_head.weight";
        self.model.variables().iter().filter(untied).map(Variable::share).chain(head).collect()
    }

    /// The values before each learned target, `[n]`, float32, with a gradient.
    ///
    /// # Errors
    /// libtorch's.
    pub fn values(&self, ids: &Tensor, batch: &Batch, targets: &Targets) -> Result<Tensor> {
        let hidden = self.model.hidden_of(ids, batch, false)?.hidden;
        // the reference norms what is normed already
        let states = targets.select(&self.model.normed(&hidden)?)?; // [n, hidden]
        let head = || -> Result<Tensor, TchError> {
            let states = states.f_to_kind(wide(states.kind()))?;
            states.f_linear(&self.weight, Some(&self.bias))?.f_squeeze_dim(1)
        };
        head().map_err(|e| Error::torch("values", &e))
    }

    /// All weights on the host.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_host(&self) -> Result<Vec<HostTensor>> {
        let read = |variable: Variable| -> Result<HostTensor> {
            let values = host_f32(&variable.tensor);
            let values =
                values.map_err(|e| Error::torch(format!("reading {}", variable.name), &e))?;
            let shape = variable.tensor.size().iter().map(|&n| n as usize).collect();
            Ok(HostTensor { name: variable.name, shape, values })
        };
        self.variables().into_iter().map(read).collect()
    }

    /// Puts a weight's values back.
    ///
    /// # Errors
    /// A name that is not known, or another number of values.
    pub fn restore(&self, name: &str, values: &[f32]) -> Result<()> {
        let variables = self.variables();
        let found = variables.iter().find(|v| v.name == name);
        let Some(variable) = found.filter(|v| v.tensor.numel() == values.len()) else {
            let expected =
                found.map_or_else(|| "no such weight".into(), |v| v.tensor.numel().to_string());
            return Err(Error::failed(format!(
                "critic: tensor {name}: expected {expected}, found {} values",
                values.len()
            )));
        };
        let copy = || -> Result<(), TchError> {
            let values = Tensor::f_from_slice(values)?.f_view(&variable.tensor.size()[..])?;
            variable.tensor.shallow_clone().f_copy_(&values.f_to_kind(Kind::Float)?)
        };
        tch::no_grad(copy).map_err(|e| Error::torch(format!("restoring {name}"), &e))
    }
}
