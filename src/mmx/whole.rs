//! The whole command line as clap knows it, for completions and man pages: this program's commands,
//! and the options of `mmx train`, which `mmx-train` tells.

use std::process::Stdio;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command, ValueHint};
use mmx_models::trainer;
use serde::Deserialize;

/// An argument of `mmx train`, as `mmx-train options` writes it.
#[derive(Debug, Deserialize)]
struct Told {
    id: String,
    long: Option<String>,
    short: Option<char>,
    help: String,
    value: Option<String>,
    many: bool,
    required: bool,
    takes_value: bool,
    is_path: bool,
    values: Vec<String>,
}

/// A command line with the options of `mmx train`; without `mmx-train` those are not known.
pub(crate) fn command(command: Command) -> Command {
    match told() {
        None => command,
        Some(told) => command.mut_subcommand("train", |train| {
            // words that clap hands on are named one by one now
            let about = train.get_about().cloned().unwrap_or_default();
            Command::new("train").about(about).args(told.into_iter().map(argument))
        }),
    }
}

/// What `mmx-train` tells of its options; nothing where it is not there or does not start.
fn told() -> Option<Vec<Told>> {
    let mut command = trainer::command("train").ok()?;
    let output = command.arg("options").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

fn argument(told: Told) -> Arg {
    // clap holds names for as long as the program runs, and so does this one
    let held = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let mut arg = Arg::new(held(told.id)).help(told.help).required(told.required);
    if let Some(long) = told.long {
        arg = arg.long(held(long));
    }
    if let Some(short) = told.short {
        arg = arg.short(short);
    }
    if !told.takes_value {
        return arg.action(ArgAction::SetTrue);
    }
    arg = arg.action(if told.many { ArgAction::Append } else { ArgAction::Set });
    if let Some(value) = told.value {
        arg = arg.value_name(held(value));
    }
    if told.is_path {
        arg = arg.value_hint(ValueHint::AnyPath);
    }
    match told.values.is_empty() {
        true => arg,
        false => {
            let values: Vec<&'static str> = told.values.into_iter().map(held).collect();
            arg.value_parser(PossibleValuesParser::new(values))
        }
    }
}
