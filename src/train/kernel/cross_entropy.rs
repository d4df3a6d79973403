//! Cross-entropy of a chunk of logits, and its gradient in their place: one pass over each row
//! while it lies in the cache.
#![expect(unsafe_code, reason = "threads write rows of their own")]

use half::bf16;
use tch::{Kind, TchError, Tensor};

use super::element::{Element, exp_all, largest, load, store};
use super::memory::{Rows, empty, read, read_ids, write};
use super::parallel::parallel;

/// Turns `logits [rows, vocab]` into the gradient of the weighted sum of cross-entropies, times
/// `scale`: softmax minus one-hot of `ids [rows]`, times `weights [rows]` (1 where none are given).
/// Gives the weighted cross-entropies, float32 `[rows]`. The logits must be the caller's alone.
pub(crate) fn cross_entropy_and_gradient(
    logits: &mut Tensor,
    ids: &Tensor,
    weights: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor, TchError> {
    match logits.kind() {
        Kind::Float => compute::<f32>(logits, ids, weights, scale as f32),
        _ => compute::<bf16>(logits, ids, weights, scale as f32),
    }
}

fn compute<T: Element>(
    logits: &mut Tensor,
    ids: &Tensor,
    weights: Option<&Tensor>,
    scale: f32,
) -> Result<Tensor, TchError> {
    let (rows, vocab) = logits.size2()?;
    let (rows, vocab) = (rows as usize, vocab as usize);
    let ids = read_ids(ids)?;
    let weights: Option<&[f32]> = weights.map(read).transpose()?;
    let wrong = ids.iter().find(|&&id| id < 0 || id >= vocab as i64);
    if let Some(id) = wrong.filter(|_| ids.len() == rows) {
        return Err(TchError::Torch(format!("target: expected 0 to {}, found {id}", vocab - 1)));
    }
    if ids.len() != rows || weights.is_some_and(|w| w.len() != rows) {
        return Err(TchError::Torch(format!("targets: expected {rows}, found {}", ids.len())));
    }
    let mut entropies = empty(&[rows as i64], Kind::Float)?;
    let to = Rows::new(write::<T>(logits)?, vocab);
    let entropies_to = Rows::new(write::<f32>(&mut entropies)?, 1);
    parallel(rows, 4, |range| {
        // SAFETY: ranges do not overlap.
        let (to, entropies) = unsafe { (to.take(range.clone()), entropies_to.take(range.clone())) };
        let mut row = vec![0.0f32; vocab];
        for ((i, to), entropy) in range.zip(to.chunks_exact_mut(vocab)).zip(entropies) {
            let (id, weight) = (ids[i] as usize, weights.map_or(1.0, |w| w[i]));
            load(to, &mut row);
            let (most, target) = (largest(&row), row[id]);
            let sum = exp_all(&mut row, most);
            *entropy = (sum.ln() + most - target) * weight;
            let factor = weight * scale / sum;
            for x in &mut row {
                *x *= factor;
            }
            row[id] -= weight * scale;
            store(&row, to);
        }
    });
    Ok(entropies)
}

#[cfg(test)]
mod tests {
    use tch::Reduction;

    use super::super::memory::testing::{close, gradients, random};
    use super::*;

    #[test]
    fn cross_entropy_and_gradient_equal_libtorchs() {
        for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 8e-3)] {
            let logits = (random(&[9, 1003], 1) * 4.0).to_kind(kind);
            let ids = Tensor::from_slice(&[0i64, 1002, 5, 5, 17, 400, 999, 16, 15]);
            let weights = random(&[9], 2);
            let scale = 0.125;
            let theirs = gradients(&[&logits.to_kind(Kind::Float)], &Tensor::from(scale), |t| {
                let e = t[0].cross_entropy_loss(&ids, None::<Tensor>, Reduction::None, -100, 0.0);
                (e * &weights).sum(Kind::Float)
            });
            let mut ours = logits.copy();
            let entropies = cross_entropy_and_gradient(&mut ours, &ids, Some(&weights), scale)
                .expect("entropy");
            let ours = [entropies.sum(Kind::Float), ours.to_kind(Kind::Float)];
            close(&ours, &theirs, tolerance);
        }
    }

    #[test]
    fn rejects_a_target_beyond_the_vocabulary() {
        let ids = Tensor::from_slice(&[3i64, 7]);
        let error = cross_entropy_and_gradient(&mut random(&[2, 7], 1), &ids, None, 1.0);
        assert!(error.expect_err("7 of 7").to_string().contains("expected 0 to 6, found 7"));
    }
}
