//! All samples of the files of one training run, in file order.

use std::path::{Path, PathBuf};

use mmx_converters::digest::hexadecimal;
use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::words::counted;

use mmx_converters::{Error, Result};
use sha2::{Digest as _, Sha256};

use crate::cache::Cache;
use crate::jsonl::Fault;
use crate::record::Kind;
use crate::sample::{self, OnBad, Recipe, Sample, SampleOptions};
use crate::tokens;

/// All samples of the files of one training run, in file order, in memory-mapped files.
#[derive(Debug)]
pub struct Dataset {
    files: Vec<tokens::TokenFile>,
    /// Per file the index of its first sample (of preference data: pair).
    starts: Vec<u32>,
    len: u32,
    /// Sentences for the user.
    pub warnings: Vec<String>,
    /// Faulty records that were left out, where [`OnBad::Skip`] was asked for: (file, fault).
    pub skipped: Vec<(PathBuf, Fault)>,
    /// (file, line) of every sample without a token to learn. Texts and chats stay among the
    /// samples, as in the reference (the order of batches would move without them); preference
    /// pairs are left out, whose loss would divide by the number of tokens.
    pub nothing_to_learn: Vec<(PathBuf, usize)>,
    /// (file, line) of every other sample with an answer (or text) of which only its end can be
    /// learned: it is empty.
    pub empty_answers: Vec<(PathBuf, usize)>,
    /// Samples with tools of which nothing is rendered.
    pub tools_left_out: usize,
    /// (file, line) of the first sample with such tools.
    first_with_tools: Option<(PathBuf, usize)>,
    /// Files whose samples are known by their number among the records: an array's have no lines of
    /// their own.
    arrays: Vec<PathBuf>,
    pub(crate) options: SampleOptions,
    pub(crate) pad: u32,
}

impl Dataset {
    /// Reads, checks and tokenizes files, in parallel, and keeps nothing: [`Dataset::load_cached`]
    /// without a cache.
    ///
    /// # Errors
    /// See [`Dataset::load_cached`].
    pub fn load(paths: &[PathBuf], tokenizer: &Tokenizer, options: &SampleOptions) -> Result<Self> {
        Self::load_cached(paths, tokenizer, options, &Cache::none())
    }

    /// The samples of files: checked and tokenized in parallel, or as they were kept in the cache.
    ///
    /// # Errors
    /// A file that cannot be read; a faulty line (unless faulty lines are skipped), naming file and
    /// line; a template that refuses a chat; no sample with a token to learn.
    pub fn load_cached(
        paths: &[PathBuf],
        tokenizer: &Tokenizer,
        options: &SampleOptions,
        cache: &Cache,
    ) -> Result<Self> {
        let (mut data, faults) = Self::examine(paths, tokenizer, options, cache)?;
        if options.on_bad == OnBad::Skip {
            data.skipped = faults;
        } else if let Some((path, fault)) = faults.first() {
            let more = match faults.len() - 1 {
                0 => String::new(),
                n => format!(" ({})", counted(n, &format!("more faulty {}", fault.unit()))),
            };
            let message = format!("{}: {}: {}{more}", path.display(), fault.place(), fault.message);
            let hint = fault.hint.clone().unwrap_or_else(|| {
                "`mmx data check` lists every fault; `on_bad` skip leaves such lines out".into()
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
        cache: &Cache,
    ) -> Result<(Self, Vec<(PathBuf, Fault)>)> {
        let encoder = sample::Encoder::new(tokenizer, options)?;
        let mut data = Self {
            files: Vec::new(),
            starts: Vec::new(),
            len: 0,
            warnings: Vec::new(),
            skipped: Vec::new(),
            nothing_to_learn: Vec::new(),
            empty_answers: Vec::new(),
            tools_left_out: 0,
            first_with_tools: None,
            arrays: Vec::new(),
            options: options.clone(),
            pad: tokenizer.pad_id().unwrap_or(0),
        };
        let mut faults = Vec::new();
        for (file, path) in paths.iter().enumerate() {
            let warnings = &mut data.warnings;
            let tokens = cache.tokens(path, file as u32, tokenizer, &encoder, options, warnings)?;
            let meta = &tokens.meta;
            let name = |line: &usize| (path.clone(), *line);
            data.nothing_to_learn.extend(meta.nothing_to_learn.iter().map(name));
            data.empty_answers.extend(meta.empty_answers.iter().map(name));
            data.tools_left_out += meta.tools_left_out;
            if data.first_with_tools.is_none() {
                data.first_with_tools = meta.tools_line.as_ref().map(name);
            }
            if meta.counts_records && !data.arrays.contains(path) {
                data.arrays.push(path.clone());
            }
            faults.extend(meta.faults.iter().map(|fault| (path.clone(), fault.clone())));
            if let Some(line) = meta.control_line {
                data.warnings.push(format!(
                    "{}: {} {line} (and maybe others): the text of a control token stands in the data \
                     and is read as that token, as the reference does",
                    path.display(),
                    if meta.counts_records { "record" } else { "line" }
                ));
            }
            data.starts.push(data.len);
            let samples = (meta.entries / data.per_sample()) as u64;
            let samples = u64::from(data.len) + samples;
            data.len = u32::try_from(samples).map_err(|_| {
                Error::failed(format!(
                    "{}: expected at most {} samples in all, found {samples}",
                    path.display(),
                    u32::MAX
                ))
            })?;
            data.files.push(tokens);
        }
        Ok((data, faults))
    }

    /// The warnings about what was left out, and the error when nothing is left.
    fn summarize(&mut self, paths: &[PathBuf]) -> Result<()> {
        let one = paths.len() == 1;
        if !self.skipped.is_empty() {
            let places =
                self.skipped.iter().map(|(p, f)| (p.as_path(), f.record.unwrap_or(f.line)));
            let lines = self.skipped.iter().all(|(_, fault)| fault.record.is_none());
            let number = self.skipped.len();
            self.warnings.push(format!(
                "{} {} left out: {}",
                counted(number, if lines { "faulty line" } else { "faulty record" }),
                if number == 1 { "is" } else { "are" },
                self.listed(places, one)
            ));
        }
        let what = match self.options.kind {
            Kind::Text => "no token after the first",
            Kind::Chat => "no token of an answer",
            Kind::Preference => "a chosen or rejected answer without a token",
        };
        let limit = self.options.max_seq_len;
        let of = |list: &[(PathBuf, usize)]| {
            self.listed(list.iter().map(|(path, line)| (path.as_path(), *line)), one)
        };
        let number = self.nothing_to_learn.len();
        if number > 0 {
            let fate = match (self.options.kind, number) {
                (Kind::Preference, 1) => "is left out",
                (Kind::Preference, _) => "are left out",
                (Kind::Text | Kind::Chat, 1) => "teaches nothing",
                (Kind::Text | Kind::Chat, _) => "teach nothing",
            };
            self.warnings.push(format!(
                "{} {fate}, having {what} within {limit} tokens: {}",
                counted(number, "sample"),
                of(&self.nothing_to_learn)
            ));
        }
        let sentences = [self.about_empty_answers(one), self.about_tools(one)];
        self.warnings.extend(sentences.into_iter().flatten());
        if self.files.iter().all(|file| file.meta.teaching == 0) {
            let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
            return Err(Error::failed_with_hint(
                format!(
                    "{}: expected at least one sample to learn from, found none ({} with {what} \
                     within {limit} tokens, {} faulty)",
                    names.join(", "),
                    self.nothing_to_learn.len(),
                    self.skipped.len()
                ),
                "raise `max_seq_len`, or look at the files with `mmx data check`",
            ));
        }
        Ok(())
    }

    /// A sentence about samples with an empty answer: how many, and which; nothing where none has
    /// one. `one`: there is one file, which need not be named.
    pub fn about_empty_answers(&self, one: bool) -> Option<String> {
        let number = self.empty_answers.len();
        let (has, what) = match self.options.kind {
            Kind::Text => (if number == 1 { "is" } else { "are" }, "empty"),
            Kind::Chat | Kind::Preference => {
                (if number == 1 { "has" } else { "have" }, "an empty answer")
            }
        };
        let places = self.empty_answers.iter().map(|(path, line)| (path.as_path(), *line));
        (number > 0).then(|| {
            let all = if number == self.len() { ", which is all there are," } else { "" };
            format!(
                "{}{all} {has} {what}, of which only the end is learned: {}",
                counted(number, "sample"),
                self.listed(places, one)
            )
        })
    }

    /// A sentence about samples with tools of which nothing is rendered: how many, why, and the
    /// first; nothing where there is none. `one`: there is one file, which need not be named.
    pub fn about_tools(&self, one: bool) -> Option<String> {
        let (path, line) = self.first_with_tools.as_ref()?;
        let number = self.tools_left_out;
        let why = match self.options.recipe {
            Recipe::R2025 => "tools, which recipe 2025 leaves out as the reference does",
            Recipe::R2026 => "tools, of which the chat template renders nothing",
        };
        Some(format!(
            "{} {} {why}; the first: {}",
            counted(number, "sample"),
            if number == 1 { "has" } else { "have" },
            self.listed(std::iter::once((path.as_path(), *line)), one)
        ))
    }

    /// Places of samples in words: `lines 3, 5`, `record 2`, `a.jsonl:3, b.json:record 2`; not more
    /// than a few of them.
    pub fn listed<'a>(&self, places: impl Iterator<Item = (&'a Path, usize)>, one: bool) -> String {
        /// Places in one message; the count is always given.
        const SHOWN: usize = 20;
        let is_array = |path: &Path| self.arrays.iter().any(|array| array == path);
        let places: Vec<(&Path, usize)> = places.take(SHOWN + 1).collect();
        let name = |&(path, number): &(&Path, usize)| match (one, is_array(path)) {
            (true, _) => number.to_string(),
            (false, false) => format!("{}:{number}", path.display()),
            (false, true) => format!("{}:record {number}", path.display()),
        };
        let shown: Vec<String> = places.iter().take(SHOWN).map(name).collect();
        let more = if places.len() > SHOWN { ", ..." } else { "" };
        let records = places.iter().any(|(path, _)| is_array(path));
        let noun = match (one && records, places.len()) {
            (false, 1) => "line ",
            (true, 1) => "record ",
            (true, _) => "records ",
            (false, _) if records => "",
            (false, _) => "lines ",
        };
        format!("{noun}{}{more}", shown.join(", "))
    }

    /// The noun by which the samples of a file are numbered: `line` or `record`.
    pub fn unit(&self, path: &Path) -> &'static str {
        if self.arrays.iter().any(|array| array == path) { "record" } else { "line" }
    }

    /// The number of samples; of preference data, of pairs.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True without samples (which [`Dataset::load`] refuses).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True of preference data.
    pub fn is_pairs(&self) -> bool {
        self.options.kind == Kind::Preference
    }

    /// Entries of a token file that make one sample of the data set.
    pub(crate) fn per_sample(&self) -> usize {
        if self.is_pairs() { 2 } else { 1 }
    }

    /// The file of a sample and its entry there.
    fn place(&self, index: usize) -> (usize, usize) {
        let file = self.starts.partition_point(|&start| start as usize <= index).saturating_sub(1);
        (file, (index - self.starts[file] as usize) * self.per_sample())
    }

    /// A sample; of preference pairs, the chosen answer.
    ///
    /// # Panics
    /// When the index is not below [`Dataset::len`] (a bug of the caller).
    pub fn sample(&self, index: usize) -> Sample {
        let (file, entry) = self.place(index);
        self.files[file].sample(entry, file as u32)
    }

    /// The rejected answer of a preference pair.
    ///
    /// # Panics
    /// See [`Dataset::sample`].
    pub fn rejected(&self, index: usize) -> Option<Sample> {
        let (file, entry) = self.place(index);
        self.is_pairs().then(|| self.files[file].sample(entry + 1, file as u32))
    }

    /// All samples in file order; of preference pairs, the chosen answers.
    pub fn samples(&self) -> impl Iterator<Item = Sample> + '_ {
        (0..self.len()).map(|index| self.sample(index))
    }

    /// Tokens of a sample, which is not read for this.
    pub(crate) fn tokens_of(&self, index: usize) -> usize {
        let (file, entry) = self.place(index);
        self.files[file].length(entry)
    }

    /// Targets of a sample that are learned, of which only the spans are read for this; of a
    /// preference pair, those of both answers.
    pub(crate) fn learned_of(&self, index: usize) -> usize {
        let (file, entry) = self.place(index);
        let entries = entry..entry + self.per_sample();
        entries.map(|entry| self.files[file].targets(entry)).sum()
    }

    /// Lets go of what was read of the files; it is read again when it is needed.
    pub(crate) fn give_back(&self) {
        self.files.iter().for_each(tokens::TokenFile::give_back);
    }

    /// Tokens of a preference pair's longer answer, which is not read for this.
    pub(crate) fn longest_of(&self, index: usize) -> usize {
        let (file, entry) = self.place(index);
        let entries = entry..entry + self.per_sample();
        entries.map(|entry| self.files[file].length(entry)).max().unwrap_or(0)
    }

    /// Tokens of all samples; of preference pairs, of both answers.
    pub fn tokens(&self) -> u64 {
        self.files.iter().map(|file| file.meta.tokens).sum()
    }

    /// Targets that are learned, of all samples.
    pub fn learned_tokens(&self) -> u64 {
        self.files.iter().map(|file| file.meta.learned).sum()
    }

    /// SHA-256 of all samples in file order: ids, spans, lengths before the cut and the numbers that
    /// samples are known by. Files of the same records have the same, whatever their form.
    pub fn digest(&self) -> String {
        let mut digest = Sha256::new();
        let entries = (0..self.len()).flat_map(|i| [Some(self.sample(i)), self.rejected(i)]);
        for sample in entries.flatten() {
            let spans = sample.spans.iter().flat_map(|span| [span.start, span.end]);
            let head =
                [sample.ids.len() as u32, sample.spans.len() as u32, sample.full_len, sample.line];
            for number in head.into_iter().chain(sample.ids.iter().copied()).chain(spans) {
                digest.update(number.to_le_bytes());
            }
        }
        hexadecimal(&digest.finalize())
    }

    /// Tokens of every sample before it was cut, in no order; of preference pairs, of both answers.
    pub fn full_lengths(&self) -> Vec<u32> {
        let of = |file: &tokens::TokenFile| -> Vec<u32> {
            (0..file.meta.entries).map(|entry| file.full_len(entry)).collect()
        };
        self.files.iter().flat_map(of).collect()
    }

    /// The options the samples were made with.
    pub fn options(&self) -> &SampleOptions {
        &self.options
    }
}
