//! `mmx pull`: a repository of a hub to a folder.

use std::path::PathBuf;

use crate::error::Result;
use crate::format::{self, line};
use mmx_hub::download::{Request, download};
use mmx_hub::hub::{Hub, Kind};

/// Download a model or a data set from a Hugging Face hub
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Each file is checked against the digest the hub reports; an interrupted download goes on where it was.
HF_TOKEN is the token, HF_ENDPOINT another hub than huggingface.co.

Examples:
  mmx pull me/my-model --out my-model
  mmx pull me/my-model-GGUF --out . --only q4_0.gguf
  mmx pull me/my-model --revision v2 --out my-model-v2
  mmx pull me/my-texts --dataset --out texts --only .parquet")]
pub(crate) struct PullArgs {
    /// The repository, OWNER/NAME
    repo: String,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A branch, tag or commit
    #[arg(long, value_name = "NAME", default_value = "main")]
    revision: String,
    /// Only files whose names end so; may be repeated
    #[arg(long, value_name = "ENDING")]
    only: Vec<String>,
    /// The repository is a data set's
    #[arg(long)]
    dataset: bool,
}

/// Runs the command.
///
/// # Errors
/// See [`download`].
pub(crate) fn run(args: PullArgs, json: bool) -> Result<()> {
    let hub = Hub::from_environment();
    let request = Request {
        kind: if args.dataset { Kind::Dataset } else { Kind::Model },
        repo: args.repo,
        revision: args.revision,
        out: args.out,
        only: args.only,
    };
    let report = format::with_bytes_bar(|progress| download(&hub, &request, progress))?;
    if json {
        return format::print_json(&report);
    }
    let mut text = String::new();
    for file in &report.files {
        let how = if file.fetched == 0 { "there already" } else { "" };
        line!(text, "{:>10}  {}  {how}", format::bytes(file.bytes), file.path.display());
    }
    line!(text, "{} at commit {}", report.repo, report.commit);
    format::print(&text)
}
