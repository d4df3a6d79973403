//! GGUF in several files, `NAME-00001-of-00003.gguf` and so on: every one a GGUF of its own, the
//! first with the model's keys, all with `split.no` (from 0), `split.count` and
//! `split.tensors.count` (of all files).
//!
//! In: the keys of an open part. Out: where the others are, and whether they belong together. Also
//! the way out: which tensor goes into which file. Source: llama.cpp's loader
//! (`llama_model_loader`), `llama_split_path`, and llama-gguf-split.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::metadata::{DEFAULT_ALIGNMENT, Metadata, Value};
use super::write::{self, TensorSpec};
use crate::error::{Error, Result};
use crate::file;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// Files that one model is written in at most: all of them are open until the last one is written.
const MAX_PARTS: usize = 512;

/// Files and their sizes in bytes, in order.
pub type Files = Vec<(PathBuf, u64)>;

/// True for a key that says which part of a split model a file is.
pub fn is_split_key(key: &str) -> bool {
    [NUMBER, COUNT, TENSORS].contains(&key)
}

/// A split model as one of its parts describes it.
pub(super) struct Split {
    /// Where the part lies.
    path: PathBuf,
    /// Which part it is, from 0.
    pub(super) number: usize,
    count: usize,
    tensors: u64,
}

impl Split {
    /// The part that a file is by its keys; nothing for a file that is a whole model.
    pub(super) fn of(path: &Path, metadata: &Metadata) -> Result<Option<Self>> {
        let Some(count) = metadata.get(COUNT) else { return Ok(None) };
        let number =
            |key: &str, value: Option<&Value>, most: u64| match value.and_then(Value::as_u64) {
                Some(n) if n <= most => Ok(n),
                _ => {
                    let found = value.map_or_else(|| "none".to_owned(), Value::describe);
                    let message = format!("expected a whole number up to {most}, found {found}");
                    Err(Error::key(path, key, message))
                }
            };
        let count = number(COUNT, Some(count), u16::MAX.into())?;
        if count < 2 {
            return Ok(None);
        }
        let at = number(NUMBER, metadata.get(NUMBER), count.saturating_sub(1))?;
        let most = i32::MAX.unsigned_abs().into();
        let tensors = number(TENSORS, metadata.get(TENSORS), most)?;
        let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let path = path.to_owned();
        Ok(Some(Self { path, number: index(at), count: index(count), tensors }))
    }

    /// All files, which are there.
    pub(super) fn paths(&self) -> Result<Vec<PathBuf>> {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        let end = end(self.number, self.count);
        let stem = name.as_deref().and_then(|name| name.strip_suffix(&end));
        let Some(stem) = stem else {
            return Err(Error::format(
                &self.path,
                format!(
                    "expected a name that ends in {end}, since it is part {} of {}, found another",
                    self.number.saturating_add(1),
                    self.count
                ),
            ));
        };
        let paths =
            (0..self.count).map(|i| self.path.with_file_name(part_name(stem, i, self.count)));
        let paths: Vec<PathBuf> = paths.collect();
        let missing: Vec<_> = paths
            .iter()
            .filter(|path| !path.is_file())
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        let Some(first) = missing.first() else { return Ok(paths) };
        let more = match missing.len().saturating_sub(1) {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        Err(Error::format(
            &self.path,
            format!("expected {} parts side by side, found no {first}{more}", self.count),
        ))
    }

    /// Refuses the file at `path` if by its keys it is not part `i` of this model.
    pub(super) fn check(&self, path: &Path, metadata: &Metadata, i: usize) -> Result<()> {
        let wanted = [(NUMBER, i as u64), (COUNT, self.count as u64), (TENSORS, self.tensors)];
        for (key, expected) in wanted {
            let found = metadata.get(key);
            if found.and_then(Value::as_u64) != Some(expected) {
                let found = found.map_or_else(|| "none".to_owned(), Value::describe);
                let message = format!("expected {expected}, found {found}");
                return Err(Error::key(path, key, message));
            }
        }
        Ok(())
    }

    /// Refuses parts that together have more or fewer tensors than they say: `found` of them.
    pub(super) fn check_count(&self, path: &Path, found: usize) -> Result<()> {
        if found as u64 == self.tensors {
            return Ok(());
        }
        let message = format!("expected {} tensors in all parts, found {found}", self.tensors);
        Err(Error::key(path, TENSORS, message))
    }
}

/// `-00001-of-00003.gguf` for part 0 of 3.
fn end(i: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", i.saturating_add(1))
}

fn part_name(stem: &str, i: usize, count: usize) -> String {
    format!("{stem}{}", end(i, count))
}

/// Stem, number (from 1) and count in a file's name that is one of a split model's.
fn numbers(path: &Path) -> Option<(&str, u32, u32)> {
    let (rest, count) = path.file_name()?.to_str()?.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let number_of = |text: &str| text.parse::<u32>().ok().filter(|_| text.len() == 5);
    let (number, count) = (number_of(number)?, number_of(count)?);
    (1..=count).contains(&number).then_some((stem, number, count))
}

/// True for a file named as one of a split model that is not the first.
pub fn is_further_part(path: &Path) -> bool {
    numbers(path).is_some_and(|(_, number, _)| number > 1)
}

/// A split model's path as if it were one file: `m.gguf` for `m-00002-of-00003.gguf`.
pub fn without_part(path: &Path) -> PathBuf {
    match numbers(path) {
        Some((stem, ..)) => path.with_file_name(format!("{stem}.gguf")),
        None => path.to_owned(),
    }
}

/// Tensors in their order, as many to a file as fit in `limit` bytes; at least one. As
/// llama-gguf-split counts: padded sizes, without the header.
fn plan(tensors: &[TensorSpec], limit: u64) -> Vec<std::ops::Range<usize>> {
    let mut parts: Vec<std::ops::Range<usize>> = Vec::new();
    let mut size = 0u64;
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.bytes().unwrap_or_default();
        let bytes = bytes.next_multiple_of(DEFAULT_ALIGNMENT as usize) as u64;
        match parts.last_mut() {
            Some(part) if size.saturating_add(bytes) <= limit => {
                part.end = i + 1;
                size += bytes;
            }
            _ => {
                parts.push(i..i + 1);
                size = bytes;
            }
        }
    }
    parts
}

/// The files that [`write_split`] writes.
pub fn part_paths(path: &Path, tensors: &[TensorSpec], limit: Option<u64>) -> Vec<PathBuf> {
    let count = limit.map_or(1, |limit| plan(tensors, limit).len());
    if count < 2 {
        return vec![path.to_owned()];
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    (0..count).map(|i| path.with_file_name(part_name(stem, i, count))).collect()
}

/// Writes a model in files of at most `limit` bytes of tensors, named as llama-gguf-split names
/// them after `path`; in the one file `path` where it fits, or without a limit. None of them
/// appears before all are written. `data(i)` gives the bytes of tensor `i`, called once for each,
/// in order. Returns the files and their sizes in bytes.
///
/// # Errors
/// As [`gguf::write`](super::write()); more than 512 parts.
pub fn write_split<'a>(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorSpec],
    limit: Option<u64>,
    mut data: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<Files> {
    let parts = limit.map_or_else(Vec::new, |limit| plan(tensors, limit));
    if parts.len() < 2 {
        let size = write::write(path, metadata, tensors, data)?;
        return Ok(vec![(path.to_owned(), size)]);
    }
    if parts.len() > MAX_PARTS {
        return Err(Error::unsupported(
            path.display().to_string(),
            format!("expected a size that gives up to {MAX_PARTS} parts, found {}", parts.len()),
        ));
    }
    let count = parts.len();
    let files: Vec<Part> = parts
        .into_iter()
        .zip(part_paths(path, tensors, limit))
        .enumerate()
        .map(|(i, (range, path))| {
            let mut keys = if i == 0 { metadata.clone() } else { Metadata::new() };
            keys.set(NUMBER, Value::U16(i as u16));
            keys.set(COUNT, Value::U16(count as u16));
            keys.set(TENSORS, Value::I32(tensors.len() as i32));
            if let Some(alignment) = metadata.get("general.alignment") {
                keys.set("general.alignment", alignment.clone());
            }
            Part { path, keys, range }
        })
        .collect();
    let mut sizes = vec![0; count];
    write_parts(&files, &mut sizes, tensors, &mut data)?;
    Ok(files.into_iter().map(|part| part.path).zip(sizes).collect())
}

/// A file to be written.
struct Part {
    path: PathBuf,
    keys: Metadata,
    range: std::ops::Range<usize>,
}

/// Writes the first of `files`, and while it is not yet there the others: the last one appears
/// first.
fn write_parts<'a>(
    files: &[Part],
    sizes: &mut [u64],
    tensors: &[TensorSpec],
    data: &mut dyn FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    let (Some((part, files)), Some((size, sizes))) = (files.split_first(), sizes.split_first_mut())
    else {
        return Ok(());
    };
    file::write_whole(&part.path, |out| {
        let (own, begin) = (&tensors[part.range.clone()], part.range.start);
        *size = write::emit(&part.path, out, &part.keys, own, |i| data(begin + i))?;
        write_parts(files, sizes, tensors, data)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgmlType;

    #[test]
    fn parts_keep_the_order_and_the_limit_of_padded_sizes() {
        // 4, 36, 400, 4 bytes: padded 32, 64, 416, 32
        let specs: Vec<TensorSpec> = [1, 9, 100, 1]
            .map(|n| TensorSpec { name: format!("t{n}"), shape: vec![n], ty: GgmlType::F32 })
            .to_vec();
        assert_eq!(plan(&specs, 96), [0..2, 2..3, 3..4]);
        assert_eq!(plan(&specs, 95), [0..1, 1..2, 2..3, 3..4]);
        assert_eq!(plan(&specs, 448), [0..2, 2..4]);
        assert_eq!(plan(&specs, u64::MAX).len(), 1);
        assert!(plan(&[], 1).is_empty());
    }

    #[test]
    fn further_parts_are_known_by_their_names() {
        for (name, further) in [
            ("m-00001-of-00003.gguf", false),
            ("m-00002-of-00003.gguf", true),
            ("m-q4_0-00003-of-00003.gguf", true),
            ("m-00004-of-00003.gguf", false),
            ("m-2-of-3.gguf", false),
            ("m-00002-of-00003.safetensors", false),
            ("one-of-two.gguf", false),
            ("m.gguf", false),
        ] {
            assert_eq!(is_further_part(&Path::new("dir").join(name)), further, "{name}");
        }
        let whole = without_part(Path::new("dir/m-q4_0-00003-of-00003.gguf"));
        assert_eq!(whole, Path::new("dir/m-q4_0.gguf"));
        assert_eq!(without_part(Path::new("m-of-4.gguf")), Path::new("m-of-4.gguf"));
    }
}
