//! The command `mmx`: parse, call, print the error and its hint, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = mmx::cli::parse(); // misuse: prints the usage and exits 2
    mmx::bound_pool();
    match mmx::cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("\nhint: {hint}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
