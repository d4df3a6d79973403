//! Gopher's rules of quality and repetition. Source: Rae et al. (2021), appendix A.1.1 and table A1.

use super::rules::{Gopher, Range, Repetition};
use super::shares::Shares;
use crate::words::{HashedMap, HashedSet, Script, hash, mixed, stands_alone, words};

/// A rule that a text fails, and the value found.
pub(super) type Failed = Option<(&'static str, f64)>;

/// The first rule of quality that a text fails.
pub(super) fn quality(rules: &Gopher, text: &str, all: &[&str], shares: &Shares) -> Failed {
    let count = all.len() as f64;
    let per_word = |n: usize| n as f64 / count.max(1.0);
    let fails = |name, range: Range, value: f64| (!range.holds(value)).then_some((name, value));
    let first = fails("gopher.words", rules.words, count);
    if first.is_some() {
        return first;
    }
    let alone = all.iter().filter(|word| word.chars().next().is_some_and(stands_alone)).count();
    if 2 * alone < all.len() {
        let characters: usize = all.iter().map(|word| word.chars().count()).sum();
        let failed = fails("gopher.word_length", rules.word_length, per_word(characters));
        if failed.is_some() {
            return failed;
        }
    }
    let hashes = text.matches('#').count();
    let ellipses = text.matches("...").count() + text.matches('\u{2026}').count();
    let symbols = per_word(hashes.max(ellipses));
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let share = |n: usize| n as f64 / lines.len().max(1) as f64;
    let bullets = lines.iter().filter(|line| line.trim_start().starts_with(['\u{2022}', '-', '*']));
    let ends = lines.iter().filter(|line| {
        let line = line.trim_end();
        line.ends_with("...") || line.ends_with('\u{2026}')
    });
    let alphabetic = all.iter().filter(|word| word.chars().any(char::is_alphabetic)).count();
    let failed = fails("gopher.symbols_per_word", rules.symbols_per_word, symbols)
        .or_else(|| fails("gopher.bullet_lines", rules.bullet_lines, share(bullets.count())))
        .or_else(|| fails("gopher.ellipsis_lines", rules.ellipsis_lines, share(ends.count())))
        .or_else(|| fails("gopher.alphabetic_words", rules.alphabetic_words, per_word(alphabetic)));
    if failed.is_some() || shares.script(Script::Latin) < 0.5 {
        return failed;
    }
    let stop = |stop: &&String| {
        all.iter().any(|word| {
            word.trim_matches(|c: char| !c.is_alphanumeric()).eq_ignore_ascii_case(stop)
        })
    };
    let found = rules.stop_word_list.iter().filter(stop).count();
    fails("gopher.stop_words", rules.stop_words, found as f64)
}

/// The first rule of repetition that a text fails.
pub(super) fn repetition(
    rules: &Repetition,
    text: &str,
    all: &[&str],
    characters: usize,
) -> Failed {
    let whole = characters.max(1) as f64;
    let fails = |name, range: Range, value: f64| (!range.holds(value)).then_some((name, value));
    let of = |names: [&'static str; 2], ranges: [Range; 2], parts: &[&str]| {
        let (count, characters) = repeated(parts);
        fails(names[0], ranges[0], count as f64 / parts.len().max(1) as f64)
            .or_else(|| fails(names[1], ranges[1], characters as f64 / whole))
    };
    let paragraphs: Vec<&str> = paragraphs(text);
    let names = ["repetition.duplicate_paragraphs", "repetition.duplicate_paragraph_characters"];
    let ranges = [rules.duplicate_paragraphs, rules.duplicate_paragraph_characters];
    let failed = of(names, ranges, &paragraphs);
    if failed.is_some() {
        return failed;
    }
    let lines: Vec<&str> = text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect();
    let names = ["repetition.duplicate_lines", "repetition.duplicate_line_characters"];
    let failed = of(names, [rules.duplicate_lines, rules.duplicate_line_characters], &lines);
    if failed.is_some() {
        return failed;
    }
    let grams = Grams::of(all);
    let top = |n| grams.top(n);
    let again = |n| grams.repeated(n);
    type Measure<'a> = &'a dyn Fn(usize) -> usize;
    let rules: [(usize, &str, Range, Measure<'_>); 9] = [
        (2, "repetition.top_2_grams", rules.top_2_grams, &top),
        (3, "repetition.top_3_grams", rules.top_3_grams, &top),
        (4, "repetition.top_4_grams", rules.top_4_grams, &top),
        (5, "repetition.duplicate_5_grams", rules.duplicate_5_grams, &again),
        (6, "repetition.duplicate_6_grams", rules.duplicate_6_grams, &again),
        (7, "repetition.duplicate_7_grams", rules.duplicate_7_grams, &again),
        (8, "repetition.duplicate_8_grams", rules.duplicate_8_grams, &again),
        (9, "repetition.duplicate_9_grams", rules.duplicate_9_grams, &again),
        (10, "repetition.duplicate_10_grams", rules.duplicate_10_grams, &again),
    ];
    // where no sequence comes twice, no longer one does
    let mut repeats = true;
    for (n, name, range, measure) in rules.into_iter().filter(|rule| !rule.2.is_open()) {
        let found = if repeats { measure(n) } else { 0 };
        repeats = found > 0;
        let failed = fails(name, range, found as f64 / whole);
        if failed.is_some() {
            return failed;
        }
    }
    None
}

/// What stands between blank lines.
fn paragraphs(text: &str) -> Vec<&str> {
    text.split("\n\n").map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// Parts that were there before: their number and their characters.
fn repeated(parts: &[&str]) -> (usize, usize) {
    if parts.len() < 2 {
        return (0, 0);
    }
    let mut seen = HashedSet::default();
    let again = parts.iter().filter(|part| !seen.insert(hash(part.as_bytes(), 0)));
    again.fold((0, 0), |(n, characters), part| (n + 1, characters + part.chars().count()))
}

/// Hashes and lengths of a text's words, for sequences of them.
struct Grams {
    hashes: Vec<u64>,
    /// Characters of all words before each, and of all.
    before: Vec<usize>,
}

impl Grams {
    fn of(all: &[&str]) -> Self {
        let hashes = all.iter().map(|word| hash(word.as_bytes(), 0)).collect();
        let mut before = vec![0];
        let mut sum = 0;
        before.extend(all.iter().map(|word| {
            sum += word.chars().count();
            sum
        }));
        Self { hashes, before }
    }

    fn gram(words: &[u64]) -> u64 {
        words.iter().fold(0, |state, word| mixed(state.rotate_left(5) ^ word))
    }

    /// Characters within the sequence of `n` words that has the most of them in all its places;
    /// one that is there once has none.
    fn top(&self, n: usize) -> usize {
        let mut counts: HashedMap<(usize, usize)> =
            HashedMap::with_capacity_and_hasher(self.hashes.len(), Default::default());
        for (at, words) in self.hashes.windows(n).enumerate() {
            let length = self.before[at + n] - self.before[at];
            counts.entry(Self::gram(words)).or_insert((0, length)).0 += 1;
        }
        // the most frequent one; of equally frequent ones the longest
        let top = counts.values().max().copied().unwrap_or((0, 0));
        if top.0 > 1 { top.0 * top.1 } else { 0 }
    }

    /// Characters within sequences of `n` words that were there before, none counted twice.
    fn repeated(&self, n: usize) -> usize {
        let mut seen = HashedSet::with_capacity_and_hasher(self.hashes.len(), Default::default());
        let (mut at, mut characters) = (0, 0);
        while at + n <= self.hashes.len() {
            if seen.insert(Self::gram(&self.hashes[at..at + n])) {
                at += 1;
            } else {
                characters += self.before[at + n] - self.before[at];
                at += n;
            }
        }
        characters
    }
}

/// A text's words, once for all rules.
pub(super) fn words_of(text: &str) -> Vec<&str> {
    words(text).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use mmx_converters::random::Random;

    use super::*;

    /// The rule as it is written: sequences as texts, counted in a map.
    fn naive_top(all: &[&str], n: usize) -> usize {
        let mut counts: HashMap<Vec<&str>, usize> = HashMap::new();
        all.windows(n).for_each(|gram| *counts.entry(gram.to_vec()).or_default() += 1);
        let length = |gram: &[&str]| gram.concat().chars().count();
        let most = counts.values().max().copied().unwrap_or(0);
        let of_most = counts.iter().filter(|(_, count)| **count == most);
        let longest = of_most.map(|(gram, _)| length(gram)).max().unwrap_or(0);
        if most > 1 { most * longest } else { 0 }
    }

    fn naive_repeated(all: &[&str], n: usize) -> usize {
        let mut seen = HashSet::new();
        let (mut at, mut sum) = (0, 0);
        while at + n <= all.len() {
            let gram = all[at..at + n].join("\0");
            if seen.contains(&gram) {
                sum += gram.chars().filter(|c| *c != '\0').count();
                at += n;
            } else {
                seen.insert(gram);
                at += 1;
            }
        }
        sum
    }

    #[test]
    fn sequences_are_counted_as_by_texts_in_a_map() {
        let mut random = Random::new(7, 0);
        for round in 0..200 {
            let kinds = 2 + round % 9;
            let words: Vec<String> =
                (0..random.below(60)).map(|_| "wörd".repeat(1 + random.below(kinds))).collect();
            let all: Vec<&str> = words.iter().map(String::as_str).collect();
            let grams = Grams::of(&all);
            for n in 2..=10 {
                assert_eq!(grams.top(n), naive_top(&all, n), "{all:?} {n}");
                assert_eq!(grams.repeated(n), naive_repeated(&all, n), "{all:?} {n}");
            }
        }
    }

    fn fails(text: &str) -> Option<&'static str> {
        let (all, shares) = (words_of(text), Shares::of(text));
        let rules = Gopher { words: Range::least(5.0), ..Gopher::default() };
        quality(&rules, text, &all, &shares)
            .or_else(|| repetition(&Repetition::default(), text, &all, shares.characters))
            .map(|(name, _)| name)
    }

    #[test]
    fn each_rule_drops_what_it_is_for_and_prose_passes() {
        let prose = "The ship left the harbour in the morning and sailed to an island that few \
            people have seen. Nobody on board knew what they would find there.";
        let chinese = "春天来了，公园里的花都开了，孩子们在草地上奔跑，老人坐在长椅上晒太阳。";
        assert_eq!((fails(prose), fails(chinese)), (None, None));
        let lines = |line: &str, n: usize| vec![line; n].join("\n");
        for (text, rule) in [
            ("too few words".to_owned(), "gopher.words"),
            ("a b c d e f g the of to".to_owned(), "gopher.word_length"),
            (format!("{prose} # # # # #"), "gopher.symbols_per_word"),
            (prose.replace("island", "... ... ... ..."), "gopher.symbols_per_word"),
            (prose.replace(' ', "\n-"), "gopher.bullet_lines"),
            ("12345 67890 11111 22222 33333 the and of".to_owned(), "gopher.alphabetic_words"),
            (
                "word after word without small ones between them here".to_owned(),
                "gopher.stop_words",
            ),
            (lines(prose, 3), "repetition.duplicate_lines"),
            ([prose; 3].join("\n\n"), "repetition.duplicate_paragraphs"),
            (
                "towards harbours and towards mountains, towards harbours and the villages"
                    .to_owned(),
                "repetition.top_2_grams",
            ),
            (format!("{chinese}{chinese}"), "repetition.duplicate_5_grams"),
        ] {
            assert_eq!(fails(&text), Some(rule), "{text}");
        }
    }
}
