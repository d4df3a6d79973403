//! Records through their clusters: the first of each is written.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use mmx_converters::{Error, Result};

use super::against::Against;
use super::clusters::{Clusters, SORTED_BYTES, cluster};
use super::sign::Settings;
use super::store::{Input, sign};
use crate::reading::{self, Reading, Source};
use crate::report::{Example, Report};
use crate::writing::Output;

/// A deduplication: where the duplicates are known from, and the evaluations that are kept out.
#[derive(Debug, Default)]
pub struct Dedup {
    /// What makes near duplicates.
    pub settings: Settings,
    /// Evaluations whose sequences no record may have.
    pub against: Option<Against>,
    /// Files before all others, whose records are known and not written.
    pub reference: Vec<PathBuf>,
}

impl Dedup {
    /// Signs, clusters and writes in one run; signatures lie in `folder` meanwhile.
    ///
    /// # Errors
    /// Files that cannot be read or written, faulty records.
    pub fn run(&self, reading: &Reading, folder: &Path, output: &mut Output<'_>) -> Result<Report> {
        let files = self.reference.iter().chain(&reading.files).cloned().collect();
        let all = Reading { files, ..reading.clone() };
        let held = tempfile::Builder::new().prefix(".mmx-signatures-").tempdir_in(folder);
        let held = held.map_err(|e| Error::io(folder, e))?;
        let signatures = sign(&all, self.settings, &held.path().join("all.sig"))?;
        let clusters = cluster(&[signatures], SORTED_BYTES)?;
        drop(held);
        let start = clusters.records_of(self.reference.len());
        self.write_from(reading, &clusters, start, output)
    }

    /// Writes the records of `reading`'s files that are the first of their clusters, which may hold
    /// other files too.
    ///
    /// # Errors
    /// Files that were not signed or were changed since, files that cannot be read or written.
    pub fn write(
        &self,
        reading: &Reading,
        clusters: &Clusters,
        output: &mut Output<'_>,
    ) -> Result<Report> {
        let files = &reading.files;
        let inputs = files.iter().map(|file| Input::of(file)).collect::<Result<Vec<_>>>()?;
        let start = clusters.start_of(&inputs).ok_or_else(|| {
            let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
            Error::failed_with_hint(
                format!(
                    "{}: expected files whose signatures are in the clusters, in their order, found others",
                    names.join(", ")
                ),
                "a file that was changed since has to be signed again",
            )
        })?;
        self.write_from(reading, clusters, start, output)
    }

    /// Writes the records of files, the first of which has the index `start`.
    fn write_from(
        &self,
        reading: &Reading,
        clusters: &Clusters,
        start: usize,
        output: &mut Output<'_>,
    ) -> Result<Report> {
        let files = &reading.files;
        let mut report = Report::default();
        let mut index = start;
        // the first of clusters of which an example is shown
        let mut seen: HashMap<usize, Source> = wanted(clusters, start);
        let read = reading::for_each(
            reading,
            "writing",
            |raw| {
                let texts = raw.texts();
                let found = self.against.as_ref().and_then(|against| against.found(&texts));
                (raw.source, raw.line(), texts.join("\n"), found)
            },
            |(source, line, text, contaminated)| {
                let at = index;
                index += 1;
                report.text_bytes += text.len() as u64;
                if let Some(place) = seen.get_mut(&at) {
                    *place = source;
                }
                if let Some(found) = contaminated {
                    report.drop("contaminated", || Example::new(files, source, found, &text));
                    return Ok(());
                }
                match clusters.duplicate(at) {
                    Some((first, exact)) => {
                        let rule = if exact { "duplicate.exact" } else { "duplicate.near" };
                        report.drop(rule, || {
                            let place = seen.get(&first).filter(|place| place.number > 0);
                            let found = match place {
                                Some(place) => {
                                    format!("of {}:{}", files[place.file].display(), place.number)
                                }
                                None => {
                                    let (name, number) = clusters.place(first);
                                    format!("of record {number} of {name}")
                                }
                            };
                            Example::new(files, source, found, &text)
                        });
                    }
                    None => {
                        output.push(&line)?;
                        report.kept += 1;
                        report.kept_text_bytes += text.len() as u64;
                    }
                }
                Ok(())
            },
        )?;
        report.reading(&read, files);
        Ok(report)
    }
}

/// The first records of the clusters of the first few duplicates, whose places are not known yet.
fn wanted(clusters: &Clusters, start: usize) -> HashMap<usize, Source> {
    /// Duplicates that may be shown, some of which may be dropped by another rule.
    const SHOWN: usize = 64;
    let all = (start..clusters.len()).filter_map(|index| clusters.duplicate(index));
    let (mut exact, mut near) = (0, 0);
    all.filter(|(_, same)| {
        let count = if *same { &mut exact } else { &mut near };
        *count += 1;
        *count <= SHOWN
    })
    .map(|(first, _)| (first, Source { file: 0, number: 0 }))
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mmx_converters::random::Random;

    use super::*;
    use crate::dedup::Signer;
    use crate::dedup::store::Signatures;

    /// Texts of which some are copies with a few words changed.
    fn corpus(seed: u64, records: usize) -> Vec<String> {
        let mut random = Random::new(seed, 0);
        let mut texts: Vec<String> = Vec::new();
        for _ in 0..records {
            let fresh = texts.is_empty() || random.below(2) == 0;
            let mut words: Vec<String> = match fresh {
                true => {
                    (0..20 + random.below(60)).map(|_| format!("w{}", random.below(500))).collect()
                }
                false => {
                    let of = random.below(texts.len());
                    texts[of].split(' ').map(str::to_owned).collect()
                }
            };
            for _ in 0..random.below(4) {
                let at = random.below(words.len());
                words[at] = format!("x{}", random.below(1000));
            }
            texts.push(words.join(" "));
        }
        texts
    }

    fn write(path: &Path, texts: &[String]) {
        let lines: Vec<String> =
            texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
        fs_err::write(path, lines.join("\n")).unwrap();
    }

    /// Every pair compared, clusters grown until nothing changes.
    fn naive(settings: Settings, texts: &[String]) -> Vec<usize> {
        let signer = Signer::new(settings);
        let all: Vec<_> =
            texts.iter().map(|text| signer.sign(std::slice::from_ref(text))).collect();
        let alike = |a: usize, b: usize| {
            all[a].exact == all[b].exact
                || all[a].bands.iter().zip(&all[b].bands).any(|(x, y)| x == y && *x != 0)
        };
        let pairs = (0..texts.len()).flat_map(|a| (0..texts.len()).map(move |b| (a, b)));
        let pairs: Vec<(usize, usize)> = pairs.filter(|(a, b)| alike(*a, *b)).collect();
        let mut first: Vec<usize> = (0..texts.len()).collect();
        loop {
            let before = first.clone();
            for &(a, b) in &pairs {
                let least = first[a].min(first[b]);
                (first[a], first[b]) = (least, least);
            }
            if first == before {
                return (0..texts.len()).filter(|i| first[*i] == *i).collect();
            }
        }
    }

    fn run(dedup: &Dedup, files: &[PathBuf], folder: &Path) -> (String, Report) {
        let mut out = Vec::new();
        let reading = Reading::of(files);
        let report = dedup.run(&reading, folder, &mut Output::lines(&mut out)).unwrap();
        (String::from_utf8(out).unwrap(), report)
    }

    #[test]
    fn what_is_kept_equals_comparing_every_pair() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        for seed in 0..6 {
            let texts = corpus(seed, 120);
            write(&path, &texts);
            let settings = Settings { bands: 6, rows: 4, ..Settings::default() };
            let kept = naive(settings, &texts);
            let dedup = Dedup { settings, ..Dedup::default() };
            let (out, report) = run(&dedup, std::slice::from_ref(&path), dir.path());
            let expected: Vec<String> =
                kept.iter().map(|i| serde_json::json!({ "text": texts[*i] }).to_string()).collect();
            assert_eq!(out.lines().collect::<Vec<_>>(), expected);
            assert_eq!(report.kept as usize, kept.len());
            assert!(report.dropped_records() > 20, "{report:?}");
        }
    }

    #[test]
    fn sorting_in_many_rounds_gives_the_same_clusters() {
        let dir = tempfile::tempdir().unwrap();
        let (path, signed) = (dir.path().join("a.jsonl"), dir.path().join("a.sig"));
        write(&path, &corpus(3, 400));
        let files = [sign(&Reading::of(&[path]), Settings::default(), &signed).unwrap()];
        let one = cluster(&files, SORTED_BYTES).unwrap();
        assert!(one.duplicates() > 50);
        assert_eq!(cluster(&files, 4096).unwrap(), one);
        let kept = dir.path().join("c.dup");
        let mut bytes = Vec::new();
        one.write(&mut bytes, &kept).unwrap();
        fs_err::write(&kept, &bytes).unwrap();
        assert_eq!(Clusters::open(&kept).unwrap(), one);
        fs_err::write(&kept, &bytes[..bytes.len() - 2]).unwrap();
        assert!(Clusters::open(&kept).unwrap_err().to_string().contains("found other bytes"));
    }

    #[test]
    fn shards_merged_equal_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let texts = corpus(5, 300);
        let files: Vec<PathBuf> = texts
            .chunks(70)
            .enumerate()
            .map(|(i, part)| {
                let path = dir.path().join(format!("shard-{i}.jsonl"));
                write(&path, part);
                path
            })
            .collect();
        let dedup = Dedup::default();
        let (whole, report) = run(&dedup, &files, dir.path());
        let signatures: Vec<Signatures> = files
            .iter()
            .map(|file| {
                let signed = file.with_extension("sig");
                sign(&Reading::of(std::slice::from_ref(file)), dedup.settings, &signed).unwrap()
            })
            .collect();
        let clusters = cluster(&signatures, SORTED_BYTES).unwrap();
        let mut merged = Vec::new();
        let mut kept = 0;
        for file in &files {
            let reading = Reading::of(std::slice::from_ref(file));
            kept += dedup.write(&reading, &clusters, &mut Output::lines(&mut merged)).unwrap().kept;
        }
        assert_eq!((String::from_utf8(merged).unwrap(), kept), (whole, report.kept));
        // a shard that was changed since is refused
        write(&files[1], &texts[..3]);
        let changed = Reading::of(&files[1..2]);
        let error = dedup.write(&changed, &clusters, &mut Output::lines(&mut Vec::new()));
        assert!(error.unwrap_err().to_string().contains("shard-1.jsonl: expected files whose"));
    }

    #[test]
    fn records_without_text_are_alike_where_their_lines_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        fs_err::write(&path, "{\"a\": 1}\n{\"a\": 2}\n{\"a\": 1}\n").unwrap();
        let (out, _) = run(&Dedup::default(), &[path], dir.path());
        assert_eq!(out, "{\"a\": 1}\n{\"a\": 2}\n");
    }

    #[test]
    fn records_of_reference_files_are_known_and_not_written() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir(dir.path().join("new")).unwrap();
        let [old, new] = ["old.jsonl", "new/old.jsonl"].map(|name| dir.path().join(name));
        let text = |words: &str| vec![words.to_owned()];
        write(&old, &text("the very same words as before"));
        let both = [text("The very  same words as before"), text("something new")].concat();
        write(&new, &both);
        let dedup = Dedup { reference: vec![old.clone()], ..Dedup::default() };
        let (out, report) = run(&dedup, std::slice::from_ref(&new), dir.path());
        assert_eq!(out, "{\"text\":\"something new\"}\n");
        let dropped = &report.dropped[0];
        assert_eq!(dropped.rule, "duplicate.exact");
        assert_eq!(dropped.examples[0].found, "of record 1 of old.jsonl");
        // a copy of the reference has nothing new, though it looks like it
        fs_err::copy(&old, &new).unwrap();
        assert_eq!(run(&dedup, &[new], dir.path()).0, "");
    }

    #[test]
    fn near_duplicates_are_found_and_different_texts_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let mut random = Random::new(8, 0);
        let mut texts = Vec::new();
        for _ in 0..50 {
            let words: Vec<String> = (0..300).map(|_| format!("v{}", random.below(5000))).collect();
            let mut other = words.clone();
            other[150] = "changed".into(); // s = 291 / 301 = 0.97
            texts.extend([words.join(" "), other.join(" ")]);
        }
        write(&path, &texts);
        let (out, report) = run(&Dedup::default(), &[path], dir.path());
        let kept: BTreeSet<&str> = out.lines().collect();
        assert_eq!((kept.len(), report.dropped[0].records), (50, 50));
        assert!(!out.contains("changed"), "the first of two stays");
    }
}
