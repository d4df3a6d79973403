//! The export of a checkpoint to the files that others read: Transformers folders, GGUFs, adapters,
//! several from one opening.
//!
//! In: a [`Request`]. Out: a [`Report`] of every file, and of every tensor that did not get the
//! type asked for. Everything that could be refused is looked at before the first file is written.

pub mod auto;
pub mod card;
mod frontier;
mod job;
mod modelfile;
mod names;
mod report;
mod request;
mod source;

use std::path::Path;

use mmx_converters::arch::weights;
use mmx_converters::manifest::Manifest;
use mmx_converters::model::to_gguf::size_label;
use mmx_converters::quant::imatrix::Imatrix;
use mmx_ggml::FileType;

pub use frontier::Point;
use job::{Job, Target};
use names::model_name;
pub use names::newest_checkpoint;
pub use report::{Exported, FileFallback, Report, dtype_name};
pub use request::{AdapterForm, Ollama, Request};
pub use source::Source;
use source::folder_of;

use mmx_converters::{Error, Result};

/// Exports a model.
///
/// # Errors
/// A model or tokenizer that cannot be opened, or that a target cannot carry exactly, with the
/// reason; a target that is the model itself, or that mmx did not write, without leave to overwrite
/// it: then nothing has been written. A file that the system refuses.
pub fn export(request: &Request) -> Result<Report> {
    let mut request = request.clone();
    request.name.as_deref().map(names::check_name).transpose()?;
    let asked = match &request.model {
        Some(path) => path.clone(),
        None => newest_checkpoint(Path::new("runs"))?,
    };
    let path = mmx_hub::resolve(&asked)?;
    let mut source = Source::open_on(&path, request.base.as_deref(), request.tokenizer.as_deref())?
        .allow_non_finite(request.allow_non_finite);
    if let Some(stretch) = request.rope_scaling {
        stretch.apply(&mut source.model.config);
    }
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
    // it takes longest, and may find that no file meets the goal: before anything is written
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
