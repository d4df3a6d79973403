//! Tokens that a tokenizer puts around a text: tokenizer.json's `post_processor`, judged by what it
//! does.
//!
//! In: the JSON of a post-processor. Out: the ids before and after a text. Every kind that the
//! tokenizers library knows is read, alone or in a `Sequence`; ByteLevel, and a TemplateProcessing
//! without tokens (which Transformers 5 writes into every file it saves), put nothing there.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{Encoding, PostProcessor, Token as Piece};

use crate::error::{Error, Result};

/// Ids before and after a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Around {
    pub(super) before: Vec<u32>,
    pub(super) after: Vec<u32>,
}

impl Around {
    /// Reads a `post_processor`, null for none; `has` tells which ids have a token.
    ///
    /// # Errors
    /// What the library cannot read, a text that is dropped or repeated, tokens that are not there.
    pub(super) fn of(path: &Path, processor: &Value, has: impl Fn(u32) -> bool) -> Result<Self> {
        /// Stands for the text: no vocabulary is that large.
        const TEXT: u32 = u32::MAX;
        if processor.is_null() {
            return Ok(Self::default());
        }
        let fault = |message: String| Error::Tokenizer {
            path: path.to_owned(),
            message: format!("post_processor: {message}"),
        };
        if let Some(token) = undeclared(processor) {
            return Err(fault(format!("expected {token:?} among its special_tokens, found none")));
        }
        let processor: PostProcessorWrapper = serde_json::from_value(processor.clone())
            .map_err(|e| fault(format!("expected one of the tokenizers library: {e}")))?;
        let text = Encoding::from_tokens(vec![Piece::new(TEXT, "x".to_owned(), (0, 1))], 0);
        let made = processor.process(text, None, true).map_err(|e| fault(e.to_string()))?;
        let mut parts = made.get_ids().split(|&id| id == TEXT);
        let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(fault(format!(
                "expected the text once in what it makes, found {:?}",
                made.get_tokens()
            )));
        };
        if let Some(id) = before.iter().chain(after).find(|&&id| !has(id)) {
            return Err(fault(format!("expected ids of tokens, found {id}, which has none")));
        }
        Ok(Self { before: before.to_vec(), after: after.to_vec() })
    }

    /// A `post_processor` that adds these ids, as Transformers writes one: null where nothing is
    /// added.
    pub(super) fn json<'t>(&self, text_of: impl Fn(u32) -> &'t str) -> Value {
        if *self == Self::default() {
            return Value::Null;
        }
        let part = |name: &str, kind: usize| {
            let special = |&id: &u32| json!({"SpecialToken": {"id": text_of(id), "type_id": kind}});
            let mut pieces: Vec<Value> = self.before.iter().map(special).collect();
            pieces.push(json!({"Sequence": {"id": name, "type_id": kind}}));
            pieces.extend(self.after.iter().map(special));
            pieces
        };
        let tokens: serde_json::Map<String, Value> = self
            .before
            .iter()
            .chain(&self.after)
            .map(|&id| {
                let text = text_of(id);
                (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}))
            })
            .collect();
        let pair = [part("A", 0), part("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": part("A", 0),
            "pair": pair,
            "special_tokens": tokens,
        })
    }
}

/// A special token of a template that its `special_tokens` lack: the library would panic on it.
fn undeclared(processor: &Value) -> Option<&str> {
    let inner = processor.get("processors").and_then(Value::as_array).into_iter().flatten();
    if let Some(token) = inner.filter_map(undeclared).next() {
        return Some(token);
    }
    let pieces = processor.get("single").and_then(Value::as_array).into_iter().flatten();
    let mut tokens = pieces.filter_map(|piece| piece.pointer("/SpecialToken/id")?.as_str());
    tokens.find(|token| processor.get("special_tokens").and_then(|t| t.get(token)).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(processor: Value) -> Result<Around> {
        Around::of(Path::new("tokenizer.json"), &processor, |id| id < 512)
    }

    #[test]
    fn kinds_of_others_are_judged_by_what_they_add() {
        let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1],
            "trim_offsets": true, "add_prefix_space": false});
        let expected = Around { before: vec![1], after: vec![2] };
        assert_eq!(around(roberta).unwrap(), expected);
        let bert = json!({"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]});
        assert_eq!(around(bert).unwrap(), expected);
    }

    #[test]
    fn what_it_writes_is_read_back_as_the_same() {
        for (before, after) in [(vec![1], vec![]), (vec![], vec![2]), (vec![1], vec![2])] {
            let made = Around { before, after };
            let text_of = |id| if id == 1 { "<s>" } else { "</s>" };
            assert_eq!(around(made.json(text_of)).unwrap(), made);
        }
        assert_eq!(Around::default().json(|_| ""), Value::Null);
    }

    #[test]
    fn rejects_templates_without_the_text_or_with_unknown_tokens() {
        let template = |single: Value, tokens: Value| {
            let processor = json!({"type": "TemplateProcessing", "single": single,
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": tokens});
            let nested = json!({"type": "Sequence", "processors": [processor]});
            let error = around(processor).unwrap_err().to_string();
            assert_eq!(around(nested).unwrap_err().to_string(), error);
            error
        };
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let token = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let known = json!({"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}});
        let beyond = json!({"<s>": {"id": "<s>", "ids": [900], "tokens": ["<s>"]}});
        let error = template(json!([token, text]), json!({}));
        assert!(error.contains("\"<s>\" among its special_tokens"), "{error}");
        let error = template(json!([token]), known.clone());
        assert!(error.contains("the text once"), "{error}");
        let error = template(json!([text, text]), known);
        assert!(error.contains("the text once"), "{error}");
        let error = template(json!([token, text]), beyond);
        assert!(error.contains("found 900"), "{error}");
        assert!(around(json!({"type": "Unheard"})).is_err());
    }
}
