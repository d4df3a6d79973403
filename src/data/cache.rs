//! The token cache: a data file is checked and tokenized once, in parallel and in bounded memory, into a
//! [`TokenFile`] that is found again by what its samples depend on.
//!
//! The key holds the digests of the file and the tokenizer with its template, the options that change
//! samples, mmx's version and the source of the code that makes samples. Whoever builds writes a file of
//! its own and renames it, so several processes may build the same one.

use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use indicatif::{ProgressBar, ProgressStyle};
use mmx_converters::tokenizer::Tokenizer;
use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::sample::Encoder;
use super::source::{Block, Blocks};
use super::tokens::{Key, TokenFile, Writer};
use super::{Fault, Kind, Sample, SampleOptions, jsonl};
use crate::error::{Error, Result};

/// The code that turns lines into samples: with another, samples may be others.
const CODE: [&str; 4] = [
    include_str!("sample.rs"),
    include_str!("jsonl.rs"),
    include_str!("random.rs"),
    include_str!("tokens.rs"),
];

/// Where token files are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cache(Option<PathBuf>);

impl Cache {
    /// Nowhere: each data set is tokenized into a temporary file.
    pub fn none() -> Self {
        Self(None)
    }

    /// In a folder, which is made when it is first needed.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(Some(folder.into()))
    }

    /// The user's: `$MMX_CACHE/tokens`, else `$XDG_CACHE_HOME/mmx/tokens`, else `~/.cache/mmx/tokens`.
    pub fn user() -> Self {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = variable("MMX_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("mmx")))
            .or_else(|| variable("HOME").map(|dir| dir.join(".cache/mmx")));
        Self(folder.map(|dir| dir.join("tokens")))
    }

    /// The samples of a file: those kept, or made now. Sentences for the user go to `warnings`.
    pub(super) fn tokens(
        &self,
        path: &Path,
        file: u32,
        tokenizer: &Tokenizer,
        encoder: &Encoder<'_>,
        options: &SampleOptions,
        warnings: &mut Vec<String>,
    ) -> Result<TokenFile> {
        let wide = tokenizer.vocab_size() > 1 << 16;
        let Some(folder) = &self.0 else {
            return build(path, &[0; 32], None, wide, encoder, file);
        };
        let before = state(path)?;
        let key = key(path, file, tokenizer, options)?;
        let name: String = key[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let kept = folder.join(format!("{name}.tokens"));
        if kept.exists() {
            match TokenFile::open(&kept, &key) {
                Ok(tokens) => return Ok(tokens),
                Err(why) => warnings.push(format!(
                    "{}: damaged ({why}): the tokens of {} are made again",
                    kept.display(),
                    path.display()
                )),
            }
        }
        if let Err(error) = fs_err::create_dir_all(folder) {
            warnings.push(format!("{error}: the tokens of {} are not kept", path.display()));
            return build(path, &key, None, wide, encoder, file);
        }
        let tokens = build(path, &key, Some(&kept), wide, encoder, file)?;
        if state(path)? != before {
            let _ = fs_err::remove_file(&kept); // perhaps of the new content under the old key
            return Err(Error::failed(format!(
                "{}: expected a file that stays as it is, found it changed while it was read",
                path.display()
            )));
        }
        Ok(tokens)
    }
}

/// Size and time of a file.
fn state(path: &Path) -> Result<(u64, Option<SystemTime>)> {
    let meta = fs_err::metadata(path).map_err(|e| Error::io(path, e))?;
    Ok((meta.len(), meta.modified().ok()))
}

/// Digest of everything that samples depend on.
fn key(path: &Path, file: u32, tokenizer: &Tokenizer, options: &SampleOptions) -> Result<Key> {
    let hex = |hash: Sha256| -> String {
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let mut content = Sha256::new();
    let mut source = fs_err::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match source.read(&mut buffer).map_err(|e| Error::io(path, e))? {
            0 => break,
            read => content.update(&buffer[..read]),
        }
    }
    let mut code = Sha256::new();
    CODE.iter().for_each(|text| code.update(text));
    let mut vocabulary = Sha256::new();
    vocabulary.update(tokenizer.json());
    // what only chats depend on: augmentation draws for the file's index and the line
    let chat = json!({
        "system_ratio": options.system_ratio.to_bits(),
        "empty_think_ratio": options.empty_think_ratio.to_bits(),
        "seed": options.seed,
        "file": file,
    });
    let parts = json!({
        "mmx": env!("CARGO_PKG_VERSION"),
        "code": hex(code),
        "content": hex(content),
        "tokenizer": hex(vocabulary),
        "tokenizer_config": tokenizer.config_json(),
        "special": [tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()],
        "recipe": format!("{:?}", options.recipe),
        "kind": format!("{:?}", options.kind),
        "max_seq_len": options.max_seq_len,
        "chat": if options.kind == Kind::Text { json!(null) } else { chat },
    });
    Ok(Sha256::digest(parts.to_string()).into())
}

/// Checks and tokenizes a file, block by block: the next is read while one is tokenized. `kept`: where
/// the token file stays; else it is gone when it is closed.
fn build(
    path: &Path,
    key: &Key,
    kept: Option<&Path>,
    wide: bool,
    encoder: &Encoder<'_>,
    file: u32,
) -> Result<TokenFile> {
    let temporary = std::env::temp_dir();
    let folder = kept.and_then(Path::parent).unwrap_or(&temporary);
    let io = |e| Error::io(folder, e);
    let named = tempfile::Builder::new().prefix(".mmx-").suffix(".part").tempfile_in(folder);
    let named = named.map_err(io)?;
    let index = tempfile::tempfile_in(folder).map_err(io)?;
    let out = BufWriter::with_capacity(1 << 20, named.as_file());
    let mut writer = Writer::new(out, index, key, wide).map_err(io)?;

    let mut blocks = Blocks::open(path)?;
    let progress = progress(path);
    let mut block = blocks.next_block()?;
    while let Some(current) = block {
        let (next, outcomes) =
            rayon::join(|| blocks.next_block(), || outcomes(&current, encoder, file));
        for (line, outcome) in outcomes {
            add(&mut writer, line, outcome).map_err(io)?;
        }
        progress.inc(current.size() as u64);
        block = next?;
    }
    progress.finish_and_clear();
    writer.finish().map_err(io)?;
    if let Some(kept) = kept {
        named.as_file().sync_all().map_err(io)?;
        let part = named.into_temp_path();
        let tokens = TokenFile::open(&part, key).map_err(|why| unreadable(&part, &why))?;
        part.persist(kept).map_err(|e| Error::io(kept, e.error))?;
        return Ok(tokens);
    }
    TokenFile::open(named.path(), key).map_err(|why| unreadable(named.path(), &why))
}

fn unreadable(path: &Path, why: &str) -> Error {
    Error::failed(format!("{}: expected the token file just written, but {why}", path.display()))
}

/// Bytes of text read, for files that take a while; of packed files the end is not known before.
fn progress(path: &Path) -> ProgressBar {
    const LARGE: u64 = 64 << 20;
    let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
    if size < LARGE {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(size).with_message("tokenizing");
    let style = ProgressStyle::with_template("{msg} {bytes} of {total_bytes} ({bytes_per_sec})");
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What became of one line.
enum Outcome {
    One(Sample),
    Pair(Sample, Sample),
    NothingToLearn,
    Bad(Fault),
}

fn outcomes(block: &Block, encoder: &Encoder<'_>, file: u32) -> Vec<(usize, Outcome)> {
    let encode = |line: &jsonl::Line<'_>| {
        let encoded = jsonl::parse(line, encoder.kind())
            .and_then(|record| encoder.encode(&record, file, line.number));
        let outcome = match encoded {
            Err(fault) => Outcome::Bad(fault),
            Ok(samples) => match <[Sample; 2]>::try_from(samples) {
                Ok(pair) if !pair.iter().all(Sample::teaches) => Outcome::NothingToLearn,
                Ok([chosen, rejected]) => Outcome::Pair(chosen, rejected),
                Err(mut one) => one.pop().map_or(Outcome::NothingToLearn, Outcome::One),
            },
        };
        (line.number, outcome)
    };
    block.lines().par_iter().map(encode).collect()
}

fn add<W: Write, I: Read + Write + Seek>(
    writer: &mut Writer<W, I>,
    line: usize,
    outcome: Outcome,
) -> std::io::Result<()> {
    let samples = match outcome {
        Outcome::One(sample) => {
            if !sample.teaches() {
                writer.meta.nothing_to_learn.push(line);
            }
            vec![sample]
        }
        Outcome::Pair(chosen, rejected) => vec![chosen, rejected],
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
