//! Sizes of files, and of their records by random key; which keys are taken.

use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::{Error, Result};

use super::settings::{Share, Unit};
use crate::reading::{self, Reading};
use crate::words::mixed;

/// Buckets of keys.
const BUCKETS: usize = 1 << 16;

/// A file's sizes.
pub(super) struct Measured {
    pub(super) records: u64,
    pub(super) faulty: u64,
    /// In the unit.
    pub(super) size: u64,
    /// Bytes of its records' lines.
    pub(super) bytes: u64,
    buckets: Vec<u64>,
    /// Each record's size, 4 bytes.
    pub(super) sizes: std::io::BufReader<fs_err::File>,
}

/// The key of a record, and the place of a copy: functions of the seed, the file and the record.
pub(super) fn key(seed: u64, source: usize, record: u64, stream: u64) -> u64 {
    let start = mixed(seed ^ 0x6d6d_7800_0000_0000 ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed(mixed(start ^ source as u64).wrapping_add(record))
}

/// The stream of keys; the copies' places have the streams from 1 on.
pub(super) const KEYS: u64 = 0;

/// The size of texts.
fn size(texts: &[String], unit: Unit, tokenizer: Option<&Tokenizer>) -> Result<u64> {
    match (unit, tokenizer) {
        (Unit::Records, _) => Ok(1),
        (Unit::Tokens, Some(tokenizer)) => {
            texts.iter().map(|text| Ok(tokenizer.encode_plain(text)?.len() as u64)).sum()
        }
        (Unit::Characters | Unit::Tokens, _) => {
            Ok(texts.iter().map(|text| text.chars().count() as u64).sum())
        }
    }
}

/// Measures a file; its records' sizes lie in `folder` meanwhile.
pub(super) fn measure(
    reading: &Reading,
    (source, path): (usize, &PathBuf),
    unit: Unit,
    tokenizer: Option<&Tokenizer>,
    seed: u64,
    folder: &Path,
) -> Result<Measured> {
    let one = Reading { files: vec![path.clone()], ..reading.clone() };
    let held = folder.join(format!("sizes-{source}"));
    let io = |e| Error::io(&held, e);
    let mut options = fs_err::OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true);
    let mut file = BufWriter::new(options.open(&held).map_err(io)?);
    let (mut all, mut bytes, mut records) = (0u64, 0u64, 0u64);
    let mut buckets = vec![0u64; BUCKETS];
    let work = |raw: reading::Raw<'_>| {
        Ok::<_, Error>((size(&raw.texts(), unit, tokenizer)?, raw.line().len() as u64 + 1))
    };
    let read = reading::for_each(&one, "measuring", work, |made| {
        let (size, length) = made?;
        let size = u32::try_from(size).map_err(|_| {
            Error::failed(format!("{}: expected records below 4 G, found {size}", path.display()))
        })?;
        file.write_all(&size.to_le_bytes()).map_err(io)?;
        buckets[(key(seed, source, records, KEYS) >> 48) as usize] += u64::from(size);
        (all, bytes, records) = (all + u64::from(size), bytes + length, records + 1);
        Ok(())
    })?;
    let mut file = file.into_inner().map_err(|e| io(e.into_error()))?;
    file.rewind().map_err(io)?;
    let sizes = std::io::BufReader::new(file);
    Ok(Measured { records, faulty: read.faulty, size: all, bytes, buckets, sizes })
}

/// How often a file's records are taken: all `whole` times, those with a key below `limit` once
/// more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Times {
    pub(super) passes: f64,
    pub(super) whole: u64,
    pub(super) limit: u64,
}

impl Times {
    pub(super) fn of(&self, key: u64) -> u64 {
        self.whole + u64::from(key < self.limit)
    }
}

impl Measured {
    /// How often its records are taken for so many passes.
    pub(super) fn times(&self, passes: f64) -> Times {
        let whole = passes.floor();
        let mut rest = (passes - whole) * self.size as f64;
        let mut limit = 0u64;
        for (bucket, &size) in self.buckets.iter().enumerate() {
            if rest < size as f64 {
                limit = ((bucket as u64) << 48) + (rest / size as f64 * (1u64 << 48) as f64) as u64;
                break;
            }
            rest -= size as f64;
            limit = ((bucket as u64 + 1) << 48).max(limit);
        }
        Times { passes, whole: whole as u64, limit: if passes > whole { limit } else { 0 } }
    }
}

/// The passes through each file that its share asks for.
pub(super) fn passes(
    sources: &[(PathBuf, Share)],
    measured: &[Measured],
    total: Option<u64>,
) -> Result<Vec<f64>> {
    let weights: f64 = sources
        .iter()
        .map(|(_, share)| if let Share::Weight(weight) = share { *weight } else { 0.0 })
        .sum();
    let own: u64 = measured.iter().map(|m| m.size).sum();
    let total = total.unwrap_or(own) as f64;
    let of = |((path, share), measured): (&(PathBuf, Share), &Measured)| {
        if measured.size == 0 && !matches!(share, Share::Passes(_)) {
            let path = path.display();
            return Err(Error::failed(format!(
                "{path}: expected records to take from, found none"
            )));
        }
        Ok(match share {
            Share::Passes(passes) => *passes,
            Share::Weight(weight) => total * weight / weights / measured.size as f64,
            Share::Budget(budget) => *budget as f64 / measured.size as f64,
        })
    };
    sources.iter().zip(measured).map(of).collect()
}
