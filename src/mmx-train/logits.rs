//! `mmx-train logits --serve`: the engine `native` of `mmx`. Requests come on stdin, answers go to
//! stdout, in the words of [`mmx_converters::wire`].

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::PathBuf;

use mmx_converters::{Model, wire};
use mmx_training::logits::Logits;

use crate::error::{Error, Result};

/// The arguments of `mmx-train logits`: the model, and how it is computed.
#[derive(clap::Args, Debug)]
pub(crate) struct LogitsArgs {
    /// A checkpoint or a Transformers folder
    model: PathBuf,
    /// Answer requests on stdin until it ends
    #[arg(long, required = true)]
    serve: bool,
    /// The model that adapters belong to
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// CPU threads
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Where to compute: auto, cpu, cuda, cuda:N or mps
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// What to compute in: f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = ["f32", "bf16"])]
    dtype: String,
}

/// Serves until stdin ends. What fails is told to the caller, not printed; a caller that has ended
/// needs no answer, and nobody is left to be told.
///
/// # Errors
/// The pipes fail in another way.
pub(crate) fn run(args: &LogitsArgs) -> Result<()> {
    match serve(args) {
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof) => {
            Ok(())
        }
        served => served.map_err(|e| Error::failed(format!("logits: {e}"))),
    }
}

fn serve(args: &LogitsArgs) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let model = match open(args) {
        Ok(model) => model,
        Err(error) => return wire::write_error(&mut out, &error),
    };
    wire::write_greeting(&mut out, model.vocab())?;
    let mut requests = io::stdin().lock();
    while let Some(ids) = wire::read_ids(&mut requests)? {
        match model.of(&ids) {
            Ok(logits) => wire::write_logits(&mut out, &logits),
            Err(error) => wire::write_error(&mut out, &error),
        }?;
    }
    out.flush()
}

fn open(args: &LogitsArgs) -> mmx_converters::Result<Logits> {
    let model = match &args.base {
        Some(base) => Model::open_adapters(&args.model, base, None)?,
        None => Model::open(&args.model)?,
    };
    Logits::open(&model, args.threads, &args.device, args.dtype == "bf16")
}
