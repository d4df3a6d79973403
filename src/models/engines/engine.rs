//! The trait behind which every engine computes logits, and the engines' names.

use mmx_converters::{Error, Result};

/// The kinds of engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// tch: the model as it is trained
    Native,
    /// mmx's own runner on ggml
    Ggml,
    /// llama.cpp itself
    LlamaCpp,
}

impl Kind {
    /// The engine's name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Ggml => "ggml",
            Self::LlamaCpp => "llama.cpp",
        }
    }
}

/// A loaded model that computes logits.
pub trait Engine {
    /// Computes the logits `[ids.len(), vocab]`, row-major, of one sequence from its beginning,
    /// with float32 key-value caches.
    ///
    /// # Errors
    /// An id beyond the vocabulary, a sequence beyond the context, or the library's own failure.
    fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>>;

    /// Computes the logits of the positions from `from` on alone, `[ids.len() - from, vocab]`. An
    /// engine may keep what it computed of a beginning that the next sequence shares.
    ///
    /// # Errors
    /// As [`Engine::logits`].
    fn logits_from(&mut self, ids: &[u32], from: usize) -> Result<Vec<f32>> {
        let mut all = self.logits(ids)?;
        all.drain(..from.min(ids.len()) * self.vocab());
        Ok(all)
    }

    /// Ids of a text as this engine's own tokenizer reads it (specials recognised), if it has one.
    ///
    /// # Errors
    /// The tokenizer's own failure.
    fn tokenize(&mut self, text: &str) -> Result<Option<Vec<u32>>>;

    /// The devices on which the model's layers lie, in words, where some do not lie on the CPU.
    fn placement(&self) -> Option<String> {
        None
    }

    /// Number of logits per position.
    fn vocab(&self) -> usize;
}

/// Refuses an empty sequence and ids beyond the vocabulary, which some libraries answer with a
/// crash.
pub(super) fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::failed("expected at least one id, found none"));
    }
    match ids.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => {
            Err(Error::failed(format!("expected ids below {vocab} (the vocabulary), found {id}")))
        }
        None => Ok(()),
    }
}
