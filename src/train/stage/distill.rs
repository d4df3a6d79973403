//! White-box distillation: a student learns from the data and from a teacher's whole distribution.
//!
//! The teacher may be of another family and size; its vocabulary begins with the student's.

use super::interface::{Loss, Part, Setup, Stage};
use super::language_model::inputs;
use crate::config::{Defaults, DistillOptions};
use crate::error::{Error, Result, TorchError};
use crate::loss::{self, Targets};
use crate::model::Model;
use mmx_data::{Batch, Recipe, StageInfo, stages};

/// The stage distill, whose loss is alpha * CE + (1 - alpha) * T^2 * KL(teacher at T, student at
/// T), plus a student's balancing loss.
#[derive(Debug, Default)]
pub struct Distill {
    ready: Option<Ready>,
}

#[derive(Debug)]
struct Ready {
    teacher: Model,
    options: DistillOptions,
    recipe: Recipe,
}

impl Stage for Distill {
    fn info(&self) -> &'static StageInfo {
        &stages::DISTILL
    }

    fn defaults(&self, _recipe: Recipe) -> Defaults {
        Defaults { epochs: 6, batch_size: 32, lr: 5e-6, accumulation: 1 }
    }

    fn prepare(&mut self, model: &mut Model, setup: Setup<'_>) -> Result<()> {
        let (Some(teacher), Some(options)) = (setup.frozen, setup.config.distill.clone()) else {
            return Err(Error::failed(
                "distill: expected a teacher, alpha and temperature, found none",
            ));
        };
        let (student, found) = (model.config().vocab_size, teacher.config().vocab_size);
        if found < student {
            return Err(Error::failed(format!(
                "teacher: key vocab_size: expected at least {student}, the student's, found {found}"
            )));
        }
        let recipe = setup.config.recipe()?;
        self.ready = Some(Ready { teacher, options, recipe });
        Ok(())
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        let Some(Ready { teacher, options, recipe }) = &self.ready else {
            return Err(Error::failed("distill: expected to be made ready before its first batch"));
        };
        let pad = i64::from(model.config().pad_token_id);
        // the 2025 reference's cross-entropy passes over padding, where the mask does not
        let weight = |learned: bool, id: i64| f32::from(u8::from(learned && id != pad));
        let targets = match recipe {
            Recipe::R2025 => Targets::weighted(batch, model.device(), &weight)?,
            Recipe::R2026 => Targets::new(batch, model.device())?,
        };
        let Some(targets) = targets else { return Ok(Loss::nothing()) };
        let ids = inputs(model, batch)?;
        let of_teacher = tch::no_grad(|| teacher.hidden_of(&ids, batch, false))?.hidden;
        let student = model.hidden_of(&ids, batch, true)?;
        let mixture = (options.alpha, options.temperature);
        let found =
            loss::distillation(model, &student.hidden, teacher, &of_teacher, &targets, mixture)?;
        let (total, aux) = match student.aux {
            Some(aux) => {
                // 2026 counts it with the cross-entropy
                let share = match recipe {
                    Recipe::R2025 => 1.0,
                    Recipe::R2026 => options.alpha,
                };
                let total = aux.f_mul_scalar(share).and_then(|aux| found.mixed.f_add(&aux));
                (total.map_err(|e| Error::torch("loss", &e))?, Part::Scalar(aux))
            }
            None => (found.mixed, Part::Zero),
        };
        Ok(Loss {
            total: Some(total),
            parts: vec![
                ("ce", Part::Scalar(found.ce)),
                ("kl", Part::Scalar(found.kl)),
                ("aux", aux),
            ],
            trained_tokens: targets.count(),
            ..Loss::nothing()
        })
    }
}
