//! The command line: one file per command, each from flags to a request to a library call.
//!
//! stdout is data, stderr is talk; `--json` puts exactly one JSON object on stdout.
#![expect(clippy::print_stdout, reason = "stdout is where a command's data goes")]

mod bench;
mod chat;
mod data;
pub(crate) mod device;
mod doctor;
mod eval;
mod export;
mod format;
mod ids;
mod imatrix;
mod import;
mod inspect;
mod logits;
mod ollama;
mod parse;
mod plot;
mod pull;
mod push;
mod quantize;
mod run;
mod serve;
mod tokenizer;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "train")]
mod train_models;
mod values;
mod verify;
mod version;

pub use parse::parse;

use clap::{Parser, Subcommand};

use crate::error::Result;

/// Train tiny language models from scratch and put them everywhere, provably unchanged.
#[derive(Parser, Debug)]
#[command(name = "mmx", version, about, propagate_version = true)]
pub struct Cli {
    /// Put exactly one JSON object on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands. What each does stands at its arguments' struct, where clap takes the help from.
#[derive(Subcommand, Debug)]
#[expect(missing_docs, reason = "the documentation is that of the arguments")]
pub enum Command {
    Bench(bench::BenchArgs),
    Chat(chat::ChatArgs),
    Data(data::DataArgs),
    Doctor(doctor::DoctorArgs),
    Eval(eval::EvalArgs),
    Export(Box<export::ExportArgs>),
    Imatrix(imatrix::ImatrixArgs),
    Import(import::ImportArgs),
    Inspect(inspect::InspectArgs),
    Logits(logits::LogitsArgs),
    Ollama(ollama::OllamaArgs),
    Plot(plot::PlotArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Quantize(quantize::QuantizeArgs),
    Run(run::RunArgs),
    Serve(serve::ServeArgs),
    Tokenizer(tokenizer::TokenizerArgs),
    #[cfg(feature = "train")]
    Train(Box<train::TrainArgs>),
    /// Train a model (not in this build, which has no libtorch)
    #[cfg(not(feature = "train"))]
    Train {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    Verify(verify::VerifyArgs),
    Version(version::VersionArgs),
}

/// Runs a parsed command line.
///
/// # Errors
/// Whatever the command met; `main` prints it and picks the exit code.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Bench(args) => bench::run(args, cli.json),
        Command::Chat(args) => chat::run(args, cli.json),
        Command::Data(args) => data::run(args, cli.json),
        Command::Doctor(args) => doctor::run(&args, cli.json),
        Command::Eval(args) => eval::run(args, cli.json),
        Command::Export(args) => export::run(*args, cli.json),
        Command::Imatrix(args) => imatrix::run(&args, cli.json),
        Command::Import(args) => import::run(&args, cli.json),
        Command::Inspect(args) => inspect::run(&args, cli.json),
        Command::Logits(args) => logits::run(args, cli.json),
        Command::Ollama(args) => ollama::run(args, cli.json),
        Command::Plot(args) => plot::run(&args, cli.json),
        Command::Pull(args) => pull::run(args, cli.json),
        Command::Push(args) => push::run(args, cli.json),
        Command::Quantize(args) => quantize::run(&args, cli.json),
        Command::Run(args) => run::run(args, cli.json),
        Command::Serve(args) => serve::run(args, cli.json),
        Command::Tokenizer(args) => tokenizer::run(args, cli.json),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(*args, cli.json),
        #[cfg(not(feature = "train"))]
        Command::Train { .. } => Err(crate::error::Error::failed_with_hint(
            "train: expected libtorch, found a build of mmx without it",
            ". scripts/env.sh && cargo build --release   in mmx's sources builds one that trains",
        )),
        Command::Verify(args) => verify::run(args, cli.json),
        Command::Version(args) => version::run(&args, cli.json),
    }
}
