//! `mmx quantize`: a GGUF to a smaller one.

use std::path::PathBuf;

use mmx_ggml::FileType;

use crate::error::Result;
use crate::format::{self, line};
use crate::talk::warning;
use mmx_models::quantize::{Request, quantize};

/// Turn a GGUF into one of another type, byte for byte as llama-quantize
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  mmx quantize model-f16.gguf model-q4_k_m.gguf q4_k_m
  mmx quantize model-f32.gguf model-iq4_xs.gguf iq4_xs --imatrix model-imatrix.gguf
  mmx quantize model-f16.gguf model-q4_k_m.gguf q4_k_m --strict")]
pub(crate) struct QuantizeArgs {
    /// The GGUF to read (f32, f16 or bf16)
    input: PathBuf,
    /// The GGUF to write
    output: PathBuf,
    /// The type of the GGUF written (q8_0, q4_0, q4_k_m, iq4_xs, ...)
    #[arg(value_name = "TYPE")]
    ty: FileType,
    /// An importance matrix (of `mmx imatrix` or llama-imatrix)
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Take a quantized GGUF too: its values are rounded once more
    #[arg(long)]
    allow_requantize: bool,
    /// Make a tensor that cannot have the type asked for an error
    #[arg(long)]
    strict: bool,
    /// Write several files of at most this size, named after OUTPUT: NAME-00001-of-0000N.gguf
    #[arg(long, value_name = "SIZE", value_parser = super::export::size)]
    split_size: Option<u64>,
    /// Take NaN and infinities among unquantized values as they are
    #[arg(long)]
    allow_non_finite: bool,
}

/// Runs the command.
///
/// # Errors
/// See [`quantize`].
pub(crate) fn run(args: &QuantizeArgs, json: bool) -> Result<()> {
    let report = quantize(&Request {
        input: mmx_hub::resolve(&args.input)?,
        output: args.output.clone(),
        file: args.ty,
        imatrix: args.imatrix.clone(),
        requantize: args.allow_requantize,
        strict: args.strict,
        split_bytes: args.split_size,
        allow_non_finite: args.allow_non_finite,
    })?;
    report.warnings.iter().for_each(|warning| warning!("{warning}"));
    if json {
        return format::print_json(&report);
    }
    let mut text = String::new();
    line!(
        text,
        "{:>10}  {:<6}  {:>6.2} s  {}",
        format::bytes(report.bytes),
        report.ty,
        report.seconds,
        report.path.display()
    );
    if report.files.len() > 1 {
        for (path, bytes) in &report.files {
            line!(text, "{:>10}  {}", format::bytes(*bytes), path.display());
        }
    }
    report.fallbacks.iter().for_each(|fallback| line!(text, "  {fallback}"));
    format::print(&text)
}
