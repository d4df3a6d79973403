//! Two answers to a judge's prompt, and the judge's words to a verdict.
//!
//! Judges prefer one place, so two answers are shown in both orders and only a verdict that both
//! orders give counts. Source: Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot
//! Arena" (2023), sections 3.3 and 3.4; the marks `[[A]]`, `[[B]]` and `[[C]]` are its appendix
//! A's.

/// The prompt for a judge unless another is given.
///
/// `{question}`, `{first}` and `{second}` stand for the texts; a paragraph with `{reference}` is
/// left out where there is no reference answer.
pub const JUDGE_PROMPT: &str = include_str!("judge-prompt.txt");

/// A judge's preference for one of the two answers it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer A, the one shown first.
    First,
    /// Answer B, the one shown second.
    Second,
    /// Neither.
    Tie,
}

/// The texts that a judge compares.
#[derive(Clone, Copy, Debug)]
pub struct Compared<'a> {
    /// The question.
    pub question: &'a str,
    /// A right answer, where one is known.
    pub reference: Option<&'a str>,
    /// Answer A.
    pub first: &'a str,
    /// Answer B.
    pub second: &'a str,
}

/// The place that a template lacks of those without which nothing can be compared.
#[must_use]
pub fn missing_place(template: &str) -> Option<&'static str> {
    ["{first}", "{second}"].into_iter().find(|place| !template.contains(place))
}

/// The prompt for a judge; every place is filled once, whatever the texts hold. Without a reference
/// answer a paragraph with its place, and none of the others', is left out.
#[must_use]
pub fn prompt(template: &str, texts: &Compared<'_>) -> String {
    // an editor may have written the lines' ends of another system
    let template = template.replace("\r\n", "\n");
    let stays = |paragraph: &&str| {
        let needed = ["{question}", "{first}", "{second}"];
        texts.reference.is_some()
            || !paragraph.contains("{reference}")
            || needed.iter().any(|place| paragraph.contains(place))
    };
    let kept: Vec<&str> = template.trim_end().split("\n\n").filter(stays).collect();
    let template = kept.join("\n\n");
    let places = [
        ("{question}", texts.question),
        ("{reference}", texts.reference.unwrap_or_default()),
        ("{first}", texts.first),
        ("{second}", texts.second),
    ];
    let mut out = String::new();
    let mut rest = template.as_str();
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match places.iter().find(|(place, _)| rest.starts_with(place)) {
            Some((place, text)) => {
                out.push_str(text);
                rest = &rest[place.len()..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

/// The verdict in a judge's words: the one mark that they hold; where they hold several, that of
/// the last line that is not blank. Nothing where there is no mark, or no one mark to go by.
///
/// What a judge thought before a closing `</think>` is no part of its words.
#[must_use]
pub fn verdict(words: &str) -> Option<Verdict> {
    let words = words.rsplit("</think>").next().unwrap_or_default();
    one_mark(words).or_else(|| one_mark(words.trim_end().lines().last()?))
}

/// The verdict of a text whose marks all say the same.
fn one_mark(text: &str) -> Option<Verdict> {
    const MARKS: [(&str, Verdict); 4] = [
        ("[[A]]", Verdict::First),
        ("[[B]]", Verdict::Second),
        ("[[C]]", Verdict::Tie),
        ("[[tie]]", Verdict::Tie),
    ];
    let mut found = MARKS.iter().filter(|(mark, _)| text.contains(mark)).map(|(_, said)| *said);
    let first = found.next()?;
    found.all(|other| other == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_a_mark_that_nothing_contradicts() {
        assert_eq!(verdict("A is clearer. [[A]]"), Some(Verdict::First));
        assert_eq!(verdict("[[B]]\n\nSince it is right."), Some(Verdict::Second));
        assert_eq!(
            (verdict("[[C]]"), verdict("[[tie]]")),
            (Some(Verdict::Tie), Some(Verdict::Tie))
        );
        assert_eq!(verdict("[[A]] comes to mind.\nYet it is [[B]].\n"), Some(Verdict::Second));
        assert_eq!(verdict("<think>[[A]]?</think>[[B]]"), Some(Verdict::Second));
        for words in ["", "A is better", "[A]", "[[A]] or [[B]]", "[[D]]", "[[A]]</think>"] {
            assert_eq!(verdict(words), None, "{words}");
        }
    }

    #[test]
    fn places_are_filled_once_whatever_the_texts_hold() {
        let texts = Compared { question: "{first}", reference: None, first: "1", second: "{x}" };
        assert_eq!(prompt("{question} {first} {second} {x}\n", &texts), "{first} 1 {x} {x}");
        assert_eq!(missing_place("{question} {first}"), Some("{second}"));
        assert_eq!(missing_place(JUDGE_PROMPT), None);
    }

    #[test]
    fn a_paragraph_about_a_reference_needs_one() {
        let mut texts = Compared { question: "q", reference: None, first: "1", second: "2" };
        let without = prompt(JUDGE_PROMPT, &texts);
        assert!(!without.contains("Reference") && !without.contains('{'), "{without}");
        assert!(without.contains("[Question]\nq\n\n[Answer A]\n1\n\n[Answer B]\n2\n\n"));
        assert_eq!(prompt("{question} {reference}\n{first}{second}", &texts), "q \n12");
        let edited = JUDGE_PROMPT.replace('\n', "\r\n");
        assert_eq!(prompt(&edited, &texts), without);
        texts.reference = Some("42\n\n{second}");
        let with = prompt(JUDGE_PROMPT, &texts);
        assert!(with.contains("[Reference answer]\n42\n\n{second}\n\n[Answer A]"), "{with}");
    }
}
