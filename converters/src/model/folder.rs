//! A model as a folder: config.json, generation_config.json, model.safetensors and the tokenizer's files,
//! in the stock Transformers class or in MiniMind's own form. The folder appears whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::arch::{self, Config, Layout, gather, public_tensors};
use crate::error::{Error, Result};
use crate::file;
use crate::model::fallback::{Fallback, Weights, float_fallbacks, refuse_fallbacks};
use crate::model::generation::{self, Generation};
use crate::safetensors::TensorSpec;
use crate::safetensors::shards;
use crate::tensor::{self, Dtype};

/// Writes a tokenizer's files into a folder.
pub type SaveTokenizer<'a> = &'a dyn Fn(&Path) -> Result<()>;

/// What a folder is written from, besides the weights.
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

/// What was written.
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

/// The layout that carries a model as a folder: the stock class, or MiniMind's own form where the class
/// computes something else. For checkpoints; an export refuses instead.
pub fn carrying_layout(config: &Config) -> Layout {
    match config.check_carried_by(Layout::Transformers) {
        Ok(()) => Layout::Transformers,
        Err(_) => Layout::Reference,
    }
}

/// Writes a model's folder. What was in `dir` under other names stays there; a file of the same name is
/// replaced only after the whole model has been written beside it.
///
/// # Errors
/// A model that the layout cannot carry, whatever `source` and the tokenizer return, a fallback if
/// `strict`, or the system's refusal. Nothing in `dir` has changed then.
pub fn write(dir: &Path, folder: &Folder<'_>, source: &mut Weights<'_, '_>) -> Result<Written> {
    let config = folder.config;
    let weights = arch::weights(config);
    let fallbacks = float_fallbacks(&weights, folder.layout, folder.dtype, source)?;
    if folder.strict {
        refuse_fallbacks(&dir.display().to_string(), &fallbacks)?;
    }
    // Readers convert all weights to the type config.json names: with a tensor beyond it, that is float32.
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
    let staging = staging_folder(parent)?;
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
    let files = appear(staging, dir)?;
    Ok(Written { files, fallbacks })
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|e| Error::format(path, e.to_string()))?;
    text.push('\n');
    file::write_bytes(path, text.as_bytes())
}

/// A temporary folder beside the one to be written; gone again if it is dropped.
fn staging_folder(parent: &Path) -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".mmx-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o777)); // less the umask
    }
    builder.tempdir_in(parent).map_err(|e| Error::io(parent, e))
}

/// Weights of a model that was there before, in one file or in shards: readers would take them for this one's.
fn remove_other_weights(dir: &Path, written: &[(std::ffi::OsString, u64)]) -> Result<()> {
    let io = |e| Error::io(dir, e);
    for entry in fs_err::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let weights = name.to_str().is_some_and(shards::is_weights);
        if weights && !written.iter().any(|(new, _)| *new == name) {
            fs_err::remove_file(dir.join(&name)).map_err(io)?;
        }
    }
    Ok(())
}

/// Moves the finished files to their place. Returns them with their sizes, by name.
fn appear(staging: tempfile::TempDir, dir: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let io = |e| Error::io(dir, e);
    let mut files = Vec::new();
    for entry in fs_err::read_dir(staging.path()).map_err(io)? {
        let entry = entry.map_err(io)?;
        files.push((entry.file_name(), entry.metadata().map_err(io)?.len()));
    }
    files.sort();
    if dir.exists() {
        for (name, _) in &files {
            fs_err::rename(staging.path().join(name), dir.join(name)).map_err(io)?;
        }
        remove_other_weights(dir, &files)?;
    } else {
        let finished = staging.keep();
        if let Err(refused) = fs_err::rename(&finished, dir) {
            // the reason is what the user needs; what was staged is not left behind
            let _ = fs_err::remove_dir_all(&finished);
            return Err(io(refused));
        }
    }
    Ok(files.into_iter().map(|(name, bytes)| (dir.join(name), bytes)).collect())
}
