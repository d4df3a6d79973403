//! Shares of kinds of characters in a text, counted in one pass.

use std::collections::BTreeMap;

use crate::words::{Script, script};

/// Counts of a text's characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shares {
    pub(super) characters: usize,
    pub(super) letters: usize,
    pub(super) symbols: usize,
    scripts: BTreeMap<Script, usize>,
}

impl Shares {
    pub(super) fn of(text: &str) -> Self {
        let mut shares = Self::default();
        let (mut latin, mut han) = (0, 0);
        for c in text.chars() {
            shares.characters += 1;
            match script(c) {
                Some(Script::Latin) => latin += 1,
                Some(Script::Han) => han += 1,
                Some(other) => *shares.scripts.entry(other).or_default() += 1,
                None => {
                    if is_symbol(c) {
                        shares.symbols += 1;
                    }
                    continue;
                }
            }
            shares.letters += 1;
        }
        shares.scripts.insert(Script::Latin, latin);
        shares.scripts.insert(Script::Han, han);
        shares
    }

    /// The share of a script among letters; 0 of a text without letters.
    pub(super) fn script(&self, script: Script) -> f64 {
        let count = self.scripts.get(&script).copied().unwrap_or(0);
        count as f64 / self.letters.max(1) as f64
    }
}

/// True for characters that are no letters, digits, blanks or common punctuation: `#`, `|`, `~`,
/// arrows, box drawing, emoji.
fn is_symbol(c: char) -> bool {
    if c.is_ascii() {
        return matches!(
            c,
            '#' | '$'
                | '%'
                | '&'
                | '*'
                | '+'
                | '/'
                | '<'
                | '='
                | '>'
                | '@'
                | '\\'
                | '^'
                | '_'
                | '`'
                | '{'
                | '|'
                | '}'
                | '~'
        );
    }
    let punctuation = matches!(c as u32,
        // Latin-1's quotes and marks, general punctuation, CJK punctuation, full-width forms
        0x00a1 | 0x00ab | 0x00b7 | 0x00bb | 0x00bf | 0x2010..=0x2027 | 0x2030..=0x205e
        | 0x3000..=0x303f | 0xff01..=0xff0f | 0xff1a..=0xff20 | 0xff3b..=0xff40 | 0xff5b..=0xff65
        | 0xfe30..=0xfe6f)
        // marks of letters: accents, vowel signs
        || matches!(c as u32, 0x0300..=0x036f | 0x0591..=0x05c7 | 0x064b..=0x065f
            | 0x0900..=0x0dff | 0x0e31..=0x0e4e | 0x200b..=0x200d | 0xfe0f);
    !(punctuation || c.is_alphanumeric() || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_counting_each_character() {
        let shares = Shares::of("abc 中文, 12 ##😀\u{2500}。");
        assert_eq!((shares.letters, shares.symbols), (5, 4));
        assert_eq!(shares.characters, 16);
        assert!((shares.script(Script::Han) - 0.4).abs() < 1e-12);
        assert_eq!(Shares::of("12").script(Script::Han), 0.0);
    }
}
