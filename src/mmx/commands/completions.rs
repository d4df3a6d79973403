//! `mmx completions`: the script by which a shell completes mmx's commands and options.

use clap::Command;
use clap_complete::{Shell, generate};

use crate::error::Result;
use crate::format;

/// Print the script by which a shell completes commands and options
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  mmx completions bash > ~/.local/share/bash-completion/completions/mmx
  mmx completions zsh > ~/.zfunc/_mmx
  mmx completions fish > ~/.config/fish/completions/mmx.fish
  mmx completions powershell >> $PROFILE")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// Runs the command; `whole` is the whole command line.
///
/// # Errors
/// stdout that cannot be written.
pub(crate) fn run(args: &CompletionsArgs, mut whole: Command) -> Result<()> {
    let mut script = Vec::new();
    generate(args.shell, &mut whole, "mmx", &mut script);
    format::print(&String::from_utf8_lossy(&script))
}
