//! Texts of records to JSON objects, and what may be wrong with them: one JSON object a line, UTF-8;
//! a byte order mark, CRLF and blank lines are fine.
//!
//! In: the bytes of a file. Out: per line its object, or a [`Fault`] that says what is wrong with
//! it and where.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A fault of a line, or of a record that is not a line of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The physical line, from 1; 0 in a file without lines.
    pub line: usize,
    /// The record's number, from 1, where records are no lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<usize>,
    /// What was expected and what was found.
    pub message: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
}

impl Fault {
    /// The place in words: `line 3`, `record 2 (line 17)`, or `row 5` in a file without lines.
    #[must_use]
    pub fn place(&self) -> String {
        match self.record {
            Some(record) if self.line == 0 => format!("row {record}"),
            Some(record) => format!("record {record} (line {})", self.line),
            None => format!("line {}", self.line),
        }
    }

    /// The noun of the place: `row`, `record` or `line`.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        match self.record {
            Some(_) if self.line == 0 => "row",
            Some(_) => "record",
            None => "line",
        }
    }
}

/// The text of one record: a line that is not blank, or an element of an array.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The physical line it begins in, from 1; blank lines count. 0 in a file without lines.
    pub number: usize,
    /// Its number among the records, from 1, where records are no lines.
    pub record: Option<usize>,
    /// Where it begins in the file, bytes.
    pub offset: usize,
    /// The text without its end.
    pub bytes: &'a [u8],
    /// What is wrong with it already, where it was no text: a row of a table.
    pub damage: Option<&'a Fault>,
}

impl Line<'_> {
    /// The number its sample is known by: the line, or the record's number where records are no
    /// lines.
    #[must_use]
    pub fn label(&self) -> usize {
        self.record.unwrap_or(self.number)
    }

    /// A fault of this record.
    pub(crate) fn fault(&self, message: String, hint: Option<String>) -> Fault {
        Fault { line: self.number, record: self.record, message, hint }
    }
}

/// The lines of a file that are not blank; a byte order mark at the beginning is passed over.
pub fn lines(file: &[u8]) -> impl Iterator<Item = Line<'_>> {
    lines_from(file, 1, 0)
}

/// [`lines`] of a part of a file that begins with line `first` at byte `offset`.
pub fn lines_from(part: &[u8], first: usize, offset: usize) -> impl Iterator<Item = Line<'_>> {
    const BOM: &[u8] = b"\xef\xbb\xbf";
    let start = if offset == 0 && part.starts_with(BOM) { BOM.len() } else { 0 };
    let mut offset = offset + start;
    part[start..]
        .split(|&b| b == b'\n')
        .enumerate()
        .map(move |(index, bytes)| {
            let line = Line { number: first + index, record: None, offset, bytes, damage: None };
            offset += bytes.len() + 1;
            line
        })
        .filter(|line| !line.bytes.iter().all(u8::is_ascii_whitespace))
}

/// The text of a line.
///
/// # Errors
/// Bytes that are no UTF-8, with the offset of the first in the file.
pub fn utf8<'a>(line: &Line<'a>) -> Result<&'a str, Fault> {
    std::str::from_utf8(line.bytes).map_err(|e| {
        let at = e.valid_up_to();
        let byte = line.bytes.get(at).copied().unwrap_or_default();
        let hint = if looks_like_gbk(&line.bytes[at..]) {
            "the file is not UTF-8, GBK perhaps: `iconv -f GB18030 -t UTF-8 IN > OUT` converts it"
        } else {
            "the file is not UTF-8 here: it is damaged, or in another encoding"
        };
        let offset = line.offset + at;
        let message =
            format!("expected UTF-8, found byte 0x{byte:02x} at offset {offset} of the file");
        line.fault(message, Some(hint.to_owned()))
    })
}

/// The JSON object of a line.
///
/// # Errors
/// Bad UTF-8, or anything else than one JSON object.
pub fn object(line: &Line<'_>) -> Result<Map<String, Value>, Fault> {
    if let Some(fault) = line.damage {
        return Err(fault.clone());
    }
    match serde_json::from_str(utf8(line)?) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            let message = format!("expected a JSON object, found {}", describe(&other));
            Err(line.fault(message, None))
        }
        Err(e) => {
            Err(line.fault(format!("expected a JSON object: {}", without_line(&e, line)), None))
        }
    }
}

/// serde counts lines within the one line: only the column says something, unless the record goes
/// over several.
fn without_line(error: &serde_json::Error, line: &Line<'_>) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    match error.line() {
        0 | 1 => format!("{what} at column {}", error.column()),
        below => format!("{what} at line {}, column {}", line.number + below - 1, error.column()),
    }
}

/// The JSON type of a value, in words.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "true or false".into(),
        Value::Number(_) => "a number".into(),
        Value::String(_) => "a string".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// True when most bytes that are no ASCII pair up as GBK's do (lead 0x81..=0xFE, trail
/// 0x40..=0xFE).
fn looks_like_gbk(bytes: &[u8]) -> bool {
    let (mut pairs, mut strays) = (0, 0);
    let mut i = 0;
    while let Some(&lead) = bytes.get(i) {
        i += 1;
        if lead < 0x80 {
            continue;
        }
        match bytes.get(i) {
            Some(0x80..=0xfe) if (0x81..=0xfe).contains(&lead) => {
                pairs += 1;
                i += 1;
            }
            _ => strays += 1,
        }
    }
    pairs > 0 && strays == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_numbers_and_offsets_count_bytes_of_the_file() {
        let all: Vec<(usize, usize)> =
            lines(b"\xef\xbb\xbf\n{}\r\n \t\n{}").map(|l| (l.number, l.offset)).collect();
        assert_eq!(all, [(2, 4), (4, 11)]);
    }
}
