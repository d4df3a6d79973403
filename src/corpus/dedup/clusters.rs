//! Signatures to clusters: records that share a key in any column, directly or through others.

use std::io::{Read, Write};
use std::path::Path;

use mmx_converters::{Error, Result};
use rayon::slice::ParallelSliceMut;
use serde::{Deserialize, Serialize};

use super::store::{Head, Input, Signatures};

/// Bytes that keys take which are sorted at once.
pub const SORTED_BYTES: usize = 256 << 20;

const MAGIC: &[u8; 8] = b"MMXDUP1\n";

/// The first record of every record's cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clusters {
    pub(super) head: Head,
    /// By record, in the order of the files: the index of its cluster's first.
    first: Vec<u32>,
    /// By record: it has the normalised text of an earlier one.
    exact: Vec<bool>,
}

/// The clusters of files of signatures, in the order given: earlier records stay.
///
/// # Errors
/// Files of other settings, more than 4 294 967 294 records.
pub fn cluster(files: &[Signatures], sorted_bytes: usize) -> Result<Clusters> {
    let Some(one) = files.first() else {
        return Err(Error::failed("expected files of signatures, found none"));
    };
    let settings = one.head.settings;
    if let Some(other) = files.iter().find(|file| file.head.settings != settings) {
        return Err(Error::failed(format!(
            "{}: expected the settings of {}, {settings:?}, found {:?}",
            other.path().display(),
            one.path().display(),
            other.head.settings
        )));
    }
    let records: u64 = files.iter().map(Signatures::records).sum();
    let count = u32::try_from(records).ok().filter(|count| *count < u32::MAX).ok_or_else(|| {
        Error::failed(format!("expected at most {} records at once, found {records}", u32::MAX - 1))
    })?;
    let mut sets = Sets { parent: (0..count).collect() };
    let mut exact = vec![false; count as usize];
    for column in 0..=settings.bands {
        for_each_group(files, column, records, sorted_bytes, |group| {
            for &index in &group[1..] {
                sets.join(group[0], index);
                if column == 0 {
                    exact[index as usize] = true;
                }
            }
        })?;
    }
    let first = (0..count).map(|index| sets.first(index)).collect();
    let inputs = files.iter().flat_map(|file| file.head.inputs.clone()).collect();
    let skipped = files.iter().map(|file| file.head.skipped).sum();
    Ok(Clusters { head: Head { settings, inputs, skipped }, first, exact })
}

/// Calls `take` with the records, in order, of every key of a column that several have. Keys are
/// sorted in as many rounds as their bytes need, by their lowest bits.
fn for_each_group(
    files: &[Signatures],
    column: usize,
    records: u64,
    sorted_bytes: usize,
    mut take: impl FnMut(&[u32]),
) -> Result<()> {
    let entry = std::mem::size_of::<(u128, u32)>() as u64;
    let rounds = (records * entry).div_ceil(sorted_bytes.max(1 << 12) as u64).max(1);
    for round in 0..rounds {
        let mut keys: Vec<(u128, u32)> = Vec::new();
        let mut index = 0u32;
        for file in files {
            file.column(column, |key| {
                // a band's 0 is a record without words
                if (column == 0 || key != 0) && key % u128::from(rounds) == u128::from(round) {
                    keys.push((key, index));
                }
                index += 1;
            })?;
        }
        keys.par_sort_unstable();
        for group in keys.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1) {
            let indices: Vec<u32> = group.iter().map(|(_, index)| *index).collect();
            take(&indices);
        }
    }
    Ok(())
}

/// Disjoint sets, each known by its least member.
struct Sets {
    parent: Vec<u32>,
}

impl Sets {
    fn first(&mut self, mut index: u32) -> u32 {
        while self.parent[index as usize] != index {
            let above = self.parent[self.parent[index as usize] as usize];
            self.parent[index as usize] = above; // path halving
            index = above;
        }
        index
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.first(a), self.first(b));
        self.parent[a.max(b) as usize] = a.min(b);
    }
}

/// What the head of a file of clusters holds.
#[derive(Serialize, Deserialize)]
struct OnDisk {
    head: Head,
    records: u64,
}

impl Clusters {
    /// Records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// True without records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Records that are not the first of their cluster.
    #[must_use]
    pub fn duplicates(&self) -> usize {
        self.first.iter().enumerate().filter(|(index, first)| *index != **first as usize).count()
    }

    /// The first record of a record's cluster, and whether its text is exactly that of an earlier
    /// one; nothing for a record that is the first itself.
    #[must_use]
    pub fn duplicate(&self, index: usize) -> Option<(usize, bool)> {
        let first = *self.first.get(index)? as usize;
        (first != index).then(|| (first, self.exact[index]))
    }

    /// The place of a record: its file's name, and its number in it, from 1.
    pub(super) fn place(&self, index: usize) -> (String, u64) {
        let mut rest = index as u64;
        for input in &self.head.inputs {
            if rest < input.records {
                return (input.name.clone(), rest + 1);
            }
            rest -= input.records;
        }
        (String::new(), rest)
    }

    /// The index of the first record of files, which were signed one after the other.
    pub(super) fn start_of(&self, files: &[Input]) -> Option<usize> {
        let is = |at: usize| {
            files.iter().zip(&self.head.inputs[at..]).all(|(file, signed)| file.is(signed))
        };
        let inputs = &self.head.inputs;
        let at = (0..=inputs.len().checked_sub(files.len())?).find(|at| is(*at))?;
        Some(self.records_of(at))
    }

    /// Records of the first few files.
    pub(super) fn records_of(&self, files: usize) -> usize {
        self.head.inputs[..files].iter().map(|input| input.records as usize).sum()
    }

    /// Writes the clusters.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn write(&self, out: &mut dyn Write, path: &Path) -> Result<()> {
        let io = |e| Error::io(path, e);
        let head = OnDisk { head: self.head.clone(), records: self.first.len() as u64 };
        let text = serde_json::to_vec(&head).map_err(|e| Error::format(path, e.to_string()))?;
        out.write_all(MAGIC).map_err(io)?;
        out.write_all(&(text.len() as u32).to_le_bytes()).map_err(io)?;
        out.write_all(&text).map_err(io)?;
        for (first, exact) in self.first.iter().zip(&self.exact) {
            let [a, b, c, d] = first.to_le_bytes();
            out.write_all(&[a, b, c, d, u8::from(*exact)]).map_err(io)?;
        }
        Ok(())
    }

    /// Reads clusters.
    ///
    /// # Errors
    /// A file that is none, or that is cut off.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = mmx_converters::file::Bytes::map(path)?;
        let foreign = || {
            Error::format(path, "expected clusters that `mmx data dedup` wrote, found other bytes")
        };
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(foreign)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(foreign)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (text, mut rest) = rest.split_at_checked(length).ok_or_else(foreign)?;
        let disk: OnDisk = serde_json::from_slice(text).map_err(|_| foreign())?;
        if disk.records.checked_mul(5) != Some(rest.len() as u64)
            || disk.records != disk.head.records()
        {
            return Err(foreign());
        }
        let (mut first, mut exact) = (Vec::new(), Vec::new());
        let mut entry = [0; 5];
        while rest.read_exact(&mut entry).is_ok() {
            let [a, b, c, d, same] = entry;
            let index = u32::from_le_bytes([a, b, c, d]);
            if index as usize > first.len() {
                return Err(foreign()); // the first of a cluster is never behind
            }
            first.push(index);
            exact.push(same != 0);
        }
        Ok(Self { head: disk.head, first, exact })
    }
}
