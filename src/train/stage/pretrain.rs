//! Pretraining: the next token of plain text, from scratch.

use super::{Defaults, Loss, Stage, language_model_loss};
use crate::error::Result;
use crate::model::Model;
use mmx_data::{Batch, Kind, Recipe};

/// Masked mean cross-entropy over all tokens, plus the balancing loss.
#[derive(Debug)]
pub struct Pretrain;

impl Stage for Pretrain {
    fn name(&self) -> &'static str {
        "pretrain"
    }

    fn kind(&self) -> Kind {
        Kind::Text
    }

    fn defaults(&self, _recipe: Recipe) -> Defaults {
        Defaults { epochs: 1, batch_size: 32, lr: 5e-4, accumulation: 8, max_seq_len: 512 }
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        language_model_loss(model, batch)
    }
}
