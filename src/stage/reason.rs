//! Reasoning: fine-tuning on answers of the form `<think>..</think><answer>..</answer>`, whose tags weigh
//! tenfold so that the form is learned first.

use super::{Defaults, Loss, Part, Setup, Stage, inputs};
use crate::data::{Batch, Kind, Recipe, reason_tag_ids};
use crate::error::{Error, Result};
use crate::loss::{self, Targets};
use crate::model::Model;

/// What a target weighs that is one of the tags' ids, in the loss mask or not. Source: 2025 reference.
const TAG_WEIGHT: f32 = 10.0;

/// Weighted cross-entropy divided by the plain mask's sum, plus the balancing loss.
#[derive(Debug, Default)]
pub struct Reason {
    tags: Option<Vec<i64>>,
}

impl Stage for Reason {
    fn name(&self) -> &'static str {
        "reason"
    }

    fn kind(&self) -> Kind {
        Kind::Chat
    }

    fn defaults(&self, _recipe: Recipe) -> Defaults {
        Defaults { epochs: 1, batch_size: 8, lr: 1e-6, accumulation: 1, max_seq_len: 1024 }
    }

    fn prepare(&mut self, _model: &mut Model, setup: Setup<'_>) -> Result<()> {
        let Some(tokenizer) = setup.tokenizer else {
            return Err(Error::failed("reason: expected a tokenizer for its tags, found none"));
        };
        let ids = reason_tag_ids(tokenizer)?;
        self.tags = Some(ids.into_iter().map(i64::from).collect());
        Ok(())
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        let Some(tags) = &self.tags else {
            return Err(Error::failed("reason: expected to be made ready before its first batch"));
        };
        let is_tag = |id: &i64| tags.binary_search(id).is_ok();
        let weight = |learned: bool, id: i64| match is_tag(&id) {
            true => TAG_WEIGHT,
            false => f32::from(u8::from(learned)),
        };
        let Some(targets) = Targets::weighted(batch, model.device(), &weight)? else {
            return Ok(Loss::nothing());
        };
        let hidden = model.hidden_packed(&inputs(model, batch)?, &batch.packed, true)?;
        let ce = loss::cross_entropy(model, &hidden.hidden, &targets)?;
        let (total, aux) = match hidden.aux {
            Some(aux) => {
                let total = ce.f_add(&aux).map_err(|e| Error::torch("loss", &e))?;
                (total, Part::Scalar(aux))
            }
            None => (ce.shallow_clone(), Part::Zero),
        };
        let tag_tokens = batch.y.iter().filter(|id| is_tag(id)).count();
        Ok(Loss {
            total: Some(total),
            parts: vec![
                ("ce", Part::Scalar(ce)),
                ("aux", aux),
                ("tag_tokens", Part::Count(tag_tokens)),
            ],
            trained_tokens: targets.count(),
        })
    }
}
