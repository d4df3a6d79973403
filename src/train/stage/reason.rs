//! Reasoning: fine-tuning on answers of the form `<think>..</think><answer>..</answer>`, whose tags
//! weigh tenfold so that the form is learned first.

use super::interface::{Loss, Part, Setup, Stage};
use super::language_model::cross_entropy_and_balance;
use crate::config::Defaults;
use crate::error::{Error, Result};
use crate::loss::Targets;
use crate::model::Model;
use mmx_data::{Batch, Recipe, StageInfo, reason_tag_ids, stages};

/// The weight of a target that is one of the tags' ids, in the loss mask or not. Source: 2025
/// reference.
const TAG_WEIGHT: f32 = 10.0;

/// The stage reason, whose loss is the weighted cross-entropy divided by the plain mask's sum, plus
/// the balancing loss.
#[derive(Debug, Default)]
pub struct Reason {
    tags: Option<Vec<i64>>,
}

impl Stage for Reason {
    fn info(&self) -> &'static StageInfo {
        &stages::REASON
    }

    fn defaults(&self, _recipe: Recipe) -> Defaults {
        Defaults { epochs: 1, batch_size: 8, lr: 1e-6, accumulation: 1 }
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
        let mut loss = cross_entropy_and_balance(model, batch, &targets)?;
        let tag_tokens = batch.y.iter().filter(|id| is_tag(id)).count();
        loss.parts.push(("tag_tokens", Part::Count(tag_tokens)));
        Ok(loss)
    }
}
