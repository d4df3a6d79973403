//! TensorBoard's event files: scalars and texts by step, in `DIR/tb/`.
//!
//! In: tags and values. Out: TFRecords of protocol-buffer `Event` messages, one file per session of
//! a run. Sources: tensorflow's `record_writer.h` (framing), `event.proto`, `summary.proto`,
//! `tensor.proto` (fields); of each message only the few fields that TensorBoard needs are written.
//! A run that is resumed drops what lies beyond its step, also a record cut short, and begins a new
//! file, so that a TensorBoard that is watching never sees a file change below what it has read.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Files with this in their name are TensorBoard's.
const MARK: &str = "events.out.tfevents.";

/// A TFRecord around its data: length and its checksum before, the data's checksum after.
const HEADER: usize = 8 + 4;
const FOOTER: usize = 4;

/// An event file that is written to.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: fs_err::File,
}

impl Events {
    /// Begins a file in `dir/tb`; of a run that is resumed after `step` optimizer steps, events of
    /// later ones are dropped from the files that are there. A new run begins without any.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn open(dir: &Path, step: usize) -> Result<Self> {
        let dir = dir.join("tb");
        fs_err::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        let mut old = event_files(&dir)?;
        if step == 0 {
            for path in old.drain(..) {
                fs_err::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
        for path in &old {
            drop_after(path, step as u64)?;
        }
        // TensorBoard reads a folder's files in the order of their names
        let last = old.last().and_then(|path| stamp(path)).unwrap_or((0, 0));
        let now = wall_time().max(0.0) as u64;
        let (seconds, number) = match now > last.0 {
            true => (now, 0),
            false => (last.0, last.1 + 1),
        };
        let path = dir.join(format!("{MARK}{seconds:010}.mmx.{number:04}"));
        let file = fs_err::OpenOptions::new().append(true).create_new(true).open(&path);
        let events = Self { file: file.map_err(|e| Error::io(&path, e))?, path };
        let mut version = event(None);
        version.bytes(3, b"brain.Event:2"); // file_version: the framing and semantics of today
        events.write(&version)?;
        if step > 0 {
            // tells a TensorBoard that is watching to forget what it has read beyond
            let mut start = Message::default();
            start.varint(1, 1); // status: START
            let mut event = event(Some(step as u64 + 1));
            event.message(7, &start);
            events.write(&event)?;
        }
        Ok(events)
    }

    /// Writes the values of a step, by tag. Values that are not finite are left out: TensorBoard
    /// would draw its axis by them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalars(&self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values.iter().filter(|(_, value)| value.is_finite()) {
            let mut entry = Message::default();
            entry.bytes(1, tag.as_bytes());
            entry.float(2, *value as f32);
            summary.message(1, &entry);
        }
        let mut event = event(Some(step as u64));
        event.message(5, &summary);
        self.write(&event)
    }

    /// Writes texts of a step under one tag; Markdown. They are one string with lines in between: of
    /// several strings TensorBoard makes a table, but swanlab's converter nothing.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn texts(&self, step: usize, tag: &str, texts: &[String]) -> Result<()> {
        let mut plugin = Message::default();
        plugin.bytes(1, b"text");
        let mut metadata = Message::default();
        metadata.message(1, &plugin);
        let (mut size, mut shape) = (Message::default(), Message::default());
        size.varint(1, 1);
        shape.message(2, &size);
        let mut tensor = Message::default();
        tensor.varint(1, 7); // DT_STRING
        tensor.message(2, &shape);
        tensor.bytes(8, texts.join("\n\n---\n\n").as_bytes());
        let mut entry = Message::default();
        entry.bytes(1, tag.as_bytes());
        entry.message(8, &tensor);
        entry.message(9, &metadata);
        let mut summary = Message::default();
        summary.message(1, &entry);
        let mut event = event(Some(step as u64));
        event.message(5, &summary);
        self.write(&event)
    }

    /// One record in one write: a kill leaves it whole or at the very end.
    fn write(&self, event: &Message) -> Result<()> {
        let record = record(&event.0);
        (&self.file).write_all(&record).map_err(|e| Error::io(&self.path, e))
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// An event at this moment.
fn event(step: Option<u64>) -> Message {
    let mut event = Message::default();
    event.double(1, wall_time());
    if let Some(step) = step {
        event.varint(2, step);
    }
    event
}

/// The event files of a folder, oldest first.
fn event_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        if stamp(&path).is_some() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Second and number in the name of a file of ours.
fn stamp(path: &Path) -> Option<(u64, u32)> {
    let rest = path.file_name()?.to_str()?.strip_prefix(MARK)?;
    let (seconds, number) = rest.split_once(".mmx.")?;
    Some((seconds.parse().ok()?, number.parse().ok()?))
}

/// Cuts a file before its first record of a later step, and before one that is not whole.
fn drop_after(path: &Path, step: u64) -> Result<()> {
    let bytes = fs_err::read(path).map_err(|e| Error::io(path, e))?;
    let mut end = 0;
    while let Some(data) = next_record(&bytes[end..]) {
        if step_of(data).is_none_or(|of| of > step) {
            break;
        }
        end += HEADER + data.len() + FOOTER;
    }
    if end < bytes.len() {
        let file = fs_err::OpenOptions::new().write(true).open(path);
        let file = file.map_err(|e| Error::io(path, e))?;
        file.set_len(end as u64).map_err(|e| Error::io(path, e))?;
    }
    Ok(())
}

/// The data of the record that `bytes` begin with, if it is whole and undamaged.
fn next_record(bytes: &[u8]) -> Option<&[u8]> {
    let length: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    let checksum: [u8; 4] = bytes.get(8..HEADER)?.try_into().ok()?;
    if masked_crc(&length) != u32::from_le_bytes(checksum) {
        return None;
    }
    let end = HEADER.checked_add(usize::try_from(u64::from_le_bytes(length)).ok()?)?;
    let data = bytes.get(HEADER..end)?;
    let checksum: [u8; 4] = bytes.get(end..end.checked_add(FOOTER)?)?.try_into().ok()?;
    (masked_crc(data) == u32::from_le_bytes(checksum)).then_some(data)
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(HEADER + data.len() + FOOTER);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

/// CRC-32C, turned and moved: a checksum of data that holds checksums would else be weak. Source:
/// TFRecord.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The field `step` of an event, 0 where it has none; nothing where it is no event.
fn step_of(mut event: &[u8]) -> Option<u64> {
    let mut step = 0;
    while !event.is_empty() {
        let key = take_varint(&mut event)?;
        let length = match key & 7 {
            0 => {
                let value = take_varint(&mut event)?;
                if key >> 3 == 2 {
                    step = value;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(take_varint(&mut event)?).ok()?,
            5 => 4,
            _ => return None,
        };
        event = event.get(length..)?;
    }
    Some(step)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A protocol-buffer message as it is put together: each field is a key (number and wire type) and
/// its value.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn push_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.push_varint(field << 3);
        self.push_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.push_varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.push_varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.push_varint(field << 3 | 2);
        self.push_varint(value.len() as u64);
        self.0.extend(value);
    }

    fn message(&mut self, field: u64, value: &Self) {
        self.bytes(field, &value.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps of all records, file by file; a file that ends within a record fails.
    fn steps(dir: &Path) -> Vec<Vec<u64>> {
        let files = event_files(&dir.join("tb")).expect("a folder");
        let read = |path: &PathBuf| {
            let bytes = fs_err::read(path).expect("a file");
            let (mut at, mut steps) = (0, Vec::new());
            while at < bytes.len() {
                let data = next_record(&bytes[at..]).expect("a whole record");
                steps.push(step_of(data).expect("an event"));
                at += HEADER + data.len() + FOOTER;
            }
            steps
        };
        files.iter().map(read).collect()
    }

    #[test]
    fn records_have_the_checksums_that_the_format_names() {
        // CRC-32C of "123456789": the check value of the polynomial's catalogue entry
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        // the length 0 and its masked checksum, as every TFRecord file of empty records begins
        let empty = record(b"");
        assert_eq!(empty.len(), HEADER + FOOTER);
        let turned = u64::from(crc32c::crc32c(&[0; 8])) << 17;
        let masked = (turned as u32 | (turned >> 32) as u32).wrapping_add(0xa282_ead8);
        assert_eq!(empty[8..12], masked.to_le_bytes());
        let mut flipped = record(b"data");
        assert_eq!(next_record(&flipped), Some(&b"data"[..]));
        flipped[13] ^= 1;
        assert_eq!(next_record(&flipped), None);
    }

    #[test]
    fn a_resumed_run_drops_later_steps_and_goes_on_in_a_file_of_its_own() {
        let dir = tempfile::tempdir().expect("a folder");
        let events = Events::open(dir.path(), 0).expect("opened");
        for step in 1..=5 {
            events.scalars(step, &[("loss", 1.0), ("lr", f64::NAN)]).expect("written");
        }
        events.texts(5, "samples", &["a".into(), "b".into()]).expect("written");
        let resumed = Events::open(dir.path(), 3).expect("opened");
        resumed.scalars(4, &[("loss", 0.5)]).expect("written");
        assert_eq!(steps(dir.path()), [vec![0, 1, 2, 3], vec![0, 4, 4]]);

        // killed within a record
        let torn = event_files(&dir.path().join("tb")).expect("files").pop().expect("a file");
        let length = fs_err::metadata(&torn).expect("a file").len();
        let file = fs_err::OpenOptions::new().write(true).open(&torn).expect("a file");
        file.set_len(length - 3).expect("cut");
        Events::open(dir.path(), 4).expect("opened");
        assert_eq!(steps(dir.path()), [vec![0, 1, 2, 3], vec![0, 4], vec![0, 5]]);

        Events::open(dir.path(), 0).expect("a run from its beginning");
        assert_eq!(steps(dir.path()), [[0]]);
    }
}
