//! CSV and TSV: a header with the columns' names, then a row each; cells are texts.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use csv::{ByteRecord, Reader, ReaderBuilder};
use mmx_converters::{Error, Result};
use serde_json::Map;

use super::rows::{Rows, Table, utf8};

/// A row longer than this is no row: a quote that is never closed takes in all that follows.
const LONGEST_ROW: u64 = 256 << 20;

/// A table of text.
pub(crate) struct CsvTable<R> {
    path: PathBuf,
    reader: Reader<Counted<R>>,
    separator: u8,
    columns: Vec<String>,
    counts: Arc<Mutex<Counts>>,
    row: usize,
    /// The row read last: its line, and whether it goes over several.
    last: (u64, bool),
}

impl<R: Read + Send> CsvTable<R> {
    /// A table whose text begins with its header.
    ///
    /// # Errors
    /// No header that is UTF-8, or one with a name twice.
    pub(crate) fn open(path: &Path, text: R, separator: u8) -> Result<Self> {
        let counts = Arc::<Mutex<Counts>>::default();
        let text = Counted { text, counts: counts.clone() };
        let mut reader = ReaderBuilder::new().delimiter(separator).flexible(true).from_reader(text);
        let says = |why: String| Error::failed(format!("{}: line 1: {why}", path.display()));
        let header = reader.byte_headers().map_err(|e| unreadable(path, e))?;
        let mut columns: Vec<String> = Vec::new();
        for name in header {
            let name = utf8(name, "names").map_err(says)?.trim().to_owned();
            if !name.is_empty() && columns.contains(&name) {
                return Err(says(format!(
                    "expected a header with every name once, found {name} twice"
                )));
            }
            columns.push(name);
        }
        Ok(Self {
            path: path.to_owned(),
            reader,
            separator,
            columns,
            counts,
            row: 0,
            last: (0, false),
        })
    }

    fn record(&self, cells: &ByteRecord) -> Result<Map<String, serde_json::Value>, String> {
        if cells.len() != self.columns.len() {
            return Err(format!(
                "expected {} cells as in the header, found {}",
                self.columns.len(),
                cells.len()
            ));
        }
        let named = self.columns.iter().zip(cells).filter(|(name, _)| !name.is_empty());
        named.map(|(name, cell)| Ok((name.clone(), utf8(cell, name)?.into()))).collect()
    }
}

impl<R: Read + Send> Table for CsvTable<R> {
    fn name(&self) -> &'static str {
        if self.separator == b'\t' { "TSV" } else { "CSV" }
    }

    fn columns(&self) -> &[String] {
        &self.columns
    }

    fn next_rows(&mut self, bytes: usize) -> Result<Option<Rows>> {
        let mut rows = Rows::default();
        let mut cells = ByteRecord::new();
        let before = locked(&self.counts).read;
        while rows.texts.len() < bytes {
            locked(&self.counts).row = 0;
            let more =
                self.reader.read_byte_record(&mut cells).map_err(|e| unreadable(&self.path, e))?;
            if !more {
                let odd = !locked(&self.counts).quotes.is_multiple_of(2);
                if odd && self.last.1 {
                    return Err(Error::failed(format!(
                        "{}: line {}: expected the closing quote of a cell of row {}, found the end of the file",
                        self.path.display(),
                        self.last.0,
                        self.row
                    )));
                }
                break;
            }
            self.row += 1;
            let from = cells.position().map_or(0, csv::Position::byte);
            let line = locked(&self.counts).line_from(from);
            self.last = (line, cells.iter().any(|cell| cell.contains(&b'\n')));
            rows.push(self.row, line as usize, self.record(&cells));
            if rows.spans.len() >= bytes {
                break; // rows without a text have no bytes
            }
        }
        rows.read = (locked(&self.counts).read - before) as usize;
        Ok((!rows.spans.is_empty()).then_some(rows))
    }
}

fn unreadable(path: &Path, error: csv::Error) -> Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => Error::io(path, error),
        other => Error::failed(format!("{}: expected a table, found {other:?}", path.display())),
    }
}

/// What has been read of a text.
#[derive(Debug, Default)]
struct Counts {
    read: u64,
    quotes: u64,
    /// Bytes since a row was asked for.
    row: u64,
    /// Line ends.
    ends: u64,
    /// Where the line under way begins, and whether it is not blank.
    start: u64,
    inked: bool,
    /// Where lines that are not blank begin, and their numbers, of what no row was taken from yet.
    starts: VecDeque<(u64, u64)>,
}

impl Counts {
    fn add(&mut self, bytes: &[u8]) {
        for (at, byte) in (self.read..).zip(bytes) {
            match byte {
                b'\n' => {
                    self.ends += 1;
                    (self.start, self.inked) = (at + 1, false);
                }
                b'\r' => {}
                _ if !self.inked => {
                    self.inked = true;
                    self.starts.push_back((self.start, self.ends + 1));
                }
                _ => {}
            }
            self.quotes += u64::from(*byte == b'"');
        }
        self.read += bytes.len() as u64;
        self.row += bytes.len() as u64;
    }

    /// The number of the line in which a row begins that was looked for from byte `from` on: line
    /// ends and blank lines may come before it.
    fn line_from(&mut self, from: u64) -> u64 {
        while self.starts.front().is_some_and(|(start, _)| *start < from) {
            self.starts.pop_front();
        }
        self.starts.front().map_or(self.ends + 1, |(_, line)| *line)
    }
}

/// A text that counts its quotes and lines, and ends where a row does not.
struct Counted<R> {
    text: R,
    counts: Arc<Mutex<Counts>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.text.read(buffer)?;
        let mut counts = locked(&self.counts);
        counts.add(&buffer[..read]);
        if counts.row > LONGEST_ROW {
            return Err(io::Error::other(format!(
                "expected rows of at most {LONGEST_ROW} bytes, found a longer one: a quote may not be closed"
            )));
        }
        Ok(read)
    }
}

fn locked(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str, separator: u8) -> Result<Vec<(usize, usize, String)>> {
        let mut table = CsvTable::open(Path::new("t.csv"), text.as_bytes(), separator)?;
        let mut all = Vec::new();
        while let Some(rows) = table.next_rows(8)? {
            for span in &rows.spans {
                let text = String::from_utf8_lossy(&rows.texts[span.start..span.end]);
                let said = rows.faults.get(&span.record).map(|fault| fault.message.clone());
                all.push((span.record, span.line, said.unwrap_or(text.into_owned())));
            }
        }
        Ok(all)
    }

    #[test]
    fn cells_hold_separators_quotes_and_lines() {
        let text = "text, id \r\n\"a, \"\"b\"\"\n\nc\",1\r\n\r\nd,\n";
        let rows = table(text, b',').unwrap();
        let expected = [
            (1, 2, r#"{"text":"a, \"b\"\n\nc","id":"1"}"#.to_owned()),
            (2, 6, r#"{"text":"d","id":""}"#.to_owned()),
        ];
        assert_eq!(rows, expected);
        assert_eq!(table("a\tb\n1\t2", b'\t').unwrap()[0].2, r#"{"a":"1","b":"2"}"#);
        assert_eq!(table("a\n", b',').unwrap(), []);
    }

    #[test]
    fn a_row_of_another_length_is_its_own_fault() {
        let rows = table("a,b\n1\n1,2\n1,2,3\n", b',').unwrap();
        let said: Vec<&str> = rows.iter().map(|(_, _, text)| text.as_str()).collect();
        let expected = "expected 2 cells as in the header, found";
        assert_eq!(
            said,
            [&format!("{expected} 1"), r#"{"a":"1","b":"2"}"#, &format!("{expected} 3")]
        );
    }

    #[test]
    fn a_quote_that_is_not_closed_is_no_cell() {
        let error = table("a,b\n1,2\n1,\"2\n3,4\n", b',').unwrap_err().to_string();
        assert!(error.contains("line 3: expected the closing quote of a cell of row 2"), "{error}");
        let error = table("a,b,a\n1,2,3\n", b',').unwrap_err().to_string();
        assert!(error.contains("line 1: expected a header with every name once, found a twice"));
    }
}
