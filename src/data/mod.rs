//! Training data: JSON Lines to records ([`jsonl`]), records to token ids with a loss mask ([`sample`]),
//! samples to batches ([`batch`]).
//!
//! Everything here is plain Rust and deterministic: the same files, tokenizer, options and seed give
//! the same batches, and a position (epoch, index) is enough to go on from.

pub mod batch;
pub mod jsonl;
pub mod pack;
pub mod random;
pub mod sample;
pub mod texts;

pub use batch::Batch;
pub use jsonl::{Fault, Kind, Record};
pub use pack::Packed;
pub use sample::{OnBad, Recipe, Sample, SampleOptions};

use std::path::{Path, PathBuf};

use mmx_converters::file::Bytes;
use mmx_converters::tokenizer::Tokenizer;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// All samples of the files of one training run.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What is trained on, in file order. Of preference pairs, the chosen answers.
    pub samples: Vec<Sample>,
    /// Of preference pairs, the rejected answers, as many as `samples`; else empty.
    pub rejected: Vec<Sample>,
    /// Sentences for the user.
    pub warnings: Vec<String>,
    /// What was left out as faulty, where [`OnBad::Skip`] was asked for: (file, fault).
    pub skipped: Vec<(PathBuf, Fault)>,
    /// (file, line) of every sample without a token to learn. Texts and chats stay in `samples`, as in
    /// the reference (the order of batches would move without them); preference pairs are left out,
    /// whose loss would divide by the number of tokens.
    pub nothing_to_learn: Vec<(PathBuf, usize)>,
    pub(crate) options: SampleOptions,
    pub(crate) pad: u32,
}

/// What became of one line.
enum Outcome {
    One(Sample),
    Pair(Sample, Sample),
    NothingToLearn,
    Bad(Fault),
}

impl Dataset {
    /// Reads, checks and tokenizes files, in parallel.
    ///
    /// # Errors
    /// A file that cannot be read; a faulty line (unless faulty lines are skipped), naming file and
    /// line; a template that refuses a chat; no sample with a token to learn.
    pub fn load(paths: &[PathBuf], tokenizer: &Tokenizer, options: &SampleOptions) -> Result<Self> {
        let (mut data, faults) = Self::examine(paths, tokenizer, options)?;
        if options.on_bad == OnBad::Skip {
            data.skipped = faults;
        } else if let Some((path, fault)) = faults.first() {
            let more = match faults.len() - 1 {
                0 => String::new(),
                n => format!(" ({n} more faulty lines)"),
            };
            let message =
                format!("{}: line {}: {}{more}", path.display(), fault.line, fault.message);
            let hint = fault.hint.clone().unwrap_or_else(|| {
                "`mmx data check` lists every fault; `--on-bad skip` leaves such lines out".into()
            });
            return Err(Error::failed_with_hint(message, hint));
        }
        data.summarize(paths)?;
        Ok(data)
    }

    /// Reads and tokenizes files and reports every fault instead of stopping at the first.
    ///
    /// # Errors
    /// A file that cannot be read, or a tokenizer that lacks what the data needs.
    pub fn examine(
        paths: &[PathBuf],
        tokenizer: &Tokenizer,
        options: &SampleOptions,
    ) -> Result<(Self, Vec<(PathBuf, Fault)>)> {
        let encoder = sample::Encoder::new(tokenizer, options)?;
        let mut data = Self {
            samples: Vec::new(),
            rejected: Vec::new(),
            warnings: Vec::new(),
            skipped: Vec::new(),
            nothing_to_learn: Vec::new(),
            options: options.clone(),
            pad: tokenizer.pad_id().unwrap_or(0),
        };
        let mut faults = Vec::new();
        for (file, path) in paths.iter().enumerate() {
            data.read_file(path, file as u32, &encoder, &mut faults)?;
        }
        Ok((data, faults))
    }

    fn read_file(
        &mut self,
        path: &Path,
        file: u32,
        encoder: &sample::Encoder<'_>,
        faults: &mut Vec<(PathBuf, Fault)>,
    ) -> Result<()> {
        let bytes = Bytes::map(path)?;
        let lines: Vec<jsonl::Line<'_>> = jsonl::lines(&bytes).collect();
        let outcomes: Vec<Outcome> = lines
            .par_iter()
            .map(|line| {
                let encoded = jsonl::parse(line, encoder.kind())
                    .and_then(|record| encoder.encode(&record, file, line.number));
                match encoded {
                    Err(fault) => Outcome::Bad(fault),
                    Ok(samples) => match <[Sample; 2]>::try_from(samples) {
                        Ok(pair) if !pair.iter().all(Sample::teaches) => Outcome::NothingToLearn,
                        Ok([chosen, rejected]) => Outcome::Pair(chosen, rejected),
                        Err(mut one) => one.pop().map_or(Outcome::NothingToLearn, Outcome::One),
                    },
                }
            })
            .collect();
        let mut marked = None;
        for (line, outcome) in lines.iter().zip(outcomes) {
            match outcome {
                Outcome::One(sample) => {
                    marked = marked.or(sample.has_control_text.then_some(line.number));
                    if !sample.teaches() {
                        self.nothing_to_learn.push((path.to_owned(), line.number));
                    }
                    self.samples.push(sample);
                }
                Outcome::Pair(chosen, rejected) => {
                    let has = chosen.has_control_text || rejected.has_control_text;
                    marked = marked.or(has.then_some(line.number));
                    self.samples.push(chosen);
                    self.rejected.push(rejected);
                }
                Outcome::NothingToLearn => {
                    self.nothing_to_learn.push((path.to_owned(), line.number));
                }
                Outcome::Bad(fault) => faults.push((path.to_owned(), fault)),
            }
        }
        if let Some(line) = marked {
            self.warnings.push(format!(
                "{}: line {line} (and maybe others): the text of a control token stands in the data \
                 and is read as that token, as the reference does",
                path.display()
            ));
        }
        Ok(())
    }

    /// The warnings about what was left out, and the error when nothing is left.
    fn summarize(&mut self, paths: &[PathBuf]) -> Result<()> {
        let listed = |lines: Vec<String>| {
            /// Line numbers in one message; the count is always given.
            const SHOWN: usize = 20;
            let more = if lines.len() > SHOWN { ", ..." } else { "" };
            format!("{}{more}", lines[..lines.len().min(SHOWN)].join(", "))
        };
        let place = |path: &Path, line: usize| match paths {
            [_] => line.to_string(),
            _ => format!("{}:{line}", path.display()),
        };
        if !self.skipped.is_empty() {
            let lines = self.skipped.iter().map(|(p, f)| place(p, f.line)).collect();
            self.warnings.push(format!(
                "{} faulty lines are left out: {}",
                self.skipped.len(),
                listed(lines)
            ));
        }
        let what = match self.options.kind {
            Kind::Text => "no token after the first",
            Kind::Chat => "no token of an answer",
            Kind::Preference => "a chosen or rejected answer without a token",
        };
        let limit = self.options.max_seq_len;
        if !self.nothing_to_learn.is_empty() {
            let lines = self.nothing_to_learn.iter().map(|(p, l)| place(p, *l)).collect();
            let fate = match self.options.kind {
                Kind::Preference => "are left out",
                Kind::Text | Kind::Chat => "teach nothing",
            };
            self.warnings.push(format!(
                "{} samples {fate}, having {what} within {limit} tokens: lines {}",
                self.nothing_to_learn.len(),
                listed(lines)
            ));
        }
        if !self.samples.iter().any(Sample::teaches) {
            let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
            return Err(Error::failed_with_hint(
                format!(
                    "{}: expected at least one sample to learn from, found none ({} with {what} \
                     within {limit} tokens, {} faulty)",
                    names.join(", "),
                    self.nothing_to_learn.len(),
                    self.skipped.len()
                ),
                "raise --max-seq-len, or look at the files with `mmx data check`",
            ));
        }
        Ok(())
    }

    /// Samples; of preference data, pairs.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// True without samples (which [`Dataset::load`] refuses).
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The options the samples were made with.
    pub fn options(&self) -> &SampleOptions {
        &self.options
    }
}

/// The ids that the reasoning stage weighs tenfold: those of `<think>`, `</think>`, `<answer>` and
/// `</answer>`, sorted, each once.
///
/// # Errors
/// The tokenizer's own.
pub fn reason_tag_ids(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for tag in ["<think>", "</think>", "<answer>", "</answer>"] {
        ids.extend(tokenizer.encode(tag)?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
