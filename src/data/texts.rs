//! The texts of files, for training a tokenizer: streamed, so that memory does not grow with the
//! file.
//!
//! JSON Lines or a JSON array of any kind mmx trains on (`text`; the contents and thoughts of
//! chats; Alpaca's), or plain text; also packed with gzip or zstd.

use std::io::BufRead;
use std::path::Path;

use serde_json::{Map, Value};

use super::jsonl::{self, Fault, Line};
use super::layout;
use super::source::{Blocks, Source};
use mmx_converters::{Error, Result};

/// Bytes of text handed over at once.
const BATCH_BYTES: usize = 4 << 20;

/// A line of plain text longer than this is handed over in parts.
const LONGEST_BYTES: usize = 1 << 20;

/// True for JSON Lines by the file's name, packed or not; other files are plain text.
pub fn is_json_lines(path: &Path) -> bool {
    let packed = path.extension().is_some_and(|e| e == "gz" || e == "zst");
    let name = if packed { path.with_extension("") } else { path.to_owned() };
    name.extension().is_some_and(|e| e == "jsonl" || e == "json" || e == "ndjson")
}

/// Calls `each` with batches of texts until the file ends.
///
/// # Errors
/// A file that cannot be read, is not UTF-8, or (`.jsonl`, `.json`) holds a record without text,
/// naming the line; whatever `each` returns.
pub fn for_each_batch(path: &Path, each: impl FnMut(&[String]) -> Result<()>) -> Result<()> {
    match is_json_lines(path) {
        true => of_records(path, each),
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

fn of_records(path: &Path, mut each: impl FnMut(&[String]) -> Result<()>) -> Result<()> {
    let mut blocks = Blocks::open(path)?;
    while let Some(block) = blocks.next_block()? {
        let (mut texts, mut size): (Vec<String>, usize) = (Vec::new(), 0);
        for line in block.lines() {
            size += add_texts(&line, &mut texts).map_err(|fault| faulty(path, fault))?;
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
    refuse_table(path)?;
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
        let line =
            Line { number: number + 1, record: None, offset: offset + mark, bytes: &bytes[mark..] };
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

/// A table would be read as text with its commas.
fn refuse_table(path: &Path) -> Result<()> {
    let packed = path.extension().is_some_and(|e| e == "gz" || e == "zst");
    let name = if packed { path.with_extension("") } else { path.to_owned() };
    let kind = match name.extension().and_then(|e| e.to_str()) {
        Some("csv") => "CSV",
        Some("tsv") => "TSV",
        _ => return Ok(()),
    };
    Err(Error::failed_with_hint(
        format!("{}: expected text or JSON Lines, found a table ({kind})", path.display()),
        "write each row as {\"text\": \"...\"} on a line of its own, or rename the file to .txt to read it as it stands",
    ))
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
fn add_texts(line: &Line<'_>, texts: &mut Vec<String>) -> Result<usize, Fault> {
    let object = jsonl::object(line)?;
    let before = texts.len();
    collect(&object, texts);
    if texts.len() == before {
        let found: Vec<&str> = object.keys().map(String::as_str).collect();
        return Err(Fault {
            line: line.number,
            record: line.record,
            message: format!(
                "expected key text, conversations, messages, chosen and rejected, or instruction and output, found {}",
                if found.is_empty() { "none".to_owned() } else { found.join(", ") }
            ),
            hint: None,
        });
    }
    Ok(texts[before..].iter().map(String::len).sum())
}

/// The strings a model would see as text.
fn collect(object: &Map<String, Value>, texts: &mut Vec<String>) {
    for (key, value) in object {
        match (key.as_str(), value) {
            (
                "text" | "content" | "value" | "reasoning_content" | "system",
                Value::String(text),
            ) => {
                texts.push(text.clone());
            }
            ("instruction" | "input" | "output", Value::String(text)) => texts.push(text.clone()),
            ("history", Value::Array(pairs)) => {
                let of_pair = pairs.iter().filter_map(Value::as_array).flatten();
                texts.extend(of_pair.filter_map(Value::as_str).map(str::to_owned));
            }
            ("conversations" | "messages" | "chosen" | "rejected", Value::Array(turns)) => {
                turns.iter().filter_map(Value::as_object).for_each(|turn| collect(turn, texts));
            }
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
        for_each_batch(&path, |batch| {
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
        let error = texts("x.csv", b"text\none\n").unwrap_err().to_string();
        assert!(error.contains("found a table (CSV)"), "{error}");
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
