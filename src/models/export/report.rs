//! The report of an export.

use std::path::PathBuf;

use mmx_converters::model::fallback::Fallback;
use mmx_converters::tensor::Dtype;
use serde::Serialize;

use super::frontier::Point;
use crate::verify;

/// The outcome of an export.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The model.
    pub model: PathBuf,
    /// The files, in the order written.
    pub files: Vec<Exported>,
    /// Tensors that did not get the type asked for.
    pub fallbacks: Vec<FileFallback>,
    /// Points that were tried for `--gguf auto`, from the largest to the smallest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub frontier: Vec<Point>,
    /// The comparison asked for with `--verify`.
    #[serde(skip)]
    pub verified: Option<verify::Report>,
    /// Warnings, a sentence each.
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
    /// Seconds that it took; a folder's stand at its weights.
    pub seconds: f64,
}

/// A fallback, and the file it is in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileFallback {
    /// The file.
    pub path: PathBuf,
    /// The tensor, and the types meant and used.
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
