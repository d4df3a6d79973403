//! A form of a model, opened: a checkpoint or Transformers folder, or a GGUF; its tokenizer, and
//! itself as a GGUF in memory for the runner.

use std::path::{Path, PathBuf};
use std::time::Instant;

use mmx_converters::Model;
use mmx_converters::arch::{Config, Stretch, rope_freqs};
use mmx_converters::gguf::{GgmlType, Gguf, Value, is_further_part};
use mmx_converters::model::adapter::CONFIG_NAME as ADAPTERS;
use mmx_converters::model::to_gguf::ToGguf;
use mmx_converters::tokenizer::Tokenizer;
use mmx_ggml::FileType;

use crate::engines::engine::Kind;
use mmx_converters::{Error, Result};

/// The GGUF of a folder of exports; none for anything else. What is no model (adapters, importance
/// matrices, further parts of a split one) does not count.
fn exported(dir: &Path) -> Result<Option<PathBuf>> {
    if !dir.is_dir() || ["config.json", ADAPTERS].iter().any(|name| dir.join(name).exists()) {
        return Ok(None);
    }
    let (mut ggufs, mut folders) = (Vec::new(), Vec::new());
    for entry in fs_err::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let folder = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"hf-"));
        if path.extension().is_some_and(|e| e == "gguf") && path.is_file() && is_model(&path) {
            ggufs.push(path);
        } else if folder && path.join("config.json").is_file() {
            folders.push(path);
        }
    }
    if ggufs.len() < 2 && (!ggufs.is_empty() || folders.is_empty()) {
        return Ok(ggufs.pop());
    }
    ggufs.sort();
    folders.sort();
    let names: Vec<_> = ggufs.iter().chain(&folders).map(|p| p.display().to_string()).collect();
    Err(Error::failed_with_hint(
        format!(
            "{}: expected one GGUF in this folder of exports, found {}",
            dir.display(),
            ggufs.len()
        ),
        format!("name the one that is meant: {}", names.join(", ")),
    ))
}

/// False for a GGUF that holds something else than a model or its first part. One that cannot be
/// read counts: opened, it says why.
fn is_model(path: &Path) -> bool {
    if is_further_part(path) {
        return false;
    }
    let Ok(file) = Gguf::open(path) else { return true };
    let kind = file.metadata().get("general.type").and_then(|v| v.as_str());
    kind.unwrap_or("model") == "model"
}

/// An open model and where it came from.
#[derive(Debug)]
pub struct Form {
    /// The weights and the configuration.
    pub model: Model,
    /// The model that adapters belong to, where they do not name it themselves.
    pub base: Option<PathBuf>,
    /// True where only ids go in: no tokenizer is opened.
    ids_only: bool,
    /// True where the rotary positions are not those of the file.
    stretched: bool,
}

impl Form {
    /// Opens anything mmx can open; a training run's folder stands for its newest checkpoint, and a
    /// folder of exports for the one GGUF in it.
    ///
    /// # Errors
    /// See [`Model::open`]; a folder of several exports, or of none but Transformers folders: they
    /// are named.
    pub fn open(path: &Path) -> Result<Self> {
        let started = Instant::now();
        let given = path;
        let path = mmx_hub::resolve(path)?;
        let form = Self::of(Model::open(exported(&path)?.unwrap_or(path))?);
        let (found, seconds) = (form.path().display(), started.elapsed().as_secs_f64());
        log::debug!("{}: opened as {found} in {seconds:.3} s", given.display());
        Ok(form)
    }

    /// Wraps a model that is open already.
    pub fn of(model: Model) -> Self {
        Self { model, base: None, ids_only: false, stretched: false }
    }

    /// Sets the model that its adapters belong to, where they do not name it themselves.
    #[must_use]
    pub fn on(self, base: Option<PathBuf>) -> Self {
        Self { base, ..self }
    }

    /// Takes the form for ids alone: a tokenizer that is missing or that a GGUF cannot carry does
    /// not matter then.
    #[must_use]
    pub fn for_ids(self) -> Self {
        Self { ids_only: true, ..self }
    }

    /// Stretches the model's rotary positions, if it is asked for; only the runner computes it so
    /// then, since other engines read the file for themselves.
    #[must_use]
    pub fn stretched(mut self, stretch: Option<Stretch>) -> Self {
        if let Some(stretch) = stretch {
            stretch.apply(&mut self.model.config);
            self.stretched = true;
        }
        self
    }

    /// The path that it was opened from.
    pub fn path(&self) -> &Path {
        &self.model.path
    }

    /// True for a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.model.gguf().is_some()
    }

    /// The engines of this machine that can open it, the most faithful one first.
    pub fn engines(&self) -> Vec<Kind> {
        if self.stretched {
            return vec![Kind::Ggml];
        }
        match (self.is_gguf(), crate::trainer::program().is_some()) {
            (true, _) => vec![Kind::Ggml, Kind::LlamaCpp],
            (false, true) => vec![Kind::Native, Kind::Ggml],
            (false, false) => vec![Kind::Ggml],
        }
    }

    /// The type that most values of its layers have (embeddings are often kept in a finer one).
    pub fn weight_type(&self) -> GgmlType {
        let mut counts: Vec<(GgmlType, usize)> = Vec::new();
        for weight in self.model.weights().iter().filter(|w| w.layer.is_some() && w.quantize()) {
            let ty = self.model.stored_type(weight);
            match counts.iter_mut().find(|(t, _)| *t == ty) {
                Some((_, n)) => *n += weight.elements(),
                None => counts.push((ty, weight.elements())),
            }
        }
        counts.into_iter().max_by_key(|(_, n)| *n).map_or(GgmlType::F32, |(ty, _)| ty)
    }

    /// The tokenizer beside or inside the weights; nothing where there is none.
    ///
    /// # Errors
    /// A tokenizer that is there and cannot be read.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        if self.ids_only {
            return Ok(None);
        }
        let path = self.path();
        match self.model.gguf() {
            Some(file) if file.metadata().get("tokenizer.ggml.model").is_none() => Ok(None),
            Some(file) => Ok(Some(Tokenizer::from_gguf(file.metadata(), path)?)),
            None => match self.model.tokenizer_folder() {
                Some(folder) => Ok(Some(Tokenizer::open(folder)?)),
                None => Ok(None),
            },
        }
    }

    /// The tokenizer, which must be there.
    ///
    /// # Errors
    /// None there, or it cannot be read.
    pub fn expect_tokenizer(&self) -> Result<Tokenizer> {
        self.tokenizer()?.ok_or_else(|| {
            Error::failed_with_hint(
                format!(
                    "{}: expected a tokenizer with the model, found none",
                    self.path().display()
                ),
                "put tokenizer.json and tokenizer_config.json beside the weights",
            )
        })
    }

    /// The model as a GGUF: the file itself, or a folder's weights in memory in the type they are
    /// stored in.
    ///
    /// # Errors
    /// A model that GGUF cannot carry exactly, or a tokenizer it cannot.
    pub fn to_gguf(&self) -> Result<Gguf> {
        let path: PathBuf = self.path().to_owned();
        let config = &self.model.config;
        if self.is_gguf() {
            let mut gguf = Gguf::open(&path)?;
            if self.stretched {
                stretch_keys(&mut gguf, config)?;
            }
            return Ok(gguf);
        }
        let tokenizer = match self.tokenizer()? {
            Some(tokenizer) => tokenizer.to_gguf_keys(config)?,
            None => Vec::new(),
        };
        let file_type = match self.weight_type() {
            GgmlType::F16 => FileType::F16,
            GgmlType::BF16 => FileType::BF16,
            _ => FileType::F32,
        };
        let request = ToGguf {
            config,
            name: "model",
            license: None,
            generation: &self.model.generation,
            file_type: file_type.id(),
            tokenizer: &tokenizer,
            recipe: &|name, shape| crate::blocks::recipe(file_type, config, name, shape),
            quantize: &crate::blocks::quantize,
            extra: &[],
            strict: false,
        };
        let (bytes, _) = request.to_bytes(&path, &mut |weight| self.model.weight(weight))?;
        Gguf::from_bytes(bytes, &path)
    }
}

/// Gives a file's keys in memory the rotary positions and the length of a configuration.
fn stretch_keys(gguf: &mut Gguf, config: &Config) -> Result<()> {
    let arch = config.family.gguf_arch();
    let none = Value::String("none".to_owned());
    gguf.metadata_mut().set(format!("{arch}.rope.scaling.type"), none);
    gguf.metadata_mut().set(rope_freqs::STRETCHED, rope_freqs::stretched(config));
    for (key, value) in config.to_gguf_keys()? {
        if key.contains(".rope.") || key.ends_with(".context_length") {
            gguf.metadata_mut().set(key, value);
        }
    }
    Ok(())
}
