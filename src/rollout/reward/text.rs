//! Texts as rewards measure them: stripped and split as Python does, numbers that stand free.

use std::sync::OnceLock;

use fancy_regex::Regex;

/// A pattern of this crate's own, compiled once.
fn pattern(cell: &'static OnceLock<Option<Regex>>, source: &str) -> Option<&'static Regex> {
    cell.get_or_init(|| Regex::new(source).ok()).as_ref()
}

/// What Python's `str.isspace` and `\s` take: white space, and U+001C to U+001F.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// A text without white space around it, as Python's `strip` gives it.
#[must_use]
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Code points of a text without white space around it.
pub(super) fn length(text: &str) -> usize {
    strip(text).chars().count()
}

/// Lower-cased words and single signs: Python's `\w+|[^\w\s]`, whose `\w` are letters, numbers of
/// every kind and `_`, but no combining marks.
#[must_use]
pub fn words(text: &str) -> Vec<String> {
    static WORD: OnceLock<Option<Regex>> = OnceLock::new();
    let lower = text.to_lowercase();
    let word = pattern(&WORD, r"[\p{L}\p{N}_]+|[^\s\x1c-\x1f\p{L}\p{N}_]");
    let found = word.into_iter().flat_map(|word| word.find_iter(&lower));
    found.flatten().map(|word| word.as_str().to_owned()).collect()
}

/// The share of n-grams that came before, times twice the cap, at most the cap. With the usual cap of
/// 0.5 it is the share itself. Source: the reference's repetition penalty.
#[must_use]
pub fn repetition(text: &str, n: usize, cap: f64) -> f64 {
    let words = words(text);
    if n == 0 || words.len() < n {
        return 0.0;
    }
    let grams: Vec<&[String]> = words.windows(n).collect();
    let different: std::collections::HashSet<&[String]> = grams.iter().copied().collect();
    let again = (grams.len() - different.len()) as f64;
    (again * cap * 2.0 / grams.len() as f64).min(cap)
}

/// The numbers of a text that stand free, in order: `1,234.5`, `-3`, `1e5`. Digits within a word of
/// ASCII letters (`x12`) or a version (`1.2.3`) are none; 5 is no part of 15.
#[must_use]
pub fn numbers(text: &str) -> Vec<f64> {
    static NUMBER: OnceLock<Option<Regex>> = OnceLock::new();
    let number = pattern(
        &NUMBER,
        concat!(
            r"(?<![A-Za-z0-9_.])",
            r"((?<![0-9)])[-+−])?", // a sign after a number subtracts
            r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)",
            r"([eE][-+]?[0-9]+)?",
            r"(?![A-Za-z0-9_]|\.[0-9]|,[0-9]{3}(?![0-9]))",
        ),
    );
    let found = number.into_iter().flat_map(|number| number.captures_iter(text)).flatten();
    let value = |captures: fancy_regex::Captures<'_>| {
        let group = |index| captures.get(index).map_or("", |found| found.as_str());
        let digits = format!("{}{}", group(2).replace(',', ""), group(3));
        let number: f64 = digits.parse().ok()?;
        Some(if matches!(group(1), "-" | "−") { -number } else { number })
    };
    found.filter_map(value).filter(|number| number.is_finite()).collect()
}

/// The number that an answer is: the last one, after `####` where the answer has that mark (as
/// GSM8K's have).
pub(super) fn last_number(text: &str) -> Option<f64> {
    let text = text.rsplit_once("####").map_or(text, |(_, answer)| answer);
    numbers(text).pop()
}

/// The free-standing numbers of the reference's rule, commas removed before.
pub(super) fn reference_numbers(text: &str) -> Vec<f64> {
    static NUMBER: OnceLock<Option<Regex>> = OnceLock::new();
    let number = pattern(&NUMBER, r"(?<![\p{L}\p{N}_.])[-+]?[0-9]+(?:\.[0-9]+)?(?![\p{L}\p{N}_.])");
    let text = text.replace(',', "");
    let found = number.into_iter().flat_map(|number| number.find_iter(&text)).flatten();
    found.filter_map(|number| number.as_str().parse().ok()).collect()
}

/// The scripts that a language is written in, as names of Unicode scripts.
pub(super) fn scripts(language: &str) -> Option<&'static str> {
    Some(match language {
        "zh" => r"[\p{Han}]",
        "ja" => r"[\p{Han}\p{Hiragana}\p{Katakana}]",
        "ko" => r"[\p{Hangul}]",
        "en" | "de" | "fr" | "es" | "pt" | "it" | "nl" | "pl" | "tr" | "vi" | "id" => {
            r"[\p{Latin}]"
        }
        "ru" | "uk" | "bg" => r"[\p{Cyrillic}]",
        "ar" | "fa" | "ur" => r"[\p{Arabic}]",
        "he" => r"[\p{Hebrew}]",
        "el" => r"[\p{Greek}]",
        "hi" => r"[\p{Devanagari}]",
        "th" => r"[\p{Thai}]",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_free_and_are_whole() {
        for (text, expected) in [
            ("the answer is 1,234.5.", vec![1234.5]),
            ("结果是84。", vec![84.0]),
            ("84个", vec![84.0]),
            ("15", vec![15.0]),
            ("1e5", vec![100_000.0]),
            ("x12 12y _3", vec![]),
            ("v1.2.3", vec![]),
            ("-3 and +4.50", vec![-3.0, 4.5]),
            ("7-2=5", vec![7.0, 2.0, 5.0]),
            ("(1)-2", vec![1.0, 2.0]),
            ("= -2", vec![-2.0]),
            ("$5, 50%", vec![5.0, 50.0]),
            ("1,2,3", vec![1.0, 2.0, 3.0]),
            ("12,345,678", vec![12_345_678.0]),
            (".5 half", vec![0.5]),
            ("−4", vec![-4.0]),
            ("", vec![]),
        ] {
            assert_eq!(numbers(text), expected, "{text}");
        }
        assert_eq!(last_number("2 and 3 make 5\n#### 1,005"), Some(1005.0));
    }
}
