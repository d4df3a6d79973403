//! `mmx licenses`: the notices of everything that is linked in.

use serde_json::json;

use crate::error::Result;
use crate::format;

/// Print the licence notices of the crates that mmx is built from
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  mmx licenses
  mmx licenses > NOTICES")]
pub(crate) struct LicensesArgs {}

/// The notices, as scripts/notices gathers them from the crates' own packages.
const NOTICES: &str = include_str!("../notices.txt");

/// Runs the command.
///
/// # Errors
/// stdout that cannot be written.
pub(crate) fn run(_: &LicensesArgs, as_json: bool) -> Result<()> {
    match as_json {
        true => format::print_json(&json!({ "notices": NOTICES })),
        false => format::print(NOTICES),
    }
}
