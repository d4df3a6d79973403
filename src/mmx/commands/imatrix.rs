//! `mmx imatrix`: how much each column of each matrix matters on a text.

use std::path::PathBuf;

use mmx_converters::words::counted;
use serde_json::json;

use crate::error::{Error, Result};
use crate::format::{self, line};
use crate::talk::warning;
use mmx_models::imatrix::{Request, collect};

/// Collect a model's importance matrix on a text, for `mmx quantize`, `mmx export` and
/// llama-quantize
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The text should be like what the model is for. Experts that it never reaches are fed with all tokens once more, so
that each has an importance of its own.

Examples:
  mmx imatrix runs/sft --data poems.txt --out model-imatrix.gguf
  mmx imatrix model-f16.gguf --data wiki.txt --chunks 100 --out i.gguf
  mmx export runs/sft --gguf iq4_xs --imatrix model-imatrix.gguf")]
pub(crate) struct ImatrixArgs {
    /// A checkpoint or Transformers folder, a .gguf or a .pth
    model: PathBuf,
    /// The text to read
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Tokens of a piece of text
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = crate::args::values::at_least_two)]
    chunk: usize,
    /// Read only so many pieces
    #[arg(long, value_name = "N", value_parser = crate::args::values::at_least_one)]
    chunks: Option<usize>,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = crate::args::values::at_least_one)]
    threads: Option<usize>,
}

/// Runs the command.
///
/// # Errors
/// See [`collect`].
pub(crate) fn run(args: &ImatrixArgs, json: bool) -> Result<()> {
    if args.chunks == Some(0) {
        return Err(Error::usage("--chunks: expected at least 1, found 0"));
    }
    let begin = std::time::Instant::now();
    let cores = mmx_ggml::cpus().min(mmx_ggml::MAX_THREADS);
    let request = Request {
        model: args.model.clone(),
        data: args.data.clone(),
        out: args.out.clone(),
        chunk: args.chunk,
        chunks: args.chunks,
        threads: args.threads.unwrap_or(cores),
    };
    let bar = indicatif::ProgressBar::new(0); // drawn on a terminal only
    let (imatrix, bytes) = collect(&request, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let warnings = imatrix.warnings();
    warnings.iter().for_each(|warning| warning!("{warning}"));
    let seconds = begin.elapsed().as_secs_f64();
    if json {
        return format::print_json(&json!({
            "path": args.out.to_string_lossy(), "bytes": bytes, "entries": imatrix.entries.len(),
            "chunks": imatrix.chunk_count, "chunk_tokens": imatrix.chunk_size,
            "seconds": seconds, "warnings": warnings,
        }));
    }
    let mut text = String::new();
    line!(
        text,
        "{:>10}  {} on {} of {}  {seconds:>6.2} s  {}",
        format::bytes(bytes),
        format::matrices(imatrix.entries.len()),
        counted(imatrix.chunk_count as usize, "piece"),
        counted(imatrix.chunk_size as usize, "token"),
        args.out.display()
    );
    format::print(&text)
}
