//! [`Tokenizer`]: text to ids and back, chats to prompts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::around::Around;
use super::encoder::Encoder;
use super::json::Made;
use super::protect::{Guard, Piece};
use super::token::{Token, TokenKind};
use crate::chat::{self, Template};
use crate::error::{Error, Result};

/// A byte-level BPE tokenizer (or SentencePiece's BPE from a GGUF) with its special tokens and chat template.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// The file it came from, which messages name.
    pub(super) path: PathBuf,
    pub(super) json: Text,
    /// tokenizer_config.json as read, without the template.
    pub(super) settings: Map<String, Value>,
    pub(super) encoder: Encoder,
    /// Tokens by id; None where an id has no token.
    pub(super) tokens: Vec<Option<Token>>,
    pub(super) ids: HashMap<String, u32>,
    pub(super) specials: Specials,
    /// Tokens around a text by itself.
    pub(super) around: Around,
    /// The default template.
    pub(super) template: Option<Template>,
    /// Further templates, by name.
    pub(super) named: Vec<(String, Template)>,
    /// Sentences for the user: what looks odd but is no error.
    pub warnings: Vec<String>,
}

/// The text of tokenizer.json.
#[derive(Clone, Debug)]
pub(super) enum Text {
    /// Byte for byte as read.
    Read(Vec<u8>),
    /// Made from a GGUF's arrays, written when it is asked for.
    Made(Made),
    /// There is none of SentencePiece's tokenizers; these bytes tell one from another.
    Pieces(Vec<u8>),
}

/// The ids that have a role in a text: beginning, end, padding, unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Specials {
    pub(super) bos: Option<u32>,
    /// Every id that ends a generation, the main one first.
    pub(super) eos: Vec<u32>,
    pub(super) pad: Option<u32>,
    pub(super) unk: Option<u32>,
}

/// A rendered chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// What the template made of the messages.
    pub text: String,
    /// Its ids; control ids come from the template only, never from the text of a message.
    pub ids: Vec<u32>,
}

impl Tokenizer {
    /// The ids of a text; the text of any added token gives its id. Nothing is added.
    ///
    /// # Errors
    /// The library's own, on a text it cannot split.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encoder.encode(text, false).map_err(|e| self.fault(e))
    }

    /// The ids of a text by itself, as Transformers' `tokenizer(text)` gives them:
    /// [`Tokenizer::encode`], and around it the tokens that tokenizer.json's post-processor (or a
    /// GGUF's `add_bos_token`) adds. Chats are encoded without them: their template says what comes
    /// first.
    ///
    /// # Errors
    /// The library's own, on a text it cannot split.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode(text)?;
        Ok([self.before_text(), &ids, self.after_text()].concat())
    }

    /// Ids that come before every text by itself: mostly none.
    pub fn before_text(&self) -> &[u32] {
        &self.around.before
    }

    /// Ids that come after every text by itself: mostly none.
    pub fn after_text(&self) -> &[u32] {
        &self.around.after
    }

    /// The ids of a text in which nothing is a control token, whatever it says.
    ///
    /// # Errors
    /// The library's own, on a text it cannot split.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encoder.encode(text, true).map_err(|e| self.fault(e))
    }

    /// [`Tokenizer::encode`] of many texts, in parallel, in order.
    ///
    /// # Errors
    /// The first text that failed.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text.as_ref())).collect()
    }

    /// Renders messages and encodes the prompt. Control ids come from the template's own text only:
    /// a message that contains `<|im_end|>` is encoded as these ten characters.
    ///
    /// # Errors
    /// No template, one that does not compile, or one that refuses the messages.
    pub fn encode_chat(&self, messages: &[Value], options: &chat::Options) -> Result<Prompt> {
        let (guard, text) = self.guarded(messages, options)?;
        Ok(Prompt { ids: self.guarded_ids(&guard, &text)?, text: guard.strip(&text) })
    }

    /// The part of [`Tokenizer::encode_chat`] that a template writes after the last place of
    /// `mark`, a text that stands for a message's content: what follows it up to the next one's
    /// beginning. Nothing where the template does not write the mark.
    ///
    /// # Errors
    /// No template, one that does not compile, or one that refuses the messages.
    pub fn encode_chat_after(
        &self,
        mark: &str,
        messages: &[Value],
        options: &chat::Options,
    ) -> Result<Option<Prompt>> {
        let (guard, text) = self.guarded(messages, options)?;
        let Some(at) = text.rfind(mark) else { return Ok(None) };
        let rest = &text[at + mark.len()..];
        Ok(Some(Prompt { ids: self.guarded_ids(&guard, rest)?, text: guard.strip(rest) }))
    }

    /// A chat as the template writes it, control texts of its messages marked.
    fn guarded(&self, messages: &[Value], options: &chat::Options) -> Result<(Guard<'_>, String)> {
        let template = self.template_for(options)?;
        let control: Vec<&str> = self
            .tokens
            .iter()
            .flatten()
            .filter(|t| t.kind == TokenKind::Control)
            .map(|t| t.text.as_str())
            .collect();
        let guard = Guard::new(&control, messages, options, template.source())?;
        let text = template.render(&guard.messages, &guard.options)?;
        Ok((guard, text))
    }

    /// The ids of such a text.
    fn guarded_ids(&self, guard: &Guard<'_>, text: &str) -> Result<Vec<u32>> {
        if !guard.changed {
            return self.encode(text);
        }
        let mut ids = Vec::new();
        for piece in guard.pieces(text) {
            match piece {
                Piece::Control(token) => ids.extend(self.id_of(token)),
                Piece::Text(text) => ids.extend(self.encode_plain(&text)?),
            }
        }
        Ok(ids)
    }

    /// Renders messages as text, as training data is made: no message is protected.
    ///
    /// # Errors
    /// No template, one that does not compile, or one that refuses the messages.
    pub fn render_chat(&self, messages: &[Value], options: &chat::Options) -> Result<String> {
        self.template_for(options)?.render(messages, options)
    }

    /// The text of ids: bytes joined, then read as UTF-8 (U+FFFD where they are none). Ids without
    /// a token give nothing; with `skip_control`, control tokens neither.
    pub fn decode(&self, ids: &[u32], skip_control: bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            if !(skip_control && self.is_control(id)) {
                bytes.extend_from_slice(self.token_bytes(id));
            }
        }
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(broken) => String::from_utf8_lossy(broken.as_bytes()).into_owned(),
        }
    }

    /// The bytes an id stands for; none for an id without a token.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.token(id).map_or(&[], |t| t.bytes.as_slice())
    }

    /// A token as spelled in tokenizer.json (`Ġthe`).
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.token(id).map(|t| t.text.as_str())
    }

    /// The kind of a token; None for an id without a token.
    pub fn token_kind(&self, id: u32) -> Option<TokenKind> {
        self.token(id).map(|t| t.kind)
    }

    /// True for control tokens.
    pub fn is_control(&self, id: u32) -> bool {
        self.token_kind(id) == Some(TokenKind::Control)
    }

    /// True for ids of tokens; a sampler must never return another id.
    pub fn has_token(&self, id: u32) -> bool {
        self.token(id).is_some()
    }

    pub(super) fn token(&self, id: u32) -> Option<&Token> {
        self.tokens.get(usize::try_from(id).ok()?)?.as_ref()
    }

    /// The id of a token as spelled in tokenizer.json.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The highest id with a token, plus one. A model may have more rows than this.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// The id a text or turn begins with.
    pub fn bos_id(&self) -> Option<u32> {
        self.specials.bos
    }

    /// The main end of generation.
    pub fn eos_id(&self) -> Option<u32> {
        self.specials.eos.first().copied()
    }

    /// Every id the tokenizer's files call an end of generation, the main one first.
    pub fn eos_ids(&self) -> &[u32] {
        &self.specials.eos
    }

    /// The stop set: the tokenizer's ends first, then those of a model's configuration, none twice.
    pub fn stop_ids(&self, config_eos: &[u32]) -> Vec<u32> {
        let mut all = self.specials.eos.clone();
        for &id in config_eos {
            if !all.contains(&id) {
                all.push(id);
            }
        }
        all
    }

    /// The id of padding.
    pub fn pad_id(&self) -> Option<u32> {
        self.specials.pad
    }

    /// The id for text that has no other; byte-level vocabularies never need it.
    pub fn unk_id(&self) -> Option<u32> {
        self.specials.unk
    }

    /// The chat template, of several the default one.
    pub fn template(&self) -> Option<&Template> {
        self.template.as_ref()
    }

    /// The ids and texts of all added tokens (control and user-defined), by id.
    pub fn added_tokens(&self) -> impl Iterator<Item = (u32, &str, TokenKind)> {
        (0..).zip(&self.tokens).filter_map(|(id, token)| {
            let token = token.as_ref().filter(|t| t.kind != TokenKind::Normal)?;
            Some((id, token.text.as_str(), token.kind))
        })
    }

    /// The file it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses to write a tokenizer that is read from GGUFs alone.
    pub(super) fn refuse_pieces(&self, what: &str) -> Result<()> {
        match &self.json {
            Text::Pieces(_) => Err(Error::unsupported(
                format!("{}: {what}", self.path.display()),
                "SentencePiece's BPE is read from a GGUF, and not written",
            )),
            _ => Ok(()),
        }
    }

    /// tokenizer.json, byte for byte as read (or as built from a GGUF). Of SentencePiece's
    /// tokenizers, which have none here, the vocabulary in a form of mmx's own.
    pub fn json(&self) -> &[u8] {
        match &self.json {
            Text::Read(json) => json,
            Text::Made(made) => made.json(&self.tokens),
            Text::Pieces(bytes) => bytes,
        }
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> Error {
        Error::Tokenizer { path: self.path.clone(), message: message.into() }
    }
}
