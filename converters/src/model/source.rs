//! The tensors of a model's file, whatever its form, and whether they are those of a layout.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::arch::rope_freqs::ROPE_FREQS;
use crate::arch::{Config, Layout, Public};
use crate::error::TensorReport;
use crate::gguf::{GgmlType, Gguf};
use crate::pth::Pth;
use crate::safetensors::SafeTensors;
use crate::tensor::{self, Dtype};

/// The output head of an untied model.
pub(super) const HEAD: &str = "lm_head.weight";
/// The output head in MiniMind's first class.
const LM_CONFIG_HEAD: &str = "output.weight";
/// The embedding, and the head of a tied model.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";

/// The file, or files, that a model's tensors are read from.
#[derive(Debug)]
pub(super) enum Source {
    SafeTensors(SafeTensors),
    Gguf(Box<Gguf>),
    Pth(Pth),
}

/// A tensor of the source, in place.
pub(super) struct Stored<'a> {
    pub(super) ty: GgmlType,
    pub(super) shape: &'a [usize],
    pub(super) data: Cow<'a, [u8]>,
}

impl Source {
    pub(super) fn names(&self) -> Vec<&str> {
        match self {
            Self::SafeTensors(file) => file.names().collect(),
            Self::Gguf(file) => file.tensors().iter().map(|t| t.name.as_str()).collect(),
            Self::Pth(file) => {
                let tensors = file.tensors().iter().map(|t| t.name.as_str());
                tensors.chain(file.others().map(|(name, _)| name)).collect()
            }
        }
    }

    /// A tensor's type and shape. Nothing for an absent tensor; the type's name for one that no
    /// weight can have.
    pub(super) fn info(&self, name: &str) -> Option<Result<(GgmlType, &[usize]), &'static str>> {
        let float = |dtype: Dtype| match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64 => {
                GgmlType::from_dtype(dtype).ok_or(dtype.safetensors_name())
            }
            other => Err(other.safetensors_name()),
        };
        let (ty, shape) = match self {
            Self::SafeTensors(file) => match file.get(name) {
                Some(view) => (float(view.dtype), view.shape),
                None => return Some(Err(file.describe(name)?.dtype)),
            },
            Self::Pth(file) => match file.tensor(name) {
                Some(tensor) => (float(tensor.dtype), tensor.shape.as_slice()),
                None => return Some(Err(file.other(name)?)),
            },
            Self::Gguf(file) => {
                let tensor = file.tensor(name)?;
                let ty = match tensor.ty {
                    GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 => {
                        Err(tensor.ty.name())
                    }
                    ty => Ok(ty),
                };
                (ty, tensor.shape.as_slice())
            }
        };
        Some(ty.map(|ty| (ty, shape)))
    }

    /// The size and CRC-32 of all tensors, with their names, types and shapes.
    pub(super) fn mark(&self) -> (u64, u32) {
        let mut names = self.names();
        names.sort_unstable();
        let (mut hash, mut bytes) = (crc32fast::Hasher::new(), 0);
        for name in names {
            let Some(Ok(Stored { ty, shape, data })) = self.get(name) else { continue };
            hash.update(format!("{name} {} {shape:?}\n", ty.name()).as_bytes());
            hash.update(&data);
            bytes += data.len() as u64;
        }
        (bytes, hash.finalize())
    }

    /// A tensor with its bytes: in place, but for strided tensors of a `.pth`.
    pub(super) fn get(&self, name: &str) -> Option<Result<Stored<'_>, &'static str>> {
        let (ty, shape) = match self.info(name)? {
            Ok(found) => found,
            Err(dtype) => return Some(Err(dtype)),
        };
        let data = match self {
            Self::SafeTensors(file) => Cow::Borrowed(file.get(name)?.data),
            Self::Gguf(file) => Cow::Borrowed(file.data(file.tensor(name)?)),
            Self::Pth(file) => file.data(file.tensor(name)?),
        };
        Some(Ok(Stored { ty, shape, data }))
    }
}

/// A tensor's values, where it is of no block type.
pub(super) fn plain_f32(stored: &Stored<'_>) -> Option<Vec<f32>> {
    let dtype = stored.ty.dtype()?;
    Some(tensor::TensorView { dtype, shape: stored.shape, data: &stored.data }.to_f32())
}

/// The output head's name in a layout, and the embedding's.
pub(super) fn ends_of(layout: Layout) -> (&'static str, &'static str) {
    match layout {
        Layout::LmConfig => (LM_CONFIG_HEAD, "tok_embeddings.weight"),
        _ => (HEAD, EMBEDDING),
    }
}

fn is_head(name: &str, source: &Source) -> bool {
    name == HEAD || name == LM_CONFIG_HEAD && !matches!(source, Source::Gguf(_))
}

/// Names of tables that old checkpoints carry and that follow from the configuration.
fn is_buffer(name: &str) -> bool {
    ["freqs_cos", "freqs_sin", "pos_cis", "rotary_emb.inv_freq", "attention.mask"]
        .iter()
        .any(|table| name == *table || name.ends_with(&format!(".{table}")))
}

/// The number in `model.layers.N.`, `blk.N.` or `layers.N.`.
pub(super) fn layer_of(name: &str) -> Option<usize> {
    let rest = ["model.layers.", "blk.", "layers."].iter().find_map(|p| name.strip_prefix(p))?;
    rest.split_once('.')?.0.parse().ok()
}

/// A file with more or fewer layers than the configuration asks for, said in one sentence.
pub(super) fn other_layer_count(config: &Config, names: &[&str]) -> Option<TensorReport> {
    let asked = config.num_hidden_layers;
    let layers: HashSet<usize> = names.iter().filter_map(|name| layer_of(name)).collect();
    if layers.is_empty() || layers.len() == asked {
        return None; // other names altogether: the report says which
    }
    let mut beyond: Vec<&&str> =
        names.iter().filter(|name| layer_of(name).is_some_and(|n| n >= asked)).collect();
    beyond.sort_by_key(|name| (layer_of(name), **name));
    let first = beyond
        .first()
        .map_or_else(String::new, |name| format!("; the first tensor too many is {name}"));
    let found = layers.len();
    let note = format!("expected {asked} layers (num_hidden_layers), found {found} layers{first}");
    Some(TensorReport { note: Some(note), ..TensorReport::default() })
}

/// What a file holds beside a model's weights.
#[derive(Default)]
pub(super) struct Aside {
    /// Tables that follow from the configuration.
    pub(super) buffers: Vec<String>,
    /// Tensors that cannot be weights by their type: `steps (I64)`.
    pub(super) others: Vec<String>,
}

/// Compares the file's tensors with those of a layout; also what is left aside.
pub(super) fn compare(
    publics: &[Public],
    source: &Source,
    config: &Config,
) -> (TensorReport, Aside) {
    let mut report = TensorReport::default();
    let mut aside = Aside::default();
    // llama.cpp drops trailing dimensions of one, which are leading ones here
    fn significant(shape: &[usize]) -> &[usize] {
        let ones = shape.iter().take_while(|&&n| n == 1).count();
        &shape[ones..]
    }
    for public in publics {
        match source.info(&public.name) {
            None => report.missing.push(public.name.clone()),
            Some(Err(dtype)) => report.mismatched.push((
                public.name.clone(),
                "a float type".to_owned(),
                dtype.to_owned(),
            )),
            Some(Ok((_, shape))) => {
                let same = shape == public.shape
                    || (matches!(source, Source::Gguf(_))
                        && significant(shape) == significant(&public.shape));
                if !same {
                    report.mismatched.push((
                        public.name.clone(),
                        format!("shape {:?}", public.shape),
                        format!("{shape:?}"),
                    ));
                }
            }
        }
    }
    let expected: HashSet<&str> = publics.iter().map(|public| public.name.as_str()).collect();
    let mut names = source.names();
    names.sort_unstable();
    for name in names.into_iter().filter(|name| !expected.contains(name)) {
        if name == ROPE_FREQS && matches!(source, Source::Gguf(_)) {
            continue; // the configuration has read it
        }
        if is_buffer(name) {
            aside.buffers.push(name.to_owned());
        } else if !matches!(source, Source::Gguf(_)) // llama.cpp takes no tensor too many
            && let Some(Err(ty)) = source.info(name)
        {
            aside.others.push(format!("{name} ({ty})"));
        } else if !(is_head(name, source) && config.tie_word_embeddings) {
            report.unexpected.push(name.to_owned());
        }
    }
    (report, aside)
}
