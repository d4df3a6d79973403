//! `mmx export`: flags to an [`export::Request`], its report to the terminal.

use std::path::PathBuf;

use mmx_converters::tensor::Dtype;
use mmx_ggml::FileType;

use super::format::{self, line};
use crate::error::Result;
use crate::export::{self, Report, Request};

/// Element types on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum FloatType {
    /// float32: every checkpoint exactly
    F32,
    /// float16
    F16,
    /// bfloat16
    Bf16,
}

impl From<FloatType> for Dtype {
    fn from(ty: FloatType) -> Self {
        match ty {
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::Bf16 => Self::Bf16,
        }
    }
}

/// Write a model as Transformers folders, GGUFs and for Ollama
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Files: OUT/hf-DTYPE/ (config.json, generation_config.json, model.safetensors, tokenizer files),
OUT/NAME-SIZE-TYPE.gguf, OUT/NAME-SIZE.pth, OUT/Modelfile (for the first GGUF; Modelfile-TYPE for further ones). OUT is MODEL/export unless --out says otherwise. The same model gives the
same bytes. Without any target: --hf in the model's own element type and --gguf q8_0.

Examples:
  mmx export runs/first --hf bf16 --gguf q8_0 --gguf q4_0
  mmx export runs/first --gguf q4_k_m --ollama && ollama create first -f runs/first/export/Modelfile
  mmx export --gguf f16                          the newest checkpoint under runs/
  mmx export model.gguf --hf f32 --out back      a GGUF to a Transformers folder")]
pub struct ExportArgs {
    /// A checkpoint or Transformers folder, a .gguf or a .pth; the newest checkpoint under runs/ if absent
    model: Option<PathBuf>,
    /// Where the files go [default: MODEL/export]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder of tokenizer.json, if it is not beside the weights
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// A Transformers folder with weights of this type; may be repeated
    #[arg(long, value_name = "DTYPE", value_enum)]
    hf: Vec<FloatType>,
    /// A GGUF of this type (f32, f16, bf16, q8_0, q4_0, q4_k_m, ...); may be repeated
    #[arg(long, value_name = "TYPE")]
    gguf: Vec<FileType>,
    /// Write a torch checkpoint under MiniMind's own names, in the model's own element type
    #[arg(long)]
    pth: bool,
    /// Write a Modelfile for Ollama beside the GGUFs (of type q8_0 if none is asked for)
    #[arg(long)]
    ollama: bool,
    /// Put a Go template into it, for versions of Ollama that do not render the GGUF's own
    #[arg(long, requires = "ollama")]
    ollama_template: bool,
    /// Put a default system prompt into it
    #[arg(long, value_name = "TEXT", requires = "ollama")]
    system: Option<String>,
    /// Make a tensor that cannot have the type asked for an error
    #[arg(long)]
    strict: bool,
    /// The model's name in file names and keys [default: its folder's name]
    #[arg(long)]
    name: Option<String>,
    /// The weights' licence, by its SPDX name (apache-2.0, mit, ...)
    #[arg(long, value_name = "SPDX")]
    license: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// See [`export::export`].
pub(super) fn run(args: ExportArgs, json: bool) -> Result<()> {
    let model = match args.model {
        Some(path) => path,
        None => {
            let path = export::newest_checkpoint(std::path::Path::new("runs"))?;
            eprintln!("model: {} (the newest checkpoint under runs/)", path.display());
            path
        }
    };
    let mut request = Request {
        model: Some(model),
        out: args.out,
        tokenizer: args.tokenizer,
        hf: args.hf.into_iter().map(Dtype::from).collect(),
        gguf: args.gguf,
        everything: false,
        pth: args.pth,
        ollama: args
            .ollama
            .then_some(export::Ollama { template: args.ollama_template, system: args.system }),
        strict: args.strict,
        name: args.name,
        license: args.license,
    };
    unique(&mut request.hf);
    unique(&mut request.gguf);
    request.everything = !request.pth
        && request.hf.is_empty()
        && request.gguf.is_empty()
        && request.ollama.is_none();
    let report = export::export(&request)?;
    report.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    if json {
        return format::print_json(&report);
    }
    format::print(&text(&report))
}

/// Drops repetitions, keeps the order.
fn unique<T: PartialEq + Copy>(list: &mut Vec<T>) {
    let mut seen = Vec::new();
    list.retain(|item| {
        let new = !seen.contains(item);
        seen.push(*item);
        new
    });
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for file in &report.files {
        line!(
            text,
            "{:>10}  {:<6}  {:>6.2} s  {}",
            format::bytes(file.bytes),
            file.ty,
            file.seconds,
            file.path.display()
        );
    }
    for file in &report.files {
        let here: Vec<_> = report.fallbacks.iter().filter(|f| f.path == file.path).collect();
        if here.is_empty() {
            continue;
        }
        let tensors = if here.len() == 1 { "tensor" } else { "tensors" };
        line!(text, "");
        line!(text, "fallbacks: {} {tensors} of {}", here.len(), file.path.display());
        here.iter().for_each(|found| line!(text, "  {}", found.fallback));
    }
    text
}
