//! `mmx push`: a folder to a hub.

use std::path::PathBuf;

use crate::error::Result;
use crate::format::{self, line};
use mmx_hub::hub::Hub;
use mmx_hub::upload::{Request, upload};

/// Upload an exported folder to a Hugging Face hub
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The folder is opened first as a user would open it. Weights and files over 10 MB go as large files, all in one commit;
what the hub has already is not sent again, and after the upload its digests are compared with the files here.
HF_TOKEN is the token, HF_ENDPOINT another hub than huggingface.co.

Examples:
  mmx push export/hf-bf16 me/my-model
  mmx push export me/my-model-GGUF --private
  HF_ENDPOINT=http://127.0.0.1:9000 mmx push export/hf-bf16 me/my-model --revision v2")]
pub(crate) struct PushArgs {
    /// The folder to upload
    dir: PathBuf,
    /// The repository, OWNER/NAME; made if it is not there
    repo: String,
    /// The branch; made if it is not there
    #[arg(long, value_name = "NAME", default_value = "main")]
    revision: String,
    /// Make a new repository private
    #[arg(long)]
    private: bool,
    /// The commit's message
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "Upload model with mmx",
        allow_hyphen_values = true
    )]
    message: String,
}

/// Runs the command.
///
/// # Errors
/// See [`upload`].
pub(crate) fn run(args: PushArgs, json: bool) -> Result<()> {
    let hub = Hub::from_environment();
    let request = Request {
        dir: args.dir,
        repo: args.repo,
        revision: args.revision,
        private: args.private,
        message: args.message,
    };
    let report = format::with_bytes_bar(|progress| upload(&hub, &request, progress))?;
    if json {
        return format::print_json(&report);
    }
    let mut text = String::new();
    for file in &report.files {
        let how = match (file.sent, file.lfs) {
            (false, _) => "there already",
            (true, true) => "large file",
            (true, false) => "",
        };
        line!(text, "{:>10}  {}  {how}", format::bytes(file.bytes), file.path);
    }
    line!(text, "{}  commit {}", report.url, report.commit);
    format::print(&text)
}
