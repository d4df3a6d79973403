//! A tokenizer with more entries: the merges of its own come first, so that every text is cut as
//! before and then joined further.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Value, json};

use super::codec::{Text, Tokenizer};
use super::train::{Merger, WordCounts};
use crate::error::Result;

impl Tokenizer {
    /// This tokenizer with `more` entries learned from words that were cut as it cuts
    /// ([`WordCounts::cutting_as`]); with fewer, and a warning in it, where the text has no more
    /// pairs. Ids that there are stay; new ones follow.
    ///
    /// # Errors
    /// A tokenizer that is read from GGUFs alone, a word that it cannot encode.
    pub fn extended(&self, counts: WordCounts, more: usize) -> Result<Self> {
        self.refuse_pieces("a vocabulary with more entries")?;
        let mut json: Value = serde_json::from_slice(self.json())
            .map_err(|e| self.fault(format!("expected tokenizer.json: {e}")))?;
        let alphabet = super::bytes::Alphabet::new();
        let mut words = Vec::new();
        for (word, count) in counts.weighted() {
            let bytes = alphabet.bytes(&word);
            let Some(text) = bytes.and_then(|bytes| String::from_utf8(bytes).ok()) else {
                continue;
            };
            words.push((self.encode_plain(&text)?, count));
        }
        let mut texts: Vec<Option<String>> = (0..self.vocab_size() as u32)
            .map(|id| self.token_text(id).map(str::to_owned))
            .collect();
        let wanted = texts.len() + more;
        let mut merger = Merger::new(words);
        let (mut vocab, mut merges, mut known) = (Vec::new(), Vec::new(), HashSet::new());
        while texts.len() < wanted {
            let Some((left, right)) = merger.best() else { break };
            let spelled = |id: u32| texts.get(id as usize).cloned().flatten();
            let (Some(a), Some(b)) = (spelled(left), spelled(right)) else {
                merger.forbid((left, right));
                continue;
            };
            let text = format!("{a}{b}");
            // a token of its own that its merges do not reach here: another way to it would change
            // how other texts are cut
            if self.id_of(&text).is_some() || !known.insert(text.clone()) {
                merger.forbid((left, right));
                continue;
            }
            let id = texts.len() as u32;
            merges.push(json!([a, b]));
            vocab.push((text.clone(), id));
            texts.push(Some(text));
            merger.merge((left, right), id);
        }
        let found = vocab.len();
        let model = &mut json["model"];
        // older files spell a merge "a b"
        let spelled_out = model["merges"][0].is_string();
        if let Some(list) = model["merges"].as_array_mut() {
            list.extend(merges.into_iter().map(|pair| match spelled_out {
                true => {
                    let side = |i: usize| pair[i].as_str().unwrap_or_default().to_owned();
                    format!("{} {}", side(0), side(1)).into()
                }
                false => pair,
            }));
        }
        if let Some(map) = model["vocab"].as_object_mut() {
            map.extend(vocab.into_iter().map(|(text, id)| (text, id.into())));
        }
        let mut bytes = serde_json::to_vec_pretty(&json).map_err(|e| self.fault(e.to_string()))?;
        bytes.push(b'\n');
        let template = self.template().map(|template| template.source().to_owned());
        let path = Path::new("tokenizer.json");
        let mut extended = Self::assemble(path, bytes, self.settings.clone(), template)?;
        extended.named.clone_from(&self.named);
        if found < more {
            extended.warnings.push(format!(
                "vocabulary size: expected {more} more entries, found text for {found}: give more text"
            ));
        }
        Ok(extended)
    }

    /// True where tokenizer.json is written for it: not of SentencePiece's.
    #[must_use]
    pub fn can_be_extended(&self) -> bool {
        !matches!(self.json, Text::Pieces(_))
    }
}

#[cfg(test)]
mod tests {
    use super::super::SpecialSet;
    use super::super::train::train;
    use super::*;

    const TEXT: &str = "the lowest of the lower ones, newer and newest; 你好世界 你好吗 世界很大";

    fn small() -> Tokenizer {
        let mut counts = WordCounts::new(WordCounts::LIMIT_BYTES);
        counts.add(&["the then they"]).unwrap();
        train(counts, 300, SpecialSet::MiniMind3).unwrap()
    }

    fn counts(tokenizer: &Tokenizer, text: &str) -> WordCounts {
        let counts = WordCounts::new(WordCounts::LIMIT_BYTES);
        let mut counts = counts.cutting_as(tokenizer).unwrap();
        counts.add(&[text]).unwrap();
        counts
    }

    #[test]
    fn old_ids_stay_new_ones_follow_and_texts_come_back() {
        let old = small();
        let new = old.extended(counts(&old, &TEXT.repeat(20)), 25).unwrap();
        assert_eq!(new.vocab_size(), old.vocab_size() + 25);
        for id in 0..old.vocab_size() as u32 {
            assert_eq!(new.token_text(id), old.token_text(id));
        }
        let [before, after] = [&old, &new].map(|t| t.encode_plain(TEXT).unwrap());
        assert!(after.len() < before.len() * 3 / 4, "{} of {}", after.len(), before.len());
        assert_eq!(new.decode(&after, false), TEXT);
        // every new token is what old ones make
        for id in (old.vocab_size()..new.vocab_size()).map(|id| id as u32) {
            let text = new.token_text(id).unwrap();
            assert!(old.id_of(text).is_none(), "{text}");
        }
        // what the new entries are not in is cut as before
        assert_eq!(new.encode_plain("xyz 123").unwrap(), old.encode_plain("xyz 123").unwrap());
        let chat = [json!({"role": "user", "content": "the"})];
        let options = crate::chat::Options::generation();
        let [a, b] = [&old, &new].map(|t| t.render_chat(&chat, &options).unwrap());
        assert_eq!(a, b);
    }

    #[test]
    fn no_entries_more_give_the_same_ids_and_too_little_text_warns() {
        let old = small();
        let same = old.extended(counts(&old, TEXT), 0).unwrap();
        assert_eq!(same.vocab_size(), old.vocab_size());
        assert_eq!(same.encode_plain(TEXT).unwrap(), old.encode_plain(TEXT).unwrap());
        let few = old.extended(counts(&old, "abc"), 50).unwrap();
        assert_eq!(few.vocab_size(), old.vocab_size() + 2);
        assert!(few.warnings.iter().any(|w| w.contains("found text for 2")), "{:?}", few.warnings);
    }
}
