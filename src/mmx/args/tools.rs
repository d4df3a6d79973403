//! `--tools`: the tools that a model may call, and what runs them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mmx_converters::chat::answer::Call;
use mmx_ggml::run::LoadOptions;
use mmx_models::open::Form;
use mmx_models::speaker::Speaker;
use mmx_rollout::Called;
use mmx_rollout::reward::{Judge, Judges};
use mmx_rollout::sandbox::Sandbox;
use mmx_rollout::tools::{Tools, json_text};
use serde_json::{Value, json};

use crate::error::Result;

/// The options about tools.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct ToolArgs {
    /// Tools that the model may call: a JSON list in OpenAI's form, each with what runs it
    /// (docs/tools.md)
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// Run commands of tools and rewards where the system cannot confine them
    #[arg(long)]
    allow_unsandboxed: bool,
}

impl ToolArgs {
    /// The tools, where some are given.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no tools.
    pub(crate) fn open(&self) -> Result<Option<Tools>> {
        let open = |path: &PathBuf| Tools::open(path, self.sandbox());
        Ok(self.tools.as_ref().map(open).transpose()?)
    }

    /// Whether tools are given.
    pub(crate) fn is_some(&self) -> bool {
        self.tools.is_some()
    }

    /// What runs commands.
    pub(crate) fn sandbox(&self) -> Sandbox {
        Sandbox { allow_unsandboxed: self.allow_unsandboxed }
    }
}

/// A model of this machine that judges.
struct Local(Mutex<Speaker>);

impl Judge for Local {
    fn reply(&self, message: &str, tokens: usize) -> mmx_converters::Result<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).reply(message, tokens)
    }
}

/// Judges: servers, and any model that mmx opens.
pub(crate) fn judges(options: LoadOptions) -> Judges {
    Judges::new(Some(Box::new(move |name| {
        let form = Form::open(name.as_ref())?;
        let speaker = Speaker::open(&form, options.clone())?;
        Ok(Arc::new(Local(Mutex::new(speaker))) as Arc<dyn Judge>)
    })))
}

/// A call and what the tool gave, in words: `[name({"x": 1}) gives {"result": 2}]`.
pub(crate) fn in_words(called: &Called) -> String {
    let call = match Call::from_json(called.call.clone()) {
        Some(call) => format!("{}({})", call.name, json_text(&call.arguments)),
        None => json_text(&called.call),
    };
    format!("[{call} gives {}]", called.result)
}

/// A call and what the tool gave, as JSON.
pub(crate) fn to_json(called: &Called) -> Value {
    json!({
        "turn": called.turn, "call": called.call, "valid": called.is_valid, "result": called.result,
    })
}
