//! Models with random weights, for benches and tests: any configuration, any file type, no training.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use mmx_converters::arch::{Config, Role, weights};
use mmx_converters::gguf::{Metadata, TensorSpec, Value, write};

use crate::error::Result;
use crate::file_type::{FileType, recipe};
use crate::quantize::quantize_rows;

/// Writes a GGUF of `config` with random weights and no tokenizer; the same seed gives the same file.
///
/// Matrices are uniform with the width a fresh network has (0.02), norms near one, so that activations
/// and logits have a usual size.
///
/// # Errors
/// A configuration GGUF cannot carry, or the system's refusal.
pub fn write_random_gguf(path: &Path, config: &Config, file: FileType, seed: u64) -> Result<()> {
    let mut metadata = Metadata::new();
    let mut set = |key: &str, value| metadata.set(key, value);
    set("general.architecture", Value::String(config.family.gguf_arch().to_owned()));
    set("general.type", Value::String("model".to_owned()));
    set("general.name", Value::String("random".to_owned()));
    set("general.file_type", Value::U32(file.id()));
    set("general.quantization_version", Value::U32(2));
    for (key, value) in config.to_gguf_keys()? {
        set(&key, value);
    }
    set("tokenizer.ggml.model", Value::String("none".to_owned()));

    let mut specs: Vec<TensorSpec> = Vec::new();
    let mut roles = HashMap::new();
    for weight in weights(config) {
        let place = weight.gguf;
        if roles.insert(place.tensor.clone(), weight.role).is_none() {
            let ty = recipe(file, config, &place.tensor, &place.shape, false).0;
            specs.push(TensorSpec { name: place.tensor, shape: place.shape, ty });
        }
    }
    let mut state = seed ^ 0x9E37_79B9_7F4A_7C15;
    write(path, &metadata, &specs, |i| {
        let spec = &specs[i];
        let (middle, width) = match roles[&spec.name] {
            Role::Norm => (1.0, 0.1),
            _ => (0.0, 0.02 * 12f32.sqrt()), // a uniform of this width has deviation 0.02
        };
        let values: Vec<f32> = (0..spec.shape.iter().product())
            .map(|_| middle + width * (uniform(&mut state) - 0.5))
            .collect();
        let row = spec.shape.last().copied().unwrap_or(1);
        quantize_rows(spec.ty, &values, row).map(Cow::Owned).map_err(|error| {
            mmx_converters::Error::format(path, format!("tensor {}: {error}", spec.name))
        })
    })?;
    Ok(())
}

/// The next number of splitmix64 (Steele et al. 2014), in [0, 1).
fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}
