//! The rewards of a run: those of a file for every task, and those of a task's own record.

use std::path::{Path, PathBuf};

use mmx_converters::{Error, Result};
use mmx_data::Task;
use serde_json::Value;

use super::judge::Judges;
use super::part::{Means, Part};
use super::score::{Score, Scorer};
use crate::prompts::Draw;
use crate::sandbox::Sandbox;
use crate::written::Written;

/// The key of a record that holds its own rewards.
const KEY: &str = "reward";

/// Rewards as data: a list of parts, each with its weight.
#[derive(Debug, Default)]
pub struct Rewards {
    list: List,
    /// Where commands of records lie.
    folder: PathBuf,
    judges: Judges,
    sandbox: Sandbox,
}

#[derive(Debug, Default)]
struct List {
    parts: Vec<Part>,
    clamp: Option<[f64; 2]>,
}

impl Rewards {
    /// The rewards of records alone. `folder`: where their commands lie, which they may name
    /// `{dir}`.
    #[must_use]
    pub fn of_records(folder: &Path, judges: Judges, sandbox: Sandbox) -> Self {
        Self { list: List::default(), folder: folder.to_owned(), judges, sandbox }
    }

    /// The rewards of a file, for every task; those of a task's own record are added. The file is a
    /// JSON list of rewards, or an object with the keys `reward` and `clamp`.
    ///
    /// # Errors
    /// An unreadable file, a reward of an unknown type, an unknown or impossible key.
    pub fn open(path: &Path, judges: Judges, sandbox: Sandbox) -> Result<Self> {
        let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Error::format(path, format!("expected a list of rewards: {e}")))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Self::from_json(&value, path, folder.unwrap_or(Path::new(".")), judges, sandbox)
    }

    /// The rewards of a JSON value. `path`: the file it is from, for messages; `folder`: where its
    /// commands lie.
    ///
    /// # Errors
    /// See [`Rewards::open`].
    pub fn from_json(
        value: &Value,
        path: &Path,
        folder: &Path,
        judges: Judges,
        sandbox: Sandbox,
    ) -> Result<Self> {
        let list = List::from_json(value, folder)
            .map_err(|(key, message)| Error::key(path, key, message))?;
        Ok(Self { list, folder: folder.to_owned(), judges, sandbox })
    }

    /// The rewards of a record, in addition to those of the run.
    fn own(&self, task: &Task) -> Result<List> {
        let Some(value) = task.record.get(KEY).filter(|value| !value.is_null()) else {
            return Ok(List::default());
        };
        // a table keeps the list's text
        let parsed = value.as_str().filter(|text| text.trim_start().starts_with(['[', '{']));
        let parsed = parsed.and_then(|text| serde_json::from_str(text).ok());
        List::from_json(parsed.as_ref().unwrap_or(value), &self.folder)
            .map_err(|(key, message)| Error::failed(format!("key {KEY}{key}: {message}")))
    }
}

impl List {
    fn from_json(value: &Value, folder: &Path) -> std::result::Result<Self, (String, String)> {
        let (value, clamp) = match value.as_object().filter(|object| object.contains_key(KEY)) {
            None => (value, None),
            Some(object) => {
                if let Some(key) = object.keys().find(|key| *key != KEY && *key != "clamp") {
                    return Err((
                        format!(".{key}"),
                        format!("expected one of {KEY}, clamp, found {key}"),
                    ));
                }
                (&object[KEY], object.get("clamp"))
            }
        };
        let clamp = clamp.map(|clamp| {
            let ends = clamp.as_array().map(Vec::as_slice).unwrap_or_default();
            match ends.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>().as_deref() {
                Some([low, high]) if low <= high => Ok([*low, *high]),
                _ => {
                    Err((".clamp".to_owned(), "expected a list of two numbers in order".to_owned()))
                }
            }
        });
        let one = std::slice::from_ref(value);
        let entries = value.as_array().map_or(one, Vec::as_slice);
        let mut parts: Vec<Part> = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let mut part = Part::from_json(entry, folder)
                .map_err(|(key, message)| (format!("[{index}]{key}"), message))?;
            // names tell parts apart
            let same = parts.iter().filter(|known| known.name == part.name).count();
            if same > 0 {
                part.name = format!("{}_{}", part.name, index + 1);
            }
            parts.push(part);
        }
        Ok(Self { parts, clamp: clamp.transpose()? })
    }

    /// Adds the scores of this list.
    fn add(
        &self,
        scores: &mut [Score],
        draw: &Draw,
        written: &[Written],
        means: Means<'_>,
    ) -> Result<()> {
        let mut sums = vec![0.0; scores.len()];
        for part in &self.parts {
            let values = part.values(draw, written, means)?;
            for ((score, sum), (parts, value)) in scores.iter_mut().zip(&mut sums).zip(values) {
                *sum += part.weight * value;
                for (name, value) in parts {
                    let taken = score.parts.iter().any(|(known, _)| *known == name);
                    let name = if taken { format!("task/{name}") } else { name };
                    score.parts.push((name, value));
                }
            }
        }
        for (score, sum) in scores.iter_mut().zip(sums) {
            score.reward += self.clamp.map_or(sum, |[low, high]| sum.clamp(low, high));
        }
        Ok(())
    }
}

impl Scorer for Rewards {
    fn score(&self, draw: &Draw, written: &[Written]) -> Result<Vec<Score>> {
        let own = self.own(&draw.task)?;
        if self.list.parts.is_empty() && own.parts.is_empty() {
            return Err(Error::failed_with_hint(
                format!("task {}: expected a reward, found none", draw.sample),
                "give the task a key reward, or the run a file of rewards",
            ));
        }
        let means = Means { judges: &self.judges, sandbox: self.sandbox };
        let mut scores = vec![Score::default(); written.len()];
        self.list.add(&mut scores, draw, written, means)?;
        own.add(&mut scores, draw, written, means)?;
        match scores.iter().flat_map(|score| &score.parts).find(|(_, value)| !value.is_finite()) {
            Some((name, value)) => Err(Error::failed(format!(
                "reward {name}: expected a finite number, found {value}"
            ))),
            None => Ok(scores),
        }
    }

    fn check(&self, task: &Task) -> Result<()> {
        let own = self.own(task)?;
        if self.list.parts.is_empty() && own.parts.is_empty() {
            return Err(Error::failed_with_hint(
                "expected a reward, found none".to_owned(),
                "give the task a key reward, or the run a file of rewards",
            ));
        }
        self.list.parts.iter().chain(&own.parts).try_for_each(|part| part.check(task))
    }
}
