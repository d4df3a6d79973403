//! `mmx export`: flags to an [`export::Request`], its report to the terminal.

use std::path::{Path, PathBuf};

use clap::Args as _;
use mmx_converters::arch::Stretch;
use mmx_converters::tensor::Dtype;
use mmx_converters::words::counted;
use mmx_ggml::FileType;

use crate::args::kinds;
use crate::error::{self, Error, Result};
use crate::format::{self, line};
use crate::talk::{note, warning};
use mmx_converters::model::run_folder;
use mmx_models::consumers::check;
use mmx_models::export::{self, AdapterForm, Report, Request, auto, card};

/// Element types on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FloatType {
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

/// A type of a GGUF on the command line.
#[derive(Clone, Copy, Debug, PartialEq)]
enum GgufType {
    Type(FileType),
    /// A type chosen tensor by tensor.
    Auto,
}

impl std::str::FromStr for GgufType {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        let known = FileType::ALL.iter().map(FileType::to_string).collect::<Vec<_>>().join(", ");
        let found = text.parse().map(Self::Type);
        found.map_err(|_| format!("expected auto or one of {known}"))
    }
}

/// A size: `500000`, `200MB`, `1.5GB`, `64MiB`.
pub(crate) fn size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => f64::NAN,
    };
    let bytes = digits.trim().parse::<f64>().unwrap_or(f64::NAN) * unit;
    match bytes.is_finite() && (1.0..1e18).contains(&bytes) {
        true => Ok(bytes as u64),
        false => Err(format!("expected a size like 200MB or 1GiB, found {text}")),
    }
}

/// Write a model as Transformers folders, GGUFs and for Ollama
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Files: OUT/hf-DTYPE/ (config.json, generation_config.json, model.safetensors, tokenizer files), OUT/NAME-SIZE-TYPE.gguf,
OUT/NAME-SIZE.pth, OUT/Modelfile (for the first GGUF; Modelfile-TYPE for further ones), OUT/adapter-peft/,
OUT/NAME-lora.gguf; a model card (README.md) in each Transformers folder and beside the GGUFs. OUT is MODEL/export
(without MODEL the newest run's) unless --out says otherwise. The same model gives the same bytes. Without any target:
--hf in the model's own element type and --gguf q8_0. OUT/.mmx-files.json says which files mmx wrote: those are
replaced by the next export; others, and those changed since, only with --overwrite.

--gguf auto measures how far the logits move when each matrix is rounded, and writes the smallest file within --max-kl
(or the best within --target-size); the files tried are printed and drawn in OUT/NAME-frontier.svg.

Examples:
  mmx export runs/first --hf bf16 --gguf q8_0 --gguf q4_0
  mmx export runs/first --gguf q4_k_m --ollama && ollama create first -f runs/first/export/Modelfile
  mmx export --gguf f16   # the newest checkpoint under runs/
  mmx export runs/first --gguf auto --max-kl 0.01 --text poems.txt
  mmx export runs/lora --adapter peft --hf bf16   # adapters alone, and merged
  mmx export model.gguf --hf f32 --out back   # a GGUF to a Transformers folder
  mmx export runs/first --hf bf16 --card checks.json   # with a table of `mmx verify --consumers --json`")]
pub(crate) struct ExportArgs {
    /// A checkpoint or Transformers folder, a .gguf or a .pth; the newest checkpoint under runs/ if
    /// absent
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
    gguf: Vec<GgufType>,
    /// With --gguf auto: the largest mean KL divergence from the model, nats
    #[arg(long, value_name = "X", conflicts_with = "target_size")]
    max_kl: Option<f64>,
    /// With --gguf auto: the largest file (bytes, or with MB, GB, MiB, GiB)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    target_size: Option<u64>,
    /// With --gguf auto: the text to measure on [default: a built-in one]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// With --gguf auto: tokens of the text to measure on
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = crate::args::values::at_least_two)]
    tokens: usize,
    /// An importance matrix for the quantized GGUFs (of `mmx imatrix` or llama-imatrix)
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Write the Transformers folder's weights in several files of at most this size
    #[arg(long, value_name = "SIZE", value_parser = size)]
    shard_size: Option<u64>,
    /// Write the adapters alone, where MODEL is a folder of adapters (or with --base); may be
    /// repeated
    #[arg(long, value_name = "FORM", value_enum)]
    adapter: Vec<kinds::AdapterForm>,
    /// MODEL holds adapters for this model (a PEFT folder, a GGUF adapter, a file of MiniMind's)
    #[arg(long, value_name = "MODEL", requires = "model")]
    base: Option<PathBuf>,
    /// Compare every file with the model in every engine, print it and put it into the model cards
    #[arg(long)]
    verify: bool,
    /// Write a torch checkpoint under MiniMind's own names, in the model's own element type
    #[arg(long)]
    pth: bool,
    /// Write a Modelfile for Ollama beside the GGUFs (of type q8_0 if none is asked for)
    #[arg(long)]
    ollama: bool,
    /// Put a Go template into the Modelfile, for versions of Ollama that do not render the GGUF's
    /// own
    #[arg(long, requires = "ollama")]
    ollama_template: bool,
    /// Put a default system prompt into the Modelfile
    #[arg(long, value_name = "TEXT", requires = "ollama", allow_hyphen_values = true)]
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
    /// For the model card: a language, by its code (zh, en, ...); may be repeated
    #[arg(long, value_name = "CODE")]
    language: Vec<String>,
    /// For the model card and PEFT: the base model's name on the hub
    #[arg(long, value_name = "REPO")]
    base_model: Option<String>,
    /// For the model card: a data set's name on the hub; may be repeated
    #[arg(long, value_name = "REPO")]
    dataset: Vec<String>,
    /// Write GGUFs in several files of at most this size, NAME-00001-of-0000N.gguf (every reader
    /// opens the first)
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "ollama")]
    split_size: Option<u64>,
    /// Write NaN and infinities among the weights as they are
    #[arg(long)]
    allow_non_finite: bool,
    /// Replace files in OUT that mmx did not write, or that were changed since
    #[arg(long)]
    overwrite: bool,
    /// For the model cards: a table of the programs the files were checked in, from what `mmx verify
    /// --consumers --json` printed
    #[arg(long, value_name = "CHECKS")]
    card: Option<PathBuf>,
    /// A longer context by stretched rotary positions: KIND:FACTOR or KIND:FACTOR:TRAINED with
    /// linear, ntk, dynamic, yarn or llama3, TRAINED being the length of training in tokens, e.g. yarn:4:512
    #[arg(long, value_name = "SCALING", conflicts_with = "verify")]
    rope_scaling: Option<Stretch>,
}

impl ExportArgs {
    /// The request of `--gguf auto` and its options.
    fn goal(&self) -> Result<Option<auto::Goal>> {
        let asked = self.gguf.contains(&GgufType::Auto);
        let limit = match (self.max_kl, self.target_size) {
            (Some(kl), _) if kl.is_finite() && kl > 0.0 => auto::Limit::MaxKl(kl),
            (Some(kl), _) => {
                return Err(Error::usage(format!(
                    "--max-kl: expected a number above 0, found {kl}"
                )));
            }
            (None, Some(bytes)) => auto::Limit::TargetSize(bytes),
            (None, None) if asked => {
                return Err(Error::usage(
                    "--gguf auto: expected --max-kl or --target-size beside it",
                ));
            }
            (None, None) => return Ok(None),
        };
        if !asked {
            return Err(Error::usage(
                "--max-kl and --target-size: expected --gguf auto beside them",
            ));
        }
        Ok(Some(auto::Goal { limit, text: self.text.clone(), tokens: self.tokens }))
    }
}

/// Runs the command.
///
/// # Errors
/// See [`export::export`].
pub(crate) fn run(args: ExportArgs, json: bool) -> Result<()> {
    let auto = args.goal()?;
    let (model, out) = match args.model {
        Some(path) => (path, args.out),
        None => {
            let path = export::newest_checkpoint(std::path::Path::new("runs"))?;
            note!("model: {} (the newest checkpoint under runs/)", path.display());
            // a checkpoint gives way to newer ones; its run stays
            let run = run_folder::run_of(&path).unwrap_or(&path);
            let out = args.out.unwrap_or_else(|| run.join("export"));
            (path, Some(out))
        }
    };
    let types = args.gguf.iter().filter_map(|ty| match ty {
        GgufType::Type(ty) => Some(*ty),
        GgufType::Auto => None,
    });
    let mut request = Request {
        gguf: types.collect(),
        auto,
        imatrix: args.imatrix,
        shard_bytes: args.shard_size,
        adapter: args.adapter.into_iter().map(AdapterForm::from).collect(),
        base: args.base,
        verify: args.verify,
        card: card::Words {
            languages: args.language,
            base_model: args.base_model,
            datasets: args.dataset,
        },
        progress: Some(|step| note!("{step}")),
        model: Some(model),
        out,
        tokenizer: args.tokenizer,
        hf: args.hf.into_iter().map(Dtype::from).collect(),
        everything: false,
        pth: args.pth,
        ollama: args
            .ollama
            .then_some(export::Ollama { template: args.ollama_template, system: args.system }),
        strict: args.strict,
        name: args.name,
        license: args.license,
        split_bytes: args.split_size,
        allow_non_finite: args.allow_non_finite,
        overwrite: args.overwrite,
        rope_scaling: args.rope_scaling,
        checks: args.card.as_deref().map(checks).transpose()?,
    };
    unique(&mut request.hf);
    unique(&mut request.gguf);
    unique(&mut request.adapter);
    request.everything = !request.pth
        && request.hf.is_empty()
        && request.gguf.is_empty()
        && request.adapter.is_empty()
        && request.auto.is_none()
        && request.ollama.is_none();
    let mut report = export::export(&request)?;
    let options = error::options_of(&ExportArgs::augment_args(clap::Command::new("export")));
    for warning in &mut report.warnings {
        *warning = error::spelled(warning, &options);
        warning!("{warning}");
    }
    if json {
        let mut value = serde_json::to_value(&report)
            .map_err(|e| Error::failed(format!("the result as JSON: {e}")))?;
        if let Some(verified) = &report.verified {
            value["verify"] = super::verify::to_json(verified);
        }
        format::print_json(&value)?;
    } else {
        format::print(&text(&report, args.text.is_some()))?;
        if let Some(verified) = &report.verified {
            println!();
            super::verify::print_table(verified);
        }
    }
    match &report.verified {
        Some(verified) => super::verify::refuse_bad(verified),
        None => Ok(()),
    }
}

/// The checks among what `mmx verify --consumers --json` printed.
fn checks(path: &Path) -> Result<check::Report> {
    let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let name = path.display();
    let mut value: serde_json::Value = serde_json::from_str(&text).map_err(|e| {
        Error::failed(format!("{name}: expected what `mmx verify --json` prints, found {e}"))
    })?;
    let Some(found) = value.get_mut("consumers").map(serde_json::Value::take) else {
        return Err(Error::failed_with_hint(
            format!("{name}: consumers: expected rows of programs, found none"),
            "`mmx verify MODEL FILES.. --consumers --json` prints them",
        ));
    };
    serde_json::from_value(found).map_err(|e| {
        Error::failed(format!("{name}: consumers: expected rows of programs, found {e}"))
    })
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

/// `own_text`: what was measured on is the user's, so that its perplexity says something.
fn text(report: &Report, own_text: bool) -> String {
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
        line!(text, "");
        let tensors = counted(here.len(), "tensor");
        line!(text, "fallbacks: {tensors} of {}", file.path.display());
        here.iter().for_each(|found| line!(text, "  {}", found.fallback));
    }
    if !report.frontier.is_empty() {
        let ppl = if own_text { format!("  {:>9}", "ppl") } else { String::new() };
        line!(text, "\n{:8} {:>10}  {:>9}{ppl}  types", "file", "size", "mean KL");
    }
    for point in &report.frontier {
        let types: Vec<String> = point.types.iter().map(|(ty, n)| format!("{n} {ty}")).collect();
        let ppl = point.ppl.map_or("-".to_owned(), |ppl| format!("{ppl:.3}"));
        let ppl = if own_text { format!("  {ppl:>9}") } else { String::new() };
        line!(
            text,
            "{:8} {:>10}  {:>9.2e}{ppl}  {}{}",
            point.name,
            format::bytes(point.bytes),
            point.mean_kl,
            types.join(", "),
            if point.chosen { "   <- written" } else { "" }
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(size("1234"), Ok(1234));
        assert_eq!(size("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        for bad in ["", "GB", "-1", "5 parsecs", "1e400"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
