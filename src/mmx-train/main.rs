//! The program that trains: `mmx train` starts it, and the engine `native` is
//! `mmx-train logits --serve`. The only one that links libtorch.
#![expect(clippy::print_stdout, reason = "stdout is where a command's data goes")]

mod engine;
#[path = "../mmx/error.rs"]
mod error;
mod flags;
mod launch;
mod logits;
mod means;
mod meet;
#[path = "../mmx/parse.rs"]
mod parse;
#[path = "../mmx/args/stages.rs"]
mod stages;
#[path = "../mmx/talk.rs"]
mod talk;
#[path = "../mmx/terminal.rs"]
mod terminal;
#[path = "../mmx/args/tools.rs"]
#[allow(dead_code, reason = "each program uses a part of it")]
mod tools;
#[path = "../mmx/args/values.rs"]
#[allow(dead_code, reason = "each program uses a part of it")]
mod values;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use error::{Error, Result};
use mmx_models::trainer::{VERSION, VERSION_VARIABLE};

/// Train a model: pretrain it from scratch, or go on from one with another stage
#[derive(Parser, Debug)]
#[command(name = "mmx-train", bin_name = "mmx train", version = env!("MMX_VERSION_LINE"))]
struct Train {
    #[command(flatten)]
    train: flags::TrainArgs,
    #[command(flatten)]
    talk: talk::TalkArgs,
}

/// The program's other commands, which `mmx` calls.
#[derive(Parser, Debug)]
#[command(name = "mmx-train", version = env!("MMX_VERSION_LINE"))]
enum Other {
    /// Print what there is to train with
    About {
        /// Put exactly one JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Print the options of training, for completions and manual pages
    Options,
    /// Answer ids on stdin with logits on stdout
    Logits(logits::LogitsArgs),
    Meet(meet::MeetArgs),
}

fn main() -> ExitCode {
    talk::hush_guarded_panics();
    mmx_hub::listen(std::sync::Arc::new(terminal::Terminal::default()));
    let first = std::env::args().nth(1);
    let (result, options) = match first.as_deref() {
        Some("about" | "logits" | "meet" | "options") => (other(Other::parse()), Vec::new()),
        _ => {
            let args: Train = parse::parse(); // misuse: prints the usage and exits 2
            mmx_converters::cpus::bound_pool();
            let result = same_version()
                .and_then(|()| fit_cpu())
                .and_then(|()| talk::begin(args.talk))
                .and_then(|()| flags::run(args.train));
            (result, error::options_of(&Train::command()))
        }
    };
    error::exit_code(result, &options)
}

fn other(other: Other) -> Result<()> {
    same_version()?;
    match other {
        Other::About { json } => fit_cpu().and_then(|()| about(json)),
        Other::Options => options(),
        Other::Logits(args) => fit_cpu().and_then(|()| logits::run(&args)),
        Other::Meet(args) => meet::run(&args),
    }
}

/// Refuses a caller of another version.
fn same_version() -> Result<()> {
    match std::env::var(VERSION_VARIABLE) {
        Ok(caller) if caller != VERSION => Err(Error::failed_with_hint(
            format!("mmx-train: expected mmx {VERSION} beside it, found mmx {caller}"),
            "install both from one archive, or build both: cargo build --release",
        )),
        _ => Ok(()),
    }
}

/// Refuses a CPU that lacks instructions of the kernels.
fn fit_cpu() -> Result<()> {
    if mmx_training::about::runs_here() {
        return Ok(());
    }
    Err(Error::failed_with_hint(
        "mmx-train: expected a CPU with AVX2 and FMA (x86-64-v3), found one without",
        "build mmx on this machine: cargo build --release; mmx itself needs neither",
    ))
}

/// Prints the options of training as a list of JSON objects.
fn options() -> Result<()> {
    let command = parse::command::<Train>();
    let of = |arg: &clap::Arg| {
        let values = arg.get_possible_values();
        let values: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
        let value = arg.get_value_names().and_then(|names| names.first()).map(|name| name.as_str());
        let takes_value = arg.get_action().takes_values();
        serde_json::json!({
            "id": arg.get_id().as_str(),
            "long": arg.get_long(),
            "short": arg.get_short(),
            "help": arg.get_help().map(ToString::to_string).unwrap_or_default(),
            "value": value,
            "many": matches!(arg.get_action(), clap::ArgAction::Append),
            "required": arg.is_required_set(),
            "takes_value": takes_value,
            "is_path": matches!(value, Some("FILE" | "DIR" | "MODEL")),
            "values": if takes_value { values } else { Vec::new() },
        })
    };
    // those of both programs are known to mmx
    let own = |arg: &&clap::Arg| !matches!(arg.get_id().as_str(), "json" | "verbose" | "quiet");
    let options: Vec<_> = command.get_arguments().filter(own).map(of).collect();
    println!("{}", serde_json::Value::from(options));
    Ok(())
}

/// Prints the answer that [`mmx_models::trainer::About`] reads.
fn about(json: bool) -> Result<()> {
    let libtorch = mmx_training::about::libtorch();
    let device = mmx_training::about::device();
    if json {
        let device = match device {
            Ok(device) => serde_json::json!({"Ok": device}),
            Err(error) => serde_json::json!({
                "Err": {"message": error.to_string(), "hint": error.hint()},
            }),
        };
        println!(
            "{}",
            serde_json::json!({"version": VERSION, "libtorch": libtorch, "device": device})
        );
        return Ok(());
    }
    println!("mmx-train {VERSION}\nlibtorch {libtorch}\ndevice {}", device?);
    Ok(())
}
