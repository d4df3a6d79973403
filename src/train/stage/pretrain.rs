//! Pretraining: the next token of plain text, from scratch.

use super::interface::{Loss, Stage};
use super::language_model::language_model_loss;
use crate::config::Defaults;
use crate::error::Result;
use crate::model::Model;
use mmx_data::{Batch, Recipe, StageInfo, stages};

/// The stage pretrain, whose loss is the masked mean cross-entropy over all tokens, plus the
/// balancing loss.
#[derive(Debug)]
pub struct Pretrain;

impl Stage for Pretrain {
    fn info(&self) -> &'static StageInfo {
        &stages::PRETRAIN
    }

    fn defaults(&self, _recipe: Recipe) -> Defaults {
        Defaults { epochs: 1, batch_size: 32, lr: 5e-4, accumulation: 8 }
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        language_model_loss(model, batch)
    }
}
