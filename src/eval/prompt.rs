//! Prompts of multiple-choice questions: text before the answer, and the answers whose likelihood
//! is compared.
//!
//! In: a question, the examples before it, the words of its benchmark. Out: ids of the text before
//! (the context) and of each answer (the continuations). How both are put together, and cut from
//! each other, is as lm-evaluation-harness 0.4.13 does it, so that numbers can be compared.

use mmx_converters::chat;
use mmx_converters::tokenizer::{self, Tokenizer};

use super::benchmarks::{Benchmark, By};
use super::questions::{Question, Subject, letter};
use mmx_converters::Result;

/// The style in which all questions are asked.
#[derive(Clone, Debug, Default)]
pub struct Style {
    /// Text that comes first; `{subject}` stands for the subject's name. The benchmark's own unless
    /// one is given.
    pub preamble: Option<String>,
    /// True where questions are a user's messages in the model's chat template, the answers of
    /// examples the assistant's, and the text that comes first is the system's.
    pub chat: bool,
}

/// What stands around all questions of a subject.
#[derive(Clone, Debug)]
pub struct Wording {
    benchmark: Benchmark,
    chinese: bool,
    preamble: String,
    chat: bool,
}

impl Wording {
    /// The wording of a subject.
    pub fn of(subject: &Subject, style: &Style) -> Self {
        let own = || subject.benchmark.description(&subject.name);
        let given = style.preamble.as_ref().map(|text| text.replace("{subject}", &subject.name));
        Self {
            benchmark: subject.benchmark,
            chinese: subject.is_chinese(),
            preamble: given.unwrap_or_else(own),
            chat: style.chat,
        }
    }

    /// A question's text up to where the answer begins.
    fn ask(&self, question: &Question, by: By) -> String {
        let words = self.benchmark.words(by, self.chinese);
        let asked = if words.trims { question.text.trim() } else { &question.text };
        let mut text = format!("{}{asked}", words.before);
        if by == By::Letter {
            for (i, option) in question.options.iter().enumerate() {
                text.push_str(&format!("\n{}. {option}", letter(i)));
            }
        }
        if !words.after.is_empty() {
            text.push('\n');
            text.push_str(words.after);
        }
        text
    }
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
    wording: &Wording,
    examples: &[Question],
    question: &Question,
    by: By,
) -> Result<Prompt> {
    let right = |example: &Question| answers(example, by).swap_remove(example.right);
    let answers = answers(question, by);
    if wording.chat {
        let mut messages = Vec::new();
        if !wording.preamble.is_empty() {
            messages.push(chat::message("system", &wording.preamble));
        }
        for example in examples {
            messages.push(chat::message("user", &wording.ask(example, by)));
            messages.push(chat::message("assistant", &right(example)));
        }
        messages.push(chat::message("user", &wording.ask(question, by)));
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
    let mut text = wording.preamble.clone();
    for example in examples {
        text.push_str(&format!("{} {}\n\n", wording.ask(example, by), right(example)));
    }
    text.push_str(&wording.ask(question, by));
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

    fn wording(benchmark: Benchmark, name: &str, questions: &[Question], style: &Style) -> Wording {
        let questions = questions.to_vec();
        Wording::of(&Subject { benchmark, name: name.into(), split: None, questions }, style)
    }

    #[test]
    fn the_wording_is_the_harness_own() {
        let tok = tokenizer();
        let example = question("Why?", &["x", "y"], 1);
        let given = Style { preamble: Some("关于{subject}:\n\n".into()), chat: false };
        let make = |benchmark, name: &str, text: &str, style, examples: &[Question], by| {
            let q = question(text, &["甲", "乙"], 1);
            let wording = wording(benchmark, name, std::slice::from_ref(&q), style);
            prompt(&tok, &wording, examples, &q, by).expect("a prompt").text
        };
        let other = |text: &str, examples: &[Question], by| {
            make(Benchmark::Other, "art", text, &given, examples, by)
        };
        assert_eq!(other(" 谁? ", &[], By::Letter), "关于art:\n\n谁?\nA. 甲\nB. 乙\n答案：");
        assert_eq!(other(" 谁? ", &[], By::Answer), "关于art:\n\n谁?\n答案：");
        assert_eq!(other("who?", &[], By::Answer), "关于art:\n\nQuestion: who?\nAnswer:");
        assert_eq!(
            other("who?", &[example], By::Letter),
            "关于art:\n\nQuestion: Why?\nA. x\nB. y\nAnswer: B\n\nQuestion: who?\nA. 甲\nB. 乙\nAnswer:"
        );
        let own = Style::default();
        for (benchmark, name, expected) in [
            (
                Benchmark::CEval,
                "law",
                "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n谁\nA. 甲\nB. 乙\n答案：",
            ),
            (
                Benchmark::TmmluPlus,
                "trade",
                "以下為貿易的單選題，請提供正確答案的選項。\n\n谁\nA. 甲\nB. 乙\nAnswer:",
            ),
            (Benchmark::Arc, "ARC-Easy", "Question:  谁 \nAnswer:"),
            (Benchmark::Piqa, "PIQA", "Question:  谁 \nAnswer:"),
            (Benchmark::OpenBookQa, "OpenBookQA", " 谁 "),
            (Benchmark::HellaSwag, "HellaSwag", " 谁 "),
            (Benchmark::SocialIqa, "Social-IQa", "Q:  谁 \nA:"),
        ] {
            let by = benchmark.ways()[0];
            assert_eq!(make(benchmark, name, " 谁 ", &own, &[], by), expected, "{benchmark:?}");
        }
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
        let wording = wording(Benchmark::Other, "s", std::slice::from_ref(&q), &Style::default());
        let made = prompt(&tok, &wording, &[], &q, By::Answer).expect("ids");
        let all = made.continuations.iter().flatten().chain(&made.context);
        assert!(all.clone().count() > 10 && all.clone().all(|&id| !tok.is_control(id)));
    }

    #[test]
    fn in_a_chat_the_answer_follows_the_template() {
        let (q, tok) = (question("q?", &["x", "y"], 0), tokenizer());
        let style = Style { preamble: None, chat: true };
        let chat = wording(Benchmark::Other, "s", std::slice::from_ref(&q), &style);
        let made = prompt(&tok, &chat, &[], &q, By::Letter).expect("a prompt");
        assert!(made.text.ends_with("<|im_start|>assistant\n"), "{}", made.text);
        // the line break is the answer's, as in a text
        let whole = [&made.context[..], &made.continuations[1]].concat();
        assert_eq!(whole, tok.encode(&format!("{}B", made.text)).expect("ids"));
        assert_eq!(made.continuations[0], tok.encode("\nA").expect("ids"));
        // what comes first is the system's, examples are turns
        let law = wording(Benchmark::CEval, "law", std::slice::from_ref(&q), &style);
        let example = question("e?", &["z", "w"], 1);
        let made = prompt(&tok, &law, &[example], &q, By::Letter).expect("a prompt");
        let turns = "请选出其中的正确答案。\n\n<|im_end|>\n<|im_start|>user\ne?\nA. z\nB. w\n答案：<|im_end|>\n\
                     <|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nq?";
        assert!(made.text.starts_with("<|im_start|>system\n以下是中国关于法学"), "{}", made.text);
        assert!(made.text.contains(turns), "{}", made.text);
    }
}
