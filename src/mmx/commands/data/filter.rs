//! `mmx data filter`: rules from a TOML file, each named in the report.

use std::path::{Path, PathBuf};

use clap::Args;
use mmx_corpus::filter::{DEFAULT, Filter, Rules};
use serde_json::json;

use super::out::{self, HowArgs};
use crate::commands::tokenizer;
use crate::error::{Error, Result};
use crate::format;

/// Leave out records by rules, and replace personal data
///
/// The report says how many records each rule dropped, and shows three of each.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx data filter pages.jsonl --out clean.jsonl
  mmx data filter --show-rules > rules.toml
  mmx data filter a.parquet b.jsonl.gz --rules rules.toml --tokenizer tok --out clean.jsonl.zst

Rules are described in docs/data-cleaning.md; without --rules those of --show-rules hold. A record
that stays is written as it was read, byte by byte, unless a rule changes it.")]
pub(crate) struct FilterArgs {
    /// Parquet, CSV, JSON Lines or JSON arrays of records, text also packed with gzip or zstd; or
    /// hf:datasets/owner/name
    #[arg(required_unless_present = "show_rules")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    how: HowArgs,
    /// The rules
    #[arg(long, value_name = "FILE.toml")]
    rules: Option<PathBuf>,
    /// Counts tokens, for the rule length.tokens
    #[arg(long, value_name = "MODEL")]
    tokenizer: Option<PathBuf>,
    /// Print the rules that hold without --rules, a file to begin with
    #[arg(long)]
    show_rules: bool,
    /// The file to write: .jsonl, packed with .gz or .zst behind it
    #[arg(short, long, value_name = "FILE", required_unless_present = "show_rules")]
    out: Option<PathBuf>,
    /// Replace a file that mmx did not write, or that was changed since
    #[arg(long)]
    overwrite: bool,
}

/// Runs it.
///
/// # Errors
/// Rules or files that cannot be read, faulty records, an output that is not free.
pub(crate) fn run(args: &FilterArgs, as_json: bool) -> Result<()> {
    if args.show_rules {
        return match as_json {
            true => format::print_json(&json!({ "rules": DEFAULT })),
            false => format::print(DEFAULT),
        };
    }
    let Some(out) = &args.out else { return Err(Error::usage("--out: expected a file")) };
    let rules = match &args.rules {
        Some(path) => {
            let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
            Rules::parse(&text, path)?
        }
        None => Rules::parse(DEFAULT, Path::new("the rules of mmx"))?,
    };
    let tokenizer = args.tokenizer.as_deref().map(tokenizer::open).transpose()?;
    let mut filter = Filter::new(rules, tokenizer.as_ref())?;
    mmx_corpus::writing::check_lines(out)?;
    let reading = args.how.reading(&args.files)?;
    let inputs: Vec<PathBuf> = reading.files.iter().chain(&args.rules).cloned().collect();
    let claim = out::claim(out, &inputs, args.overwrite)?;
    let path = claim.path().to_owned();
    let report = claim.write(|output| filter.run(&reading, output))?;
    out::show(&report, &path, json!({}), as_json)
}
