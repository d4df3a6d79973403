//! Rotary positions: the frequencies every engine must agree on, YaRN, and GGUF's row permutation.

use super::config::Config;

/// Inverse frequencies `[head_dim / 2]`: theta^(-2i/head_dim), blended by YaRN where the config
/// asks for it.
///
/// Source: RoFormer (Su et al. 2021); YaRN (Peng et al. 2023) as the MiniMind-3 reference computes
/// it: a linear ramp between the dimensions that turn beta_fast and beta_slow times in the original
/// length.
pub fn inverse_frequencies(config: &Config) -> Vec<f64> {
    let half = config.head_dim / 2;
    let dim = config.head_dim as f64;
    let theta = config.rope_theta;
    let plain = (0..half).map(|i| theta.powf(-2.0 * i as f64 / dim));
    let Some(yarn) = &config.rope_scaling else { return plain.collect() };
    // the dimension in which `turns` full turns fit into the original length
    let dimension = |turns: f64| {
        let original = yarn.original_max_position_embeddings as f64;
        dim * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
    };
    let low = dimension(yarn.beta_fast).floor().max(0.0);
    let high = dimension(yarn.beta_slow).ceil().min(half as f64 - 1.0);
    plain
        .enumerate()
        .map(|(i, frequency)| {
            let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            frequency * (1.0 - ramp) + frequency / yarn.factor * ramp
        })
        .collect()
}

/// The factor of cosine and sine: YaRN's attention factor, else 1.
pub fn attention_factor(config: &Config) -> f64 {
    config.rope_scaling.as_ref().map_or(1.0, |yarn| yarn.attention_factor)
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
