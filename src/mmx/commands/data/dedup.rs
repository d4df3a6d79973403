//! `mmx data dedup`: exact and near duplicates, and records that are in evaluations; in one run, or
//! by shards.

use std::path::{Path, PathBuf};

use clap::Args;
use mmx_corpus::dedup::{Against, Clusters, Dedup, SORTED_BYTES, Settings, Signatures};
use mmx_corpus::dedup::{cluster, sign};
use serde_json::json;

use super::out::{self, HowArgs};
use crate::error::{Error, Result};
use crate::format;
use crate::talk::note;

/// Leave out duplicates, exact and near ones, and records that evaluation files hold
///
/// Of records that are alike the first stays. Near duplicates share one of --bands hashes of --rows
/// MinHashes of all sequences of --ngram words: with 14 bands of 8 rows half of all pairs of
/// similarity 0.69, and all but one in a thousand of 0.9.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx data dedup a.jsonl b.jsonl --out unique.jsonl
  mmx data dedup chats.jsonl --exact --against ceval/*.jsonl --out clean.jsonl
  mmx data dedup new.jsonl --reference old.jsonl --out only-new.jsonl

By shards, on many machines (docs/data-cleaning.md):
  mmx data dedup shard7.jsonl --sign shard7.sig
  mmx data dedup --merge all.dup shard*.sig
  mmx data dedup shard7.jsonl --clusters all.dup --out unique7.jsonl")]
pub(crate) struct DedupArgs {
    /// Files of records; with --merge files of signatures, in the order of the shards
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    how: HowArgs,
    /// Exact duplicates alone: the same text but for case and blanks
    #[arg(long)]
    exact: bool,
    /// Words of a sequence; a Chinese character is a word
    #[arg(long, value_name = "N", default_value_t = Settings::default().ngram)]
    ngram: usize,
    /// Bands, of which two near duplicates share one
    #[arg(long, value_name = "N", default_value_t = Settings::default().bands)]
    bands: usize,
    /// MinHashes in a band
    #[arg(long, value_name = "N", default_value_t = Settings::default().rows)]
    rows: usize,
    /// The seed of the hash functions; shards need the same one
    #[arg(long, value_name = "N", default_value_t = Settings::default().seed)]
    seed: u64,
    /// Evaluation files: records that share a sequence of words with one are left out
    #[arg(long, value_name = "FILE", num_args = 1..)]
    against: Vec<PathBuf>,
    /// Words of that sequence, at least 8
    #[arg(long, value_name = "N", default_value_t = 13)]
    overlap: usize,
    /// Files whose records are known already: what is in them is left out, they are not written
    #[arg(long, value_name = "FILE", num_args = 1..)]
    reference: Vec<PathBuf>,
    /// Write the signatures of a shard, and nothing else
    #[arg(long, value_name = "FILE", conflicts_with_all = ["out", "merge", "clusters", "against", "reference"])]
    sign: Option<PathBuf>,
    /// Write the clusters of shards, of whose signatures the files are
    #[arg(long, value_name = "FILE", conflicts_with_all = ["out", "clusters", "against", "reference", "field", "exact"])]
    merge: Option<PathBuf>,
    /// Write a shard's records by the clusters of all shards
    #[arg(long, value_name = "FILE", requires = "out", conflicts_with = "reference")]
    clusters: Option<PathBuf>,
    /// The file to write: .jsonl, packed with .gz or .zst behind it
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["sign", "merge"])]
    out: Option<PathBuf>,
    /// Replace a file that mmx did not write, or that was changed since
    #[arg(long)]
    overwrite: bool,
}

/// Runs it.
///
/// # Errors
/// Files that cannot be read, faulty records, an output that is not free, shards that do not fit.
pub(crate) fn run(args: &DedupArgs, as_json: bool) -> Result<()> {
    let settings = Settings {
        ngram: args.ngram,
        bands: if args.exact { 0 } else { args.bands },
        rows: args.rows,
        seed: args.seed,
    };
    settings.check()?;
    if let Some(path) = &args.merge {
        return merge(args, path, as_json);
    }
    let reading = args.how.reading(&args.files)?;
    if let Some(path) = &args.sign {
        let claim = out::claim(path, &reading.files, args.overwrite)?;
        let records = sign(&reading, settings, claim.path())?.records();
        claim.done()?;
        let said = json!({ "out": path.to_string_lossy(), "records": records });
        return match as_json {
            true => format::print_json(&said),
            false => {
                note!("{}: signatures of {records} records", path.display());
                Ok(())
            }
        };
    }
    let Some(path) = &args.out else { return Err(Error::usage("--out: expected a file")) };
    mmx_corpus::writing::check_lines(path)?;
    let against = match args.against.is_empty() {
        true => None,
        false => Some(Against::open(&mmx_hub::resolve_data(&args.against)?, args.overlap)?),
    };
    let reference = match args.reference.is_empty() {
        true => Vec::new(),
        false => mmx_hub::resolve_data(&args.reference)?,
    };
    let others = args.clusters.iter().chain(&args.against).chain(&reference);
    let inputs: Vec<PathBuf> = reading.files.iter().chain(others).cloned().collect();
    let claim = out::claim(path, &inputs, args.overwrite)?;
    let written = claim.path().to_owned();
    let dedup = Dedup { settings, against, reference };
    let clusters = args.clusters.as_deref().map(Clusters::open).transpose()?;
    let folder = written.parent().filter(|_| claim.is_file()).unwrap_or(Path::new("."));
    let report = claim.write(|output| match &clusters {
        Some(clusters) => dedup.write(&reading, clusters, output),
        None => dedup.run(&reading, folder, output),
    })?;
    out::show(&report, &written, json!({ "settings": settings }), as_json)
}

fn merge(args: &DedupArgs, path: &Path, as_json: bool) -> Result<()> {
    let signatures =
        args.files.iter().map(|file| Signatures::open(file)).collect::<Result<Vec<_>, _>>()?;
    let claim = out::claim(path, &args.files, args.overwrite)?;
    let clusters = cluster(&signatures, SORTED_BYTES)?;
    let (records, duplicates) = (clusters.len(), clusters.duplicates());
    claim.write_bytes(|out| clusters.write(out, path))?;
    let said = json!({
        "out": path.to_string_lossy(), "shards": signatures.len(), "records": records,
        "duplicates": duplicates,
    });
    if as_json {
        return format::print_json(&said);
    }
    note!("{}: {duplicates} of {records} records are duplicates", path.display());
    Ok(())
}
