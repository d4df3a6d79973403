//! Initial weights: the reference's distribution from a random stream of our own.

use mmx_converters::arch::{Role, Weight};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

/// Standard deviation of matrices and embedding. Source: the reference (Transformers'
/// initializer_range).
const DEVIATION: f64 = 0.02;

/// Values of every row: normal(0, 0.02), ones for norms.
///
/// Row i draws from ChaCha8 with key `seed` (`seed_from_u64`) and stream i, two 53-bit uniforms for
/// two normals (Box and Muller): the values do not depend on threads, device or on the other rows.
pub(super) fn initial_values(rows: &[Weight], seed: u64) -> Vec<Vec<f32>> {
    rows.par_iter()
        .enumerate()
        .map(|(i, row)| match row.role {
            Role::Norm => vec![1.0; row.elements()],
            _ => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(i as u64);
                normal(&mut rng, row.elements())
            }
        })
        .collect()
}

/// `count` values of normal(0, 0.02) for an adapter: its stream is none of the rows'.
pub(super) fn adapter_values(seed: u64, index: usize, count: usize) -> Vec<f32> {
    /// Beyond the number of rows any model has.
    const FIRST_STREAM: u64 = 1 << 32;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(FIRST_STREAM + index as u64);
    normal(&mut rng, count)
}

fn normal(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    // (0, 1]: its logarithm is finite
    let mut uniform = || ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = DEVIATION * (-2.0 * uniform().ln()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * uniform();
        values.push((radius * angle.cos()) as f32);
        values.push((radius * angle.sin()) as f32);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use mmx_converters::arch::{presets, weights};

    use super::*;

    #[test]
    fn initial_values_have_the_reference_distribution_and_repeat() {
        let rows = weights(&presets::preset("tiny").expect("a known preset"));
        let values = initial_values(&rows, 1337);
        let embedding = &values[0];
        let n = embedding.len() as f64;
        let mean = embedding.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let square = embedding.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
        // 409600 values: five standard errors
        assert!(mean.abs() < 5.0 * DEVIATION / n.sqrt(), "mean {mean}");
        assert!((square.sqrt() / DEVIATION - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{square}");
        assert!(values[1].iter().all(|&v| v == 1.0), "{} is a norm", rows[1].name);
        assert_eq!(initial_values(&rows, 1337), values);
        assert_ne!(initial_values(&rows, 1338)[0], values[0]);
        assert_ne!(values[2][..8], values[0][..8], "rows draw from streams of their own");
    }
}
