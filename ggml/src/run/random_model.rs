//! Models with random weights, for benches and tests: any configuration, any file type, no
//! training.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use mmx_converters::arch::rope_freqs::ROPE_FREQS;
use mmx_converters::arch::{Config, Role, presets, weights};
use mmx_converters::gguf::{GgmlType, Metadata, TensorSpec, Value, to_bytes, write};
use mmx_converters::tensor::{Dtype, encode_f32};
use mmx_converters::tokenizer::train::{WordCounts, train};
use mmx_converters::tokenizer::{SpecialSet, Tokenizer};

use crate::error::{Error, Result};
use crate::quant::quantize_rows;
use mmx_converters::quant::file_type::{FileType, recipe};
use mmx_converters::random::SplitMix64;

/// Writes a GGUF of `config` with random weights and no tokenizer; the same seed gives the same
/// file.
///
/// Matrices are uniform with the width a fresh network has (0.02), norms near one, so that
/// activations and logits have a usual size.
///
/// # Errors
/// A configuration GGUF cannot carry, or the system's refusal.
pub fn write_random_gguf(path: &Path, config: &Config, file: FileType, seed: u64) -> Result<()> {
    let parts = Parts::new(config, None, file)?;
    let mut rng = SplitMix64::new(seed);
    write(path, &parts.metadata, &parts.specs, |i| parts.data(path, i, &mut rng))?;
    Ok(())
}

/// The bytes of a GGUF with random weights, with a tokenizer where one is given.
///
/// # Errors
/// A configuration or tokenizer GGUF cannot carry.
pub fn random_gguf(
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    file: FileType,
    seed: u64,
) -> Result<Vec<u8>> {
    let parts = Parts::new(config, tokenizer, file)?;
    let name = Path::new("random.gguf");
    let mut rng = SplitMix64::new(seed);
    Ok(to_bytes(name, &parts.metadata, &parts.specs, |i| parts.data(name, i, &mut rng))?)
}

/// A complete GGUF of the preset `tiny` in memory: random float16 weights, a tokenizer of bytes and
/// MiniMind's special tokens and chat template. It says nothing sensible, but all of the runner can
/// be tried with it.
///
/// # Errors
/// None that are known.
pub fn tiny_gguf(seed: u64) -> Result<Vec<u8>> {
    let mut counts = WordCounts::new(WordCounts::LIMIT_BYTES);
    counts.add(&["tiny"])?;
    let specials = SpecialSet::MiniMind2;
    let tokenizer = train(counts, specials.tokens().len() + 256, specials)?;
    let mut config = presets::preset("tiny").ok_or_else(|| Error::Request {
        message: "expected a preset called tiny, found none".to_owned(),
    })?;
    config.vocab_size = tokenizer.vocab_size();
    random_gguf(&config, Some(&tokenizer), FileType::F16, seed)
}

/// The parts of a file: keys and tensors.
pub(super) struct Parts {
    pub(super) metadata: Metadata,
    pub(super) specs: Vec<TensorSpec>,
    roles: HashMap<String, Role>,
    divisors: Option<Vec<f32>>,
}

impl Parts {
    pub(super) fn new(
        config: &Config,
        tokenizer: Option<&Tokenizer>,
        file: FileType,
    ) -> Result<Self> {
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
        match tokenizer {
            None => {
                set("tokenizer.ggml.model", Value::String("none".to_owned()));
            }
            Some(tokenizer) => {
                for (key, value) in tokenizer.to_gguf_keys(config)? {
                    set(&key, value);
                }
            }
        }
        let mut specs: Vec<TensorSpec> = Vec::new();
        let mut roles = HashMap::new();
        for weight in weights(config) {
            let place = weight.gguf;
            if roles.insert(place.tensor.clone(), weight.role).is_none() {
                let ty = recipe(file, config, &place.tensor, &place.shape, false).0;
                specs.push(TensorSpec { name: place.tensor, shape: place.shape, ty });
            }
        }
        let divisors = config.rope_divisors();
        if let Some(divisors) = &divisors {
            let (name, shape) = (ROPE_FREQS.to_owned(), vec![divisors.len()]);
            specs.push(TensorSpec { name, shape, ty: GgmlType::F32 });
        }
        Ok(Self { metadata, specs, roles, divisors })
    }

    /// The next tensor's data; called once for each, in order.
    fn data(
        &self,
        path: &Path,
        index: usize,
        rng: &mut SplitMix64,
    ) -> mmx_converters::Result<Cow<'static, [u8]>> {
        let spec = &self.specs[index];
        if let Some(divisors) = self.divisors.as_ref().filter(|_| spec.name == ROPE_FREQS) {
            return Ok(Cow::Owned(encode_f32(divisors, Dtype::F32)));
        }
        let (middle, width) = match self.roles[&spec.name] {
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
    }
}
