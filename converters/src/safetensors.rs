//! safetensors in (one file or a folder of shards, by memory map) and out (streamed, whole).
//!
//! A file is a length u64, a JSON header of that many bytes, then the data. Own reader rather than the
//! crate's: messages name the tensor, what was expected and what was found, and duplicates are refused.
//! Source: the format's description at huggingface/safetensors, README "Format".

#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

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
}

#[derive(Debug)]
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
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

    /// Opens a folder's `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// Neither is there, a shard is missing (found before any shard is read), a tensor lies in two shards
    /// or not in the one the index says, or a file breaks the format.
    pub fn open_folder(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let single = dir.join(FILE_NAME);
        if single.exists() {
            return Self::open(single);
        }
        let index_path = dir.join(INDEX_NAME);
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

    /// A tensor, in place.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let tensor = self.tensors.get(*self.index.get(name)?)?;
        let data = self.files.get(tensor.file)?.1.get(tensor.range.clone())?;
        Some(TensorView { dtype: tensor.dtype, shape: &tensor.shape, data })
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

/// The header as it stands in the file: order and duplicates kept, so that duplicates can be refused.
struct Header {
    tensors: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
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
                let mut header = Header { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        header.metadata = map.next_value()?;
                        continue;
                    }
                    let entry = map
                        .next_value()
                        .map_err(|e| A::Error::custom(format!("tensor {key}: {e}")))?;
                    header.tensors.push((key, entry));
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn dtype_of(name: &str) -> Option<Dtype> {
    use Dtype::{Bf16, Bool, F16, F32, F64, I32, I64, U8};
    [F32, F16, Bf16, F64, I64, I32, U8, Bool].into_iter().find(|d| d.safetensors_name() == name)
}

type Checked = (Vec<Tensor>, BTreeMap<String, String>);

fn read_header(bytes: &[u8], file: usize) -> Result<Checked, String> {
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
    let begin = bytes.len().saturating_sub(data.len());
    let header: Header =
        serde_json::from_slice(header).map_err(|e| format!("expected a JSON header: {e}"))?;
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for (name, entry) in header.tensors {
        tensors.push(check_entry(name, &entry, file, data.len())?);
    }
    let mut seen = std::collections::HashSet::new();
    for tensor in &tensors {
        if !seen.insert(tensor.name.as_str()) {
            return Err(format!("tensor {}: expected once, found twice", tensor.name));
        }
    }
    // the data is covered exactly: no overlap, no gap, nothing after it
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let mut next = 0usize;
    for tensor in &mut tensors {
        if tensor.range.start != next {
            return Err(format!(
                "tensor {}: expected its bytes to begin at {next}, the end of the tensor before it, found {}",
                tensor.name, tensor.range.start
            ));
        }
        next = tensor.range.end;
        tensor.range =
            tensor.range.start.saturating_add(begin)..tensor.range.end.saturating_add(begin);
    }
    if next != data.len() {
        return Err(format!("expected {next} bytes of tensors, found {}", data.len()));
    }
    Ok((tensors, header.metadata))
}

/// One entry against the size of the data; its range is still relative to the data's start.
fn check_entry(name: String, entry: &Entry, file: usize, data: usize) -> Result<Tensor, String> {
    let what = format!("tensor {name}");
    let dtype = dtype_of(&entry.dtype).ok_or_else(|| {
        format!(
            "{what}: expected a dtype of F32, F16, BF16, F64, I64, I32, U8 or BOOL, found {}",
            entry.dtype
        )
    })?;
    let (start, end) = entry.data_offsets;
    let range = match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if start <= end && end <= data => start..end,
        _ => {
            return Err(format!(
                "{what}: expected data_offsets in order within {data} bytes, found [{start}, {end}]"
            ));
        }
    };
    let shape = entry.shape.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|e| format!("{what}: {e}"))?;
    let size = shape.iter().try_fold(dtype.size(), |product, &n| product.checked_mul(n));
    if size != Some(range.len()) {
        let size = size.map_or_else(|| "more than 2^64".to_owned(), |n| n.to_string());
        return Err(format!(
            "{what}: expected {size} bytes for {} {shape:?}, found data_offsets of {} bytes",
            entry.dtype,
            range.len()
        ));
    }
    Ok(Tensor { name, dtype, shape, file, range })
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
/// `data(i)` gives the bytes of `tensors[i]`, called once for each: wider element types first (so that
/// each tensor is aligned to its elements), else in the order given. Returns the file's size in bytes.
///
/// # Errors
/// A name given twice, bytes of another number than shape and type say, whatever `data` returns, or the
/// system's refusal.
pub fn write<'a>(
    path: &Path,
    tensors: &[TensorSpec],
    extra: &BTreeMap<String, String>,
    mut data: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<u64> {
    let mut order: Vec<(usize, &TensorSpec)> = tensors.iter().enumerate().collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.size())); // stable
    let mut header = serde_json::Map::new();
    let mut metadata = serde_json::Map::new();
    metadata.insert("format".to_owned(), "pt".into());
    metadata.extend(extra.iter().map(|(key, text)| (key.clone(), text.as_str().into())));
    header.insert("__metadata__".to_owned(), metadata.into());
    let mut offset = 0usize;
    for (_, tensor) in &order {
        let end = offset.saturating_add(tensor.bytes());
        let entry = serde_json::json!({
            "dtype": tensor.dtype.safetensors_name(),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        if header.insert(tensor.name.clone(), entry).is_some() {
            return Err(Error::format(
                path,
                format!("tensor {}: expected once, found twice", tensor.name),
            ));
        }
        offset = end;
    }
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
    fn no_damaged_byte_makes_it_panic() {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let bytes = raw(header, 8);
        for at in 0..bytes.len() {
            for flip in [0x01, 0x10, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                let _ = SafeTensors::from_bytes(damaged, "damaged");
            }
            assert!(SafeTensors::from_bytes(bytes[..at].to_vec(), "cut").is_err());
        }
    }
}
