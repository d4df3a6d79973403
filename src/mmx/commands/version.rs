//! `mmx version`: what this program is, for a report of a fault.

use mmx_ggml::version;
use serde_json::{Value, json};

use crate::error::Result;
use crate::format::{self, line};
use mmx_models::trainer;

/// Print the versions of mmx and of what it was built with
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  mmx version
  mmx version --json")]
pub(crate) struct VersionArgs {}

/// The commit that mmx was built from, where the sources told it (build.rs).
const COMMIT: &str = env!("MMX_COMMIT");

/// Runs the command.
///
/// # Errors
/// stdout that cannot be written.
pub(crate) fn run(_: &VersionArgs, as_json: bool) -> Result<()> {
    let kernels = mmx_ggml::cpu_kernels();
    let ggml = version::ggml();
    let libtorch = trainer::libtorch();
    if as_json {
        return format::print_json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": known(COMMIT),
            "target": env!("MMX_TARGET"),
            "features": features(),
            "llama_cpp": {"crate": version::LLAMA_CPP_SYS, "ggml": ggml.version, "commit": ggml.commit},
            "kernels": kernels.ok(),
            "libtorch": libtorch,
        }));
    }
    let mut text = String::new();
    let mut row = |name: &str, value: &str| line!(text, "{name:<10} {value}");
    row("mmx", env!("CARGO_PKG_VERSION"));
    row(
        "commit",
        if COMMIT.is_empty() { "not known to the sources it was built from" } else { COMMIT },
    );
    row("target", env!("MMX_TARGET"));
    row("features", &if features().is_empty() { "none".to_owned() } else { features().join(", ") });
    let commit = ggml.commit.map_or_else(String::new, |commit| format!(", commit {commit}"));
    row("llama.cpp", &format!("crate llama-cpp-sys-2 {}", version::LLAMA_CPP_SYS));
    row("ggml", &format!("{}{commit}", ggml.version));
    row("kernels", &kernels.unwrap_or_else(|error| error.to_string()));
    row(
        "libtorch",
        libtorch.as_deref().unwrap_or(if trainer::program().is_some() {
            "none found for mmx-train"
        } else {
            "none: no mmx-train beside mmx"
        }),
    );
    format::print(&text)
}

/// The features of this build.
fn features() -> Vec<&'static str> {
    let all = [
        ("train", cfg!(feature = "train")),
        ("cuda", cfg!(feature = "cuda")),
        ("metal", cfg!(feature = "metal")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("dynamic", cfg!(feature = "dynamic")),
    ];
    all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
}

/// Nothing for an empty text.
fn known(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}
