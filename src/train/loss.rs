//! Pure functions from hidden states and targets to a scalar loss.
//!
//! Logits are computed only at positions whose target is learned: the others add nothing to any of
//! the losses here, and the head is a large share of a small model's work.

use tch::{Device, Kind, TchError, Tensor};

use crate::error::{Error, Result, TorchError};
use crate::kernel::autograd::differentiable;
use crate::kernel::{self, Scores};
use crate::model::device::upload;
use crate::model::{Model, wide};
use mmx_data::Batch;

/// The learned targets of a batch, on the device.
#[derive(Debug)]
pub struct Targets {
    /// Positions before the targets in the flattened `[batch * seq]` of hidden states, int64 `[n]`;
    /// none when all are learned.
    rows: Option<Tensor>,
    /// Ids of the targets, int64 `[n]`.
    ids: Tensor,
    /// Weights of the targets, float32 `[n]`; none when all weigh 1.
    weights: Option<Tensor>,
    /// The number of learned targets, by which the weighted sum is divided: of a share of a batch,
    /// the whole batch's.
    count: usize,
    /// There is none in this share of a batch.
    none_here: bool,
}

impl Targets {
    /// The learned targets, or nothing when there are none. A share of a batch has targets, perhaps
    /// none of its own, where the whole batch has one; sums are divided by the number of all.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(batch: &Batch, device: Device) -> Result<Option<Self>> {
        Self::build(batch, device, None, None)
    }

    /// The learned targets of a batch whose positions are computed elsewhere: `places` says at which
    /// one of the hidden states each is.
    ///
    /// # Errors
    /// libtorch's.
    pub fn at(batch: &Batch, places: &[usize], device: Device) -> Result<Option<Self>> {
        Self::build(batch, device, None, Some(places))
    }

    /// Targets with a weight for every position, from whether it is learned and its target:
    /// positions that are not learned count too where their weight is not 0. Sums are divided by
    /// the number of learned targets all the same.
    ///
    /// # Errors
    /// libtorch's.
    pub fn weighted(
        batch: &Batch,
        device: Device,
        weight: &dyn Fn(bool, i64) -> f32,
    ) -> Result<Option<Self>> {
        Self::build(batch, device, Some(weight), None)
    }

    fn build(
        batch: &Batch,
        device: Device,
        weight: Option<&dyn Fn(bool, i64) -> f32>,
        places: Option<&[usize]>,
    ) -> Result<Option<Self>> {
        let learned = |i: usize| batch.mask[i] != 0.0;
        let of = |i: usize| match weight {
            Some(weight) => weight(learned(i), batch.y[i]),
            None => f32::from(u8::from(learned(i))),
        };
        let positions = 0..batch.mask.len();
        let count = batch.whole().learned;
        if count == 0 {
            return Ok(None);
        }
        let rows: Vec<usize> = positions.filter(|&i| learned(i) || of(i) != 0.0).collect();
        let ids: Vec<i64> = rows.iter().map(|&i| batch.y[i]).collect();
        let build = || -> Result<Self, TchError> {
            let weights = match weight {
                Some(_) => {
                    let weights: Vec<f32> = rows.iter().map(|&i| of(i)).collect();
                    Some(upload(&Tensor::f_from_slice(&weights)?, device)?)
                }
                None => None,
            };
            let all = rows.len() == batch.mask.len() && places.is_none();
            let none_here = rows.is_empty();
            let place = |&i: &usize| places.map_or(i, |places| places[i]) as i64;
            let rows: Vec<i64> = rows.iter().map(place).collect();
            let rows = match all {
                true => None,
                false => Some(upload(&Tensor::f_from_slice(&rows)?, device)?),
            };
            let ids = upload(&Tensor::f_from_slice(&ids)?, device)?;
            Ok(Self { rows, ids, weights, count, none_here })
        };
        build().map(Some).map_err(|e| Error::torch("targets to the device", &e))
    }

    /// The number of learned targets, of a share of a batch those of the whole batch.
    pub fn count(&self) -> usize {
        self.count
    }

    /// True of a share of a batch that has none of the batch's targets.
    pub fn none_here(&self) -> bool {
        self.none_here
    }

    /// The sum of what has no targets: zero, without a gradient.
    fn nothing(&self) -> Result<Tensor> {
        let zero = Tensor::f_zeros([], (Kind::Float, self.ids.device()));
        zero.map_err(|e| Error::torch("loss", &e))
    }

    /// No values at all: float32 `[0]`.
    fn no_values(&self) -> Result<Tensor> {
        let none = Tensor::f_zeros([0], (Kind::Float, self.ids.device()));
        none.map_err(|e| Error::torch("log-probabilities", &e))
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
/// bench_train, minimind2-small, 4 x 512, float32, one thread: 8 % less CPU time than with
/// libtorch's cross-entropy over all rows; in bfloat16, and at hidden 256, the same time.
const CHUNK: i64 = 512;

/// Cross-entropy of the targets, a float32 scalar: the weighted sum divided by their number. With
/// weights 1 that is the mean over the loss mask of both references.
///
/// # Errors
/// libtorch's.
pub fn cross_entropy(model: &Model, hidden: &Tensor, targets: &Targets) -> Result<Tensor> {
    if targets.none_here {
        return targets.nothing();
    }
    let rows = targets.select(hidden)?; // [n, hidden]
    let (scale, wide) = (1.0 / targets.count as f64, wide(rows.kind()));
    let loss = || -> Result<Tensor, TchError> {
        let mut sums = Vec::new();
        let weights = targets.weights.as_ref();
        let gradients =
            through_head(model.head_weight(), &rows, Vec::new(), &mut |at, mut logits| {
                if kernel::takes(&[&logits]) {
                    let (ids, weights) =
                        (at.cut(&targets.ids)?, weights.map(|w| at.cut(w)).transpose()?);
                    let entropies = kernel::cross_entropy_and_gradient(
                        &mut logits,
                        &ids,
                        weights.as_ref(),
                        scale,
                    )?;
                    sums.push(entropies.f_sum(Kind::Float)?);
                    return Ok(logits);
                }
                let token = Token::new(logits, &targets.ids, weights, at)?;
                sums.push(token.entropy()?.f_sum(wide)?);
                token.gradient(scale)
            })?;
        let value = Tensor::f_stack(&sums, 0)?.f_sum(wide)?.f_mul_scalar(scale)?;
        gradients.attach(&value)
    };
    loss().map_err(|e| Error::torch("cross-entropy", &e))
}

/// The loss of distillation and its parts, float32 scalars.
#[derive(Debug)]
pub struct Distillation {
    /// alpha * ce + (1 - alpha) * kl; the only one with a gradient.
    pub mixed: Tensor,
    /// Cross-entropy with the targets, weighted and divided by the number of learned ones.
    pub ce: Tensor,
    /// T^2 * KL(teacher at temperature T, student at T), per position.
    pub kl: Tensor,
}

/// Cross-entropy mixed with the divergence from a teacher, whose logits are cut to the student's
/// vocabulary. `hidden` and `teacher_hidden` are those of the same ids.
///
/// # Errors
/// libtorch's.
pub fn distillation(
    model: &Model,
    hidden: &Tensor,
    teacher: &Model,
    teacher_hidden: &Tensor,
    targets: &Targets,
    (alpha, temperature): (f64, f64),
) -> Result<Distillation> {
    if targets.none_here {
        let zero = || targets.nothing();
        return Ok(Distillation { mixed: zero()?, ce: zero()?, kl: zero()? });
    }
    let (rows, teacher_rows) = (targets.select(hidden)?, targets.select(teacher_hidden)?);
    let vocab = model.config().vocab_size as i64;
    let (scale, wide) = (1.0 / targets.count as f64, wide(rows.kind()));
    let loss = || -> Result<Distillation, TchError> {
        let (mut entropies, mut divergences) = (Vec::new(), Vec::new());
        let weights = targets.weights.as_ref();
        let teacher_head = teacher.head_weight().detach().f_to_kind(teacher_rows.kind())?;
        let gradients = through_head(model.head_weight(), &rows, Vec::new(), &mut |at, logits| {
            let logits = logits.f_to_kind(wide)?;
            let softer = logits.f_div_scalar(temperature)?.f_log_softmax(-1, wide)?;
            let of_teacher = teacher_rows
                .f_narrow(0, at.start, at.length)?
                .f_mm(&teacher_head.f_transpose(0, 1)?)?
                .f_narrow(1, 0, vocab)?
                .f_to_kind(wide)?
                .f_div_scalar(temperature)?
                .f_log_softmax(-1, wide)?; // [length, vocab]
            let wanted = of_teacher.f_exp()?;
            let divergence = of_teacher.f_sub(&softer)?.f_mul(&wanted)?;
            divergences.push(divergence.f_sum(wide)?);
            let token = Token::new(logits, &targets.ids, weights, at)?;
            entropies.push(token.entropy()?.f_sum(wide)?);
            // d(T^2 KL)/d(logits) = T * (student - teacher), both at temperature T
            let soft = softer.f_exp()?.f_sub(&wanted)?;
            let soft = soft.f_mul_scalar((1.0 - alpha) * temperature * scale)?;
            token.gradient(alpha * scale)?.f_add(&soft)
        })?;
        let total =
            |parts: &[Tensor], scale| Tensor::f_stack(parts, 0)?.f_sum(wide)?.f_mul_scalar(scale);
        let ce = total(&entropies, scale)?;
        let kl = total(&divergences, temperature * temperature * scale)?;
        let mixed = ce.f_mul_scalar(alpha)?.f_add(&kl.f_mul_scalar(1.0 - alpha)?)?;
        Ok(Distillation { mixed: gradients.attach(&mixed)?, ce, kl })
    };
    loss().map_err(|e| Error::torch("distillation", &e))
}

/// Log-probabilities of the targets, float32 `[n]`, without a gradient; `beside`: as those that they
/// are compared with, so that both round alike.
///
/// # Errors
/// libtorch's.
pub fn log_probabilities(
    model: &Model,
    hidden: &Tensor,
    targets: &Targets,
    beside: Entropies,
) -> Result<Tensor> {
    if targets.none_here {
        return targets.no_values();
    }
    let rows = targets.select(hidden)?.detach(); // [n, hidden]
    let found = scores(model, &rows, targets, beside, &mut |_| ());
    found.map(|found| found.logps).map_err(|e| Error::torch("log-probabilities", &e))
}

/// Bytes of logits that are kept from the time they are scored to the time their gradient is wanted:
/// to compute them again takes a third of what the head takes.
const KEPT_LOGITS: i64 = 128 << 20;

/// The targets' scores, float32 `[n]` each and without a gradient, from the hidden states before
/// them, `[n, hidden]`; `keep` is given each chunk's logits. Entropies nobody uses may be zeros.
fn scores(
    model: &Model,
    rows: &Tensor,
    targets: &Targets,
    entropies: Entropies,
    keep: &mut dyn FnMut(Tensor),
) -> Result<Scores, TchError> {
    let mut found: [Vec<Tensor>; 3] = Default::default();
    through_head(model.head_weight(), rows, Vec::new(), &mut |at, logits| {
        let chunk = match entropies != Entropies::Unused && kernel::takes(&[&logits]) {
            true => kernel::scores(&logits, &at.cut(&targets.ids)?)?,
            false => {
                let token = Token::new(logits.shallow_clone(), &targets.ids, None, at)?;
                let flat = |of: Tensor| of.f_squeeze_dim(1);
                let logps = flat(token.entropy()?.f_neg()?)?;
                let entropies = match entropies {
                    Entropies::Unused => logps.f_zeros_like()?,
                    Entropies::Fixed | Entropies::Learned => flat(token.entropy_of_all()?)?,
                };
                Scores { logps, entropies, normalizers: flat(token.normalizer)? }
            }
        };
        let chunk = [chunk.logps, chunk.entropies, chunk.normalizers];
        found.iter_mut().zip(chunk).for_each(|(list, of)| list.push(of));
        keep(logits.shallow_clone());
        Ok(logits) // nobody takes this gradient: the rows have none
    })?;
    let [logps, entropies, normalizers] = found.map(|list| Tensor::f_cat(&list, 0));
    Ok(Scores { logps: logps?, entropies: entropies?, normalizers: normalizers? })
}

/// A scalar function of the targets' log-probabilities, with its gradient through the model:
/// `function` says what they give.
///
/// # Errors
/// libtorch's, and the function's.
pub fn of_log_probabilities(
    model: &Model,
    hidden: &Tensor,
    targets: &Targets,
    function: &dyn Fn(&Tensor) -> Result<Tensor, TchError>,
) -> Result<Tensor> {
    let doing = |e| Error::torch("loss of log-probabilities", &e);
    let function = |logps: &Tensor, _: &Tensor| function(logps).map_err(doing);
    of_scores(model, hidden, targets, Entropies::Unused, &function)
}

/// The use that a function makes of entropies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entropies {
    /// None: they may be any numbers. Sums are libtorch's then, whose rounding the references of
    /// preference stages share: their margins are small differences of large sums.
    Unused,
    /// Their values.
    Fixed,
    /// Their values, and what it gives has a gradient through them.
    Learned,
}

/// A scalar function of the targets' log-probabilities and of the entropies of the distributions that
/// they are from, with its gradient through the model.
///
/// # Errors
/// libtorch's, and the function's.
pub fn of_scores(
    model: &Model,
    hidden: &Tensor,
    targets: &Targets,
    use_of_entropies: Entropies,
    function: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let doing = |e| Error::torch("loss of log-probabilities", &e);
    let rows = targets.select(hidden)?; // [n, hidden]
    let learns = rows.requires_grad() && !targets.none_here;
    let bytes = rows.size()[0] * model.config().vocab_size as i64 * 4;
    let (mut kept, keeps) = (Vec::new(), learns && bytes <= KEPT_LOGITS);
    let found = match targets.none_here {
        true => {
            let none = || targets.no_values();
            Scores { logps: none()?, entropies: none()?, normalizers: none()? }
        }
        false => {
            let mut keep = |logits| {
                if keeps {
                    kept.push(logits)
                }
            };
            let rows = rows.detach();
            scores(model, &rows, targets, use_of_entropies, &mut keep).map_err(doing)?
        }
    };
    let leaf = |of: &Tensor, learned| Ok(of.f_detach()?.set_requires_grad(learned));
    let logps = leaf(&found.logps, true).map_err(doing)?; // [n]
    let learned = use_of_entropies == Entropies::Learned;
    let entropies = leaf(&found.entropies, learned).map_err(doing)?; // [n]
    let value = function(&logps, &entropies)?;
    let loss = || -> Result<Tensor, TchError> {
        if !learns || !value.requires_grad() {
            return Ok(value.detach());
        }
        let derivatives = gradients_of(&value, &logps, &entropies)?;
        let of = |i: usize| derivatives.get(i).filter(|of| of.defined());
        let of_logps = match of(0) {
            Some(derivative) => derivative.f_contiguous()?,
            None => logps.f_zeros_like()?,
        };
        let of_entropies = of(1).map(Tensor::f_contiguous).transpose()?;
        let gradients = through_head(model.head_weight(), &rows, kept, &mut |at, mut logits| {
            if use_of_entropies != Entropies::Unused && kernel::takes(&[&logits]) {
                let of_chunk = found.cut(at)?;
                let (ids, of_logps) = (at.cut(&targets.ids)?, at.cut(&of_logps)?);
                let of_entropies = of_entropies.as_ref().map(|of| at.cut(of)).transpose()?;
                let of_entropies = of_entropies.as_ref();
                kernel::scores_gradient(&mut logits, &ids, &of_chunk, &of_logps, of_entropies)?;
                return Ok(logits);
            }
            let weights = of_logps.f_neg()?;
            let token = Token::new(logits, &targets.ids, Some(&weights), at)?;
            let more = match &of_entropies {
                Some(derivative) => Some(token.gradient_of_entropy(&at.cut(derivative)?)?),
                None => None,
            };
            let gradient = token.gradient(1.0)?;
            more.map_or(Ok(gradient.shallow_clone()), |more| gradient.f_add(&more))
        })?;
        gradients.attach(&value.detach())
    };
    loss().map_err(doing)
}

impl Scores {
    /// Those of a chunk.
    fn cut(&self, at: Chunk) -> Result<Self, TchError> {
        Ok(Self {
            logps: at.cut(&self.logps)?,
            entropies: at.cut(&self.entropies)?,
            normalizers: at.cut(&self.normalizers)?,
        })
    }
}

/// The derivatives of a scalar in both; an undefined one where it does not depend on it.
fn gradients_of(
    value: &Tensor,
    logps: &Tensor,
    entropies: &Tensor,
) -> Result<Vec<Tensor>, TchError> {
    match entropies.requires_grad() {
        true => Tensor::f_run_backward(&[value], &[logps, entropies], false, false),
        false => Tensor::f_run_backward(&[value], &[logps], false, false),
    }
}

/// A chunk of rows that is computed.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    start: i64,
    length: i64,
}

impl Chunk {
    /// Its rows of a tensor.
    fn cut(self, tensor: &Tensor) -> Result<Tensor, TchError> {
        tensor.f_narrow(0, self.start, self.length)
    }
}

/// A chunk's logits with its targets.
struct Token {
    /// `[length, vocab]`, float32.
    logits: Tensor,
    /// The logsumexp of each row, `[length, 1]`.
    normalizer: Tensor,
    /// `[length, 1]`.
    ids: Tensor,
    /// `[length, 1]`.
    weights: Option<Tensor>,
}

impl Token {
    fn new(
        logits: Tensor,
        ids: &Tensor,
        weights: Option<&Tensor>,
        at: Chunk,
    ) -> Result<Self, TchError> {
        let cut = |t: &Tensor| at.cut(t)?.f_unsqueeze(1);
        let logits = logits.f_to_kind(wide(logits.kind()))?;
        let normalizer = logits.f_logsumexp([1i64].as_slice(), true)?;
        Ok(Self { logits, normalizer, ids: cut(ids)?, weights: weights.map(cut).transpose()? })
    }

    /// Weighted cross-entropy, `[length, 1]`.
    fn entropy(&self) -> Result<Tensor, TchError> {
        let entropy = self.normalizer.f_sub(&self.logits.f_gather(1, &self.ids, false)?)?;
        match &self.weights {
            Some(weights) => entropy.f_mul(weights),
            None => Ok(entropy),
        }
    }

    /// The entropy of the whole distribution, `[length, 1]`.
    fn entropy_of_all(&self) -> Result<Tensor, TchError> {
        let logps = self.logits.f_sub(&self.normalizer)?;
        let kind = logps.kind();
        logps.f_exp()?.f_mul(&logps)?.f_sum_dim_intlist([-1i64].as_slice(), true, kind)?.f_neg()
    }

    /// The gradient of the logits where each row's entropy has the gradient `outer [length]`:
    /// -p (log p + H).
    fn gradient_of_entropy(&self, outer: &Tensor) -> Result<Tensor, TchError> {
        let logps = self.logits.f_sub(&self.normalizer)?;
        let entropy = self.entropy_of_all()?;
        let inner = logps.f_exp()?.f_mul(&logps.f_add(&entropy)?)?;
        inner.f_mul(&outer.f_unsqueeze(1)?)?.f_neg()
    }

    /// The gradient of the logits: softmax minus one-hot, times weight and `scale`. In place: the
    /// logits become it.
    fn gradient(mut self, scale: f64) -> Result<Tensor, TchError> {
        let mut gradient = self.logits.f_sub_(&self.normalizer)?.f_exp_()?;
        let minus_one =
            Tensor::f_full(self.ids.size(), -1.0, (gradient.kind(), gradient.device()))?;
        gradient = gradient.f_scatter_add_(1, &self.ids, &minus_one)?;
        match &self.weights {
            Some(weights) => gradient.f_mul_(&weights.f_mul_scalar(scale)?),
            None => gradient.f_mul_scalar_(scale),
        }
    }
}

/// Gradients of rows and head.
struct Gradients<'a> {
    rows: &'a Tensor,
    head: &'a Tensor,
    /// `[n, hidden]`, in the compute type; none where the rows have no gradient.
    of_rows: Option<Tensor>,
    /// `[vocab, hidden]`, float32; none where the head is not trained.
    of_head: Option<Tensor>,
}

impl Gradients<'_> {
    /// The value, with these gradients behind it.
    fn attach(self, value: &Tensor) -> Result<Tensor, TchError> {
        let value = tch::no_grad(|| value.f_detach()?.f_mul_scalar(1.0))?;
        let Self { rows, head, of_rows: Some(of_rows), of_head } = self else { return Ok(value) };
        differentiable(&[rows, head], &[&value], move |given, wanted| {
            let Some(outer) = &given[0] else { return Ok(vec![None, None]) };
            // on the CPU it costs nothing to look: without accumulation there is nothing to do
            let is_one = outer.device() == Device::Cpu && outer.f_double_value(&[])? == 1.0;
            let times = |gradient: &Tensor| match is_one {
                true => Ok(gradient.shallow_clone()),
                false => gradient.f_mul(outer)?.f_to_kind(gradient.kind()),
            };
            let of_head = of_head.as_ref().filter(|_| wanted[1]).map(times).transpose()?;
            Ok(vec![Some(times(&of_rows)?), of_head])
        })?;
        Ok(value)
    }
}

/// Forward and backward of the head, a chunk of rows at a time, so the logits are never all there:
/// `loss` takes a chunk's logits `[length, vocab]`, in the compute type and its own to change, and
/// gives their gradient, from which two products make those of `rows [n, hidden]` (in the compute
/// type) and of `head [vocab, hidden]` (float32). Rows without a gradient (outside training) cost
/// the forward product only. `kept`: the logits of all chunks, where they are known (else empty).
fn through_head<'a>(
    head: &'a Tensor,
    rows: &'a Tensor,
    kept: Vec<Tensor>,
    loss: &mut dyn FnMut(Chunk, Tensor) -> Result<Tensor, TchError>,
) -> Result<Gradients<'a>, TchError> {
    tch::no_grad(|| {
        let count = rows.size()[0];
        let (mut plain_rows, plain_head) = (rows.detach(), head.detach());
        if kernel::takes_products(&[rows, head]) {
            plain_rows = plain_rows.f_to_kind(Kind::Float)?;
        }
        let compute = plain_rows.kind();
        let head_in_compute = plain_head.f_to_kind(compute)?;
        let wanted = rows.requires_grad();
        let mut of_head = match wanted && head.requires_grad() {
            true => Some(plain_head.f_zeros_like()?),
            false => None,
        };
        let mut of_rows = Vec::new();
        let (mut start, mut kept) = (0, kept.into_iter());
        while start < count {
            let length = CHUNK.min(count - start);
            let chunk = plain_rows.f_narrow(0, start, length)?;
            // [length, hidden] -> [length, vocab]
            let logits = match kept.next() {
                Some(logits) => logits,
                None => mm(&chunk, &head_in_compute.f_transpose(0, 1)?)?,
            };
            let gradient = loss(Chunk { start, length }, logits)?;
            if wanted {
                let gradient = gradient.f_to_kind(compute)?;
                of_rows.push(mm(&gradient, &head_in_compute)?);
                let of_chunk = gradient.f_transpose(0, 1)?;
                if let Some(of_head) = &mut of_head {
                    match (compute, kernel::takes(&[&of_chunk])) {
                        (Kind::Float, true) => kernel::add_mm(of_head, &of_chunk, &chunk)?,
                        (Kind::Float, false) => drop(of_head.f_addmm_(&of_chunk, &chunk)?),
                        _ => drop(of_head.f_add_(&of_chunk.f_mm(&chunk)?)?),
                    }
                }
            }
            start += length;
        }
        let of_rows = match wanted {
            true => Some(Tensor::f_cat(&of_rows, 0)?.f_to_kind(rows.kind())?),
            false => None,
        };
        Ok(Gradients { rows, head, of_rows, of_head })
    })
}

/// Product of a `[m, k]` and b `[k, n]`.
fn mm(a: &Tensor, b: &Tensor) -> Result<Tensor, TchError> {
    match a.kind() == Kind::Float && kernel::takes(&[a, b]) {
        true => kernel::mm(a, b),
        false => a.f_mm(b),
    }
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
        // a third weighs more, learned or not
        let weigh = |learned: bool, id: i64| match (id % 3, learned) {
            (0, _) => 10.0f32,
            (_, learned) => f32::from(u8::from(learned)),
        };
        for targets in
            [Targets::new(&batch, Device::Cpu), Targets::weighted(&batch, Device::Cpu, &weigh)]
        {
            let targets = targets.expect("targets").expect("some are learned");
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
