//! What an export is asked for.

use std::path::PathBuf;

use mmx_converters::tensor::Dtype;
use mmx_ggml::FileType;

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
    pub auto: Option<Goal>,
    /// Compare every file written with the model, and put the numbers into the model cards.
    pub verify: bool,
    /// What the model cards say beyond the model itself.
    pub card: Words,
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

/// What is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// The bound.
    pub limit: Limit,
    /// The text to measure on; nothing for a built-in one.
    pub text: Option<PathBuf>,
    /// Tokens of it that are used.
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

/// What the user says of the model.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// Languages by their ISO 639-1 codes.
    pub languages: Vec<String>,
    /// The model this one was made from, by its name on the hub.
    pub base_model: Option<String>,
    /// Data sets it was trained on, by their names on the hub.
    pub datasets: Vec<String>,
}
