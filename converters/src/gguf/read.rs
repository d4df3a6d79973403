//! A GGUF file in, checked before anything is believed: keys, values, tensor infos, and tensor
//! bytes in place.
//!
//! Every declared count is compared with the bytes that are left before memory is taken for it, so
//! a small file cannot ask for much, whatever it claims.

#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::metadata::{DEFAULT_ALIGNMENT, Metadata, Value};
use super::split::Split;
use super::types::GgmlType;
use super::value_type;
use crate::error::{Error, Result};
use crate::file::Bytes;

/// Dimensions a tensor may have. Source: GGML_MAX_DIMS, ggml.h.
const MAX_DIMS: u32 = 4;
/// Bytes of a tensor's name, its end included. Source: GGML_MAX_NAME, ggml.h.
const MAX_NAME: usize = 64;
/// Largest `general.alignment` that is believed: well above any page size in use (64 KiB).
const MAX_ALIGNMENT: u32 = 1 << 20;
/// Elements of an array that is neither of strings nor of 32-bit numbers: kept as [`Value`]s, which
/// are many times larger than the file's bytes, and no such array of any use is long.
const MAX_PLAIN_ARRAY: u64 = 1 << 16;

/// A tensor of a GGUF: its description, and where its bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, under 64 bytes.
    pub name: String,
    /// Outermost dimension first, as everywhere in mmx: the file's order turned round.
    pub shape: Vec<usize>,
    /// Its type.
    pub ty: GgmlType,
    /// Which file of a split model it is in, counted from 0; 0 for a whole one.
    pub part: usize,
    /// Where its bytes begin, from the start of that file.
    pub offset: usize,
    /// How many bytes it has.
    pub bytes: usize,
}

impl TensorInfo {
    /// Its bytes' range in its file.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset.saturating_add(self.bytes)
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An open GGUF: one file, or all the files of a split model.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes,
    /// The other files of a split model, in order.
    more: Vec<(PathBuf, Bytes)>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
    alignment: usize,
    data_offset: usize,
}

impl Gguf {
    /// Opens a file by memory map and checks all of its header; of a split model all the files,
    /// whichever of them `path` names.
    ///
    /// # Errors
    /// The file cannot be read, is a Git LFS pointer, or breaks the format: the place, what was
    /// expected and what was found. A file of a split model that is missing or of another model.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = Self::parse(Bytes::map(path)?, path)?;
        match Split::of(path, &file.metadata)? {
            Some(split) => Self::open_parts(file, &split),
            None => Ok(file),
        }
    }

    /// The other files of a split model, each of them checked as one.
    fn open_parts(named: Self, split: &Split) -> Result<Self> {
        let paths = split.paths()?;
        let mut named = Some(named);
        let mut all: Option<Self> = None;
        for (i, path) in paths.iter().enumerate() {
            let part = match named.take_if(|_| i == split.number) {
                Some(part) => part,
                None => Self::parse(Bytes::map(path)?, path)?,
            };
            split.check(path, &part.metadata, i)?;
            let Some(first) = &mut all else {
                all = Some(part);
                continue;
            };
            for mut tensor in part.tensors {
                tensor.part = i;
                if first.index.insert(tensor.name.clone(), first.tensors.len()).is_some() {
                    let message =
                        format!("tensor {}: expected in one part, found in two", tensor.name);
                    return Err(Error::format(path, message));
                }
                first.tensors.push(tensor);
            }
            first.more.push((part.path, part.bytes));
        }
        let all = all.ok_or_else(|| Error::format(Path::new(""), "expected a part"))?;
        split.check_count(&all.path, all.tensors.len())?;
        Ok(all)
    }

    /// Opens a GGUF whose bytes are in memory; `name` is what messages call them.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(bytes: Vec<u8>, name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        Self::parse(Bytes::owned(bytes, name)?, name)
    }

    fn parse(bytes: Bytes, path: &Path) -> Result<Self> {
        let header = Header::read(&bytes).map_err(|message| Error::format(path, message))?;
        let index = header.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self {
            path: path.to_owned(),
            more: Vec::new(),
            metadata: header.metadata,
            tensors: header.tensors,
            index,
            alignment: header.alignment,
            data_offset: header.data_offset,
            bytes,
        })
    }

    /// The file, of a split model the first one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All files with their bytes: one, or those of a split model in order.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        let more = self.more.iter().map(|(path, bytes)| (path.as_path(), &bytes[..]));
        std::iter::once((self.path.as_path(), &self.bytes[..])).chain(more)
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Keys and values, in the file's order.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Keys and values, to be changed in memory; the file stays as it is.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    /// The tensors, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).and_then(|&i| self.tensors.get(i))
    }

    /// A tensor's bytes, in place. Empty for a [`TensorInfo`] of another file that does not fit
    /// this one.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        self.part(tensor.part).get(tensor.range()).unwrap_or_default()
    }

    /// The whole file, of a split model the first one: see [`Gguf::part`].
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// One of the files; empty beyond the last. The pointer stays the same as long as this `Gguf`
    /// lives, also when it is moved; a tensor's bytes begin at its [`TensorInfo::offset`] in the
    /// file [`TensorInfo::part`].
    pub fn part(&self, i: usize) -> &[u8] {
        match i.checked_sub(1) {
            None => &self.bytes,
            Some(i) => self.more.get(i).map_or(&[], |(_, bytes)| bytes),
        }
    }

    /// True when the file is memory-mapped, so tensors are aligned in memory as they are in the
    /// file.
    pub fn is_mapped(&self) -> bool {
        self.bytes.is_mapped()
    }

    /// Where the data section begins, from the start of the file.
    pub fn data_offset(&self) -> usize {
        self.data_offset
    }

    /// Lets go of the pages that were read: see [`Bytes::give_back`].
    pub fn give_back(&self) {
        self.bytes.give_back();
        self.more.iter().for_each(|(_, bytes)| bytes.give_back());
    }

    /// `general.alignment`, or its default of 32.
    pub fn alignment(&self) -> usize {
        self.alignment
    }
}

/// The part of a GGUF before its data: keys, values and tensor infos.
struct Header {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    alignment: usize,
    data_offset: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut r = Reader { bytes, at: 0 };
        if r.take(4, "the magic")? != b"GGUF" {
            return Err("expected the magic GGUF at the start, found other bytes".to_owned());
        }
        let version = r.u32("the version")?;
        if !(2..=3).contains(&version) {
            let swapped =
                if (2..=3).contains(&version.swap_bytes()) { " (big-endian)" } else { "" };
            return Err(format!("expected GGUF version 2 or 3, found {version}{swapped}"));
        }
        // the smallest tensor info: an empty name, one dimension, type, offset
        let tensor_count = r.count("tensors", 8 + 4 + 8 + 4 + 8)?;
        // the smallest pair: a key of one byte, a type, a value of one byte
        let key_count = r.count("keys", 8 + 1 + 4 + 1)?;
        let mut metadata = Metadata::new();
        for i in 0..key_count {
            let key = r.string(&format!("key {i}"))?;
            if key.is_empty() {
                return Err(format!("key {i}: expected a name, found an empty string"));
            }
            let value = r.value(&key)?;
            if !metadata.set(key.as_str(), value) {
                return Err(format!("key {key}: expected once, found twice"));
            }
        }
        let alignment = alignment(&metadata)?;
        let mut tensors = Vec::with_capacity(tensor_count);
        let mut seen = std::collections::HashSet::with_capacity(tensor_count);
        let mut next = 0u64; // the running padded sum of sizes
        for i in 0..tensor_count {
            let (tensor, offset) = r.tensor(i)?;
            let name = &tensor.name;
            if !seen.insert(name.clone()) {
                return Err(format!("tensor {name}: expected once, found twice"));
            }
            if offset != next {
                return Err(format!(
                    "tensor {name}: expected offset {next} (the end of the tensors before it), found {offset}"
                ));
            }
            next = u64::try_from(tensor.bytes)
                .ok()
                .and_then(|size| next.checked_add(size))
                .and_then(|end| end.checked_next_multiple_of(u64::from(alignment)))
                .ok_or_else(|| format!("tensor {name}: its end lies beyond 64 bits"))?;
            tensors.push(tensor);
        }
        // the data begins at the next multiple of the alignment
        let alignment = usize::try_from(alignment).map_err(|e| e.to_string())?;
        let data_offset =
            r.at.checked_next_multiple_of(alignment)
                .ok_or("the data section lies beyond the address space")?;
        let mut at = data_offset;
        for tensor in &mut tensors {
            tensor.offset = at;
            let end = at.checked_add(tensor.bytes).filter(|&end| end <= bytes.len());
            let Some(end) = end else {
                return Err(format!(
                    "tensor {}: expected {} bytes at {at}, found a file of {} bytes: truncated",
                    tensor.name,
                    tensor.bytes,
                    bytes.len()
                ));
            };
            // the last tensor's padding may be missing
            at = end.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
        }
        Ok(Self { metadata, tensors, alignment, data_offset })
    }
}

fn alignment(metadata: &Metadata) -> Result<u32, String> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() && *n <= MAX_ALIGNMENT => Ok(*n),
        Some(other) => Err(format!(
            "key general.alignment: expected a power of two up to {MAX_ALIGNMENT} as u32, found {}",
            other.describe()
        )),
    }
}

/// A position in the bytes, moved on by each read. Errors are sentences without the file, which
/// [`Gguf::parse`] adds.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n);
        let Some(slice) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(format!(
                "{what}: expected {n} bytes at {}, found {}: truncated",
                self.at,
                self.left()
            ));
        };
        self.at = self.at.saturating_add(n);
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let slice = self.take(N, what)?;
        slice.try_into().map_err(|_| format!("{what}: expected {N} bytes"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things that take at least `smallest` bytes each.
    fn count(&mut self, what: &str, smallest: usize) -> Result<usize, String> {
        let declared = self.array(&format!("the number of {what}")).map(i64::from_le_bytes)?;
        let fits = self.left().checked_div(smallest).unwrap_or(0);
        usize::try_from(declared).ok().filter(|&n| n <= fits).ok_or_else(|| {
            format!(
                "expected at most {fits} {what} in the {} bytes left, found a count of {declared}",
                self.left()
            )
        })
    }

    fn string(&mut self, what: &str) -> Result<String, String> {
        let declared = self.u64(what)?;
        let length = usize::try_from(declared).ok().filter(|&n| n <= self.left());
        let Some(length) = length else {
            return Err(format!(
                "{what}: expected a string within the {} bytes left, found a length of {declared}",
                self.left()
            ));
        };
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|e| format!("{what}: expected UTF-8, found {e}"))
    }

    fn value(&mut self, key: &str) -> Result<Value, String> {
        let what = format!("key {key}");
        let ty = self.u32(&what)?;
        if ty == value_type::ARRAY { self.array_value(&what) } else { self.plain(ty, &what) }
    }

    fn plain(&mut self, ty: u32, what: &str) -> Result<Value, String> {
        Ok(match ty {
            value_type::U8 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            value_type::I8 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            value_type::U16 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            value_type::I16 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            value_type::U32 => Value::U32(u32::from_le_bytes(self.array(what)?)),
            value_type::I32 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            value_type::F32 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            value_type::U64 => Value::U64(u64::from_le_bytes(self.array(what)?)),
            value_type::I64 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            value_type::F64 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            value_type::STRING => Value::String(self.string(what)?),
            value_type::BOOL => match self.array(what)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(format!("{what}: expected a bool (0 or 1), found {other}")),
            },
            other => {
                return Err(format!("{what}: expected a value type from 0 to 12, found {other}"));
            }
        })
    }

    fn array_value(&mut self, what: &str) -> Result<Value, String> {
        let ty = self.u32(what)?;
        let declared = self.u64(what)?;
        // the smallest element: a string is at least its length
        let smallest = match ty {
            value_type::U8 | value_type::I8 | value_type::BOOL => 1,
            value_type::U16 | value_type::I16 => 2,
            value_type::U32 | value_type::I32 | value_type::F32 => 4,
            value_type::U64 | value_type::I64 | value_type::F64 | value_type::STRING => 8,
            value_type::ARRAY => {
                return Err(format!(
                    "{what}: expected an array of plain values, found nested arrays"
                ));
            }
            other => {
                return Err(format!(
                    "{what}: expected an element type from 0 to 12, found {other}"
                ));
            }
        };
        let fits = self.left().checked_div(smallest).unwrap_or(0);
        let count = usize::try_from(declared).ok().filter(|&n| n <= fits).ok_or_else(|| {
            format!(
                "{what}: expected at most {fits} elements in the {} bytes left, found a count of {declared}",
                self.left()
            )
        })?;
        Ok(match ty {
            value_type::STRING => {
                // one label for all: a label per string would cost more than the string
                let strings = (0..count).map(|_| self.string(what));
                Value::Strings(strings.collect::<Result<_, _>>()?)
            }
            value_type::I32 => {
                Value::I32s(self.words(count, what)?.map(i32::from_le_bytes).collect())
            }
            value_type::U32 => {
                Value::U32s(self.words(count, what)?.map(u32::from_le_bytes).collect())
            }
            value_type::F32 => {
                Value::F32s(self.words(count, what)?.map(f32::from_le_bytes).collect())
            }
            _ if declared > MAX_PLAIN_ARRAY => {
                return Err(format!(
                    "{what}: expected at most {MAX_PLAIN_ARRAY} elements of this type, found {declared}"
                ));
            }
            _ => Value::Array((0..count).map(|_| self.plain(ty, what)).collect::<Result<_, _>>()?),
        })
    }

    /// `count` four-byte words.
    fn words(
        &mut self,
        count: usize,
        what: &str,
    ) -> Result<impl Iterator<Item = [u8; 4]> + use<'a>, String> {
        let bytes = self.take(count.saturating_mul(4), what)?;
        Ok(bytes.as_chunks().0.iter().copied())
    }

    /// A tensor info, and the offset it declares. Its own `offset` is set later.
    fn tensor(&mut self, i: usize) -> Result<(TensorInfo, u64), String> {
        let name = self.string(&format!("the name of tensor {i}"))?;
        if name.is_empty() || name.len() >= MAX_NAME {
            return Err(format!(
                "tensor {i}: expected a name of 1 to {} bytes, found {} bytes",
                MAX_NAME.saturating_sub(1),
                name.len()
            ));
        }
        let what = format!("tensor {name}");
        let dims = self.u32(&what)?;
        if !(1..=MAX_DIMS).contains(&dims) {
            return Err(format!("{what}: expected 1 to {MAX_DIMS} dimensions, found {dims}"));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let n = self.array(&what).map(i64::from_le_bytes)?;
            let n = usize::try_from(n).ok().filter(|&n| n > 0);
            shape.push(n.ok_or_else(|| format!("{what}: expected dimensions of 1 and more"))?);
        }
        let id = self.u32(&what)?;
        let ty = GgmlType::from_id(id).ok_or_else(|| {
            format!("{what}: expected a tensor type that ggml has, found id {id}")
        })?;
        let row = shape.first().copied().unwrap_or(1);
        if !row.is_multiple_of(ty.block_elements()) {
            return Err(format!(
                "{what}: expected rows of a multiple of {} elements for {}, found {row}",
                ty.block_elements(),
                ty.name()
            ));
        }
        let bytes = ty.row_bytes(row).and_then(|row_bytes| {
            shape.iter().skip(1).try_fold(row_bytes, |product, &n| product.checked_mul(n))
        });
        // signed 64 bits bound what ggml can count, elements as well as bytes
        let elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        let (Some(bytes), Some(_)) = (bytes.filter(|&n| i64::try_from(n).is_ok()), elements) else {
            return Err(format!(
                "{what}: expected a size within 63 bits, found dimensions {shape:?}"
            ));
        };
        let offset = self.u64(&what)?;
        shape.reverse(); // [fastest, .., outermost] -> [outermost, .., fastest]
        Ok((TensorInfo { name, shape, ty, part: 0, offset: 0, bytes }, offset))
    }
}
