//! Writing a file: streamed, whole, the same bytes for the same tensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use ::safetensors::tensor::{Dtype as AnyDtype, Metadata, TensorInfo, View};

use crate::error::{Error, Result};
use crate::file;
use crate::tensor::{Dtype, TensorView};

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
