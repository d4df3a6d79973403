//! The command `mmx`: parse, call, print the error and its hint, exit code.
#![expect(clippy::print_stdout, reason = "stdout is where a command's data goes")]

mod args;
mod cli;
mod commands;
mod error;
mod format;
mod parse;
#[cfg(test)]
mod parse_tests;
mod talk;
mod terminal;
mod whole;

use std::process::ExitCode;

use clap::CommandFactory;

fn main() -> ExitCode {
    talk::hush_guarded_panics();
    if let Some(arguments) = commands::train::arguments(std::env::args_os().skip(1)) {
        return error::exit_code(commands::train::run(arguments), &[]);
    }
    let cli = parse::parse::<cli::Cli>(); // misuse: prints the usage and exits 2
    mmx_converters::cpus::bound_pool();
    mmx_hub::listen(std::sync::Arc::new(terminal::Terminal::default()));
    let result = talk::begin(cli.talk).and_then(|()| cli::run(cli));
    let options =
        if result.is_err() { error::options_of(&cli::Cli::command()) } else { Vec::new() };
    error::exit_code(result, &options)
}
