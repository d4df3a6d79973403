//! The rules' TOML file: a table for each group, a range for each rule, published numbers as
//! defaults.

use std::collections::BTreeMap;
use std::path::Path;

use mmx_converters::{Error, Result};
use serde::Deserialize;

use super::personal::Kind;
use crate::language;
use crate::words::SCRIPTS;

/// The rules that hold where none are given, as a file to begin with.
pub const DEFAULT: &str = include_str!("default.toml");

/// Values that pass: from `min` to `max`, both included, each if it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The least.
    pub min: Option<f64>,
    /// The most.
    pub max: Option<f64>,
}

impl Range {
    pub(super) const fn least(min: f64) -> Self {
        Self { min: Some(min), max: None }
    }

    pub(super) const fn most(max: f64) -> Self {
        Self { min: None, max: Some(max) }
    }

    pub(super) const fn between(min: f64, max: f64) -> Self {
        Self { min: Some(min), max: Some(max) }
    }

    /// True for a value that passes.
    #[must_use]
    pub fn holds(&self, value: f64) -> bool {
        self.min.is_none_or(|min| value >= min) && self.max.is_none_or(|max| value <= max)
    }

    /// True where every value passes.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.min.is_none() && self.max.is_none()
    }
}

/// Every rule; a group that the file has not is off.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Lengths of a record's text.
    #[serde(default)]
    pub length: Length,
    /// Shares of scripts among letters, by the scripts' names.
    #[serde(default)]
    pub script: BTreeMap<String, Range>,
    /// Languages that stay.
    pub language: Option<Language>,
    /// Noise of symbols.
    pub symbols: Option<Symbols>,
    /// Text that was read in a wrong encoding once.
    pub encoding: Option<Encoding>,
    /// Gopher's rules of quality.
    pub gopher: Option<Gopher>,
    /// Gopher's rules of repetition.
    pub repetition: Option<Repetition>,
    /// C4's rules.
    pub c4: Option<C4>,
    /// Personal data that is replaced.
    pub personal: Option<Personal>,
}

/// Lengths of a record's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Length {
    /// Characters.
    pub characters: Range,
    /// Words; each Chinese character is one.
    pub words: Range,
    /// Tokens of the tokenizer given.
    pub tokens: Range,
}

/// Languages that stay.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// Codes: `zh` or `cmn`.
    pub keep: Vec<String>,
    /// Below this confidence of the detector a text stays whatever its language seems to be.
    #[serde(default = "half")]
    pub min_confidence: f64,
}

fn half() -> f64 {
    0.5
}

/// Noise of symbols.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Symbols {
    /// Share of characters that are no letters, digits, blanks or common punctuation.
    pub share: Range,
}

impl Default for Symbols {
    fn default() -> Self {
        Self { share: Range::most(0.25) }
    }
}

/// Text that was read in a wrong encoding once.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Encoding {
    /// Share of characters that are signs of it.
    pub broken: Range,
}

impl Default for Encoding {
    fn default() -> Self {
        Self { broken: Range::most(0.001) }
    }
}

/// Gopher's rules of quality. Source: Rae et al., "Scaling Language Models: Methods, Analysis &
/// Insights from Training Gopher" (2021), appendix A.1.1.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gopher {
    /// Words: 50 to 100 000.
    pub words: Range,
    /// Mean characters of a word: 3 to 10; not asked of texts mostly without blanks.
    pub word_length: Range,
    /// Hashes or ellipses for each word: at most 0.1.
    pub symbols_per_word: Range,
    /// Share of lines that begin with a bullet: at most 0.9.
    pub bullet_lines: Range,
    /// Share of lines that end with an ellipsis: at most 0.3.
    pub ellipsis_lines: Range,
    /// Share of words with a letter: at least 0.8.
    pub alphabetic_words: Range,
    /// Different stop words: at least 2; asked of texts mostly in Latin letters.
    pub stop_words: Range,
    /// The stop words: the, be, to, of, and, that, have, with.
    pub stop_word_list: Vec<String>,
}

impl Default for Gopher {
    fn default() -> Self {
        let list = ["the", "be", "to", "of", "and", "that", "have", "with"];
        Self {
            words: Range::between(50.0, 100_000.0),
            word_length: Range::between(3.0, 10.0),
            symbols_per_word: Range::most(0.1),
            bullet_lines: Range::most(0.9),
            ellipsis_lines: Range::most(0.3),
            alphabetic_words: Range::least(0.8),
            stop_words: Range::least(2.0),
            stop_word_list: list.map(str::to_owned).into(),
        }
    }
}

/// Gopher's rules of repetition. Source: Rae et al. (2021), table A1.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Repetition {
    /// Share of lines that were there before: at most 0.3.
    pub duplicate_lines: Range,
    /// Share of paragraphs that were there before: at most 0.3.
    pub duplicate_paragraphs: Range,
    /// Share of characters in such lines: at most 0.2.
    pub duplicate_line_characters: Range,
    /// Share of characters in such paragraphs: at most 0.2.
    pub duplicate_paragraph_characters: Range,
    /// Share of characters in the most frequent sequence of 2 words: at most 0.2.
    pub top_2_grams: Range,
    /// Of 3 words: at most 0.18.
    pub top_3_grams: Range,
    /// Of 4 words: at most 0.16.
    pub top_4_grams: Range,
    /// Share of characters in sequences of 5 words that were there before: at most 0.15.
    pub duplicate_5_grams: Range,
    /// Of 6 words: at most 0.14.
    pub duplicate_6_grams: Range,
    /// Of 7 words: at most 0.13.
    pub duplicate_7_grams: Range,
    /// Of 8 words: at most 0.12.
    pub duplicate_8_grams: Range,
    /// Of 9 words: at most 0.11.
    pub duplicate_9_grams: Range,
    /// Of 10 words: at most 0.1.
    pub duplicate_10_grams: Range,
}

impl Default for Repetition {
    fn default() -> Self {
        Self {
            duplicate_lines: Range::most(0.3),
            duplicate_paragraphs: Range::most(0.3),
            duplicate_line_characters: Range::most(0.2),
            duplicate_paragraph_characters: Range::most(0.2),
            top_2_grams: Range::most(0.2),
            top_3_grams: Range::most(0.18),
            top_4_grams: Range::most(0.16),
            duplicate_5_grams: Range::most(0.15),
            duplicate_6_grams: Range::most(0.14),
            duplicate_7_grams: Range::most(0.13),
            duplicate_8_grams: Range::most(0.12),
            duplicate_9_grams: Range::most(0.11),
            duplicate_10_grams: Range::most(0.1),
        }
    }
}

/// C4's rules, for records of key `text`. Source: Raffel et al., "Exploring the Limits of Transfer
/// Learning with a Unified Text-to-Text Transformer" (JMLR 21, 2020), section 2.2.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct C4 {
    /// Lines without a mark of a sentence's end are left out.
    pub terminal_punctuation: bool,
    /// Lines of fewer words are left out: 5.
    pub line_words: usize,
    /// Lines that hold one of these are left out.
    pub line_phrases: Vec<String>,
    /// Texts of fewer sentences are dropped: 3.
    pub sentences: Range,
    /// Texts that hold one of these are dropped: `lorem ipsum`, a curly bracket.
    pub page_phrases: Vec<String>,
}

impl Default for C4 {
    fn default() -> Self {
        let lines = [
            "javascript",
            "terms of use",
            "privacy policy",
            "cookie policy",
            "uses cookies",
            "use of cookies",
            "use cookies",
        ];
        Self {
            terminal_punctuation: true,
            line_words: 5,
            line_phrases: lines.map(str::to_owned).into(),
            sentences: Range::least(3.0),
            page_phrases: ["lorem ipsum", "{"].map(str::to_owned).into(),
        }
    }
}

/// Personal data that is replaced.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Personal {
    /// The kinds: email, phone, id, card, ip.
    pub replace: Vec<Kind>,
}

impl Rules {
    /// Reads rules; `path` is the file's name in errors.
    ///
    /// # Errors
    /// No TOML, an unknown key, a script or language that is none, a range that no value passes.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let rules: Self = toml::from_str(text).map_err(|e| {
            let words = e.message().lines().collect::<Vec<_>>().join(" ");
            let line = e.span().map_or(String::new(), |span| {
                format!("line {}: ", text[..span.start].matches('\n').count() + 1)
            });
            Error::format(path, format!("{line}{words}"))
        })?;
        for name in rules.script.keys() {
            if !SCRIPTS.iter().any(|(known, _)| known == name) {
                let known: Vec<&str> = SCRIPTS.iter().map(|(known, _)| *known).collect();
                let expected = format!("expected one of {}", known.join(", "));
                return Err(Error::key(path, format!("script.{name}"), expected));
            }
        }
        for code in rules.language.iter().flat_map(|language| &language.keep) {
            if language::known(code).is_none() {
                let expected = format!("expected a language's code such as zh, found {code:?}");
                return Err(Error::key(path, "language.keep", expected));
            }
        }
        for (name, range) in rules.ranges() {
            if let (Some(min), Some(max)) = (range.min, range.max)
                && min > max
            {
                let message = format!("expected min of at most max, found {min} and {max}");
                return Err(Error::key(path, name, message));
            }
        }
        Ok(rules)
    }

    /// True where a rule needs a tokenizer.
    #[must_use]
    pub fn needs_tokenizer(&self) -> bool {
        !self.length.tokens.is_open()
    }

    fn ranges(&self) -> Vec<(String, Range)> {
        let length = &self.length;
        let mut all = vec![
            ("length.characters".to_owned(), length.characters),
            ("length.words".to_owned(), length.words),
            ("length.tokens".to_owned(), length.tokens),
        ];
        all.extend(self.script.iter().map(|(name, range)| (format!("script.{name}"), *range)));
        if let Some(gopher) = &self.gopher {
            all.push(("gopher.words".into(), gopher.words));
            all.push(("gopher.word_length".into(), gopher.word_length));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Rules::parse(text, Path::new("r.toml")).expect_err(text).to_string()
    }

    #[test]
    fn the_default_rules_can_be_read_and_need_no_tokenizer() {
        let rules = Rules::parse(DEFAULT, Path::new("default")).expect("rules");
        assert!(rules.repetition.is_some() && rules.personal.is_some());
        assert!(!rules.needs_tokenizer());
    }

    #[test]
    fn an_empty_group_has_the_published_numbers_and_one_rule_can_be_changed() {
        let rules = Rules::parse("[gopher]\nwords = { min = 20 }", Path::new("r")).expect("rules");
        let gopher = rules.gopher.expect("a group");
        assert_eq!(gopher.words, Range::least(20.0));
        assert_eq!(gopher.word_length, Range::between(3.0, 10.0));
        assert_eq!(rules.c4, None);
    }

    #[test]
    fn rejects_unknown_keys_scripts_languages_and_empty_ranges() {
        for (text, words) in [
            ("[length]\ncharacter = { min = 1 }", "r.toml: line 2: unknown field `character`"),
            ("[script]\nchinese = { min = 1 }", "key script.chinese: expected one of han, "),
            ("[language]\nkeep = [\"xx\"]", "key language.keep: expected a language's code"),
            ("[length]\nwords = { min = 3, max = 2 }", "key length.words: expected min of at most"),
            ("[personal]\nreplace = [\"names\"]", "unknown variant `names`"),
        ] {
            let error = refused(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
