//! Llama 3's rotary scaling in a GGUF: no key carries it, but the tensor `rope_freqs.weight`
//! `[head_dim / 2]`, the number that each frequency is divided by ([`Llama3::divisors`]).
//!
//! In: a GGUF, or a configuration. Out: the configuration with the scaling that the tensor stands
//! for, or the tensor's values. llama.cpp reads it for `llama` and `granitemoe` and for neither kind
//! of Qwen3 (its src/models); Ollama does as llama.cpp.

use std::f64::consts::TAU;

use super::config::{Config, Llama3, RopeScaling};
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, Gguf, Value};
use crate::tensor::{Dtype, TensorView};

/// The tensor's name.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// A key of files in memory whose rotary positions were scaled after they were opened: its value,
/// of [`stretched`], counts then and not the file's tensor.
pub const STRETCHED: &str = "mmx.rope_stretched";

/// The value of [`STRETCHED`]: Llama 3's settings, or true where the other keys say it all.
pub fn stretched(config: &Config) -> Value {
    match &config.rope_scaling {
        Some(RopeScaling::Llama3(llama3)) => Value::F32s(vec![
            llama3.factor as f32,
            llama3.low_freq_factor as f32,
            llama3.high_freq_factor as f32,
            llama3.original_max_position_embeddings as f32,
        ]),
        _ => Value::Bool(true),
    }
}

impl Config {
    /// Reads the configuration of a GGUF: its keys, whether it has a head of its own, and its
    /// rotary divisors.
    ///
    /// # Errors
    /// As [`Config::from_gguf_keys`]; divisors that Llama 3's scaling does not give, or beside
    /// another scaling, or in a file whose architecture does not read them.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let tied = file.tensor("output.weight").is_none();
        let mut config = Self::from_gguf_keys(file.metadata(), file.path(), tied)?;
        match file.metadata().get(STRETCHED) {
            Some(Value::F32s(settings)) => {
                if let &[factor, low, high, original] = settings.as_slice() {
                    config.rope_scaling = Some(RopeScaling::Llama3(Llama3 {
                        factor: factor.into(),
                        low_freq_factor: low.into(),
                        high_freq_factor: high.into(),
                        original_max_position_embeddings: original as usize,
                    }));
                }
                return Ok(config);
            }
            Some(_) => return Ok(config),
            None => {}
        }
        let Some(tensor) = file.tensor(ROPE_FREQS) else { return Ok(config) };
        let fault = |message: String| {
            Err(Error::format(file.path(), format!("tensor {ROPE_FREQS}: {message}")))
        };
        if !config.family.spec().gguf_reads_rope_freqs {
            let arch = config.family.gguf_arch();
            return fault(format!("expected none, for {arch} does not read it, found one"));
        }
        if let Some(scaling) = &config.rope_scaling {
            return fault(format!(
                "expected none beside rope.scaling.type {}, found one",
                scaling.kind()
            ));
        }
        if tensor.ty != GgmlType::F32 || tensor.shape != [config.head_dim / 2] {
            return fault(format!(
                "expected F32 of shape [{}], found {} of shape {:?}",
                config.head_dim / 2,
                tensor.ty.name(),
                tensor.shape
            ));
        }
        let data = file.data(tensor);
        let view = TensorView { dtype: Dtype::F32, shape: &tensor.shape, data };
        let divisors = view.to_f32();
        if divisors.iter().all(|divisor| *divisor == 1.0) {
            return Ok(config);
        }
        match llama3_of(config.rope_theta, config.head_dim, &divisors) {
            Some(llama3) => config.rope_scaling = Some(RopeScaling::Llama3(llama3)),
            None => {
                return fault(
                    "expected Llama 3's divisors: 1 for fast dimensions, one factor for slow ones, \
                     a blend between them; found others"
                        .to_owned(),
                );
            }
        }
        Ok(config)
    }

    /// The values of [`ROPE_FREQS`] that the model needs in a GGUF, if it needs any.
    pub fn rope_divisors(&self) -> Option<Vec<f32>> {
        match &self.rope_scaling {
            Some(RopeScaling::Llama3(llama3)) => {
                Some(llama3.divisors(self.rope_theta, self.head_dim))
            }
            _ => None,
        }
    }
}

/// The settings that give `divisors`, one for each frequency of `theta`, the fastest first; nothing
/// where Llama 3's scaling gives no such ones. Of settings that give the same the one with a
/// `low_freq_factor` of 1, as all published models have it.
///
/// A divisor is 1 / (k + (1 - k) / factor) with k linear in the frequency between the bounds, so
/// that two blended dimensions tell both bounds; one leaves a bound free, which then is the
/// published 4, or near it.
pub(super) fn llama3_of(theta: f64, head_dim: usize, divisors: &[f32]) -> Option<Llama3> {
    let factor = f64::from(*divisors.last()?);
    if !(factor > 1.0 && factor.is_finite()) {
        return None;
    }
    let frequency = |i: usize| theta.powf(-2.0 * i as f64 / head_dim as f64);
    let kept = |divisor: f32| (1.0 / f64::from(divisor) - 1.0 / factor) / (1.0 - 1.0 / factor);
    let blended: Vec<(f64, f64)> = divisors
        .iter()
        .enumerate()
        .map(|(i, divisor)| (frequency(i), kept(*divisor)))
        .filter(|(_, kept)| *kept > 1e-6 && *kept < 1.0 - 1e-6)
        .collect();
    let llama3 = |high_freq_factor: f64, original: f64| Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor,
        original_max_position_embeddings: original.round().max(1.0) as usize,
    };
    let candidates = match blended.as_slice() {
        [] => {
            // lengths at which no dimension lies between the bounds
            let slow = divisors.iter().position(|divisor| f64::from(*divisor) == factor)?;
            let longest = TAU / frequency(slow);
            let shortest = if slow == 0 { 1.0 } else { 4.0 * TAU / frequency(slow - 1) };
            let power = 2f64.powf(longest.log2().floor());
            vec![llama3(4.0, power), llama3(4.0, shortest.ceil())]
        }
        [(frequency, kept)] => {
            let original = (TAU * (3.0 * kept + 1.0) / frequency).round();
            let high = 1.0 + (original * frequency / TAU - 1.0) / kept;
            vec![llama3(4.0, original), llama3(high, original)]
        }
        [(fast, most), .., (slow, least)] => {
            let slope = (most - least) / (fast - slow);
            let high = 1.0 - 1.0 / (most - slope * fast);
            let original = slope * TAU * (high - 1.0);
            let rounded = (high * 1000.0).round() / 1000.0;
            vec![llama3(rounded, original), llama3(high, original)]
        }
    };
    // llama.cpp's converter computes frequencies in float32, which a factor of 32 makes 3e-6 of a divisor
    let gives = |llama3: &Llama3| {
        let found = llama3.divisors(theta, head_dim);
        found.iter().zip(divisors).all(|(a, b)| (a / b - 1.0).abs() < 1e-5)
            && found.len() == divisors.len()
    };
    let sound = |llama3: &Llama3| llama3.high_freq_factor > 1.0;
    candidates.into_iter().filter(sound).find(gives)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_from_their_divisors() {
        for (theta, head_dim) in [(1e4, 16), (1e6, 16), (1e6, 64), (5e5, 128), (1e4, 48), (1e6, 96)]
        {
            for original in [64, 512, 1000, 2048, 8192] {
                for (factor, high) in [(4.0, 4.0), (8.0, 4.0), (32.0, 4.0), (2.5, 3.5)] {
                    let given = Llama3 {
                        factor,
                        low_freq_factor: 1.0,
                        high_freq_factor: high,
                        original_max_position_embeddings: original,
                    };
                    let divisors = given.divisors(theta, head_dim);
                    let what = format!("{theta} {head_dim} {given:?}");
                    if f64::from(divisors[divisors.len() - 1]) != factor {
                        continue; // all of its dimensions turn faster than the bound
                    }
                    let found = llama3_of(theta, head_dim, &divisors).expect(&what);
                    for (a, b) in found.divisors(theta, head_dim).iter().zip(&divisors) {
                        assert!((a / b - 1.0).abs() < 1e-6, "{what}: {found:?}");
                    }
                    let blended = divisors.iter().filter(|d| **d > 1.0 && **d < factor as f32);
                    if blended.count() >= 2 {
                        assert_eq!(found, given, "{what}");
                    }
                }
            }
        }
    }

    /// As llama.cpp's converter computes them: frequencies in float32, the rest in float64.
    #[test]
    fn settings_come_back_from_a_converters_divisors() {
        let given = Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let divisors: Vec<f32> = (0..64)
            .map(|i| given.divisor(f64::from(1.0f32 / 5e5f32.powf(i as f32 / 64.0))) as f32)
            .collect();
        assert_eq!(llama3_of(5e5, 128, &divisors), Some(given));
    }

    #[test]
    fn other_divisors_are_none_of_llama_3() {
        for divisors in [
            &[1.0f32, 1.0, 1.0, 1.0][..],
            &[1.0, 3.0, 2.0, 4.0],
            &[1.0, 1.5, 1.6, 1.7, 1.8, 2.0, 2.1, 4.0],
            &[1.0, f32::NAN, 4.0, 4.0],
            &[0.0, 0.0, 0.0, 0.0],
        ] {
            assert_eq!(llama3_of(1e4, 2 * divisors.len(), divisors), None, "{divisors:?}");
        }
    }
}
