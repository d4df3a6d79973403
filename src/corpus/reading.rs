//! Files to records: read block by block, worked on by all threads, taken in the files' order.
//!
//! Memory is that of one block (8 MB of text, or one longer line) and what the work makes of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mmx_converters::progress::{Listener, Progress, Silent};
use mmx_converters::{Error, Result};
use mmx_data::blocks::Blocks;
use mmx_data::jsonl::{self, Line};
use mmx_data::{Fault, Fields, OnBad, texts};
use rayon::prelude::*;
use serde_json::{Map, Value};

/// The files that are read, and how.
#[derive(Clone, Debug)]
pub struct Reading {
    /// In the order in which their records come out.
    pub files: Vec<PathBuf>,
    /// Names of the files' keys.
    pub fields: Fields,
    /// What to do with a faulty record.
    pub on_bad: OnBad,
    /// Sees how far the work is.
    pub listener: Arc<dyn Listener>,
}

impl Reading {
    /// Files whose keys have the known names, a faulty record of which is an error.
    #[must_use]
    pub fn of(files: &[PathBuf]) -> Self {
        Self {
            files: files.to_vec(),
            fields: Fields::default(),
            on_bad: OnBad::Error,
            listener: Arc::new(Silent),
        }
    }
}

/// Where a record stands: the file's index and the line, of tables and arrays the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// Index among the files.
    pub file: usize,
    /// Line or record in it, from 1.
    pub number: usize,
}

/// A record as it was read.
#[derive(Debug)]
pub struct Raw<'a> {
    /// Where it stands.
    pub source: Source,
    /// Its JSON text.
    pub json: &'a str,
    /// Its keys, as they are in the file.
    pub object: Map<String, Value>,
    fields: &'a Fields,
}

impl Raw<'_> {
    /// The strings that a model would see, mapped keys under their known names; of a record of
    /// another form every string in it.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        let known = match self.fields.is_empty() {
            true => texts::of_object(&self.object),
            false => texts::of_object(&self.mapped()),
        };
        if !known.is_empty() {
            return known;
        }
        let mut all = Vec::new();
        self.object.values().for_each(|value| strings(value, &mut all));
        all
    }

    /// The record with mapped keys under their known names too.
    #[must_use]
    pub fn mapped(&self) -> Map<String, Value> {
        let mut mapped = self.object.clone();
        self.fields.apply(&mut mapped);
        mapped
    }

    /// The record as a line of its own: as it stands, unless it goes over several lines.
    #[must_use]
    pub fn line(&self) -> String {
        let json = self.json.trim();
        match json.contains(['\n', '\r']) {
            true => Value::Object(self.object.clone()).to_string(),
            false => json.to_owned(),
        }
    }
}

/// Every string within a value.
pub fn strings(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|value| strings(value, into)),
        Value::Object(object) => object.values().for_each(|value| strings(value, into)),
        _ => {}
    }
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Whole records.
    pub records: u64,
    /// Faulty ones that were skipped, the first few with their files.
    pub faulty: u64,
    /// The first of them.
    pub faults: Vec<(usize, Fault)>,
}

/// Calls `work` for every record, on all threads, and `take` with what it gave, in order.
///
/// # Errors
/// A file that cannot be read; a faulty record, unless they are skipped; what `take` returns.
pub fn for_each<T: Send>(
    reading: &Reading,
    doing: &str,
    work: impl Fn(Raw<'_>) -> T + Sync,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<Read> {
    /// Faults that are kept.
    const SHOWN: usize = 3;
    let sizes = reading.files.iter().map(|path| fs_err::metadata(path).map_or(0, |m| m.len()));
    let (total, mut done) = (sizes.sum(), 0);
    let mut read = Read::default();
    for (file, path) in reading.files.iter().enumerate() {
        let mut blocks = Blocks::open(path)?;
        while let Some(block) = blocks.next_block()? {
            let lines = block.lines();
            let made: Vec<std::result::Result<T, Fault>> =
                lines.par_iter().map(|line| raw(line, file, &reading.fields).map(&work)).collect();
            for made in made {
                match made {
                    Ok(made) => {
                        read.records += 1;
                        take(made)?;
                    }
                    Err(fault) if reading.on_bad == OnBad::Skip => {
                        read.faulty += 1;
                        if read.faults.len() < SHOWN {
                            read.faults.push((file, fault));
                        }
                    }
                    Err(fault) => return Err(faulty(path, fault)),
                }
            }
            done += block.read() as u64;
            reading.listener.progress(Progress::Bytes { doing, done, total });
        }
    }
    reading.listener.progress(Progress::Finished);
    Ok(read)
}

fn raw<'a>(
    line: &Line<'a>,
    file: usize,
    fields: &'a Fields,
) -> std::result::Result<Raw<'a>, Fault> {
    let object = jsonl::object(line)?;
    let json = jsonl::utf8(line)?;
    Ok(Raw { source: Source { file, number: line.label() }, json, object, fields })
}

/// A faulty record as an error.
pub(crate) fn faulty(path: &Path, fault: Fault) -> Error {
    let message = format!("{}: {}: {}", path.display(), fault.place(), fault.message);
    match fault.hint {
        Some(hint) => Error::failed_with_hint(message, hint),
        None => Error::failed(message),
    }
}
