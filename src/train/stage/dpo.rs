//! Direct preference optimization: a chosen answer against a rejected one, measured from a frozen
//! reference, the model that training began with.
//!
//! Source: Rafailov et al. 2023, eq. 7; log-probabilities summed over the answer as there (2026) or
//! averaged over its tokens (2025 reference).

use tch::{TchError, Tensor};

use super::interface::{Loss, Part, Setup, Stage};
use super::language_model::inputs;
use crate::config::{Defaults, DpoOptions, Logps};
use crate::error::{Error, Result, TorchError};
use crate::loss::{self, Entropies, Targets};
use crate::model::Model;
use crate::model::device::upload;
use mmx_data::{Batch, Recipe, StageInfo, stages};

/// The stage dpo, whose loss is -log sigmoid(beta * ((pc - pr) - (rc - rr))), the mean over pairs;
/// in 2026 plus the balancing loss.
#[derive(Debug, Default)]
pub struct Dpo {
    ready: Option<Ready>,
}

#[derive(Debug)]
struct Ready {
    reference: Model,
    options: DpoOptions,
    /// The 2025 reference leaves the policy's balancing loss out.
    with_aux: bool,
}

impl Stage for Dpo {
    fn info(&self) -> &'static StageInfo {
        &stages::DPO
    }

    fn defaults(&self, recipe: Recipe) -> Defaults {
        let lr = match recipe {
            Recipe::R2025 => 1e-8,
            Recipe::R2026 => 4e-8,
        };
        Defaults { epochs: 2, batch_size: 4, lr, accumulation: 1 }
    }

    fn prepare(&mut self, _model: &mut Model, setup: Setup<'_>) -> Result<()> {
        let (Some(reference), Some(options)) = (setup.frozen, setup.config.dpo.clone()) else {
            return Err(Error::failed("dpo: expected a reference model and beta, found none"));
        };
        let with_aux = setup.config.recipe()? == Recipe::R2026;
        self.ready = Some(Ready { reference, options, with_aux });
        Ok(())
    }

    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss> {
        let Some(ready) = &self.ready else {
            return Err(Error::failed("dpo: expected to be made ready before its first batch"));
        };
        let Some(targets) = Targets::new(batch, model.device())? else {
            return Ok(Loss::nothing());
        };
        // of all ranks: their losses, each a sum over its own pairs, add up to the mean
        let pairs = (batch.whole().sequences / 2) as f64;
        let answers = Answers::new(batch, ready.options.logps, model)?;
        let ids = inputs(model, batch)?; // [2 * pairs, seq]: all chosen, then all rejected
        let of_reference = tch::no_grad(|| {
            let hidden = ready.reference.hidden_of(&ids, batch, false)?.hidden;
            let logps =
                loss::log_probabilities(&ready.reference, &hidden, &targets, Entropies::Unused)?;
            answers.gather(&logps).map_err(|e| Error::torch("reference log-probabilities", &e))
        })?; // [2 * pairs]
        let policy = model.hidden_of(&ids, batch, ready.with_aux)?;
        let margins = |logps: &Tensor| -> Result<Tensor, TchError> {
            let difference = answers.gather(logps)?.f_sub(&of_reference)?; // [2 * pairs]
            let own = answers.rows / 2;
            difference.f_narrow(0, 0, own)?.f_sub(&difference.f_narrow(0, own, own)?) // [pairs]
        };
        let margin = std::cell::RefCell::new(None);
        let dpo = loss::of_log_probabilities(model, &policy.hidden, &targets, &|logps| {
            let margins = margins(logps)?;
            let mean = margins.detach().f_sum(margins.kind())?.f_div_scalar(pairs)?;
            margin.replace(Some(mean));
            margins
                .f_mul_scalar(ready.options.beta)?
                .f_log_sigmoid()?
                .f_sum(margins.kind())?
                .f_div_scalar(pairs)?
                .f_neg()
        })?;
        let mut parts = vec![("dpo", Part::Scalar(dpo.shallow_clone()))];
        let total = match policy.aux {
            Some(aux) => {
                let total = dpo.f_add(&aux).map_err(|e| Error::torch("loss", &e))?;
                parts.push(("aux", Part::Scalar(aux)));
                total
            }
            None => {
                parts.push(("aux", Part::Zero));
                dpo
            }
        };
        parts.extend(margin.into_inner().map(|margin| ("margin", Part::Scalar(margin))));
        parts.push(("ref_logps", Part::PerSample(of_reference)));
        Ok(Loss { total: Some(total), parts, trained_tokens: targets.count(), ..Loss::nothing() })
    }
}

/// Which answer each learned target belongs to.
struct Answers {
    /// `[n]`, ascending.
    of_target: Tensor,
    /// Learned targets per row, at least 1, `[2 * pairs]`; none where log-probabilities are summed.
    lengths: Option<Tensor>,
    rows: i64,
}

impl Answers {
    fn new(batch: &Batch, logps: Logps, model: &Model) -> Result<Self> {
        let learned = (0..batch.mask.len()).filter(|&i| batch.mask[i] != 0.0);
        let of_target: Vec<i64> = learned.map(|i| (i / batch.seq.max(1)) as i64).collect();
        let build = || -> Result<Self, TchError> {
            let lengths = match logps {
                Logps::Sum => None,
                Logps::Mean => {
                    let rows = batch.mask.chunks(batch.seq.max(1));
                    let lengths: Vec<f32> =
                        rows.map(|row| row.iter().sum::<f32>().max(1.0)).collect();
                    Some(upload(&Tensor::f_from_slice(&lengths)?, model.device())?)
                }
            };
            let of_target = upload(&Tensor::f_from_slice(&of_target)?, model.device())?;
            Ok(Self { of_target, lengths, rows: batch.batch as i64 })
        };
        build().map_err(|e| Error::torch("answers to the device", &e))
    }

    /// Log-probabilities of targets `[n]` to those of answers `[2 * pairs]`.
    fn gather(&self, logps: &Tensor) -> Result<Tensor, TchError> {
        let zeros = Tensor::f_zeros([self.rows], (logps.kind(), logps.device()))?;
        let sums = zeros.f_index_add(0, &self.of_target, logps)?;
        match &self.lengths {
            Some(lengths) => sums.f_div(lengths),
            None => Ok(sums),
        }
    }
}
