//! A program and its limits.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

/// What a command may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// From its start to its end; half as much again of processor time.
    pub time: Duration,
    /// Address space of each process, bytes.
    pub memory_bytes: u64,
    /// Processes and threads at once.
    pub processes: u64,
    /// A file that it writes, bytes.
    pub file_bytes: u64,
    /// What it writes to stdout, bytes.
    pub output_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(10),
            memory_bytes: 1 << 30,
            processes: 32,
            file_bytes: 16 << 20,
            output_bytes: 1 << 20,
        }
    }
}

/// A program with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// The program and its arguments: no shell reads them.
    pub argv: Vec<String>,
    /// What it may use.
    pub limits: Limits,
}

impl Command {
    /// A program with the usual limits.
    #[must_use]
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), limits: Limits::default() }
    }

    /// Reads `{"command": [..], "time_s": .., "memory_mb": .., "processes": .., "file_mb": ..}`; in
    /// an argument `{dir}` is the folder `folder`.
    ///
    /// # Errors
    /// The key with a dot before it, and what was expected.
    pub fn from_json(object: &Map<String, Value>, folder: &Path) -> Result<Self, (String, String)> {
        let fault = |key: &str, message: &str| (format!(".{key}"), message.to_owned());
        let words = match object.get("command") {
            Some(Value::Array(words)) if !words.is_empty() => words,
            _ => return Err(fault("command", "expected a list: the program and its arguments")),
        };
        // the folder of a file without one in its name
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let folder = folder.to_string_lossy();
        let mut argv = Vec::with_capacity(words.len());
        for word in words {
            let word = word.as_str().filter(|word| !word.contains('\0'));
            let word = word.ok_or_else(|| fault("command", "expected strings"))?;
            argv.push(word.replace("{dir}", &folder));
        }
        let number = |key: &str, default: f64, least: f64, most: f64| match object.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|x| (least..=most).contains(x))
                .ok_or_else(|| fault(key, &format!("expected a number from {least} to {most}"))),
        };
        let usual = Limits::default();
        const MB: f64 = 1_048_576.0;
        let limits = Limits {
            time: Duration::from_secs_f64(number(
                "time_s",
                usual.time.as_secs_f64(),
                0.01,
                86_400.0,
            )?),
            memory_bytes: (number("memory_mb", usual.memory_bytes as f64 / MB, 1.0, 1e9)? * MB)
                as u64,
            processes: number("processes", usual.processes as f64, 1.0, 1e6)? as u64,
            file_bytes: (number("file_mb", usual.file_bytes as f64 / MB, 0.0, 1e9)? * MB) as u64,
            output_bytes: usual.output_bytes,
        };
        Ok(Self { argv, limits })
    }

    /// The program's name, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        self.argv.join(" ")
    }
}
