//! PyTorch checkpoints (`.pth`, `.pt`, `pytorch_model.bin`): a zip of a pickle and of storages, by
//! memory map.
//!
//! In: a file. Out: its state dict as names, types, shapes and bytes. The pickle is read by a
//! machine that understands tensors and plain data and nothing else (`pickle.rs`); nothing is ever
//! run. Source: torch.serialization's zip format (torch 1.6 and later), the pickle protocol's
//! documentation.

#![warn(clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod pickle;
mod write;
mod zip;

pub use write::write;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::file::Bytes;
use crate::tensor::Dtype;
use pickle::{Kind, Pickle, Value};

/// Entries under which training scripts keep the state dict beside optimizer, epoch and step.
const STATE_DICT_KEYS: [&str; 3] = ["model", "state_dict", "model_state_dict"];
/// Prefixes that wrappers put before every key: torch.compile, DataParallel.
const PREFIXES: [&str; 2] = ["_orig_mod.", "module."];

/// Elements of a view that shows its storage's values more than once (`expand`): 64 Mi, which
/// bounds what a small file can ask for; a larger one is no weight of a model that fits this
/// format.
const MAX_EXPANDED: usize = 64 << 20;

/// Keys that a message lists.
const SHOWN: usize = 8;

/// An open checkpoint.
#[derive(Debug)]
pub struct Pth {
    path: PathBuf,
    bytes: Bytes,
    tensors: Vec<PthTensor>,
    /// Tensors of types that mmx does not compute with.
    others: BTreeMap<String, &'static str>,
    index: HashMap<String, usize>,
    notes: Vec<String>,
}

/// A tensor: a strided view into a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PthTensor {
    /// Its key in the state dict, without a wrapper's prefix.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, per dimension.
    stride: Vec<usize>,
    /// The first element's place in the file, bytes.
    start: usize,
}

impl Pth {
    /// Opens a file and checks every tensor against its storage.
    ///
    /// # Errors
    /// The file cannot be read, is a Git LFS pointer or in torch's format before 1.6, its pickle
    /// names anything but tensors and plain data (with the name), or a tensor reaches beyond its
    /// storage.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(Bytes::map(path)?, path)
    }

    /// Opens a checkpoint whose bytes are in memory; `name` is what messages call them.
    ///
    /// # Errors
    /// As [`Pth::open`].
    pub fn from_bytes(bytes: Vec<u8>, name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        Self::parse(Bytes::owned(bytes, name)?, name)
    }

    fn parse(bytes: Bytes, path: &Path) -> Result<Self> {
        let Read { tensors, others, notes } =
            read(&bytes, path).map_err(|message| Error::format(path, message))?;
        let index = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self { path: path.to_owned(), bytes, tensors, others, index, notes })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors, in the order of the state dict.
    pub fn tensors(&self) -> &[PthTensor] {
        &self.tensors
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&PthTensor> {
        self.index.get(name).and_then(|&i| self.tensors.get(i))
    }

    /// Names and types of the tensors that mmx does not compute with and that [`Pth::tensors`]
    /// leaves out.
    pub fn others(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.others.iter().map(|(name, ty)| (name.as_str(), *ty))
    }

    /// The type of one of [`Pth::others`].
    pub fn other(&self, name: &str) -> Option<&'static str> {
        self.others.get(name).copied()
    }

    /// A tensor's bytes, row by row: in place where it is contiguous, else gathered along its
    /// strides.
    pub fn data(&self, tensor: &PthTensor) -> Cow<'_, [u8]> {
        let size = tensor.dtype.size();
        let count = tensor.shape.iter().product::<usize>();
        let length = count.saturating_mul(size);
        if tensor.is_contiguous() {
            let end = tensor.start.saturating_add(length);
            return Cow::Borrowed(self.bytes.get(tensor.start..end).unwrap_or_default());
        }
        let mut out = Vec::with_capacity(length);
        let mut index = vec![0usize; tensor.shape.len()];
        for _ in 0..count {
            let steps = index.iter().zip(&tensor.stride);
            let at = steps.fold(0usize, |at, (i, s)| at.saturating_add(i.saturating_mul(*s)));
            let from = tensor.start.saturating_add(at.saturating_mul(size));
            let element = self.bytes.get(from..from.saturating_add(size));
            out.extend_from_slice(element.unwrap_or_default());
            for (i, n) in index.iter_mut().zip(&tensor.shape).rev() {
                *i = i.saturating_add(1);
                if *i < *n {
                    break;
                }
                *i = 0;
            }
        }
        Cow::Owned(out)
    }

    /// Sentences for the user: which entry was taken, for instance.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

impl PthTensor {
    fn is_contiguous(&self) -> bool {
        let mut expected = 1usize;
        for (n, stride) in self.shape.iter().zip(&self.stride).rev() {
            if *n != 1 && *stride != expected {
                return false;
            }
            expected = expected.saturating_mul(*n);
        }
        true
    }
}

/// The contents of a file, read and checked.
struct Read {
    tensors: Vec<PthTensor>,
    others: BTreeMap<String, &'static str>,
    notes: Vec<String>,
}

fn read(bytes: &[u8], path: &Path) -> Result<Read, String> {
    let archive = zip::Archive::read(bytes)?;
    let root = archive
        .names()
        .find_map(|name| name.strip_suffix("data.pkl").filter(|root| root.ends_with('/')))
        .ok_or("expected a torch checkpoint with an entry data.pkl, found a zip without one")?
        .to_owned();
    if let Some(order) = archive.get(&format!("{root}byteorder"))?
        && bytes.get(order) != Some(b"little")
    {
        return Err("expected little-endian storages, found another byte order".to_owned());
    }
    let data = archive.get(&format!("{root}data.pkl"))?.ok_or("expected an entry data.pkl")?;
    let pickle = Pickle::read(bytes.get(data).unwrap_or_default())
        .map_err(|message| format!("data.pkl: {message}"))?;
    let mut notes = Vec::new();
    let (mut tensors, mut others) = (Vec::new(), BTreeMap::new());
    let mut plain: Vec<&str> = Vec::new();
    let mut unwrapped: HashMap<String, String> = HashMap::new();
    for (key, value) in state_dict(&pickle, path, &mut notes)? {
        let Value::Tensor(view) = value else {
            plain.push(key);
            continue;
        };
        let view = pickle.tensor(*view).ok_or("expected a tensor")?;
        let mut name = key;
        while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
            name = rest;
        }
        if let Some(other) = unwrapped.insert(name.to_owned(), key.to_owned()) {
            return Err(format!(
                "keys {other} and {key}: expected two tensors, found one name {name}"
            ));
        }
        let dtype = match view.dtype {
            Kind::Known(dtype) => dtype,
            Kind::Other(ty) => {
                others.insert(name.to_owned(), ty);
                continue;
            }
        };
        let entry = format!("{root}data/{}", view.storage);
        let storage = archive
            .get(&entry)?
            .ok_or_else(|| format!("tensor {name}: expected the entry {entry}, found none"))?;
        tensors.push(place(name, view, dtype, storage)?);
    }
    if tensors.is_empty() && others.is_empty() {
        return Err("expected a state dict of tensors, found none".to_owned());
    }
    if !plain.is_empty() {
        let more = if plain.len() > SHOWN { ", ..." } else { "" };
        let entries = if plain.len() == 1 { "entry" } else { "entries" };
        notes.push(format!(
            "{}: {} {entries} of the state dict, no tensors, are left aside: {}{more}",
            path.display(),
            plain.len(),
            plain.get(..SHOWN).unwrap_or(&plain).join(", ")
        ));
    }
    Ok(Read { tensors, others, notes })
}

/// The entries of the state dict: the top level, or the entry of a resume file that holds it.
fn state_dict<'a>(
    pickle: &'a Pickle,
    path: &Path,
    notes: &mut Vec<String>,
) -> Result<Vec<(&'a str, &'a Value)>, String> {
    let top = pickle.dict(pickle.result()).ok_or("expected a dict at the top, found other data")?;
    let holds_tensors = |entries: &[(&str, &Value)]| {
        entries.iter().any(|(_, value)| matches!(value, Value::Tensor(_)))
    };
    if holds_tensors(&top) {
        return Ok(top);
    }
    for wanted in STATE_DICT_KEYS {
        let found = top.iter().find(|(key, _)| *key == wanted);
        let inner = found.and_then(|(_, value)| pickle.dict(value));
        if let Some(inner) = inner.filter(|inner| holds_tensors(inner)) {
            let others: Vec<&str> =
                top.iter().map(|(key, _)| *key).filter(|key| *key != wanted).collect();
            notes.push(format!(
                "{}: a resume file: its entry {wanted} is taken, the rest is left alone ({})",
                path.display(),
                others.join(", ")
            ));
            return Ok(inner);
        }
    }
    let keys: Vec<&str> = top.iter().take(SHOWN).map(|(key, _)| *key).collect();
    Err(format!(
        "expected tensors at the top or under {}, found the keys {}",
        STATE_DICT_KEYS.join(", "),
        keys.join(", ")
    ))
}

/// Checks that a view stays within its storage.
fn place(
    name: &str,
    view: &pickle::TensorView,
    dtype: Dtype,
    storage: std::ops::Range<usize>,
) -> Result<PthTensor, String> {
    let what = format!("tensor {name}");
    let size = dtype.size();
    let held = storage.len().checked_div(size).unwrap_or(0);
    if view.shape.len() != view.stride.len() {
        return Err(format!(
            "{what}: expected as many strides as dimensions ({}), found {}",
            view.shape.len(),
            view.stride.len()
        ));
    }
    let elements = view.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    // the last element's place; an empty tensor reaches nowhere
    let last = view.shape.iter().zip(&view.stride).try_fold(view.offset, |at, (&n, &stride)| {
        at.checked_add(n.saturating_sub(1).checked_mul(stride)?)
    });
    let fits = match (elements, last) {
        (Some(0), _) => view.offset <= held,
        (Some(n), Some(last)) => n <= held.max(MAX_EXPANDED) && last < held,
        _ => false,
    };
    if !fits {
        return Err(format!(
            "{what}: expected a view within the {held} elements of storage {}, found shape {:?}, strides {:?}, offset {}",
            view.storage, view.shape, view.stride, view.offset
        ));
    }
    let start = view.offset.checked_mul(size).and_then(|at| at.checked_add(storage.start));
    Ok(PthTensor {
        name: name.to_owned(),
        dtype,
        shape: view.shape.clone(),
        stride: view.stride.clone(),
        start: start.ok_or_else(|| format!("{what}: its place lies beyond the address space"))?,
    })
}

#[cfg(test)]
mod tests;
