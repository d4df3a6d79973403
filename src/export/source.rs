//! A model and its tokenizer, open for the writers.

use std::collections::BTreeMap;
use std::path::Path;

use mmx_converters::Model;
use mmx_converters::arch::{Layout, Weight};
use mmx_converters::folder::{self, Folder};
use mmx_converters::manifest::Manifest;
use mmx_converters::tensor::Dtype;
use mmx_converters::tokenizer::Tokenizer;

use crate::error::{Error, Result};
use crate::quantizing;

/// A model open for export or import, with its tokenizer.
pub struct Source {
    /// The model.
    pub model: Model,
    /// Its tokenizer, if there is one.
    pub tokenizer: Option<Tokenizer>,
}

impl Source {
    /// Opens a model; its tokenizer comes from `tokenizer`, else from beside the weights, else from the
    /// GGUF's keys. The tokenizer's end tokens join the model's stop set.
    ///
    /// # Errors
    /// Whatever is wrong with either.
    pub fn open(path: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        Self::with_model(Model::open(crate::runs::resolve(path)?)?, tokenizer)
    }

    /// The same of adapters that name no base of their own: a PEFT folder, a GGUF adapter, or a file of weights
    /// alone, on `base`; a model where there is none.
    ///
    /// # Errors
    /// As [`Source::open`]; adapters that do not fit the base.
    pub fn open_on(path: &Path, base: Option<&Path>, tokenizer: Option<&Path>) -> Result<Self> {
        let Some(base) = base else { return Self::open(path, tokenizer) };
        let base = crate::runs::resolve(base)?;
        Self::with_model(Model::open_adapters(path, &base, None)?, tokenizer)
    }

    /// The same for a model that is open.
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
            (None, None) => {
                let base = model.adapters().and_then(|adapters| adapters.base.as_deref());
                let places = [Some(model.path.as_path()), base.map(Path::new)];
                let mut files =
                    places.into_iter().flatten().map(|p| folder_of(p).join("tokenizer.json"));
                match files.find(|path| path.exists()) {
                    Some(path) => Some(Tokenizer::open(path)?),
                    None => None,
                }
            }
        };
        if let Some(tokenizer) = &tokenizer {
            let stops = tokenizer.stop_ids(&model.config.eos_token_id);
            model.config.eos_token_id = stops;
            if tokenizer.vocab_size() > model.config.vocab_size {
                return Err(Error::failed(format!(
                    "{}: expected at most {} tokens (the model's vocab_size), found {}",
                    tokenizer.path().display(),
                    model.config.vocab_size,
                    tokenizer.vocab_size()
                )));
            }
        }
        Ok(Self { model, tokenizer })
    }

    /// A weight as the writers want it.
    ///
    /// # Errors
    /// What the dequantizer returns.
    pub fn weight(
        &self,
        weight: &Weight,
    ) -> mmx_converters::Result<(Dtype, std::borrow::Cow<'_, [u8]>)> {
        self.model.weight_with(weight, &quantizing::dequantize)
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
        Ok(folder::write_over(dir, &folder, get, manifest, overwrite)?)
    }
}

/// The folder a model lies in: itself, or its file's.
pub(super) fn folder_of(model: &Path) -> &Path {
    if model.is_dir() { model } else { model.parent().unwrap_or(Path::new(".")) }
}
