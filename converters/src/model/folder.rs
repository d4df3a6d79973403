//! A model as a folder: config.json, generation_config.json, model.safetensors and the tokenizer's
//! files, in the stock Transformers class or in MiniMind's own form. The folder appears whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::arch::{self, Config, Layout, gather, public_tensors};
use crate::error::{Error, Result};
use crate::file;
use crate::manifest::Manifest;
use crate::model::fallback::{Fallback, Weights, float_fallbacks, refuse_fallbacks};
use crate::model::generation::{self, Generation};
use crate::safetensors::shards;
use crate::safetensors::{self, TensorSpec};
use crate::tensor::{self, Dtype};

/// Writes a tokenizer's files into a folder.
pub type SaveTokenizer<'a> = &'a dyn Fn(&Path) -> Result<()>;

/// Everything that a folder is written from besides the weights.
#[derive(Clone, Copy)]
pub struct Folder<'a> {
    /// The model's dimensions and constants.
    pub config: &'a Config,
    /// [`Layout::Transformers`], or [`Layout::Reference`] for what the stock class cannot carry.
    pub layout: Layout,
    /// Element type of the weights.
    pub dtype: Dtype,
    /// Default sampling.
    pub generation: &'a Generation,
    /// Writes the tokenizer's files into a folder.
    pub tokenizer: Option<SaveTokenizer<'a>>,
    /// Text for the safetensors file's `__metadata__`.
    pub metadata: &'a BTreeMap<String, String>,
    /// A tensor that the element type cannot hold is an error, not a fallback.
    pub strict: bool,
    /// Several files of at most so many bytes of tensors, and their index; nothing for one file.
    pub shard_bytes: Option<u64>,
}

/// The files that were written, and what they could not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The files and their sizes in bytes, by name.
    pub files: Vec<(PathBuf, u64)>,
    /// Tensors that did not get the type asked for.
    pub fallbacks: Vec<Fallback>,
}

impl Written {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The layout that carries a model as a folder: the stock class, or MiniMind's own form where the
/// class computes something else. For checkpoints; an export refuses instead.
pub fn carrying_layout(config: &Config) -> Layout {
    match config.check_carried_by(Layout::Transformers) {
        Ok(()) => Layout::Transformers,
        Err(_) => Layout::Reference,
    }
}

/// The files of a model's folder besides its weights; the tokenizer's come last.
const MODEL_FILES: [&str; 5] = [
    "config.json",
    generation::FILE_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];
/// The number of [`MODEL_FILES`] that a model without a tokenizer has.
const WITHOUT_TOKENIZER: usize = 2;

/// The first file in `dir` that a model's folder written there would replace, or whose weights
/// readers would take for the model's, and that is not as mmx wrote it.
///
/// # Errors
/// A file cannot be read.
pub fn foreign_file(
    dir: &Path,
    tokenizer: bool,
    manifest: &mut Manifest,
) -> Result<Option<PathBuf>> {
    let count = if tokenizer { MODEL_FILES.len() } else { WITHOUT_TOKENIZER };
    let names = MODEL_FILES[..count].iter().map(|&name| name.to_owned());
    for name in names.chain(weights_in(dir)?) {
        let path = dir.join(name);
        if !manifest.is_free(&path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The tokenizer's files that are in a folder.
pub fn tokenizer_files(dir: &Path) -> impl Iterator<Item = PathBuf> {
    tokenizer_places(dir).filter(|path| path.exists())
}

/// Where a tokenizer's files go in a folder.
pub fn tokenizer_places(dir: &Path) -> impl Iterator<Item = PathBuf> {
    MODEL_FILES[WITHOUT_TOKENIZER..].iter().map(|name| dir.join(name))
}

/// The names of the files that hold weights in a folder, or say where they are.
fn weights_in(dir: &Path) -> Result<Vec<String>> {
    let io = |e| Error::io(dir, e);
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs_err::read_dir(dir).map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string());
    }
    names.retain(|name| shards::is_weights(name));
    names.sort();
    Ok(names)
}

/// Writes a model's folder, whole, where none is yet.
///
/// # Errors
/// A model that the layout cannot carry, whatever `source` and the tokenizer return, a fallback if
/// `strict`, a folder that is there, or the system's refusal. Nothing has been written then.
pub fn write(dir: &Path, folder: &Folder<'_>, source: &mut Weights<'_, '_>) -> Result<Written> {
    if dir.exists() {
        return Err(Error::format(dir, "expected the place of a new folder, found one"));
    }
    let (staging, fallbacks) = stage(dir, folder, source)?;
    let files = sizes(staging.path(), dir)?;
    staging.persist(dir)?;
    Ok(Written { files, fallbacks })
}

/// Writes a model's folder over what is there. What was in `dir` under other names stays, but for
/// weights and a chat template that `manifest` knows and this model does not have. A file is
/// replaced only if the manifest knows it or `overwrite` says so, after the whole model has been
/// written beside it.
///
/// # Errors
/// As [`write()`]; what [`foreign_file`] finds, without `overwrite`. Nothing in `dir` has changed
/// then.
pub fn write_over(
    dir: &Path,
    folder: &Folder<'_>,
    source: &mut Weights<'_, '_>,
    manifest: &mut Manifest,
    overwrite: bool,
) -> Result<Written> {
    let tokenizer = folder.tokenizer.is_some();
    let foreign = if overwrite { None } else { foreign_file(dir, tokenizer, manifest)? };
    if let Some(path) = foreign {
        return Err(Error::Foreign { path });
    }
    let (staging, fallbacks) = stage(dir, folder, source)?;
    let files = sizes(staging.path(), dir)?;
    if dir.exists() {
        let old = weights_in(dir)?;
        for (path, _) in &files {
            let from = staging.path().join(path.file_name().unwrap_or_default());
            fs_err::rename(from, path).map_err(|e| Error::io(path, e))?;
        }
        let template = "chat_template.jinja".to_owned();
        for path in old.into_iter().chain([template]).map(|name| dir.join(name)) {
            if files.iter().any(|(new, _)| *new == path) || !path.exists() {
                continue;
            }
            // readers would take these two for this model's, whatever lies beside them
            let read = [safetensors::FILE_NAME, safetensors::INDEX_NAME];
            let hides = path.file_name().is_some_and(|name| read.iter().any(|read| name == *read));
            if hides || manifest.is_own(&path)? {
                fs_err::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
    } else {
        staging.persist(dir)?;
    }
    for (path, _) in &files {
        manifest.add(path)?;
    }
    manifest.save()?;
    Ok(Written { files, fallbacks })
}

/// The model's folder beside its place, and the tensors that did not get the type asked for.
fn stage(
    dir: &Path,
    folder: &Folder<'_>,
    source: &mut Weights<'_, '_>,
) -> Result<(file::TemporaryFolder, Vec<Fallback>)> {
    let config = folder.config;
    let weights = arch::weights(config);
    let fallbacks = float_fallbacks(&weights, folder.layout, folder.dtype, source)?;
    if folder.strict {
        refuse_fallbacks(&dir.display().to_string(), &fallbacks)?;
    }
    // Readers convert all weights to the type config.json names: with a tensor beyond it, that is
    // float32.
    let loaded_as = if fallbacks.is_empty() { folder.dtype } else { Dtype::F32 };
    let config_json = match folder.layout {
        Layout::Transformers => config.to_transformers_json(loaded_as)?,
        Layout::Reference => config.to_minimind_json(loaded_as),
        other => {
            return Err(Error::unsupported(
                dir.display().to_string(),
                format!(
                    "a folder is written in the layouts Transformers and Reference, found {other:?}"
                ),
            ));
        }
    };
    let publics = public_tensors(&weights, folder.layout);
    let specs: Vec<TensorSpec> = publics
        .iter()
        .map(|public| {
            let kept = fallbacks.iter().any(|f| f.tensor == public.name);
            TensorSpec {
                name: public.name.clone(),
                dtype: if kept { Dtype::F32 } else { folder.dtype },
                shape: public.shape.clone(),
            }
        })
        .collect();

    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs_err::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    let staging = file::TemporaryFolder::new(parent)?;
    let at = |name: &str| staging.path().join(name);
    write_json(&at("config.json"), &config_json)?;
    write_json(&at(generation::FILE_NAME), &folder.generation.to_json(config))?;
    if let Some(save) = folder.tokenizer {
        save(staging.path())?;
    }
    shards::write(staging.path(), &specs, folder.metadata, folder.shard_bytes, |i| {
        let dtype = specs[i].dtype;
        gather(&publics[i], &weights, folder.layout, dtype.size(), |weight| {
            let (from, bytes) = source(weight)?;
            Ok(tensor::convert(bytes, from, dtype))
        })
        .map(|bytes: Cow<'_, [u8]>| bytes)
    })?;
    Ok((staging, fallbacks))
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|e| Error::format(path, e.to_string()))?;
    text.push('\n');
    file::write_bytes(path, text.as_bytes())
}

/// The files of a folder that goes to `dir`, as they are called there, with their sizes, by name.
fn sizes(staging: &Path, dir: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let io = |e| Error::io(staging, e);
    let mut files = Vec::new();
    for entry in fs_err::read_dir(staging).map_err(io)? {
        let entry = entry.map_err(io)?;
        files.push((dir.join(entry.file_name()), entry.metadata().map_err(io)?.len()));
    }
    files.sort();
    Ok(files)
}
