//! Blocks of a data file: whole lines, whole records of an array, or rows of a table, some megabytes
//! at once, so that memory does not grow with the file.
//!
//! In: a file of any kind, told by its first bytes. Out: [`Block`]s, whose records are JSON texts.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use mmx_converters::{Error, Result};

use super::fields::{Fields, NAMES};
use super::jsonl::{self, Fault, Line};
use super::layout::{self, Layout, Span, Splitter};
use super::source::{PARQUET, Source};
use super::table::{self, CsvTable, ParquetTable, Table};

/// Text read at once. A line longer than this makes its block longer.
const BLOCK_BYTES: u64 = 8 << 20;

/// A block: whole lines of a file, or whole records where records are no lines.
pub struct Block {
    bytes: Vec<u8>,
    /// Number of the first line, from 1.
    first: usize,
    /// Where it begins in the text, bytes.
    offset: usize,
    /// Its records, where they are no lines.
    records: Option<Vec<Span>>,
    /// What is wrong with rows of a table, by their number.
    faults: BTreeMap<usize, Fault>,
    /// Bytes of the file that it stands for.
    read: usize,
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
            damage: self.faults.get(&span.record),
        }
    }

    /// Bytes of text.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of the file that it stands for: of text its own; of a table they are other bytes.
    pub fn read(&self) -> usize {
        self.read
    }
}

/// A file's blocks, in order.
pub enum Blocks {
    /// JSON Lines, an array, or values.
    Text(TextBlocks),
    /// Rows.
    Table(TableBlocks),
}

impl Blocks {
    /// Opens a file, of a table all columns.
    ///
    /// # Errors
    /// See [`Blocks::open_for`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_wanted(path, &|_| true)
    }

    /// Opens a file; of a table the columns that the known forms and `fields` name are read.
    ///
    /// # Errors
    /// The file cannot be read, is known to be neither text nor table by its first bytes, is an
    /// archive that is damaged, or holds no JSON and no table at all.
    pub fn open_for(path: &Path, fields: &Fields) -> Result<Self> {
        Self::open_wanted(path, &|name| {
            NAMES.contains(&name) || fields.roots().any(|root| root == name)
        })
    }

    fn open_wanted(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Self> {
        if is_parquet(path)? {
            let table = Box::new(ParquetTable::open(path, wanted)?);
            return Ok(Self::Table(TableBlocks { table }));
        }
        let mut text = TextBlocks::open(path)?;
        match text.begin()? {
            Layout::Table(separator) => {
                let begun = Cursor::new(text.rest).chain(text.source);
                let table = Box::new(CsvTable::open(path, begun, separator)?);
                Ok(Self::Table(TableBlocks { table }))
            }
            Layout::Lines | Layout::Array | Layout::Values => Ok(Self::Text(text)),
        }
    }

    /// True where samples are known by their number among the records: they are no lines of their
    /// own.
    pub fn counts_records(&self) -> bool {
        match self {
            Self::Text(text) => text.splitter.is_some(),
            Self::Table(_) => true,
        }
    }

    /// What kind of file it is, in words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Text(text) => match text.layout {
                Layout::Array => "a JSON array",
                Layout::Values => "JSON values",
                Layout::Lines | Layout::Table(_) => "JSON Lines",
            },
            Self::Table(blocks) => blocks.table.name(),
        }
    }

    /// The names of a table's columns; nothing where it is none.
    pub fn columns(&self) -> Option<&[String]> {
        match self {
            Self::Text(_) => None,
            Self::Table(blocks) => Some(blocks.table.columns()),
        }
    }

    /// The next block, or nothing at the end.
    ///
    /// # Errors
    /// The file cannot be read, is an archive that is damaged or cut off, or is damaged between
    /// the records of an array or within a table.
    pub fn next_block(&mut self) -> Result<Option<Block>> {
        match self {
            Self::Text(text) => text.next_block(),
            Self::Table(blocks) => {
                let rows = blocks.table.next_rows(BLOCK_BYTES as usize)?;
                Ok(rows.map(|rows| Block {
                    bytes: rows.texts,
                    first: 0,
                    offset: 0,
                    records: Some(rows.spans),
                    faults: rows.faults,
                    read: rows.read,
                }))
            }
        }
    }
}

/// The blocks of a table.
pub struct TableBlocks {
    table: Box<dyn Table>,
}

/// True while a panic of this thread is caught and told as an error about a file: a program's hook
/// need not print it.
#[must_use]
pub fn is_guarded() -> bool {
    table::is_guarded()
}

/// Whether a file is one of Parquet, by its first bytes.
///
/// # Errors
/// The file cannot be read.
pub fn is_parquet(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    let file = fs_err::File::open(path).map_err(|e| Error::io(path, e))?;
    // a folder or device is refused where it is read
    let read = file.take(PARQUET.len() as u64).read_to_end(&mut head);
    Ok(read.is_ok() && head == PARQUET)
}

/// The blocks of a text.
pub struct TextBlocks {
    source: Source,
    path: PathBuf,
    line: usize,
    offset: usize,
    rest: Vec<u8>,
    layout: Layout,
    begun: bool,
    /// Finds the records, where they are no lines.
    splitter: Option<Splitter>,
}

impl TextBlocks {
    fn open(path: &Path) -> Result<Self> {
        let source = Source::open(path)?;
        Ok(Self {
            source,
            path: path.to_owned(),
            line: 1,
            offset: 0,
            rest: Vec::new(),
            layout: Layout::Lines,
            begun: false,
            splitter: None,
        })
    }

    /// Reads the beginning, and tells the layout from it.
    fn begin(&mut self) -> Result<Layout> {
        let mut bytes = std::mem::take(&mut self.rest);
        self.read(&mut bytes)?;
        self.layout = layout::layout(&bytes, layout::is_named_table(&self.path)).map_err(|what| {
            Error::failed_with_hint(
                format!(
                    "{}: expected JSON Lines, a JSON array of records, or a table, found {what}",
                    self.path.display()
                ),
                NO_JSON,
            )
        })?;
        if self.layout != Layout::Lines {
            self.offset = layout::mark(&bytes);
            bytes.drain(..self.offset);
        }
        if matches!(self.layout, Layout::Array | Layout::Values) {
            self.splitter = Some(Splitter::new(self.layout, self.offset));
        }
        self.rest = bytes;
        Ok(self.layout)
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        let bytes = std::mem::take(&mut self.rest);
        // of the first block nothing has been looked at
        let seen = if std::mem::replace(&mut self.begun, true) { bytes.len() } else { 0 };
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
        let block = self.block(self.line, self.offset, bytes, None);
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
        Ok(Some(self.block(0, offset, bytes, Some(records))))
    }

    fn block(
        &self,
        first: usize,
        offset: usize,
        bytes: Vec<u8>,
        records: Option<Vec<Span>>,
    ) -> Block {
        Block { read: bytes.len(), first, offset, bytes, records, faults: BTreeMap::new() }
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
}
