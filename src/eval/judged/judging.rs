//! Answers to verdicts: each pair of models at each question, shown to a judge in both orders.

use std::collections::HashSet;
use std::time::Instant;

use mmx_converters::Result;
use mmx_data::asking::{Chat, Compared, Retries, Verdict, asked, prompt, user, verdict, whole};
use serde_json::{Value, json};

use super::answers::{Answers, Contestant, answer_of, shown};
use super::pool::{self, Failures};
use super::questions::Question;
use super::store::{Line, Store, key};

/// A judge's words about two answers in one order.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Its words.
    pub words: String,
    /// What they say; nothing where they cannot be parsed.
    pub verdict: Option<Verdict>,
    /// Tokens of its words, where they are told.
    pub tokens: Option<u64>,
    /// Time of the request, seconds.
    pub seconds: f64,
}

/// What both orders together say about the answers of two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This model's answer is better, in both orders.
    Won(usize),
    /// A tie in both orders, orders that disagree, or answers that are the same.
    Tie,
    /// Words of the judge without a verdict: it counts for neither.
    Unparsed,
    /// The judge was not asked in both orders.
    Unasked,
}

/// Two models' answers to a question, and what the judge said.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Index of the question.
    pub question: usize,
    /// Indices of the two models, the smaller first.
    pub models: (usize, usize),
    /// The answers are the same text: the judge is not asked.
    pub is_same: bool,
    /// The judge's words: the models in order, and swapped.
    pub said: [Option<Said>; 2],
}

impl Pair {
    /// What both orders say together: a model wins where both prefer it. Source: Zheng et al.
    /// (2023), section 3.4.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.is_same {
            return Outcome::Tie;
        }
        let [Some(in_order), Some(swapped)] = &self.said else { return Outcome::Unasked };
        match (in_order.verdict, swapped.verdict) {
            (None, _) | (_, None) => Outcome::Unparsed,
            (Some(Verdict::First), Some(Verdict::Second)) => Outcome::Won(self.models.0),
            (Some(Verdict::Second), Some(Verdict::First)) => Outcome::Won(self.models.1),
            _ => Outcome::Tie,
        }
    }
}

/// How a judge is asked.
#[derive(Clone, Debug)]
pub struct Judging<'a> {
    /// The questions.
    pub questions: &'a [Question],
    /// The models.
    pub contestants: &'a [Contestant],
    /// Their answers, by model.
    pub answers: &'a [Answers],
    /// The judge.
    pub judge: &'a Contestant,
    /// What it is asked, with places for the texts.
    pub template: &'a str,
    /// Tokens of its words at most.
    pub max_tokens: usize,
    /// The seed of its draws.
    pub seed: u64,
    /// How often a request is asked again.
    pub retries: Retries,
}

/// A request to the judge: a question and the models in the order in which they are shown.
#[derive(Clone, Copy, Debug)]
struct Shown {
    question: usize,
    first: usize,
    second: usize,
}

impl Judging<'_> {
    /// How many verdicts are not there yet.
    ///
    /// # Errors
    /// A journal that cannot be read.
    pub fn missing(&self, store: &Store) -> Result<usize> {
        Ok(self.unasked(store)?.len())
    }

    /// Asks the judge for all verdicts that are not there, several at once; `done` is called after
    /// each.
    ///
    /// # Errors
    /// Verdicts that cannot be kept.
    pub fn ask(
        &self,
        chat: &dyn Chat,
        parallel: usize,
        store: &Store,
        done: &(dyn Fn() + Sync),
    ) -> Result<Failures> {
        let name = |shown: &Shown| {
            let [first, second] = [shown.first, shown.second].map(|m| &self.contestants[m].name);
            format!("question {}, {first} against {second}", self.questions[shown.question].name)
        };
        pool::each(&self.unasked(store)?, parallel, name, |&shown, is_over| {
            let (key, body) = self.request(shown);
            let start = Instant::now();
            match asked(chat, &body, self.retries, whole, is_over) {
                Ok(completion) => {
                    let answer = answer_of(&completion, start.elapsed().as_secs_f64());
                    let said = Said {
                        verdict: verdict(&answer.text),
                        words: answer.text,
                        tokens: answer.tokens,
                        seconds: answer.seconds,
                    };
                    let line = self.line(shown, &key, &said);
                    store.put(key, &line)?;
                    done();
                    Ok(Ok(()))
                }
                Err(why) => Ok(Err(why)),
            }
        })
    }

    /// All pairs whose answers are there, by question, and the lines of the file that holds the
    /// verdicts.
    ///
    /// # Errors
    /// A journal that cannot be read.
    pub fn collect(&self, store: &Store) -> Result<(Vec<Pair>, Vec<Line>)> {
        let mut lines = Vec::new();
        let mut pairs = Vec::new();
        for (question, (first, second)) in self.pairs() {
            let is_same = self.text(first, question) == self.text(second, question);
            let mut said = [None, None];
            if !is_same {
                for (place, (first, second)) in
                    [(first, second), (second, first)].into_iter().enumerate()
                {
                    let shown = Shown { question, first, second };
                    let (key, _) = self.request(shown);
                    let Some(found) = store.get(&key)?.as_ref().and_then(said_of) else { continue };
                    lines.push((key.clone(), self.line(shown, &key, &found)));
                    said[place] = Some(found);
                }
            }
            pairs.push(Pair { question, models: (first, second), is_same, said });
        }
        Ok((pairs, lines))
    }

    /// Questions and pairs of models that both answered them.
    fn pairs(&self) -> impl Iterator<Item = (usize, (usize, usize))> + '_ {
        let models = self.answers.len();
        let pairs = move || (0..models).flat_map(move |i| (i + 1..models).map(move |j| (i, j)));
        let answered = |question: usize, model: usize| self.answers[model][question].is_some();
        (0..self.questions.len()).flat_map(move |question| {
            pairs()
                .filter(move |&(i, j)| answered(question, i) && answered(question, j))
                .map(move |pair| (question, pair))
        })
    }

    /// What the judge sees of a model's answers.
    fn text(&self, model: usize, question: usize) -> String {
        self.answers[model][question].as_deref().map(shown).unwrap_or_default()
    }

    /// The requests whose answers are not there, each once.
    fn unasked(&self, store: &Store) -> Result<Vec<Shown>> {
        let mut known = HashSet::new();
        let mut unasked = Vec::new();
        for (question, (first, second)) in self.pairs() {
            if self.text(first, question) == self.text(second, question) {
                continue;
            }
            for (first, second) in [(first, second), (second, first)] {
                let shown = Shown { question, first, second };
                let (key, _) = self.request(shown);
                if store.get(&key)?.as_ref().and_then(said_of).is_none() && known.insert(key) {
                    unasked.push(shown);
                }
            }
        }
        Ok(unasked)
    }

    fn request(&self, shown: Shown) -> (String, Value) {
        let question = &self.questions[shown.question];
        let texts = Compared {
            question: &question.text(),
            reference: question.reference.as_deref(),
            first: &self.text(shown.first, shown.question),
            second: &self.text(shown.second, shown.question),
        };
        let body = json!({
            "messages": [user(&prompt(self.template, &texts))], "max_tokens": self.max_tokens,
            "temperature": 0.0, "seed": self.seed,
        });
        (key(&self.judge.identity, &body), body)
    }

    fn line(&self, shown: Shown, key: &str, said: &Said) -> Value {
        let question = &self.questions[shown.question];
        json!({
            "key": key, "judge": self.judge.name, "question": question.name,
            "category": question.category, "first": self.contestants[shown.first].name,
            "second": self.contestants[shown.second].name,
            "verdict": said.verdict.map(|verdict| match verdict {
                Verdict::First => "first",
                Verdict::Second => "second",
                Verdict::Tie => "tie",
            }),
            "words": said.words, "tokens": said.tokens, "seconds": said.seconds,
        })
    }
}

/// What a line says. The verdict is read from the words again: they are what was said.
fn said_of(line: &Value) -> Option<Said> {
    let words = line["words"].as_str()?.to_owned();
    let (tokens, seconds) = (line["tokens"].as_u64(), line["seconds"].as_f64());
    Some(Said { verdict: verdict(&words), words, tokens, seconds: seconds.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_win_needs_both_orders_and_words_without_a_verdict_are_no_tie() {
        let said = |words: &str| {
            Some(Said { words: words.into(), verdict: verdict(words), tokens: None, seconds: 0.0 })
        };
        let outcome = |in_order, swapped, is_same| {
            let said = [in_order, swapped];
            Pair { question: 0, models: (3, 5), is_same, said }.outcome()
        };
        assert_eq!(outcome(said("[[A]]"), said("[[B]]"), false), Outcome::Won(3));
        assert_eq!(outcome(said("[[B]]"), said("[[A]]"), false), Outcome::Won(5));
        for (one, other) in
            [("[[A]]", "[[A]]"), ("[[B]]", "[[B]]"), ("[[C]]", "[[A]]"), ("[[C]]", "[[C]]")]
        {
            assert_eq!(outcome(said(one), said(other), false), Outcome::Tie);
        }
        assert_eq!(outcome(said("[[A]]"), said("A"), false), Outcome::Unparsed);
        assert_eq!(outcome(said("?"), said("?"), false), Outcome::Unparsed);
        assert_eq!(outcome(said("[[A]]"), None, false), Outcome::Unasked);
        assert_eq!(outcome(None, None, true), Outcome::Tie);
    }
}
