//! `mmx tokenizer eval`: tokenizers side by side on the same texts.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use mmx_converters::tokenizer::Tokenizer;
use mmx_corpus::Reading;
use mmx_corpus::tokens::{Measured, measure};
use mmx_data::Fields;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::format::{self, line};

/// Compare tokenizers on texts: characters and bytes per token by language, unused entries
///
/// Also the longest pieces of each vocabulary, and whether every text comes back as it was.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx tokenizer eval tok --data held-out.jsonl
  mmx tokenizer eval tok hf:Qwen/Qwen3-0.6B model.gguf --data zh.jsonl en.jsonl --json")]
pub(crate) struct EvalArgs {
    /// Folders with tokenizer.json, tokenizer.json files, or GGUFs
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<PathBuf>,
    /// Files of records: JSON Lines, JSON arrays, Parquet, CSV
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// The data's key for one of the known names, such as text=content; repeatable
    #[arg(long, value_name = "NAME=KEY")]
    field: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// Files that cannot be read, faulty records.
pub(crate) fn run(args: &EvalArgs, tokenizers: &[Tokenizer], as_json: bool) -> Result<()> {
    let files = mmx_hub::resolve_data(&args.data)?;
    let reading = Reading { fields: Fields::parse(&args.field)?, ..Reading::of(&files) };
    let measured =
        tokenizers.iter().map(|t| measure(&reading, t)).collect::<Result<Vec<_>, _>>()?;
    if as_json {
        let rows =
            measured.iter().zip(&args.models).map(|(measured, path)| in_json(measured, path));
        return format::print_json(&json!({ "tokenizers": rows.collect::<Result<Vec<_>>>()? }));
    }
    let names: Vec<String> = args.models.iter().map(|path| path.display().to_string()).collect();
    let widths: Vec<usize> = names.iter().map(|name| name.chars().count().max(13)).collect();
    let mut text = String::new();
    let row = |head: &str, cells: Vec<String>| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("  {cell:>width$}"));
        format!("{head:<24}{}", cells.collect::<String>())
    };
    let each = |of: &dyn Fn(&Measured) -> String| measured.iter().map(of).collect::<Vec<_>>();
    line!(text, "{}", row("", names.clone()));
    line!(text, "{}", row("entries", each(&|m| m.vocab_size.to_string())));
    line!(text, "{}", row("tokens", each(&|m| m.all.tokens.to_string())));
    line!(text, "{}", row("bytes per token", each(&|m| format!("{:.3}", m.all.bytes_per_token()))));
    let per = each(&|m| format!("{:.3}", m.all.characters_per_token()));
    line!(text, "{}", row("characters per token", per));
    let codes: BTreeSet<&String> = measured.iter().flat_map(|m| m.languages.keys()).collect();
    for code in codes {
        let of = |m: &Measured| match m.languages.get(code) {
            Some(size) => format!("{:.3}", size.characters_per_token()),
            None => "-".to_owned(),
        };
        line!(text, "{}", row(&format!("  in {code}"), each(&of)));
    }
    line!(text, "{}", row("unused entries", each(&|m| m.unused.to_string())));
    line!(text, "{}", row("texts not come back", each(&|m| m.lost.to_string())));
    for (measured, name) in measured.iter().zip(&names) {
        let pieces: Vec<String> =
            measured.longest.iter().map(|piece| format!("{piece:?}")).collect();
        line!(text, "longest of {name}: {}", pieces.join(" "));
        if let Some(first) = &measured.first_lost {
            line!(text, "{name}: the first text that did not come back: {first}");
        }
    }
    format::print(&text)
}

fn in_json(measured: &Measured, path: &std::path::Path) -> Result<Value> {
    let mut value = serde_json::to_value(measured)
        .map_err(|e| Error::failed(format!("the table as JSON: {e}")))?;
    value["path"] = path.to_string_lossy().into();
    value["bytes_per_token"] = measured.all.bytes_per_token().into();
    value["characters_per_token"] = measured.all.characters_per_token().into();
    Ok(value)
}
