//! Rows for new tokens: a model whose tokenizer got more entries.
//!
//! In: an open model, its tokenizer, and one with the same entries and more. Out: the same model
//! with a row of the embedding, and of a head of its own, for each new token: the mean of the rows of
//! the pieces that the model's tokenizer cuts it into, so that the new token begins as what its
//! pieces were together. All other rows stay, to the bit. Source: Koto, Lau and Baldwin 2021
//! (IndoBERTweet), who compared beginnings of new rows and found the pieces' mean best.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::arch::{Config, Role, Weight};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, TensorView, encode_f32};
use crate::tokenizer::Tokenizer;

/// The rows that a model's file does not have.
#[derive(Debug)]
pub(super) struct Grown {
    /// New tokens, each with the old ones that it is cut into.
    pieces: Vec<(u32, Vec<u32>)>,
    /// The embedding, and the head of an untied model, as the file has them.
    stored: Vec<Weight>,
}

impl Grown {
    /// Rows for each token that `new` has and `old`, the tokenizer of the model of `config`, has
    /// not; nothing where there is none. `weights` is the model's table.
    ///
    /// # Errors
    /// A token of `old` that is another one in `new`: its row would stand for something else; a new
    /// token without pieces.
    pub(super) fn new(
        config: &Config,
        weights: &[Weight],
        old: &Tokenizer,
        new: &Tokenizer,
    ) -> Result<Option<Self>> {
        let fault = |message: String| Err(Error::format(new.path(), message));
        for id in 0..old.vocab_size() as u32 {
            if old.token_text(id) != new.token_text(id) && old.has_token(id) {
                let shown = |of: &Tokenizer| of.token_text(id).unwrap_or("none").to_owned();
                return fault(format!(
                    "id {id}: expected {:?} as in the model's tokenizer, found {:?}",
                    shown(old),
                    shown(new)
                ));
            }
        }
        let splitter = Splitter::new(old);
        let mut pieces = Vec::new();
        for id in (0..new.vocab_size() as u32).filter(|id| new.has_token(*id)) {
            if old.has_token(id) {
                continue;
            }
            let of = splitter.pieces(new.token_bytes(id))?;
            if of.is_empty() || of.iter().any(|piece| *piece as usize >= config.vocab_size) {
                let text = new.token_text(id).unwrap_or_default();
                return fault(format!(
                    "id {id}, {text:?}: expected a token that the model's tokenizer cuts into some \
                     of its own, found none"
                ));
            }
            pieces.push((id, of));
        }
        let ends = |weight: &&Weight| matches!(weight.role, Role::Embedding | Role::Head);
        let stored = weights.iter().filter(ends).cloned().collect();
        Ok((!pieces.is_empty()).then_some(Self { pieces, stored }))
    }

    /// The number of new tokens.
    pub(super) fn added(&self) -> usize {
        self.pieces.len()
    }

    /// The weight as the file has it: with fewer rows, where it is the embedding or a head.
    pub(super) fn as_stored<'w>(&'w self, weight: &'w Weight) -> &'w Weight {
        self.stored.iter().find(|stored| stored.name == weight.name).unwrap_or(weight)
    }

    /// The values of `weight` with the rows of the new tokens; `data` is what the file has of it.
    pub(super) fn rows<'a>(
        &self,
        weight: &Weight,
        (dtype, data): (Dtype, Cow<'a, [u8]>),
    ) -> (Dtype, Cow<'a, [u8]>) {
        if !self.stored.iter().any(|stored| stored.name == weight.name) {
            return (dtype, data);
        }
        let columns = weight.shape[1];
        let bytes = columns * dtype.size();
        let row = |id: u32| id as usize * bytes..(id as usize + 1) * bytes;
        let mut out = data.to_vec();
        out.resize(weight.shape[0] * bytes, 0);
        for (id, pieces) in &self.pieces {
            let mut mean = vec![0f64; columns];
            for piece in pieces {
                let shape = [columns];
                let view = TensorView { dtype, shape: &shape, data: &data[row(*piece)] };
                let values = view.to_f32();
                mean.iter_mut().zip(values).for_each(|(mean, value)| *mean += f64::from(value));
            }
            let mean: Vec<f32> =
                mean.iter().map(|sum| (sum / pieces.len() as f64) as f32).collect();
            out[row(*id)].copy_from_slice(&encode_f32(&mean, dtype));
        }
        (dtype, Cow::Owned(out))
    }
}

/// Cuts tokens' bytes as a tokenizer does.
struct Splitter<'t> {
    tokenizer: &'t Tokenizer,
    /// Its tokens by their bytes, control tokens left out.
    ids: HashMap<&'t [u8], u32>,
    longest: usize,
}

impl<'t> Splitter<'t> {
    fn new(tokenizer: &'t Tokenizer) -> Self {
        let ids: HashMap<&[u8], u32> = (0..tokenizer.vocab_size() as u32)
            .filter(|id| tokenizer.has_token(*id) && !tokenizer.is_control(*id))
            .map(|id| (tokenizer.token_bytes(id), id))
            .collect();
        let longest = ids.keys().map(|bytes| bytes.len()).max().unwrap_or(0);
        Self { tokenizer, ids, longest }
    }

    /// The pieces of a token: as the tokenizer cuts its text, and of a part of a character, which
    /// is no text, the longest tokens from its beginning on.
    fn pieces(&self, bytes: &[u8]) -> Result<Vec<u32>> {
        if let Ok(text) = std::str::from_utf8(bytes) {
            return self.tokenizer.encode_plain(text);
        }
        let (mut rest, mut pieces) = (bytes, Vec::new());
        while !rest.is_empty() {
            let most = self.longest.min(rest.len());
            let found = (1..=most).rev().find_map(|n| Some((n, *self.ids.get(&rest[..n])?)));
            let Some((n, id)) = found else { return Ok(Vec::new()) };
            pieces.push(id);
            rest = &rest[n..];
        }
        Ok(pieces)
    }
}
