//! Reading `--ids`: a JSON array (or an array of arrays), or a safetensors file's `input_ids`.

use std::path::Path;

use mmx_converters::safetensors::SafeTensors;
use mmx_converters::tensor::Dtype;
use serde_json::Value;

use crate::error::{Error, Result};

/// Sequences of ids.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    /// One list per sequence; not empty, and none of them is.
    pub(crate) rows: Vec<Vec<u32>>,
    /// The file held a two-dimensional array, so all rows are equally long and results get that
    /// dimension too.
    pub(crate) two_dimensional: bool,
}

/// Reads ids. The format is told from the content, not the name.
///
/// # Errors
/// An unreadable file, neither format, an id that is no 32-bit whole number, or no ids at all.
pub(crate) fn read(path: &Path) -> Result<Ids> {
    let bytes = fs_err::read(path).map_err(|e| Error::io(path, e))?;
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
    let ids = match first {
        Some(b'[') => json(path, &bytes)?,
        // no safetensors file begins so: its first eight bytes are its header's length
        _ if bytes.iter().all(|b| b.is_ascii_digit() || b.is_ascii_whitespace() || *b == b',') => {
            return Err(Error::failed(format!(
                "{}: expected a JSON array of ids ([1, 2]) or a safetensors file, found neither",
                path.display()
            )));
        }
        _ => safetensors(path)?,
    };
    if ids.rows.is_empty() || ids.rows.iter().any(Vec::is_empty) {
        return Err(Error::failed(format!(
            "{}: expected at least one id in every sequence, found none",
            path.display()
        )));
    }
    Ok(ids)
}

fn json(path: &Path, bytes: &[u8]) -> Result<Ids> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| {
        Error::failed(format!("{}: expected a JSON array of ids: {e}", path.display()))
    })?;
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let two_dimensional = list.first().is_some_and(Value::is_array);
    let id = |v: &Value| {
        v.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| {
            Error::failed(format!(
                "{}: expected an id (a whole number below 2^32), found {v}",
                path.display()
            ))
        })
    };
    let row = |v: &[Value]| v.iter().map(id).collect::<Result<Vec<u32>>>();
    let rows = if two_dimensional {
        list.iter()
            .map(|v| match v.as_array() {
                Some(v) => row(v),
                None => Err(Error::failed(format!(
                    "{}: expected arrays of ids only, found {v}",
                    path.display()
                ))),
            })
            .collect::<Result<Vec<_>>>()?
    } else {
        vec![row(list)?]
    };
    let same = rows.windows(2).all(|pair| pair[0].len() == pair[1].len());
    Ok(Ids { two_dimensional: two_dimensional && same, rows })
}

fn safetensors(path: &Path) -> Result<Ids> {
    let file = SafeTensors::open(path)?;
    let fault = |found: String| {
        Error::failed(format!(
            "{}: expected a tensor input_ids of I64 or I32 with one or two dimensions, found {found}",
            path.display()
        ))
    };
    let names = || match file.names().collect::<Vec<_>>() {
        names if names.is_empty() => "no tensor".to_owned(),
        names => names.join(", "),
    };
    let view = file.get("input_ids").ok_or_else(|| fault(names()))?;
    let is = format!("{} {:?}", view.dtype.safetensors_name(), view.shape);
    let numbers: Vec<i64> = match view.dtype {
        Dtype::I64 => view.data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        Dtype::I32 => {
            view.data.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect()
        }
        _ => return Err(fault(is)),
    };
    let ids = numbers
        .iter()
        .map(|&n| {
            u32::try_from(n).map_err(|_| {
                Error::failed(format!(
                    "{}: tensor input_ids: expected ids from 0 to 2^32 - 1, found {n}",
                    path.display()
                ))
            })
        })
        .collect::<Result<Vec<u32>>>()?;
    match *view.shape {
        [_] => Ok(Ids { rows: vec![ids], two_dimensional: false }),
        [_, seq] if seq > 0 => {
            Ok(Ids { rows: ids.chunks(seq).map(<[u32]>::to_vec).collect(), two_dimensional: true })
        }
        _ => Err(fault(is)),
    }
}
