//! Pure functions from hidden states and targets to a scalar loss.
//!
//! Logits are computed only at positions whose target is learned: the others add nothing to any of the
//! losses here, and the head is a large share of a small model's work.

use tch::{Device, Kind, TchError, Tensor};

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

/// Rows of logits that are there at a time: 512 x 6400 floats stay in a large cache. Measured with
/// bench_train, minimind2-small, 4 x 512, float32, one thread: 8 % less CPU time than with libtorch's
/// cross-entropy over all rows; in bfloat16, and at hidden 256, the same time.
const CHUNK: i64 = 512;

/// Cross-entropy of the targets, a float32 scalar: the weighted sum divided by their number. With
/// weights 1 that is the mean over the loss mask of both references.
///
/// Forward and backward of the head are done here, a chunk of rows at a time, so the logits are never
/// all there: softmax minus one-hot, times the weight, is the gradient of the logits, and two products
/// give those of hidden states and head. Autograd gets them through a scalar that is zero and has them
/// as its gradient.
///
/// # Errors
/// libtorch's.
pub fn cross_entropy(model: &Model, hidden: &Tensor, targets: &Targets) -> Result<Tensor> {
    let rows = targets.select(hidden)?; // [n, hidden]
    let loss = || -> Result<Tensor, TchError> {
        let head = model.head_weight();
        let parts = tch::no_grad(|| head_and_loss(&rows.detach(), &head.detach(), targets))?;
        if !rows.requires_grad() && !head.requires_grad() {
            return Ok(parts.loss);
        }
        let mut through = rows.f_mul(&parts.of_rows)?.f_sum(Kind::Float)?;
        if head.requires_grad() {
            through = through.f_add(&head.f_mul(&parts.of_head)?.f_sum(Kind::Float)?)?;
        }
        through.f_sub(&through.detach())?.f_add(&parts.loss)
    };
    loss().map_err(|e| Error::torch("cross-entropy", &e))
}

/// The loss and its gradients.
struct HeadAndLoss {
    /// float32 scalar.
    loss: Tensor,
    /// `[n, hidden]`, in the compute type.
    of_rows: Tensor,
    /// `[vocab, hidden]`, float32.
    of_head: Tensor,
}

/// `rows [n, hidden]` in the compute type and `head [vocab, hidden]` in float32, both without gradients.
fn head_and_loss(rows: &Tensor, head: &Tensor, targets: &Targets) -> Result<HeadAndLoss, TchError> {
    let compute = rows.kind();
    let head_in_compute = head.f_to_kind(compute)?;
    let (count, scale) = (rows.size()[0], 1.0 / targets.count as f64);
    let mut of_head = head.f_zeros_like()?;
    let (mut losses, mut of_rows) = (Vec::new(), Vec::new());
    let mut start = 0;
    while start < count {
        let length = CHUNK.min(count - start);
        let chunk = rows.f_narrow(0, start, length)?;
        let ids = targets.ids.f_narrow(0, start, length)?.f_unsqueeze(1)?; // [length, 1]
        let weights = match &targets.weights {
            Some(weights) => Some(weights.f_narrow(0, start, length)?.f_unsqueeze(1)?),
            None => None,
        };
        // [length, hidden] -> [length, vocab], float32
        let mut logits = chunk.f_mm(&head_in_compute.f_transpose(0, 1)?)?.f_to_kind(Kind::Float)?;
        let normalizer = logits.f_logsumexp([1i64].as_slice(), true)?; // [length, 1]
        let mut entropy = normalizer.f_sub(&logits.f_gather(1, &ids, false)?)?;
        if let Some(weights) = &weights {
            entropy = entropy.f_mul(weights)?;
        }
        losses.push(entropy.f_sum(Kind::Float)?);
        // in place: the logits become their own gradient
        let mut gradient = logits.f_sub_(&normalizer)?.f_exp_()?;
        let minus_one = Tensor::f_full([length, 1], -1.0, (Kind::Float, rows.device()))?;
        gradient = gradient.f_scatter_add_(1, &ids, &minus_one)?;
        gradient = match &weights {
            Some(weights) => gradient.f_mul_(&weights.f_mul_scalar(scale)?)?,
            None => gradient.f_mul_scalar_(scale)?,
        };
        let gradient = gradient.f_to_kind(compute)?;
        of_rows.push(gradient.f_mm(&head_in_compute)?);
        let of_chunk = gradient.f_transpose(0, 1)?;
        if compute == Kind::Float {
            let _ = of_head.f_addmm_(&of_chunk, &chunk)?;
        } else {
            let _ = of_head.f_add_(&of_chunk.f_mm(&chunk)?)?;
        }
        start += length;
    }
    let loss = Tensor::f_stack(&losses, 0)?.f_sum(Kind::Float)?.f_mul_scalar(scale)?;
    Ok(HeadAndLoss { loss, of_rows: Tensor::f_cat(&of_rows, 0)?, of_head })
}

#[cfg(test)]
mod tests {
    use mmx_converters::arch::presets;
    use tch::Reduction;

    use super::*;
    use crate::model::host_gradients;

    /// The same loss by libtorch's cross-entropy on all logits.
    fn plain(model: &Model, hidden: &Tensor, targets: &Targets) -> Tensor {
        let logits = model.head(&targets.select(hidden).expect("rows")).expect("logits");
        let entropy =
            logits.cross_entropy_loss(&targets.ids, None::<Tensor>, Reduction::None, -100, 0.0);
        let weighted = match &targets.weights {
            Some(weights) => entropy * weights,
            None => entropy,
        };
        weighted.sum(Kind::Float) / targets.count as f64
    }

    /// 700 learned targets: a whole chunk and a part of one; with and without weights.
    #[test]
    fn chunked_loss_and_gradients_equal_libtorchs() {
        let config = presets::preset("tiny").expect("a known preset");
        let model = Model::random(&config, 3, Device::Cpu, Kind::Float).expect("a model");
        let (batch, seq) = (8, 100);
        let x: Vec<i64> = (0..batch * seq).map(|i| (i * 7919 % 6400) as i64).collect();
        let y: Vec<i64> = (0..batch * seq).map(|i| (i * 104_729 % 6400) as i64).collect();
        let mask = (0..batch * seq).map(|i| if i % 8 == 0 { 0.0 } else { 1.0 }).collect();
        let batch = Batch { x, y, mask, batch, seq, ..Batch::default() };
        let ids = Tensor::from_slice(&batch.x).view([8, 100]);
        let weigh = |id: i64| if id % 3 == 0 { 10.0f32 } else { 1.0 };
        for weight in [None, Some(&weigh as &dyn Fn(i64) -> f32)] {
            let targets = Targets::new(&batch, Device::Cpu, weight).expect("targets");
            let targets = targets.expect("some are learned");
            assert_eq!(targets.count(), 700);
            let hidden = model.hidden(&ids, true).expect("hidden").hidden;
            let ours = cross_entropy(&model, &hidden, &targets).expect("a loss");
            let theirs = plain(&model, &hidden, &targets);
            let (a, b) = (ours.double_value(&[]), theirs.double_value(&[]));
            assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
            let ours = host_gradients(&model, &ours).expect("gradients");
            let theirs = host_gradients(&model, &theirs).expect("gradients");
            for (a, b) in ours.iter().zip(&theirs) {
                let norm =
                    |of: &mut dyn Iterator<Item = f32>| of.map(|v| v * v).sum::<f32>().sqrt();
                let off = norm(&mut a.values.iter().zip(&b.values).map(|(x, y)| x - y));
                let size = norm(&mut b.values.iter().copied());
                // float32 sums in another order
                assert!(off <= 1e-5 * size, "{}: {off:e} of {size:e}", a.name);
            }
        }
    }
}
