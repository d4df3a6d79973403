//! The making of a token file: a data file is checked and tokenized block by block, in parallel and
//! in bounded memory, into a [`TokenFile`].

use std::io::{self, BufWriter, Cursor, Read, Seek, Write};
use std::path::Path;

use mmx_converters::Error;
use mmx_converters::progress::{Listener, Progress};
use rayon::prelude::*;

use super::blocks::{Block, Blocks};
use super::forms;
use super::jsonl::{self, Fault};
use super::sample::Encoder;
use super::sample::Sample;
use super::tokens::{Key, TokenFile, Writer};

/// A file to be tokenized.
pub(super) struct Job<'a> {
    pub(super) path: &'a Path,
    /// Its index in the data set.
    pub(super) file: u32,
    pub(super) encoder: &'a Encoder<'a>,
    pub(super) key: Key,
    /// Ids take 4 bytes.
    pub(super) wide: bool,
    /// Sees how far a large file is.
    pub(super) listener: &'a dyn Listener,
}

/// The place that tokens go to.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// A file that stays.
    Kept(&'a Path),
    /// A file in this folder that is gone when it is closed.
    Temporary(&'a Path),
    Memory,
}

/// The reason why there are no tokens.
#[derive(Debug)]
pub(super) enum Failure {
    /// The data cannot be read.
    Source(Box<Error>),
    /// The tokens cannot be written: another place may take them.
    Write(io::Error),
}

impl Job<'_> {
    pub(super) fn run(&self, place: Place<'_>) -> Result<TokenFile, Failure> {
        let folder = match place {
            Place::Kept(kept) => kept.parent().unwrap_or(Path::new(".")),
            Place::Temporary(folder) => folder,
            Place::Memory => {
                let mut out = Vec::new();
                self.write(&mut out, Cursor::new(Vec::new()))?;
                return TokenFile::in_memory(out, &self.key).map_err(unreadable);
            }
        };
        let named = tempfile::Builder::new().prefix(".mmx-").suffix(".part").tempfile_in(folder);
        let named = named.map_err(Failure::Write)?;
        let index = tempfile::tempfile_in(folder).map_err(Failure::Write)?;
        // tells others that it is not abandoned; where files cannot be locked, its age does
        let _ = named.as_file().try_lock();
        self.write(BufWriter::with_capacity(1 << 20, named.as_file()), index)?;
        let _ = named.as_file().unlock();
        let Place::Kept(kept) = place else {
            return TokenFile::open(named.path(), &self.key).map_err(unreadable);
        };
        named.as_file().sync_all().map_err(Failure::Write)?;
        let part = named.into_temp_path();
        let tokens = TokenFile::open(&part, &self.key).map_err(unreadable)?;
        part.persist(kept).map_err(|e| Failure::Write(e.error))?;
        Ok(tokens)
    }

    /// The next block is read while one is tokenized.
    fn write<W: Write, I: Read + Write + Seek>(&self, out: W, index: I) -> Result<(), Failure> {
        let mut writer = Writer::new(out, index, &self.key, self.wide).map_err(Failure::Write)?;
        let source = |e| Failure::Source(Box::new(e));
        let (kind, fields) = (self.encoder.kind(), self.encoder.fields());
        let mut blocks = Blocks::open_for(self.path, fields).map_err(source)?;
        if let Some(columns) = blocks.columns() {
            forms::check_columns(self.path, columns, kind, fields).map_err(source)?;
        }
        let mut progress = Sight::of(self.path, self.listener);
        let mut block = blocks.next_block().map_err(source)?;
        while let Some(current) = block {
            let (next, outcomes) =
                rayon::join(|| blocks.next_block(), || outcomes(&current, self.encoder, self.file));
            for made in outcomes {
                add(&mut writer, made).map_err(Failure::Write)?;
            }
            progress.add(current.read() as u64);
            block = next.map_err(source)?;
        }
        writer.meta.counts_records = blocks.counts_records();
        progress.finish();
        writer.finish().map_err(Failure::Write)
    }
}

fn unreadable(why: String) -> Failure {
    Failure::Write(io::Error::other(format!("expected the tokens just written, but {why}")))
}

/// Progress in bytes of text read, for files that take a while; of packed files the end is not
/// known before.
struct Sight<'a> {
    done: u64,
    total: u64,
    listener: Option<&'a dyn Listener>,
}

impl<'a> Sight<'a> {
    fn of(path: &Path, listener: &'a dyn Listener) -> Self {
        const LARGE: u64 = 64 << 20;
        let total = std::fs::metadata(path).map_or(0, |meta| meta.len());
        Self { done: 0, total, listener: (total >= LARGE).then_some(listener) }
    }

    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if let Some(listener) = self.listener {
            let (done, total) = (self.done, self.total);
            listener.progress(Progress::Bytes { doing: "tokenizing", done, total });
        }
    }

    fn finish(&self) {
        if let Some(listener) = self.listener {
            listener.progress(Progress::Finished);
        }
    }
}

/// The outcome of one record.
enum Outcome {
    One(Sample),
    Pair(Sample, Sample),
    NothingToLearn,
    Bad(Fault),
}

/// One record made into samples.
struct Made {
    /// The number it is known by: its line, or its place among the records.
    label: usize,
    /// It has an empty answer.
    empty: bool,
    /// It has tools that its samples hold nothing of.
    tools_left_out: bool,
    outcome: Outcome,
}

/// Makes samples of a block's records, in their order.
fn outcomes(block: &Block, encoder: &Encoder<'_>, file: u32) -> Vec<Made> {
    let encode = |line: &jsonl::Line<'_>| {
        let (mut empty, mut tools_left_out) = (false, false);
        let encoded = forms::parse(line, encoder.kind(), encoder.fields()).and_then(|record| {
            empty = record.has_empty_answer();
            tools_left_out = encoder.leaves_tools_out(&record);
            let of_line = |fault| Fault { line: line.number, record: line.record, ..fault };
            encoder.encode(&record, file, line.label()).map_err(of_line)
        });
        let outcome = match encoded {
            Err(fault) => Outcome::Bad(fault),
            Ok(samples) => match <[Sample; 2]>::try_from(samples) {
                Ok(pair) if !pair.iter().all(Sample::teaches) => Outcome::NothingToLearn,
                Ok([chosen, rejected]) => Outcome::Pair(chosen, rejected),
                Err(mut one) => one.pop().map_or(Outcome::NothingToLearn, Outcome::One),
            },
        };
        Made { label: line.label(), empty, tools_left_out, outcome }
    };
    block.lines().par_iter().map(encode).collect()
}

fn add<W: Write, I: Read + Write + Seek>(writer: &mut Writer<W, I>, made: Made) -> io::Result<()> {
    let Made { label: line, empty, tools_left_out, outcome } = made;
    if tools_left_out && matches!(outcome, Outcome::One(_) | Outcome::Pair(..)) {
        writer.meta.tools_left_out += 1;
        writer.meta.tools_line.get_or_insert(line);
    }
    let samples = match outcome {
        Outcome::One(sample) => {
            if !sample.teaches() {
                writer.meta.nothing_to_learn.push(line);
            } else if empty {
                writer.meta.empty_answers.push(line);
            }
            vec![sample]
        }
        Outcome::Pair(chosen, rejected) => {
            if empty {
                writer.meta.empty_answers.push(line);
            }
            vec![chosen, rejected]
        }
        Outcome::NothingToLearn => {
            writer.meta.nothing_to_learn.push(line);
            Vec::new()
        }
        Outcome::Bad(fault) => {
            writer.meta.faults.push(fault);
            Vec::new()
        }
    };
    for sample in &samples {
        if sample.has_control_text {
            writer.meta.control_line.get_or_insert(line);
        }
        writer.push(sample)?;
    }
    Ok(())
}
