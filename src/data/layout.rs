//! The layout of records in a file, told from its beginning: one a line, the elements of one JSON
//! array, pretty-printed values one after another, or the rows of a CSV or TSV table; or not at all:
//! plain text.
//!
//! In: bytes. Out: a [`Layout`], and of arrays and pretty-printed values the `Span` of each
//! record, found by brackets and strings alone as the bytes come, so that memory does not grow with
//! the file.

use std::path::Path;

use super::fields::NAMES;

/// The layout of records in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One a line: JSON Lines.
    Lines,
    /// The elements of one JSON array, over any number of lines.
    Array,
    /// Values that go over several lines each, one after another, as pretty-printers write them.
    Values,
    /// The rows of a table, whose cells this byte separates.
    Table(u8),
}

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Bytes of the byte order mark that a text begins with.
pub(super) fn mark(text: &[u8]) -> usize {
    if text.starts_with(BOM) { BOM.len() } else { 0 }
}

/// The layout of a text that begins with `head`.
///
/// # Errors
/// What the text is, where it holds neither JSON nor a table at all.
pub(super) fn layout(head: &[u8], named_table: bool) -> Result<Layout, String> {
    let text = head[mark(head)..].trim_ascii_start();
    let (line, rest) = match text.iter().position(|&b| b == b'\n') {
        Some(end) => (&text[..end], Some(&text[end..])),
        None => (text, None),
    };
    let more = rest.is_some_and(|rest| !rest.trim_ascii().is_empty());
    match text.first() {
        // a line that is a whole array, and others after it
        Some(b'[') if more && open_brackets(line) == Some(0) => Ok(Layout::Lines),
        Some(b'[') => Ok(Layout::Array),
        // a line that is cut off seldom ends where a pretty-printer breaks it
        Some(b'{') if more => {
            let broken = line.trim_ascii_end().last().is_some_and(|b| b"{[,:".contains(b));
            let pretty = broken && open_brackets(line).is_some_and(|open| open > 0);
            Ok(if pretty { Layout::Values } else { Layout::Lines })
        }
        Some(b'{') | None => Ok(Layout::Lines),
        Some(_) => match separator(text, named_table) {
            Some(separator) => Ok(Layout::Table(separator)),
            None => no_json(text).map_or(Ok(Layout::Lines), Err),
        },
    }
}

/// Brackets that are open at a line's end; nothing where it ends within a string or closes more
/// than it opened.
fn open_brackets(line: &[u8]) -> Option<usize> {
    let (mut open, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in line {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => open += 1,
            b'}' | b']' => open = open.checked_sub(1)?,
            _ => {}
        }
    }
    (!in_string).then_some(open)
}

/// True for a table by the file's name, packed or not.
pub(super) fn is_named_table(path: &Path) -> bool {
    let packed = path.extension().is_some_and(|e| e == "gz" || e == "zst");
    let name = if packed { path.with_extension("") } else { path.to_owned() };
    name.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv") || e.eq_ignore_ascii_case("tsv"))
}

/// The first lines that are not blank.
fn first_lines(text: &[u8]) -> Vec<&[u8]> {
    /// Lines that are looked at.
    const LINES: usize = 20;
    let lines = text.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).filter(|l| !l.is_empty());
    lines.take(LINES).collect()
}

/// The byte that separates the cells of a text that is a table: by its name, or by a first line
/// that names a known key or is followed by cells. Nothing where it is none.
fn separator(text: &[u8], named: bool) -> Option<u8> {
    /// Characters of a column's name, at most.
    const NAME: usize = 64;
    let lines = first_lines(text);
    let header = std::str::from_utf8(lines.first()?).ok()?;
    let separator = ['\t', ',', ';'].into_iter().find(|c| header.contains(*c));
    let names: Vec<&str> =
        header.split(|c| Some(c) == separator).map(|name| name.trim().trim_matches('"')).collect();
    let is_name = |name: &&str| {
        let plain = |c: char| c.is_alphanumeric() || " _-.()".contains(c);
        name.chars().count() <= NAME && name.chars().all(plain)
    };
    let byte = separator.map_or(b',', |c| c as u8);
    if named || names.iter().all(is_name) && names.iter().any(|name| NAMES.contains(name)) {
        return Some(byte);
    }
    let json = lines.iter().any(|line| line.starts_with(b"{") || line.starts_with(b"["));
    let rows = lines[1..].iter().take(1).all(|row| row.contains(&byte));
    let plain = names.iter().all(|name| is_name(name) && !name.is_empty());
    (separator.is_some() && plain && rows && !json).then_some(byte)
}

/// What a text is whose first lines hold no JSON; nothing where one of them may.
fn no_json(text: &[u8]) -> Option<String> {
    let lines = first_lines(text);
    if lines.iter().any(|line| line.starts_with(b"{") || line.starts_with(b"[")) {
        return None;
    }
    // one or two lines may be damaged ones of a small file
    (lines.len() > 2).then(|| "text that is no JSON".to_owned())
}

/// The span of a record in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Its number among the file's records, from 1.
    pub(crate) record: usize,
    /// The line it begins in, from 1.
    pub(crate) line: usize,
    /// Where it begins in the file, bytes.
    pub(crate) start: usize,
    /// Where it ends.
    pub(crate) end: usize,
}

/// The bytes that may come next outside of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// The array's `[`.
    Open,
    /// A record, or `]` at once.
    First,
    /// A record.
    Record,
    /// `,` or `]`.
    Separator,
    /// Nothing more.
    End,
}

/// Finds the records of an array, or of values one after another. Whether a record is JSON is seen
/// when it is parsed; what stands between them is checked here.
#[derive(Debug)]
pub(super) struct Splitter {
    layout: Layout,
    expected: Expected,
    /// Bytes seen.
    offset: usize,
    /// The line of the next byte, from 1.
    line: usize,
    records: usize,
    /// Start and line of the record under way.
    inside: Option<(usize, usize)>,
    /// Brackets that are open in it.
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Splitter {
    /// For a file whose first `offset` bytes are passed over.
    pub(super) fn new(layout: Layout, offset: usize) -> Self {
        let expected = if layout == Layout::Array { Expected::Open } else { Expected::Record };
        Self {
            layout,
            expected,
            offset,
            line: 1,
            records: 0,
            inside: None,
            depth: 0,
            in_string: false,
            escaped: false,
        }
    }

    /// Where the record under way begins.
    pub(super) fn start(&self) -> Option<usize> {
        self.inside.map(|(start, _)| start)
    }

    /// Takes the next bytes; what ends in them goes to `found`.
    ///
    /// # Errors
    /// The line, and what was expected and found there: the file is damaged.
    pub(super) fn feed(&mut self, bytes: &[u8], found: &mut Vec<Span>) -> Result<(), String> {
        for &byte in bytes {
            if self.inside.is_some() && !self.within(byte, found)? {
                self.offset += 1;
                continue;
            }
            if self.inside.is_none() {
                self.between(byte)?;
            }
            self.offset += 1;
        }
        Ok(())
    }

    /// A byte of the record under way; true when the record ended before it.
    fn within(&mut self, byte: u8, found: &mut Vec<Span>) -> Result<bool, String> {
        if self.in_string {
            match byte {
                b'\n' => {
                    return Err(self.says(&format!(
                        "expected the end of a string in record {}, found the end of the line",
                        self.records + 1
                    )));
                }
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    if self.depth == 0 {
                        self.end(self.offset + 1, found);
                    }
                }
                _ => {}
            }
            return Ok(false);
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.end(self.offset + 1, found);
                }
            }
            b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => {
                self.end(self.offset, found); // a number or a word has no end of its own
                return Ok(true);
            }
            b'\n' => self.line += 1,
            _ => {}
        }
        Ok(false)
    }

    fn end(&mut self, end: usize, found: &mut Vec<Span>) {
        let Some((start, line)) = self.inside.take() else { return };
        self.records += 1;
        found.push(Span { record: self.records, line, start, end });
        self.expected = match self.layout {
            Layout::Array => Expected::Separator,
            Layout::Lines | Layout::Values | Layout::Table(_) => Expected::Record,
        };
    }

    /// A byte outside of records, which may begin one.
    fn between(&mut self, byte: u8) -> Result<(), String> {
        use Expected::{End, First, Open, Record, Separator};
        match (self.expected, byte) {
            (_, b'\n') => self.line += 1,
            (_, b' ' | b'\t' | b'\r') => {}
            (Open, b'[') => self.expected = First,
            (Separator, b',') => self.expected = Record,
            (First | Separator, b']') => self.expected = End,
            (
                First | Record,
                b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z',
            ) => {
                self.inside = Some((self.offset, self.line));
                (self.depth, self.in_string) = (0, false);
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth = 1,
                    _ => {}
                }
            }
            (expected, _) => {
                let found = match byte {
                    b' '..=b'~' => char::from(byte).to_string(),
                    _ => format!("byte 0x{byte:02x}"),
                };
                return Err(self.says(&format!("expected {}, found {found}", self.words(expected))));
            }
        }
        Ok(())
    }

    fn words(&self, expected: Expected) -> String {
        match expected {
            Expected::Open => "[".to_owned(),
            Expected::First | Expected::Record => format!("record {}", self.records + 1),
            Expected::Separator => format!(", or ] after record {}", self.records),
            Expected::End => format!("the file's end after the array of {}", self.records),
        }
    }

    fn says(&self, message: &str) -> String {
        format!("line {}: {message}", self.line)
    }

    /// The file has ended.
    ///
    /// # Errors
    /// See [`Splitter::feed`].
    pub(super) fn finish(&mut self, found: &mut Vec<Span>) -> Result<(), String> {
        if let Some((_, line)) = self.inside {
            if self.depth > 0 || self.in_string {
                let record = self.records + 1;
                return Err(self.says(&format!(
                    "expected the end of record {record}, which begins in line {line}, found the end of the file: \
                     it is cut off"
                )));
            }
            self.end(self.offset, found);
        }
        let whole = match self.layout {
            Layout::Array => self.expected == Expected::End,
            Layout::Lines | Layout::Values | Layout::Table(_) => true,
        };
        match whole {
            true => Ok(()),
            false => Err(self.says(&format!(
                "expected {}, found the end of the file: it is cut off",
                self.words(self.expected)
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records as (number, line, text), the bytes coming `step` at a time.
    fn split(text: &str, step: usize) -> Result<Vec<(usize, usize, &str)>, String> {
        let layout = layout(text.as_bytes(), false)?;
        let mut splitter = Splitter::new(layout, mark(text.as_bytes()));
        let mut found = Vec::new();
        for part in text.as_bytes()[mark(text.as_bytes())..].chunks(step) {
            splitter.feed(part, &mut found)?;
        }
        splitter.finish(&mut found)?;
        Ok(found.iter().map(|s| (s.record, s.line, &text[s.start..s.end])).collect())
    }

    #[test]
    fn records_of_an_array_are_found_whatever_their_form_and_however_the_bytes_come() {
        let text = "\u{feff} [\r\n {\"a\": \"x]},\\\"{\"},\n {\n  \"b\": [1, {}]\n } , 7,null\n, \"s\",[2]]\n\n";
        for step in [1, 2, 3, 1000] {
            let found = split(text, step).unwrap();
            let expected = [
                (1, 2, "{\"a\": \"x]},\\\"{\"}"),
                (2, 3, "{\n  \"b\": [1, {}]\n }"),
                (3, 5, "7"),
                (4, 5, "null"),
                (5, 6, "\"s\""),
                (6, 6, "[2]"),
            ];
            assert_eq!(found, expected, "{step} bytes at a time");
        }
        assert_eq!(split("[ \n]", 1).unwrap(), []);
    }

    #[test]
    fn pretty_printed_values_are_told_from_lines() {
        let text = "{\n \"a\": 1\n}\n{\n \"b\": [\n  {\"c\": 2}\n ]\n}\n";
        let found = split(text, 5).unwrap();
        let at: Vec<(usize, usize)> =
            found.iter().map(|(record, line, _)| (*record, *line)).collect();
        assert_eq!(at, [(1, 1), (2, 4)]);
        for lines in [
            "{\"text\": \"a\"}\n{\"text\": \"b\"}",
            "{\"text\": \"cut off {\n{\"text\": \"b\"}", // in a string
            "{\"a\": [1\n{\"text\": \"b\"}",
            "[1]\n{\"text\": \"b\"}",
            "",
            "rubbish\n{\"text\": \"b\"}",
            "one damaged line",
        ] {
            assert_eq!(layout(lines.as_bytes(), false), Ok(Layout::Lines), "{lines}");
        }
    }

    #[test]
    fn tables_are_told_by_their_header_and_text_by_having_none() {
        for (text, separator) in [
            (&b"\xef\xbb\xbfa,b c\n1,2\n"[..], b','),
            (b"\"x\"\ty\r\n1\t2", b'\t'),
            (b"id;text\n1;\"{\n[\"", b';'),
            (b"text\nOnce, twice\n", b','),
            (b"messages,source\n\"[\n{}]\",a", b','),
        ] {
            let found = layout(text, false);
            assert_eq!(found, Ok(Layout::Table(separator)), "{}", String::from_utf8_lossy(text));
        }
        assert_eq!(layout(b"rubbish, of one line\n{}", false), Ok(Layout::Lines));
        assert_eq!(layout(b"a!\n1", true), Ok(Layout::Table(b',')));
        let prose = b"Once! Twice\nand again\nthrice";
        assert_eq!(layout(prose, false).unwrap_err(), "text that is no JSON");
        for (name, table) in [
            ("a.csv", true),
            ("a.TSV", true),
            ("a.csv.gz", true),
            ("csv", false),
            ("a.json", false),
        ] {
            assert_eq!(is_named_table(Path::new(name)), table, "{name}");
        }
    }

    #[test]
    fn damage_between_records_is_said_with_its_line() {
        for (text, words) in [
            ("[\n{}\n{}]", "line 3: expected , or ] after record 1, found {"),
            ("[{},\n]", "line 2: expected record 2, found ]"),
            ("[{}] {}", "line 1: expected the file's end after the array of 1, found {"),
            ("[\n{},\n{\"a\": 1", "line 3: expected the end of record 2, which begins in line 3"),
            ("[\n{}", "line 2: expected , or ] after record 1, found the end of the file"),
            ("[\n{\"a\": \"b\n\"}]", "line 2: expected the end of a string in record 1"),
            ("{\n\"a\": 1},\n{}", "line 2: expected record 2, found ,"),
        ] {
            let said = split(text, 3).expect_err(text);
            assert!(said.starts_with(words), "{text}: {said}");
        }
    }
}
