//! Values of options that stand for the libraries' own.

use clap::ValueEnum;
use mmx_eval::benchmarks;
use mmx_models::{engines, export};

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// tch: the model as it is trained
    Native,
    /// mmx's own runner on ggml
    Ggml,
    /// llama.cpp itself
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

impl From<Engine> for engines::Kind {
    fn from(value: Engine) -> Self {
        match value {
            Engine::Native => Self::Native,
            Engine::Ggml => Self::Ggml,
            Engine::LlamaCpp => Self::LlamaCpp,
        }
    }
}

/// An engine, or a running server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// An engine of mmx's
    In(Engine),
    /// `ollama:NAME` or `openai:URL[#MODEL]`
    At(String),
}

/// Reads an engine or the name of a server.
///
/// # Errors
/// Neither.
pub(crate) fn judged(text: &str) -> std::result::Result<Judged, String> {
    if text.starts_with("ollama:") || text.starts_with("openai:") {
        return Ok(Judged::At(text.to_owned()));
    }
    Engine::from_str(text, false).map(Judged::In).map_err(|_| {
        let names = Engine::value_variants().iter().filter_map(Engine::to_possible_value);
        let names: Vec<_> = names.map(|name| name.get_name().to_owned()).collect();
        format!("expected {}, ollama:NAME or openai:URL[#MODEL]", names.join(", "))
    })
}

/// The form in which adapters are written alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AdapterForm {
    /// PEFT's folder
    Peft,
    /// A GGUF for llama.cpp's --lora
    Gguf,
}

impl From<AdapterForm> for export::AdapterForm {
    fn from(value: AdapterForm) -> Self {
        match value {
            AdapterForm::Peft => Self::Peft,
            AdapterForm::Gguf => Self::Gguf,
        }
    }
}

/// The way in which a multiple-choice question is asked and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum By {
    /// The options stand in the prompt, and the letters' likelihoods are compared
    Letter,
    /// The options do not stand in the prompt, and their whole texts' likelihoods are compared
    Answer,
    /// One after the other
    Both,
}

impl By {
    /// The ways that it stands for.
    pub(crate) fn ways(self) -> Vec<benchmarks::By> {
        match self {
            Self::Letter => vec![benchmarks::By::Letter],
            Self::Answer => vec![benchmarks::By::Answer],
            Self::Both => vec![benchmarks::By::Letter, benchmarks::By::Answer],
        }
    }
}
