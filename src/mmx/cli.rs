//! The command line: one file per command, each from flags to a request to a library call.
//!
//! stdout is data, stderr is talk; `--json` puts exactly one JSON object on stdout.

use clap::{Parser, Subcommand};

use crate::commands::{
    bench, chat, completions, data, doctor, eval, export, imatrix, import, inspect, licenses,
    logits, man, ollama, plot, pull, push, quantize, run, serve, tokenizer, train, verify, version,
};
use crate::error::Result;
use crate::talk::TalkArgs;
use crate::{parse, whole};

/// Train tiny language models from scratch and put them everywhere, provably unchanged.
#[derive(Parser, Debug)]
#[command(name = "mmx", version = env!("MMX_VERSION_LINE"), about, propagate_version = true)]
pub(crate) struct Cli {
    /// Put exactly one JSON object on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) talk: TalkArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands. What each does stands at its arguments' struct, where clap takes the help from.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    Bench(bench::BenchArgs),
    Chat(chat::ChatArgs),
    Completions(completions::CompletionsArgs),
    Data(data::DataArgs),
    Doctor(doctor::DoctorArgs),
    Eval(Box<eval::EvalArgs>),
    Export(Box<export::ExportArgs>),
    Imatrix(imatrix::ImatrixArgs),
    Import(import::ImportArgs),
    Inspect(inspect::InspectArgs),
    Licenses(licenses::LicensesArgs),
    Logits(logits::LogitsArgs),
    Man(man::ManArgs),
    Ollama(ollama::OllamaArgs),
    Plot(plot::PlotArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Quantize(quantize::QuantizeArgs),
    Run(run::RunArgs),
    Serve(serve::ServeArgs),
    Tokenizer(tokenizer::TokenizerArgs),
    /// Train a model: pretrain it from scratch, or go on from one with another stage
    #[command(disable_help_flag = true)]
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
pub(crate) fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Bench(args) => bench::run(args, cli.json),
        Command::Chat(args) => chat::run(args, cli.json),
        Command::Completions(args) => {
            completions::run(&args, whole::command(parse::command::<Cli>()))
        }
        Command::Data(args) => data::run(args, cli.json),
        Command::Doctor(args) => doctor::run(&args, cli.json),
        Command::Eval(args) => eval::run(*args, cli.json),
        Command::Export(args) => export::run(*args, cli.json),
        Command::Imatrix(args) => imatrix::run(&args, cli.json),
        Command::Import(args) => import::run(&args, cli.json),
        Command::Inspect(args) => inspect::run(&args, cli.json),
        Command::Licenses(args) => licenses::run(&args, cli.json),
        Command::Logits(args) => logits::run(args, cli.json),
        Command::Man(args) => man::run(&args, whole::command(parse::command::<Cli>()), cli.json),
        Command::Ollama(args) => ollama::run(args, cli.json),
        Command::Plot(args) => plot::run(&args, cli.json),
        Command::Pull(args) => pull::run(args, cli.json),
        Command::Push(args) => push::run(args, cli.json),
        Command::Quantize(args) => quantize::run(&args, cli.json),
        Command::Run(args) => run::run(args, cli.json),
        Command::Serve(args) => serve::run(args, cli.json),
        Command::Tokenizer(args) => tokenizer::run(args, cli.json),
        Command::Train { arguments } => train::run(arguments),
        Command::Verify(args) => verify::run(args, cli.json),
        Command::Version(args) => version::run(&args, cli.json),
    }
}
