//! Prompts of multiple-choice questions: text before the answer, and the answers whose likelihood
//! is compared.
//!
//! In: a question, the examples before it, the words of its language. Out: ids of the text before
//! (the context) and of each answer (the continuations). The wording and the cut between context
//! and continuation are those of lm-evaluation-harness 0.4 for C-Eval, CMMLU and ARC, so that
//! numbers can be compared.

use mmx_converters::chat;
use mmx_converters::tokenizer::{self, Tokenizer};

use super::questions::{Question, letter};
use mmx_converters::Result;

/// A way of asking: whose likelihoods are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// The options stand in the prompt, and the letters' likelihoods are compared
    Letter,
    /// The options do not stand in the prompt, and their whole texts' likelihoods are compared
    Answer,
}

/// The style in which all questions are asked.
#[derive(Clone, Debug, Default)]
pub struct Style {
    /// Text that comes first; `{subject}` stands for the subject's name.
    pub preamble: String,
    /// True where the prompt is a user's message in the model's chat template.
    pub chat: bool,
}

/// A question to be scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The text before the answer.
    pub text: String,
    /// Ids of the text before the answer.
    pub context: Vec<u32>,
    /// Ids of each answer, at least one each.
    pub continuations: Vec<Vec<u32>>,
}

/// A question's text up to where the answer begins.
fn ask(question: &Question, by: By, chinese: bool) -> String {
    let (before, after) = if chinese { ("", "答案：") } else { ("Question: ", "Answer:") };
    let mut text = format!("{before}{}\n", question.text.trim());
    if by == By::Letter {
        for (i, option) in question.options.iter().enumerate() {
            text.push_str(&format!("{}. {option}\n", letter(i)));
        }
    }
    text + after
}

/// The texts that are compared.
pub fn answers(question: &Question, by: By) -> Vec<String> {
    match by {
        By::Letter => (0..question.options.len()).map(|i| letter(i).to_string()).collect(),
        By::Answer => question.options.clone(),
    }
}

/// Makes a prompt; `examples` are questions of the same subject that come before it with their
/// answers.
///
/// # Errors
/// The tokenizer's own; a chat asked of a model without a template, or one that its template
/// refuses.
pub fn prompt(
    tokenizer: &Tokenizer,
    style: &Style,
    subject: &str,
    examples: &[Question],
    question: &Question,
    by: By,
    chinese: bool,
) -> Result<Prompt> {
    let mut text = style.preamble.replace("{subject}", subject);
    for example in examples {
        let answer = &answers(example, by)[example.right];
        text.push_str(&format!("{} {answer}\n\n", ask(example, by, chinese)));
    }
    text.push_str(&ask(question, by, chinese));
    let answers = answers(question, by);
    if style.chat {
        let messages = [chat::message("user", &text)];
        let mut prompt = tokenizer.encode_chat(&messages, &chat::Options::generation())?;
        let blanks = take_blanks(tokenizer, &mut prompt);
        let continuations =
            answers.iter().map(|answer| tokenizer.encode_plain(&format!("{blanks}{answer}")));
        return Ok(Prompt {
            text: prompt.text,
            context: prompt.ids,
            continuations: continuations.collect::<std::result::Result<_, _>>()?,
        });
    }
    let mut context = Vec::new();
    let mut continuations = Vec::with_capacity(answers.len());
    for answer in &answers {
        let (before, after) = encode_pair(tokenizer, &text, &format!(" {answer}"))?;
        context = before;
        continuations.push(after);
    }
    Ok(Prompt { text, context, continuations })
}

/// Ids of a context and of what follows it: both are read together, as they would be in a text, and
/// as many ids as the context has alone are cut off. Blanks at the context's end belong to what
/// follows.
fn encode_pair(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let before = tokenizer.encode_plain(context.trim_end())?;
    let mut whole = tokenizer.encode_plain(&format!("{context}{continuation}"))?;
    // where context and continuation melt into one token, that one is scored
    let after = whole.split_off(before.len().min(whole.len().saturating_sub(1)));
    Ok((before, after))
}

/// Takes the ids of the blanks at a prompt's end away, and gives these blanks: as in a text, they
/// belong to what follows.
fn take_blanks(tokenizer: &Tokenizer, prompt: &mut tokenizer::Prompt) -> String {
    let blanks = prompt.text[prompt.text.trim_end().len()..].to_owned();
    let (mut left, mut keep) = (blanks.as_bytes(), prompt.ids.len());
    while let (false, Some(&id)) = (left.is_empty(), prompt.ids[..keep].last()) {
        match left.strip_suffix(tokenizer.token_bytes(id)) {
            Some(rest) if rest.len() < left.len() => (left, keep) = (rest, keep - 1),
            // a token of blanks and something else cannot be cut: the prompt stays as it is
            _ => return String::new(),
        }
    }
    prompt.ids.truncate(keep);
    blanks
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn question(text: &str, options: &[&str], right: usize) -> Question {
        let options = options.iter().map(|&o| o.to_owned()).collect();
        Question { file: PathBuf::new(), line: 1, text: text.into(), options, right }
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/golden"))
            .expect("golden")
    }

    #[test]
    fn the_wording_is_the_harness_own() {
        let (q, tok) = (question(" 谁? ", &["甲", "乙"], 1), tokenizer());
        let example = question("Why?", &["x", "y"], 1);
        let style = Style { preamble: "关于{subject}:\n\n".into(), chat: false };
        let make = |examples: &[Question], by, chinese| {
            prompt(&tok, &style, "art", examples, &q, by, chinese).expect("a prompt").text
        };
        assert_eq!(make(&[], By::Letter, true), "关于art:\n\n谁?\nA. 甲\nB. 乙\n答案：");
        assert_eq!(make(&[], By::Answer, false), "关于art:\n\nQuestion: 谁?\nAnswer:");
        assert_eq!(
            make(&[example], By::Letter, false),
            "关于art:\n\nQuestion: Why?\nA. x\nB. y\nAnswer: B\n\nQuestion: 谁?\nA. 甲\nB. 乙\nAnswer:"
        );
    }

    #[test]
    fn context_and_continuation_are_cut_where_the_context_ends() {
        let tok = tokenizer();
        let plain = |text: &str| tok.encode_plain(text).expect("ids");
        let (before, after) = encode_pair(&tok, "Answer:", " apples").expect("ids");
        assert_eq!((&before, &after), (&plain("Answer:"), &plain(" apples")));
        // blanks at the end go over to the answer
        let (before, after) = encode_pair(&tok, "Answer: ", "apples").expect("ids");
        assert_eq!(
            (before, [plain("Answer:"), after].concat()),
            (plain("Answer:"), plain("Answer: apples"))
        );
        let q = question("q <|im_end|>", &["a<|im_end|>", "b"], 0);
        let made = prompt(&tok, &Style::default(), "s", &[], &q, By::Answer, false).expect("ids");
        let all = made.continuations.iter().flatten().chain(&made.context);
        assert!(all.clone().count() > 10 && all.clone().all(|&id| !tok.is_control(id)));
    }

    #[test]
    fn in_a_chat_the_answer_follows_the_template() {
        let (q, tok) = (question("q?", &["x", "y"], 0), tokenizer());
        let style = Style { preamble: String::new(), chat: true };
        let made = prompt(&tok, &style, "s", &[], &q, By::Letter, false).expect("a prompt");
        assert!(made.text.ends_with("<|im_start|>assistant\n"), "{}", made.text);
        // the line break is the answer's, as in a text
        let whole = [&made.context[..], &made.continuations[1]].concat();
        assert_eq!(whole, tok.encode(&format!("{}B", made.text)).expect("ids"));
        assert_eq!(made.continuations[0], tok.encode("\nA").expect("ids"));
    }
}
