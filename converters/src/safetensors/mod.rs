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

pub mod shards;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::{Dtype as AnyDtype, Metadata, TensorInfo, View};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::error::{Error, Result};
use crate::file::{self, Bytes};
use crate::tensor::{Dtype, TensorView};

/// Longest header that is believed. Source: MAX_HEADER_SIZE of the safetensors crate.
const MAX_HEADER: u64 = 100_000_000;
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

#[derive(Debug)]
struct Tensor {
    name: String,
    dtype: AnyDtype,
    shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
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

/// The header as it stands in the file: order and duplicates kept, so that duplicates can be
/// refused.
struct Header {
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
}

/// [`TensorInfo`] with a type that need not be one.
#[derive(Deserialize)]
struct Entry {
    dtype: serde_json::Value,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl Entry {
    fn checked(self) -> Result<TensorInfo, String> {
        let Self { dtype, shape, data_offsets } = self;
        let known = AnyDtype::deserialize(&dtype)
            .map_err(|_| format!("expected a dtype of the format, found {dtype}"))?;
        Ok(TensorInfo { dtype: known, shape, data_offsets })
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                use serde::de::Error as _;
                let mut tensors = Vec::new();
                let mut metadata: Option<Option<BTreeMap<String, String>>> = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        if metadata.replace(map.next_value()?).is_some() {
                            return Err(A::Error::custom(
                                "__metadata__: expected once, found twice",
                            ));
                        }
                        continue;
                    }
                    let entry = map.next_value().map_err(|e| e.to_string());
                    let info = entry.and_then(Entry::checked);
                    let info = info.map_err(|e| A::Error::custom(format!("tensor {key}: {e}")))?;
                    tensors.push((key, info));
                }
                Ok(Header { tensors, metadata: metadata.flatten().unwrap_or_default() })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A type's name in headers.
fn type_name(dtype: AnyDtype) -> &'static str {
    use AnyDtype as D;
    match dtype {
        D::BOOL => "BOOL",
        D::F4 => "F4",
        D::F6_E2M3 => "F6_E2M3",
        D::F6_E3M2 => "F6_E3M2",
        D::U8 => "U8",
        D::I8 => "I8",
        D::F8_E5M2 => "F8_E5M2",
        D::F8_E4M3 => "F8_E4M3",
        D::F8_E8M0 => "F8_E8M0",
        D::F8_E4M3FNUZ => "F8_E4M3FNUZ",
        D::F8_E5M2FNUZ => "F8_E5M2FNUZ",
        D::I16 => "I16",
        D::U16 => "U16",
        D::F16 => "F16",
        D::BF16 => "BF16",
        D::I32 => "I32",
        D::U32 => "U32",
        D::F32 => "F32",
        D::C64 => "C64",
        D::F64 => "F64",
        D::I64 => "I64",
        D::U64 => "U64",
        _ => "a type newer than mmx",
    }
}

type Checked = (Vec<Tensor>, BTreeMap<String, String>);

/// Checks a file twice, as the crate and as mmx does, and gives what its header says.
fn read_header(bytes: &[u8], file: usize) -> Result<Checked, String> {
    let Header { tensors, metadata } = own_header(bytes)?;
    let (length, infos) = ::safetensors::SafeTensors::read_metadata(bytes)
        .map_err(|e| format!("expected a file as the format describes it, found: {e}"))?;
    let begin = length.saturating_add(size_of::<u64>());
    let mut read = Vec::with_capacity(tensors.len());
    for (name, _) in tensors {
        let info = infos.info(&name).ok_or_else(|| format!("tensor {name}: found by one check"))?;
        let (start, end) = info.data_offsets;
        let range = start.saturating_add(begin)..end.saturating_add(begin);
        let (dtype, shape) = (info.dtype, info.shape.clone());
        read.push(Tensor { name, dtype, shape, file, range });
    }
    Ok((read, metadata))
}

/// Runs mmx's own checks of a whole file, without those of the crate `safetensors`: what makes the
/// sentences, and what the fuzz target holds against the crate.
///
/// # Errors
/// A sentence with the tensor, what was expected and what was found.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    own_header(bytes).map(|_| ())
}

/// The header, checked; tensors in the order of the data.
fn own_header(bytes: &[u8]) -> Result<Header, String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!(
            "expected 8 bytes of header length, found a file of {} bytes",
            bytes.len()
        ));
    };
    let declared = u64::from_le_bytes(*length);
    if rest.is_empty() {
        return Err(format!("expected a header, found only a declared length of {declared}"));
    }
    let length = usize::try_from(declared).ok().filter(|&n| n > 0 && n <= rest.len());
    let Some((header, data)) =
        length.filter(|_| declared <= MAX_HEADER).and_then(|n| rest.split_at_checked(n))
    else {
        return Err(format!(
            "expected a header of 1 to {} bytes, found a declared length of {declared}",
            rest.len().min(usize::try_from(MAX_HEADER).unwrap_or(usize::MAX))
        ));
    };
    let mut header: Header =
        serde_json::from_slice(header).map_err(|e| format!("expected a JSON header: {e}"))?;
    let mut seen = std::collections::HashSet::new();
    if let Some((name, _)) = header.tensors.iter().find(|(name, _)| !seen.insert(name.as_str())) {
        return Err(format!("tensor {name}: expected once, found twice"));
    }
    for (name, info) in &header.tensors {
        check_entry(name, info, data.len())?;
    }
    // the data is covered exactly: no overlap, no gap, nothing after it
    header.tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut next = 0usize;
    for (name, info) in &header.tensors {
        let (start, end) = info.data_offsets;
        if start != next {
            return Err(format!(
                "tensor {name}: expected its bytes to begin at {next}, the end of the tensor before it, found {start}"
            ));
        }
        next = end;
    }
    if next != data.len() {
        return Err(format!("expected {next} bytes of tensors, found {}", data.len()));
    }
    Ok(header)
}

/// Checks one entry against the size of the data.
fn check_entry(name: &str, info: &TensorInfo, data: usize) -> Result<(), String> {
    let what = format!("tensor {name}");
    let (start, end) = info.data_offsets;
    let Some(found) = end.checked_sub(start).filter(|_| end <= data) else {
        return Err(format!(
            "{what}: expected data_offsets in order within {data} bytes, found [{start}, {end}]"
        ));
    };
    let (dtype, shape) = (type_name(info.dtype), &info.shape);
    let elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
    if bits.is_some_and(|bits| !bits.is_multiple_of(8)) {
        return Err(format!("{what}: expected whole bytes of {dtype}, found shape {shape:?}"));
    }
    let size = bits.and_then(|bits| bits.checked_div(8));
    if size != Some(found) {
        let size = size.map_or_else(|| "more than 2^64".to_owned(), |n| n.to_string());
        return Err(format!(
            "{what}: expected {size} bytes for {dtype} {shape:?}, found data_offsets of {found} bytes"
        ));
    }
    Ok(())
}

/// A tensor in the form that the crate's own writers take.
impl View for TensorView<'_> {
    fn dtype(&self) -> AnyDtype {
        self.dtype.to_safetensors()
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes the tensor takes.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>().saturating_mul(self.dtype.size())
    }
}

/// Writes a file, whole or not at all, with `__metadata__` `{"format": "pt"}` and `extra` after it.
///
/// `data(i)` gives the bytes of `tensors[i]`, called once for each: wider element types first (so
/// that each tensor is aligned to its elements), else in the order given. Returns the file's size
/// in bytes.
///
/// The header's entries are the crate's, and checked by it. Its `serialize_to_file` cannot be the
/// writer: it sorts by name, puts `__metadata__` in an order that changes from run to run, and has
/// no place for data that fail.
///
/// # Errors
/// A name given twice, bytes of another number than shape and type say, whatever `data` returns, or
/// the system's refusal.
pub fn write<'a>(
    path: &Path,
    tensors: &[TensorSpec],
    extra: &BTreeMap<String, String>,
    mut data: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<u64> {
    let mut order: Vec<(usize, &TensorSpec)> = tensors.iter().enumerate().collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.size())); // stable
    let broken = |what: String| Error::format(path, what);
    let mut header = serde_json::Map::new();
    let mut metadata = serde_json::Map::new();
    metadata.insert("format".to_owned(), "pt".into());
    metadata.extend(extra.iter().map(|(key, text)| (key.clone(), text.as_str().into())));
    header.insert("__metadata__".to_owned(), metadata.into());
    let mut infos = Vec::with_capacity(order.len());
    let mut offset = 0usize;
    for (_, tensor) in &order {
        let end = offset.saturating_add(tensor.bytes());
        let info = TensorInfo {
            dtype: tensor.dtype.to_safetensors(),
            shape: tensor.shape.clone(),
            data_offsets: (offset, end),
        };
        let entry = serde_json::to_value(&info).map_err(|e| broken(e.to_string()))?;
        if header.insert(tensor.name.clone(), entry).is_some() {
            return Err(broken(format!("tensor {}: expected once, found twice", tensor.name)));
        }
        infos.push((tensor.name.clone(), info));
        offset = end;
    }
    Metadata::new(None, infos).map_err(|e| broken(e.to_string()))?;
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // the data begins at a multiple of 8, as the format recommends
    header.resize(header.len().next_multiple_of(8), b' ');
    let total = header.len().saturating_add(8).saturating_add(offset);
    let io = |e| Error::io(path, e);
    file::write_whole(path, |out: &mut dyn Write| {
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        out.write_all(&header).map_err(io)?;
        for &(i, tensor) in &order {
            let bytes = data(i)?;
            if bytes.len() != tensor.bytes() {
                return Err(Error::format(
                    path,
                    format!(
                        "tensor {}: expected {} bytes of {} {:?}, found {}",
                        tensor.name,
                        tensor.bytes(),
                        tensor.dtype.safetensors_name(),
                        tensor.shape,
                        bytes.len()
                    ),
                ));
            }
            out.write_all(&bytes).map_err(io)?;
        }
        Ok(())
    })?;
    Ok(total as u64)
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests may panic"
)]
mod tests {
    use super::*;

    fn case(path: &str) -> PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/cases/files")).join(path)
    }

    fn check_refused(result: Result<SafeTensors>, words: &[&str]) {
        let text = result.map(|_| ()).unwrap_err().to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        for word in words {
            assert!(text.contains(word), "expected {word:?} in: {text}");
        }
    }

    fn rejects(path: &str, words: &[&str]) {
        let file = case(path);
        assert!(file.is_file(), "missing fixture {}", file.display());
        check_refused(SafeTensors::open(&file), words);
        check_refused(SafeTensors::open(&file), &[path.rsplit('/').next().unwrap()]);
    }

    fn raw(header: &str, data: usize) -> Vec<u8> {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        out.resize(out.len() + data, 7);
        out
    }

    #[test]
    fn rejects_hostile_header_lengths() {
        rejects("st-header-length/max.safetensors", &["18446744073709551615"]);
        rejects("st-header-length/beyond.safetensors", &["1099511627776"]);
        rejects("st-header-length/short.safetensors", &["found a file of 5 bytes"]);
        rejects("st-header-length/notjson.safetensors", &["JSON header"]);
        rejects("st-header-length/zero.safetensors", &["declared length of 0"]);
    }

    #[test]
    fn rejects_shapes_that_disagree_with_offsets() {
        let file = |name: &str| format!("st-shape-vs-offsets/{name}.safetensors");
        rejects(&file("small-range"), &["model.norm.weight", "4000000 bytes", "16 bytes"]);
        rejects(&file("overflow"), &["expected", "bytes for F32"]);
        rejects(&file("reversed"), &["model.norm.weight", "[16, 8]"]);
        rejects(&file("dtype"), &["model.norm.weight", "F99"]);
    }

    #[test]
    fn rejects_a_git_lfs_pointer() {
        rejects("st-lfs-pointer/model.safetensors", &["Git LFS pointer", "52193280 bytes"]);
    }

    #[test]
    fn rejects_a_missing_shard_by_name() {
        let folder = case("st-index-missing-shard");
        check_refused(
            SafeTensors::open_folder(folder),
            &["model.safetensors.index.json", "model-00002-of-00002.safetensors"],
        );
    }

    #[test]
    fn rejects_overlaps_gaps_and_duplicates() {
        let entry = |name: &str, start: usize, end: usize| {
            let n = (end - start) / 4;
            format!(r#""{name}":{{"dtype":"F32","shape":[{n}],"data_offsets":[{start},{end}]}}"#)
        };
        let file = |entries: &[String], data: usize| {
            SafeTensors::from_bytes(raw(&format!("{{{}}}", entries.join(",")), data), "raw")
        };
        assert!(file(&[entry("b", 8, 16), entry("a", 0, 8)], 16).is_ok());
        check_refused(file(&[entry("a", 0, 8), entry("b", 4, 12)], 12), &["tensor b", "at 8"]);
        check_refused(file(&[entry("a", 0, 8), entry("b", 12, 16)], 16), &["tensor b", "at 8"]);
        check_refused(file(&[entry("a", 4, 8)], 8), &["tensor a", "at 0"]);
        check_refused(file(&[entry("a", 0, 8)], 12), &["expected 8 bytes", "found 12"]);
        check_refused(file(&[entry("a", 0, 8), entry("a", 8, 16)], 16), &["tensor a", "twice"]);
        check_refused(file(&[r#""a":{"dtype":"F32"}"#.into()], 0), &["tensor a", "shape"]);
    }

    #[test]
    fn rejects_shards_outside_the_folder_and_tensors_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let index = |map: &str| {
            let text = format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#);
            fs_err::write(dir.path().join(INDEX_NAME), text).unwrap();
            SafeTensors::open_folder(dir.path())
        };
        check_refused(index(r#"{"a":"../x.safetensors"}"#), &["../x.safetensors"]);
        let spec = TensorSpec { name: "a".into(), dtype: Dtype::U8, shape: vec![1] };
        for name in ["1.safetensors", "2.safetensors"] {
            let path = dir.path().join(name);
            write(&path, std::slice::from_ref(&spec), &BTreeMap::new(), |_| Ok(vec![1].into()))
                .unwrap();
        }
        assert!(index(r#"{"a":"2.safetensors"}"#).unwrap().get("a").is_some());
        check_refused(index(r#"{"b":"1.safetensors"}"#), &["tensor b", "1.safetensors"]);
        check_refused(index(r#"{"a":"1.safetensors","b":"2.safetensors"}"#), &["in two"]);
        check_refused(
            SafeTensors::open_folder(dir.path().join("none")),
            &["model.safetensors or model.safetensors.index.json"],
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let specs: Vec<_> = [
            ("half", Dtype::F16, vec![3]),
            ("single", Dtype::F32, vec![2, 2]),
            ("empty", Dtype::F32, vec![0]),
        ]
        .into_iter()
        .map(|(name, dtype, shape)| TensorSpec { name: name.into(), dtype, shape })
        .collect();
        let extra = BTreeMap::from([("step".to_owned(), "12".to_owned())]);
        let data = |i: usize| Ok(Cow::Owned(vec![i as u8; specs[i].bytes()]));
        let size = write(&path, &specs, &extra, data).unwrap();
        let first = fs_err::read(&path).unwrap();
        assert_eq!(size, first.len() as u64);
        write(&path, &specs, &extra, data).unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), first, "the same input gives the same bytes");
        let file = SafeTensors::open(&path).unwrap();
        assert_eq!(file.metadata()["format"], "pt");
        assert_eq!(file.metadata()["step"], "12");
        assert_eq!(file.names().collect::<Vec<_>>(), ["single", "empty", "half"]);
        let half = file.get("half").unwrap();
        assert_eq!((half.dtype, half.shape, half.data), (Dtype::F16, &[3][..], &[0; 6][..]));
        assert_eq!(file.get("single").unwrap().data, [1; 16]);
        assert!(file.get("other").is_none());
        let header = u64::from_le_bytes(first[..8].try_into().unwrap());
        assert!(header.is_multiple_of(8), "the data is aligned");
    }

    #[test]
    fn a_tensor_of_any_type_of_the_format_is_described_and_the_others_are_read() {
        let types = [
            ("I8", 8),
            ("U16", 16),
            ("I16", 16),
            ("U32", 32),
            ("U64", 64),
            ("C64", 64),
            ("F4", 4),
            ("F6_E2M3", 6),
            ("F6_E3M2", 6),
            ("F8_E4M3", 8),
            ("F8_E5M2", 8),
            ("F8_E8M0", 8),
            ("F8_E4M3FNUZ", 8),
            ("F8_E5M2FNUZ", 8),
        ];
        for (name, bits) in types {
            let end = bits; // eight elements
            let header = format!(
                r#"{{"odd":{{"dtype":"{name}","shape":[2,4],"data_offsets":[0,{end}]}},"w":{{"dtype":"F32","shape":[1],"data_offsets":[{end},{}]}}}}"#,
                end + 4
            );
            let file = SafeTensors::from_bytes(raw(&header, end + 4), "raw").expect(name);
            let odd = Described { dtype: name, shape: &[2, 4], bytes: end };
            assert_eq!(file.describe("odd"), Some(odd));
            assert!(file.get("odd").is_none(), "{name} is nothing to compute with");
            assert_eq!(file.get("w").unwrap().data, [7; 4]);
            assert_eq!(file.names().collect::<Vec<_>>(), ["odd", "w"]);
        }
        let half = r#"{"odd":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#;
        check_refused(SafeTensors::from_bytes(raw(half, 1), "raw"), &["tensor odd", "whole bytes"]);
    }

    #[test]
    fn the_crate_reads_what_is_written_and_writes_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let all = [
            Dtype::F64,
            Dtype::I64,
            Dtype::F32,
            Dtype::I32,
            Dtype::Bf16,
            Dtype::F16,
            Dtype::U8,
            Dtype::Bool,
        ];
        let specs: Vec<TensorSpec> = all
            .iter()
            .map(|&dtype| TensorSpec {
                name: format!("a.{}", dtype.safetensors_name()),
                dtype,
                shape: vec![3, 2],
            })
            .collect();
        let values: Vec<u8> = (0..48).collect();
        write(&path, &specs, &BTreeMap::new(), |i| Ok(Cow::Borrowed(&values[..specs[i].bytes()])))
            .unwrap();
        let bytes = fs_err::read(&path).unwrap();
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ours = SafeTensors::open(&path).unwrap();
        for spec in &specs {
            let (a, b) = (ours.get(&spec.name).unwrap(), theirs.tensor(&spec.name).unwrap());
            assert_eq!((a.shape, a.data), (b.shape(), b.data()));
            assert_eq!(Dtype::of_safetensors(b.dtype()), Some(a.dtype));
        }
        // one width, names in order: where the crate's order is that of mmx
        let specs: Vec<TensorSpec> = ["a", "b", "c"]
            .map(|name| TensorSpec { name: name.into(), dtype: Dtype::F32, shape: vec![2] })
            .to_vec();
        write(&path, &specs, &BTreeMap::new(), |i| Ok(Cow::Borrowed(&values[i..][..8]))).unwrap();
        let views = (0..3).map(|i| {
            let view = TensorView { dtype: Dtype::F32, shape: &[2], data: &values[i..][..8] };
            (specs[i].name.as_str(), view)
        });
        let format = [("format".to_owned(), "pt".to_owned())];
        let theirs = ::safetensors::serialize(views, Some(format.into())).unwrap();
        assert!(theirs == fs_err::read(&path).unwrap());
    }

    #[test]
    fn one_file_is_read_and_the_index_beside_it_named() {
        let dir = tempfile::tempdir().unwrap();
        let spec = TensorSpec { name: "a".into(), dtype: Dtype::U8, shape: vec![1] };
        for (name, value) in [(FILE_NAME, 1), ("model-00001-of-00001.safetensors", 2)] {
            let specs = std::slice::from_ref(&spec);
            write(&dir.path().join(name), specs, &BTreeMap::new(), |_| Ok(vec![value].into()))
                .unwrap();
        }
        let index = |shard: &str| {
            let text = format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#);
            fs_err::write(dir.path().join(INDEX_NAME), text).unwrap();
            SafeTensors::open_folder(dir.path()).unwrap()
        };
        let file = index("model-00001-of-00001.safetensors");
        assert_eq!(file.get("a").unwrap().data, [1]);
        assert!(file.notes().len() == 1 && file.notes()[0].contains(INDEX_NAME), "{file:?}");
        assert!(index(FILE_NAME).notes().is_empty(), "an index of that file alone");
    }

    #[test]
    fn no_damaged_byte_makes_it_panic() {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let bytes = raw(header, 8);
        for at in 0..bytes.len() {
            for flip in [0x01, 0x10, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                let (ours, theirs) =
                    (check(&damaged), ::safetensors::SafeTensors::read_metadata(&damaged));
                assert_eq!(ours.is_ok(), theirs.is_ok(), "at {at}: {ours:?}, {theirs:?}");
                let _ = SafeTensors::from_bytes(damaged, "damaged");
            }
            assert!(SafeTensors::from_bytes(bytes[..at].to_vec(), "cut").is_err());
        }
    }
}
