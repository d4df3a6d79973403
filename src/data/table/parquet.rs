//! Parquet: row group after row group, page after page, the columns alone that records are made of.
//!
//! Source: apache/parquet-format, README.md and LogicalTypes.md. Codecs: none, Snappy, gzip, zstd,
//! LZ4; others are refused by name.
#![expect(
    clippy::disallowed_types,
    reason = "the crate reads the standard library's files alone; fs_err opens them"
)]

use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mmx_converters::{Error, Result};
use parquet::basic::{ConvertedType, Repetition, Type as Physical};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type};
use serde_json::{Map, Number, Value};

use super::rows::{Rows, Table, utf8};

/// Levels of lists and structs within each other.
const DEEPEST: usize = 32;

/// A Parquet file.
pub(crate) struct ParquetTable {
    path: PathBuf,
    file: SerializedFileReader<File>,
    bytes: u64,
    rows: u64,
    columns: Vec<String>,
    /// The columns that are read.
    schema: SchemaDescPtr,
    next_group: usize,
    group: Option<ReaderIter>,
    row: usize,
}

impl ParquetTable {
    /// Opens a file; of its columns those that `wanted` says are read, all where none is wanted.
    ///
    /// # Errors
    /// No Parquet file, a damaged, cut off or encrypted one, a column of a kind that cannot be read.
    pub(crate) fn open(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Self> {
        let file = fs_err::File::open(path).map_err(|e| Error::io(path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let file = file.into_parts().0;
        let file =
            guarded(path, || SerializedFileReader::new(file).map_err(|e| damaged(path, &e)))?;
        let of_file = file.metadata().file_metadata();
        let root = of_file.schema_descr().root_schema();
        let columns: Vec<String> =
            root.get_fields().iter().map(|field| field.name().to_owned()).collect();
        let rows = u64::try_from(of_file.num_rows()).unwrap_or(0);
        let read = |field: &&Arc<Type>| wanted(field.name());
        let mut fields: Vec<Arc<Type>> = root.get_fields().iter().filter(read).cloned().collect();
        if fields.is_empty() {
            fields = root.get_fields().to_vec();
        }
        for field in &fields {
            readable(field, 0).map_err(|why| {
                Error::failed(format!("{}: column {}: {why}", path.display(), field.name()))
            })?;
        }
        let schema = Type::group_type_builder(root.name()).with_fields(fields).build();
        let schema = schema.map_err(|e| damaged(path, &e))?;
        Ok(Self {
            path: path.to_owned(),
            bytes,
            rows,
            columns,
            schema: Arc::new(SchemaDescriptor::new(Arc::new(schema))),
            next_group: 0,
            group: None,
            row: 0,
            file,
        })
    }

    /// Rows until they are of about so many bytes.
    fn fill(&mut self, rows: &mut Rows, bytes: usize) -> Result<()> {
        while rows.texts.len() < bytes && rows.spans.len() < bytes {
            let row = self.next_row().map_err(|e| match e {
                // the reader's words hold the bytes themselves, all of them
                ParquetError::General(text) if text.contains("as String") => {
                    Error::failed(format!(
                        "{}: row {}: expected UTF-8 in a column of strings, found other bytes",
                        self.path.display(),
                        self.row + 1
                    ))
                }
                e => damaged(&self.path, &e),
            })?;
            let Some(row) = row else { break };
            self.row += 1;
            rows.push(self.row, 0, object(row, ""));
        }
        Ok(())
    }

    /// The next row group's rows; nothing after the last.
    fn open_group(&mut self) -> Result<Option<ReaderIter>, ParquetError> {
        /// Bytes of values that wait at once, of all columns.
        const WAITING: usize = 4 << 20;
        /// Values that wait at once, of a column.
        const MOST: usize = 1024;
        if self.next_group >= self.file.num_row_groups() {
            return Ok(None);
        }
        let group = self.file.get_row_group(self.next_group)?;
        self.next_group += 1;
        let meta = group.metadata();
        let (bytes, rows) = (meta.total_byte_size().max(0), meta.num_rows().max(1));
        let row = usize::try_from(bytes / rows).unwrap_or(usize::MAX).max(1);
        let tree = TreeBuilder::new().with_batch_size((WAITING / row).clamp(1, MOST));
        tree.as_iter(self.schema.clone(), group.as_ref()).map(Some)
    }

    fn next_row(&mut self) -> Result<Option<Row>, ParquetError> {
        loop {
            if let Some(row) = self.group.as_mut().and_then(Iterator::next) {
                return row.map(Some);
            }
            match self.open_group()? {
                Some(group) => self.group = Some(group),
                None => return Ok(None),
            }
        }
    }
}

impl Table for ParquetTable {
    fn name(&self) -> &'static str {
        "Parquet"
    }

    fn columns(&self) -> &[String] {
        &self.columns
    }

    fn next_rows(&mut self, bytes: usize) -> Result<Option<Rows>> {
        let mut rows = Rows::default();
        let path = self.path.clone();
        guarded(&path, || self.fill(&mut rows, bytes))?;
        let share = rows.spans.len() as f64 / self.rows.max(1) as f64;
        rows.read = (self.bytes as f64 * share) as usize;
        Ok((!rows.spans.is_empty()).then_some(rows))
    }
}

thread_local! {
    /// A panic of this thread is told as an error.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// True while a panic of this thread is caught and told as an error: a program's hook need not print
/// it. The reader of Parquet files trusts what pages say of themselves, and panics where they lie.
pub(crate) fn is_guarded() -> bool {
    GUARDED.get()
}

/// Reads, and tells a panic as what it is: a damaged file.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    GUARDED.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(read));
    GUARDED.set(false);
    // what was being read is given up with the error
    outcome.unwrap_or_else(|_| {
        let why = "its pages do not hold what they say".to_owned();
        Err(damaged(path, &ParquetError::General(why)))
    })
}

fn damaged(path: &Path, error: &ParquetError) -> Error {
    let text = match error {
        ParquetError::General(text) | ParquetError::EOF(text) | ParquetError::NYI(text) => {
            text.clone()
        }
        other => other.to_string(),
    };
    let name = path.display();
    if text.contains("encrypt") || text.contains("decrypt") {
        return Error::failed(format!(
            "{name}: expected a Parquet file that can be read, found an encrypted one"
        ));
    }
    if text.contains("Required field") {
        // of an encrypted column its metadata are not to be seen
        return Error::failed(format!(
            "{name}: expected a whole Parquet file, found one that is damaged, or whose columns are encrypted: {text}"
        ));
    }
    if text.contains("codec") || text.contains("Disabled feature") || text.contains("ompression") {
        return Error::failed_with_hint(
            format!(
                "{name}: expected a Parquet file packed by Snappy, gzip, zstd, LZ4 or not at all: {text}"
            ),
            "write it again with another compression: in Python, `pyarrow.parquet.write_table(table, FILE, compression=\"zstd\")`",
        );
    }
    Error::failed_with_hint(
        format!(
            "{name}: expected a whole Parquet file, found one that is damaged or cut off: {text}"
        ),
        "fetch it again",
    )
}

/// Refuses a type that the reader of records does not know, in a sentence instead of a panic.
fn readable(field: &Type, depth: usize) -> Result<(), String> {
    let info = field.get_basic_info();
    if depth > DEEPEST {
        return Err(format!("expected at most {DEEPEST} levels, found more"));
    }
    if !info.has_repetition() {
        return Err(
            "expected a column that is required, optional or repeated, found neither".into()
        );
    }
    if field.is_primitive() {
        let converted = info.converted_type();
        use ConvertedType as C;
        let known = match field.get_physical_type() {
            Physical::INT32 => matches!(
                converted,
                C::NONE
                    | C::INT_8
                    | C::INT_16
                    | C::INT_32
                    | C::UINT_8
                    | C::UINT_16
                    | C::UINT_32
                    | C::DATE
                    | C::TIME_MILLIS
                    | C::DECIMAL
            ),
            Physical::INT64 => matches!(
                converted,
                C::NONE
                    | C::INT_64
                    | C::UINT_64
                    | C::TIME_MICROS
                    | C::TIMESTAMP_MILLIS
                    | C::TIMESTAMP_MICROS
                    | C::DECIMAL
            ),
            Physical::BYTE_ARRAY => {
                matches!(converted, C::NONE | C::UTF8 | C::ENUM | C::JSON | C::BSON | C::DECIMAL)
            }
            Physical::FIXED_LEN_BYTE_ARRAY => matches!(converted, C::NONE | C::DECIMAL),
            Physical::BOOLEAN | Physical::INT96 | Physical::FLOAT | Physical::DOUBLE => true,
        };
        return known.then_some(()).ok_or(format!("type {converted} is not known"));
    }
    let inner = field.get_fields();
    let repeated = |field: &Type| {
        field.get_basic_info().has_repetition()
            && field.get_basic_info().repetition() == Repetition::REPEATED
    };
    let well_formed = match info.converted_type() {
        ConvertedType::LIST => inner.len() == 1 && repeated(&inner[0]),
        ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE => {
            inner.len() == 1
                && repeated(&inner[0])
                && !inner[0].is_primitive()
                && (1..=2).contains(&inner[0].get_fields().len())
        }
        _ => !inner.is_empty(),
    };
    if !well_formed {
        return Err("expected a list, a map or a struct, found a group of another form".into());
    }
    inner.iter().try_for_each(|field| readable(field, depth + 1))
}

/// A row, or a struct within one, as a JSON object. `within`: the column that a struct lies in; a
/// null there is a key that is not there, since a column of structs has every key in every row.
fn object(row: Row, within: &str) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    for (name, field) in row.into_columns() {
        let column = if within.is_empty() { &name } else { within };
        let value = value(field, column)?;
        if within.is_empty() || !value.is_null() {
            object.insert(name, value);
        }
    }
    Ok(object)
}

fn value(field: Field, column: &str) -> Result<Value, String> {
    let of_float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float(value) => of_float(f64::from(value)),
        Field::Double(value) => of_float(value),
        Field::Str(text) => text.into(),
        // strings of writers that do not say that they are
        Field::Bytes(bytes) => utf8(bytes.data(), column)?.into(),
        Field::Group(row) => object(row, column)?.into(),
        Field::ListInternal(_) | Field::MapInternal(_) => return nested(&field, column),
        // no record is made of these; their text stands in messages alone
        other @ (Field::Float16(_)
        | Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_)) => other.to_string().into(),
    })
}

/// Lists as lists; maps as objects, by the text of their keys.
fn nested(field: &Field, column: &str) -> Result<Value, String> {
    match field {
        Field::ListInternal(list) => {
            list.elements().iter().map(|element| value(element.clone(), column)).collect()
        }
        Field::MapInternal(map) => {
            let pairs = map.entries().iter().map(|(key, of_key)| {
                let key = match value(key.clone(), column)? {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                Ok((key, value(of_key.clone(), column)?))
            });
            pairs.collect::<Result<Map<_, _>, String>>().map(Value::Object)
        }
        _ => Ok(Value::Null),
    }
}
