//! tokenizer.json of MiniMind's kind, made from a vocabulary, its merges and its added tokens.

use std::collections::HashSet;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::around::Around;
use super::split::Pre;
use super::token::{Token, TokenKind};

/// The parts of a tokenizer.json that a GGUF's arrays hold beside the tokens.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// Ids of tokens that tokenizer.json calls special.
    pub(super) special: HashSet<u32>,
    /// The merges, each as `left right`.
    pub(super) merges: Vec<String>,
    pub(super) around: Around,
    /// Another pre-tokenizer than GPT-2's.
    pub(super) pre: Option<&'static Pre>,
    pub(super) text: OnceLock<Vec<u8>>,
}

impl Made {
    /// tokenizer.json as the tokenizers library spells it.
    pub(super) fn json(&self, tokens: &[Option<Token>]) -> &[u8] {
        self.text.get_or_init(|| {
            let mut vocab = Map::new();
            let mut added = Vec::new();
            for (id, token) in (0u32..).zip(tokens) {
                let Some(Token { text, kind, .. }) = token else { continue };
                vocab.insert(text.clone(), id.into());
                if *kind != TokenKind::Normal {
                    added.push(json!({
                        "id": id, "content": text, "single_word": false, "lstrip": false,
                        "rstrip": false, "normalized": false, "special": self.special.contains(&id),
                    }));
                }
            }
            let pair = |merge: &String| {
                let (left, right) = merge.split_once(' ').unwrap_or((merge, ""));
                json!([left, right])
            };
            let merges = self.merges.iter().map(pair).collect();
            let text_of = |id: u32| match tokens.get(id as usize) {
                Some(Some(token)) => token.text.as_str(),
                _ => "",
            };
            let post = self.around.json(text_of);
            let mut json = tokenizer_json(added, vocab, merges, post);
            if let Some(pre) = self.pre {
                json["pre_tokenizer"] = pre_tokenizer(pre);
                json["model"]["ignore_merges"] = pre.whole_words.into();
            }
            format!("{json:#}").into_bytes()
        })
    }
}

/// A pre-tokenizer as the tokenizers library spells it.
fn pre_tokenizer(pre: &Pre) -> Value {
    let split = |pattern: &&str| {
        json!({
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false,
        })
    };
    let mut all: Vec<Value> = pre.patterns.iter().map(split).collect();
    all.push(json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    }));
    json!({"type": "Sequence", "pretokenizers": all})
}

/// A tokenizer.json of MiniMind's kind: byte-level BPE with GPT-2's regex.
pub(super) fn tokenizer_json(
    added_tokens: Vec<Value>,
    vocab: Map<String, Value>,
    merges: Vec<Value>,
    post_processor: Value,
) -> Value {
    let byte_level = |prefix: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true,
        })
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": null,
        "pre_tokenizer": byte_level(false),
        "post_processor": post_processor,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    })
}
