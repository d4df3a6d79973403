//! The text of data files: as they are, or unpacked from gzip or zstd (told by their first bytes,
//! not their names), in blocks of whole lines or records, so that memory does not grow with the
//! file.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use mmx_converters::file::Bytes;

use super::jsonl::{self, Line};
use super::layout::{self, Layout, Span, Splitter};
use mmx_converters::{Error, Result};

/// Text read at once. A line longer than this makes its block longer.
const BLOCK_BYTES: u64 = 8 << 20;

/// The form that a table's rows are to be written in.
const TO_LINES: &str = "write its rows as JSON Lines, an object each: in Python, \
     `datasets.load_dataset(...)[\"train\"].to_json(\"data.jsonl\", force_ascii=False)`";
const UNPACK: &str = "unpack it, and give the files in it; gzip and zstd need not be unpacked";

/// Files that are known by their first bytes: where those stand, the bytes, what it is, what to do.
/// Sources: the formats' own specifications.
const FORMATS: [(usize, &[u8], &str, &str); 14] = [
    (0, b"PAR1", "a Parquet file", TO_LINES),
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

/// A block: whole lines of a file, or whole records where records are no lines.
pub struct Block {
    bytes: Vec<u8>,
    /// Number of the first line, from 1.
    first: usize,
    /// Where it begins in the text, bytes.
    offset: usize,
    /// Its records, where they are no lines.
    records: Option<Vec<Span>>,
}

impl Block {
    /// Its lines that are not blank, numbered as in the file; or its records.
    pub fn lines(&self) -> Vec<Line<'_>> {
        match &self.records {
            None => jsonl::lines_from(&self.bytes, self.first, self.offset).collect(),
            Some(records) => records.iter().map(|span| self.record(span)).collect(),
        }
    }

    fn record(&self, span: &Span) -> Line<'_> {
        Line {
            number: span.line,
            record: Some(span.record),
            offset: span.start,
            bytes: &self.bytes[span.start - self.offset..span.end - self.offset],
        }
    }

    /// Bytes of text.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// A file's blocks, in order.
pub struct Blocks {
    source: Source,
    path: PathBuf,
    line: usize,
    offset: usize,
    rest: Vec<u8>,
    /// Known with the first block.
    layout: Option<Layout>,
    /// Finds the records, where they are no lines.
    splitter: Option<Splitter>,
}

impl Blocks {
    /// Opens a file.
    ///
    /// # Errors
    /// See [`Source::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let source = Source::open(path)?;
        Ok(Self {
            source,
            path: path.to_owned(),
            line: 1,
            offset: 0,
            rest: Vec::new(),
            layout: None,
            splitter: None,
        })
    }

    /// True where samples are known by their number among the records: they are no lines of their
    /// own.
    pub fn counts_records(&self) -> bool {
        self.splitter.is_some()
    }

    /// The next block, or nothing at the end.
    ///
    /// # Errors
    /// The file cannot be read, is an archive that is damaged or cut off, holds no JSON at all, or
    /// is damaged between the records of an array.
    pub fn next_block(&mut self) -> Result<Option<Block>> {
        let mut bytes = std::mem::take(&mut self.rest);
        if self.layout.is_none() {
            self.read(&mut bytes)?;
            let layout = layout::layout(&bytes).map_err(|what| {
                Error::failed_with_hint(
                    format!(
                        "{}: expected JSON Lines, or a JSON array of records, found {what}",
                        self.path.display()
                    ),
                    NO_JSON,
                )
            })?;
            self.layout = Some(layout);
            if layout != Layout::Lines {
                self.offset = layout::mark(&bytes);
                bytes.drain(..self.offset);
                self.splitter = Some(Splitter::new(layout, self.offset));
                return self.next_records(bytes, 0);
            }
            // what was read may end within a line
            return self.next_lines(bytes, 0);
        }
        let seen = bytes.len();
        match self.splitter {
            Some(_) => self.next_records(bytes, seen),
            None => self.next_lines(bytes, seen),
        }
    }

    /// Reads on; false at the end.
    fn read(&mut self, bytes: &mut Vec<u8>) -> Result<bool> {
        let read = self.source.by_ref().take(BLOCK_BYTES).read_to_end(bytes);
        read.map(|read| read > 0).map_err(|e| Error::io(&self.path, e))
    }

    /// The lines that end in `bytes`, of which those after the first `seen` may hold line ends.
    fn next_lines(&mut self, mut bytes: Vec<u8>, mut seen: usize) -> Result<Option<Block>> {
        loop {
            if let Some(end) = bytes[seen..].iter().rposition(|&b| b == b'\n') {
                self.rest = bytes.split_off(seen + end + 1);
                break;
            }
            seen = bytes.len();
            if !self.read(&mut bytes)? {
                break;
            }
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        let block = Block { first: self.line, offset: self.offset, bytes, records: None };
        self.line += block.bytes.iter().filter(|&&b| b == b'\n').count();
        self.offset += block.bytes.len();
        Ok(Some(block))
    }

    /// The records that end in `bytes`, of which the first `seen` have been looked at.
    fn next_records(&mut self, mut bytes: Vec<u8>, mut seen: usize) -> Result<Option<Block>> {
        let Some(splitter) = &mut self.splitter else { return Ok(None) };
        let damaged = |why: String| Error::failed(format!("{}: {why}", self.path.display()));
        let mut records = Vec::new();
        loop {
            if seen == bytes.len() {
                let read = self.source.by_ref().take(BLOCK_BYTES).read_to_end(&mut bytes);
                if read.map_err(|e| Error::io(&self.path, e))? == 0 {
                    splitter.finish(&mut records).map_err(damaged)?;
                    break;
                }
            }
            splitter.feed(&bytes[seen..], &mut records).map_err(damaged)?;
            if !records.is_empty() {
                break;
            }
            if splitter.start().is_none() {
                self.offset += bytes.len();
                bytes.clear();
            }
            seen = bytes.len();
        }
        let Some(last) = records.last() else { return Ok(None) };
        let offset = self.offset;
        // the record under way goes on in the next block; what stands between records is not needed
        // again
        self.offset = splitter.start().unwrap_or(offset + bytes.len());
        self.rest = bytes.split_off(self.offset - offset);
        bytes.truncate(last.end - offset);
        Ok(Some(Block { first: 0, offset, bytes, records: Some(records) }))
    }
}

/// What to do with a file that holds no JSON.
const NO_JSON: &str = "write each record as a JSON object on a line of its own: {\"text\": \"...\"} to pretrain, \
     {\"conversations\": [{\"role\": \"user\", \"content\": \"...\"}, {\"role\": \"assistant\", \"content\": \"...\"}]} \
     for chats";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_whole_lines_with_the_numbers_and_offsets_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long.jsonl");
        // longer than two blocks, with a line longer than one
        let mut text = b"\xef\xbb\xbfa\n\n".to_vec();
        text.extend(vec![b'x'; BLOCK_BYTES as usize + 5]);
        for i in 0..1_500_000 {
            text.extend(format!("\n{i}").bytes());
        }
        fs_err::write(&path, &text).unwrap();
        let mut blocks = Blocks::open(&path).unwrap();
        let (mut found, mut count) = (Vec::new(), 0);
        while let Some(block) = blocks.next_block().unwrap() {
            count += 1;
            found.extend(block.lines().iter().map(|l| (l.number, l.offset, l.bytes.len())));
        }
        let whole: Vec<_> =
            jsonl::lines(&text).map(|l| (l.number, l.offset, l.bytes.len())).collect();
        assert!(count > 1 && found == whole, "{count} blocks");
    }

    /// A block holds some 8 MB whatever the size of the array, and a record may be longer than a
    /// block.
    #[test]
    fn an_array_comes_in_blocks_of_whole_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("array.json");
        let long = "y".repeat(BLOCK_BYTES as usize + 5);
        let mut text = format!("\u{feff}[\n  {{\"text\": \"{long}\"}}");
        for i in 0..900_000 {
            text.push_str(&format!(",\n  {{\n    \"text\": \"[{i}\"\n  }}"));
        }
        text.push_str("\n]\n");
        fs_err::write(&path, &text).unwrap();
        let mut blocks = Blocks::open(&path).unwrap();
        let (mut count, mut number, mut largest) = (0, 0, 0);
        while let Some(block) = blocks.next_block().unwrap() {
            count += 1;
            if number > 0 {
                largest = largest.max(block.size());
            }
            for line in block.lines() {
                number += 1;
                let expected = if number == 1 { long.clone() } else { format!("[{}", number - 2) };
                let object = jsonl::object(&line).unwrap();
                assert!(object["text"] == expected, "record {number}");
                let at = if number == 1 { 2 } else { 3 * number - 3 };
                assert_eq!((line.label(), line.number), (number, at));
                assert_eq!(&text.as_bytes()[line.offset..][..line.bytes.len()], line.bytes);
            }
        }
        assert!(count > 2 && number == 900_001 && blocks.counts_records(), "{count} {number}");
        assert!(largest <= 2 * BLOCK_BYTES as usize, "{largest}");
    }

    #[test]
    fn files_that_are_no_text_are_named_by_their_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        let mut seen = 0;
        for (at, magic, what, _) in FORMATS {
            let bytes = [&vec![b'a'; at][..], magic, b"rest"].concat();
            for packed in [bytes.clone(), zstd::encode_all(&bytes[..], 1).unwrap()] {
                fs_err::write(&path, packed).unwrap();
                let error = Blocks::open(&path).err().map(|e| e.to_string()).unwrap();
                assert!(error.ends_with(&format!("found {what}")), "{error}");
                seen += 1;
            }
        }
        assert_eq!(seen, 2 * FORMATS.len());
    }
}
