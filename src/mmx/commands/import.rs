//! `mmx import`: someone's model as a folder that mmx trains on.

use std::path::{Path, PathBuf};

use mmx_converters::Model;
use mmx_converters::arch::{Config, presets};
use mmx_converters::file;
use mmx_converters::manifest::Manifest;
use mmx_converters::model::adapter;
use mmx_converters::model::folder::{self, carrying_layout};
use mmx_converters::tensor::Dtype;
use mmx_converters::tokenizer::Tokenizer;

use crate::error::{Error, Result};
use crate::format::{self, line};
use crate::talk::{note, warning};
use mmx_converters::model::run_folder;
use mmx_models::export::{Exported, FileFallback, Report, Source, dtype_name};

/// Element types of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum As {
    /// float32, as training keeps its weights
    F32,
    /// float16
    F16,
    /// bfloat16
    Bf16,
    /// the source's own (float32 for quantized ones)
    Keep,
}

/// Turn a Transformers folder, a GGUF or a .pth into a checkpoint that can be trained on
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  mmx import minimind-26M.gguf --out runs/from-gguf
  mmx import ~/models/MiniMind2 --out runs/from-hf --dtype keep
  mmx import full_sft_512.pth --preset minimind2-small --tokenizer tok --out runs/old
  mmx import full_sft_768.pth --out runs/minimind
  mmx import runs/sft --tokenizer tok-medicine --out runs/larger
  mmx import lora_medical_512.pth --base runs/old --out runs/medical")]
pub(crate) struct ImportArgs {
    /// A Transformers folder, a .gguf or a .pth
    source: PathBuf,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Element type of the weights written
    #[arg(long, value_enum, default_value = "f32")]
    dtype: As,
    /// Folder of tokenizer.json, if it is not beside the weights; for the entries that one of `mmx
    /// tokenizer extend` has more the model gets rows, each the mean of its pieces' rows
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// The model's dimensions by a preset's name, for weights that come without a config.json
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    preset: Option<String>,
    /// SOURCE holds adapters for this model (a PEFT folder, a GGUF adapter, a .safetensors or .pth
    /// of weights alone): the folder written is one of adapters, as `mmx train lora` writes it
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// The model's dimensions, from a config.json elsewhere
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take NaN and infinities among the weights as they are
    #[arg(long)]
    allow_non_finite: bool,
}

/// Runs the command.
///
/// # Errors
/// A source that cannot be opened, or an output that cannot be written.
pub(crate) fn run(args: &ImportArgs, json: bool) -> Result<()> {
    let begin = std::time::Instant::now();
    let mut warnings = Vec::new();
    let config = match (&args.preset, &args.config) {
        (Some(name), _) => Some(presets::preset(name).ok_or_else(|| {
            let known = presets::NAMES.join(", ");
            Error::usage(format!("--preset: expected one of {known}, found {name}"))
        })?),
        (None, Some(path)) => {
            let (config, found) = Config::read(path)?;
            warnings = found;
            Some(config)
        }
        (None, None) => None,
    };
    if let Some(base) = &args.base {
        return adapters(args, base, config, json, begin);
    }
    let mut model = Model::open_with(mmx_hub::resolve(&args.source)?, config)?;
    if let Some(folder) = &args.tokenizer {
        let said = model.grow_for(&Tokenizer::open(folder)?)?;
        said.iter().for_each(|sentence| note!("{sentence}"));
    }
    let source = Source::with_model(model, args.tokenizer.as_deref())?
        .allow_non_finite(args.allow_non_finite);
    warnings.extend(source.model.warnings.iter().cloned());
    let dtype = match args.dtype {
        As::F32 => Dtype::F32,
        As::F16 => Dtype::F16,
        As::Bf16 => Dtype::Bf16,
        As::Keep => source.model.dtype(),
    };
    let layout = carrying_layout(&source.model.config);
    let tokenizer = source.tokenizer.is_some();
    let mut manifest = free_place(args, &source.model, tokenizer, adapter::CONFIG_NAME)?;
    let over = (&mut manifest, false);
    let written = source.write_folder(&args.out, layout, dtype, false, None, over)?;
    let seconds = begin.elapsed().as_secs_f64();
    let of_file = |(path, bytes): (PathBuf, u64)| Exported {
        seconds: if path.extension().is_some_and(|e| e == "safetensors") { seconds } else { 0.0 },
        path,
        format: "checkpoint",
        ty: dtype_name(dtype).to_owned(),
        bytes,
    };
    let weights = args.out.join(mmx_converters::safetensors::FILE_NAME);
    let fallback = |fallback| FileFallback { path: weights.clone(), fallback };
    let report = Report {
        model: args.source.clone(),
        fallbacks: written.fallbacks.iter().cloned().map(fallback).collect(),
        files: written.files.into_iter().map(of_file).collect(),
        frontier: Vec::new(),
        verified: None,
        warnings,
    };
    report.warnings.iter().for_each(|warning| warning!("{warning}"));
    if json {
        return format::print_json(&report);
    }
    let config = &source.model.config;
    let mut text = String::new();
    line!(
        text,
        "{}: {} with {} parameters, from {}",
        args.out.display(),
        config.family.name(),
        format::count(config.parameters().0),
        args.source.display()
    );
    for file in &report.files {
        line!(text, "{:>10}  {}", format::bytes(file.bytes), file.path.display());
    }
    report.fallbacks.iter().for_each(|f| line!(text, "{}", f.fallback));
    format::print(&text)
}

/// Refuses a folder where the import would replace or mix with what is there: the source itself, a
/// training run, another model (`other` is the configuration of the other kind), files that mmx did
/// not write, an import of another source. Returns what mmx wrote there before, with the source
/// noted.
fn free_place(args: &ImportArgs, source: &Model, tokenizer: bool, other: &str) -> Result<Manifest> {
    let out = &args.out;
    let given =
        [&args.base, &args.tokenizer, &args.config].into_iter().filter_map(Option::as_deref);
    file::refuse_input(out, given.chain([source.path.as_path()]))?;
    let run = run_folder::checkpoints(out)?.pop();
    let names = ["training", "metrics.jsonl", other].map(|name| out.join(name));
    if let Some(found) = run.into_iter().chain(names).find(|path| path.exists()) {
        return Err(Error::failed_with_hint(
            format!(
                "{}: expected a new folder for the import, found another model or run: {}",
                out.display(),
                found.display()
            ),
            OTHER_PLACE,
        ));
    }
    let mut manifest = Manifest::open(out)?;
    refuse_foreign(folder::foreign_file(out, tokenizer, &mut manifest)?)?;
    let mark = source.mark();
    let taken = ["config.json", adapter::CONFIG_NAME].map(|name| out.join(name));
    if taken.iter().any(|path| path.exists()) && manifest.origin() != Some(&mark) {
        return Err(Error::failed_with_hint(
            format!(
                "{}: expected a new folder or an import of {}, found an import of another model",
                out.display(),
                args.source.display()
            ),
            OTHER_PLACE,
        ));
    }
    manifest.set_origin(mark);
    Ok(manifest)
}

/// What to do about a place that is taken.
const OTHER_PLACE: &str = "give another --out";

fn refuse_foreign(found: Option<PathBuf>) -> Result<()> {
    let Some(path) = found else { return Ok(()) };
    let fault = mmx_converters::Error::Foreign { path };
    Err(Error::failed_with_hint(fault.to_string(), OTHER_PLACE))
}

/// Adapters to PEFT's folder, which every command opens as the base with them merged.
fn adapters(
    args: &ImportArgs,
    base: &Path,
    config: Option<Config>,
    json: bool,
    begin: std::time::Instant,
) -> Result<()> {
    let base = mmx_hub::resolve(base)?;
    let full = fs_err::canonicalize(&base).map_err(|e| Error::io(&base, e))?;
    let model = Model::open_adapters(&mmx_hub::resolve(&args.source)?, &full, config)?;
    let source = Source::with_model(model, args.tokenizer.as_deref())?
        .allow_non_finite(args.allow_non_finite);
    let Some(adapters) = source.adapters()? else {
        return Err(Error::failed(format!("{}: expected adapters", args.source.display())));
    };
    let places = [adapter::CONFIG_NAME, adapter::WEIGHTS_NAME].map(|name| args.out.join(name));
    let mut manifest = free_place(args, &source.model, source.tokenizer.is_some(), "config.json")?;
    for path in &places {
        refuse_foreign(if manifest.is_free(path)? { None } else { Some(path.clone()) })?;
    }
    fs_err::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    adapters.write(&args.out)?;
    if let Some(tokenizer) = &source.tokenizer {
        tokenizer.save(&args.out)?;
    }
    for path in places.iter().cloned().chain(folder::tokenizer_files(&args.out)) {
        manifest.add(&path)?;
    }
    manifest.save()?;
    let mut files = Vec::new();
    for path in places {
        let bytes = fs_err::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        let seconds = if files.is_empty() { begin.elapsed().as_secs_f64() } else { 0.0 };
        files.push(Exported { path, format: "peft", ty: "f32".to_owned(), bytes, seconds });
    }
    let warnings = source.model.warnings.clone();
    warnings.iter().for_each(|warning| warning!("{warning}"));
    if json {
        return format::print_json(&serde_json::json!({
            "model": args.source.to_string_lossy(), "files": files, "fallbacks": [], "warnings": warnings,
        }));
    }
    let mut text = String::new();
    line!(
        text,
        "{}: {} of rank {} for {}",
        args.out.display(),
        mmx_converters::words::counted(adapters.modules.len(), "adapter"),
        adapters.rank,
        full.display()
    );
    files.iter().for_each(|f| line!(text, "{:>10}  {}", format::bytes(f.bytes), f.path.display()));
    format::print(&text)
}
