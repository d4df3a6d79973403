//! LoRA: fine-tuning of low-rank adapters beside fixed weights, from a fine-tuned model.
//!
//! The checkpoint is a PEFT folder: the adapters alone, and `adapter_config.json`, which names the
//! model they are for. mmx opens such a folder as that model with the adapters merged.

use super::interface::{Loss, Setup, Stage};
use super::language_model::language_model_loss;
use crate::config::Defaults;
use crate::error::{Error, Result};
use crate::model::{Lora as Adapters, Model, Target, Variable};
use mmx_data::{Batch, Recipe, StageInfo, stages};

/// The stage lora: the loss of SFT, with the factors A and B of the adapters trained alone.
#[derive(Debug)]
pub struct Lora;

impl Stage for Lora {
    fn info(&self) -> &'static StageInfo {
        &stages::LORA
    }

    fn defaults(&self, _recipe: Recipe) -> Defaults {
        Defaults { epochs: 10, batch_size: 32, lr: 1e-4, accumulation: 1 }
    }

    fn prepare(&mut self, model: &mut Model, mut setup: Setup<'_>) -> Result<()> {
        attach(model, &mut setup)
    }

    fn trainable(&self, model: &Model) -> Vec<Variable> {
        model.lora().iter().flat_map(|lora| lora.variables()).map(Variable::share).collect()
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        language_model_loss(model, batch)
    }
}

/// Puts new adapters beside a model's linear layers, or those to go on with.
pub(super) fn attach(model: &mut Model, setup: &mut Setup<'_>) -> Result<()> {
    let Some(options) = &setup.config.lora else {
        return Err(Error::failed("adapters: expected rank, alpha and target, found none"));
    };
    let (config, device) = (model.config(), model.device());
    let mut adapters = match &setup.adapters {
        Some((path, adapters)) => Adapters::load(config, adapters, path, device)?,
        None => {
            let size = (options.rank, options.alpha);
            let target = Target::parse(&options.target);
            Adapters::random(config, &target, size, setup.config.seed, device)?
        }
    };
    adapters.set_base(setup.base.take());
    model.attach(adapters)
}
