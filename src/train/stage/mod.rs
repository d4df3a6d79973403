//! The training stages: what each learns from a batch. Everything else (order, accumulation, clipping,
//! the optimizer, logs, checkpoints) is the one loop in [`crate::trainer`].
//!
//! In: a [`Batch`]. Out: a [`Loss`]: the scalar to go down, and its parts by name.

mod distill;
mod dpo;
#[cfg(test)]
mod gradients;
mod lora;
mod pretrain;
mod reason;
mod sft;

pub use distill::Distill;
pub use dpo::Dpo;
pub use lora::Lora;
pub use pretrain::Pretrain;
pub use reason::Reason;
pub use sft::Sft;

use std::path::PathBuf;

use mmx_converters::model::adapter::Adapters;
use mmx_converters::tokenizer::Tokenizer;
use tch::{TchError, Tensor};

use crate::config::TrainConfig;
use crate::error::{Error, Result, TorchError};
use crate::loss::{self, Targets};
use crate::model::device::upload;
use crate::model::{Model, Variable};
use mmx_data::{Batch, Kind, Recipe};

/// One stage.
pub trait Stage {
    /// As on the command line.
    fn name(&self) -> &'static str;

    /// What its data files hold.
    fn kind(&self) -> Kind;

    /// The reference's hyper-parameters.
    fn defaults(&self, recipe: Recipe) -> Defaults;

    /// Before the first step: adapters are attached, a reference or teacher is made ready.
    ///
    /// # Errors
    /// What the stage needs is not there or does not fit.
    fn prepare(&mut self, _model: &mut Model, _setup: Setup<'_>) -> Result<()> {
        Ok(())
    }

    /// What the optimizer changes: all weights unless the stage says otherwise.
    fn trainable(&self, model: &Model) -> Vec<Variable> {
        model.variables().iter().map(Variable::share).collect()
    }

    /// Whether a batch's rows must be padded to the full length, as the reference has them, because
    /// the numbers depend on padding (a balancing loss counts it).
    fn counts_padding(&self, model: &Model) -> bool {
        model.config().moe.is_some()
    }

    /// The loss of one micro-step, before it is divided by the accumulation steps.
    ///
    /// # Errors
    /// libtorch's.
    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss>;
}

/// What a stage is made ready with, besides the model it trains.
pub struct Setup<'a> {
    /// The resolved configuration.
    pub config: &'a TrainConfig,
    /// LoRA: adapters to go on with, and the file they are from.
    pub adapters: Option<(PathBuf, Adapters)>,
    /// LoRA: what the adapters' files call the model they are for.
    pub base: Option<String>,
    /// A model that stays as it is: DPO's reference, distillation's teacher.
    pub frozen: Option<Model>,
    /// Reasoning: has the ids of the tags.
    pub tokenizer: Option<&'a Tokenizer>,
}

impl<'a> Setup<'a> {
    /// With the configuration alone.
    pub fn new(config: &'a TrainConfig) -> Self {
        Self { config, adapters: None, base: None, frozen: None, tokenizer: None }
    }
}

/// A stage's hyper-parameters where the command line gives none (MODEL_AND_STAGES section 4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Passes over the data.
    pub epochs: usize,
    /// Rows per micro-step.
    pub batch_size: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Micro-steps per optimizer step.
    pub accumulation: usize,
    /// Samples are cut to this many tokens.
    pub max_seq_len: usize,
}

/// What a micro-step gives.
#[derive(Debug)]
pub struct Loss {
    /// The scalar whose gradient is taken; nothing when no token of the batch is learned.
    pub total: Option<Tensor>,
    /// Parts by name, for the log and the trace.
    pub parts: Vec<(&'static str, Part)>,
    /// Targets that are learned.
    pub trained_tokens: usize,
}

/// One named part of a loss.
#[derive(Debug)]
pub enum Part {
    /// A scalar.
    Scalar(Tensor),
    /// One value per sample.
    PerSample(Tensor),
    /// A part that this model does not have.
    Zero,
    /// A number known on the host.
    Count(usize),
}

impl Loss {
    /// Of a batch without a learned token: nothing to go down, nothing to show.
    pub fn nothing() -> Self {
        Self { total: None, parts: Vec::new(), trained_tokens: 0 }
    }

    /// The same numbers without the graph behind them, whose memory is wanted back.
    pub(crate) fn detached(self) -> Self {
        let part = |part| match part {
            Part::Scalar(tensor) => Part::Scalar(tensor.detach()),
            Part::PerSample(tensor) => Part::PerSample(tensor.detach()),
            other => other,
        };
        Self {
            total: self.total.map(|total| total.detach()),
            parts: self.parts.into_iter().map(|(name, p)| (name, part(p))).collect(),
            trained_tokens: self.trained_tokens,
        }
    }
}

/// The stage of a name.
///
/// # Errors
/// An unknown name.
pub fn by_name(name: &str) -> Result<Box<dyn Stage>> {
    match name {
        "distill" => Ok(Box::new(Distill::default())),
        "dpo" => Ok(Box::new(Dpo::default())),
        "lora" => Ok(Box::new(Lora)),
        "pretrain" => Ok(Box::new(Pretrain)),
        "reason" => Ok(Box::new(Reason::default())),
        "sft" => Ok(Box::new(Sft)),
        other => Err(Error::setting("stage", "pretrain, sft, lora, dpo, distill or reason", other)),
    }
}

/// A batch's input ids on the model's device, `[batch, seq]`.
fn inputs(model: &Model, batch: &Batch) -> Result<Tensor> {
    let build = || -> Result<Tensor, TchError> {
        let ids = Tensor::f_from_slice(&batch.x)?;
        upload(&ids.f_view([batch.batch as i64, batch.seq as i64])?, model.device())
    };
    build().map_err(|e| Error::torch("batch to the device", &e))
}

/// Masked mean cross-entropy plus the balancing loss: what pretraining and SFT share.
fn language_model_loss(model: &Model, batch: &Batch) -> Result<Loss> {
    match Targets::new(batch, model.device())? {
        Some(targets) => entropy_and_balance(model, batch, &targets),
        None => Ok(Loss::nothing()),
    }
}

/// Cross-entropy of some targets plus the balancing loss, with both as parts.
fn entropy_and_balance(model: &Model, batch: &Batch, targets: &Targets) -> Result<Loss> {
    let hidden = model.hidden_packed(&inputs(model, batch)?, &batch.packed, true)?;
    let ce = loss::cross_entropy(model, &hidden.hidden, targets)?;
    let (total, aux) = match hidden.aux {
        Some(aux) => {
            let total = ce.f_add(&aux).map_err(|e| Error::torch("loss", &e))?;
            (total, Part::Scalar(aux))
        }
        None => (ce.shallow_clone(), Part::Zero),
    };
    Ok(Loss {
        total: Some(total),
        parts: vec![("ce", Part::Scalar(ce)), ("aux", aux)],
        trained_tokens: targets.count(),
    })
}
