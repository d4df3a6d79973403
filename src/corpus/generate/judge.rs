//! A judge's words to a verdict.
//!
//! Two answers are shown in both orders, since judges prefer one place; only a verdict that both
//! orders give counts. Source: Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot
//! Arena" (2023), section 3.4.

/// What a judge is asked; `{question}`, `{first}` and `{second}` stand for the texts.
pub const JUDGE_PROMPT: &str = "Compare two answers to the question below. Judge how correct, helpful and clear they are; \
neither their order nor their length counts.\n\n[Question]\n{question}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n\
Give your reasons in two sentences, then end with [[A]] if answer A is better, [[B]] if answer B is better, or [[C]] for a tie.";

/// The prompt for a judge; every place is filled once, whatever the texts hold.
pub(super) fn prompt(template: &str, question: &str, first: &str, second: &str) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let places = [("{question}", question), ("{first}", first), ("{second}", second)];
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

/// The last verdict in a judge's words: `Some(true)` for A, `Some(false)` for B, nothing for a tie
/// or words without one.
pub(super) fn verdict(words: &str) -> Option<bool> {
    let places = [("[[A]]", Some(true)), ("[[B]]", Some(false)), ("[[C]]", None)];
    let found = places.iter().filter_map(|(mark, verdict)| Some((words.rfind(mark)?, *verdict)));
    found.max_by_key(|(at, _)| *at).and_then(|(_, verdict)| verdict)
}

/// The better of two by both orders: `first` saw them in order, `second` the other way round.
pub(super) fn better(first: Option<bool>, second: Option<bool>) -> Option<bool> {
    first.filter(|one| second == Some(!one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_count_where_both_orders_agree() {
        assert_eq!(verdict("not [[A]], rather [[B]]"), Some(false));
        assert_eq!((verdict("[[C]]"), verdict("A is better")), (None, None));
        assert_eq!(better(Some(true), Some(false)), Some(true));
        assert_eq!(better(Some(true), Some(true)), None);
        assert_eq!(better(None, Some(true)), None);
        let filled = prompt("{question} {first} {second} {x}", "{first}", "1", "2");
        assert_eq!(filled, "{first} 1 2 {x}");
    }
}
