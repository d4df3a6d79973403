//! Logits `[vocab]` to one id and the logarithm of its probability in the distribution it was drawn
//! from: what a learner from rewards needs of a sampler.
//!
//! Without truncation nothing is sorted: the exponentials are made many at a time, summed in blocks,
//! and the draw looks for its block, then for its id.

use super::sampler::{Sampling, argmax, draw_kept};
use crate::error::{Error, Result};
use crate::kernel::cpu::CpuSet;
use crate::kernel::exponential::exponentials;

/// Numbers of a block, sums of sixteen made side by side.
const BLOCK: usize = 64;

/// Draws from one distribution after the other with the same settings.
#[derive(Debug)]
pub(super) struct Drawer {
    cpu: CpuSet,
    /// Temperature, top-k and top-p; nothing else is looked at.
    sampling: Sampling,
    weights: Vec<f32>,
    sums: Vec<f64>,
    candidates: Vec<(f32, u32)>,
}

impl Drawer {
    /// # Errors
    /// See [`Sampling::check`].
    pub(super) fn new(cpu: CpuSet, sampling: Sampling) -> Result<Self> {
        sampling.check()?;
        let (weights, sums, candidates) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { cpu, sampling, weights, sums, candidates })
    }

    /// The id that a number `unit` of [0, 1) stands for, and the logarithm of its probability; 0 for
    /// the most likely id at temperature 0, which no other could have been.
    ///
    /// # Errors
    /// Logits that are not numbers.
    pub(super) fn draw(&mut self, logits: &[f32], unit: f64) -> Result<(u32, f32)> {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        let fault = || Error::Request {
            message: "logits: expected numbers, found none (weights that have diverged?)"
                .to_owned(),
        };
        let best =
            argmax(logits).filter(|&id| logits[id as usize].is_finite()).ok_or_else(fault)?;
        if temperature == 0.0 {
            return Ok((best, 0.0));
        }
        if top_p < 1.0 || (top_k > 0 && top_k < logits.len()) {
            self.candidates.clear();
            self.candidates.extend(logits.iter().copied().zip(0..));
            let (id, logp) =
                draw_kept(&mut self.candidates, &self.sampling, unit).ok_or_else(fault)?;
            return if logp.is_nan() { Err(fault()) } else { Ok((id, logp as f32)) };
        }
        let largest = logits[best as usize];
        exponentials(self.cpu, logits, largest, (1.0 / temperature) as f32, &mut self.weights);
        self.sums.clear();
        self.sums.extend(self.weights.chunks(BLOCK).map(sum));
        let total: f64 = self.sums.iter().sum();
        if !total.is_finite() {
            return Err(fault());
        }
        let mut left = unit * total;
        let mut block = 0;
        while block + 1 < self.sums.len() && left >= self.sums[block] {
            left -= self.sums[block];
            block += 1;
        }
        let weights = self.weights.iter().enumerate().skip(block * BLOCK);
        let mut id = best as usize; // nothing else where rounding leaves nothing
        for (at, &weight) in weights.filter(|(_, weight)| **weight > 0.0) {
            id = at;
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
        let logp = f64::from(logits[id] - largest) / temperature - total.ln();
        Ok((id as u32, logp as f32))
    }
}

/// The sum of a block: sixteen sums, then their sum.
fn sum(block: &[f32]) -> f64 {
    let mut sums = [0f32; 16];
    let chunks = block.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    f64::from(rest) + sums.iter().map(|&x| f64::from(x)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmx_converters::random::SplitMix64;

    fn logits(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = SplitMix64::new(seed);
        (0..n).map(|_| (rng.next_f64() * 12.0 - 6.0) as f32).collect()
    }

    fn drawer(temperature: f64, top_k: usize, top_p: f64) -> Drawer {
        let sampling = Sampling { temperature, top_k, top_p, ..Sampling::default() };
        Drawer::new(CpuSet::of_process().unwrap(), sampling).unwrap()
    }

    /// Log-probabilities of the kept ids, in float64, everything sorted.
    fn naive(logits: &[f32], temperature: f64, top_k: usize, top_p: f64) -> Vec<f64> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(if top_k == 0 { logits.len() } else { top_k });
        let weight = |i: &usize| (f64::from(logits[*i]) / temperature).exp();
        let total: f64 = order.iter().map(weight).sum();
        let mut before = 0.0;
        let mut kept = Vec::new();
        for i in order {
            if top_p >= 1.0 || before < top_p * total {
                kept.push(i);
            }
            before += weight(&i);
        }
        let sum: f64 = kept.iter().map(weight).sum();
        let mut all = vec![f64::NEG_INFINITY; logits.len()];
        kept.iter().for_each(|i| all[*i] = (weight(i) / sum).ln());
        all
    }

    const SETTINGS: [(f64, usize, f64); 5] =
        [(1.0, 0, 1.0), (0.8, 50, 0.85), (1.5, 5, 1.0), (0.7, 0, 0.9), (2.0, 1000, 1.0)];

    #[test]
    fn gives_the_log_probability_among_what_is_kept() {
        let mut rng = SplitMix64::new(1);
        for (temperature, top_k, top_p) in SETTINGS {
            let mut drawer = drawer(temperature, top_k, top_p);
            for seed in 0..40 {
                let logits = logits(seed, 300 + 7 * seed as usize);
                let expected = naive(&logits, temperature, top_k, top_p);
                let (id, logp) = drawer.draw(&logits, rng.next_f64()).unwrap();
                let off = (f64::from(logp) - expected[id as usize]).abs();
                assert!(off < 2e-6, "{temperature} {top_k} {top_p}: id {id}: off by {off}");
            }
        }
    }

    /// Pearson's statistic over ids that are expected at least five times, the others as one; with k
    /// classes its mean is k - 1, its deviation sqrt(2 (k - 1)). The seeds are fixed.
    #[test]
    fn draws_ids_as_often_as_they_are_probable() {
        const DRAWS: usize = 40_000;
        for (temperature, top_k, top_p) in SETTINGS {
            let logits = logits(9, 90);
            let exact = naive(&logits, temperature, top_k, top_p);
            let mut rng = SplitMix64::new(77);
            let mut drawer = drawer(temperature, top_k, top_p);
            let mut counts = vec![0.0; logits.len()];
            for _ in 0..DRAWS {
                counts[drawer.draw(&logits, rng.next_f64()).unwrap().0 as usize] += 1.0;
            }
            let (mut statistic, mut classes, mut rest) = (0.0, 0.0, (0.0, 0.0));
            for (&count, logp) in counts.iter().zip(&exact) {
                let expected = logp.exp() * DRAWS as f64;
                assert!(expected > 0.0 || count == 0.0, "an id was drawn that is not kept");
                if expected >= 5.0 {
                    statistic += f64::powi(count - expected, 2) / expected;
                    classes += 1.0;
                } else {
                    rest = (rest.0 + count, rest.1 + expected);
                }
            }
            if rest.1 >= 5.0 {
                statistic += f64::powi(rest.0 - rest.1, 2) / rest.1;
                classes += 1.0;
            }
            let free: f64 = classes - 1.0;
            let limit = free + 4.0 * (2.0 * free).sqrt();
            assert!(statistic < limit, "{temperature} {top_k} {top_p}: {statistic} >= {limit}");
        }
    }

    #[test]
    fn greedy_takes_the_most_likely_and_what_is_no_number_is_refused() {
        assert_eq!(drawer(0.0, 0, 1.0).draw(&[1.0, 3.0, 2.0], 0.9).unwrap(), (1, 0.0));
        for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 0, 0.5)] {
            let mut drawer = drawer(temperature, top_k, top_p);
            assert!(drawer.draw(&[f32::NAN; 20], 0.5).is_err());
        }
        assert!(drawer(1.0, 0, 1.0).draw(&[f32::INFINITY, 1.0, 2.0], 0.5).is_err());
        let bad = Sampling { temperature: f64::NAN, ..Sampling::default() };
        assert!(Drawer::new(CpuSet::Portable, bad).is_err());
    }

    #[test]
    fn the_ends_of_the_unit_interval_draw_kept_ids() {
        let logits = [f32::NEG_INFINITY, 0.0, 0.0, -200.0];
        let mut drawer = drawer(1.0, 0, 1.0);
        let (id, logp) = drawer.draw(&logits, 0.0).unwrap();
        // e^-87 stands for less: never drawn but at 0 itself
        assert!(id <= 1 && (id == 0 || (logp + std::f32::consts::LN_2).abs() < 1e-6));
        let (id, logp) = drawer.draw(&logits, 1.0 - f64::EPSILON).unwrap();
        assert_eq!((id, (logp + std::f32::consts::LN_2).abs() < 1e-6), (2, true));
    }
}
