//! Importance matrices: how much each input column of a matrix matters, as the mean square of what
//! came in. In and out: llama.cpp's GGUF form.
//!
//! Per matrix T the file holds `T.in_sum2` `[experts, columns]`, the sums of squares, and
//! `T.counts` `[experts, 1]`, how many tokens each sum is of. An expert that no token reached has a
//! mean of 0/0: its weights are 1, that is, none of its columns is preferred. Source:
//! docs/formats/gguf.md.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::gguf::{self, GgmlType, Gguf, Metadata, TensorSpec, Value};
use crate::tensor::{self, Dtype, TensorView};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// The statistics collected for one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Input columns.
    pub columns: usize,
    /// Sums of squares `[experts, columns]`; a plain matrix is one expert.
    pub sums: Vec<f32>,
    /// Tokens of each sum `[experts]`.
    pub counts: Vec<f32>,
}

impl Entry {
    /// The weights `[experts, columns]`: sum / count, and 1 where the count is 0.
    pub fn weights(&self) -> Vec<f32> {
        let experts = self.sums.chunks(self.columns.max(1)).zip(&self.counts);
        experts
            .flat_map(|(sums, &count)| {
                sums.iter().map(move |sum| if count > 0.0 { sum / count } else { 1.0 })
            })
            .collect()
    }

    /// Experts that no token reached.
    pub fn idle(&self) -> Vec<usize> {
        (0..self.counts.len()).filter(|&expert| self.counts[expert] <= 0.0).collect()
    }
}

/// An importance matrix of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// Names of the texts.
    pub datasets: Vec<String>,
    /// Pieces of text that were read.
    pub chunk_count: u32,
    /// Tokens of a piece.
    pub chunk_size: u32,
    /// By the matrix's GGUF name.
    pub entries: BTreeMap<String, Entry>,
}

impl Imatrix {
    /// Reads llama.cpp's GGUF form.
    ///
    /// # Errors
    /// No GGUF (llama-imatrix's old `.dat` form among them), another kind of GGUF, sums without
    /// counts, values that are not finite or are negative.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = file_start(path)?;
        if bytes != *b"GGUF" {
            return Err(Error::format(
                path,
                "expected an importance matrix in GGUF form, found another file: llama-imatrix writes the \
                 GGUF form when its output's name ends in .gguf",
            ));
        }
        let file = Gguf::open(path)?;
        let kind = file.metadata().string("general.type").unwrap_or("none");
        if kind != "imatrix" {
            return Err(Error::key(
                path,
                "general.type",
                format!("expected imatrix, found {kind}"),
            ));
        }
        let values = |name: &str| -> Result<Option<(Vec<usize>, Vec<f32>)>> {
            let Some(info) = file.tensor(name) else { return Ok(None) };
            let wrong = |what: String| Error::format(path, format!("tensor {name}: {what}"));
            if info.ty != GgmlType::F32 {
                return Err(wrong(format!("expected F32, found {}", info.ty.name())));
            }
            let view = TensorView { dtype: Dtype::F32, shape: &info.shape, data: file.data(info) };
            let values = view.to_f32();
            if let Some(bad) = values.iter().find(|x| !x.is_finite() || **x < 0.0) {
                return Err(wrong(format!("expected finite values of 0 or more, found {bad}")));
            }
            Ok(Some((info.shape.clone(), values)))
        };
        let mut entries = BTreeMap::new();
        for info in file.tensors() {
            let Some(name) = info.name.strip_suffix(SUMS) else { continue };
            let wrong = |what: String| Error::format(path, format!("tensor {}: {what}", info.name));
            let (Some((shape, sums)), Some((_, counts))) =
                (values(&info.name)?, values(&format!("{name}{COUNTS}"))?)
            else {
                return Err(wrong(format!("expected {name}{COUNTS} beside it, found none")));
            };
            let columns = shape.last().copied().unwrap_or(0);
            if columns * counts.len() != sums.len() {
                return Err(wrong(format!(
                    "expected {} rows (one per count), found shape {shape:?}",
                    counts.len()
                )));
            }
            entries.insert(name.to_owned(), Entry { columns, sums, counts });
        }
        if entries.is_empty() {
            return Err(Error::format(path, "expected sums of squares of some matrix, found none"));
        }
        let count = |key: &str| {
            let found = file.metadata().get(key).and_then(Value::as_u64);
            found.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
        };
        let datasets = match file.metadata().get("imatrix.datasets") {
            Some(Value::Strings(names)) => names.clone(),
            _ => Vec::new(),
        };
        Ok(Self {
            datasets,
            chunk_count: count("imatrix.chunk_count"),
            chunk_size: count("imatrix.chunk_size"),
            entries,
        })
    }

    /// Writes llama.cpp's GGUF form. Returns its size in bytes.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn write(&self, path: &Path) -> Result<u64> {
        let mut metadata = Metadata::new();
        metadata.set("general.type", Value::String("imatrix".to_owned()));
        metadata.set("imatrix.datasets", Value::Strings(self.datasets.clone()));
        metadata.set("imatrix.chunk_count", Value::U32(self.chunk_count));
        metadata.set("imatrix.chunk_size", Value::U32(self.chunk_size));
        let mut specs = Vec::new();
        let mut values: Vec<&[f32]> = Vec::new();
        for (name, entry) in &self.entries {
            let experts = entry.counts.len();
            for (end, columns, data) in
                [(SUMS, entry.columns, &entry.sums), (COUNTS, 1, &entry.counts)]
            {
                let shape = vec![experts, columns];
                specs.push(TensorSpec { name: format!("{name}{end}"), shape, ty: GgmlType::F32 });
                values.push(data);
            }
        }
        gguf::write(path, &metadata, &specs, |i| {
            Ok(Cow::Owned(tensor::encode_f32(values[i], Dtype::F32)))
        })
    }

    /// The weights of a matrix `[experts, columns]`, if it has some.
    ///
    /// # Errors
    /// They are for another number of experts or columns.
    pub fn weights_of(
        &self,
        name: &str,
        experts: usize,
        columns: usize,
    ) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        if (entry.counts.len(), entry.columns) != (experts, columns) {
            return Err(Error::unsupported(
                format!("importance matrix of {name}"),
                format!(
                    "expected {experts} x {columns} values, found {} x {}: it is of another model",
                    entry.counts.len(),
                    entry.columns
                ),
            ));
        }
        Ok(Some(entry.weights()))
    }

    /// A sentence for each matrix with experts that no token reached.
    pub fn warnings(&self) -> Vec<String> {
        let idle = self.entries.iter().filter_map(|(name, entry)| {
            let idle = entry.idle();
            let list: Vec<String> = idle.iter().map(usize::to_string).collect();
            (!idle.is_empty()).then(|| {
                format!(
                    "importance matrix: {name}: no token reached expert {}: its columns count alike",
                    list.join(", ")
                )
            })
        });
        idle.collect()
    }

    /// The keys by which a quantized file names the importance matrix it was made with, as
    /// llama-quantize writes them.
    pub fn keys(&self, path: &Path) -> Vec<(String, Value)> {
        let file = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let key = |name: &str| format!("quantize.imatrix.{name}");
        let entries = i32::try_from(self.entries.len()).unwrap_or(i32::MAX);
        let chunks = i32::try_from(self.chunk_count).unwrap_or(i32::MAX);
        let mut keys = vec![(key("file"), Value::String(file))];
        if let Some(dataset) = self.datasets.first() {
            keys.push((key("dataset"), Value::String(dataset.clone())));
        }
        keys.push((key("entries_count"), Value::I32(entries)));
        keys.push((key("chunks_count"), Value::I32(chunks)));
        keys
    }
}

/// The first four bytes.
fn file_start(path: &Path) -> Result<[u8; 4]> {
    let bytes = crate::file::Bytes::map(path)?;
    Ok(bytes.first_chunk().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The case `imatrix-idle-expert`.
    #[test]
    fn imatrix_idle_expert() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/cases/files/imatrix-idle-expert/expect.json"
        );
        let case: serde_json::Value =
            serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
        let floats = |value: &serde_json::Value| -> Vec<f32> {
            let nested: Vec<Vec<f32>> = serde_json::from_value(value.clone()).unwrap();
            nested.concat()
        };
        let entry = Entry {
            columns: case["columns"].as_u64().unwrap() as usize,
            sums: floats(&case["sums_of_squares"]),
            counts: serde_json::from_value(case["counts"].clone()).unwrap(),
        };
        assert_eq!(entry.weights(), floats(&case["weights"]));
        let idle: Vec<usize> = serde_json::from_value(case["idle"].clone()).unwrap();
        assert_eq!(entry.idle(), idle);

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("i.gguf");
        let name = "blk.1.ffn_up_exps.weight".to_owned();
        let imatrix = Imatrix {
            datasets: vec!["a.txt".into()],
            chunk_count: 3,
            chunk_size: 512,
            entries: BTreeMap::from([(name.clone(), entry.clone())]),
        };
        imatrix.write(&file).unwrap();
        let read = Imatrix::open(&file).unwrap();
        assert_eq!(read, imatrix);
        assert_eq!(read.weights_of(&name, 4, 4).unwrap().unwrap(), entry.weights());
        assert!(read.weights_of(&name, 2, 8).unwrap_err().to_string().contains("another model"));
        assert_eq!(read.weights_of("blk.0.attn_q.weight", 1, 4).unwrap(), None);
        let warnings = read.warnings();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("blk.1") && warnings[0].contains("expert 1:"), "{warnings:?}");
    }

    #[test]
    fn rejects_other_files_and_values_that_are_not_finite() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.dat");
        fs_err::write(&path, [1, 0, 0, 0, 4, 0, 0, 0]).unwrap();
        assert!(Imatrix::open(&path).unwrap_err().to_string().contains("GGUF form"));
        let entry = Entry { columns: 2, sums: vec![1.0, f32::NAN], counts: vec![1.0] };
        let entries = BTreeMap::from([("blk.0.attn_q.weight".to_owned(), entry)]);
        Imatrix { entries, ..Imatrix::default() }.write(&path).unwrap();
        let error = Imatrix::open(&path).unwrap_err().to_string();
        assert!(error.contains("blk.0.attn_q.weight.in_sum2") && error.contains("NaN"), "{error}");
    }
}
