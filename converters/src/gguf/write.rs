//! A GGUF file out: keys in the order given, tensors in the order given, one tensor in memory at a
//! time.
//!
//! The same input gives the same bytes: no clock, no path, no hash order.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use super::metadata::{DEFAULT_ALIGNMENT, Metadata, Value};
use super::types::GgmlType;
use super::value_type;
use crate::error::{Error, Result};
use crate::file;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, 1 to 63 bytes.
    pub name: String,
    /// Outermost dimension first; one to four dimensions.
    pub shape: Vec<usize>,
    /// Its type; the last dimension is a multiple of the type's block.
    pub ty: GgmlType,
}

impl TensorSpec {
    /// Bytes the tensor takes, or nothing where rows do not divide into blocks or the size
    /// overflows.
    pub fn bytes(&self) -> Option<usize> {
        let (row, outer) = self.shape.split_last()?;
        outer.iter().try_fold(self.ty.row_bytes(*row)?, |product, &n| product.checked_mul(n))
    }
}

/// Writes a file, whole or not at all. `data(i)` gives the bytes of tensor `i`, called once for
/// each, in order. Returns the file's size in bytes.
///
/// # Errors
/// A tensor that GGUF cannot hold, bytes of another number than its shape and type say, whatever
/// `data` returns, or the system's refusal.
pub fn write<'a>(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorSpec],
    data: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<u64> {
    let mut size = 0;
    file::write_whole(path, |out| {
        size = emit(path, out, metadata, tensors, data)?;
        Ok(())
    })?;
    Ok(size)
}

/// The bytes of a file, in memory; `name` is what messages call it.
///
/// # Errors
/// As [`write()`].
pub fn to_bytes<'a>(
    name: &Path,
    metadata: &Metadata,
    tensors: &[TensorSpec],
    data: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    emit(name, &mut out, metadata, tensors, data)?;
    Ok(out)
}

/// The bytes of a file whose tensors are all zeros, in memory: a description of a model whose weights
/// lie elsewhere. Pages that nobody reads take no memory.
///
/// # Errors
/// A tensor that GGUF cannot hold, or more bytes than there are addresses.
pub fn zeros(name: &Path, metadata: &Metadata, tensors: &[TensorSpec]) -> Result<Vec<u8>> {
    let (header, alignment) =
        header(metadata, tensors).map_err(|message| Error::format(name, message))?;
    let add = |size: usize, tensor: &TensorSpec| {
        size.checked_add(tensor.bytes()?.checked_next_multiple_of(alignment)?)
    };
    let size = tensors.iter().try_fold(header.len(), add).filter(|&n| isize::try_from(n).is_ok());
    let size = size.ok_or_else(|| Error::format(name, "the tensors are larger than memory"))?;
    let mut bytes = vec![0; size];
    if let Some(start) = bytes.get_mut(..header.len()) {
        start.copy_from_slice(&header);
    }
    Ok(bytes)
}

pub(super) fn emit<'a>(
    path: &Path,
    out: &mut dyn Write,
    metadata: &Metadata,
    tensors: &[TensorSpec],
    mut data: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<u64> {
    let (header, alignment) =
        header(metadata, tensors).map_err(|message| Error::format(path, message))?;
    let io = |e| Error::io(path, e);
    out.write_all(&header).map_err(io)?;
    let mut size = header.len();
    let padding = vec![0; alignment];
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = data(i)?;
        let expected = tensor.bytes().unwrap_or_default();
        if bytes.len() != expected {
            return Err(Error::format(
                path,
                format!(
                    "tensor {}: expected {expected} bytes of {} {:?}, found {}",
                    tensor.name,
                    tensor.ty.name(),
                    tensor.shape,
                    bytes.len()
                ),
            ));
        }
        out.write_all(&bytes).map_err(io)?;
        let pad = expected.next_multiple_of(alignment) - expected;
        out.write_all(&padding[..pad]).map_err(io)?;
        size += expected + pad;
    }
    Ok(size as u64)
}

/// Everything before the data, padded; and the alignment.
fn header(metadata: &Metadata, tensors: &[TensorSpec]) -> Result<(Vec<u8>, usize), String> {
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::U32(n)) if n.is_power_of_two() => *n,
        Some(other) => {
            return Err(format!(
                "key general.alignment: expected a power of two as u32, found {}",
                other.describe()
            ));
        }
    } as usize;
    let mut out = Vec::new();
    out.extend(b"GGUF");
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_string(&mut out, key);
        put_value(&mut out, value).map_err(|message| format!("key {key}: {message}"))?;
    }
    let mut names = HashSet::new();
    let mut offset = 0u64;
    for tensor in tensors {
        let name = &tensor.name;
        if name.is_empty() || name.len() > 63 {
            return Err(format!(
                "tensor {name}: expected a name of 1 to 63 bytes, found {} bytes",
                name.len()
            ));
        }
        if !names.insert(name) {
            return Err(format!("tensor {name}: expected once, found twice"));
        }
        let dims = tensor.shape.len();
        let size = tensor.bytes().filter(|&size| size > 0 && dims <= 4).ok_or_else(|| {
            format!(
                "tensor {name}: expected one to four dimensions with rows of a multiple of {} for {}, found {:?}",
                tensor.ty.block_elements(),
                tensor.ty.name(),
                tensor.shape
            )
        })?;
        put_string(&mut out, name);
        out.extend((dims as u32).to_le_bytes());
        for &n in tensor.shape.iter().rev() {
            out.extend((n as u64).to_le_bytes());
        }
        out.extend(tensor.ty.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += size.next_multiple_of(alignment) as u64;
    }
    out.resize(out.len().next_multiple_of(alignment), 0);
    Ok((out, alignment))
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) -> Result<(), String> {
    let ty = type_of(value);
    out.extend(ty.to_le_bytes());
    let array = |out: &mut Vec<u8>, ty: u32, count: usize| {
        out.extend(ty.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    match value {
        Value::Strings(list) => {
            array(out, value_type::STRING, list.len());
            list.iter().for_each(|text| put_string(out, text));
        }
        Value::I32s(list) => {
            array(out, value_type::I32, list.len());
            out.extend(list.iter().flat_map(|n| n.to_le_bytes()));
        }
        Value::U32s(list) => {
            array(out, value_type::U32, list.len());
            out.extend(list.iter().flat_map(|n| n.to_le_bytes()));
        }
        Value::F32s(list) => {
            array(out, value_type::F32, list.len());
            out.extend(list.iter().flat_map(|x| x.to_le_bytes()));
        }
        Value::Array(list) => {
            let element = list.first().map_or(value_type::U8, type_of);
            if element == value_type::ARRAY || list.iter().any(|v| type_of(v) != element) {
                return Err("expected an array of plain values of one type".to_owned());
            }
            array(out, element, list.len());
            list.iter().for_each(|v| put_plain(out, v));
        }
        plain => put_plain(out, plain),
    }
    Ok(())
}

fn put_plain(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(n) => out.extend(n.to_le_bytes()),
        Value::I8(n) => out.extend(n.to_le_bytes()),
        Value::U16(n) => out.extend(n.to_le_bytes()),
        Value::I16(n) => out.extend(n.to_le_bytes()),
        Value::U32(n) => out.extend(n.to_le_bytes()),
        Value::I32(n) => out.extend(n.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::String(text) => put_string(out, text),
        Value::U64(n) => out.extend(n.to_le_bytes()),
        Value::I64(n) => out.extend(n.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
        // arrays are put by `put_value`
        Value::Strings(_) | Value::I32s(_) | Value::U32s(_) | Value::F32s(_) | Value::Array(_) => {}
    }
}

fn type_of(value: &Value) -> u32 {
    match value {
        Value::U8(_) => value_type::U8,
        Value::I8(_) => value_type::I8,
        Value::U16(_) => value_type::U16,
        Value::I16(_) => value_type::I16,
        Value::U32(_) => value_type::U32,
        Value::I32(_) => value_type::I32,
        Value::F32(_) => value_type::F32,
        Value::Bool(_) => value_type::BOOL,
        Value::String(_) => value_type::STRING,
        Value::U64(_) => value_type::U64,
        Value::I64(_) => value_type::I64,
        Value::F64(_) => value_type::F64,
        Value::Strings(_) | Value::I32s(_) | Value::U32s(_) | Value::F32s(_) | Value::Array(_) => {
            value_type::ARRAY
        }
    }
}
