//! A row of the tables: one model in one engine with all that was measured of it.

use std::path::PathBuf;

use mmx_converters::gguf::GgmlType;
use mmx_models::engines::Kind;

use crate::choice::Scores;
use crate::perplexity::Perplexity;

/// The measurements of one model in one engine.
#[derive(Debug)]
pub struct Row {
    /// The model.
    pub path: PathBuf,
    /// Name of the model in tables.
    pub name: String,
    /// The engine that computed.
    pub engine: Kind,
    /// The type that most of its weights have.
    pub ty: GgmlType,
    /// Size of its weights on disk.
    pub bytes: u64,
    /// Perplexity of the text, where one was given.
    pub perplexity: Option<Perplexity>,
    /// Scores on the questions, where some were given.
    pub choice: Option<Scores>,
}
