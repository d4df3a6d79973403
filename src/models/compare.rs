//! Distances of two sets of logits, and the perplexity of a text under one: pure functions.

/// Differences of `other` from `reference`, both `[positions, vocab]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Largest absolute difference of a logit.
    pub max_abs_diff: f64,
    /// Place of the largest difference: `(position, id)`.
    pub at: (usize, usize),
    /// Mean over positions of KL(reference || other), nats.
    pub mean_kl: f64,
    /// Share of positions whose largest logit is the same id.
    pub top1_agreement: f64,
}

/// Index of the largest value; the first of equals, as argmax in PyTorch on CPU.
pub fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, &v) in row.iter().enumerate() {
        if v > row[best] {
            best = i;
        }
    }
    best
}

/// Computes log(sum(exp(row))) in float64, safe from overflow.
fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    max + row.iter().map(|&v| (f64::from(v) - max).exp()).sum::<f64>().ln()
}

/// The logarithm of the probability of `id` under its logits `[vocab]`, nats.
///
/// # Panics
/// When `id` is outside the vocabulary (a bug of the caller).
pub fn log_likelihood(row: &[f32], id: u32) -> f64 {
    f64::from(row[id as usize]) - log_sum_exp(row)
}

/// Compares two sets of logits. Differences that are not finite count as infinite.
///
/// # Panics
/// When the lengths differ or are no multiple of `vocab` (a bug of the caller).
pub fn difference(reference: &[f32], other: &[f32], vocab: usize) -> Difference {
    assert_eq!(reference.len(), other.len());
    assert!(vocab > 0 && reference.len().is_multiple_of(vocab));
    let mut out = Difference { max_abs_diff: 0.0, at: (0, 0), mean_kl: 0.0, top1_agreement: 0.0 };
    let positions = reference.len() / vocab;
    for (position, (p, q)) in
        reference.chunks_exact(vocab).zip(other.chunks_exact(vocab)).enumerate()
    {
        for (id, (&a, &b)) in p.iter().zip(q).enumerate() {
            let d = (f64::from(a) - f64::from(b)).abs();
            let d = if d.is_finite() { d } else { f64::INFINITY };
            if d > out.max_abs_diff {
                (out.max_abs_diff, out.at) = (d, (position, id));
            }
        }
        let (zp, zq) = (log_sum_exp(p), log_sum_exp(q));
        let kl: f64 = p
            .iter()
            .zip(q)
            .map(|(&a, &b)| {
                let lp = f64::from(a) - zp;
                lp.exp() * (lp - (f64::from(b) - zq))
            })
            .sum();
        // rounding can leave a tiny negative sum
        out.mean_kl += if kl.is_finite() { kl.max(0.0) } else { f64::INFINITY };
        out.top1_agreement += f64::from(u8::from(argmax(p) == argmax(q)));
    }
    out.mean_kl /= positions.max(1) as f64;
    out.top1_agreement /= positions.max(1) as f64;
    out
}

/// Perplexity of `ids` under their logits `[ids.len(), vocab]`: exp of the mean negative
/// log-likelihood of each id after the first. Nothing for fewer than two ids.
pub fn perplexity(logits: &[f32], ids: &[u32], vocab: usize) -> Option<f64> {
    let predicted = ids.len().checked_sub(1).filter(|&n| n > 0)?;
    let total: f64 = logits
        .chunks_exact(vocab)
        .zip(&ids[1..])
        .map(|(row, &next)| -log_likelihood(row, next))
        .sum();
    Some((total / predicted as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_differ_by_nothing() {
        let logits = [0.5, -1.0, 2.0, 3.0, 3.0, 1.0];
        let d = difference(&logits, &logits, 3);
        assert_eq!((d.max_abs_diff, d.mean_kl, d.top1_agreement), (0.0, 0.0, 1.0));
    }

    #[test]
    fn kl_equals_the_definition() {
        // p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2)
        let d = difference(&[3f32.ln(), 0.0], &[0.0, 0.0], 2);
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((d.mean_kl - expected).abs() < 1e-7, "{} and {expected}", d.mean_kl);
        assert_eq!(d.at, (0, 0));
    }

    #[test]
    fn nan_is_never_equal() {
        let d = difference(&[0.0, 1.0], &[f32::NAN, 1.0], 2);
        assert_eq!((d.max_abs_diff, d.mean_kl), (f64::INFINITY, f64::INFINITY));
    }

    #[test]
    fn perplexity_of_a_uniform_model_is_the_vocabulary() {
        let ppl = perplexity(&[0.0; 20], &[1, 3, 0, 2, 4][..4], 5);
        assert!((ppl.expect("four ids") - 5.0).abs() < 1e-9);
        assert_eq!(perplexity(&[0.0; 5], &[1], 5), None);
    }
}
