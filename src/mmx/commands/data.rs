//! `mmx data`: what is wrong with a data file, and what a model would learn from it.

mod traces;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::words::counted;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::args::stages;
use crate::commands::tokenizer;
use crate::error::{Error, Result};
use crate::talk::warning;
use crate::terminal::Terminal;
use mmx_data::blocks::Blocks;
use mmx_data::preview::Preview;
use mmx_data::{
    Cache, Dataset, Fault, Fields, OnBad, Recipe, Record, SampleOptions, StageInfo, forms, jsonl,
};

/// Check training data, or show what is learned from it
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx data check --stage sft chats.jsonl
  mmx data check --stage pretrain --tokenizer tok --max-seq-len 512 text.jsonl
  mmx data show --stage sft --tokenizer tok chats.jsonl")]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Check(CheckArgs),
    Show(ShowArgs),
}

/// List every fault with file and line; with a tokenizer also lengths, what is cut off, what
/// packing gains
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx data check --stage sft chats.jsonl
  mmx data check --stage dpo --tokenizer tok --recipe 2025 --max-seq-len 1024 pairs.jsonl
  mmx data check --stage sft --field instruction=question --field output=answer qa.parquet

Exit code 1 when a line is faulty.")]
struct CheckArgs {
    #[command(flatten)]
    common: Common,
    /// A folder with tokenizer.json, a tokenizer.json, or a GGUF
    #[arg(long, value_name = "MODEL")]
    tokenizer: Option<PathBuf>,
    /// Parquet, CSV, JSON Lines or JSON arrays of records, text also packed with gzip or zstd; or
    /// hf:datasets/owner/name
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Print samples as the model reads them, what is learned in colour; of stages that learn from rewards
/// the prompts, or the rollouts of a file
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx data show --stage sft --tokenizer tok chats.jsonl
  mmx data show --stage dpo --tokenizer tok --line 7 pairs.jsonl

Without colours, what is learned stands between \u{27e6} and \u{27e7}.")]
struct ShowArgs {
    #[command(flatten)]
    common: Common,
    /// A folder with tokenizer.json, a tokenizer.json, or a GGUF
    #[arg(long, value_name = "MODEL")]
    tokenizer: PathBuf,
    /// Parquet, CSV, JSON Lines or a JSON array of records; text also packed with gzip or zstd
    file: PathBuf,
    /// Samples to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 3)]
    samples: usize,
    /// Only the sample of this line; of a JSON array or a table, the record of this number
    #[arg(long, value_name = "N")]
    line: Option<u32>,
    /// When to use colours
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: When,
}

#[derive(Args, Debug)]
struct Common {
    /// The stage the data is for
    #[arg(long, value_name = "STAGE", value_parser = stages::parser())]
    stage: &'static StageInfo,
    /// The reference whose conventions hold
    #[arg(long, value_name = "YEAR", default_value = "2026")]
    recipe: RecipeName,
    /// Tokens a sample is cut to; the stage's own default unless given
    #[arg(long, value_name = "N")]
    max_seq_len: Option<usize>,
    /// The files' key for one of the known names (text=content, output=answer.best); repeatable
    #[arg(long, value_name = "NAME=KEY")]
    field: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RecipeName {
    #[value(name = "2025")]
    R2025,
    #[value(name = "2026")]
    R2026,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

impl Common {
    fn options(&self) -> Result<SampleOptions> {
        let recipe = match self.recipe {
            RecipeName::R2025 => Recipe::R2025,
            RecipeName::R2026 => Recipe::R2026,
        };
        let max_seq_len = self.max_seq_len.unwrap_or(self.stage.max_seq_len);
        Ok(SampleOptions {
            on_bad: OnBad::Skip,
            fields: Fields::parse(&self.field)?,
            ..SampleOptions::new(recipe, self.stage.kind, max_seq_len)
        })
    }
}

/// Runs it.
///
/// # Errors
/// Unreadable files, a tokenizer that lacks what the stage needs; for `check` faulty lines.
pub(crate) fn run(args: DataArgs, as_json: bool) -> Result<()> {
    match args.command {
        Command::Check(args) => {
            let files = mmx_hub::resolve_data(&args.files)?;
            check(&CheckArgs { files, ..args }, as_json)
        }
        Command::Show(args) => {
            // of a data set elsewhere the first file
            let file = mmx_hub::resolve_data(std::slice::from_ref(&args.file))?.swap_remove(0);
            show(&ShowArgs { file, ..args }, as_json)
        }
    }
}

fn check(args: &CheckArgs, as_json: bool) -> Result<()> {
    let (faults, report, lines) = match &args.tokenizer {
        Some(path) => {
            let tokenizer = tokenizer::open(path)?;
            let options = args.common.options()?;
            let (data, faults) = Dataset::examine(
                &args.files,
                &tokenizer,
                &options,
                &Cache::user().heard_by(Arc::new(Terminal::default())),
            )?;
            for warning in &data.warnings {
                warning!("{warning}");
            }
            let (report, lines) = measure(&data, args.files.len() == 1);
            (faults, report, lines)
        }
        None => {
            let (records, empty, faults) = without_tokenizer(args)?;
            let mut lines = vec![counted(records, "record")];
            if let Some((path, first)) = empty.first() {
                lines.push(format!(
                    "{} with an empty answer or text, of which only the end is learned; the first: {}:{first}",
                    counted(empty.len(), "record"),
                    path.display()
                ));
            }
            lines.push("with --tokenizer: lengths, what is cut off, what packing gains".to_owned());
            let numbers: Vec<usize> = empty.iter().map(|(_, number)| *number).collect();
            (faults, json!({ "samples": records, "empty_answers": numbers }), lines)
        }
    };
    let report_is_empty = report["samples"] == 0;
    let (kind, fields) = (args.common.stage.kind, Fields::parse(&args.common.field)?);
    let look = |path: &PathBuf| Preview::of(path, kind, &fields, SHOWN);
    let previews = args.files.iter().map(look).collect::<Result<Vec<_>, _>>()?;
    if as_json {
        let mut report = report;
        report["faults"] = faults
            .iter()
            .map(|(path, f)| {
                let mut fault =
                    json!({ "file": path.to_string_lossy(), "line": f.line, "message": f.message, "hint": f.hint });
                if let Some(record) = f.record {
                    fault["record"] = record.into();
                }
                if f.line == 0 {
                    fault["line"] = Value::Null; // a file without lines
                }
                fault
            })
            .collect();
        report["files"] = previews.iter().map(preview_json).collect();
        println!("{report}");
    } else {
        for (path, fault) in &faults {
            let place = match fault.record {
                Some(_) if fault.line == 0 => format!(" {}", fault.place()),
                Some(record) => format!("{}: record {record}", fault.line),
                None => fault.line.to_string(),
            };
            println!("{}:{place}: {}", path.display(), fault.message);
            if let Some(hint) = &fault.hint {
                println!("    {hint}");
            }
        }
        for line in lines {
            println!("{line}");
        }
        for preview in &previews {
            println!("{}: {}", preview.path.display(), preview.in_words());
            for (number, record) in &preview.samples {
                println!("{number:>4}  {}", in_lines(record).join("\n      "));
            }
        }
    }
    match faults.len() {
        0 if report_is_empty => Err(nothing(&args.files)),
        0 => Ok(()),
        n => Err(Error::failed_with_hint(
            counted(
                n,
                if faults.iter().all(|(_, f)| f.record.is_none()) {
                    "faulty line"
                } else {
                    "faulty record"
                },
            ),
            "mend them, or train with `--on-bad skip`, which leaves them out",
        )),
    }
}

/// Records that `check` shows of each file.
const SHOWN: usize = 3;

fn preview_json(preview: &Preview) -> Value {
    let samples = preview.samples.iter().map(|(number, record)| {
        let content = match record {
            Record::Text(text) => json!({ "text": text }),
            Record::Chat(turns) => json!({ "conversations": turns }),
            Record::Preference { chosen, rejected } => {
                json!({ "chosen": chosen, "rejected": rejected })
            }
        };
        json!({ "number": number, "record": content })
    });
    let forms: Vec<Value> =
        preview.forms.iter().map(|form| json!({ "name": form.name, "keys": form.keys })).collect();
    json!({
        "path": preview.path.to_string_lossy(), "kind": preview.file, "forms": forms,
        "samples": samples.collect::<Vec<_>>(),
    })
}

/// A record as it was read, a line a turn, long ones shortened.
fn in_lines(record: &Record) -> Vec<String> {
    /// Characters of a line.
    const WIDTH: usize = 90;
    let short = |text: &str| {
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(WIDTH) {
            Some((end, _)) => format!("{}...", &line[..end]),
            None => line,
        }
    };
    let turns = |side: &str, turns: &[Value]| -> Vec<String> {
        let of_turn = |turn: &Value| {
            let word = |key: &str| turn[key].as_str().unwrap_or_default();
            short(&format!("{side}{}: {}", word("role"), word("content")))
        };
        turns.iter().map(of_turn).collect()
    };
    match record {
        Record::Text(text) => vec![short(text)],
        Record::Chat(chat) => turns("", chat),
        Record::Preference { chosen, rejected } => {
            [turns("chosen ", chosen), turns("rejected ", rejected)].concat()
        }
    }
}

/// Files without a single record are a fault too: an empty download, the wrong file.
fn nothing(files: &[PathBuf]) -> Error {
    let files: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    Error::failed(format!("{}: expected at least one record, found none", files.join(", ")))
}

/// Records, those with empty answers, and faults, by the lines alone.
#[expect(clippy::type_complexity, reason = "three plain results")]
fn without_tokenizer(
    args: &CheckArgs,
) -> Result<(usize, Vec<(PathBuf, usize)>, Vec<(PathBuf, Fault)>)> {
    let (mut records, mut empty, mut faults) = (0, Vec::new(), Vec::new());
    let (kind, fields) = (args.common.stage.kind, Fields::parse(&args.common.field)?);
    for path in &args.files {
        let mut blocks = Blocks::open_for(path, &fields)?;
        if let Some(columns) = blocks.columns() {
            forms::check_columns(path, columns, kind, &fields)?;
        }
        while let Some(block) = blocks.next_block()? {
            let lines = block.lines();
            let check = |line: &jsonl::Line<'_>| {
                let record = forms::parse(line, kind, &fields);
                record.map(|record| record.has_empty_answer().then(|| line.label()))
            };
            let found: Vec<std::result::Result<Option<usize>, Fault>> =
                lines.par_iter().map(check).collect();
            for outcome in found {
                match outcome {
                    Ok(of_empty) => {
                        records += 1;
                        empty.extend(of_empty.map(|number| (path.clone(), number)));
                    }
                    Err(fault) => faults.push((path.clone(), fault)),
                }
            }
        }
    }
    Ok((records, empty, faults))
}

/// Lengths, cuts and packing, as JSON and in words; `one`: of one file, which need not be named.
fn measure(data: &Dataset, one: bool) -> (Value, Vec<String>) {
    let mut lengths = data.full_lengths();
    lengths.sort_unstable();
    let at = |share: f64| {
        let last = lengths.len().saturating_sub(1);
        lengths.get((last as f64 * share).round() as usize).copied().unwrap_or(0)
    };
    let (shortest, median, p95, longest) = (at(0.0), at(0.5), at(0.95), at(1.0));
    let (tokens, learned) = (data.tokens() as usize, data.learned_tokens() as usize);
    let limit = data.options().max_seq_len;
    let cut = lengths.iter().filter(|&&n| n as usize > limit).count();
    let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
    let rows = data.pack(&data.order(0, 0, false)).len();
    let gain = data.len() as f64 / rows.max(1) as f64;
    let pairs = if data.is_pairs() { "pair" } else { "sample" };
    let report = json!({
        "samples": data.len(), "tokens": tokens, "learned_tokens": learned, "max_seq_len": limit,
        "lengths": { "min": shortest, "median": median, "p95": p95, "max": longest },
        "cut": cut, "cut_share": cut as f64 / lengths.len().max(1) as f64,
        "nothing_to_learn": data.nothing_to_learn.iter().map(|(_, line)| *line).collect::<Vec<_>>(),
        "empty_answers": data.empty_answers.iter().map(|(_, line)| *line).collect::<Vec<_>>(),
        "packed_rows": rows, "packing_gain": gain, "tools_left_out": data.tools_left_out,
        "samples_sha256": data.digest(),
    });
    let mut lines = vec![
        format!(
            "{}, {}, {learned} learned ({:.1} %)",
            counted(data.len(), pairs),
            counted(tokens, "token"),
            percent(learned, tokens)
        ),
        format!(
            "lengths: shortest {shortest}, median {median}, 95 % up to {p95}, longest {longest}"
        ),
        format!(
            "cut off at {limit}: {cut} of {} ({:.1} %)",
            lengths.len(),
            percent(cut, lengths.len())
        ),
        format!(
            "packing: {} become{} {rows} ({gain:.2} times fewer)",
            counted(data.len(), "row"),
            if data.len() == 1 { "s" } else { "" }
        ),
    ];
    if !data.nothing_to_learn.is_empty() {
        let places = data.nothing_to_learn.iter().map(|(path, line)| (path.as_path(), *line));
        lines.push(format!(
            "nothing to learn: {}, {}: raise --max-seq-len or leave them out",
            data.nothing_to_learn.len(),
            data.listed(places, one)
        ));
    }
    lines.extend(data.about_empty_answers(one));
    lines.extend(data.about_tools(one));
    (report, lines)
}

fn show(args: &ShowArgs, as_json: bool) -> Result<()> {
    let tokenizer = tokenizer::open(&args.tokenizer)?;
    let options = args.common.options()?;
    let colour = match args.color {
        When::Always => true,
        When::Never => false,
        When::Auto => std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    if mmx_data::stages::learns_from_rewards(args.common.stage.name) {
        let request = traces::Request {
            file: &args.file,
            tokenizer: &tokenizer,
            fields: options.fields,
            samples: args.samples,
            line: args.line,
            marked: &|ids, sampled| marked(&tokenizer, ids, sampled, colour),
        };
        return traces::show(&request, as_json);
    }
    let files = std::slice::from_ref(&args.file);
    let (data, faults) = Dataset::examine(
        files,
        &tokenizer,
        &options,
        &Cache::user().heard_by(Arc::new(Terminal::default())),
    )?;
    let unit = data.unit(&args.file);
    if let Some(line) = args.line {
        let at = |fault: &Fault| fault.record.unwrap_or(fault.line) == line as usize;
        if let Some((path, fault)) = faults.iter().find(|(_, fault)| at(fault)) {
            return Err(Error::failed(format!(
                "{}: {}: {}",
                path.display(),
                fault.place(),
                fault.message
            )));
        }
        if !data.samples().any(|s| s.line == line) {
            return Err(Error::failed(format!(
                "{}: {unit} {line}: expected a sample, found none",
                args.file.display()
            )));
        }
    }
    if data.is_empty() {
        return Err(match faults.first() {
            Some((path, fault)) => Error::failed_with_hint(
                format!("{}: {}: {}", path.display(), fault.place(), fault.message),
                "`mmx data check` lists every fault",
            ),
            None => nothing(files),
        });
    }
    let chosen = (0..data.len())
        .filter(|&i| args.line.is_none_or(|line| data.sample(i).line == line))
        .take(args.samples);
    let mut all = Vec::new();
    for index in chosen {
        let sides = [Some((data.sample(index), "")), data.rejected(index).map(|r| (r, "rejected"))];
        for (sample, side) in sides.into_iter().flatten() {
            let side = if !data.is_pairs() || !side.is_empty() { side } else { "chosen" };
            let mask: Vec<bool> =
                (0..sample.ids.len()).map(|i| i > 0 && sample.is_learned(i)).collect();
            if as_json {
                let pieces: Vec<String> =
                    sample.ids.iter().map(|&id| tokenizer::piece(&tokenizer, id)).collect();
                all.push(json!({
                    "line": sample.line, "side": side, "ids": sample.ids, "learned": mask,
                    "pieces": pieces, "length": sample.full_len,
                }));
                continue;
            }
            let learned = mask.iter().filter(|&&m| m).count();
            let name = if side.is_empty() { String::new() } else { format!(", {side}") };
            println!(
                "{unit} {}{name}: {}{}, {learned} learned",
                sample.line,
                counted(sample.ids.len(), "token"),
                if sample.full_len as usize > sample.ids.len() {
                    format!(" (cut from {})", sample.full_len)
                } else {
                    String::new()
                }
            );
            println!("{}\n", marked(&tokenizer, &sample.ids, &mask, colour));
        }
    }
    if as_json {
        println!("{}", json!({ "samples": all }));
    }
    Ok(())
}

/// The text with what is learned in green (or between brackets).
fn marked(tokenizer: &Tokenizer, ids: &[u32], mask: &[bool], colour: bool) -> String {
    let (open, close) = if colour { ("\x1b[32m", "\x1b[0m") } else { ("\u{27e6}", "\u{27e7}") };
    let mut out = String::new();
    let mut from = 0;
    while from < ids.len() {
        let learned = mask[from];
        let length = mask[from..].iter().take_while(|&&m| m == learned).count();
        let text = tokenizer.decode(&ids[from..from + length], false);
        if learned {
            out.push_str(open);
            out.push_str(&text);
            out.push_str(close);
        } else {
            out.push_str(&text);
        }
        from += length;
    }
    out
}
