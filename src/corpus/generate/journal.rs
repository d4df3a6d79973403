//! Answers on disk, a line each, as they come: what a run goes on from.
//!
//! The first line holds the digest of everything that the answers depend on. A line that was cut off
//! when the process died is taken away.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use mmx_converters::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A request: the prompt's number and the step.
pub(super) type Key = (u64, u8);

#[derive(Serialize, Deserialize)]
struct Head {
    mmx_generate: u32,
    settings: String,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    prompt: u64,
    step: u8,
    answer: Value,
}

/// The journal of a run.
pub(super) struct Journal {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: fs_err::File,
    /// Where each answer's line lies: offset and length.
    places: BTreeMap<Key, (u64, usize)>,
    end: u64,
}

impl Journal {
    /// Opens a journal, or begins one.
    ///
    /// # Errors
    /// A file that is none, that belongs to a run of other settings, or that another process holds.
    pub(super) fn open(path: &Path, settings: &str) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false);
        let mut file = file.open(path).map_err(io)?;
        if file.file().try_lock().is_err() {
            let message =
                format!("{}: expected a journal of no other run, found it held", path.display());
            return Err(Error::failed(message));
        }
        let (mut places, mut end) = (BTreeMap::new(), 0u64);
        let mut reader = BufReader::new(&mut file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(io)?;
            if line.last() != Some(&b'\n') {
                break; // the end, or a line that was cut off
            }
            if end == 0 {
                check(path, &line, settings)?;
            } else {
                let entry: Entry = serde_json::from_slice(&line).map_err(|e| {
                    Error::format(path, format!("byte {end}: expected an answer: {e}"))
                })?;
                places.insert((entry.prompt, entry.step), (end, read));
            }
            end += read as u64;
        }
        file.set_len(end).map_err(io)?;
        file.seek(SeekFrom::Start(end)).map_err(io)?;
        if end == 0 {
            let head = Head { mmx_generate: 1, settings: settings.to_owned() };
            let text =
                serde_json::to_string(&head).map_err(|e| Error::format(path, e.to_string()))?;
            writeln!(file, "{text}").map_err(io)?;
            end = text.len() as u64 + 1;
        }
        let state = Mutex::new(State { file, places, end });
        Ok(Self { path: path.to_owned(), state })
    }

    /// The answer to a request, if it is there.
    pub(super) fn get(&self, key: Key) -> Result<Option<Value>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(&(offset, length)) = state.places.get(&key) else { return Ok(None) };
        let io = |e| Error::io(&self.path, e);
        let mut line = vec![0; length];
        let end = state.end;
        state.file.seek(SeekFrom::Start(offset)).map_err(io)?;
        state.file.read_exact(&mut line).map_err(io)?;
        state.file.seek(SeekFrom::Start(end)).map_err(io)?;
        let entry: Entry = serde_json::from_slice(&line)
            .map_err(|e| Error::format(&self.path, format!("expected an answer: {e}")))?;
        Ok(Some(entry.answer))
    }

    /// Writes an answer; it is with the system when this returns.
    pub(super) fn put(&self, (prompt, step): Key, answer: &Value) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        let entry = Entry { prompt, step, answer: answer.clone() };
        let mut line =
            serde_json::to_vec(&entry).map_err(|e| Error::format(&self.path, e.to_string()))?;
        line.push(b'\n');
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.file.write_all(&line).map_err(io)?;
        let at = state.end;
        state.places.insert((prompt, step), (at, line.len()));
        state.end += line.len() as u64;
        Ok(())
    }
}

fn check(path: &Path, line: &[u8], settings: &str) -> Result<()> {
    let head: Head = serde_json::from_slice(line).map_err(|_| {
        Error::format(path, "expected a journal of `mmx data generate`, found another file")
    })?;
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
