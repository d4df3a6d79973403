//! `mmx ollama`: models for a running Ollama.

use std::path::PathBuf;

use clap::Subcommand;

use crate::error::{Error, Result};
use crate::format::{self, line};
use crate::talk::note;
use mmx_hub::ollama::Ollama;

/// What the help of the command and of `create` ends with.
const EXAMPLES: &str = "\
OLLAMA_HOST is the server's address (127.0.0.1:11434 without).

Examples:
  mmx export runs/sft --gguf q4_0 --ollama --out export && mmx ollama create my-model export
  OLLAMA_HOST=box:11434 mmx ollama create me/my-model export --modelfile Modelfile-q8_0";

/// Make models of exports in a running Ollama
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct OllamaArgs {
    #[command(subcommand)]
    command: OllamaCommand,
}

#[derive(Subcommand, Debug)]
enum OllamaCommand {
    /// Make a model of an export's Modelfile and GGUF
    #[command(after_help = EXAMPLES)]
    Create {
        /// The model's name, as `ollama run` takes it
        name: String,
        /// The export's folder
        export: PathBuf,
        /// The Modelfile in the folder
        #[arg(long, value_name = "FILE", default_value = "Modelfile")]
        modelfile: PathBuf,
    },
}

/// Runs the command.
///
/// # Errors
/// See [`Ollama::create`]; a folder without a Modelfile.
pub(crate) fn run(args: OllamaArgs, json: bool) -> Result<()> {
    let OllamaCommand::Create { name, export, modelfile } = args.command;
    let path = export.join(modelfile);
    if !path.is_file() {
        return Err(Error::failed_with_hint(
            format!("{}: expected a Modelfile, found none", path.display()),
            "`mmx export MODEL --ollama` writes one",
        ));
    }
    let ollama = Ollama::from_environment();
    let created = format::with_bytes_bar(|progress| {
        ollama.create(&name, &path, progress, &mut |status| note!("{status}"))
    })?;
    if json {
        return format::print_json(&created);
    }
    let mut text = String::new();
    line!(
        text,
        "{} at {}: {} ({}{})",
        created.model,
        ollama.address(),
        created.path.display(),
        format::bytes(created.bytes),
        if created.sent { "" } else { ", there already" }
    );
    format::print(&text)
}
