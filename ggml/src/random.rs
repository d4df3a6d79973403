//! Models with random weights, for benches and tests: any configuration, any file type, no training.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use mmx_converters::arch::{Config, Role, weights};
use mmx_converters::gguf::{Metadata, TensorSpec, Value, write};

use crate::error::Result;
use crate::file_type::{FileType, recipe};
use crate::quantize::quantize_rows;
use crate::rng::SplitMix64;

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
    let mut rng = SplitMix64::new(seed);
    write(path, &metadata, &specs, |i| {
        let spec = &specs[i];
        let (middle, width) = match roles[&spec.name] {
            Role::Norm => (1.0, 0.1),
            _ => (0.0, 0.02 * 12f32.sqrt()), // a uniform of this width has deviation 0.02
        };
        let values: Vec<f32> = (0..spec.shape.iter().product())
            .map(|_| middle + width * (rng.next_f64() as f32 - 0.5))
            .collect();
        let row = spec.shape.last().copied().unwrap_or(1);
        quantize_rows(spec.ty, &values, row).map(Cow::Owned).map_err(|error| {
            mmx_converters::Error::format(path, format!("tensor {}: {error}", spec.name))
        })
    })?;
    Ok(())
}
