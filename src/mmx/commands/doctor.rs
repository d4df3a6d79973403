//! `mmx doctor`: the machine's means, and what each runtime makes of a model.

use std::path::PathBuf;

use mmx_converters::Model;
use mmx_converters::arch::presets;
use serde_json::json;

use crate::error::{Error, Result};
use crate::format::{self, line};
use mmx_models::doctor::{self, Finding, ModelReport};

/// Show what mmx found on this machine, and what each runtime will make of a model
#[derive(clap::Args, Debug)]
#[command(after_help = "\
`kernels` is what ggml was compiled for, `cpu set` the instruction set that mmx's own kernels use:
the best there is, or what MMX_CPU=NAME in the environment says.

Examples:
  mmx doctor
  mmx doctor runs/sft
  mmx doctor --preset minimind2-moe --json")]
pub(crate) struct DoctorArgs {
    /// A checkpoint or Transformers folder, a .gguf or a .pth
    model: Option<PathBuf>,
    /// A preset's dimensions in place of a model
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    preset: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// A model that cannot be opened, an unknown preset.
pub(crate) fn run(args: &DoctorArgs, json: bool) -> Result<()> {
    let findings = doctor::machine();
    let config = match (&args.model, &args.preset) {
        (Some(path), _) => Some(Model::open(mmx_hub::resolve(path)?)?.config),
        (None, Some(name)) => Some(presets::preset(name).ok_or_else(|| {
            let known = presets::NAMES.join(", ");
            Error::usage(format!("--preset: expected one of {known}, found {name}"))
        })?),
        (None, None) => None,
    };
    let model = config.as_ref().map(doctor::model);
    if json {
        return format::print_json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "train": cfg!(feature = "train"),
            "findings": findings,
            "model": model,
        }));
    }
    let mut text = machine(&findings);
    if let Some(model) = &model {
        text.push_str(&of_model(model));
    }
    format::print(&text)
}

fn machine(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = if finding.ok { "ok" } else { "--" };
        line!(text, "{mark}  {:<10} {}", finding.what, finding.found);
        if let Some(fix) = &finding.fix {
            line!(text, "               {fix}");
        }
    }
    text
}

fn of_model(model: &ModelReport) -> String {
    let mut text = String::new();
    let (total, active) = model.parameters;
    let active = match active == total {
        true => String::new(),
        false => format!(", {} per token", format::count(active)),
    };
    line!(
        text,
        "\n{}: {} parameters{active}; the embedding is {:.1} % of them{}",
        model.family,
        format::count(total),
        100.0 * model.embedding_share,
        if model.tied { " and the output head too" } else { "" }
    );
    line!(text, "");
    for target in &model.targets {
        let mark = if target.ok { "ok" } else { "NO" };
        let version = target.version.unwrap_or_default();
        let (runtime, form) = (target.runtime, &target.form);
        line!(text, "{mark}  {runtime:<20} {version:<18} {form:<28} {}", target.note);
    }
    line!(text, "\nrows of matrices");
    for rows in &model.rows {
        let fits = match (rows.fits_256, rows.fits_32) {
            (true, _) => "every type fits",
            (false, true) => "no multiple of 256: K types and IQ4_XS fall back",
            (false, false) => "no multiple of 32: block types fall back to F16",
        };
        let matrices = if rows.matrices == 1 { "matrix" } else { "matrices" };
        line!(text, "  {:>6} values in {:>4} {matrices}: {fits}", rows.length, rows.matrices);
    }
    line!(text, "\n{:<10} {:>10}  {:>6}  fallbacks", "type", "tensors", "bits");
    for ty in &model.types {
        let fallbacks = match ty.fallbacks {
            0 => "none".to_owned(),
            n => format!("{}, {}", format::matrices(n), format::bytes(ty.fallback_bytes)),
        };
        let bits = ty.bits_per_weight;
        line!(text, "{:<10} {:>10}  {bits:>6.2}  {fallbacks}", ty.ty, format::bytes(ty.bytes));
    }
    text
}
