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
mod terminal;

use std::process::ExitCode;

use clap::CommandFactory;

fn main() -> ExitCode {
    if let Some(arguments) = commands::train::arguments(std::env::args_os().skip(1)) {
        return error::exit_code(commands::train::run(arguments), &[]);
    }
    let cli = parse::parse::<cli::Cli>(); // misuse: prints the usage and exits 2
    bound_pool();
    let result = cli::run(cli);
    let options =
        if result.is_err() { error::options_of(&cli::Cli::command()) } else { Vec::new() };
    error::exit_code(result, &options)
}

/// Bounds the threads that tokenize, quantize and export by what [`mmx_ggml::cpus`] allows, where
/// that is less than the pool would take by itself and RAYON_NUM_THREADS does not say otherwise.
fn bound_pool() {
    let (most, all) =
        (mmx_ggml::cpus(), std::thread::available_parallelism().map_or(1, usize::from));
    if most < all && std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // a pool that is there already stays as it is
        let _ = rayon::ThreadPoolBuilder::new().num_threads(most).build_global();
    }
}
