//! A model and its tokenizer, open for the writers.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use mmx_converters::Model;
use mmx_converters::arch::{Layout, Weight};
use mmx_converters::manifest::Manifest;
use mmx_converters::model::adapter::Adapters;
use mmx_converters::model::fallback;
use mmx_converters::model::folder::{self, Folder};
use mmx_converters::tensor::Dtype;
use mmx_converters::tokenizer::Tokenizer;

use crate::blocks;
use mmx_converters::{Error, Result};

/// A model open for export or import, with its tokenizer.
pub struct Source {
    /// The model.
    pub model: Model,
    /// Its tokenizer, if there is one.
    pub tokenizer: Option<Tokenizer>,
    /// Weights whose values have been looked through; nothing where NaN and infinities may pass.
    checked: Option<Mutex<HashSet<String>>>,
}

impl Source {
    /// Opens a model; its tokenizer comes from `tokenizer`, else from beside the weights, else from
    /// the GGUF's keys. The tokenizer's end tokens join the model's stop set.
    ///
    /// # Errors
    /// Whatever is wrong with either.
    pub fn open(path: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        Self::with_model(Model::open(mmx_hub::resolve(path)?)?, tokenizer)
    }

    /// Opens adapters that name no base of their own (a PEFT folder, a GGUF adapter, or a file of
    /// weights alone) on `base`; without a base it opens a model.
    ///
    /// # Errors
    /// As [`Source::open`]; adapters that do not fit the base.
    pub fn open_on(path: &Path, base: Option<&Path>, tokenizer: Option<&Path>) -> Result<Self> {
        let Some(base) = base else { return Self::open(path, tokenizer) };
        let base = mmx_hub::resolve(base)?;
        Self::with_model(Model::open_adapters(path, &base, None)?, tokenizer)
    }

    /// Takes a model that is open already, and finds its tokenizer as [`Source::open`] does.
    ///
    /// # Errors
    /// Whatever is wrong with the tokenizer.
    pub fn with_model(mut model: Model, tokenizer: Option<&Path>) -> Result<Self> {
        let tokenizer = match (tokenizer, model.gguf()) {
            (Some(path), _) => Some(Tokenizer::open(path)?),
            (None, Some(gguf)) => match gguf.metadata().get("tokenizer.ggml.tokens") {
                Some(_) => Some(Tokenizer::from_gguf(gguf.metadata(), gguf.path())?),
                None => None,
            },
            (None, None) => match model.tokenizer_folder() {
                Some(folder) => Some(Tokenizer::open(folder)?),
                None => None,
            },
        };
        if let Some(tokenizer) = &tokenizer {
            let stops = tokenizer.stop_ids(&model.config.eos_token_id);
            model.config.eos_token_id = stops;
            align_roles(&mut model, tokenizer);
            model.warnings.extend(tokenizer.warnings.iter().cloned());
            if tokenizer.vocab_size() > model.config.vocab_size {
                return Err(Error::failed(format!(
                    "{}: expected at most {} tokens (the model's vocab_size), found {}",
                    tokenizer.path().display(),
                    model.config.vocab_size,
                    tokenizer.vocab_size()
                )));
            }
        }
        Ok(Self { model, tokenizer, checked: Some(Mutex::default()) })
    }

    /// Lets NaN and infinities pass, where `allowed`.
    #[must_use]
    pub fn allow_non_finite(mut self, allowed: bool) -> Self {
        if allowed {
            self.checked = None;
        }
        self
    }

    /// The values of a weight as the writers want them.
    ///
    /// # Errors
    /// What the dequantizer returns; a NaN or infinity, unless they may pass.
    pub fn weight(
        &self,
        weight: &Weight,
    ) -> mmx_converters::Result<(Dtype, std::borrow::Cow<'_, [u8]>)> {
        let (dtype, bytes) = self.model.weight_with(weight, &blocks::dequantize)?;
        if let Some(checked) = &self.checked {
            let mut checked = checked.lock().unwrap_or_else(PoisonError::into_inner);
            if !checked.contains(&weight.name) {
                let (name, shape) = (&weight.name, &weight.shape);
                fallback::refuse_not_finite(&self.model.path, name, shape, dtype, &bytes)?;
                checked.insert(name.clone());
            }
        }
        Ok((dtype, bytes))
    }

    /// The adapters alone, if the model has some.
    ///
    /// # Errors
    /// A NaN or infinity in them, unless they may pass.
    pub fn adapters(&self) -> Result<Option<&Adapters>> {
        let adapters = self.model.adapters();
        if self.checked.is_some()
            && let Some(adapters) = adapters
        {
            adapters.refuse_not_finite(&self.model.path)?;
        }
        Ok(adapters)
    }

    /// Writes a folder over what is there, as far as `manifest` or `overwrite` allow it.
    ///
    /// # Errors
    /// See [`folder::write_over`].
    pub fn write_folder(
        &self,
        dir: &Path,
        layout: Layout,
        dtype: Dtype,
        strict: bool,
        shard_bytes: Option<u64>,
        (manifest, overwrite): (&mut Manifest, bool),
    ) -> Result<folder::Written> {
        let metadata = BTreeMap::new();
        let save =
            |dir: &Path| self.tokenizer.as_ref().map_or(Ok(()), |tokenizer| tokenizer.save(dir));
        let folder = Folder {
            config: &self.model.config,
            layout,
            dtype,
            generation: &self.model.generation,
            tokenizer: self.tokenizer.is_some().then_some(&save as folder::SaveTokenizer<'_>),
            metadata: &metadata,
            strict,
            shard_bytes,
        };
        let get = &mut |weight: &Weight| self.weight(weight);
        folder::write_over(dir, &folder, get, manifest, overwrite)
    }
}

/// Gives the model the bos and padding of its tokenizer, as Transformers' trainers do, so that all
/// files of an export say the same; a warning tells where the model said otherwise.
fn align_roles(model: &mut Model, tokenizer: &Tokenizer) {
    let config = &mut model.config;
    for (key, own, id) in [
        ("bos_token_id", &mut config.bos_token_id, tokenizer.bos_id()),
        ("pad_token_id", &mut config.pad_token_id, tokenizer.pad_id()),
    ] {
        let Some(id) = id.filter(|id| id != own) else { continue };
        model.warnings.push(format!(
            "{}: {key} is {own} with the model and {id} with the tokenizer {}: the tokenizer's is written",
            model.path.display(),
            tokenizer.path().display()
        ));
        *own = id;
    }
}

/// The folder a model lies in: itself, or its file's.
pub(super) fn folder_of(model: &Path) -> &Path {
    if model.is_dir() { model } else { model.parent().unwrap_or(Path::new(".")) }
}
