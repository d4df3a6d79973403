//! The text of data files: as they are, or unpacked from gzip or zstd (told by their first bytes,
//! not their names).

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use mmx_converters::file::Bytes;

use mmx_converters::{Error, Result};

/// The form that a table's rows are to be written in.
const TO_LINES: &str = "write its rows as JSON Lines, an object each: in Python, \
     `datasets.load_dataset(...)[\"train\"].to_json(\"data.jsonl\", force_ascii=False)`";
const UNPACK: &str = "unpack it, and give the files in it; gzip and zstd need not be unpacked";

/// The first bytes of a Parquet file. Source: apache/parquet-format, README.md.
pub(super) const PARQUET: &[u8] = b"PAR1";

/// Files that are known by their first bytes: where those stand, the bytes, what it is, what to do.
/// Sources: the formats' own specifications.
const FORMATS: [(usize, &[u8], &str, &str); 15] = [
    // a file of its own is read as a table: this one lies in an archive
    (0, PARQUET, "a Parquet file", UNPACK),
    (0, b"PARE", "an encrypted Parquet file", TO_LINES),
    (0, b"ARROW1", "an Arrow file", TO_LINES),
    (0, b"FEA1", "an Arrow (Feather) file", TO_LINES),
    (0, &[0xff; 4], "an Arrow stream", TO_LINES),
    (0, b"Obj\x01", "an Avro file", TO_LINES),
    (0, b"SQLite format 3\0", "an SQLite data base", TO_LINES),
    (0, b"\x93NUMPY", "a NumPy array", TO_LINES),
    (0, b"PK\x03\x04", "a zip archive (or an Office document)", UNPACK),
    (0, b"\xfd7zXZ\0", "an xz archive", UNPACK),
    (4, b"1AY&SY", "a bzip2 archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, &[0xff, 0xfe], "UTF-16", "`iconv -f UTF-16 -t UTF-8 IN > OUT` converts it"),
    (0, &[0xfe, 0xff], "UTF-16", "`iconv -f UTF-16 -t UTF-8 IN > OUT` converts it"),
];

/// The text of a file. Errors of a packed file say what is wrong with the archive.
pub struct Source {
    text: Box<dyn BufRead + Send>,
    archive: Option<&'static str>,
}

impl Source {
    /// Opens a file.
    ///
    /// # Errors
    /// No file, a folder, a Git LFS pointer, or a file that is known to be no text by its first
    /// bytes.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fs_err::File::open(path).map_err(|e| Error::io(path, e))?;
        if !file.metadata().map_err(|e| Error::io(path, e))?.is_file() {
            return Err(Error::failed(format!(
                "{}: expected a file, found a folder or device",
                path.display()
            )));
        }
        let mut file = BufReader::with_capacity(1 << 18, file);
        let head = file.fill_buf().map_err(|e| Error::io(path, e))?;
        Bytes::owned(head[..head.len().min(1024)].to_vec(), path)?;
        if head.starts_with(&[0x1f, 0x8b]) {
            let text =
                BufReader::with_capacity(1 << 18, flate2::bufread::MultiGzDecoder::new(file));
            return Self { text: Box::new(text), archive: Some("gzip") }.checked(path);
        }
        if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let text = zstd::stream::read::Decoder::with_buffer(file);
            let text = BufReader::with_capacity(1 << 18, text.map_err(|e| Error::io(path, e))?);
            return Self { text: Box::new(text), archive: Some("zstd") }.checked(path);
        }
        Self { text: Box::new(file), archive: None }.checked(path)
    }

    /// Refuses what is no text, in one sentence instead of one for each of its lines.
    fn checked(mut self, path: &Path) -> Result<Self> {
        let head = self.fill_buf().map_err(|e| Error::io(path, e))?;
        let Some((what, hint)) = FORMATS
            .iter()
            .find(|(at, magic, ..)| head.get(*at..).is_some_and(|head| head.starts_with(magic)))
            .map(|(_, _, what, hint)| (what, hint))
        else {
            return Ok(self);
        };
        Err(Error::failed_with_hint(
            format!(
                "{}: expected text (JSON Lines, or a JSON array of records), found {what}",
                path.display()
            ),
            *hint,
        ))
    }

    fn explain(archive: Option<&str>, error: io::Error) -> io::Error {
        match archive {
            Some(name) if error.kind() == io::ErrorKind::UnexpectedEof => io::Error::other(
                format!("expected a whole {name} archive, found one that is cut off"),
            ),
            Some(name) => {
                io::Error::other(format!("expected a {name} archive, found a damaged one: {error}"))
            }
            None => error,
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.text.read(buffer).map_err(|e| Self::explain(self.archive, e))
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let archive = self.archive;
        self.text.fill_buf().map_err(|e| Self::explain(archive, e))
    }

    fn consume(&mut self, amount: usize) {
        self.text.consume(amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_text_are_named_by_their_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        let mut seen = 0;
        for (at, magic, what, _) in FORMATS {
            let bytes = [&vec![b'a'; at][..], magic, b"rest"].concat();
            for packed in [bytes.clone(), zstd::encode_all(&bytes[..], 1).unwrap()] {
                fs_err::write(&path, packed).unwrap();
                let error = Source::open(&path).err().map(|e| e.to_string()).unwrap();
                assert!(error.ends_with(&format!("found {what}")), "{error}");
                seen += 1;
            }
        }
        assert_eq!(seen, 2 * FORMATS.len());
    }
}
