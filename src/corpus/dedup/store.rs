//! Signatures on disk: column after column, so that a column is sorted without the others.
//!
//! A file is `MMXSIG1\n`, the length of its head (4 bytes, little end first), the head as JSON, then
//! the column of exact hashes (16 bytes each) and one of 8 bytes each for every band.

use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use mmx_converters::{Error, Result, file};
use serde::{Deserialize, Serialize};

use super::sign::{Settings, Signer};
use crate::reading::{self, Reading};
use crate::words::hash;

const MAGIC: &[u8; 8] = b"MMXSIG1\n";

/// What a file of signatures says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) settings: Settings,
    /// The files that were signed.
    pub(super) inputs: Vec<Input>,
    /// Faulty records were left out.
    pub(super) skipped: u64,
}

/// A file whose records were signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// The hash of its first 64 KiB: shards may have one name in many folders.
    pub(super) begins: u64,
    pub(super) records: u64,
}

impl Input {
    /// A file by its name, size and beginning.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let file = fs_err::File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut begin = Vec::new();
        file.take(1 << 16).read_to_end(&mut begin).map_err(io)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, bytes, begins: hash(&begin, 0), records: 0 })
    }

    /// True for the same file, whatever was counted of it.
    pub(super) fn is(&self, other: &Self) -> bool {
        (&self.name, self.bytes, self.begins) == (&other.name, other.bytes, other.begins)
    }
}

impl Head {
    pub(super) fn records(&self) -> u64 {
        self.inputs.iter().map(|input| input.records).sum()
    }
}

/// A file of signatures.
#[derive(Debug)]
pub struct Signatures {
    path: PathBuf,
    pub(super) head: Head,
    /// Where the columns begin.
    start: u64,
}

/// Writes the signatures of all records of files to `path`; the file appears when it is whole.
///
/// # Errors
/// Files that cannot be read or written, faulty records.
pub fn sign(reading: &Reading, settings: Settings, path: &Path) -> Result<Signatures> {
    settings.check()?;
    let signer = Signer::new(settings);
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let io = |e| Error::io(path, e);
    let column = || {
        let file = tempfile::tempfile_in(folder).map_err(io)?;
        Ok::<_, Error>(BufWriter::with_capacity(1 << 18, file))
    };
    let mut columns = (0..=settings.bands).map(|_| column()).collect::<Result<Vec<_>>>()?;
    let mut inputs =
        reading.files.iter().map(|file| Input::of(file)).collect::<Result<Vec<_>>>()?;
    let read = reading::for_each(
        reading,
        "signing",
        |raw| {
            let texts = raw.texts();
            // a record without a string is known by its numbers
            let texts = if texts.is_empty() { vec![raw.line()] } else { texts };
            (raw.source.file, signer.sign(&texts))
        },
        |(file, signature)| {
            inputs[file].records += 1;
            columns[0].write_all(&signature.exact.to_le_bytes()).map_err(io)?;
            for (column, key) in columns[1..].iter_mut().zip(&signature.bands) {
                column.write_all(&key.to_le_bytes()).map_err(io)?;
            }
            Ok(())
        },
    )?;
    let head = Head { settings, inputs, skipped: read.faulty };
    let text = serde_json::to_vec(&head).map_err(|e| Error::format(path, e.to_string()))?;
    let length = u32::try_from(text.len())
        .map_err(|_| Error::format(path, "expected fewer files of signatures"))?;
    file::write_whole(path, |out| {
        out.write_all(MAGIC).map_err(io)?;
        out.write_all(&length.to_le_bytes()).map_err(io)?;
        out.write_all(&text).map_err(io)?;
        for column in columns {
            let mut column = column.into_inner().map_err(|e| io(e.into_error()))?;
            column.rewind().map_err(io)?;
            std::io::copy(&mut column, out).map_err(io)?;
        }
        Ok(())
    })?;
    Signatures::open(path)
}

impl Signatures {
    /// Opens a file of signatures.
    ///
    /// # Errors
    /// A file that is none, or that is cut off.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = fs_err::File::open(path).map_err(|e| Error::io(path, e))?;
        let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let foreign = || {
            Error::format(
                path,
                "expected signatures that `mmx data dedup` wrote, found other bytes",
            )
        };
        let mut begin = [0; 12];
        file.read_exact(&mut begin).map_err(|_| foreign())?;
        let (magic, length) = begin.split_at(8);
        let length = u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
        if magic != MAGIC || length > size {
            return Err(foreign());
        }
        let mut text = Vec::new();
        file.take(length).read_to_end(&mut text).map_err(|e| Error::io(path, e))?;
        let head: Head = serde_json::from_slice(&text).map_err(|_| foreign())?;
        head.settings.check()?;
        let start = 12 + length;
        let of_record = 16 + 8 * head.settings.bands as u64;
        let expected = head.records().checked_mul(of_record).and_then(|n| n.checked_add(start));
        if expected != Some(size) {
            let message = format!(
                "expected signatures of {} records of {of_record} bytes, found {} bytes",
                head.records(),
                size - start
            );
            return Err(Error::format(path, message));
        }
        Ok(Self { path: path.to_owned(), head, start })
    }

    /// Records that were signed.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.head.records()
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `take` with every key of a column, in the records' order: 0 the exact hashes, then the
    /// bands.
    pub(super) fn column(&self, column: usize, mut take: impl FnMut(u128)) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        let width = if column == 0 { 16 } else { 8 };
        let before = if column == 0 { 0 } else { 16 + 8 * (column as u64 - 1) };
        let mut file = fs_err::File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(self.start + before * self.records())).map_err(io)?;
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut key = [0; 16];
        for _ in 0..self.records() {
            file.read_exact(&mut key[..width]).map_err(io)?;
            take(u128::from_le_bytes(key));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_signatures_is_read_as_it_was_written_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (input, path) = (dir.path().join("a.jsonl"), dir.path().join("a.sig"));
        fs_err::write(&input, "{\"text\": \"one two\"}\n{\"text\": \"\"}\n").unwrap();
        let settings = Settings { bands: 3, ..Settings::default() };
        let signatures = sign(&Reading::of(&[input]), settings, &path).unwrap();
        let signer = Signer::new(settings);
        let expected = ["one two", ""].map(|text| signer.sign(&[text.to_owned()]));
        let column = |column: usize| {
            let mut keys = Vec::new();
            signatures.column(column, |key| keys.push(key)).unwrap();
            keys
        };
        assert_eq!(column(0), [expected[0].exact, expected[1].exact]);
        for band in 0..3 {
            let keys = [0, 1].map(|i: usize| u128::from(expected[i].bands[band]));
            assert_eq!(column(band + 1), keys);
        }
        let bytes = fs_err::read(&path).unwrap();
        for (bad, words) in [
            (bytes[..bytes.len() - 1].to_vec(), "expected signatures of 2 records"),
            (b"other".to_vec(), "found other bytes"),
            ([&b"MMXSIG1\n\xff\xff\xff\xff"[..], b"{}"].concat(), "found other bytes"),
        ] {
            fs_err::write(&path, bad).unwrap();
            let error = Signatures::open(&path).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("a.sig"), "{error}");
        }
    }
}
