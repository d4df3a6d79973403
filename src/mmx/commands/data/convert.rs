//! `mmx data convert`: any form that mmx reads to JSON Lines or Parquet.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mmx_corpus::convert::{Conversion, Form};
use mmx_data::StageInfo;
use serde_json::json;

use super::out::{self, HowArgs};
use crate::args::stages;
use crate::error::{Error, Result};
use crate::talk::warning;

/// Write records in another form: JSON Lines of a stage, also packed, or Parquet
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx data convert chats.parquet --stage sft --out chats.jsonl
  mmx data convert qa.csv --stage sft --field instruction=question --field output=answer --out qa.parquet
  mmx data convert pairs.jsonl --stage dpo --as sft --form messages --out chosen.jsonl.gz")]
pub(crate) struct ConvertArgs {
    /// Parquet, CSV, JSON Lines or JSON arrays of records, text also packed with gzip or zstd; or
    /// hf:datasets/owner/name
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    how: HowArgs,
    /// The stage the files are for
    #[arg(long, value_name = "STAGE", value_parser = stages::parser())]
    stage: &'static StageInfo,
    /// The stage to write for: of chats their text (pretrain), of preferences the better answer (sft)
    #[arg(long = "as", value_name = "STAGE", value_parser = stages::parser())]
    target: Option<&'static StageInfo>,
    /// The form of chats
    #[arg(long, value_name = "FORM", default_value = "own")]
    form: FormName,
    /// The file to write: .parquet, or .jsonl, packed with .gz or .zst behind it
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Replace a file that mmx did not write, or that was changed since
    #[arg(long)]
    overwrite: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormName {
    /// conversations: role and content
    Own,
    /// messages: role and content, tools beside them
    Messages,
    /// conversations: from and value
    Sharegpt,
    /// instruction and output, system, history
    Alpaca,
}

/// Runs it.
///
/// # Errors
/// Files that cannot be read, faulty records, an output that is not free.
pub(crate) fn run(args: &ConvertArgs, as_json: bool) -> Result<()> {
    let form = match args.form {
        FormName::Own => Form::Own,
        FormName::Messages => Form::Messages,
        FormName::Sharegpt => Form::ShareGpt,
        FormName::Alpaca => Form::Alpaca,
    };
    let to = args.target.unwrap_or(args.stage).kind;
    let conversion = Conversion { from: args.stage.kind, to, form };
    conversion.check()?;
    if !args.out.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet")) {
        mmx_corpus::writing::check_lines(&args.out)?;
    }
    let reading = args.how.reading(&args.files)?;
    let claim = out::claim(&args.out, &reading.files, args.overwrite)?;
    let path = claim.path().to_owned();
    let mut report = None;
    claim.write_bytes(|out| {
        report = Some(conversion.run(&reading, &path, out)?);
        Ok(())
    })?;
    let report = report.ok_or_else(|| Error::failed("expected the records to be written"))?;
    report.warnings.iter().for_each(|warning| warning!("{warning}"));
    out::show(&report, &path, json!({}), as_json)
}
