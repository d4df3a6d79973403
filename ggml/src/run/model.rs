//! A GGUF, opened and ready to run: configuration, weights and tokenizer, shared by all sessions.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use mmx_converters::arch::Config;
use mmx_converters::gguf::Gguf;
use mmx_converters::model::generation::Generation as Defaults;
use mmx_converters::tokenizer::Tokenizer;

use super::options::LoadOptions;
use super::sampler::Sampling;
use super::weights::Weights;
use crate::error::Result;
use crate::kernel::attention;
use crate::kernel::cpu::CpuSet;
use crate::wrap::cores;
use crate::wrap::device::Device;

/// A model; cheap to clone, all clones share the weights.
#[derive(Clone, Debug)]
pub struct Model(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    weights: Arc<Weights>,
    tokenizer: OnceLock<Tokenizer>,
    /// The thread that packs what was left in the file, once there is one.
    packing: OnceLock<Mutex<Option<JoinHandle<()>>>>,
}

/// With the last clone goes the file: nothing reads it any more.
impl Drop for Inner {
    fn drop(&mut self) {
        self.weights.stop_packing();
        let thread = self
            .packing
            .take()
            .and_then(|thread| thread.into_inner().unwrap_or_else(PoisonError::into_inner));
        if let Some(thread) = thread {
            let _ = thread.join(); // it cannot panic but for a fault of ours, which it has told
        }
    }
}

impl Model {
    /// Opens a GGUF of one of the four architectures.
    ///
    /// # Errors
    /// A broken file, an unknown architecture, tensors that are missing, unknown or of another
    /// shape.
    pub fn load(path: &Path, options: LoadOptions) -> Result<Self> {
        Self::from_gguf(Gguf::open(path)?, options)
    }

    /// Opens a GGUF that is in memory; `name` is what messages call it.
    ///
    /// # Errors
    /// See [`Model::load`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str, options: LoadOptions) -> Result<Self> {
        Self::from_gguf(Gguf::from_bytes(bytes, name)?, options)
    }

    /// Makes a model of a GGUF that is open already.
    ///
    /// # Errors
    /// See [`Model::load`].
    pub fn from_gguf(gguf: Gguf, options: LoadOptions) -> Result<Self> {
        let config = Config::from_gguf(&gguf)?;
        let weights = Weights::load(gguf, &config, &options)?;
        Ok(Self::from_weights(config, weights))
    }

    pub(super) fn from_weights(config: Config, weights: Weights) -> Self {
        Self(Arc::new(Inner {
            config,
            weights: Arc::new(weights),
            tokenizer: OnceLock::new(),
            packing: OnceLock::new(),
        }))
    }

    /// Dimensions and constants.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The file: its keys, its path.
    pub fn gguf(&self) -> &Gguf {
        self.0.weights.gguf()
    }

    /// The file's tokenizer, read at the first call.
    ///
    /// # Errors
    /// A file without a tokenizer mmx can read.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        if let Some(tokenizer) = self.0.tokenizer.get() {
            return Ok(tokenizer);
        }
        let tokenizer = Tokenizer::from_gguf(self.gguf().metadata(), self.gguf().path())?;
        Ok(self.0.tokenizer.get_or_init(|| tokenizer))
    }

    /// How the file says the model is meant to be sampled; the reference's settings where it says
    /// nothing.
    pub fn sampling(&self, seed: u64) -> Sampling {
        let defaults = Defaults::from_gguf_keys(self.gguf().metadata()).unwrap_or_default();
        Sampling::from_defaults(&defaults, seed)
    }

    /// The device that some of the layers lie on, and how many (the output matrix being one).
    pub fn device(&self) -> Option<(Device, usize)> {
        let split = self.0.weights.split()?;
        let layers = self.config().num_hidden_layers + 1 - split.first_layer;
        Some((split.device.describe(), layers))
    }

    /// Where the layers lie, in words, if not all of them are computed by the CPU.
    pub fn placement(&self) -> Option<String> {
        let (device, layers) = self.device()?;
        let all = self.config().num_hidden_layers + 1;
        Some(format!("{layers} of {all} layers on {} ({})", device.name, device.description))
    }

    /// True when a token's logits are the same to the last bit whatever is computed in the same
    /// step: on CPUs that our own kernels are for, with matrices they are for.
    pub fn is_batch_invariant(&self) -> bool {
        self.device().is_none()
            && attention::fits(self.cpu(), self.config().head_dim)
            && self.0.weights.are_batch_invariant()
    }

    /// The instruction set that our own kernels use for this model.
    pub fn cpu(&self) -> CpuSet {
        self.0.weights.cpu()
    }

    /// Bytes of weights that computing one token reads.
    pub fn bytes_per_token(&self) -> usize {
        self.0.weights.bytes_per_token()
    }

    /// Has the weights packed that were left in the file, by a thread of its own; at the first call
    /// only.
    pub(super) fn pack(&self) {
        self.0.packing.get_or_init(|| {
            let weights = self.0.weights.clone();
            let left = weights.are_left_to_pack();
            let spawn = |_| {
                let core = cores::current();
                let thread = std::thread::Builder::new().name("packing".into());
                let pack = move || {
                    // who writes the tokens goes on there
                    if core.is_some_and(|core| cores::current() == Some(core)) {
                        cores::leave(core.as_slice());
                    }
                    weights.pack();
                };
                thread.spawn(pack).ok() // without it they are read from the file
            };
            Mutex::new(left.then_some(()).and_then(spawn))
        });
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.0.weights
    }

    /// The weights for who alone holds the model; nothing while there are clones of it.
    pub(super) fn weights_mut(&mut self) -> Option<&mut Weights> {
        Arc::get_mut(&mut Arc::get_mut(&mut self.0)?.weights)
    }
}

#[cfg(test)]
mod tests {
    use mmx_converters::arch::presets;

    use super::*;
    use crate::run::random_model::random_gguf;
    use crate::run::{Session, SessionOptions};
    use mmx_converters::quant::file_type::FileType;
    use mmx_converters::random::SplitMix64;

    /// Two bytes at random places of the header or of the weights: nothing but an error or logits
    /// may come of it. What would be read or written beside memory is seen by scripts/check-asan.
    #[test]
    fn files_with_broken_bytes_are_refused_or_run() {
        let mut rng = SplitMix64::new(21);
        let mut below = |n: usize| rng.next_u64() as usize % n;
        let (mut refused, mut ran) = (0, 0);
        for preset in ["minimind2", "minimind3", "minimind2-moe", "minimind3-moe"] {
            // our own kernels, and a width that they are not for
            for (file, head_dim) in
                [(FileType::F32, 16), (FileType::Q8_0, 16), (FileType::Q4_0, 24)]
            {
                let mut config = presets::preset(preset).unwrap();
                (config.vocab_size, config.num_hidden_layers, config.head_dim) = (64, 1, head_dim);
                (config.num_attention_heads, config.num_key_value_heads) = (4, 2);
                (config.hidden_size, config.intermediate_size) = (4 * head_dim, 96);
                if let Some(moe) = &mut config.moe {
                    moe.intermediate_size = 32;
                }
                let whole = random_gguf(&config, None, file, 3).unwrap();
                let header = Gguf::from_bytes(whole.clone(), "whole").unwrap().data_offset();
                for trial in 0..100 {
                    let mut bytes = whole.clone();
                    let from = if trial % 2 == 0 { header..bytes.len() } else { 0..header };
                    for _ in 0..2 {
                        let at = from.start + below(from.len());
                        bytes[at] =
                            [0, 1, 0x7f, 0xff, bytes[at] ^ 8, bytes[at].wrapping_add(1)][below(6)];
                    }
                    let options = LoadOptions { repack: trial % 4 < 2, ..LoadOptions::default() };
                    let Ok(model) = Model::from_bytes(bytes, "broken", options) else {
                        refused += 1;
                        continue;
                    };
                    let options = SessionOptions {
                        n_ctx: Some(8),
                        threads: Some(1),
                        ..SessionOptions::default()
                    };
                    let mut session = Session::new(&model, options).unwrap();
                    let vocab = model.config().vocab_size;
                    assert_eq!(session.prefill(&[1, 2, 3]).unwrap().len(), vocab);
                    assert_eq!(session.decode(4).unwrap().len(), vocab);
                    ran += 1;
                }
            }
        }
        assert!(refused > 300 && ran > 300, "{refused} refused, {ran} ran");
    }
}
