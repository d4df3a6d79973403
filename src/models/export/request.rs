//! The request for an export.

use std::path::PathBuf;

use mmx_converters::arch::Stretch;
use mmx_converters::tensor::Dtype;
use mmx_ggml::FileType;

use crate::consumers::check::Report;

/// A request for an export.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The model; nothing for the newest checkpoint under `runs/`.
    pub model: Option<PathBuf>,
    /// Folder of the files; nothing for `MODEL/export`.
    pub out: Option<PathBuf>,
    /// Place of the tokenizer, if not beside the weights.
    pub tokenizer: Option<PathBuf>,
    /// Transformers folders, by element type.
    pub hf: Vec<Dtype>,
    /// GGUFs, by file type.
    pub gguf: Vec<FileType>,
    /// True where no format was asked for: then it is a Transformers folder in the model's own
    /// element type, and a GGUF of type q8_0.
    pub everything: bool,
    /// True for a torch checkpoint under MiniMind's own names, in the model's own element type.
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
    pub auto: Option<Goal>,
    /// True to compare every file written with the model, and put the numbers into the model cards.
    pub verify: bool,
    /// Words of the model cards beyond the model itself.
    pub card: Words,
    /// Hears of the steps of a long search.
    pub progress: Option<fn(&str)>,
    /// A Modelfile for Ollama beside the GGUFs.
    pub ollama: Option<Ollama>,
    /// True where a fallback is an error.
    pub strict: bool,
    /// The model's name; nothing for its folder's.
    pub name: Option<String>,
    /// An SPDX licence name.
    pub license: Option<String>,
    /// GGUFs in several files of at most so many bytes of tensors.
    pub split_bytes: Option<u64>,
    /// True where NaN and infinities among the weights are written as they are.
    pub allow_non_finite: bool,
    /// True where files that mmx did not write, or that were changed since, are replaced too.
    pub overwrite: bool,
    /// What programs made of the files, for the model cards.
    pub checks: Option<Report>,
    /// A longer context by stretched rotary positions.
    pub rope_scaling: Option<Stretch>,
}

/// A form in which adapters are written alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterForm {
    /// PEFT's folder
    Peft,
    /// A GGUF for llama.cpp's --lora
    Gguf,
}

/// The parts of a Modelfile beyond the GGUF.
#[derive(Clone, Debug, Default)]
pub struct Ollama {
    /// True for a Go template, for versions of Ollama that do not render the GGUF's own.
    pub template: bool,
    /// The default system prompt.
    pub system: Option<String>,
}

/// The goal of a search for types.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// The bound.
    pub limit: Limit,
    /// The text to measure on; nothing for a built-in one.
    pub text: Option<PathBuf>,
    /// Number of the text's tokens that are used.
    pub tokens: usize,
}

/// A bound on one of size and divergence; the other is made as small as it gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Mean KL divergence from the checkpoint, nats.
    MaxKl(f64),
    /// Bytes of the file.
    TargetSize(u64),
}

/// The user's words for a model card.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// Languages by their ISO 639-1 codes.
    pub languages: Vec<String>,
    /// The model this one was made from, by its name on the hub.
    pub base_model: Option<String>,
    /// Data sets it was trained on, by their names on the hub.
    pub datasets: Vec<String>,
}
