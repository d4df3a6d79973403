//! What became of records: kept, mended, and dropped by which rule, with the first examples of each.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::reading::{Read, Source};

/// Examples that are kept of a rule.
const EXAMPLES: usize = 3;
/// Characters of an example's text.
const SHOWN: usize = 80;

/// What became of the records of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Whole records that were read.
    pub read: u64,
    /// Records that were written.
    pub kept: u64,
    /// Those among them that were changed.
    pub changed: u64,
    /// Faulty records that were skipped.
    pub faulty: u64,
    /// Bytes of text of all records.
    pub text_bytes: u64,
    /// Bytes of text of those that were written.
    pub kept_text_bytes: u64,
    /// Rules that dropped records.
    pub dropped: Vec<Counted>,
    /// Rules that changed records.
    pub replaced: Vec<Counted>,
    /// Sentences about what was lost otherwise.
    pub warnings: Vec<String>,
}

/// How often a rule applied.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counted {
    /// The rule's name: `length.characters`.
    pub rule: String,
    /// Records it applied to.
    pub records: u64,
    /// The first of them.
    pub examples: Vec<Example>,
}

/// A record that a rule applied to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// Its file.
    pub file: PathBuf,
    /// Its line, of tables and arrays its number.
    pub line: usize,
    /// What the rule found.
    pub found: String,
    /// The beginning of its text.
    pub text: String,
}

impl Example {
    /// An example, its text shortened.
    #[must_use]
    pub fn new(files: &[PathBuf], source: Source, found: String, text: &str) -> Self {
        let file = files.get(source.file).cloned().unwrap_or_default();
        Self { file, line: source.number, found, text: shortened(text) }
    }
}

/// The beginning of a text, on one line.
fn shortened(text: &str) -> String {
    let head: String = text.chars().take(4 * SHOWN).collect();
    let mut line = head.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(SHOWN) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}

impl Report {
    /// Counts a record that a rule dropped; `example` is called while few are known.
    pub fn drop(&mut self, rule: &str, example: impl FnOnce() -> Example) {
        count(&mut self.dropped, rule, example);
    }

    /// Counts a record that a rule changed.
    pub fn replace(&mut self, rule: &str, example: impl FnOnce() -> Example) {
        count(&mut self.replaced, rule, example);
    }

    /// Takes over what was read, faulty records included.
    pub(crate) fn reading(&mut self, read: &Read, files: &[PathBuf]) {
        self.read += read.records;
        self.faulty += read.faulty;
        for (file, fault) in &read.faults {
            let source = Source { file: *file, number: fault.record.unwrap_or(fault.line) };
            self.drop("faulty", || Example::new(files, source, fault.message.clone(), ""));
        }
        if let Some(counted) = self.dropped.iter_mut().find(|counted| counted.rule == "faulty") {
            counted.records = self.faulty;
        }
    }

    /// Records that rules dropped, faulty ones apart.
    #[must_use]
    pub fn dropped_records(&self) -> u64 {
        self.dropped.iter().filter(|c| c.rule != "faulty").map(|counted| counted.records).sum()
    }

    /// The report in lines: counts, then each rule with its examples.
    #[must_use]
    pub fn in_words(&self) -> Vec<String> {
        let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let mut lines = vec![format!(
            "{} records read, {} kept ({:.1} %), {} dropped; {:.1} % of {:.1} MB of text kept",
            self.read,
            self.kept,
            percent(self.kept, self.read),
            self.dropped_records(),
            percent(self.kept_text_bytes, self.text_bytes),
            self.text_bytes as f64 / 1e6
        )];
        if self.changed > 0 {
            lines.push(format!("{} of those kept were changed", self.changed));
        }
        for (word, counted) in self
            .dropped
            .iter()
            .map(|c| ("dropped", c))
            .chain(self.replaced.iter().map(|c| ("replaced", c)))
        {
            lines.push(format!("{:>10}  {word} by {}", counted.records, counted.rule));
            for example in &counted.examples {
                let place = |path: &Path| format!("{}:{}", path.display(), example.line);
                let text = match example.text.is_empty() {
                    true => String::new(),
                    false => format!(": {}", example.text),
                };
                lines.push(format!(
                    "            {}: {}{text}",
                    place(&example.file),
                    example.found
                ));
            }
        }
        lines
    }
}

fn count(list: &mut Vec<Counted>, rule: &str, example: impl FnOnce() -> Example) {
    let at = list.iter().position(|counted| counted.rule == rule).unwrap_or_else(|| {
        list.push(Counted { rule: rule.to_owned(), records: 0, examples: Vec::new() });
        list.len() - 1
    });
    let counted = &mut list[at];
    counted.records += 1;
    if counted.examples.len() < EXAMPLES {
        counted.examples.push(example());
    }
}
