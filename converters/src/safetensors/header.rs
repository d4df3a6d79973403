//! One file's header, read and checked twice: as the crate `safetensors` does and as mmx does.

use std::collections::BTreeMap;
use std::ops::Range;

use ::safetensors::tensor::{Dtype as AnyDtype, TensorInfo};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// Longest header that is believed. Source: MAX_HEADER_SIZE of the safetensors crate.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor of a file that was read: where its bytes lie in which of the files.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: AnyDtype,
    pub(super) shape: Vec<usize>,
    pub(super) file: usize,
    pub(super) range: Range<usize>,
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
pub(super) fn type_name(dtype: AnyDtype) -> &'static str {
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

pub(super) type Checked = (Vec<Tensor>, BTreeMap<String, String>);

/// Checks a file twice, as the crate and as mmx does, and gives what its header says.
pub(super) fn read_header(bytes: &[u8], file: usize) -> Result<Checked, String> {
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
