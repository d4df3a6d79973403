//! Supervised fine-tuning: the assistant's turns of chats, from a pretrained model.

use super::{Defaults, Loss, Stage, language_model_loss};
use crate::error::Result;
use crate::model::Model;
use mmx_data::{Batch, Kind, Recipe};

/// Masked mean cross-entropy over the answers, plus the balancing loss.
#[derive(Debug)]
pub struct Sft;

impl Stage for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn kind(&self) -> Kind {
        Kind::Chat
    }

    fn defaults(&self, recipe: Recipe) -> Defaults {
        let lr = match recipe {
            Recipe::R2025 => 5e-7,
            Recipe::R2026 => 1e-5,
        };
        Defaults { epochs: 2, batch_size: 16, lr, accumulation: 1, max_seq_len: 512 }
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        language_model_loss(model, batch)
    }
}
