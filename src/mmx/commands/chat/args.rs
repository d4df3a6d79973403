//! The arguments of `mmx chat`.

use std::path::PathBuf;

use crate::args::device::DeviceArgs;
use crate::args::tools::ToolArgs;
use crate::commands::run::{RunnerArgs, SamplingArgs};

/// Chat with a model
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Ctrl-C stops an answer; Ctrl-D or /exit leaves; /reset forgets the conversation; a line that ends with \\
goes on in the next one. Without a terminal each line of stdin is a message. Lines typed or pasted while an answer is
written are the next messages, one after the other. Thoughts are dimmed. What was read stays
computed, so a turn costs only its own tokens.

Examples:
  mmx chat runs/sft/export/model-q4_0.gguf
  mmx chat model.gguf --tools tools.json
  mmx chat model.gguf --system \"Answer in one sentence.\" --history talk.json
  printf 'hello\\nand you?\\n' | mmx chat model.gguf --greedy")]
pub(crate) struct ChatArgs {
    /// A checkpoint, a Transformers folder or a GGUF
    pub(super) model: PathBuf,
    /// A system message before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) system: Option<String>,
    /// Tokens of an answer at most
    #[arg(short, value_name = "N", default_value_t = 1024)]
    pub(super) n: usize,
    /// When the context is full, between turns or within an answer: forget what is oldest, or stop
    #[arg(long, value_name = "HOW", value_enum, default_value = "shift")]
    pub(super) when_full: WhenFull,
    /// Go on with the conversation in this file, and keep it there (a JSON list of messages)
    #[arg(long, value_name = "FILE")]
    pub(super) history: Option<PathBuf>,
    /// Let the model think before it answers, if its template can ask for that
    #[arg(long)]
    pub(super) think: bool,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
    #[command(flatten)]
    pub(super) runner: RunnerArgs,
    #[command(flatten)]
    pub(super) device: DeviceArgs,
    #[command(flatten)]
    pub(super) tools: ToolArgs,
}

/// The action when the context is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum WhenFull {
    Shift,
    Stop,
}
