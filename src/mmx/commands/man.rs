//! `mmx man`: the manual pages, one a command.

use std::path::PathBuf;

use clap::Command;
use clap_mangen::Man;

use crate::error::{Error, Result};
use crate::format;

/// Print the manual page of mmx or of one of its commands, or write all of them
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  mmx man | man -l -
  mmx man train | man -l -
  mmx man --out ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The command whose page is printed, `data check` for one below another; mmx's own unless given
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write all pages here: mmx.1, mmx-train.1 and so on
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    out: Option<PathBuf>,
}

/// Runs the command; `whole` is the whole command line.
///
/// # Errors
/// A command that is not there, a folder that cannot be written.
pub(crate) fn run(args: &ManArgs, whole: Command, json: bool) -> Result<()> {
    let mut all = whole.disable_help_subcommand(true);
    all.build(); // names of commands below: mmx-data-check
    let Some(folder) = &args.out else {
        let mut command = &all;
        for word in &args.command {
            command = command.find_subcommand(word).ok_or_else(|| {
                let known: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
                Error::usage(format!(
                    "COMMAND: expected one of {}, found {word}",
                    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                ))
            })?;
        }
        return format::print(&page(command.clone())?.1);
    };
    fs_err::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut files = Vec::new();
    let mut waiting = vec![all];
    while let Some(command) = waiting.pop() {
        waiting.extend(command.get_subcommands().filter(|c| !c.is_hide_set()).cloned());
        let (name, text) = page(command)?;
        let path = folder.join(name);
        mmx_converters::file::write_bytes(&path, text.as_bytes())?;
        files.push(path);
    }
    files.sort();
    if json {
        let files: Vec<_> = files.iter().map(|path| path.to_string_lossy()).collect();
        return format::print_json(&serde_json::json!({ "files": files }));
    }
    format::print(&files.iter().map(|path| format!("{}\n", path.display())).collect::<String>())
}

/// The file's name and the text of a command's page.
fn page(command: Command) -> Result<(String, String)> {
    let mut text = Vec::new();
    // no date: the same sources give the same page
    let man = Man::new(command).source(concat!("mmx ", env!("CARGO_PKG_VERSION"))).manual("mmx");
    man.render(&mut text).map_err(|e| Error::failed(format!("the page: {e}")))?;
    Ok((man.get_filename(), String::from_utf8_lossy(&text).into_owned()))
}
