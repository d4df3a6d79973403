//! The share of questions a model answers with exactly the right text.
//!
//! In: chats whose last turn is the right answer. Out: what was asked, expected and found.

use std::path::Path;

use mmx_converters::chat;
use mmx_converters::tokenizer::Tokenizer;
use mmx_ggml::run::{Model, Session, SessionOptions};
use serde_json::Value;

use mmx_converters::{Error, Result};
use mmx_data::blocks::Blocks;
use mmx_data::jsonl::Fault;
use mmx_data::sample::messages_and_tools;
use mmx_data::{Fields, Kind, Record, forms};
use mmx_models::compare;

/// A chat to be continued, and the continuation that is right.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Its line in the file, from 1; of a JSON array, its number.
    pub line: usize,
    /// The turns before the answer.
    pub messages: Vec<Value>,
    /// The right answer.
    pub answer: String,
}

/// A question the model answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// The question.
    pub question: Question,
    /// The model's answer.
    pub found: String,
}

impl Answered {
    /// True for the right text; white space around it does not count.
    pub fn is_right(&self) -> bool {
        self.found.trim() == self.question.answer.trim()
    }
}

/// Reads chats as SFT data has them; the last turn must be the assistant's.
///
/// # Errors
/// An unreadable file, a faulty line, or no chat at all.
pub fn read_questions(path: &Path) -> Result<Vec<Question>> {
    let fault = |fault: Fault| {
        let place = match fault.record {
            Some(_) if fault.line == 0 => format!(" {}", fault.place()),
            Some(record) => format!("{}: record {record}", fault.line),
            None => fault.line.to_string(),
        };
        Error::failed(format!("{}:{place}: {}", path.display(), fault.message))
    };
    let mut questions = Vec::new();
    let mut blocks = Blocks::open(path)?;
    while let Some(block) = blocks.next_block()? {
        for line in block.lines() {
            let record = forms::parse(&line, Kind::Chat, &Fields::default()).map_err(fault)?;
            let Record::Chat(mut messages) = record else { continue };
            let last = messages.pop().filter(|m| m["role"] == "assistant");
            let answer = last.as_ref().and_then(|m| m["content"].as_str());
            let missing = || {
                fault(Fault {
                    line: line.number,
                    record: line.record,
                    message: "expected an assistant's text as the last turn".into(),
                    hint: None,
                })
            };
            let answer = answer.ok_or_else(missing)?.to_owned();
            questions.push(Question { line: line.label(), messages, answer });
        }
    }
    if questions.is_empty() {
        return Err(Error::failed(format!(
            "{}: expected at least one chat, found none",
            path.display()
        )));
    }
    Ok(questions)
}

/// Answers every question greedily, at most `limit` tokens each.
///
/// # Errors
/// A template that refuses the messages, a question beyond the context, or the runner's failure.
pub fn answer_all(
    model: &Model,
    tokenizer: &Tokenizer,
    questions: Vec<Question>,
    limit: usize,
    options: SessionOptions,
) -> Result<Vec<Answered>> {
    let stop = tokenizer.stop_ids(&model.config().eos_token_id);
    let mut session = Session::new(model, options)?;
    let mut answered = Vec::with_capacity(questions.len());
    for question in questions {
        let (messages, tools) = messages_and_tools(&question.messages).map_err(|why| {
            Error::failed(format!("the question of line {}: {why}", question.line))
        })?;
        if tools.is_some() && !tokenizer.shows_tools() {
            return Err(Error::failed(format!(
                "the question of line {}: expected a chat template that renders its tools, found one that does not",
                question.line
            )));
        }
        let options = chat::Options { tools, ..chat::Options::generation() };
        let prompt = tokenizer.encode_chat(&messages, &options)?;
        session.truncate(0);
        let mut next = compare::argmax(session.prefill(&prompt.ids)?) as u32;
        let mut ids = Vec::new();
        while !stop.contains(&next) && ids.len() < limit {
            ids.push(next);
            next = compare::argmax(session.decode(next)?) as u32;
        }
        answered.push(Answered { question, found: tokenizer.decode(&ids, true) });
    }
    Ok(answered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_without_an_answer_is_refused_with_its_line() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let good = r#"{"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        let bad = r#"{"conversations": [{"role": "user", "content": "a"}]}"#;
        fs_err::write(file.path(), format!("{good}\n\n{bad}\n")).expect("written");
        let error = read_questions(file.path()).expect_err("no answer").to_string();
        assert!(error.contains(":3:"), "{error}");
        fs_err::write(file.path(), good).expect("written");
        let questions = read_questions(file.path()).expect("one chat");
        assert_eq!((questions.len(), questions[0].answer.as_str()), (1, "b"));
    }
}
