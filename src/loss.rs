//! Pure functions from hidden states and targets to a scalar loss.
//!
//! Logits are computed only at positions whose target is learned: the others add nothing to any of the
//! losses here, and the head is a large share of a small model's work.

use tch::{Device, Kind, Reduction, TchError, Tensor};

use crate::data::Batch;
use crate::error::{Error, Result};
use crate::model::Model;

/// The learned targets of a batch, on the device.
#[derive(Debug)]
pub struct Targets {
    /// Where they are in the flattened `[batch * seq]`, ascending, int64 `[n]`; none when all are learned.
    rows: Option<Tensor>,
    /// The ids, int64 `[n]`.
    ids: Tensor,
    /// What each weighs, float32 `[n]`; none when all weigh 1.
    weights: Option<Tensor>,
    /// n: what the weighted sum is divided by.
    count: usize,
}

impl Targets {
    /// The learned targets, or nothing when there are none. `weight` says what a target id weighs.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(
        batch: &Batch,
        device: Device,
        weight: Option<&dyn Fn(i64) -> f32>,
    ) -> Result<Option<Self>> {
        let learned = |i: &usize| batch.mask[*i] != 0.0;
        let rows: Vec<i64> = (0..batch.mask.len()).filter(learned).map(|i| i as i64).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let ids: Vec<i64> = rows.iter().map(|&i| batch.y[i as usize]).collect();
        let count = rows.len();
        let build = || -> Result<Self, TchError> {
            let weights = match weight {
                Some(weight) => {
                    let weights: Vec<f32> = ids.iter().map(|&id| weight(id)).collect();
                    Some(Tensor::f_from_slice(&weights)?.f_to_device(device)?)
                }
                None => None,
            };
            let rows = match count == batch.mask.len() {
                true => None,
                false => Some(Tensor::f_from_slice(&rows)?.f_to_device(device)?),
            };
            let ids = Tensor::f_from_slice(&ids)?.f_to_device(device)?;
            Ok(Self { rows, ids, weights, count })
        };
        build().map(Some).map_err(|e| Error::torch("targets to the device", &e))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The hidden states before the learned targets: `[batch, seq, hidden]` to `[n, hidden]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn select(&self, hidden: &Tensor) -> Result<Tensor> {
        let select = || -> Result<Tensor, TchError> {
            let width = hidden.size().last().copied().unwrap_or_default();
            let flat = hidden.f_reshape([-1, width])?;
            match &self.rows {
                Some(rows) => flat.f_index_select(0, rows),
                None => Ok(flat),
            }
        };
        select().map_err(|e| Error::torch("selecting the learned positions", &e))
    }
}

/// Cross-entropy of the targets, a float32 scalar: the weighted sum divided by their number. With
/// weights 1 that is the mean over the loss mask of both references.
///
/// # Errors
/// libtorch's.
pub fn cross_entropy(model: &Model, hidden: &Tensor, targets: &Targets) -> Result<Tensor> {
    let logits = model.head(&targets.select(hidden)?)?; // [n, vocab]
    let loss = || -> Result<Tensor, TchError> {
        let entropy = |reduction| {
            // -100: no id is ignored here, masked ones were not selected
            logits.f_cross_entropy_loss(&targets.ids, None::<Tensor>, reduction, -100, 0.0)
        };
        match &targets.weights {
            None => entropy(Reduction::Mean),
            Some(weights) => entropy(Reduction::None)?
                .f_mul(weights)?
                .f_sum(Kind::Float)?
                .f_div_scalar(targets.count as f64),
        }
    };
    loss().map_err(|e| Error::torch("cross-entropy", &e))
}
