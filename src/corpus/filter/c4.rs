//! C4's rules: lines that are no sentences are left out, and texts of too few. Source: Raffel et al.
//! (JMLR 21, 2020), section 2.2. The rule about three sentences that occur twice is
//! deduplication's; the list of words is for the user to give, as `page_phrases`.

use super::rules::C4;
use crate::words::words;

/// Marks at the end of a sentence; Chinese ones besides the paper's.
const ENDS: [char; 13] =
    ['.', '!', '?', '"', '\u{201d}', '\'', '\u{2019}', '。', '！', '？', '…', '」', '』'];

/// What the rules make of a text.
pub(super) enum Outcome {
    /// It stays as it is.
    Same,
    /// Lines were left out.
    Less(String),
    /// It is dropped by a rule, with what was found.
    Drop(&'static str, String),
}

pub(super) fn apply(rules: &C4, text: &str) -> Outcome {
    let lower = text.to_lowercase();
    if let Some(phrase) = rules.page_phrases.iter().find(|phrase| lower.contains(phrase.as_str())) {
        return Outcome::Drop("c4.page_phrases", format!("{phrase:?}"));
    }
    let stays = |line: &&str| {
        let line = line.trim();
        let ends = !rules.terminal_punctuation || line.ends_with(ENDS);
        let enough = words(line).take(rules.line_words).count() >= rules.line_words;
        ends && enough && {
            let lower = line.to_lowercase();
            !rules.line_phrases.iter().any(|phrase| lower.contains(phrase.as_str()))
        }
    };
    let kept: Vec<&str> = text.lines().filter(stays).collect();
    let less = kept.join("\n");
    let sentences = sentences(&less);
    if !rules.sentences.holds(sentences as f64) {
        return Outcome::Drop("c4.sentences", format!("{sentences}"));
    }
    match kept.len() == text.lines().count() {
        true => Outcome::Same,
        false => Outcome::Less(less),
    }
}

/// Runs of marks that end sentences: before a blank, a quotation mark or the end, Chinese ones
/// before anything.
fn sentences(text: &str) -> usize {
    let wide = |c: char| matches!(c, '。' | '！' | '？' | '…');
    let quote = |c: char| matches!(c, '"' | '\u{201d}' | '\'' | '\u{2019}' | '」' | '』' | ')');
    let (mut count, mut marks, mut any_wide) = (0, false, false);
    for c in text.chars().chain([' ']) {
        if wide(c) || matches!(c, '.' | '!' | '?') {
            any_wide |= wide(c);
            marks = true;
            continue;
        }
        count += usize::from(marks && (any_wide || c.is_whitespace() || quote(c)));
        (marks, any_wide) = (false, false);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_sentences_are_left_out_and_short_texts_dropped() {
        let good = "One sentence with enough words. Another one follows here! Is this the third?";
        let rules = C4::default();
        assert!(matches!(apply(&rules, good), Outcome::Same));
        let page = format!("Home | About\n{good}\nPlease read our Privacy Policy before you go.");
        assert!(matches!(apply(&rules, &page), Outcome::Less(less) if less == good));
        let dropped = |text: &str| match apply(&rules, text) {
            Outcome::Drop(rule, _) => rule,
            _ => "none",
        };
        assert_eq!(dropped("Only one sentence is here today."), "c4.sentences");
        assert_eq!(dropped(&format!("{good} Lorem Ipsum dolor.")), "c4.page_phrases");
        assert_eq!(dropped(&format!("{good} let x = {{1}}.")), "c4.page_phrases");
        let chinese = "今天天气很好。我们去公园散步吧！你想去吗？";
        assert!(matches!(apply(&rules, chinese), Outcome::Same));
    }

    #[test]
    fn sentences_are_runs_of_marks() {
        for (text, count) in
            [("A. B! C?", 3), ("Wait... what?!", 2), ("3.14 is pi.", 1), ("好。好。", 2), ("", 0)]
        {
            assert_eq!(sentences(text), count, "{text}");
        }
    }
}
