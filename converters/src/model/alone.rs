//! A `.pth` that came alone, as MiniMind publishes them (`full_sft_512.pth`): what model it is, by
//! its tensors; where its tokenizer lies; and, for adapters (`lora_identity_512.pth`), the model
//! that they belong to.
//!
//! Names and folders are those of the reference's training and evaluation scripts, 2024 to 2026.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::arch::deduce::{self, Shown};
use crate::arch::lm_config::to_lm_config;
use crate::arch::{Config, Layout};
use crate::error::{Error, Result};
use crate::model::adapter::is_adapter_folder;
use crate::model::source::{ends_of, layer_of};
use crate::pth::Pth;

/// Stages whose weights the reference puts adapters on, the usual one first.
const BASES: [&str; 4] = ["full_sft", "rlhf", "dpo", "reason"];

/// Folders of the tokenizer, from the folder of the weights: there, and as the reference's
/// repository has them beside `out` (today's, and v1's).
const TOKENIZERS: [&str; 4] = ["", "../model", "../model/minimind_tokenizer", "model"];

/// The tokenizer's folder for weights that lie in `dir`: the first of the known places that has a
/// tokenizer.json.
pub(super) fn tokenizer_folder(dir: &Path) -> Option<PathBuf> {
    let place = |place: &&str| if place.is_empty() { dir.to_owned() } else { dir.join(place) };
    TOKENIZERS.iter().map(place).find(|folder| folder.join("tokenizer.json").is_file())
}

/// The tokenizer's folder for a file of weights that holds none itself; nothing for a folder, for a
/// GGUF, and where there is none.
pub fn tokenizer_beside(path: &Path) -> Option<PathBuf> {
    let is_gguf = || path.extension().is_some_and(|extension| extension == "gguf");
    if !path.is_file() || is_gguf() {
        return None;
    }
    tokenizer_folder(folder_of(path))
}

/// The configuration of a file by its tensors, and a sentence about it.
///
/// # Errors
/// See [`deduce::from_tensors`].
pub(super) fn config(path: &Path, file: &Pth) -> Result<(Config, String)> {
    let first = file.tensor("tok_embeddings.weight").is_some();
    let called = |name: &str| if first { to_lm_config(name) } else { name.to_owned() };
    let names = file.tensors().iter().map(|tensor| tensor.name.as_str());
    let layers: HashSet<usize> = names.clone().filter_map(layer_of).collect();
    let layout = if first { Layout::LmConfig } else { Layout::Reference };
    let (head, embedding) = ends_of(layout);
    let tied = match (file.tensor(head), file.tensor(embedding)) {
        (Some(head), Some(embedding)) => {
            head.shape == embedding.shape
                && head.dtype == embedding.dtype
                && file.data(head) == file.data(embedding)
        }
        _ => true,
    };
    // [1, 1, seq, seq] in v1
    let mask = names.clone().find(|name| name.ends_with("attention.mask"));
    let longest = mask.and_then(|name| file.tensor(name)?.shape.last().copied());
    deduce::from_tensors(&Shown {
        path,
        layers: layers.len(),
        shape: &|name| file.tensor(&called(name)).map(|tensor| tensor.shape.clone()),
        called: &called,
        tied,
        longest: longest.filter(|longest| *longest > 1),
    })
}

/// True for a state dict of adapters alone.
pub(super) fn is_adapters(file: &Pth) -> bool {
    let adapter = |name: &str| name.contains(".lora.") || name.contains(".lora_");
    file.tensors().iter().all(|tensor| adapter(&tensor.name)) && !file.tensors().is_empty()
}

/// True where a path leads to adapters and not to a model of their own: PEFT's folder, or a `.pth`.
pub fn holds_adapters(path: &Path) -> bool {
    is_adapter_folder(path)
        || path.is_file() && Pth::open(path).is_ok_and(|file| is_adapters(&file))
}

/// The model that adapters belong to: the file the reference would put them on, by the width of
/// their inputs and the `_moe` of their name, in their folder or the one above (the reference keeps
/// adapters in `out/lora`).
///
/// # Errors
/// None of these is there: they are named.
pub(super) fn base_of(path: &Path, file: &Pth) -> Result<PathBuf> {
    let is_a = |name: &str| name.contains(".lora.A.") || name.contains(".lora_A.");
    let width = file.tensors().iter().find(|tensor| is_a(&tensor.name));
    let width = width.and_then(|tensor| tensor.shape.last().copied()).unwrap_or(0);
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let moe = if name.ends_with("_moe") { ["_moe", ""] } else { ["", "_moe"] };
    let dir = folder_of(path);
    for suffix in moe {
        for stage in BASES {
            for place in [dir.to_owned(), dir.join("..")] {
                let base = place.join(format!("{stage}_{width}{suffix}.pth"));
                if base.is_file() {
                    return Ok(base);
                }
            }
        }
    }
    Err(Error::format(
        path,
        format!(
            "expected a whole model, or the model of these adapters beside them as {}_{width}{}.pth, found adapters alone",
            BASES[0], moe[0]
        ),
    )
    .with_hint("`mmx import` with `base` says which model they belong to"))
}

/// The folder that a file lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
