//! The encoder of text to ids: computed directly for MiniMind's kind of tokenizer, else by the
//! tokenizers library.
//!
//! In: a parsed tokenizer.json. Out: an encoder in two forms, one that recognises all added tokens
//! and one that knows no control token.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, Tokenizer as Library};

use super::fast::Fast;
use super::special::is_control;
use super::spm::Spm;
use crate::error::{Error, Result};

/// An encoder in both forms; the library's objects are large and slow to make, so they are made
/// only where they are needed.
#[derive(Clone, Debug)]
pub(super) enum Encoder {
    Fast { full: Fast, plain: Fast },
    Library { full: Box<Library>, plain: Box<Library> },
    Pieces(Spm),
}

impl Encoder {
    /// Makes the encoder of a parsed tokenizer.json, with the ids of its tokens by their texts.
    ///
    /// # Errors
    /// What the library cannot read.
    pub(super) fn new(path: &Path, value: Value, ids: &HashMap<String, u32>) -> Result<Self> {
        if let Some(fast) = Fast::of_json(&value, ids) {
            return Ok(fast.into());
        }
        let (full, plain) = libraries(path, value)?;
        Ok(Self::Library { full: full.into(), plain: plain.into() })
    }

    /// The ids of a text; nothing in it is a control token where it is `plain`.
    ///
    /// # Errors
    /// The library's, in words.
    pub(super) fn encode(&self, text: &str, plain: bool) -> std::result::Result<Vec<u32>, String> {
        match self {
            Self::Fast { full, plain: other } => Ok(if plain { other } else { full }.encode(text)),
            Self::Pieces(spm) => Ok(spm.encode(text, plain)),
            Self::Library { full, plain: other } => {
                let library = if plain { other } else { full };
                let encoding = library.encode_fast(text, false).map_err(|e| e.to_string())?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }
}

impl From<[Fast; 2]> for Encoder {
    fn from([full, plain]: [Fast; 2]) -> Self {
        Self::Fast { full, plain }
    }
}

impl From<Spm> for Encoder {
    fn from(spm: Spm) -> Self {
        Self::Pieces(spm)
    }
}

/// The tokenizers library's own objects, with truncation and padding off: one that knows all added
/// tokens, and one without control tokens, which text of messages is read with.
///
/// Vocabulary and merges are read straight from the JSON's values: the library's way from text
/// keeps a copy of everything to try one kind of model after the other (measured: ten times as
/// long).
pub(super) fn libraries(path: &Path, mut value: Value) -> Result<(Library, Library)> {
    let refused = |error: &dyn std::fmt::Display| Error::Tokenizer {
        path: path.to_owned(),
        message: format!("expected a tokenizer of the tokenizers library: {error}"),
    };
    let added = value.get_mut("added_tokens").map(Value::take).unwrap_or_default();
    let added: Vec<AddedToken> = match added {
        Value::Null => Vec::new(),
        list => serde_json::from_value(list).map_err(|e| refused(&e))?,
    };
    let model = value.get_mut("model").map(Value::take).unwrap_or_default();
    let model = BPE::deserialize(&model).map_err(|e| refused(&e))?;
    if let Some(object) = value.as_object_mut() {
        object.remove("added_tokens");
        object.insert("model".into(), json!({"type": "BPE", "vocab": {}, "merges": []}));
    }
    let shell = serde_json::to_vec(&value).map_err(|e| refused(&e))?;
    let mut full = Library::from_bytes(shell).map_err(|e| refused(&e))?;
    full.with_model(model);
    full.with_truncation(None).map_err(|e| refused(&e))?;
    full.with_padding(None);
    let mut plain = full.clone();
    let texts = added.iter().filter(|t| !is_control(&t.content, t.special)).cloned();
    plain.add_tokens(texts).map_err(|e| refused(&e))?;
    full.add_tokens(added).map_err(|e| refused(&e))?;
    Ok((full, plain))
}
