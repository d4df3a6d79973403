//! What a table is to its readers: names of columns, and rows as the texts of JSON objects.

use std::collections::BTreeMap;

use mmx_converters::Result;
use serde_json::{Map, Value};

use crate::jsonl::Fault;
use crate::layout::Span;

/// A file of rows.
pub(crate) trait Table: Send {
    /// What kind of file it is.
    fn name(&self) -> &'static str;

    /// The names of all columns, those that are not read too.
    fn columns(&self) -> &[String];

    /// The next rows, of about so many bytes; nothing at the end.
    ///
    /// # Errors
    /// The file cannot be read or is damaged: it cannot be gone on with.
    fn next_rows(&mut self, bytes: usize) -> Result<Option<Rows>>;
}

/// Some rows of a table.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Their JSON texts, one after another.
    pub(crate) texts: Vec<u8>,
    pub(crate) spans: Vec<Span>,
    /// What is wrong with rows that have no text, by their number.
    pub(crate) faults: BTreeMap<usize, Fault>,
    /// Bytes of the file that they stand for.
    pub(crate) read: usize,
}

impl Rows {
    /// Adds row number `row`, from 1, which begins in line `line`.
    pub(super) fn push(
        &mut self,
        row: usize,
        line: usize,
        record: Result<Map<String, Value>, String>,
    ) {
        let start = self.texts.len();
        match record {
            Ok(object) => self.texts.extend(Value::Object(object).to_string().bytes()),
            Err(message) => {
                let fault = Fault { line, record: Some(row), message, hint: None };
                self.faults.insert(row, fault);
            }
        }
        self.spans.push(Span { record: row, line, start, end: self.texts.len() });
    }
}

/// Text of bytes, or what stands in its place.
pub(super) fn utf8(bytes: &[u8], column: &str) -> Result<String, String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(e) => Err(format!(
            "column {column}: expected UTF-8, found byte 0x{:02x} after {} bytes of text",
            bytes.get(e.valid_up_to()).copied().unwrap_or_default(),
            e.valid_up_to()
        )),
    }
}
