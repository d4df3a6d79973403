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
