//! The token file: one data file's samples as ids and spans, read through a memory map.
//!
//! Layout, little endian: head (magic, key), per sample its ids (2 bytes each where all ids fit,
//! else 4) and spans (pairs of u32), the index ([`ENTRY`] bytes per sample), what was found on the
//! way as JSON ([`Meta`]), and an end (where index, JSON and end begin, CRC-32 of all before,
//! magic). Preference pairs are two samples, chosen first.

use std::fs::FileTimes;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use mmx_converters::file::Bytes;
use serde::{Deserialize, Serialize};

use super::jsonl::Fault;
use super::sample::{self, Sample};

const MAGIC: [u8; 8] = *b"mmxtok01";
const HEAD: usize = 8 + 32;
/// Bytes of a sample in the index: offset u64, ids u32, spans u32 (top bit: control text), length
/// before the cut u32, line u32.
const ENTRY: usize = 24;
const END: usize = 8 * 3 + 4 + 8;
const CONTROL: u32 = 1 << 31;

/// The digest of everything that a file's samples were made from; see [`super::cache`].
pub(super) type Key = [u8; 32];

/// The findings about a file, made while it was read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Meta {
    /// Ids take 4 bytes.
    pub(super) wide: bool,
    pub(super) entries: usize,
    /// Ids of all samples.
    pub(super) tokens: u64,
    /// Targets that are learned.
    pub(super) learned: u64,
    /// Samples with a target to learn.
    pub(super) teaching: usize,
    /// The first line that holds the text of a control token.
    pub(super) control_line: Option<usize>,
    /// Samples are known by their number among the records, not by a line.
    pub(super) counts_records: bool,
    /// Lines of samples without a target to learn.
    pub(super) nothing_to_learn: Vec<usize>,
    /// Lines of samples with an answer of which only the end is learned.
    pub(super) empty_answers: Vec<usize>,
    /// Records with tools that their samples hold nothing of.
    pub(super) tools_left_out: usize,
    /// The line of the first record with such tools.
    pub(super) tools_line: Option<usize>,
    pub(super) faults: Vec<Fault>,
}

/// A writer that counts bytes and sums them to a CRC-32.
struct Summed<W> {
    out: W,
    crc: crc32fast::Hasher,
    at: u64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.crc.update(&bytes[..written]);
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a token file; the index waits in a file of its own meanwhile, so that memory does not
/// grow.
pub(super) struct Writer<W: Write, I: Write> {
    out: Summed<W>,
    index: BufWriter<I>,
    pub(super) meta: Meta,
    buffer: Vec<u8>,
}

impl<W: Write, I: Read + Write + Seek> Writer<W, I> {
    /// `index`: an empty file for the time of writing.
    pub(super) fn new(out: W, index: I, key: &Key, wide: bool) -> io::Result<Self> {
        let mut out = Summed { out, crc: crc32fast::Hasher::new(), at: 0 };
        out.write_all(&MAGIC)?;
        out.write_all(key)?;
        let meta = Meta { wide, ..Meta::default() };
        Ok(Self { out, index: BufWriter::with_capacity(1 << 18, index), meta, buffer: Vec::new() })
    }

    pub(super) fn push(&mut self, sample: &Sample) -> io::Result<()> {
        let flag = if sample.has_control_text { CONTROL } else { 0 };
        self.index.write_all(&self.out.at.to_le_bytes())?;
        let (ids, spans) = (sample.ids.len() as u32, sample.spans.len() as u32);
        for value in [ids, spans | flag, sample.full_len, sample.line] {
            self.index.write_all(&value.to_le_bytes())?;
        }
        self.buffer.clear();
        match self.meta.wide {
            true => sample.ids.iter().for_each(|id| self.buffer.extend(id.to_le_bytes())),
            false => {
                sample.ids.iter().for_each(|&id| self.buffer.extend((id as u16).to_le_bytes()))
            }
        }
        for span in &sample.spans {
            self.buffer.extend(span.start.to_le_bytes());
            self.buffer.extend(span.end.to_le_bytes());
        }
        self.out.write_all(&self.buffer)?;
        self.meta.entries += 1;
        self.meta.tokens += u64::from(ids);
        self.meta.learned += sample.targets();
        self.meta.teaching += usize::from(sample.teaches());
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        let index_at = self.out.at;
        self.index.flush()?;
        let mut index = self.index.into_inner().map_err(io::IntoInnerError::into_error)?;
        index.rewind()?;
        io::copy(&mut io::BufReader::with_capacity(1 << 18, index), &mut self.out)?;
        let meta_at = self.out.at;
        serde_json::to_writer(&mut self.out, &self.meta)?;
        let end_at = self.out.at;
        let crc = self.out.crc.clone().finalize();
        for position in [index_at, meta_at, end_at] {
            self.out.write_all(&position.to_le_bytes())?;
        }
        self.out.write_all(&crc.to_le_bytes())?;
        self.out.write_all(&MAGIC)?;
        self.out.flush()
    }
}

/// A whole token file, mapped.
#[derive(Debug)]
pub(super) struct TokenFile {
    bytes: Bytes,
    index_at: usize,
    pub(super) meta: Meta,
    /// Holds the lock that says it is read.
    _held: Option<fs_err::File>,
    /// Places read since pages were last given back.
    touched: AtomicUsize,
}

impl TokenFile {
    /// Opens a file and checks every byte of it (by reading, so that the map stays cold).
    ///
    /// # Errors
    /// The reason, in words, why it is no whole token file with this key.
    pub(super) fn open(path: &Path, key: &Key) -> Result<Self, String> {
        let held = fs_err::File::open(path).map_err(|e| e.to_string())?;
        // where files cannot be locked, they are not removed either
        let _ = held.file().try_lock_shared();
        // used now: what is not used for long is removed first
        let _ = held.file().set_times(FileTimes::new().set_accessed(SystemTime::now()));
        let crc = checksum(&held).map_err(|e| e.to_string())?;
        let bytes = Bytes::map(path).map_err(|e| e.to_string())?;
        Self::new(bytes, crc, key, Some(held))
    }

    /// Opens a token file in memory, checking every byte of it.
    ///
    /// # Errors
    /// See [`TokenFile::open`].
    pub(super) fn in_memory(bytes: Vec<u8>, key: &Key) -> Result<Self, String> {
        let crc = checksum(&bytes[..]).map_err(|e| e.to_string())?;
        let bytes = Bytes::owned(bytes, Path::new("memory")).map_err(|e| e.to_string())?;
        Self::new(bytes, crc, key, None)
    }

    fn new(bytes: Bytes, crc: u32, key: &Key, held: Option<fs_err::File>) -> Result<Self, String> {
        let cut = || "it is cut off".to_owned();
        let end_at = bytes.len().checked_sub(END).filter(|&at| at >= HEAD).ok_or_else(cut)?;
        let end = &bytes[end_at..];
        let position = |i: usize| u64_at(end, 8 * i) as usize;
        if !end.ends_with(&MAGIC) || position(2) != end_at {
            return Err(cut());
        }
        if u32_at(end, 24) != crc {
            return Err("its checksum is wrong".into());
        }
        if !bytes.starts_with(&MAGIC) || bytes[8..HEAD] != key[..] {
            return Err("it was made from something else".into());
        }
        let (index_at, meta_at) = (position(0), position(1));
        let meta: Meta = bytes
            .get(meta_at..end_at)
            .and_then(|json| serde_json::from_slice(json).ok())
            .ok_or("its description cannot be read")?;
        if index_at.checked_add(meta.entries * ENTRY) != Some(meta_at) {
            return Err("its index has another length than it says".into());
        }
        Ok(Self { bytes, index_at, meta, _held: held, touched: AtomicUsize::new(0) })
    }

    /// Counts places that were read, and now and then gives the pages that were mapped for them
    /// back: they stay in the system's cache, but a large file read in any order would count as
    /// this process's memory as a whole.
    fn touch(&self, places: usize) {
        /// Up to 16 pages of 4 KiB come with each place: 64 MB.
        const PLACES: usize = 1000;
        if self.touched.fetch_add(places, Ordering::Relaxed) >= PLACES {
            self.give_back();
        }
    }

    /// Lets go of the pages that were read.
    pub(super) fn give_back(&self) {
        self.touched.store(0, Ordering::Relaxed);
        self.bytes.give_back();
    }

    fn entry(&self, index: usize) -> &[u8] {
        let at = self.index_at + index * ENTRY;
        &self.bytes[at..at + ENTRY]
    }

    /// Ids of a sample.
    pub(super) fn length(&self, index: usize) -> usize {
        u32_at(self.entry(index), 8) as usize
    }

    /// Tokens of a sample before it was cut.
    pub(super) fn full_len(&self, index: usize) -> u32 {
        u32_at(self.entry(index), 16)
    }

    /// Where a sample's ids begin and end, and where its spans end, which follow them.
    fn place(&self, index: usize) -> (usize, usize, usize) {
        let entry = self.entry(index);
        let at = u64_at(entry, 0) as usize;
        let (ids, spans) = (u32_at(entry, 8) as usize, u32_at(entry, 12) & !CONTROL);
        let width = if self.meta.wide { 4 } else { 2 };
        let spans_at = at + ids * width;
        (at, spans_at, spans_at + spans as usize * 8)
    }

    fn spans(&self, from: usize, to: usize) -> impl Iterator<Item = Range<u32>> {
        self.bytes[from..to].chunks_exact(8).map(|b| u32_at(b, 0)..u32_at(b, 4))
    }

    /// Targets of a sample that are learned.
    pub(super) fn targets(&self, index: usize) -> usize {
        self.touch(1);
        let (_, from, to) = self.place(index);
        sample::targets(self.spans(from, to)) as usize
    }

    /// A sample; `file` is the index of its file in the data set.
    pub(super) fn sample(&self, index: usize, file: u32) -> Sample {
        self.touch(2);
        let entry = self.entry(index);
        let (at, spans_at, spans_end) = self.place(index);
        let spans = u32_at(entry, 12);
        let ids = &self.bytes[at..spans_at];
        Sample {
            ids: match self.meta.wide {
                true => ids.chunks_exact(4).map(|b| u32_at(b, 0)).collect(),
                false => ids
                    .chunks_exact(2)
                    .map(|b| u32::from(u16::from_le_bytes([b[0], b[1]])))
                    .collect(),
            },
            spans: self.spans(spans_at, spans_end).collect(),
            full_len: u32_at(entry, 16),
            has_control_text: spans & CONTROL != 0,
            file,
            line: u32_at(entry, 20),
        }
    }
}

/// CRC-32 of all bytes but the end.
fn checksum(mut bytes: impl Read) -> io::Result<u32> {
    // what may be the end waits until more has come
    let (mut buffer, mut crc) = (vec![0; 1 << 20], crc32fast::Hasher::new());
    let mut waiting = 0;
    loop {
        let read = bytes.read(&mut buffer[waiting..])?;
        let there = waiting + read;
        let sure = there.saturating_sub(END);
        crc.update(&buffer[..sure]);
        buffer.copy_within(sure..there, 0);
        waiting = there - sure;
        if read == 0 {
            return Ok(crc.finalize());
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | (u64::from(u32_at(bytes, at + 4)) << 32)
}
