//! Rotary positions: the frequencies every engine must agree on, their scaling, and GGUF's row
//! permutation.

use super::config::{Config, Llama3, RopeScaling, Yarn};

/// Inverse frequencies `[head_dim / 2]` of a text of `length` tokens: theta^(-2i/head_dim), changed
/// by the configuration's scaling. The length counts for [`RopeScaling::Dynamic`] alone.
///
/// Source: RoFormer (Su et al. 2021); each kind of scaling as Transformers 5 computes it; YaRN as the
/// MiniMind-3 reference does, too.
pub fn inverse_frequencies(config: &Config, length: usize) -> Vec<f64> {
    let dim = config.head_dim as f64;
    let of = |theta: f64| (0..config.head_dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / dim));
    let theta = config.rope_theta;
    match &config.rope_scaling {
        None => of(theta).collect(),
        Some(RopeScaling::Linear { factor }) => of(theta).map(|w| w / factor).collect(),
        Some(RopeScaling::Dynamic { factor }) => {
            let trained = config.max_position_embeddings;
            let times = length.max(trained) as f64 / trained as f64;
            of(ntk_theta(theta, config.head_dim, factor * times - (factor - 1.0))).collect()
        }
        Some(RopeScaling::Yarn(yarn)) => blend_by_dimension(yarn, theta, dim, of(theta)),
        Some(RopeScaling::Llama3(llama3)) => of(theta).map(|w| w / llama3.divisor(w)).collect(),
    }
}

/// The base by which the slowest dimension turns `factor` times slower and the fastest as before
/// (NTK-aware scaling).
///
/// Source: the post of u/bloc97 that introduced it (June 2023); Transformers' `dynamic`.
pub fn ntk_theta(theta: f64, head_dim: usize, factor: f64) -> f64 {
    let dim = head_dim as f64;
    theta * factor.powf(dim / (dim - 2.0))
}

/// YaRN: a linear ramp between the dimensions that turn beta_fast and beta_slow times in the
/// original length.
fn blend_by_dimension(
    yarn: &Yarn,
    theta: f64,
    dim: f64,
    plain: impl Iterator<Item = f64>,
) -> Vec<f64> {
    // the dimension in which `turns` full turns fit into the original length
    let dimension = |turns: f64| {
        let original = yarn.original_max_position_embeddings as f64;
        dim * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
    };
    let low = dimension(yarn.beta_fast).floor().max(0.0);
    let high = dimension(yarn.beta_slow).ceil().min(dim / 2.0 - 1.0);
    plain
        .enumerate()
        .map(|(i, frequency)| {
            let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            frequency * (1.0 - ramp) + frequency / yarn.factor * ramp
        })
        .collect()
}

impl Llama3 {
    /// The number that an inverse frequency is divided by: 1 for fast dimensions, the factor for
    /// slow ones, between them the quotient that a linear blend of both gives.
    pub fn divisor(&self, frequency: f64) -> f64 {
        let turns =
            self.original_max_position_embeddings as f64 * frequency / (2.0 * std::f64::consts::PI);
        let kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        let kept = kept.clamp(0.0, 1.0);
        1.0 / (kept + (1.0 - kept) / self.factor)
    }

    /// What GGUF holds of it, as `rope_freqs.weight` `[head_dim / 2]`: the divisor of each
    /// frequency.
    pub fn divisors(&self, theta: f64, head_dim: usize) -> Vec<f32> {
        let frequency = |i: usize| theta.powf(-2.0 * i as f64 / head_dim as f64);
        (0..head_dim / 2).map(|i| self.divisor(frequency(i)) as f32).collect()
    }
}

/// The factor of cosine and sine: YaRN's attention factor, else 1.
pub fn attention_factor(config: &Config) -> f64 {
    match &config.rope_scaling {
        Some(RopeScaling::Yarn(yarn)) => yarn.attention_factor,
        _ => 1.0,
    }
}

/// For each row of a `[heads * head_dim, ..]` matrix in GGUF's order, the row of the original.
///
/// Archs that rotate neighbouring pairs want, per head, the row at half h (0, 1), index j at 2j +
/// h.
pub fn permute_rows(heads: usize, rows: usize) -> Vec<usize> {
    let head_dim = rows / heads;
    (0..rows)
        .map(|row| {
            let (head, within) = (row / head_dim, row % head_dim);
            head * head_dim + (within % 2) * (head_dim / 2) + within / 2
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::presets;

    /// The numbers are Transformers 5.24's, whose functions compute in float32.
    #[test]
    fn each_scaling_gives_the_frequencies_of_transformers() {
        let llama3 = Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 512,
        };
        let yarn = Yarn {
            factor: 4.0,
            original_max_position_embeddings: 512,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
        };
        let rows = [
            (
                RopeScaling::Linear { factor: 4.0 },
                [
                    0.25,
                    0.079_056_94,
                    0.025,
                    0.007_905_695,
                    0.0025,
                    0.000_790_569_5,
                    0.000_25,
                    7.905_695e-5,
                ],
            ),
            (
                RopeScaling::Dynamic { factor: 4.0 },
                [
                    1.0,
                    0.219_212_47,
                    0.048_054_1,
                    0.010_534_058,
                    0.002_309_197,
                    0.000_506_204_7,
                    0.000_110_966_386,
                    2.432_521_3e-5,
                ],
            ),
            (
                RopeScaling::Yarn(yarn),
                [
                    1.0,
                    0.256_935_06,
                    0.0625,
                    0.013_834_965,
                    0.0025,
                    0.000_790_569_5,
                    0.000_25,
                    7.905_695e-5,
                ],
            ),
            (
                RopeScaling::Llama3(llama3),
                [
                    1.0,
                    0.316_227_76,
                    0.1,
                    0.018_496_677,
                    0.00125,
                    0.000_395_284_73,
                    0.000_125,
                    3.952_847_3e-5,
                ],
            ),
        ];
        let mut config = presets::preset("minimind3").expect("a preset");
        (config.head_dim, config.rope_theta, config.max_position_embeddings) = (16, 1e4, 512);
        for (scaling, expected) in rows {
            let kind = scaling.kind();
            config.rope_scaling = Some(scaling);
            let found = inverse_frequencies(&config, 2048);
            for (found, expected) in found.iter().zip(expected) {
                assert!((found / expected - 1.0).abs() < 1e-6, "{kind}: {found}, {expected}");
            }
        }
    }
}
