//! `mmx logits`: raw logits of given ids, as a safetensors file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use mmx_converters::safetensors::{self, TensorSpec};
use mmx_converters::tensor::{self, Dtype};
use serde_json::json;

use crate::args::kinds;
use crate::error::{Error, Result};
use crate::talk::warning;
use mmx_models::engines::{self, Kind};
use mmx_models::open::Form;

/// Write the float32 logits of given ids to a safetensors file
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx logits runs/sft --ids ids.json --out logits.safetensors
  mmx logits model.gguf --ids forward.safetensors --out logits.safetensors --engine llama.cpp

The file holds one tensor, `logits`: [seq, vocab] for one list of ids, [batch, seq, vocab] for a two-dimensional one.")]
pub(crate) struct LogitsArgs {
    /// A checkpoint, a Transformers folder or a GGUF
    model: PathBuf,
    /// A JSON array of ids (or of equally long arrays), or a safetensors file's `input_ids`
    #[arg(long, value_name = "FILE")]
    ids: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The engine; the most faithful one that opens the model unless given
    #[arg(long, value_name = "ENGINE")]
    engine: Option<kinds::Engine>,
    /// Where the engine native computes: auto, cpu, cuda, cuda:N or mps
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// What the engine native computes in: f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = ["f32", "bf16"])]
    dtype: String,
    /// Threads of the CPU engines
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::args::values::at_least_one)]
    threads: usize,
}

/// Runs it.
///
/// # Errors
/// An output that is an input, unreadable ids or model, ids beyond the vocabulary, sequences of
/// different lengths, an unwritable file.
pub(crate) fn run(args: LogitsArgs, as_json: bool) -> Result<()> {
    let ids = crate::args::ids::read(&args.ids)?;
    if ids.rows.len() > 1 && !ids.two_dimensional {
        return Err(Error::failed(format!(
            "{}: expected sequences of one length, found {} and others",
            args.ids.display(),
            ids.rows[0].len()
        )));
    }
    let form = Form::open(&args.model)?.for_ids();
    form.model.warnings.iter().for_each(|warning| warning!("{warning}"));
    mmx_converters::file::refuse_input(&args.out, [form.path(), &args.ids])?;
    let kind = args.engine.map_or_else(|| form.engines()[0], Kind::from);
    let plain = args.device == "cpu" && args.dtype == "f32";
    let mut engine = match (kind, plain) {
        (_, true) => engines::open(kind, &form, args.threads)?,
        (Kind::Native, false) => {
            engines::open_native(&form, args.threads, &args.device, args.dtype == "bf16")?
        }
        _ => {
            return Err(Error::usage(
                "--device and --dtype: expected --engine native beside them, found another engine",
            ));
        }
    };
    if let Some(id) = ids.rows.iter().flatten().find(|&&id| id as usize >= engine.vocab()) {
        return Err(Error::failed(format!(
            "{}: expected ids below {} (the vocabulary of {}), found {id}",
            args.ids.display(),
            engine.vocab(),
            args.model.display()
        )));
    }
    let mut logits = Vec::new();
    for row in &ids.rows {
        logits.extend(engine.logits(row)?);
    }
    let mut shape = vec![ids.rows[0].len(), engine.vocab()];
    if ids.two_dimensional {
        shape.insert(0, ids.rows.len());
    }
    let spec = TensorSpec { name: "logits".to_owned(), dtype: Dtype::F32, shape: shape.clone() };
    safetensors::write(&args.out, &[spec], &BTreeMap::new(), |_| {
        Ok(tensor::encode_f32(&logits, Dtype::F32).into())
    })?;
    if as_json {
        println!("{}", json!({"path": args.out, "engine": kind.name(), "shape": shape}));
    } else {
        println!("{}: logits {shape:?} with {}", args.out.display(), kind.name());
    }
    Ok(())
}
