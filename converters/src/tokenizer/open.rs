//! Reading a tokenizer's folder: tokenizer.json, and beside it tokenizer_config.json,
//! special_tokens_map.json, generation_config.json (further ends of generation) and
//! chat_template.jinja (which wins over the template in tokenizer_config.json, as in Transformers).

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::around::Around;
use super::bytes;
use super::codec::{Specials, Text, Tokenizer};
use super::encoder::Encoder;
use super::named::Sources;
use super::special::is_control;
use super::token::{Token, TokenKind};
use crate::chat::Template;
use crate::error::{Error, Result};
use crate::file::Bytes;

/// The keys of tokenizer_config.json whose texts a template may use.
const SPECIAL_KEYS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

fn fault(path: &Path, message: impl Into<String>) -> Error {
    Error::Tokenizer { path: path.to_owned(), message: message.into() }
}

/// A JSON object beside tokenizer.json, if the file is there.
fn object_beside(dir: &Path, name: &str) -> Result<Option<Map<String, Value>>> {
    let path = dir.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs_err::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(Error::format(&path, "expected a JSON object, found another JSON value")),
        Err(e) => Err(Error::format(&path, format!("expected a JSON object: {e}"))),
    }
}

impl Tokenizer {
    /// Opens a folder with a tokenizer.json, or a tokenizer.json itself.
    ///
    /// # Errors
    /// A file that cannot be read, is no tokenizer of the tokenizers library, or is not byte-level
    /// BPE.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let given = path.as_ref();
        let file = if given.is_dir() { given.join("tokenizer.json") } else { given.to_owned() };
        let dir = file.parent().unwrap_or(Path::new("."));
        let json = Bytes::map(&file)?.to_vec();
        let mut settings = object_beside(dir, "tokenizer_config.json")?.unwrap_or_default();
        if let Some(map) = object_beside(dir, "special_tokens_map.json")? {
            for key in SPECIAL_KEYS {
                if let (false, Some(value)) = (settings.contains_key(key), map.get(key)) {
                    settings.insert(key.to_owned(), value.clone());
                }
            }
        }
        let stated = settings.remove("chat_template");
        let templates = match Sources::of_files(dir)? {
            Some(files) => files,
            None => Sources::of_config(stated.as_ref()),
        };
        let mut tokenizer = Self::assemble(&file, json, settings, templates.default)?;
        tokenizer.set_named(templates.named);
        tokenizer.warn_of_settings();
        if let Some(generation) = object_beside(dir, "generation_config.json")? {
            let ids: Vec<u32> = match generation.get("eos_token_id") {
                Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
                Some(one) => id(one).into_iter().collect(),
                None => Vec::new(),
            };
            let known = |id: &&u32| tokenizer.has_token(**id);
            if let Some(unknown) = ids.iter().find(|id| !known(id)) {
                tokenizer.warnings.push(format!(
                    "{}: eos_token_id {unknown} has no token, so no text ends by it: left out",
                    dir.join("generation_config.json").display()
                ));
            }
            let ids: Vec<u32> =
                ids.iter().filter(|id| tokenizer.has_token(**id)).copied().collect();
            tokenizer.specials.eos = tokenizer.stop_ids(&ids);
        }
        Ok(tokenizer)
    }

    /// A tokenizer from the text of a tokenizer.json alone; `name` is what messages call it.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn from_json(json: Vec<u8>, name: impl AsRef<Path>) -> Result<Self> {
        Self::assemble(name.as_ref(), json, Map::new(), None)
    }

    /// A tokenizer from the text of tokenizer.json, tokenizer_config.json (without the template)
    /// and the template. `path` is for messages.
    pub(super) fn assemble(
        path: &Path,
        json: Vec<u8>,
        settings: Map<String, Value>,
        template: Option<String>,
    ) -> Result<Self> {
        let value: Value = serde_json::from_slice(&json)
            .map_err(|e| fault(path, format!("expected a JSON object: {e}")))?;
        Self::assemble_parsed(path, json, value, settings, template)
    }

    /// [`Tokenizer::assemble`] where `json` was parsed into, or made from, `value`.
    pub(super) fn assemble_parsed(
        path: &Path,
        json: Vec<u8>,
        value: Value,
        settings: Map<String, Value>,
        template: Option<String>,
    ) -> Result<Self> {
        require_byte_level_bpe(path, &value)?;
        let tokens = tokens(path, &value)?;
        let ids: HashMap<String, u32> = (0..)
            .zip(&tokens)
            .filter_map(|(id, token)| Some((token.as_ref()?.text.clone(), id)))
            .collect();
        let has = |id: u32| matches!(tokens.get(id as usize), Some(Some(_)));
        let around = Around::of(path, value.get("post_processor").unwrap_or(&Value::Null), has)?;
        let encoder = Encoder::new(path, value, &ids)?;
        let parts = Parts { json: Text::Read(json), encoder, tokens, ids, around };
        Ok(Self::of_parts(path, parts, settings, template))
    }

    /// A tokenizer of its parts, once it is known which tokens have which role.
    pub(super) fn of_parts(
        path: &Path,
        parts: Parts,
        settings: Map<String, Value>,
        template: Option<String>,
    ) -> Self {
        let Parts { json, encoder, tokens, ids, around } = parts;
        let mut warnings = Vec::new();
        let mut role = |key: &str, usual: &str| {
            // without a configuration, MiniMind's names; null in it means none
            let text = match settings.get(key) {
                Some(value) => token_text(value),
                None if settings.is_empty() => Some(usual),
                None => None,
            }?;
            let id = ids.get(text).copied();
            if id.is_none() && !settings.is_empty() {
                warnings.push(format!(
                    "{}: {key} is {text:?}, which is no token of tokenizer.json",
                    path.display()
                ));
            }
            id
        };
        let specials = Specials {
            bos: role("bos_token", "<|im_start|>"),
            eos: role("eos_token", "<|im_end|>").into_iter().collect(),
            pad: role("pad_token", "<|endoftext|>"),
            unk: role("unk_token", "<|endoftext|>"),
        };
        let template = template.map(|source| Template::new(source, variables(&settings)));
        if let Some(why) = template.as_ref().and_then(Template::compile_error) {
            warnings.push(format!(
                "{}: the chat template does not compile, so no chat can be rendered: {why}",
                path.display()
            ));
        }
        let path = path.to_owned();
        let named = Vec::new();
        Self {
            path,
            json,
            settings,
            encoder,
            tokens,
            ids,
            specials,
            around,
            template,
            named,
            warnings,
        }
    }

    /// The variables that templates may use beside the messages.
    pub(super) fn variables(&self) -> Map<String, Value> {
        variables(&self.settings)
    }

    /// Warns of settings in tokenizer_config.json that do not hold.
    fn warn_of_settings(&mut self) {
        let file = self.path.with_file_name("tokenizer_config.json");
        let nothing = [self.before_text().is_empty(), self.after_text().is_empty()];
        for (key, nothing) in ["add_bos_token", "add_eos_token"].into_iter().zip(nothing) {
            let stated = self.settings.get(key).and_then(Value::as_bool);
            // false is what mmx and many others write whatever the tokenizer does
            if stated == Some(true) && nothing {
                self.warnings.push(format!(
                    "{}: key {key}: true, but the post_processor of tokenizer.json adds nothing there, and \
                     Transformers goes by it",
                    file.display()
                ));
            }
        }
        for text in self.unknown_specials() {
            self.warnings.push(format!(
                "{}: {text:?} is no token of tokenizer.json: Transformers would give it an id beyond the \
                 vocabulary, so it is left out of what mmx writes",
                file.display()
            ));
        }
    }

    /// Further special tokens of tokenizer_config.json that tokenizer.json does not have.
    fn unknown_specials(&self) -> Vec<String> {
        let lists = ["additional_special_tokens", "extra_special_tokens"];
        let listed = lists.iter().filter_map(|key| self.settings.get(*key)?.as_array()).flatten();
        let roles = self
            .settings
            .iter()
            .filter(|(key, _)| key.ends_with("_token") && !SPECIAL_KEYS.contains(&key.as_str()));
        let texts = listed.chain(roles.map(|(_, value)| value)).filter_map(token_text);
        texts.filter(|text| self.id_of(text).is_none()).map(str::to_owned).collect()
    }
}

fn variables(settings: &Map<String, Value>) -> Map<String, Value> {
    let text = |&key: &&str| {
        Some((key.to_owned(), Value::from(token_text(settings.get(key)?)?.to_owned())))
    };
    SPECIAL_KEYS.iter().filter_map(text).collect()
}

/// The parts of a tokenizer that its files give directly.
pub(super) struct Parts {
    pub(super) json: Text,
    pub(super) encoder: Encoder,
    pub(super) tokens: Vec<Option<Token>>,
    /// Ids by the texts of their tokens.
    pub(super) ids: HashMap<String, u32>,
    pub(super) around: Around,
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

/// A special token's text: a string, or an object with `content`.
pub(super) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str))
}

/// Refuses a tokenizer that is not BPE over the byte-level alphabet: the bytes of tokens rest on
/// it.
fn require_byte_level_bpe(path: &Path, value: &Value) -> Result<()> {
    let model = value.pointer("/model/type").and_then(Value::as_str);
    // older files have no type; a list of merges tells BPE
    let bpe = model == Some("BPE") || (model.is_none() && value.pointer("/model/merges").is_some());
    if !bpe {
        let found = model.unwrap_or("none");
        return Err(fault(path, format!("model.type: expected BPE, found {found}")));
    }
    let decoders: Vec<&str> = match value.get("decoder") {
        Some(decoder) => match decoder.get("decoders").and_then(Value::as_array) {
            Some(list) => list.iter().filter_map(|d| d.get("type")?.as_str()).collect(),
            None => decoder.get("type").and_then(Value::as_str).into_iter().collect(),
        },
        None => Vec::new(),
    };
    if !decoders.contains(&"ByteLevel") {
        let found = if decoders.is_empty() { "none".to_owned() } else { decoders.join(", ") };
        return Err(fault(path, format!("decoder: expected ByteLevel, found {found}")));
    }
    Ok(())
}

fn tokens(path: &Path, value: &Value) -> Result<Vec<Option<Token>>> {
    let empty = Map::new();
    let vocab = value.pointer("/model/vocab").and_then(Value::as_object).unwrap_or(&empty);
    let added = value.get("added_tokens").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let alphabet = bytes::Alphabet::new();
    let mut tokens: Vec<Option<Token>> = Vec::new();
    /// Ids beyond this are taken for a fault of the file, not for a vocabulary.
    const MOST: usize = 1 << 24;
    let mut place = |text: &str, found: Option<&Value>, bytes: Vec<u8>, kind: TokenKind| {
        let id = found
            .and_then(Value::as_u64)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|&n| n < MOST)
            .ok_or_else(|| {
                let found = found.map_or("none".to_owned(), Value::to_string);
                fault(path, format!("token {text:?}: expected an id below {MOST}, found {found}"))
            })?;
        if tokens.len() <= id {
            tokens.resize(id + 1, None);
        }
        match &tokens[id] {
            Some(other) if other.text != text => Err(fault(
                path,
                format!("id {id}: expected one token, found {:?} and {text:?}", other.text),
            )),
            _ => {
                tokens[id] = Some(Token { text: text.to_owned(), bytes, kind });
                Ok(())
            }
        }
    };
    for (text, id) in vocab {
        let bytes = alphabet.bytes(text).unwrap_or_else(|| text.as_bytes().to_vec());
        place(text, Some(id), bytes, TokenKind::Normal)?;
    }
    for token in added {
        let text = token.get("content").and_then(Value::as_str).unwrap_or_default();
        if text.is_empty() {
            return Err(fault(path, "added_tokens: expected a content, found an empty one"));
        }
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        let kind =
            if is_control(text, special) { TokenKind::Control } else { TokenKind::UserDefined };
        place(text, token.get("id"), text.as_bytes().to_vec(), kind)?;
    }
    Ok(tokens)
}
