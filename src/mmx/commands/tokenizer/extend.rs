//! `mmx tokenizer extend`: a tokenizer with more entries, learned from texts.

use std::path::PathBuf;

use clap::Args;
use mmx_converters::manifest::Manifest;
use mmx_converters::model::folder;
use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::tokenizer::train::WordCounts;
use mmx_converters::words::counted;
use mmx_data::{Fields, texts};
use serde_json::json;

use crate::error::{Error, Result};
use crate::format;
use crate::talk::{note, warning};

/// Add entries to a tokenizer, learned from texts of a language or field that it cuts too fine
///
/// Ids that there are stay, new ones follow; templates and special tokens go along. A model gets rows
/// for the new entries where it is trained on with the new tokenizer (`mmx train --from MODEL
/// --tokenizer TOK`) or imported with it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx tokenizer extend tok --data medicine.jsonl --add 2000 --out tok-medicine
  mmx tokenizer eval tok tok-medicine --data held-out.jsonl")]
pub(crate) struct ExtendArgs {
    /// A folder with tokenizer.json, a tokenizer.json, or a GGUF
    pub(crate) model: PathBuf,
    /// JSON Lines (`text`, `conversations`, `chosen` and `rejected`) or plain text
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub(crate) data: Vec<PathBuf>,
    /// Entries to add
    #[arg(long, value_name = "N", value_parser = crate::args::values::at_least_one)]
    add: usize,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Distinct words kept, MiB; beyond it rare words are sampled
    #[arg(long, value_name = "MIB", default_value_t = WordCounts::LIMIT_BYTES >> 20, value_parser = crate::args::values::at_least_one)]
    word_memory: usize,
    /// Replace a tokenizer in --out that mmx did not write, or that was changed since
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// The data's key for one of the known names, such as text=content; repeatable
    #[arg(long, value_name = "NAME=KEY")]
    field: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// Unreadable data, a tokenizer that is read from GGUFs alone, an unwritable folder.
pub(crate) fn run(
    args: &ExtendArgs,
    tokenizer: &Tokenizer,
    mut manifest: Manifest,
    as_json: bool,
) -> Result<()> {
    if !tokenizer.can_be_extended() {
        return Err(Error::failed(format!(
            "{}: expected a byte-level tokenizer, found SentencePiece's, which is read and not written",
            args.model.display()
        )));
    }
    let mut counts = WordCounts::new(args.word_memory << 20).cutting_as(tokenizer)?;
    let fields = Fields::parse(&args.field)?;
    for path in &mmx_hub::resolve_data(&args.data)? {
        texts::for_each_batch(path, &fields, |batch| counts.add(batch))?;
    }
    if counts.is_empty() {
        return Err(Error::failed("expected text to learn from, found none"));
    }
    let sampled = counts.is_sampled();
    let extended = tokenizer.extended(counts, args.add)?;
    extended.warnings.iter().for_each(|warning| warning!("{warning}"));
    extended.save(&args.out)?;
    for path in folder::tokenizer_files(&args.out) {
        manifest.add(&path)?;
    }
    manifest.save()?;
    let (before, after) = (tokenizer.vocab_size(), extended.vocab_size());
    if as_json {
        return format::print_json(&json!({
            "path": args.out.to_string_lossy(), "vocab_size": after, "added": after - before,
            "sampled": sampled,
        }));
    }
    if sampled {
        note!("note: the text has too many distinct words to keep; rare ones were sampled");
    }
    format::print(&format!(
        "{}: {}, {} of them new\n",
        args.out.display(),
        counted(after, "entry"),
        after - before
    ))
}
