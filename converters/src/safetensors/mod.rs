//! safetensors in (one file or a folder of shards, by memory map) and out (streamed, whole).
//!
//! A file is a length u64, a JSON header of that many bytes, then the data. Types, header and the
//! rules that it obeys are the crate's `safetensors`; around it stand checks of our own
//! ([`check`]), whose messages name the tensor, what was expected and what was found, and which
//! refuse duplicates. A file must pass both. Source: the format's description at
//! huggingface/safetensors, README "Format".

#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod header;
pub mod shards;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use self::header::check;
use self::header::{Tensor, read_header, type_name};
pub use self::write::{TensorSpec, write};
use crate::error::{Error, Result};
use crate::file::Bytes;
use crate::tensor::{Dtype, TensorView};

/// The file of an unsharded model.
pub const FILE_NAME: &str = "model.safetensors";
/// The index of a sharded one.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// One file or several shards, open by memory map and checked.
#[derive(Debug)]
pub struct SafeTensors {
    path: PathBuf,
    files: Vec<(PathBuf, Bytes)>,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
    notes: Vec<String>,
}

/// A tensor as the header describes it, of whatever type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described<'a> {
    /// Element type, as headers spell it: `F32`, `F8_E4M3`.
    pub dtype: &'static str,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// Bytes in the file.
    pub bytes: usize,
}

impl SafeTensors {
    /// Opens one file.
    ///
    /// # Errors
    /// The file cannot be read, is a Git LFS pointer, or breaks the format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut all = Self::empty(path);
        all.add(path, Bytes::map(path)?)?;
        Ok(all)
    }

    /// Opens bytes in memory; `name` is what messages call them.
    ///
    /// # Errors
    /// As [`SafeTensors::open`].
    pub fn from_bytes(bytes: Vec<u8>, name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        let mut all = Self::empty(name);
        all.add(name, Bytes::owned(bytes, name)?)?;
        Ok(all)
    }

    /// Opens a folder's `model.safetensors`, or the shards that `model.safetensors.index.json`
    /// names. Where both are there, the one file is read and the other is named in
    /// [`SafeTensors::notes`]. Source: Transformers 5.24, `_get_resolved_checkpoint_files`, and
    /// 4.57's `from_pretrained`, tried.
    ///
    /// # Errors
    /// Neither is there, a shard is missing (found before any shard is read), a tensor lies in two
    /// shards or not in the one the index says, or a file breaks the format.
    pub fn open_folder(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let single = dir.join(FILE_NAME);
        let index_path = dir.join(INDEX_NAME);
        if single.exists() {
            let mut all = Self::open(single)?;
            if names_other_files(&index_path) {
                all.notes.push(format!(
                    "{}: {FILE_NAME} is read, as Transformers does; {INDEX_NAME} beside it and its shards are \
                     left aside",
                    dir.display()
                ));
            }
            return Ok(all);
        }
        if !index_path.exists() {
            return Err(Error::format(
                dir,
                format!("expected {FILE_NAME} or {INDEX_NAME} in the folder, found neither"),
            ));
        }
        let text = fs_err::read_to_string(&index_path).map_err(|e| Error::io(&index_path, e))?;
        let index: Index = serde_json::from_str(&text)
            .map_err(|e| Error::format(&index_path, format!("expected a weight_map: {e}")))?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort_unstable();
        names.dedup();
        let mut shards = Vec::new();
        for name in names {
            let plain = Path::new(name).file_name().is_some_and(|last| last == name.as_str());
            if !plain {
                return Err(Error::format(
                    &index_path,
                    format!("expected names of files beside it, found {name:?}"),
                ));
            }
            shards.push(dir.join(name));
        }
        let missing: Vec<String> = shards
            .iter()
            .filter(|path| !path.is_file())
            .filter_map(|path| path.file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        if !missing.is_empty() {
            return Err(Error::format(
                &index_path,
                format!(
                    "expected {} shards beside it, found no {}",
                    shards.len(),
                    missing.join(", ")
                ),
            ));
        }
        let mut all = Self::empty(dir);
        for shard in &shards {
            all.add(shard, Bytes::map(shard)?)?;
        }
        for (tensor, shard) in &index.weight_map {
            let found = all.index.get(tensor).and_then(|&i| all.tensors.get(i));
            let found = found.and_then(|t| all.files.get(t.file)).map(|(path, _)| path);
            if found.is_none_or(|path| *path != dir.join(shard)) {
                return Err(Error::format(
                    &index_path,
                    format!("tensor {tensor}: expected in {shard}, found no such tensor there"),
                ));
            }
        }
        Ok(all)
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: Vec::new(),
            tensors: Vec::new(),
            index: HashMap::new(),
            metadata: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    fn add(&mut self, path: &Path, bytes: Bytes) -> Result<()> {
        let file = self.files.len();
        let (tensors, metadata) =
            read_header(&bytes, file).map_err(|message| Error::format(path, message))?;
        for tensor in tensors {
            if self.index.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(Error::format(
                    path,
                    format!("tensor {}: expected in one shard, found in two", tensor.name),
                ));
            }
            self.tensors.push(tensor);
        }
        self.metadata.extend(metadata);
        self.files.push((path.to_owned(), bytes));
        Ok(())
    }

    /// The file, or the folder of the shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order they were read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Names of the tensors, in the order of the data.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True without tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// A tensor, in place. Nothing for one of a type that mmx does not compute with: see
    /// [`SafeTensors::describe`].
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let tensor = self.tensors.get(*self.index.get(name)?)?;
        let data = self.files.get(tensor.file)?.1.get(tensor.range.clone())?;
        Some(TensorView { dtype: Dtype::of_safetensors(tensor.dtype)?, shape: &tensor.shape, data })
    }

    /// Describes a tensor as the header does, of whatever type.
    pub fn describe(&self, name: &str) -> Option<Described<'_>> {
        let tensor = self.tensors.get(*self.index.get(name)?)?;
        let (dtype, bytes) = (type_name(tensor.dtype), tensor.range.len());
        Some(Described { dtype, shape: &tensor.shape, bytes })
    }

    /// Sentences for the user: weights beside these that are not read.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// `__metadata__`: text under text keys.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// True for an index that names files other than [`FILE_NAME`]; one that cannot be read names none.
fn names_other_files(index: &Path) -> bool {
    let text = fs_err::read_to_string(index).unwrap_or_default();
    serde_json::from_str::<Index>(&text)
        .is_ok_and(|index| index.weight_map.values().any(|name| name != FILE_NAME))
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests may panic"
)]
mod tests;
