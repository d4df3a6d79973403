//! Answers on disk, a line each, as they come: what a run goes on from.
//!
//! The first line holds the digest of everything that the answers depend on. A line that was cut
//! off when the process died is taken away.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use mmx_converters::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Serialize, Deserialize)]
struct Head {
    mmx_journal: u32,
    settings: String,
}

#[derive(Serialize, Deserialize)]
struct Entry<K> {
    key: K,
    answer: Value,
}

/// The journal of a run, whose requests have keys of type `K`.
#[derive(Debug)]
pub struct Journal<K> {
    path: PathBuf,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    file: fs_err::File,
    /// Where each answer's line lies: offset and length.
    places: BTreeMap<K, (u64, usize)>,
    end: u64,
}

impl<K: Clone + Ord + Serialize + DeserializeOwned> Journal<K> {
    /// Opens a journal, or begins one.
    ///
    /// # Errors
    /// A file that is none, that belongs to a run of other settings, or that another process holds.
    pub fn open(path: &Path, settings: &str) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false);
        let mut file = file.open(path).map_err(io)?;
        if file.file().try_lock().is_err() {
            let message =
                format!("{}: expected a journal of no other run, found it held", path.display());
            return Err(Error::failed(message));
        }
        let head = Head { mmx_journal: 1, settings: settings.to_owned() };
        let head =
            serde_json::to_string(&head).map_err(|e| Error::format(path, e.to_string()))? + "\n";
        let (mut places, mut end) = (BTreeMap::new(), 0u64);
        let mut reader = BufReader::new(&mut file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(io)?;
            if line.last() != Some(&b'\n') {
                // the end, or a line that was cut off; what was never a journal stays what it is
                if end == 0 && !head.as_bytes().starts_with(&line) {
                    return Err(no_journal(path));
                }
                break;
            }
            if end == 0 {
                check(path, &line, settings)?;
            } else {
                let entry: Entry<K> = serde_json::from_slice(&line).map_err(|e| {
                    Error::format(path, format!("byte {end}: expected an answer: {e}"))
                })?;
                places.insert(entry.key, (end, read));
            }
            end += read as u64;
        }
        file.set_len(end).map_err(io)?;
        file.seek(SeekFrom::Start(end)).map_err(io)?;
        if end == 0 {
            file.write_all(head.as_bytes()).map_err(io)?;
            end = head.len() as u64;
        }
        let state = Mutex::new(State { file, places, end });
        Ok(Self { path: path.to_owned(), state })
    }

    /// The answer to a request, if it is there.
    ///
    /// # Errors
    /// A journal that can no longer be read.
    pub fn get(&self, key: &K) -> Result<Option<Value>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(&(offset, length)) = state.places.get(key) else { return Ok(None) };
        let io = |e| Error::io(&self.path, e);
        let mut line = vec![0; length];
        let end = state.end;
        state.file.seek(SeekFrom::Start(offset)).map_err(io)?;
        state.file.read_exact(&mut line).map_err(io)?;
        state.file.seek(SeekFrom::Start(end)).map_err(io)?;
        let entry: Entry<K> = serde_json::from_slice(&line)
            .map_err(|e| Error::format(&self.path, format!("expected an answer: {e}")))?;
        Ok(Some(entry.answer))
    }

    /// The keys of all answers that are there, in their order.
    pub fn keys(&self) -> Vec<K> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.places.keys().cloned().collect()
    }

    /// Writes an answer; it is with the system when this returns.
    ///
    /// # Errors
    /// A journal that cannot be written.
    pub fn put(&self, key: K, answer: &Value) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        let entry = Entry { key, answer: answer.clone() };
        let mut line =
            serde_json::to_vec(&entry).map_err(|e| Error::format(&self.path, e.to_string()))?;
        line.push(b'\n');
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let at = state.end;
        if let Err(e) = state.file.write_all(&line) {
            // a full disk: half a line must not stand before what is written later
            let _ = state.file.set_len(at).and_then(|()| state.file.seek(SeekFrom::Start(at)));
            return Err(io(e));
        }
        state.places.insert(entry.key, (at, line.len()));
        state.end += line.len() as u64;
        Ok(())
    }
}

fn no_journal(path: &Path) -> Error {
    Error::format(path, "expected a journal of answers, found another file")
}

fn check(path: &Path, line: &[u8], settings: &str) -> Result<()> {
    let head: Head = serde_json::from_slice(line).map_err(|_| no_journal(path))?;
    match head.settings == settings {
        true => Ok(()),
        false => Err(Error::format(
            path,
            "expected the journal of this run, found one of other settings",
        )
        .with_hint(
            "the settings of the run before go on with it; without the journal a new one begins",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_journal_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine");
        for text in ["mine\n", "mine", "{\"mmx_journal\":1,\"settings\":\"other"] {
            fs_err::write(&path, text).unwrap();
            let error = Journal::<String>::open(&path, "s").unwrap_err().to_string();
            assert!(error.contains("found another file"), "{error}");
            assert_eq!(fs_err::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_head_and_a_line_that_were_cut_off_are_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        fs_err::write(&path, "{\"mmx_jour").unwrap();
        let journal = Journal::open(&path, "s").unwrap();
        journal.put("a".to_owned(), &Value::from(1)).unwrap();
        journal.put("b".to_owned(), &Value::from(2)).unwrap();
        drop(journal);
        let bytes = fs_err::read(&path).unwrap();
        fs_err::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let journal = Journal::open(&path, "s").unwrap();
        assert_eq!(journal.keys(), ["a"]);
        journal.put("b".to_owned(), &Value::from(3)).unwrap();
        assert_eq!(journal.get(&"b".to_owned()).unwrap(), Some(Value::from(3)));
        assert_eq!(journal.get(&"c".to_owned()).unwrap(), None);
    }
}
