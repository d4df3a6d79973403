//! The tokenizer as GGUF keys, out and in, so that a GGUF alone is enough to run a model.
//!
//! Source: docs/formats/gguf.md. The pre-tokenizer's name is `gpt-2`: the
//! only common name whose regex equals ByteLevel's; others split digits and line ends otherwise.

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Map, Value as Json};

use super::around::Around;
use super::bytes::Alphabet;
use super::codec::{Text, Tokenizer};
use super::encoder::Encoder;
use super::fast::Fast;
use super::json::Made;
use super::named::gguf_name;
use super::open::Parts;
use super::special::is_control;
use super::split;
use super::spm::{self, Spm};
use super::token::{Token, TokenKind};
use crate::arch::Config;
use crate::error::{Error, Result};
use crate::gguf::{Metadata, Value};

/// `tokenizer.ggml.token_type`. Source: llama.cpp's llama_token_type.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Names of llama.cpp whose regex is GPT-2's. Source: as for those of `split`.
const GPT2_REGEX: [&str; 9] = [
    "gpt-2",
    "trillion",
    "granite-docling",
    "phi-2",
    "gigachat",
    "a.x-4.0",
    "mellum",
    "mpt",
    "olmo",
];

/// Texts of tokens that end a text in models of others, whose files name one end at most. Source:
/// llama.cpp b10488, llama-vocab.cpp, the ids at which it stops.
const ENDS: [&str; 14] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

impl Tokenizer {
    /// The `tokenizer.*` keys of a GGUF, in order, one token per row of the model's embedding.
    ///
    /// # Errors
    /// A tokenizer whose ids llama.cpp could not reproduce: another pre-tokenizer, a normalizer, a
    /// post-processor that adds more than bos and eos, BPE without merges, added tokens that strip
    /// blanks, more tokens than rows.
    pub fn to_gguf_keys(&self, config: &Config) -> Result<Vec<(String, Value)>> {
        self.refuse_pieces("GGUF tokenizer")?;
        let json: Json =
            serde_json::from_slice(self.json()).map_err(|e| self.fault(e.to_string()))?;
        let pre = self.check_carried(&json)?;
        let merges = self.merges(&json)?;
        if config.vocab_size < self.vocab_size() {
            return Err(self.fault(format!(
                "expected at most vocab_size {} tokens, found {}",
                config.vocab_size,
                self.vocab_size()
            )));
        }
        let mut texts = Vec::with_capacity(config.vocab_size);
        let mut types = Vec::with_capacity(config.vocab_size);
        for id in 0..config.vocab_size {
            match self.tokens.get(id).and_then(Option::as_ref) {
                Some(token) => {
                    texts.push(token.text.clone());
                    types.push(match token.kind {
                        TokenKind::Normal => NORMAL,
                        TokenKind::Control => CONTROL,
                        TokenKind::UserDefined => USER_DEFINED,
                    });
                }
                None => {
                    let mut text = format!("[PAD{id}]");
                    while self.ids.contains_key(&text) {
                        text.push('_'); // texts must be unique
                    }
                    texts.push(text);
                    types.push(UNUSED);
                }
            }
        }
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let mut eos = self.stop_ids(&config.eos_token_id);
        eos.retain(|&id| (id as usize) < config.vocab_size); // readers refuse ids beyond the list
        let main_eos = eos.first().copied().unwrap_or(2);
        let bos = self.bos_id().unwrap_or(config.bos_token_id);
        let [add_bos, add_eos] = self.added_by_gguf(bos, main_eos)?;
        let mut keys = vec![
            (key("model"), Value::String("gpt2".into())),
            (key("pre"), Value::String(pre.into())),
            (key("tokens"), Value::Strings(texts)),
            (key("token_type"), Value::I32s(types)),
            (key("merges"), Value::Strings(merges)),
            (key("bos_token_id"), Value::U32(bos)),
            (key("eos_token_id"), Value::U32(main_eos)),
        ];
        let pad = self.pad_id().unwrap_or(config.pad_token_id);
        keys.push((key("unknown_token_id"), Value::U32(self.unk_id().unwrap_or(pad))));
        keys.push((key("padding_token_id"), Value::U32(pad)));
        // a second end of generation finds its place here; llama.cpp stops at either
        keys.push((key("eot_token_id"), Value::U32(eos.get(1).copied().unwrap_or(main_eos))));
        for (name, value) in
            [("add_bos_token", add_bos), ("add_eos_token", add_eos), ("add_space_prefix", false)]
        {
            keys.push((key(name), Value::Bool(value)));
        }
        // the order of llama.cpp's converter
        let mut names = Vec::new();
        for (name, template) in self.named_templates() {
            let name = gguf_name(name);
            let key = format!("tokenizer.chat_template.{name}");
            keys.push((key, Value::String(template.source().into())));
            names.push(name);
        }
        if !names.is_empty() {
            keys.push(("tokenizer.chat_templates".into(), Value::Strings(names)));
        }
        if let Some(template) = &self.template {
            keys.push(("tokenizer.chat_template".into(), Value::String(template.source().into())));
        }
        Ok(keys)
    }

    /// `add_bos_token` and `add_eos_token`: what GGUF has for a post-processor.
    fn added_by_gguf(&self, bos: u32, eos: u32) -> Result<[bool; 2]> {
        let Around { before, after } = &self.around;
        let adds = |ids: &[u32], one: u32| ids.is_empty() || ids == [one];
        if adds(before, bos) && adds(after, eos) {
            return Ok([!before.is_empty(), !after.is_empty()]);
        }
        let texts = |ids: &[u32]| match ids {
            [] => "nothing".to_owned(),
            ids => ids.iter().filter_map(|&id| self.token_text(id)).collect::<Vec<_>>().join(" "),
        };
        let token = |id: u32| self.token_text(id).unwrap_or("none");
        Err(Error::unsupported(
            format!("{}: GGUF tokenizer", self.path.display()),
            format!(
                "post_processor adds {} before each text and {} after it; a GGUF can add bos ({}) and eos ({}), \
                 each once",
                texts(before),
                texts(after),
                token(bos),
                token(eos)
            ),
        ))
    }

    /// The name of the pre-tokenizer in GGUFs; refuses every part of tokenizer.json that this name
    /// does not stand for, but for the post-processor.
    fn check_carried(&self, json: &Json) -> Result<&'static str> {
        let refuse = |part: &str, why: &str| {
            Err(Error::unsupported(
                format!("{}: GGUF tokenizer", self.path.display()),
                format!("{part} {why}"),
            ))
        };
        let null = Json::Null;
        let get = |pointer: &str| json.pointer(pointer).unwrap_or(&null);
        let named = split::of_json(get("/pre_tokenizer"));
        let name = named.map_or("gpt-2", |(name, _)| name);
        // Qwen's files compose characters first; llama.cpp, whose name it is, does not
        let composes = name == "qwen2" && get("/normalizer/type") == "NFC";
        if !get("/normalizer").is_null() && !composes {
            let name = part_name(get("/normalizer"));
            return refuse("normalizer", &format!("{name} has no GGUF name, only none has"));
        }
        if named.is_none() {
            let pre = only(get("/pre_tokenizer"), "pretokenizers");
            if pre.get("type").and_then(Json::as_str) != Some("ByteLevel") {
                let name = part_name(get("/pre_tokenizer"));
                return refuse(
                    "pre_tokenizer",
                    &format!("{name} has no known GGUF name, only ByteLevel and some others have"),
                );
            }
            // ByteLevel's own defaults are true for both
            if pre.get("add_prefix_space").and_then(Json::as_bool) != Some(false) {
                return refuse(
                    "pre_tokenizer",
                    "ByteLevel with add_prefix_space has no known GGUF name",
                );
            }
            if pre.get("use_regex").and_then(Json::as_bool) == Some(false) {
                return refuse(
                    "pre_tokenizer",
                    "ByteLevel without use_regex has no known GGUF name",
                );
            }
        }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if get(&format!("/model/{key}")).as_str().is_some_and(|s| !s.is_empty()) {
                return refuse(&format!("model.{key}"), "has no GGUF key");
            }
        }
        if get("/model/byte_fallback").as_bool() == Some(true) {
            return refuse("model.byte_fallback", "is not part of GGUF's gpt2 tokenizer");
        }
        let whole = named.is_some_and(|(_, pre)| pre.whole_words);
        if get("/model/ignore_merges").as_bool().unwrap_or(false) != whole {
            let why = format!("is not what {name} stands for in a GGUF ({whole})");
            return refuse("model.ignore_merges", &why);
        }
        if get("/model/dropout").as_f64().is_some_and(|p| p > 0.0) {
            return refuse("model.dropout", "makes ids random");
        }
        for token in get("/added_tokens").as_array().into_iter().flatten() {
            for key in ["lstrip", "rstrip", "single_word"] {
                if token.get(key).and_then(Json::as_bool) == Some(true) {
                    let text = token.get("content").and_then(Json::as_str).unwrap_or_default();
                    return refuse(
                        &format!("added token {text:?}:"),
                        &format!("{key} has no GGUF key"),
                    );
                }
            }
        }
        Ok(name)
    }

    /// The merges as `left right`, from either spelling of tokenizer.json.
    fn merges(&self, json: &Json) -> Result<Vec<String>> {
        let list = json.pointer("/model/merges").and_then(Json::as_array);
        let mut merges = Vec::new();
        for (rank, merge) in list.into_iter().flatten().enumerate() {
            let pair = match merge {
                Json::String(s) => Some(s.clone()),
                Json::Array(pair) => match pair.as_slice() {
                    [Json::String(left), Json::String(right)]
                        if !left.contains(' ') && !right.contains(' ') =>
                    {
                        Some(format!("{left} {right}"))
                    }
                    _ => None,
                },
                _ => None,
            };
            merges.push(pair.ok_or_else(|| {
                self.fault(format!("merge {rank}: expected two byte-level tokens, found {merge}"))
            })?);
        }
        if merges.is_empty()
            && let Some(token) = self.tokens.iter().flatten().find(|t| is_merged(t))
        {
            return Err(self.fault(format!(
                "expected merges, found none, though token {:?} is longer than one byte",
                token.text
            )));
        }
        Ok(merges)
    }

    /// The tokenizer that a GGUF's keys describe.
    ///
    /// # Errors
    /// Missing or malformed keys, another tokenizer model than byte-level BPE or SentencePiece's BPE,
    /// a pre-tokenizer that is not known, merges that are missing or name unknown tokens.
    pub fn from_gguf(metadata: &Metadata, path: &Path) -> Result<Self> {
        let missing = |key: &str, expected: &str| {
            let found = metadata.get(key).map_or("none".to_owned(), Value::describe);
            Error::key(path, key, format!("expected {expected}, found {found}"))
        };
        let string = |key: &str| metadata.string(key).ok_or_else(|| missing(key, "a string"));
        let model = string("tokenizer.ggml.model")?;
        if model != "gpt2" && model != "llama" {
            return Err(missing(
                "tokenizer.ggml.model",
                "\"gpt2\" (byte-level BPE) or \"llama\" (SentencePiece's BPE)",
            ));
        }
        let pieces = model == "llama";
        let name = metadata.string("tokenizer.ggml.pre").unwrap_or_default();
        let pre = if pieces { None } else { split::of_gguf(name) };
        if !pieces && pre.is_none() && !GPT2_REGEX.contains(&name) {
            let expected = format!(
                "one of gpt-2, {} (another pre-tokenizer splits text otherwise, and its ids would be wrong)",
                split::names()
            );
            return Err(missing("tokenizer.ggml.pre", &expected));
        }
        let tokens_key = "tokenizer.ggml.tokens";
        let Some(Value::Strings(texts)) = metadata.get(tokens_key) else {
            return Err(missing(tokens_key, "an array of strings"));
        };
        let types = match metadata.get("tokenizer.ggml.token_type") {
            Some(Value::I32s(types)) if types.len() == texts.len() => types.clone(),
            None => vec![NORMAL; texts.len()],
            Some(_) => {
                let expected = format!("{} i32, one per token", texts.len());
                return Err(missing("tokenizer.ggml.token_type", &expected));
            }
        };
        let merges: &[String] = match metadata.get("tokenizer.ggml.merges") {
            Some(Value::Strings(merges)) => merges,
            Some(other) if other.array_len() == Some(0) => &[],
            None => &[],
            Some(_) => return Err(missing("tokenizer.ggml.merges", "an array of strings")),
        };
        let mut settings = Map::new();
        let id_of = |name: &str| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.{name}");
            let Some(value) = metadata.get(&key) else { return Ok(None) };
            let id = value.as_u64().and_then(|n| u32::try_from(n).ok());
            match id.filter(|&id| (id as usize) < texts.len()) {
                Some(id) => Ok(Some(id)),
                None => Err(missing(&key, &format!("a token id below {}", texts.len()))),
            }
        };
        for (key, name) in [
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("pad_token", "padding_token_id"),
            ("unk_token", "unknown_token_id"),
        ] {
            let text = id_of(name)?.map(|id| texts[id as usize].clone());
            settings.insert(key.into(), text.map_or(Json::Null, Json::from));
        }
        let template = metadata.string("tokenizer.chat_template").map(str::to_owned);
        let bytes_of = if pieces { spm::bytes_of } else { byte_level };
        let tokens = tokens(path, texts, &types, &bytes_of)?;
        let mut ids = HashMap::with_capacity(tokens.len());
        let texts_of = tokens.iter().map(|token| Some(token.as_ref()?.text.clone()));
        ids.extend((0..).zip(texts_of).filter_map(|(id, text)| Some((text?, id))));
        if let Some(twice) = repeated(&tokens, &ids) {
            let message = format!("expected unique tokens, found {twice:?} twice");
            return Err(Error::key(path, tokens_key, message));
        }
        let pairs = pairs(path, merges)?;
        let mut around = Around::default();
        // what llama.cpp does where the file does not say
        let bos = pieces || pre.is_some_and(|pre| pre.bos);
        for (key, name, ids, usual) in [
            ("tokenizer.ggml.add_bos_token", "bos_token_id", &mut around.before, bos),
            ("tokenizer.ggml.add_eos_token", "eos_token_id", &mut around.after, false),
        ] {
            if metadata.get(key).and_then(Value::as_bool).unwrap_or(usual) {
                let id =
                    id_of(name)?.filter(|&id| matches!(tokens.get(id as usize), Some(Some(_))));
                let expected = format!("the id of a token, for {key} is true");
                ids.push(id.ok_or_else(|| missing(&format!("tokenizer.ggml.{name}"), &expected))?);
            }
        }
        let added: Vec<(&str, u32, bool)> = (0..)
            .zip(&tokens)
            .filter_map(|(id, token)| Some((id, token.as_ref()?)))
            .filter(|(_, token)| token.kind != TokenKind::Normal)
            .map(|(id, token)| (token.text.as_str(), id, token.kind == TokenKind::Control))
            .collect();
        let special = (0..).zip(&types).filter(|(_, kind)| matches!(**kind, CONTROL | UNKNOWN));
        let made = Made {
            special: special.map(|(id, _)| id).collect(),
            merges: merges.to_vec(),
            around: around.clone(),
            pre,
            text: OnceLock::new(),
        };
        let scores = match pieces {
            true => scores(metadata, texts.len())
                .map_err(|expected| missing("tokenizer.ggml.scores", &expected))?,
            false => Vec::new(),
        };
        let encoder: Option<Encoder> = if pieces {
            let prefix = metadata.get("tokenizer.ggml.add_space_prefix").and_then(Value::as_bool);
            let spm =
                Spm::new(&tokens, &scores, id_of("unknown_token_id")?, prefix.unwrap_or(true));
            let spm = spm.ok_or_else(|| missing(tokens_key, "added tokens that can be found"))?;
            Some(spm.into())
        } else {
            let other = pre.map(|pre| (pre, whole_words(pre, &tokens)));
            Fast::new(&pairs, |text| ids.get(text).copied(), &added, other).map(Encoder::from)
        };
        let mut tokenizer = match encoder {
            Some(encoder) => {
                let json = match pieces {
                    true => Text::Pieces(pieces_digest(texts, &types, &scores)),
                    false => Text::Made(made),
                };
                let parts = Parts { json, encoder, tokens, ids, around };
                Self::of_parts(path, parts, settings, template)
            }
            // the library says what is wrong with it
            None => Self::assemble(path, made.json(&tokens).to_vec(), settings, template)?,
        };
        let ends: Vec<u32> =
            [id_of("eos_token_id")?, id_of("eot_token_id")?, id_of("eom_token_id")?]
                .into_iter()
                .flatten()
                .collect();
        tokenizer.specials.eos = tokenizer.stop_ids(&ends);
        if pieces || pre.is_some() {
            let known: Vec<u32> = ENDS.iter().filter_map(|text| tokenizer.id_of(text)).collect();
            tokenizer.specials.eos = tokenizer.stop_ids(&known);
        }
        if !pieces
            && merges.is_empty()
            && let Some(token) = tokenizer.tokens.iter().flatten().find(|t| is_merged(t))
        {
            return Err(tokenizer.fault(format!(
                "key tokenizer.ggml.merges: expected merges, found none, though token {:?} is longer \
                 than one byte",
                token.text
            )));
        }
        let named = metadata.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix("tokenizer.chat_template.")?;
            Some((name.to_owned(), value.as_str()?.to_owned()))
        });
        tokenizer.set_named(named.collect());
        Ok(tokenizer)
    }
}

/// A normal token of more than one byte: only a merge can make it.
fn is_merged(token: &Token) -> bool {
    token.kind == TokenKind::Normal && token.bytes.len() > 1
}

/// The one part of a `Sequence`, or the part itself.
fn only<'a>(part: &'a Json, list: &str) -> &'a Json {
    match part.get(list).and_then(Json::as_array).map(Vec::as_slice) {
        Some([one]) => one,
        _ => part,
    }
}

fn part_name(part: &Json) -> String {
    part.get("type").and_then(Json::as_str).unwrap_or("none").to_owned()
}

/// The bytes of a token in the byte-level alphabet; a text outside it stands for itself.
fn byte_level(text: &str) -> Vec<u8> {
    static ALPHABET: OnceLock<Alphabet> = OnceLock::new();
    let alphabet = ALPHABET.get_or_init(Alphabet::new);
    alphabet.bytes(text).unwrap_or_else(|| text.as_bytes().to_vec())
}

/// The normal tokens by their bytes, where a word that is one is taken whole.
fn whole_words(pre: &split::Pre, tokens: &[Option<Token>]) -> HashMap<Vec<u8>, u32> {
    let tokens = if pre.whole_words { tokens } else { &[] };
    let normal = (0..).zip(tokens).filter_map(|(id, token)| Some((id, token.as_ref()?)));
    let normal = normal.filter(|(_, token)| token.kind == TokenKind::Normal);
    normal.map(|(id, token)| (token.bytes.clone(), id)).collect()
}

/// The scores of SentencePiece's tokens.
fn scores(metadata: &Metadata, count: usize) -> std::result::Result<Vec<f32>, String> {
    match metadata.get("tokenizer.ggml.scores") {
        Some(Value::F32s(scores)) if scores.len() == count => Ok(scores.clone()),
        _ => Err(format!("{count} f32, one per token")),
    }
}

/// What tells such a tokenizer from another one; there is no tokenizer.json of it.
fn pieces_digest(texts: &[String], types: &[i32], scores: &[f32]) -> Vec<u8> {
    let line = |((text, kind), score): ((&String, &i32), &f32)| {
        format!("{text:?} {kind} {:08x}\n", score.to_bits())
    };
    texts.iter().zip(types).zip(scores).map(line).collect::<String>().into_bytes()
}

/// The tokens of a GGUF's arrays.
fn tokens(
    path: &Path,
    texts: &[String],
    types: &[i32],
    bytes_of: &dyn Fn(&str) -> Vec<u8>,
) -> Result<Vec<Option<Token>>> {
    let token = |(id, (text, kind)): (usize, (&String, &i32))| {
        let special = match *kind {
            UNUSED => return Ok(None),
            CONTROL | UNKNOWN => Some(true),
            USER_DEFINED => Some(false),
            _ => None,
        };
        if text.is_empty() {
            let message = format!("token {id}: expected a text, found an empty one");
            return Err(Error::key(path, "tokenizer.ggml.tokens", message));
        }
        let as_is = || text.as_bytes().to_vec();
        let (bytes, kind) = match special {
            None => (bytes_of(text), TokenKind::Normal),
            Some(special) if is_control(text, special) => (as_is(), TokenKind::Control),
            Some(_) => (as_is(), TokenKind::UserDefined),
        };
        Ok(Some(Token { text: text.clone(), bytes, kind }))
    };
    let mut tokens = Vec::with_capacity(texts.len());
    for each in texts.iter().zip(types).enumerate() {
        tokens.push(token(each)?);
    }
    // rows of the model beyond the tokenizer are none of its tokens
    tokens.truncate(tokens.iter().rposition(Option::is_some).map_or(0, |last| last + 1));
    Ok(tokens)
}

/// A text that two tokens have.
fn repeated<'t>(tokens: &'t [Option<Token>], ids: &HashMap<String, u32>) -> Option<&'t str> {
    let mut tokens = (0..).zip(tokens).filter_map(|(id, token)| Some((id, token.as_ref()?)));
    let (_, token) = tokens.find(|(id, token)| ids.get(&token.text) != Some(id))?;
    Some(&token.text)
}

/// Left and right of each merge.
fn pairs<'m>(path: &Path, merges: &'m [String]) -> Result<Vec<(&'m str, &'m str)>> {
    let pair = |(rank, merge): (usize, &'m String)| match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left, right))
        }
        _ => {
            let message = format!("merge {rank}: expected \"left right\", found {merge:?}");
            Err(Error::key(path, "tokenizer.ggml.merges", message))
        }
    };
    merges.iter().enumerate().map(pair).collect()
}
