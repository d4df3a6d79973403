//! The four families in tch: ids `[batch, seq]` to logits `[batch, seq, vocab]` and the balancing
//! loss.
//!
//! In: a [`Config`] and named weights (a [`TensorView`] per row of [`weights`]), or a seed for
//! initial values. Variables are named as MiniMind names them and kept in float32 whatever the
//! compute type (float64 where float64 is the compute type, which tests use): they are the master
//! weights the optimizer changes. With bfloat16 each use casts the weight, linear layers and
//! attention run in bfloat16, and the residual stream, RMSNorm, router and loss in float32 (what
//! the reference's autocast does, except that it rounds the router too). CPU and CUDA run the same
//! code.

mod attention;
pub mod device;
mod ffn;
mod grouped;
mod init;
mod layer;
mod linear;
mod lora;
mod moe;
mod rope;
mod samples;
mod variable;

use mmx_converters::arch::{Config, Moe, weights};
use mmx_converters::error::TensorReport;
use mmx_converters::tensor::{Dtype, TensorView};
use mmx_data::{Batch, Share};
use tch::{Device, Kind, Tensor};

use self::layer::{Layer, layers};
use self::linear::{Norm, Parts, linear};
use self::moe::Balance;
use self::rope::Rope;
use self::samples::Samples;
use self::variable::{Torch, variable};
use crate::error::{Error, Result, TorchError};
use crate::ranks::Ranks;

pub use self::lora::{Lora, Target};
pub use self::variable::{HostTensor, Variable};
pub(crate) use self::variable::{host_f32, wide};

/// A model: master weights in float32 on one device, and the graph over them.
#[derive(Debug)]
pub struct Model {
    config: Config,
    device: Device,
    compute: Kind,
    variables: Vec<Variable>,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    head: Tensor,
    rope: Rope,
    /// Attached adapters: the layers' linears hold their tensors.
    lora: Option<Lora>,
    /// The processes that each have a share of a batch.
    ranks: Ranks,
}

/// The output of the layers, before the head.
#[derive(Debug)]
pub struct Hidden {
    /// `[batch, seq, hidden]`, after the final norm, in the compute type.
    pub hidden: Tensor,
    /// The balancing losses' sum over layers, a float32 scalar; none for dense models or outside
    /// training. Of a share of a batch, its share of the whole batch's.
    pub aux: Option<Tensor>,
}

/// Samples that follow one another, some of which go on from another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Branches {
    /// Positions of each.
    pub lengths: Vec<usize>,
    /// The sample that each goes on from, which goes on from none itself.
    pub parents: Vec<Option<usize>>,
}

impl Model {
    /// A model with initial values: normal(0, 0.02) for matrices and the embedding, ones for norms,
    /// as the reference. The values depend on `seed` and on the tensor's row in the table only.
    ///
    /// # Errors
    /// libtorch's, when the device cannot hold the model.
    pub fn random(config: &Config, seed: u64, device: Device, compute: Kind) -> Result<Self> {
        let rows = weights(config);
        let (values, kept) = (init::initial_values(&rows, seed), wide(compute));
        let variables = rows.iter().zip(values).map(|(row, values)| {
            variable(row, Dtype::F32, bytemuck::cast_slice(&values), device, kept)
        });
        let variables = variables.collect::<Result<Vec<_>>>()?;
        Self::assemble(config.clone(), variables, device, compute)
    }

    /// A model with the weights `source` gives by MiniMind's names. `names` are all that the source
    /// holds: what the table does not know is a fault too (a tied model's `lm_head.weight` is let
    /// pass). float16, bfloat16 and float64 are turned into float32.
    ///
    /// # Errors
    /// All missing, unexpected and misshapen tensors in one report that names `path`.
    pub fn load<'a>(
        config: &Config,
        path: &std::path::Path,
        names: impl IntoIterator<Item = &'a str>,
        source: impl Fn(&str) -> Option<TensorView<'a>>,
        device: Device,
        compute: Kind,
    ) -> Result<Self> {
        let rows = weights(config);
        let known: std::collections::HashSet<&str> = rows.iter().map(|r| r.name.as_str()).collect();
        let mut report = TensorReport::default();
        let mut unexpected: Vec<String> = names
            .into_iter()
            .filter(|name| {
                let tied_head = config.tie_word_embeddings && *name == "lm_head.weight";
                !known.contains(name) && !tied_head
            })
            .map(str::to_owned)
            .collect();
        unexpected.sort();
        report.unexpected = unexpected;
        let mut found = Vec::new();
        for row in &rows {
            match source(&row.name) {
                None => report.missing.push(row.name.clone()),
                Some(view) => {
                    let float =
                        matches!(view.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64);
                    if view.shape != row.shape {
                        report.mismatched.push((
                            row.name.clone(),
                            format!("shape {:?}", row.shape),
                            format!("{:?}", view.shape),
                        ));
                    } else if !float {
                        report.mismatched.push((
                            row.name.clone(),
                            "a float type".into(),
                            view.dtype.safetensors_name().into(),
                        ));
                    }
                    found.push((row, view));
                }
            }
        }
        if !report.is_empty() {
            return Err(Error::Tensors { path: path.to_owned(), report });
        }
        let kept = wide(compute);
        let variables =
            found.into_iter().map(|(row, v)| variable(row, v.dtype, v.data, device, kept));
        let variables = variables.collect::<Result<Vec<_>>>()?;
        Self::assemble(config.clone(), variables, device, compute)
    }

    /// A model with the weights of an open folder or unquantized GGUF, whatever its layout; opening
    /// it has compared names and shapes already.
    ///
    /// # Errors
    /// Weights in a block type; libtorch's.
    pub fn from_model(
        model: &mmx_converters::Model,
        device: Device,
        compute: Kind,
    ) -> Result<Self> {
        let variables = model.weights().iter().map(|row| {
            let (dtype, bytes) = model.weight(row)?;
            variable(row, dtype, &bytes, device, wide(compute))
        });
        let variables = variables.collect::<Result<Vec<_>>>()?;
        Self::assemble(model.config.clone(), variables, device, compute)
    }

    fn assemble(
        config: Config,
        variables: Vec<Variable>,
        device: Device,
        compute: Kind,
    ) -> Result<Self> {
        let parts = Parts(&variables, None);
        let eps = config.rms_norm_eps;
        let layers = layers(&config, &parts)?;
        let embedding = parts.tensor("model.embed_tokens")?;
        let head = if config.tie_word_embeddings {
            embedding.shallow_clone()
        } else {
            parts.tensor("lm_head")?
        };
        let norm = parts.norm("model.norm", eps)?;
        let rope = Rope::new(&config, device);
        let (lora, ranks) = (None, Ranks::default());
        Ok(Self {
            config,
            device,
            compute,
            variables,
            embedding,
            layers,
            norm,
            head,
            rope,
            lora,
            ranks,
        })
    }

    /// Says which processes have shares of a batch: balancing losses count what all of them see.
    pub fn set_ranks(&mut self, ranks: Ranks) {
        self.ranks = ranks;
    }

    /// The processes that have shares of a batch.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// Puts adapters beside the linear layers they are for; the weights themselves are then fixed.
    ///
    /// # Errors
    /// libtorch's. [`Lora`] has compared names and shapes with the configuration.
    pub fn attach(&mut self, lora: Lora) -> Result<()> {
        for variable in &self.variables {
            let _ = variable.tensor.set_requires_grad(false);
        }
        self.layers = layers(&self.config, &Parts(&self.variables, Some(&lora)))?;
        self.lora = Some(lora);
        Ok(())
    }

    /// The model without its adapters, over the same weights: what the adapters are measured from.
    ///
    /// # Errors
    /// libtorch's.
    pub fn without_adapters(&self) -> Result<Self> {
        let variables = self.variables.iter().map(Variable::share).collect();
        Self::assemble(self.config.clone(), variables, self.device, self.compute)
    }

    /// The final norm of states `[.., hidden]`, of the same shape, in the compute type.
    ///
    /// # Errors
    /// libtorch's.
    pub fn normed(&self, states: &Tensor) -> Result<Tensor> {
        self.norm.forward(states, self.compute).map_err(|e| Error::torch("final norm", &e))
    }

    /// Every weight by its name, contiguous float32 on the host, in the table's order; where adapters
    /// are attached, with them merged. On the CPU they are the weights themselves, not copies.
    ///
    /// # Errors
    /// libtorch's.
    pub fn merged(&self) -> Result<Vec<(&str, Tensor)>> {
        let read = |variable: &Variable| -> Torch<Tensor> {
            let module = variable.name.strip_suffix(".weight").unwrap_or(&variable.name);
            let merged = match self.lora.as_ref().and_then(|lora| lora.factors(module)) {
                Some(factors) => tch::no_grad(|| factors.merged(&variable.tensor))?,
                None => variable.tensor.detach(),
            };
            merged.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()
        };
        let of = |variable: &'_ Variable| {
            read(variable).map_err(|e| Error::torch(format!("reading {}", variable.name), &e))
        };
        self.variables.iter().map(|v| Ok((v.name.as_str(), of(v)?))).collect()
    }

    /// The attached adapters.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    /// The model's dimensions.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device on which the model computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The compute type: float32 or bfloat16.
    pub fn compute(&self) -> Kind {
        self.compute
    }

    /// The master weights in the table's order.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// The output head's weight `[vocab, hidden]` (the embedding when tied), a leaf of autograd.
    pub fn head_weight(&self) -> &Tensor {
        &self.head
    }

    /// A weight's values as float32 on the host; nothing where there is no weight of that name.
    ///
    /// # Errors
    /// libtorch's.
    pub fn weight_to_host(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let weight = self.variables.iter().find(|weight| weight.name == name);
        let values = weight.map(|weight| host_f32(&weight.tensor)).transpose();
        values.map_err(|e| Error::torch(format!("reading {name}"), &e))
    }

    /// Every weight as float32 on the host, in the table's order; attached adapters after them.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_host(&self) -> Result<Vec<HostTensor>> {
        let read = |v: &Variable| -> Torch<_> {
            let shape = v.tensor.size().iter().map(|&n| n as usize).collect();
            Ok(HostTensor { name: v.name.clone(), shape, values: host_f32(&v.tensor)? })
        };
        let adapters = self.lora.iter().flat_map(Lora::variables);
        self.variables
            .iter()
            .chain(adapters)
            .map(|v| read(v).map_err(|e| Error::torch(format!("reading {}", v.name), &e)))
            .collect()
    }

    /// ids `[batch, seq]` (int64, on the model's device) to the final hidden states; `train` adds
    /// the balancing loss.
    ///
    /// # Errors
    /// libtorch's: an id beyond the vocabulary, memory.
    pub fn hidden(&self, ids: &Tensor, train: bool) -> Result<Hidden> {
        self.forward_hidden(ids, &[], train, None)
    }

    /// The final hidden states of samples that follow one another, `packed` being the number of
    /// positions of each: together all of `ids`. No position sees another sample, each sample's
    /// rotary positions begin at 0, and the balancing losses are those of the samples. Without
    /// lengths, each row is a sample.
    ///
    /// # Errors
    /// libtorch's, as [`Model::hidden`]; samples that are more or fewer positions than there are
    /// ids.
    pub fn hidden_packed(&self, ids: &Tensor, packed: &[usize], train: bool) -> Result<Hidden> {
        self.forward_hidden(ids, packed, train, None)
    }

    /// Whether [`Model::hidden_branched`] takes this model: a dense one on the CPU, in float32 or
    /// bfloat16. (A mixture of experts balances whole samples, devices have no such attention.)
    pub fn takes_branches(&self) -> bool {
        let kind = matches!(self.compute, Kind::Float | Kind::BFloat16);
        self.device == Device::Cpu && kind && self.config.moe.is_none()
    }

    /// The final hidden states `[1, positions, hidden]` of samples that follow one another, some of
    /// which go on from another one: they see its positions before their own, and are numbered after
    /// it.
    ///
    /// # Errors
    /// A model that is not taken, samples that do not make up the ids; libtorch's.
    pub fn hidden_branched(&self, ids: &Tensor, branches: &Branches) -> Result<Hidden> {
        let doing = |e| Error::torch("forward pass", &e);
        let Branches { lengths, parents } = branches;
        let (hidden, _) =
            self.through_layers(ids, (lengths, parents), false, false).map_err(doing)?;
        Ok(Hidden { hidden, aux: None })
    }

    /// The final hidden states of a batch's ids, which is perhaps the share that one of several
    /// processes has, perhaps without rows: all processes have to call this, as the balancing loss
    /// may be of what all of them see.
    ///
    /// # Errors
    /// libtorch's, as [`Model::hidden`]; in training another process that fails.
    pub fn hidden_of(&self, ids: &Tensor, batch: &Batch, train: bool) -> Result<Hidden> {
        self.forward_hidden(ids, &batch.packed, train, batch.share.map(|share| (share, batch)))
    }

    fn forward_hidden(
        &self,
        ids: &Tensor,
        packed: &[usize],
        train: bool,
        share: Option<(Share, &Batch)>,
    ) -> Result<Hidden> {
        let doing = |e| Error::torch("forward pass", &e);
        let (hidden, balances) = match ids.numel() {
            0 if share.is_some() => self.no_rows(train).map_err(doing)?,
            _ => self.through_layers(ids, (packed, &[]), train, share.is_some()).map_err(doing)?,
        };
        let (mut aux, mut statistics) = (None, Vec::new());
        for balance in balances {
            match (balance, aux) {
                (Balance::Loss(loss), None) => aux = Some(loss),
                (Balance::Loss(loss), Some(sum)) => {
                    aux = Some(Tensor::f_add(&sum, &loss).map_err(doing)?);
                }
                (Balance::Statistics(layer), before) => {
                    statistics.push(layer);
                    aux = before;
                }
            }
        }
        if let Some((whole, batch)) = share {
            aux = match statistics.is_empty() {
                // a mean over sequences: it counts as many as the share has
                true => {
                    let part = batch.sequences() as f64 / whole.sequences.max(1) as f64;
                    aux.map(|aux| aux.f_mul_scalar(part)).transpose().map_err(doing)?
                }
                false => Some(self.balance(&statistics, whole.positions)?),
            };
        }
        Ok(Hidden { hidden, aux })
    }

    /// The share's part of a balancing loss of the whole batch, whose positions' choices are counted
    /// over all processes.
    fn balance(&self, layers: &[Tensor], positions: usize) -> Result<Tensor> {
        let Some(moe) = &self.config.moe else {
            return Err(Error::failed("balancing loss: expected a mixture of experts, found none"));
        };
        let doing = |e| Error::torch("balancing loss", &e);
        let statistics = Tensor::f_stack(layers, 1).map_err(doing)?; // [2, layers, experts]
        let of = |half| statistics.f_select(0, half);
        // a copy: the sum over all is put in its place
        let counts = of(0).and_then(|of| of.detach().f_mul_scalar(1.0));
        let mut counts = counts.map_err(doing)?;
        self.ranks.sum(&mut counts)?;
        let sums = of(1).map_err(doing)?;
        moe::loss_of_statistics(moe, &counts, &sums, positions).map_err(doing)
    }

    /// What a share without rows gives: no hidden state, and a balance of nothing.
    fn no_rows(&self, train: bool) -> Torch<(Tensor, Vec<Balance>)> {
        let kind = (wide(self.compute), self.device);
        let hidden = self.config.hidden_size as i64;
        let hidden = Tensor::f_zeros([0, 0, hidden], (self.compute, self.device))?;
        let balance = |moe: &Moe| match moe::is_of_whole_batch(moe.aux_loss) {
            true => Tensor::f_zeros([2, moe.num_experts as i64], kind).map(Balance::Statistics),
            false => Tensor::f_zeros([], kind).map(Balance::Loss),
        };
        let mixtures = self.config.moe.iter().filter(|_| train);
        let balances = mixtures.flat_map(|moe| self.layers.iter().map(move |_| balance(moe)));
        Ok((hidden, balances.collect::<Torch<_>>()?))
    }

    fn through_layers(
        &self,
        ids: &Tensor,
        (packed, parents): (&[usize], &[Option<usize>]),
        train: bool,
        share: bool,
    ) -> Torch<(Tensor, Vec<Balance>)> {
        let (batch, seq) = ids.size2()?;
        let (rope, samples) = match packed.is_empty() {
            true => (self.rope.tables(seq)?, None),
            false => {
                let lengths = packed.iter().map(|&length| length as i64).collect();
                let samples = Samples::new(lengths, self.device).branched(parents);
                let positions = samples.positions();
                let longest = positions.iter().max().map_or(0, |last| last + 1);
                let positions = Tensor::f_from_slice(&positions)?.f_view([batch, seq])?;
                let positions = device::upload(&positions, self.device)?;
                (self.rope.tables_at(&positions, longest)?, Some(samples))
            }
        };
        // [batch, seq] -> [batch, seq, hidden], float32: the residual stream
        let mut x = Tensor::f_embedding(&self.embedding, ids, -1, false, false)?;
        let norms = self.layers.iter().map(|layer| &layer.input_norm).chain([&self.norm]);
        let mut norms = norms.skip(1);
        let mut normed = match self.layers.first() {
            Some(layer) => layer.input_norm.forward(&x, self.compute)?,
            None => self.norm.forward(&x, self.compute)?,
        };
        let mut balances = Vec::new();
        for (layer, next_norm) in self.layers.iter().zip(&mut norms) {
            let mixed = layer.attention.forward(&normed, &rope, samples.as_ref())?;
            (x, normed) = layer.post_attention_norm.add(&x, &mixed, self.compute)?;
            let (out, balance) =
                layer.feed_forward.forward(&normed, train, samples.as_ref(), share)?;
            (x, normed) = next_norm.add(&x, &out, self.compute)?;
            balances.extend(balance);
        }
        debug_assert_eq!(x.size(), [batch, seq, self.config.hidden_size as i64]);
        Ok((normed, balances))
    }

    /// Hidden states `[.., hidden]` to float32 logits `[.., vocab]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        let project =
            || -> Torch<Tensor> { linear(hidden, &self.head)?.f_to_kind(wide(hidden.kind())) };
        project().map_err(|e| Error::torch("output head", &e))
    }

    /// float32 logits `[batch, seq, vocab]` of ids `[batch, seq]`, without gradients.
    ///
    /// # Errors
    /// An id beyond the vocabulary; libtorch's.
    pub fn logits(&self, ids: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.head(&self.hidden(&self.checked(ids)?, false)?.hidden))
    }

    /// `count` ids that follow `ids` when the largest logit is taken each time.
    ///
    /// # Errors
    /// No ids, an id beyond the vocabulary; libtorch's.
    pub fn greedy(&self, ids: &[u32], count: usize) -> Result<Vec<u32>> {
        if ids.is_empty() {
            return Err(Error::failed("greedy continuation: expected at least one id, found none"));
        }
        let mut all: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        tch::no_grad(|| {
            for _ in 0..count {
                let input = self.checked(&Tensor::from_slice(&all).unsqueeze(0))?;
                let hidden = self.hidden(&input, false)?.hidden;
                let next = || -> Torch<i64> {
                    let last = hidden.f_select(1, -1)?;
                    linear(&last, &self.head)?.f_argmax(-1, false)?.f_int64_value(&[0])
                };
                all.push(next().map_err(|e| Error::torch("greedy continuation", &e))?);
            }
            Ok::<(), Error>(())
        })?;
        Ok(all[ids.len()..].iter().map(|&id| id as u32).collect())
    }

    /// `ids` on the model's device, once every one is known to be in the vocabulary: CUDA would
    /// abort the whole process on a wrong one.
    fn checked(&self, ids: &Tensor) -> Result<Tensor> {
        let check = || -> Torch<(i64, i64, Tensor)> {
            let bounds = (ids.f_min()?.f_int64_value(&[])?, ids.f_max()?.f_int64_value(&[])?);
            Ok((bounds.0, bounds.1, ids.f_to_kind(Kind::Int64)?.f_to_device(self.device)?))
        };
        let (least, most, ids) = check().map_err(|e| Error::torch("reading token ids", &e))?;
        let vocab = self.config.vocab_size as i64;
        if least < 0 || most >= vocab {
            let wrong = if least < 0 { least } else { most };
            return Err(Error::failed(format!(
                "token ids: expected 0 to {}, found {wrong}",
                vocab - 1
            )));
        }
        Ok(ids)
    }
}

/// The gradient of a scalar with respect to every weight, on the host, in the table's order; zeros
/// where the loss does not depend on the weight. For tests and diagnoses: training keeps gradients
/// on the device.
///
/// # Errors
/// libtorch's.
pub fn host_gradients(model: &Model, loss: &Tensor) -> Result<Vec<HostTensor>> {
    let leaves: Vec<&Tensor> = model.variables.iter().map(|v| &v.tensor).collect();
    let read = || -> Torch<Vec<HostTensor>> {
        let gradients = Tensor::f_run_backward(&[loss], &leaves, true, false)?;
        let host = model.variables.iter().zip(gradients).map(|(variable, gradient)| {
            let shape = variable.tensor.size().iter().map(|&n| n as usize).collect();
            let values = match gradient.defined() {
                true => host_f32(&gradient)?,
                false => vec![0.0; variable.tensor.numel()],
            };
            Ok(HostTensor { name: variable.name.clone(), shape, values })
        });
        host.collect()
    };
    read().map_err(|e| Error::torch("gradients", &e))
}
