//! `mmx data mix`: files put together by weight or budget, shuffled as a whole.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use mmx_converters::digest;
use mmx_corpus::mix::{Mix, Share, Unit};

use super::out::{self, HowArgs};
use crate::commands::tokenizer;
use crate::error::{Error, Result};
use crate::format;
use crate::talk::note;

/// Put files together by weight or budget, repeated where they are too small, and shuffle them
///
/// FILE alone is taken once. FILE=x2.5 is taken two and a half times, FILE=3 with the weight 3,
/// FILE=50M with a budget of 50 million (K, M, G) records, characters or tokens. A manifest beside
/// the output (OUT.manifest.json) says what was taken of which file, with digests.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx data mix web.jsonl books.jsonl --out pretrain.jsonl
  mmx data mix zh.jsonl=7 en.jsonl=3 --tokenizer tok --total 2G --out mixed.jsonl
  mmx data mix chats.jsonl=x1 tools.jsonl=x3 --seed 42 --out sft.jsonl
  mmx data mix web*.jsonl --part 2/8 --out part2.jsonl

The parts 1/N to N/N, one behind the other, are the mixture of one run.")]
pub(crate) struct MixArgs {
    /// Files of records, each with its share
    #[arg(required = true, value_name = "FILE[=SHARE]")]
    files: Vec<String>,
    #[command(flatten)]
    how: HowArgs,
    /// What weights and budgets count; tokens where there is a tokenizer, else records
    #[arg(long, value_name = "UNIT")]
    unit: Option<UnitName>,
    /// Counts tokens
    #[arg(long, value_name = "MODEL")]
    tokenizer: Option<PathBuf>,
    /// The size of a mixture by weights, such as 2G; all files' own together unless given
    #[arg(long, value_name = "N", value_parser = amount)]
    total: Option<u64>,
    /// off: file after file, pass after pass
    #[arg(long, value_name = "on|off", default_value = "on")]
    shuffle: Switch,
    /// The seed of the order and of what is repeated
    #[arg(long, value_name = "N", default_value_t = 1337)]
    seed: u64,
    /// Make one part of N alone
    #[arg(long, value_name = "I/N", value_parser = part, default_value = "1/1")]
    part: (u64, u64),
    /// Memory for sorting, MiB; what is more lies on disk beside the output meanwhile
    #[arg(long, value_name = "MIB", default_value_t = Mix::MEMORY_BYTES >> 20, value_parser = clap::value_parser!(u64).range(1..1 << 30))]
    memory: u64,
    /// The file to write: .jsonl, packed with .gz or .zst behind it
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Replace a file that mmx did not write, or that was changed since
    #[arg(long)]
    overwrite: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UnitName {
    Records,
    Characters,
    Tokens,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// A number, perhaps of thousands (K), millions (M) or billions (G).
pub(super) fn amount(text: &str) -> std::result::Result<u64, String> {
    let (number, factor) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1e3),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1e6),
        Some(b'G' | b'g' | b'B' | b'b') => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    let value = number.parse::<f64>().ok().map(|number| number * factor);
    let value = value.filter(|value| (1.0..1e18).contains(value));
    value.map(|value| value.round() as u64).ok_or_else(|| {
        format!("expected a number of at least 1 such as 500K, 20M or 2G, found {text}")
    })
}

/// `2/8` to the part, from 0, and the number of parts.
fn part(text: &str) -> std::result::Result<(u64, u64), String> {
    let numbers = text
        .split_once('/')
        .and_then(|(i, n)| Some((i.parse::<u64>().ok()?, n.parse::<u64>().ok()?)));
    match numbers {
        Some((i, n)) if 1 <= i && i <= n => Ok((i - 1, n)),
        _ => Err(format!("expected a part such as 2/8, found {text}")),
    }
}

/// A file and its share; a file whose name holds the sign itself is taken as it is.
fn source(given: &str) -> Result<(PathBuf, Share)> {
    let once = || Ok((PathBuf::from(given), Share::Passes(1.0)));
    let Some((file, share)) = given.rsplit_once('=').filter(|_| !Path::new(given).exists()) else {
        return once();
    };
    let misuse = || {
        Error::usage(format!(
            "{given}: expected a share such as =3 (a weight), =50M (a budget) or =x2 (passes), found {share:?}"
        ))
    };
    let share = match share.strip_prefix(['x', 'X']) {
        Some(passes) => Share::Passes(passes.parse().map_err(|_| misuse())?),
        None if share.ends_with(|c: char| c.is_ascii_alphabetic()) => {
            Share::Budget(amount(share).map_err(|_| misuse())?)
        }
        None => Share::Weight(share.parse().map_err(|_| misuse())?),
    };
    Ok((file.into(), share))
}

/// Runs it.
///
/// # Errors
/// Files that cannot be read, faulty records, an output that is not free.
pub(crate) fn run(args: &MixArgs, as_json: bool) -> Result<()> {
    let mut sources = Vec::new();
    for (path, share) in args.files.iter().map(|given| source(given)).collect::<Result<Vec<_>>>()? {
        let files = mmx_hub::resolve_data(&[path])?;
        // shards of one data set have its passes; a weight or budget is one file's
        if files.len() > 1 && !matches!(share, Share::Passes(_)) {
            return Err(Error::usage(format!(
                "{}: expected one file for a weight or a budget, found {}",
                files[0].display(),
                files.len()
            )));
        }
        sources.extend(files.into_iter().map(|file| (file, share)));
    }
    let tokenizer = args.tokenizer.as_deref().map(tokenizer::open).transpose()?;
    let unit = match args.unit {
        Some(UnitName::Records) => Unit::Records,
        Some(UnitName::Characters) => Unit::Characters,
        Some(UnitName::Tokens) => Unit::Tokens,
        None if tokenizer.is_some() => Unit::Tokens,
        None => Unit::Records,
    };
    let mix = Mix {
        sources,
        unit,
        total: args.total,
        shuffle: args.shuffle == Switch::On,
        seed: args.seed,
        part: args.part,
        memory_bytes: args.memory << 20,
    };
    mix.check()?;
    mmx_corpus::writing::check_lines(&args.out)?;
    let files: Vec<PathBuf> = mix.sources.iter().map(|(path, _)| path.clone()).collect();
    let reading = args.how.reading(&[])?;
    let claim = out::claim(&args.out, &files, args.overwrite)?;
    let path = claim.path().to_owned();
    let manifest = PathBuf::from(format!("{}.manifest.json", path.display()));
    let beside = match claim.is_file() {
        true => Some(out::claim(&manifest, &files, args.overwrite)?),
        false => None,
    };
    let folder = path.parent().filter(|_| claim.is_file()).unwrap_or(Path::new("."));
    let mixed = claim.write(|output| mix.run(&reading, tokenizer.as_ref(), folder, output))?;
    let mut report = serde_json::to_value(&mixed)
        .map_err(|e| Error::failed(format!("the manifest as JSON: {e}")))?;
    report["format"] = 1.into();
    if let Some(beside) = beside {
        report["sha256"] = digest::of_file(&path).map_err(|e| Error::io(&path, e))?.into();
        let text = serde_json::to_string_pretty(&report).unwrap_or_default() + "\n";
        beside.reopened()?.write_bytes(|out| {
            out.write_all(text.as_bytes()).map_err(|e| mmx_converters::Error::io(&manifest, e))
        })?;
    }
    report["out"] = path.to_string_lossy().into();
    if as_json {
        return format::print_json(&report);
    }
    let of = |size: u64| match unit {
        Unit::Records => String::new(),
        Unit::Characters => format!(", {} characters", format::count(size as usize)),
        Unit::Tokens => format!(", {} tokens", format::count(size as usize)),
    };
    note!("{}: {} records{}", path.display(), mixed.records, of(mixed.size));
    for taken in &mixed.sources {
        let (records, passes) = (taken.records_taken, taken.passes);
        note!(
            "{records:>10}  of {}, {passes:.3} passes{}",
            taken.path.display(),
            of(taken.size_taken)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_told_by_their_form() {
        for (given, file, share) in [
            ("a.jsonl", "a.jsonl", Share::Passes(1.0)),
            ("a.jsonl=x2.5", "a.jsonl", Share::Passes(2.5)),
            ("a.jsonl=0.7", "a.jsonl", Share::Weight(0.7)),
            ("b=c.jsonl=50M", "b=c.jsonl", Share::Budget(50_000_000)),
            ("a.jsonl=1.5G", "a.jsonl", Share::Budget(1_500_000_000)),
        ] {
            assert_eq!(source(given).unwrap(), (file.into(), share));
        }
        for bad in ["a=b", "a.jsonl=", "a=x", "a=0M"] {
            assert_eq!(source(bad).unwrap_err().code(), 2, "{bad}");
        }
        assert_eq!(part("2/8"), Ok((1, 8)));
        assert!(part("0/8").is_err() && part("9/8").is_err() && amount("0").is_err());
    }
}
