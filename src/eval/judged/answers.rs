//! Questions to the answers of several models, each asked once.

use std::collections::HashSet;
use std::time::Instant;

use mmx_converters::Result;
use mmx_data::asking::{Chat, Retries, asked, user, whole};
use serde_json::{Value, json};

use super::pool::{self, Failures};
use super::questions::{Question, by_turn};
use super::store::{Line, Store, key};

/// A model that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contestant {
    /// Its name in tables.
    pub name: String,
    /// What tells it from every other model: a server's address with the model's name there, or the
    /// digest of the model's files.
    pub identity: String,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The text as the model wrote it, thoughts and all.
    pub text: String,
    /// Tokens of the chat before it, where they are told.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, where they are told.
    pub tokens: Option<u64>,
    /// Time from the request to its end, seconds.
    pub seconds: f64,
    /// `stop`, or `length` for one that was cut off; what else servers say.
    pub finish: String,
}

impl Answer {
    /// An answer by its line; nothing for a line without the text.
    fn of(line: &Value) -> Option<Self> {
        Some(Self {
            text: line["answer"].as_str()?.to_owned(),
            prompt_tokens: line["prompt_tokens"].as_u64(),
            tokens: line["tokens"].as_u64(),
            seconds: line["seconds"].as_f64().unwrap_or_default(),
            finish: line["finish"].as_str().unwrap_or_default().to_owned(),
        })
    }

    /// What is left of the answer without its thoughts: what a judge compares.
    #[must_use]
    pub fn spoken(&self) -> &str {
        spoken(&self.text)
    }
}

/// A text after the thoughts before it.
pub(super) fn spoken(text: &str) -> &str {
    text.rsplit("</think>").next().unwrap_or(text).trim()
}

/// A completion as an answer.
pub(super) fn answer_of(completion: &Value, seconds: f64) -> Answer {
    let choice = &completion["choices"][0];
    let message = &choice["message"];
    let mut text = message["content"].as_str().unwrap_or_default().to_owned();
    if let Some(calls) = message["tool_calls"].as_array().filter(|calls| !calls.is_empty()) {
        text.push_str(&Value::from(calls.clone()).to_string());
    }
    let usage = &completion["usage"];
    Answer {
        text,
        prompt_tokens: usage["prompt_tokens"].as_u64(),
        tokens: usage["completion_tokens"].as_u64(),
        seconds: (seconds * 1e3).round() / 1e3,
        finish: choice["finish_reason"].as_str().unwrap_or_default().to_owned(),
    }
}

/// One model's answers to all turns of each question, in order; nothing where one is missing.
pub type Answers = Vec<Option<Vec<Answer>>>;

/// How all models are asked.
#[derive(Clone, Debug)]
pub struct Asking<'a> {
    /// The questions.
    pub questions: &'a [Question],
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// Divides the logits; 0: the likeliest token each time.
    pub temperature: f64,
    /// The seed of all draws.
    pub seed: u64,
    /// How often a request is asked again.
    pub retries: Retries,
}

/// The place of an answer among others.
struct Place<'a> {
    question: &'a Question,
    turn: usize,
    asked: String,
}

/// A request for an answer that is not there.
struct Missing<'a> {
    place: Place<'a>,
    key: String,
    body: Value,
}

impl Asking<'_> {
    /// How many questions a model has not answered yet.
    ///
    /// # Errors
    /// A journal that cannot be read.
    pub fn missing(&self, contestant: &Contestant, store: &Store) -> Result<usize> {
        let walked =
            self.questions.iter().map(|q| self.walk(contestant, q, store, &mut |_, _, _| ()));
        let walked = walked.collect::<Result<Vec<_>>>()?;
        Ok(walked.iter().filter(|missing| missing.is_err()).count())
    }

    /// Asks a model for all answers that are not there, several at once; `done` is called after
    /// each question.
    ///
    /// # Errors
    /// Answers that cannot be kept.
    pub fn ask(
        &self,
        contestant: &Contestant,
        chat: &dyn Chat,
        parallel: usize,
        store: &Store,
        done: &(dyn Fn() + Sync),
    ) -> Result<Failures> {
        // a question that stands there twice is asked once
        let mut known = HashSet::new();
        let units: Vec<&Question> = self
            .questions
            .iter()
            .filter(|q| known.insert(json!([q.turns, q.tools, q.later]).to_string()))
            .collect();
        let name = |q: &&Question| format!("question {} to {}", q.name, contestant.name);
        pool::each(&units, parallel, name, |question, is_over| {
            loop {
                let walked = self.walk(contestant, question, store, &mut |_, _, _| ())?;
                let Err(missing) = walked else { break };
                let start = Instant::now();
                match asked(chat, &missing.body, self.retries, whole, is_over) {
                    Ok(completion) => {
                        let answer = answer_of(&completion, start.elapsed().as_secs_f64());
                        let line = line(contestant, &missing.place, &missing.key, &answer);
                        store.put(missing.key, &line)?;
                    }
                    Err(why) => return Ok(Err(why)),
                }
            }
            done();
            Ok(Ok(()))
        })
    }

    /// The answers that are there, by model, and the lines of the file that holds them, by
    /// question.
    ///
    /// # Errors
    /// A journal that cannot be read.
    pub fn collect(
        &self,
        contestants: &[Contestant],
        store: &Store,
    ) -> Result<(Vec<Answers>, Vec<Line>)> {
        let mut all: Vec<Answers> = vec![Vec::new(); contestants.len()];
        let mut lines = Vec::new();
        for question in self.questions {
            for (contestant, answers) in contestants.iter().zip(&mut all) {
                let mut keep = |place: &Place<'_>, key: &str, answer: &Answer| {
                    lines.push((key.to_owned(), line(contestant, place, key, answer)));
                };
                answers.push(self.walk(contestant, question, store, &mut keep)?.ok());
            }
        }
        Ok((all, lines))
    }

    /// All answers to a question, or the first request whose answer is not there; `each` is called
    /// with those that are.
    fn walk<'q>(
        &self,
        contestant: &Contestant,
        question: &'q Question,
        store: &Store,
        each: &mut dyn FnMut(&Place<'q>, &str, &Answer),
    ) -> Result<Result<Vec<Answer>, Missing<'q>>> {
        let mut turns = question.turns.clone();
        let mut answers: Vec<Answer> = Vec::new();
        for turn in 0..question.answers() {
            let asked = match turn.checked_sub(1).and_then(|before| question.later.get(before)) {
                Some(text) => {
                    turns.push(user(text));
                    text.clone()
                }
                None => question.first_text(),
            };
            let mut body = json!({
                "messages": turns, "max_tokens": self.max_tokens, "temperature": self.temperature,
                "seed": self.seed,
            });
            if let Some(tools) = &question.tools {
                body["tools"] = tools.clone();
            }
            let key = key(&contestant.identity, &body);
            let place = Place { question, turn, asked };
            match store.get(&key)?.as_ref().and_then(Answer::of) {
                Some(answer) => {
                    each(&place, &key, &answer);
                    turns.push(json!({ "role": "assistant", "content": answer.spoken() }));
                    answers.push(answer);
                }
                None => return Ok(Err(Missing { place, key, body })),
            }
        }
        Ok(Ok(answers))
    }
}

/// The line of an answer.
fn line(contestant: &Contestant, place: &Place<'_>, key: &str, answer: &Answer) -> Value {
    json!({
        "key": key, "model": contestant.name, "question": place.question.name,
        "category": place.question.category, "turn": place.turn + 1, "asked": place.asked,
        "answer": answer.text, "finish": answer.finish, "prompt_tokens": answer.prompt_tokens,
        "tokens": answer.tokens, "seconds": answer.seconds,
    })
}

/// All answers to a question as a judge sees them.
pub(super) fn shown(answers: &[Answer]) -> String {
    by_turn(&answers.iter().map(Answer::spoken).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use mmx_data::asking::Refused;

    /// Says what it was asked, and how many turns there were.
    #[derive(Default)]
    struct Echo(Mutex<Vec<String>>);

    impl Chat for Echo {
        fn ask(&self, body: &Value) -> std::result::Result<Value, Refused> {
            let turns = body["messages"].as_array().unwrap();
            let said = turns.iter().map(|t| t["content"].as_str().unwrap());
            let said = said.collect::<Vec<_>>().join("|");
            self.0.lock().unwrap().push(said.clone());
            Ok(json!({ "choices": [{ "message": { "content": format!("<think>x</think> {said}") },
                "finish_reason": "stop" }], "usage": { "completion_tokens": 3 } }))
        }
    }

    fn question(name: &str, turns: &[&str]) -> Question {
        Question {
            name: name.into(),
            category: None,
            reference: None,
            turns: vec![user(turns[0])],
            tools: None,
            later: turns[1..].iter().map(|&text| text.to_owned()).collect(),
        }
    }

    #[test]
    fn turns_follow_each_other_and_nothing_is_asked_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let questions = [question("1", &["a", "b"]), question("2", &["c"]), question("3", &["c"])];
        let retries = Retries::default();
        let asking =
            Asking { questions: &questions, max_tokens: 9, temperature: 0.0, seed: 1, retries };
        let model = Contestant { name: "m".into(), identity: "i".into() };
        let store = Store::open(&path, "answer").unwrap();
        let echo = Echo::default();
        assert_eq!(asking.missing(&model, &store).unwrap(), 3);
        let failures = asking.ask(&model, &echo, 1, &store, &|| ()).unwrap();
        assert_eq!(failures, Failures::default());
        // thoughts are no part of what comes after
        assert_eq!(*echo.0.lock().unwrap(), ["a", "a|a|b", "c"]);
        assert_eq!(asking.missing(&model, &store).unwrap(), 0);
        let (answers, lines) = asking.collect(std::slice::from_ref(&model), &store).unwrap();
        let first = answers[0][0].as_ref().unwrap();
        assert_eq!(shown(first), "[Turn 1]\na\n\n[Turn 2]\na|a|b");
        assert_eq!((first[0].tokens, first[0].text.as_str()), (Some(3), "<think>x</think> a"));
        assert_eq!(lines.len(), 4);
        store.finish(lines).unwrap();
        // another model, other settings: other answers
        let store = Store::open(&path, "answer").unwrap();
        assert_eq!(asking.missing(&model, &store).unwrap(), 0);
        let other = Contestant { identity: "j".into(), ..model.clone() };
        assert_eq!(asking.missing(&other, &store).unwrap(), 3);
        let warm = Asking { temperature: 1.0, ..asking };
        assert_eq!(warm.missing(&model, &store).unwrap(), 3);
    }
}
