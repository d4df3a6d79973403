//! Records of any form that mmx reads to a form of one kind: JSON Lines or Parquet.

mod forms;
mod parquet;

use std::io::Write;
use std::path::Path;

use mmx_converters::{Error, Result};
use mmx_data::jsonl::Line;
use mmx_data::{Kind, Record, forms as known};
use serde_json::Value;

pub use self::forms::Form;
use self::parquet::Table;
use crate::reading::{self, Reading};
use crate::report::{Example, Report};
use crate::writing::Output;

/// A conversion: what the files are read as, and what is written.
#[derive(Clone, Copy, Debug)]
pub struct Conversion {
    /// The kind of data that is read.
    pub from: Kind,
    /// The kind that is written: text of chats, chats of the better answers.
    pub to: Kind,
    /// The form of its chats.
    pub form: Form,
}

impl Conversion {
    /// Refuses what cannot be made of a kind.
    ///
    /// # Errors
    /// Chats of texts, preferences of anything else.
    pub fn check(&self) -> Result<()> {
        let made = match (self.from, self.to) {
            (from, to) if from == to => true,
            (Kind::Preference, _) | (Kind::Chat, Kind::Text) => true,
            _ => false,
        };
        let fits = self.form == Form::Own || self.to == Kind::Chat;
        match (made, fits) {
            (true, true) => Ok(()),
            (false, _) => Err(Error::misuse(format!(
                "expected to write what {} can become, found {}",
                name(self.from),
                name(self.to)
            ))),
            (_, false) => {
                Err(Error::setting("form", format!("own for {}", name(self.to)), self.form.name()))
            }
        }
    }

    /// Writes all records; to Parquet where the name ends so.
    ///
    /// # Errors
    /// Files that cannot be read or written, faulty records, chats that a form cannot hold.
    pub fn run(&self, reading: &Reading, path: &Path, out: &mut dyn Write) -> Result<Report> {
        self.check()?;
        let columnar = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"));
        if columnar && self.form != Form::Own {
            return Err(Error::setting("form", "own for Parquet", self.form.name()));
        }
        let mut report = Report::default();
        match columnar {
            true => {
                let mut table = Table::new(self.to, path, out)?;
                self.each(reading, &mut report, |record, _| table.push(record))?;
                let left_out = table.finish()?;
                for key in left_out {
                    report.warnings.push(format!(
                        "key {key} of turns is no column that mmx writes, and was left out"
                    ));
                }
            }
            false => {
                let mut output = Output::named(path, out)?;
                self.each(reading, &mut report, |_, line| output.push(line))?;
                output.finish()?;
            }
        }
        Ok(report)
    }

    fn each(
        &self,
        reading: &Reading,
        report: &mut Report,
        mut take: impl FnMut(&Record, &str) -> Result<()>,
    ) -> Result<()> {
        let work = |raw: reading::Raw<'_>| {
            let bytes = raw.json.as_bytes();
            let line = Line { number: 0, record: None, offset: 0, bytes, damage: None };
            let made = known::parse(&line, self.from, &reading.fields)
                .map_err(|fault| fault.message)
                .map(|record| become_kind(record, self.to))
                .and_then(|record| Ok((self.form.value(&record)?.to_string(), record)));
            let size = raw.texts().iter().map(String::len).sum::<usize>();
            (raw.source, size as u64, made)
        };
        let mut refused = 0;
        let read = reading::for_each(reading, "converting", work, |(source, size, made)| {
            report.text_bytes += size;
            match made {
                Ok((line, record)) => {
                    take(&record, &line)?;
                    report.kept += 1;
                    report.kept_text_bytes += size;
                    Ok(())
                }
                Err(why) if reading.on_bad == mmx_data::OnBad::Skip => {
                    refused += 1;
                    report.drop("form", || Example::new(&reading.files, source, why, ""));
                    Ok(())
                }
                Err(why) => {
                    let path = reading.files[source.file].display();
                    Err(Error::failed(format!("{path}:{}: {why}", source.number)))
                }
            }
        })?;
        report.reading(&read, &reading.files);
        Ok(())
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "texts",
        Kind::Chat => "chats",
        Kind::Preference => "preferences",
    }
}

/// A record as one of another kind: of preferences the better answer, of chats their texts.
fn become_kind(record: Record, to: Kind) -> Record {
    match (record, to) {
        (Record::Preference { chosen, .. }, Kind::Chat | Kind::Text) => {
            become_kind(Record::Chat(chosen), to)
        }
        (Record::Chat(turns), Kind::Text) => {
            let text = |turn: &Value| {
                let part = |key: &str| turn[key].as_str().filter(|text| !text.is_empty());
                let thought = part("reasoning_content").map(|t| format!("<think>\n{t}\n</think>"));
                let content = part("content").map(str::to_owned);
                thought.into_iter().chain(content).collect::<Vec<_>>().join("\n\n")
            };
            let parts: Vec<String> = turns.iter().map(text).filter(|t| !t.is_empty()).collect();
            Record::Text(parts.join("\n\n"))
        }
        (record, _) => record,
    }
}
