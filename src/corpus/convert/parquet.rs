//! Records to Parquet: a column of texts, or lists of turns as groups of text columns.
//!
//! A row group is written when its text reaches [`GROUP_BYTES`], which is what is held in memory.
//! The same records give the same bytes.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use mmx_converters::{Error, Result};
use mmx_data::{Kind, Record};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::Value;

/// Text of a row group, bytes.
const GROUP_BYTES: usize = 32 << 20;

/// Keys of turns that have a column.
const KEYS: [&str; 7] =
    ["role", "content", "reasoning_content", "tools", "tool_calls", "name", "tool_call_id"];

/// What was written and not yet handed on.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<Vec<u8>>>);

impl Write for Held {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A column of texts, perhaps of turns.
#[derive(Default)]
struct Column {
    values: Vec<ByteArray>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

/// A Parquet file that is being written.
pub(super) struct Table<'a> {
    out: &'a mut dyn Write,
    held: Held,
    writer: SerializedFileWriter<Held>,
    path: PathBuf,
    /// The lists of turns of a record; none for a text.
    lists: &'static [&'static str],
    columns: Vec<Column>,
    bytes: usize,
    left_out: BTreeSet<String>,
}

impl<'a> Table<'a> {
    pub(super) fn new(kind: Kind, path: &Path, out: &'a mut dyn Write) -> Result<Self> {
        let lists: &[&str] = match kind {
            Kind::Text => &[],
            Kind::Chat => &["conversations"],
            Kind::Preference => &["chosen", "rejected"],
        };
        let keys: String = KEYS.map(|key| format!("optional binary {key} (UTF8); ")).concat();
        let fields: String = match lists.is_empty() {
            true => "required binary text (UTF8);".to_owned(),
            false => lists
                .iter()
                .map(|name| {
                    format!(
                        "required group {name} (LIST) {{ repeated group list {{ required group element {{ {keys}}} }} }} "
                    )
                })
                .collect(),
        };
        let failed = |e: ParquetError| Error::failed(format!("{}: {e}", path.display()));
        let schema = parse_message_type(&format!("message records {{ {fields} }}"));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).map_err(failed)?))
            .set_created_by("mmx".to_owned());
        let held = Held::default();
        let writer = SerializedFileWriter::new(
            held.clone(),
            schema.map_err(failed)?.into(),
            properties.build().into(),
        );
        let columns = if lists.is_empty() { 1 } else { lists.len() * KEYS.len() };
        Ok(Self {
            out,
            held,
            writer: writer.map_err(failed)?,
            path: path.to_owned(),
            lists,
            columns: (0..columns).map(|_| Column::default()).collect(),
            bytes: 0,
            left_out: BTreeSet::new(),
        })
    }

    pub(super) fn push(&mut self, record: &Record) -> Result<()> {
        match record {
            Record::Text(text) => {
                self.bytes += text.len();
                self.columns[0].values.push(ByteArray::from(text.as_bytes().to_vec()));
            }
            Record::Chat(turns) => self.push_turns(0, turns),
            Record::Preference { chosen, rejected } => {
                self.push_turns(0, chosen);
                self.push_turns(KEYS.len(), rejected);
            }
        }
        if self.bytes >= GROUP_BYTES { self.write_group() } else { Ok(()) }
    }

    fn push_turns(&mut self, first: usize, turns: &[Value]) {
        for turn in turns.iter().filter_map(Value::as_object) {
            let unknown = turn.keys().filter(|key| !KEYS.contains(&key.as_str()));
            self.left_out.extend(unknown.cloned());
        }
        for (key, column) in KEYS.iter().zip(&mut self.columns[first..]) {
            if turns.is_empty() {
                column.definition.push(0);
                column.repetition.push(0);
            }
            for (i, turn) in turns.iter().enumerate() {
                column.repetition.push(i16::from(i > 0));
                let text = match &turn[*key] {
                    Value::Null => None,
                    Value::String(text) => Some(text.clone()),
                    other => Some(other.to_string()),
                };
                column.definition.push(1 + i16::from(text.is_some()));
                self.bytes += 4 + text.as_ref().map_or(0, String::len);
                column.values.extend(text.map(|text| ByteArray::from(text.into_bytes())));
            }
        }
    }

    fn write_group(&mut self) -> Result<()> {
        let columns = std::mem::take(&mut self.columns);
        let failed = |e: ParquetError| Error::failed(format!("{}: {e}", self.path.display()));
        let is_list = !self.lists.is_empty();
        let mut write = || {
            let mut group = self.writer.next_row_group()?;
            for column in &columns {
                let Some(mut writer) = group.next_column()? else { break };
                let levels = |levels| if is_list { Some(levels) } else { None };
                writer.typed::<ByteArrayType>().write_batch(
                    &column.values,
                    levels(&column.definition[..]),
                    levels(&column.repetition[..]),
                )?;
                writer.close()?;
            }
            group.close().map(drop)
        };
        write().map_err(failed)?;
        self.columns = columns.iter().map(|_| Column::default()).collect();
        self.bytes = 0;
        self.hand_on()
    }

    fn hand_on(&mut self) -> Result<()> {
        let mut held = self.held.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = std::mem::take(&mut *held);
        self.out.write_all(&bytes).map_err(|e| Error::io(&self.path, e))
    }

    /// Writes the end; the keys of turns that have no column.
    pub(super) fn finish(mut self) -> Result<BTreeSet<String>> {
        let rest = self.columns.iter().any(|c| !c.values.is_empty() || !c.definition.is_empty());
        if rest {
            self.write_group()?;
        }
        let failed = |e: ParquetError| Error::failed(format!("{}: {e}", self.path.display()));
        self.writer.finish().map_err(failed)?;
        self.hand_on()?;
        Ok(self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Conversion, Form};
    use super::*;
    use crate::reading::Reading;

    fn converted(from: Kind, to: Kind, form: Form, input: &Path, name: &str) -> PathBuf {
        let path = input.with_file_name(name);
        let conversion = Conversion { from, to, form };
        let mut out = Vec::new();
        conversion.run(&Reading::of(&[input.to_owned()]), &path, &mut out).unwrap();
        fs_err::write(&path, out).unwrap();
        path
    }

    #[test]
    fn records_go_through_parquet_and_every_form_and_come_back_the_same() {
        let dir = tempfile::tempdir().unwrap();
        for (kind, lines) in [
            (Kind::Text, "{\"text\":\"a\\n中\"}\n{\"text\":\"\"}\n"),
            (
                Kind::Chat,
                "{\"conversations\":[{\"role\":\"system\",\"content\":\"s\",\"tools\":\"[{}]\"},\
                 {\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\",\
                 \"reasoning_content\":\"c\"}]}\n{\"conversations\":[{\"role\":\"user\",\
                 \"content\":\"d\"},{\"role\":\"assistant\",\"content\":\"\"}]}\n",
            ),
            (
                Kind::Preference,
                "{\"chosen\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\
                 \"content\":\"b\"}],\"rejected\":[{\"role\":\"user\",\"content\":\"a\"},\
                 {\"role\":\"assistant\",\"content\":\"c\"}]}\n",
            ),
        ] {
            let input = dir.path().join("in.jsonl");
            fs_err::write(&input, lines).unwrap();
            let table = converted(kind, kind, Form::Own, &input, "t.parquet");
            let back = converted(kind, kind, Form::Own, &table, "back.jsonl");
            let packed = converted(kind, kind, Form::Own, &back, "again.jsonl.zst");
            let last = converted(kind, kind, Form::Own, &packed, "last.jsonl");
            assert_eq!(fs_err::read_to_string(last).unwrap(), lines);
            let again = fs_err::read(converted(kind, kind, Form::Own, &back, "t2.parquet"));
            assert_eq!(again.unwrap(), fs_err::read(table).unwrap(), "not the same bytes");
            if kind == Kind::Chat {
                let other = converted(kind, kind, Form::Messages, &input, "m.jsonl");
                assert!(fs_err::read_to_string(&other).unwrap().contains(r#""tools":"[{}]"}"#));
                let back = converted(kind, kind, Form::Own, &other, "b.jsonl");
                let read = |path: &Path| {
                    let text = fs_err::read_to_string(path).unwrap();
                    text.lines()
                        .map(|l| serde_json::from_str::<Value>(l).unwrap())
                        .collect::<Vec<_>>()
                };
                assert_eq!(read(&back), read(&input));
            }
        }
    }

    #[test]
    fn plain_chats_go_through_sharegpt_and_alpaca() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in.jsonl");
        let turn = |role: &str, text: &str| serde_json::json!({"role": role, "content": text});
        let turns = [
            turn("system", "s"),
            turn("user", "a"),
            turn("assistant", "b"),
            turn("user", "c"),
            turn("assistant", "d"),
        ];
        let line = serde_json::json!({ "conversations": turns }).to_string() + "\n";
        fs_err::write(&input, &line).unwrap();
        for form in [Form::ShareGpt, Form::Alpaca] {
            let other = converted(Kind::Chat, Kind::Chat, form, &input, "other.jsonl");
            let back = converted(Kind::Chat, Kind::Chat, Form::Own, &other, "back.jsonl");
            assert_eq!(fs_err::read_to_string(back).unwrap(), line, "{form:?}");
        }
        let text = converted(Kind::Chat, Kind::Text, Form::Own, &input, "text.jsonl");
        let text = fs_err::read_to_string(text).unwrap();
        assert_eq!(text, "{\"text\":\"s\\n\\na\\n\\nb\\n\\nc\\n\\nd\"}\n");
        let never = Conversion { from: Kind::Text, to: Kind::Chat, form: Form::Own };
        assert!(never.check().unwrap_err().is_misuse());
    }
}
