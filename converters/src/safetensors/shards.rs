//! safetensors in several files: which tensor lies in which, and the index that says so.
//!
//! In: tensors and a limit in bytes. Out: one `model.safetensors`, or
//! `model-00001-of-0000N.safetensors` and the index. Source: Transformers' documentation of sharded
//! checkpoints; read back by [`crate::safetensors::SafeTensors::open_folder`].

#![expect(
    clippy::indexing_slicing,
    reason = "it writes what mmx counted itself; the parent's lints are for reading files of others"
)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::file;
use crate::safetensors::{self, FILE_NAME, INDEX_NAME, TensorSpec};

/// Tensors in their order, as many to a file as fit in `limit` bytes; at least one.
pub fn split(tensors: &[TensorSpec], limit: u64) -> Vec<Vec<usize>> {
    let mut shards: Vec<Vec<usize>> = Vec::new();
    let mut size = 0u64;
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.bytes() as u64;
        match shards.last_mut() {
            Some(shard) if size.saturating_add(bytes) <= limit => {
                shard.push(i);
                size = size.saturating_add(bytes);
            }
            _ => {
                shards.push(vec![i]);
                size = bytes;
            }
        }
    }
    shards
}

/// Writes a folder's weights: one file, or shards of at most `limit` bytes of tensors and their
/// index. `data(i)` gives the bytes of `tensors[i]`.
///
/// # Errors
/// See [`safetensors::write`].
pub fn write<'a>(
    dir: &Path,
    tensors: &[TensorSpec],
    extra: &BTreeMap<String, String>,
    limit: Option<u64>,
    mut data: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    let shards = split(tensors, limit.unwrap_or(u64::MAX));
    if shards.len() < 2 {
        safetensors::write(&dir.join(FILE_NAME), tensors, extra, data)?;
        return Ok(());
    }
    let mut weight_map = BTreeMap::new();
    for (n, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", n.saturating_add(1), shards.len());
        let specs: Vec<TensorSpec> = shard.iter().map(|&i| tensors[i].clone()).collect();
        safetensors::write(&dir.join(&name), &specs, extra, |i| data(shard[i]))?;
        weight_map.extend(specs.into_iter().map(|spec| (spec.name, name.clone())));
    }
    let total: u64 = tensors.iter().map(|tensor| tensor.bytes() as u64).sum();
    let weight_map: Map<String, Value> =
        weight_map.into_iter().map(|(tensor, file)| (tensor, file.into())).collect();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    let path = dir.join(INDEX_NAME);
    let mut text =
        serde_json::to_string_pretty(&index).map_err(|e| Error::format(&path, e.to_string()))?;
    text.push('\n');
    file::write_bytes(&path, text.as_bytes())
}

/// True for a file that holds weights of a folder, or says where they are.
pub fn is_weights(name: &str) -> bool {
    let shard = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    name == FILE_NAME || name == INDEX_NAME || shard.is_some_and(|rest| rest.contains("-of-"))
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests may panic"
)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    fn tensors() -> Vec<TensorSpec> {
        [("a", 4), ("b", 2), ("c", 20), ("d", 1), ("e", 1)]
            .map(|(name, n)| TensorSpec { name: name.into(), dtype: Dtype::F32, shape: vec![n] })
            .to_vec()
    }

    #[test]
    fn shards_keep_the_order_and_the_limit() {
        assert_eq!(split(&tensors(), 24), [vec![0, 1], vec![2], vec![3, 4]]);
        assert_eq!(split(&tensors(), 1), [vec![0], vec![1], vec![2], vec![3], vec![4]]);
        assert_eq!(split(&tensors(), u64::MAX).len(), 1);
    }

    #[test]
    fn shards_read_back_and_the_index_counts_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let specs = tensors();
        let bytes = |i: usize| vec![i as u8; specs[i].bytes()];
        write(dir.path(), &specs, &BTreeMap::new(), Some(24), |i| Ok(bytes(i).into())).unwrap();
        let text = fs_err::read_to_string(dir.path().join(INDEX_NAME)).unwrap();
        let index: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(index["metadata"]["total_size"], 28 * 4);
        assert_eq!(index["weight_map"]["c"], "model-00002-of-00003.safetensors");
        let all = safetensors::SafeTensors::open_folder(dir.path()).unwrap();
        for (i, spec) in specs.iter().enumerate() {
            assert_eq!(all.get(&spec.name).unwrap().data, bytes(i));
        }
        assert!(is_weights("model-00002-of-00003.safetensors") && is_weights(INDEX_NAME));
        assert!(!is_weights("model-card.safetensors") && !is_weights("adapter_model.safetensors"));
    }
}
