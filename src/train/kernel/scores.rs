//! A chunk of logits to what is known of its targets (log-probability, entropy of the distribution),
//! and later to a gradient in its place: one pass over each row while it lies in the cache.
#![expect(unsafe_code, reason = "threads write rows of their own")]

use half::bf16;
use tch::{Kind, TchError, Tensor};

use super::element::{Element, dot, exp_all, largest, load, store};
use super::memory::{Rows, empty, read, read_ids, write};
use super::parallel::parallel;

/// What is known of the targets of some rows of logits, float32 `[rows]` each.
#[derive(Debug)]
pub(crate) struct Scores {
    /// Log-probabilities of the targets.
    pub(crate) logps: Tensor,
    /// Entropies of the distributions that the targets are from.
    pub(crate) entropies: Tensor,
    /// Logarithms of the sums of exponentials.
    pub(crate) normalizers: Tensor,
}

/// The scores of `ids [rows]` under `logits [rows, vocab]`.
pub(crate) fn scores(logits: &Tensor, ids: &Tensor) -> Result<Scores, TchError> {
    match logits.kind() {
        Kind::Float => compute::<f32>(logits, ids),
        _ => compute::<bf16>(logits, ids),
    }
}

fn compute<T: Element>(logits: &Tensor, ids: &Tensor) -> Result<Scores, TchError> {
    let (ids, rows, vocab) = checked(logits, ids)?;
    let logits: &[T] = read(logits)?;
    let row_of = || empty(&[rows as i64], Kind::Float);
    let mut scores = Scores { logps: row_of()?, entropies: row_of()?, normalizers: row_of()? };
    let logps_to = Rows::new(write::<f32>(&mut scores.logps)?, 1);
    let entropies_to = Rows::new(write::<f32>(&mut scores.entropies)?, 1);
    let normalizers_to = Rows::new(write::<f32>(&mut scores.normalizers)?, 1);
    parallel(rows, 4, |range| {
        let (mut row, mut exponentials) = (vec![0.0f32; vocab], vec![0.0f32; vocab]);
        for i in range {
            load(&logits[i * vocab..(i + 1) * vocab], &mut row);
            let most = largest(&row);
            row.iter_mut().for_each(|x| *x -= most);
            exponentials.copy_from_slice(&row);
            let sum = exp_all(&mut exponentials, 0.0);
            // SAFETY: ranges do not overlap.
            let [logp, entropy, normalizer] =
                unsafe { [&logps_to, &entropies_to, &normalizers_to].map(|to| to.take(i..i + 1)) };
            logp[0] = row[ids[i] as usize] - sum.ln();
            // - sum p log p, where log p = x - ln sum
            entropy[0] = sum.ln() - dot(&exponentials, &row) / sum;
            normalizer[0] = most + sum.ln();
        }
    });
    Ok(scores)
}

/// Turns logits, of which the scores are known, into their gradient: `of_logps [rows]` and
/// `of_entropies [rows]` are the derivatives of the loss in both. The logits must be the caller's
/// alone.
pub(crate) fn scores_gradient(
    logits: &mut Tensor,
    ids: &Tensor,
    scores: &Scores,
    of_logps: &Tensor,
    of_entropies: Option<&Tensor>,
) -> Result<(), TchError> {
    match logits.kind() {
        Kind::Float => gradient::<f32>(logits, ids, scores, of_logps, of_entropies),
        _ => gradient::<bf16>(logits, ids, scores, of_logps, of_entropies),
    }
}

fn gradient<T: Element>(
    logits: &mut Tensor,
    ids: &Tensor,
    scores: &Scores,
    of_logps: &Tensor,
    of_entropies: Option<&Tensor>,
) -> Result<(), TchError> {
    let (ids, rows, vocab) = checked(logits, ids)?;
    let (entropies, normalizers): (&[f32], &[f32]) =
        (read(&scores.entropies)?, read(&scores.normalizers)?);
    let of_logps: &[f32] = read(of_logps)?;
    let of_entropies: Option<&[f32]> = of_entropies.map(read).transpose()?;
    let lengths = [entropies.len(), normalizers.len(), of_logps.len()];
    let lengths = lengths.into_iter().chain(of_entropies.map(<[f32]>::len));
    if let Some(length) = lengths.into_iter().find(|&length| length != rows) {
        return Err(TchError::Torch(format!("scores: expected {rows} rows, found {length}")));
    }
    let to = Rows::new(write::<T>(logits)?, vocab);
    parallel(rows, 4, |range| {
        let (mut row, mut exponentials) = (vec![0.0f32; vocab], vec![0.0f32; vocab]);
        for i in range {
            // SAFETY: ranges do not overlap.
            let to = unsafe { to.take(i..i + 1) };
            load(to, &mut row);
            exponentials.copy_from_slice(&row);
            exp_all(&mut exponentials, normalizers[i]);
            let outer = of_logps[i];
            match of_entropies.map(|of| of[i]) {
                None => exponentials.iter_mut().for_each(|p| *p *= -outer),
                // of the entropy: -p (log p + H)
                Some(of_entropy) => {
                    let shift = entropies[i] - normalizers[i];
                    for (p, x) in exponentials.iter_mut().zip(&row) {
                        *p *= -outer - of_entropy * (*x + shift);
                    }
                }
            }
            exponentials[ids[i] as usize] += outer;
            store(&exponentials, to);
        }
    });
    Ok(())
}

/// The targets, rows and columns, once all targets are known to be columns.
fn checked<'a>(logits: &Tensor, ids: &'a Tensor) -> Result<(&'a [i64], usize, usize), TchError> {
    let (rows, vocab) = logits.size2()?;
    let ids = read_ids(ids)?;
    if let Some(id) = ids.iter().find(|&&id| id < 0 || id >= vocab) {
        return Err(TchError::Torch(format!("target: expected 0 to {}, found {id}", vocab - 1)));
    }
    match ids.len() as i64 == rows {
        true => Ok((ids, rows as usize, vocab as usize)),
        false => Err(TchError::Torch(format!("targets: expected {rows}, found {}", ids.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::testing::{close, random};
    use super::*;

    /// Scores, and the gradient of a sum of both with weights, by libtorch.
    fn reference(logits: &Tensor, ids: &Tensor, outer: [&Tensor; 2]) -> Vec<Tensor> {
        let leaf = logits.to_kind(Kind::Float).set_requires_grad(true);
        let logps = leaf.log_softmax(-1, Kind::Float);
        let entropies = -(logps.exp() * &logps).sum_dim_intlist([-1i64].as_slice(), false, None);
        let logps = logps.gather(1, &ids.unsqueeze(1), false).squeeze_dim(1);
        let loss = (&logps * outer[0] + &entropies * outer[1]).sum(Kind::Float);
        let gradient = Tensor::run_backward(&[loss], &[&leaf], false, false).remove(0);
        vec![logps.detach(), entropies.detach(), leaf.detach().logsumexp(-1, false), gradient]
    }

    #[test]
    fn scores_and_their_gradient_equal_libtorchs() {
        for (kind, tolerance) in [(Kind::Float, 3e-6), (Kind::BFloat16, 8e-3)] {
            let logits = (random(&[9, 1003], 1) * 4.0).to_kind(kind);
            let ids = Tensor::from_slice(&[0i64, 1002, 5, 5, 17, 400, 999, 16, 15]);
            let (first, second) = (random(&[9], 2), random(&[9], 3));
            let nothing = second.zeros_like();
            for of_entropies in [None, Some(&second)] {
                let found = scores(&logits, &ids).expect("scores");
                let mut gradient = logits.copy();
                scores_gradient(&mut gradient, &ids, &found, &first, of_entropies)
                    .expect("a gradient");
                let ours = [
                    found.logps,
                    found.entropies,
                    found.normalizers,
                    gradient.to_kind(Kind::Float),
                ];
                let outer = [&first, of_entropies.unwrap_or(&nothing)];
                close(&ours, &reference(&logits, &ids, outer), tolerance);
            }
        }
    }

    #[test]
    fn rejects_targets_beyond_the_vocabulary_and_too_few_of_them() {
        let logits = random(&[2, 7], 1);
        let error = scores(&logits, &Tensor::from_slice(&[3i64, 7])).expect_err("7 of 7");
        assert!(error.to_string().contains("expected 0 to 6, found 7"), "{error}");
        let error = scores(&logits, &Tensor::from_slice(&[3i64])).expect_err("one of two");
        assert!(error.to_string().contains("expected 2, found 1"), "{error}");
    }
}
