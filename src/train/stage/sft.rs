//! Supervised fine-tuning: the assistant's turns of chats, from a pretrained model.

use super::interface::{Loss, Stage};
use super::language_model::language_model_loss;
use crate::config::Defaults;
use crate::error::Result;
use crate::model::Model;
use mmx_data::{Batch, Recipe, StageInfo, stages};

/// The stage sft, whose loss is the masked mean cross-entropy over the answers, plus the balancing
/// loss.
#[derive(Debug)]
pub struct Sft;

impl Stage for Sft {
    fn info(&self) -> &'static StageInfo {
        &stages::SFT
    }

    fn defaults(&self, recipe: Recipe) -> Defaults {
        let lr = match recipe {
            Recipe::R2025 => 5e-7,
            Recipe::R2026 => 1e-5,
        };
        Defaults { epochs: 2, batch_size: 16, lr, accumulation: 1 }
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        language_model_loss(model, batch)
    }
}
