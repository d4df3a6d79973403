//! The language model's loss, which most stages share: cross-entropy plus the balancing loss of a
//! mixture of experts.

use mmx_data::Batch;
use tch::{TchError, Tensor};

use super::interface::{Loss, Part};
use crate::error::{Error, Result, TorchError};
use crate::loss::{self, Targets};
use crate::model::Model;
use crate::model::device::upload;

/// A batch's input ids on the model's device, `[batch, seq]`.
pub(super) fn inputs(model: &Model, batch: &Batch) -> Result<Tensor> {
    let build = || -> Result<Tensor, TchError> {
        let ids = Tensor::f_from_slice(&batch.x)?;
        upload(&ids.f_view([batch.batch as i64, batch.seq as i64])?, model.device())
    };
    build().map_err(|e| Error::torch("batch to the device", &e))
}

/// Masked mean cross-entropy plus the balancing loss: what pretraining and SFT share.
pub(super) fn language_model_loss(model: &Model, batch: &Batch) -> Result<Loss> {
    match Targets::new(batch, model.device())? {
        Some(targets) => cross_entropy_and_balance(model, batch, &targets),
        None => Ok(Loss::nothing()),
    }
}

/// Cross-entropy of some targets plus the balancing loss, with both as parts.
pub(super) fn cross_entropy_and_balance(
    model: &Model,
    batch: &Batch,
    targets: &Targets,
) -> Result<Loss> {
    let hidden = model.hidden_of(&inputs(model, batch)?, batch, true)?;
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
        ..Loss::nothing()
    })
}
