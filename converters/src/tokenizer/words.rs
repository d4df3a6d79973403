//! GPT-2's regex by hand:
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
//!
//! In: a text. Out: its words, one after the other, nothing left out. The classes are those of the
//! regex crate's own tables, so the words are the tokenizers library's.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// The kinds of characters that the regex tells apart.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Other,
    Letter,
    Number,
    Space,
}

/// The kind of every character, by its number.
static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    let mut kinds = vec![Kind::Other; char::MAX as usize + 1];
    for (class, kind) in [(r"\p{L}", Kind::Letter), (r"\p{N}", Kind::Number), (r"\s", Kind::Space)]
    {
        let parsed = regex_syntax::parse(class).map(regex_syntax::hir::Hir::into_kind);
        if let Ok(HirKind::Class(Class::Unicode(class))) = parsed {
            for range in class.ranges() {
                kinds[range.start() as usize..=range.end() as usize].fill(kind);
            }
        }
    }
    kinds
});

/// The words of a text.
pub(super) struct Words<'a> {
    rest: &'a str,
    kinds: &'static [Kind],
}

impl<'a> Words<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text, kinds: &KINDS }
    }

    fn kind(&self, c: char) -> Kind {
        self.kinds[c as usize]
    }

    /// Bytes of the characters of a kind at the beginning of `text`.
    fn run(&self, text: &str, kind: Kind) -> usize {
        text.char_indices().find(|&(_, c)| self.kind(c) != kind).map_or(text.len(), |(at, _)| at)
    }

    /// Bytes of the first word.
    fn first(&self) -> usize {
        let text = self.rest;
        let mut chars = text.chars();
        let Some(first) = chars.next() else { return 0 };
        if first == '\'' {
            let found = ["s", "t", "re", "ve", "m", "ll", "d"]
                .into_iter()
                .find(|end| text.as_bytes()[1..].starts_with(end.as_bytes()));
            if let Some(end) = found {
                return 1 + end.len();
            }
        }
        let kind = self.kind(first);
        if kind != Kind::Space {
            return self.run(text, kind);
        }
        if first == ' '
            && let Some(kind) = chars.next().map(|c| self.kind(c)).filter(|&k| k != Kind::Space)
        {
            return 1 + self.run(&text[1..], kind);
        }
        let all = self.run(text, Kind::Space);
        // before a word, the last blank is left to it, unless it is the only one
        let last = text[..all].chars().next_back().map_or(0, char::len_utf8);
        if all == text.len() || all == last { all } else { all - last }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let (word, rest) = self.rest.split_at(self.first());
        self.rest = rest;
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_regex() {
        let words = |text| Words::new(text).collect::<Vec<_>>();
        assert_eq!(
            words("It's 12 o'clock,  isn't it?"),
            ["It", "'s", " 12", " o", "'", "clock", ",", " ", " isn", "'t", " it", "?"]
        );
        assert_eq!(words("a \n b\u{3000}c  "), ["a", " \n", " b", "\u{3000}", "c", "  "]);
        assert_eq!(words("'S ''ll \t"), ["'", "S", " ''", "ll", " \t"]);
        assert!(words("").is_empty());
    }
}
