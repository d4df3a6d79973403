//! What models said, in a file that later runs go on with.
//!
//! A line is known by its key, the digest of all that it depends on: the model and the whole
//! request. So nothing is asked twice, and nothing that was answered to another question is taken
//! for an answer. While requests are under way lines go to a journal beside the file as they come;
//! the file itself is written whole, in order, once all are there.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use mmx_converters::{Error, Result, digest, file};
use mmx_data::asking::Journal;
use serde_json::Value;

/// A line of a store: its key, and what is kept under it.
pub type Line = (String, Value);

/// A file of answers or verdicts, and its journal.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// The lines that the file holds, in order, and their places by key.
    lines: Vec<Line>,
    places: HashMap<String, usize>,
    /// Until the file is written.
    journal: Option<Journal<String>>,
}

/// The key of a request to a model.
pub(super) fn key(identity: &str, body: &Value) -> String {
    let body = body.to_string();
    let pieces = [identity.as_bytes(), &[0], body.as_bytes()];
    // half a SHA-256: no two requests of any file will share it
    digest::of_pieces(pieces.into_iter()).chars().take(32).collect()
}

impl Store {
    /// Opens a file of lines with a text at `field`, or begins one.
    ///
    /// # Errors
    /// A file that holds something else, or one that another process writes.
    pub fn open(path: &Path, field: &str) -> Result<Self> {
        let (mut lines, mut places) = (Vec::new(), HashMap::new());
        if path.is_file() {
            let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
            for (index, line) in text.lines().enumerate() {
                let line: Option<Value> = serde_json::from_str(line).ok();
                let key = line.as_ref().and_then(|line| line["key"].as_str()).map(str::to_owned);
                match (key, line) {
                    (Some(key), Some(line)) if line[field].is_string() => {
                        places.insert(key.clone(), lines.len());
                        lines.push((key, line));
                    }
                    _ => {
                        let (place, number) = (path.display(), index + 1);
                        return Err(Error::failed_with_hint(
                            format!(
                                "{place}:{number}: expected keys key and {field}, found another line"
                            ),
                            "a file that mmx eval wrote is gone on with, no other is replaced",
                        ));
                    }
                }
            }
        }
        let journal = Journal::open(&journal_of(path), field)?;
        Ok(Self { path: path.to_owned(), lines, places, journal: Some(journal) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line of a key, if it is there.
    pub(super) fn get(&self, key: &str) -> Result<Option<Value>> {
        match (self.places.get(key), &self.journal) {
            (Some(&place), _) => Ok(Some(self.lines[place].1.clone())),
            (None, Some(journal)) => journal.get(&key.to_owned()),
            (None, None) => Ok(None),
        }
    }

    /// Keeps a line; it is with the system when this returns.
    pub(super) fn put(&self, key: String, line: &Value) -> Result<()> {
        self.journal.as_ref().map_or(Ok(()), |journal| journal.put(key, line))
    }

    /// Writes the file: these lines in this order, then all others that were there. The journal is
    /// gone then.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn finish(mut self, lines: Vec<Line>) -> Result<()> {
        let Some(journal) = self.journal.take() else { return Ok(()) };
        let mut known = HashSet::new();
        let mut all: Vec<Line> = Vec::new();
        for (key, line) in lines.into_iter().chain(std::mem::take(&mut self.lines)) {
            if known.insert(key.clone()) {
                all.push((key, line));
            }
        }
        for key in journal.keys() {
            if let (false, Some(line)) = (known.contains(&key), journal.get(&key)?) {
                all.push((key, line));
            }
        }
        file::write_whole(&self.path, |out| {
            let mut write = |line: &Value| writeln!(out, "{line}");
            all.iter().try_for_each(|(_, line)| write(line)).map_err(|e| Error::io(&self.path, e))
        })?;
        drop(journal);
        let path = journal_of(&self.path);
        fs_err::remove_file(&path).map_err(|e| Error::io(&path, e))
    }
}

impl Drop for Store {
    /// A journal without an answer is of no use.
    fn drop(&mut self) {
        if let Some(journal) = self.journal.take()
            && journal.keys().is_empty()
        {
            drop(journal);
            let _ = fs_err::remove_file(journal_of(&self.path)); // the next run finds it empty
        }
    }
}

fn journal_of(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.journal", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(key: &str, answer: &str) -> (String, Value) {
        (key.to_owned(), json!({ "key": key, "answer": answer }))
    }

    #[test]
    fn what_was_kept_is_found_again_in_order_with_all_that_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let (a, b, c) = (line("a", "1"), line("b", "2"), line("c", "3"));
        let store = Store::open(&path, "answer").unwrap();
        store.put(b.0.clone(), &b.1).unwrap();
        store.put(c.0.clone(), &c.1).unwrap();
        drop(store); // killed
        assert!(!path.exists());
        let store = Store::open(&path, "answer").unwrap();
        store.put(a.0.clone(), &a.1).unwrap();
        assert_eq!(store.get(&b.0).unwrap(), Some(b.1.clone()));
        store.finish(vec![a.clone()]).unwrap();
        let text = |lines: &[&(String, Value)]| -> String {
            lines.iter().map(|(_, line)| format!("{line}\n")).collect()
        };
        assert_eq!(fs_err::read_to_string(&path).unwrap(), text(&[&a, &b, &c]));
        let store = Store::open(&path, "answer").unwrap();
        assert_eq!(store.get(&c.0).unwrap(), Some(c.1.clone()));
        store.finish(vec![c.clone()]).unwrap();
        assert_eq!(fs_err::read_to_string(&path).unwrap(), text(&[&c, &a, &b]));
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1, "a journal is left");
    }

    #[test]
    fn another_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.jsonl");
        for text in ["mine", "{\"key\": \"a\", \"answer\": null}\n", "{\"answer\": \"b\"}\n"] {
            fs_err::write(&path, text).unwrap();
            let error = Store::open(&path, "answer").unwrap_err().to_string();
            assert!(error.contains("mine.jsonl:1: expected keys key and answer"), "{error}");
            assert_eq!(fs_err::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn keys_tell_models_and_requests_apart() {
        let body = json!({ "messages": [] });
        assert_ne!(key("a", &body), key("b", &body));
        assert_ne!(key("a", &body), key("a", &json!({ "messages": [1] })));
        assert_eq!((key("a", &body), key("a", &body).len()), (key("a", &body), 32));
    }
}
