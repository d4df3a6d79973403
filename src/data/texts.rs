//! The texts of files, for training a tokenizer: streamed, so that memory does not grow with the
//! file.
//!
//! Records of any kind mmx trains on (`text`; the contents and thoughts of chats; Alpaca's; prompts
//! with answers) as JSON Lines, a JSON array or a table, or plain text; also packed with gzip or
//! zstd.

use std::io::BufRead;
use std::path::Path;

use serde_json::{Map, Value};

use super::blocks::{Blocks, is_parquet};
use super::fields::{Fields, NAMES};
use super::jsonl::{self, Fault, Line};
use super::layout;
use super::source::Source;
use super::turns;
use mmx_converters::{Error, Result};

/// Bytes of text handed over at once.
const BATCH_BYTES: usize = 4 << 20;

/// A line of plain text longer than this is handed over in parts.
const LONGEST_BYTES: usize = 1 << 20;

/// True for a file of records: JSON Lines or a table by its name, packed or not, or Parquet by its
/// first bytes; other files are plain text.
pub fn has_records(path: &Path) -> bool {
    let packed = path.extension().is_some_and(|e| e == "gz" || e == "zst");
    let name = if packed { path.with_extension("") } else { path.to_owned() };
    name.extension().is_some_and(|e| e == "jsonl" || e == "json" || e == "ndjson")
        || layout::is_named_table(path)
        || is_parquet(path).unwrap_or(false)
}

/// Calls `each` with batches of texts until the file ends; `fields` maps names of records.
///
/// # Errors
/// A file that cannot be read, is not UTF-8, or holds a record without text, naming its place;
/// whatever `each` returns.
pub fn for_each_batch(
    path: &Path,
    fields: &Fields,
    each: impl FnMut(&[String]) -> Result<()>,
) -> Result<()> {
    match has_records(path) {
        true => of_records(path, fields, each),
        false => of_lines(path, each),
    }
}

fn faulty(path: &Path, fault: Fault) -> Error {
    let message = format!("{}: {}: {}", path.display(), fault.place(), fault.message);
    match fault.hint {
        Some(hint) => Error::failed_with_hint(message, hint),
        None => Error::failed(message),
    }
}

fn of_records(
    path: &Path,
    fields: &Fields,
    mut each: impl FnMut(&[String]) -> Result<()>,
) -> Result<()> {
    let mut blocks = Blocks::open_for(path, fields)?;
    while let Some(block) = blocks.next_block()? {
        let (mut texts, mut size): (Vec<String>, usize) = (Vec::new(), 0);
        for line in block.lines() {
            size += add_texts(&line, fields, &mut texts).map_err(|fault| faulty(path, fault))?;
            if size >= BATCH_BYTES {
                each(&texts)?;
                texts.clear();
                size = 0;
            }
        }
        if !texts.is_empty() {
            each(&texts)?;
        }
    }
    Ok(())
}

fn of_lines(path: &Path, mut each: impl FnMut(&[String]) -> Result<()>) -> Result<()> {
    let mut file = Source::open(path)?;
    let (mut number, mut offset, mut bytes) = (0, 0, Vec::new());
    let (mut texts, mut size): (Vec<String>, usize) = (Vec::new(), 0);
    loop {
        bytes.clear();
        let whole = read_line(&mut file, &mut bytes, LONGEST_BYTES);
        let whole = whole.map_err(|e| Error::io(path, e))?;
        if bytes.is_empty() {
            break;
        }
        let mark = if offset == 0 { layout::mark(&bytes) } else { 0 };
        let line = Line {
            number: number + 1,
            record: None,
            offset: offset + mark,
            bytes: &bytes[mark..],
            damage: None,
        };
        let text = jsonl::utf8(&line).map_err(|fault| faulty(path, fault))?;
        size += text.len();
        texts.push(text.to_owned());
        offset += bytes.len();
        number += usize::from(whole);
        if size >= BATCH_BYTES {
            each(&texts)?;
            texts.clear();
            size = 0;
        }
    }
    if texts.is_empty() { Ok(()) } else { each(&texts) }
}

/// Reads up to and with the next line end, or about `longest` bytes; true when the line is whole.
fn read_line(
    file: &mut impl BufRead,
    bytes: &mut Vec<u8>,
    longest: usize,
) -> std::io::Result<bool> {
    loop {
        let available = file.fill_buf()?;
        if available.is_empty() {
            return Ok(true);
        }
        let end = available.iter().position(|&b| b == b'\n').map(|at| at + 1);
        let mut take = end.unwrap_or(available.len());
        let mut cut = false;
        if bytes.len() + take > longest {
            // up to the beginning of a character, so that no character is torn
            let from = longest.saturating_sub(bytes.len());
            if let Some(at) = (from..take).find(|&i| available[i] & 0xc0 != 0x80) {
                (take, cut) = (at, true);
            }
        }
        bytes.extend_from_slice(&available[..take]);
        file.consume(take);
        if cut {
            return Ok(false);
        }
        if end == Some(take) {
            return Ok(true);
        }
    }
}

/// The texts of one record; returns their bytes.
fn add_texts(line: &Line<'_>, fields: &Fields, texts: &mut Vec<String>) -> Result<usize, Fault> {
    let mut object = jsonl::object(line)?;
    fields.apply(&mut object);
    let before = texts.len();
    collect(&object, texts);
    if texts.len() == before {
        let found: Vec<&str> = object.keys().map(String::as_str).collect();
        return Err(Fault {
            line: line.number,
            record: line.record,
            message: format!(
                "expected key text, conversations, messages, prompt and completion, chosen and rejected, or \
                 instruction and output, found {}",
                if found.is_empty() { "none".to_owned() } else { found.join(", ") }
            ),
            hint: None,
        });
    }
    Ok(texts[before..].iter().map(String::len).sum())
}

/// The strings of a record that a model would see as text, whatever its form; none where it has
/// none of the known keys.
#[must_use]
pub fn of_object(object: &Map<String, Value>) -> Vec<String> {
    let mut texts = Vec::new();
    collect(object, &mut texts);
    texts
}

/// The strings a model would see as text.
fn collect(object: &Map<String, Value>, texts: &mut Vec<String>) {
    for (key, value) in object {
        match (key.as_str(), value) {
            ("content" | "value" | "reasoning_content", Value::String(text)) => {
                texts.push(text.clone());
            }
            ("history", Value::Array(pairs)) => {
                let of_pair = pairs.iter().filter_map(Value::as_array).flatten();
                texts.extend(of_pair.filter_map(Value::as_str).map(str::to_owned));
            }
            ("tools" | "history", _) => {}
            (key, value) if NAMES.contains(&key) => match (turns::list(value), value) {
                (Some(turns), _) => {
                    turns.iter().filter_map(Value::as_object).for_each(|turn| collect(turn, texts));
                }
                (None, Value::String(text)) => texts.push(text.clone()),
                (None, Value::Object(turn)) => collect(turn, texts),
                _ => {}
            },
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(name: &str, content: &[u8]) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs_err::write(&path, content).unwrap();
        let mut all = Vec::new();
        for_each_batch(&path, &Fields::default(), |batch| {
            all.extend_from_slice(batch);
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn all_kinds_of_records_give_their_texts() {
        let content = "\u{feff}{\"text\": \"a\"}\r\n\n{\"conversations\": [{\"role\": \"user\", \
            \"content\": \"b\"}, {\"from\": \"gpt\", \"value\": \"c\"}]}\n{\"chosen\": [{\"content\": \
            \"d\", \"reasoning_content\": \"e\"}], \"rejected\": [{\"content\": \"f\"}]}";
        assert_eq!(texts("x.jsonl", content.as_bytes()).unwrap(), ["a", "b", "c", "d", "e", "f"]);
    }

    #[test]
    fn arrays_and_alpaca_give_their_texts_too() {
        let content = "[\n {\n  \"instruction\": \"a\",\n  \"input\": \"b\", \"output\": \"c\",\n  \
            \"history\": [[\"d\", \"e\"]]\n },\n {\"text\": \"f\"}\n]";
        assert_eq!(texts("x.json", content.as_bytes()).unwrap(), ["a", "b", "c", "d", "e", "f"]);
        let error = texts("x.json", b"[{\"text\": \"a\"},\n{\"a\": 1}]").unwrap_err().to_string();
        assert!(error.contains("record 2 (line 2): expected key text"), "{error}");
        assert_eq!(
            texts("x.csv", b"text,id\none,1\n\"two\nthree\",2\n").unwrap(),
            ["one", "two\nthree"]
        );
        let rows = b"prompt\tcompletion\na\t\"[{\"\"role\"\": \"\"assistant\"\", \"\"content\"\": \"\"b\"\"}]\"";
        assert_eq!(texts("x.tsv", rows).unwrap(), ["a", "b"]);
    }

    #[test]
    fn long_lines_of_plain_text_come_in_parts_and_lose_nothing() {
        let content = format!("{}\nend", "好a".repeat(900_000));
        let parts = texts("x.txt", content.as_bytes()).unwrap();
        assert!(parts.len() > 3 && parts.iter().all(|p| p.len() <= LONGEST_BYTES + 3));
        assert_eq!(parts.concat(), content);
    }

    #[test]
    fn faults_name_file_and_line() {
        let error = texts("x.jsonl", b"{\"text\": \"a\"}\n{\"other\": 1}").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("found other"), "{error}");
        let error = texts("x.txt", b"ok\nab\xff").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("offset 5"), "{error}");
    }
}
