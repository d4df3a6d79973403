//! A row of the tables: one model in one engine with all that was measured of it.

use std::path::PathBuf;

use mmx_converters::gguf::GgmlType;
use mmx_models::engines::Kind;

use crate::choice::Scores;
use crate::perplexity::Perplexity;

/// One model in one engine, measured.
#[derive(Debug)]
pub struct Row {
    /// The model.
    pub path: PathBuf,
    /// What tables call it.
    pub name: String,
    /// The engine that computed.
    pub engine: Kind,
    /// The type most of its weights have.
    pub ty: GgmlType,
    /// Size of its weights on disk.
    pub bytes: u64,
    /// How well it predicts the text, where one was given.
    pub perplexity: Option<Perplexity>,
    /// How it answered the questions, where some were given.
    pub choice: Option<Scores>,
}
