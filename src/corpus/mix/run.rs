//! Measured files to the output, part after part.

use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::{Error, Result, digest};
use serde::Serialize;

use super::measure::{KEYS, Measured, Times, key, measure, passes};
use super::settings::{Mix, Unit};
use crate::reading::{self, Reading};
use crate::writing::Output;

/// Files that are open at once for the parts that are sorted.
const MOST_PARTS: u64 = 256;

/// What was mixed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mixed {
    /// What sizes are counted in.
    pub unit: Unit,
    /// The seed.
    pub seed: u64,
    /// Whether the records are shuffled.
    pub shuffled: bool,
    /// The part that was made, from 1, and the number of parts.
    pub part: (u64, u64),
    /// Records written.
    pub records: u64,
    /// Their size.
    pub size: u64,
    /// The files.
    pub sources: Vec<Taken>,
}

/// What was taken of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Taken {
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// Its records.
    pub records: u64,
    /// Faulty ones among them that were left out.
    pub faulty: u64,
    /// Its size.
    pub size: u64,
    /// How often it is taken.
    pub passes: f64,
    /// Records of it that were written, copies counted.
    pub records_taken: u64,
    /// Their size.
    pub size_taken: u64,
}

/// A copy of a record on its way: where it goes, where it comes from, how it is written.
struct Copy {
    place: u64,
    source: u32,
    record: u64,
    copy: u64,
    line: String,
}

impl Mix {
    /// Writes the mixture; what does not fit into memory lies in `folder` meanwhile.
    ///
    /// # Errors
    /// Files that cannot be read or written, faulty records, a file without records.
    pub fn run(
        &self,
        reading: &Reading,
        tokenizer: Option<&Tokenizer>,
        folder: &Path,
        output: &mut Output<'_>,
    ) -> Result<Mixed> {
        self.check()?;
        if self.unit == Unit::Tokens && tokenizer.is_none() {
            return Err(Error::setting("tokenizer", "one that counts tokens", "none"));
        }
        let held = tempfile::Builder::new().prefix(".mmx-mix-").tempdir_in(folder);
        let held = held.map_err(|e| Error::io(folder, e))?;
        let files = self.sources.iter().map(|(path, _)| path).enumerate();
        let mut measured = files
            .clone()
            .map(|file| measure(reading, file, self.unit, tokenizer, self.seed, held.path()))
            .collect::<Result<Vec<_>>>()?;
        let passes = passes(&self.sources, &measured, self.total)?;
        let times: Vec<Times> = measured.iter().zip(passes).map(|(m, p)| m.times(p)).collect();
        let mut taken = files
            .map(|(i, path)| {
                let sha256 = digest::of_file(path).map_err(|e| Error::io(path, e))?;
                let (m, passes) = (&measured[i], times[i].passes);
                let (records, faulty, size) = (m.records, m.faulty, m.size);
                let path = path.clone();
                Ok(Taken {
                    path,
                    sha256,
                    records,
                    faulty,
                    size,
                    passes,
                    records_taken: 0,
                    size_taken: 0,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        match self.shuffle {
            true => {
                self.shuffled(reading, &mut measured, &times, &mut taken, held.path(), output)?
            }
            false => self.in_order(reading, &mut measured, &times, &mut taken, output)?,
        }
        Ok(Mixed {
            unit: self.unit,
            seed: self.seed,
            shuffled: self.shuffle,
            part: (self.part.0 + 1, self.part.1),
            records: taken.iter().map(|t| t.records_taken).sum(),
            size: taken.iter().map(|t| t.size_taken).sum(),
            sources: taken,
        })
    }

    /// Calls `take` with every record of a file: its number, line and size.
    fn each(
        &self,
        reading: &Reading,
        source: usize,
        measured: &mut Measured,
        mut take: impl FnMut(u64, String, u64) -> Result<()>,
    ) -> Result<()> {
        let path = &self.sources[source].0;
        let one = Reading { files: vec![path.clone()], ..reading.clone() };
        let changed = || {
            Error::failed(format!(
                "{}: expected the file as it was, found it changed",
                path.display()
            ))
        };
        measured.sizes.rewind().map_err(|e| Error::io(path, e))?;
        let (mut record, mut size) = (0, [0; 4]);
        reading::for_each(
            &one,
            "mixing",
            |raw| raw.line(),
            |line| {
                measured.sizes.read_exact(&mut size).map_err(|_| changed())?;
                take(record, line, u64::from(u32::from_le_bytes(size)))?;
                record += 1;
                Ok(())
            },
        )?;
        if record == measured.records { Ok(()) } else { Err(changed()) }
    }

    fn in_order(
        &self,
        reading: &Reading,
        measured: &mut [Measured],
        times: &[Times],
        taken: &mut [Taken],
        output: &mut Output<'_>,
    ) -> Result<()> {
        for (source, measured) in measured.iter_mut().enumerate() {
            let (times, taken) = (times[source], &mut taken[source]);
            let last = times.whole + u64::from(times.limit > 0);
            for pass in 0..last {
                self.each(reading, source, measured, |record, line, size| {
                    if pass < times.of(key(self.seed, source, record, KEYS)) {
                        taken.records_taken += 1;
                        taken.size_taken += size;
                        output.push(&line)?;
                    }
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    fn shuffled(
        &self,
        reading: &Reading,
        measured: &mut [Measured],
        times: &[Times],
        taken: &mut [Taken],
        folder: &Path,
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (part, parts) = self.part;
        let bytes: f64 = measured.iter().zip(times).map(|(m, t)| m.bytes as f64 * t.passes).sum();
        let wanted = (bytes / parts as f64 / self.memory_bytes.max(1) as f64).ceil() as u64;
        let pieces = wanted.clamp(1, MOST_PARTS);
        let names: Vec<PathBuf> = (0..pieces).map(|i| folder.join(format!("piece-{i}"))).collect();
        let mut files = names
            .iter()
            .map(|path| {
                let file = fs_err::File::create(path).map_err(|e| Error::io(path, e))?;
                Ok(BufWriter::with_capacity(1 << 16, file))
            })
            .collect::<Result<Vec<_>>>()?;
        for (source, measured) in measured.iter_mut().enumerate() {
            let (times, taken) = (times[source], &mut taken[source]);
            self.each(reading, source, measured, |record, line, size| {
                for copy in 0..times.of(key(self.seed, source, record, KEYS)) {
                    let place = key(self.seed, source, record, copy + 1);
                    // the place as a fraction of the whole: first the part, then the piece of it
                    let scaled = u128::from(place) * u128::from(parts);
                    if (scaled >> 64) as u64 != part {
                        continue;
                    }
                    let piece = ((scaled & u128::from(u64::MAX)) * u128::from(pieces)) >> 64;
                    let (file, path) = (&mut files[piece as usize], &names[piece as usize]);
                    let head = [place, source as u64, record, copy, line.len() as u64];
                    let mut write = || {
                        head.iter().try_for_each(|n| file.write_all(&n.to_le_bytes()))?;
                        file.write_all(line.as_bytes())
                    };
                    write().map_err(|e| Error::io(path, e))?;
                    taken.records_taken += 1;
                    taken.size_taken += size;
                }
                Ok(())
            })?;
        }
        for (file, path) in files.into_iter().zip(&names) {
            file.into_inner().map_err(|e| Error::io(path, e.into_error()))?;
            let mut copies = copies(path)?;
            copies.sort_unstable_by_key(|c| (c.place, c.source, c.record, c.copy));
            copies.iter().try_for_each(|copy| output.push(&copy.line))?;
            let _ = fs_err::remove_file(path); // the folder goes anyway
        }
        Ok(())
    }
}

/// The copies that a piece holds.
fn copies(path: &Path) -> Result<Vec<Copy>> {
    let io = |e| Error::io(path, e);
    let mut file = BufReader::with_capacity(1 << 20, fs_err::File::open(path).map_err(io)?);
    let mut all = Vec::new();
    let mut head = [0; 40];
    loop {
        match file.read_exact(&mut head) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(all),
            Err(e) => return Err(io(e)),
        }
        let word = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&head[8 * at..8 * at + 8]);
            u64::from_le_bytes(eight)
        };
        let mut line = vec![0; word(4) as usize];
        file.read_exact(&mut line).map_err(io)?;
        let line = String::from_utf8(line).map_err(|e| Error::format(path, e.to_string()))?;
        let (place, source, record, copy) = (word(0), word(1) as u32, word(2), word(3));
        all.push(Copy { place, source, record, copy, line });
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Share;
    use super::*;

    fn file(dir: &Path, name: &str, records: usize) -> PathBuf {
        let lines: Vec<String> = (0..records)
            .map(|i| {
                serde_json::json!({ "text": format!("{name} {}", "x".repeat(i % 50)) }).to_string()
            })
            .collect();
        let path = dir.join(format!("{name}.jsonl"));
        fs_err::write(&path, lines.join("\n")).unwrap();
        path
    }

    fn mix(sources: Vec<(PathBuf, Share)>) -> Mix {
        Mix {
            sources,
            unit: Unit::Characters,
            total: None,
            shuffle: true,
            seed: 7,
            part: (0, 1),
            memory_bytes: Mix::MEMORY_BYTES,
        }
    }

    fn run(mix: &Mix, dir: &Path) -> (Vec<String>, Mixed) {
        let mut out = Vec::new();
        let reading = Reading::of(&[]);
        let mixed = mix.run(&reading, None, dir, &mut Output::lines(&mut out)).unwrap();
        let lines: Vec<String> =
            String::from_utf8(out).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(mixed.records as usize, lines.len());
        (lines, mixed)
    }

    #[test]
    fn the_order_is_that_of_sorting_all_copies_by_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = [("a", 300), ("b", 40)].map(|(name, n)| file(dir.path(), name, n));
        let of = mix(vec![(a.clone(), Share::Passes(1.0)), (b.clone(), Share::Passes(3.0))]);
        let (lines, _) = run(&of, dir.path());
        let mut all = Vec::new();
        for (source, path) in [&a, &b].into_iter().enumerate() {
            let text = fs_err::read_to_string(path).unwrap();
            for (record, line) in text.lines().enumerate() {
                for copy in 0..[1, 3][source] {
                    all.push((key(7, source, record as u64, copy + 1), line.to_owned()));
                }
            }
        }
        all.sort();
        let expected: Vec<String> = all.into_iter().map(|(_, line)| line).collect();
        assert_eq!(lines, expected);
        // in little memory: many pieces
        assert_eq!(run(&Mix { memory_bytes: 1000, ..of.clone() }, dir.path()).0, lines);
        // in parts, put together
        let parts =
            (0..4).flat_map(|part| run(&Mix { part: (part, 4), ..of.clone() }, dir.path()).0);
        assert_eq!(parts.collect::<Vec<_>>(), lines);
        assert_ne!(run(&Mix { seed: 8, ..of.clone() }, dir.path()).0, lines);
        // without shuffling: file after file, pass after pass
        let (plain, _) = run(&Mix { shuffle: false, ..of }, dir.path());
        let [a, b] = [a, b].map(|path| fs_err::read_to_string(path).unwrap());
        let expected: Vec<&str> =
            a.lines().chain([&b, &b, &b].into_iter().flat_map(|b| b.lines())).collect();
        assert_eq!(plain, expected);
    }

    #[test]
    fn weights_and_budgets_are_met() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = [("a", 3000), ("b", 2000)].map(|(name, n)| file(dir.path(), name, n));
        let weights = vec![(a.clone(), Share::Weight(1.0)), (b.clone(), Share::Weight(3.0))];
        let (_, mixed) = run(&Mix { total: Some(100_000), ..mix(weights) }, dir.path());
        for (taken, expected) in mixed.sources.iter().zip([25_000.0, 75_000.0]) {
            // to within a record: a bucket holds one at most here
            assert!((taken.size_taken as f64 - expected).abs() < 60.0, "{mixed:?}");
        }
        assert!(mixed.sources[1].passes > 1.0, "b has to be repeated");
        let budgets = vec![(a.clone(), Share::Budget(10_000)), (b.clone(), Share::Budget(200_000))];
        let (_, mixed) = run(&mix(budgets), dir.path());
        assert!((mixed.size as f64 - 210_000.0).abs() < 120.0, "{mixed:?}");
        let both = vec![(a.clone(), Share::Weight(1.0)), (b, Share::Budget(5))];
        assert!(mix(both).check().unwrap_err().is_misuse());
        let empty = dir.path().join("empty.jsonl");
        fs_err::write(&empty, "\n").unwrap();
        let none = mix(vec![(a, Share::Budget(5)), (empty, Share::Budget(5))]);
        let error =
            none.run(&Reading::of(&[]), None, dir.path(), &mut Output::lines(&mut Vec::new()));
        assert!(error.unwrap_err().to_string().contains("empty.jsonl: expected records"));
    }
}
