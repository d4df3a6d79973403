//! A checkpoint to the files others read: Transformers folders, GGUFs, adapters, several from one opening.
//!
//! In: a [`Request`]. Out: a [`Report`] of every file, and of every tensor that did not get the type asked
//! for. Everything that could be refused is looked at before the first file is written.

pub mod auto;
pub mod card;
mod frontier;
mod job;
mod modelfile;
mod names;
mod source;

use std::path::{Path, PathBuf};

use mmx_converters::arch::weights;
use mmx_converters::manifest::Manifest;
use mmx_converters::model::fallback::Fallback;
use mmx_converters::model::to_gguf::size_label;
use mmx_converters::quant::imatrix::Imatrix;
use mmx_converters::tensor::Dtype;
use mmx_ggml::FileType;
use serde::Serialize;

pub use frontier::Point;
use job::{Job, Target};
use names::model_name;
pub use names::newest_checkpoint;
pub use source::Source;
use source::folder_of;

use crate::verify;
use mmx_converters::{Error, Result};

/// What to export.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The model; nothing for the newest checkpoint under `runs/`.
    pub model: Option<PathBuf>,
    /// Where the files go; nothing for `MODEL/export`.
    pub out: Option<PathBuf>,
    /// Where the tokenizer is, if not beside the weights.
    pub tokenizer: Option<PathBuf>,
    /// Transformers folders, by element type.
    pub hf: Vec<Dtype>,
    /// GGUFs, by file type.
    pub gguf: Vec<FileType>,
    /// Nothing was asked for in particular: a Transformers folder in the model's own element type, and a
    /// GGUF of type q8_0.
    pub everything: bool,
    /// A torch checkpoint under MiniMind's own names, in the model's own element type.
    pub pth: bool,
    /// The adapters alone, where the model is a base with adapters.
    pub adapter: Vec<AdapterForm>,
    /// The model that adapters without a base of their own belong to.
    pub base: Option<PathBuf>,
    /// Transformers folders in several files of at most so many bytes of tensors.
    pub shard_bytes: Option<u64>,
    /// An importance matrix for the quantized GGUFs.
    pub imatrix: Option<PathBuf>,
    /// A GGUF whose types are chosen tensor by tensor, by what they cost on a text.
    pub auto: Option<auto::Goal>,
    /// Compare every file written with the model, and put the numbers into the model cards.
    pub verify: bool,
    /// What the model cards say beyond the model itself.
    pub card: card::Words,
    /// Hears of the steps of a long search.
    pub progress: Option<fn(&str)>,
    /// A Modelfile for Ollama beside the GGUFs.
    pub ollama: Option<Ollama>,
    /// A fallback is an error.
    pub strict: bool,
    /// The model's name; nothing for its folder's.
    pub name: Option<String>,
    /// An SPDX licence name.
    pub license: Option<String>,
    /// GGUFs in several files of at most so many bytes of tensors.
    pub split_bytes: Option<u64>,
    /// NaN and infinities among the weights are written as they are.
    pub allow_non_finite: bool,
    /// Files that mmx did not write, or that were changed since, are replaced too.
    pub overwrite: bool,
}

/// How adapters are written alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterForm {
    /// PEFT's folder
    Peft,
    /// A GGUF for llama.cpp's --lora
    Gguf,
}

/// What a Modelfile says beyond the GGUF.
#[derive(Clone, Debug, Default)]
pub struct Ollama {
    /// A Go template, for versions of Ollama that do not render the GGUF's own.
    pub template: bool,
    /// The default system prompt.
    pub system: Option<String>,
}

/// What was exported.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The model.
    pub model: PathBuf,
    /// The files, in the order written.
    pub files: Vec<Exported>,
    /// Tensors that did not get the type asked for.
    pub fallbacks: Vec<FileFallback>,
    /// What was tried for `--gguf auto`, from the largest to the smallest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub frontier: Vec<Point>,
    /// The comparison asked for with `--verify`.
    #[serde(skip)]
    pub verified: Option<verify::Report>,
    /// Sentences for the user.
    pub warnings: Vec<String>,
}

/// A file written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exported {
    /// The file.
    pub path: PathBuf,
    /// `transformers`, `gguf`, `peft`, `pth`, `ollama`, `card`, `plot` or `checkpoint`.
    pub format: &'static str,
    /// Element or file type, as on the command line.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its size.
    pub bytes: u64,
    /// Time it took; a folder's time stands at its weights.
    pub seconds: f64,
}

/// A fallback, and the file it is in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileFallback {
    /// The file.
    pub path: PathBuf,
    /// What happened.
    #[serde(flatten)]
    pub fallback: Fallback,
}

/// The name of an element type on the command line.
pub fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
        _ => "f32",
    }
}

/// Exports a model.
///
/// # Errors
/// A model or tokenizer that cannot be opened, or that a target cannot carry exactly, with the reason; a target that
/// is the model itself, or that mmx did not write, without leave to overwrite it: then nothing has been written. A
/// file that the system refuses.
pub fn export(request: &Request) -> Result<Report> {
    let mut request = request.clone();
    request.name.as_deref().map(names::check_name).transpose()?;
    let asked = match &request.model {
        Some(path) => path.clone(),
        None => newest_checkpoint(Path::new("runs"))?,
    };
    let path = mmx_hub::resolve(&asked)?;
    let source = Source::open_on(&path, request.base.as_deref(), request.tokenizer.as_deref())?
        .allow_non_finite(request.allow_non_finite);
    if request.everything {
        request.hf.push(source.model.dtype());
        request.gguf.push(FileType::Q8_0);
    }
    if request.ollama.is_some() && request.gguf.is_empty() && request.auto.is_none() {
        request.gguf.push(FileType::Q8_0);
    }
    let config = &source.model.config;
    let table = weights(config);
    let label = size_label(config, &table);
    let imatrix = request.imatrix.as_deref().map(Imatrix::open).transpose()?;
    let out = request.out.clone().unwrap_or_else(|| folder_of(&asked).join("export"));
    let mut job = Job {
        manifest: Manifest::open(&out)?,
        out,
        name: request.name.clone().unwrap_or_else(|| model_name(&path)),
        tokenizer_keys: Vec::new(),
        imatrix_keys: Vec::new(),
        imatrix,
        request: &request,
        source: &source,
        table,
        label,
        report: Report {
            model: path.clone(),
            files: Vec::new(),
            fallbacks: Vec::new(),
            frontier: Vec::new(),
            verified: None,
            warnings: source.model.warnings.clone(),
        },
    };
    job.check()?;
    let modelfiles = job.modelfiles()?;
    job.check_places()?;
    // the longest part, which may find that there is no answer
    let chosen = match &request.auto {
        Some(goal) => Some(job.choose(goal)?),
        None => None,
    };
    job.write_folders()?;
    job.write_adapters()?;
    if !request.gguf.is_empty() || chosen.is_some() || request.pth {
        fs_err::create_dir_all(&job.out).map_err(|e| Error::io(&job.out, e))?;
    }
    job.write_pth()?;
    for &file_type in &request.gguf {
        job.write_gguf(&Target::Type(file_type))?;
    }
    if let Some(chosen) = chosen {
        job.write_gguf(&Target::Chosen(&chosen))?;
    }
    for (path, ty, text) in modelfiles {
        job.write_text(path, "ollama", &ty, &text)?;
    }
    if request.verify {
        job.verify()?;
    }
    job.write_cards()?;
    job.manifest.save()?;
    Ok(job.report)
}
