//! What tokenizers make of texts: how many characters and bytes a token holds, by language, which
//! entries are never used, and whether every text comes back.

use std::collections::BTreeMap;

use mmx_converters::tokenizer::{TokenKind, Tokenizer};
use mmx_converters::{Error, Result};
use serde::Serialize;

use crate::language;
use crate::reading::{self, Reading};

/// Pieces that are listed.
const LONGEST: usize = 10;

/// Counts of texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Texts.
    pub texts: u64,
    /// Bytes of UTF-8.
    pub bytes: u64,
    /// Characters.
    pub characters: u64,
    /// Tokens.
    pub tokens: u64,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.texts += other.texts;
        self.bytes += other.bytes;
        self.characters += other.characters;
        self.tokens += other.tokens;
    }

    /// Bytes of a token.
    #[must_use]
    pub fn bytes_per_token(&self) -> f64 {
        self.bytes as f64 / self.tokens.max(1) as f64
    }

    /// Characters of a token.
    #[must_use]
    pub fn characters_per_token(&self) -> f64 {
        self.characters as f64 / self.tokens.max(1) as f64
    }
}

/// A tokenizer measured on texts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// All texts.
    pub all: Size,
    /// By language; `und` where none is told.
    pub languages: BTreeMap<String, Size>,
    /// Entries that are no control tokens and that no text used.
    pub unused: usize,
    /// The longest pieces of the vocabulary, by characters.
    pub longest: Vec<String>,
    /// Texts that did not come back as they were, and the first of them.
    pub lost: u64,
    /// `FILE:LINE` of the first text that did not come back.
    pub first_lost: Option<String>,
}

/// Measures a tokenizer on the texts of files.
///
/// # Errors
/// Files that cannot be read, faulty records, a text that it cannot split.
pub fn measure(reading: &Reading, tokenizer: &Tokenizer) -> Result<Measured> {
    let mut used = vec![false; tokenizer.vocab_size()];
    let (mut all, mut languages) = (Size::default(), BTreeMap::<String, Size>::new());
    let (mut lost, mut first_lost) = (0, None);
    let work = |raw: reading::Raw<'_>| {
        let of = |text: String| {
            let ids = tokenizer.encode_plain(&text)?;
            let size = Size {
                texts: 1,
                bytes: text.len() as u64,
                characters: text.chars().count() as u64,
                tokens: ids.len() as u64,
            };
            let back = tokenizer.decode(&ids, false) == text;
            let code = language::detect(&text).map_or("und", |(_, code, _)| code);
            Ok::<_, Error>((ids, size, back, code))
        };
        let texts = raw.texts().into_iter().filter(|text| !text.is_empty());
        (raw.source, texts.map(of).collect::<Result<Vec<_>>>())
    };
    reading::for_each(reading, "measuring", work, |(source, made)| {
        for (ids, size, back, code) in made? {
            for id in ids {
                if let Some(place) = used.get_mut(id as usize) {
                    *place = true;
                }
            }
            all.add(size);
            languages.entry(code.to_owned()).or_default().add(size);
            if !back {
                lost += 1;
                let path = &reading.files[source.file];
                first_lost.get_or_insert_with(|| format!("{}:{}", path.display(), source.number));
            }
        }
        Ok(())
    })?;
    if all.tokens == 0 {
        return Err(Error::failed("expected texts to measure on, found none"));
    }
    let normal = |id: &u32| tokenizer.token_kind(*id) == Some(TokenKind::Normal);
    let ids = || (0..tokenizer.vocab_size() as u32).filter(normal);
    let unused = ids().filter(|id| !used[*id as usize]).count();
    let mut pieces: Vec<(usize, u32, String)> = ids()
        .filter_map(|id| {
            let text = std::str::from_utf8(tokenizer.token_bytes(id)).ok()?;
            Some((text.chars().count(), id, text.to_owned()))
        })
        .collect();
    pieces.sort_by_key(|(length, id, _)| (std::cmp::Reverse(*length), *id));
    let longest = pieces.into_iter().take(LONGEST).map(|(_, _, text)| text).collect();
    let vocab_size = tokenizer.vocab_size();
    Ok(Measured { vocab_size, all, languages, unused, longest, lost, first_lost })
}

#[cfg(test)]
mod tests {
    use mmx_converters::tokenizer::SpecialSet;
    use mmx_converters::tokenizer::train::{WordCounts, train};

    use super::*;

    #[test]
    fn counts_are_those_of_encoding_each_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let texts =
            ["The quick brown fox jumps over the lazy dog.", "今天天气很好，我们去散步吧。", "123"];
        let lines: Vec<String> =
            texts.iter().map(|t| serde_json::json!({ "text": t }).to_string()).collect();
        fs_err::write(&path, lines.join("\n")).unwrap();
        let mut counts = WordCounts::new(WordCounts::LIMIT_BYTES);
        counts.add(&texts).unwrap();
        let tokenizer = train(counts, 320, SpecialSet::MiniMind3).unwrap();
        let measured = measure(&Reading::of(&[path]), &tokenizer).unwrap();
        let mut used = std::collections::BTreeSet::new();
        let mut size = Size::default();
        for text in texts {
            let ids = tokenizer.encode_plain(text).unwrap();
            let (bytes, characters) = (text.len() as u64, text.chars().count() as u64);
            size.add(Size { texts: 1, bytes, characters, tokens: ids.len() as u64 });
            used.extend(ids);
        }
        assert_eq!(measured.all, size);
        let names: Vec<&str> = measured.languages.keys().map(String::as_str).collect();
        assert_eq!(names, ["en", "und", "zh"]);
        // 36 special tokens have no place in the count
        assert_eq!(measured.unused, 320 - 36 - used.len());
        assert_eq!((measured.lost, measured.longest.len()), (0, 10));
        let length = |i: usize| measured.longest[i].chars().count();
        assert!(length(0) >= length(9));
    }
}
