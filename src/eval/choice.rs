//! The share of multiple-choice questions whose right answer is the likeliest one.
//!
//! In: subjects' questions, a model in an engine. Out: log-likelihoods of each question's answers,
//! and shares with their intervals, by subject and over all. An answer's likelihood is the sum of
//! its tokens' log-probabilities: as it is (lm-evaluation-harness' `acc`), divided by its
//! characters (`acc_norm`), or by its bytes (`acc_bytes`).

use serde_json::{Value, json};

use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::words::counted;

use super::prompt::{self, By, Prompt, Style};
use super::questions::{Question, Subject};
use super::stats::interval;
use mmx_converters::{Error, Result};
use mmx_models::compare;
use mmx_models::engines::Engine;

/// The measure that decides which answer a model gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// The letter's likelihood.
    Letter,
    /// The answer's likelihood.
    Answer,
    /// The answer's likelihood divided by its characters.
    AnswerPerCharacter,
    /// The answer's likelihood divided by its bytes.
    AnswerPerByte,
}

impl Measure {
    /// The measures of a way of asking.
    pub fn of(by: By) -> &'static [Self] {
        match by {
            By::Letter => &[Self::Letter],
            By::Answer => &[Self::Answer, Self::AnswerPerCharacter, Self::AnswerPerByte],
        }
    }

    /// The measure's name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Letter => "letter",
            Self::Answer => "answer",
            Self::AnswerPerCharacter => "answer_norm",
            Self::AnswerPerByte => "answer_bytes",
        }
    }

    /// The measure's name in tables and plots.
    pub fn title(self) -> &'static str {
        match self {
            Self::Letter => "letter",
            Self::Answer => "answer",
            Self::AnswerPerCharacter => "answer per character",
            Self::AnswerPerByte => "answer per byte",
        }
    }

    /// Index of the answer that a model gives: the first of the likeliest.
    fn chosen(self, log_likelihoods: &[f64], answers: &[String]) -> usize {
        let score = |i: usize| {
            let n = match self {
                Self::Letter | Self::Answer => 1,
                Self::AnswerPerCharacter => answers[i].chars().count(),
                Self::AnswerPerByte => answers[i].len(),
            };
            log_likelihoods[i] / n.max(1) as f64
        };
        (1..log_likelihoods.len()).fold(0, |best, i| if score(i) > score(best) { i } else { best })
    }
}

/// A request to ask questions: which, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The questions.
    pub subjects: Vec<Subject>,
    /// Questions with answers that come before each of their subject, the first `shots` of them.
    pub examples: Vec<Subject>,
    /// Number of examples before each question.
    pub shots: usize,
    /// Ways of asking; both unless one is asked for.
    pub by: Vec<By>,
    /// The wording.
    pub style: Style,
}

impl Request {
    /// Number of all questions.
    pub fn questions(&self) -> usize {
        self.subjects.iter().map(|s| s.questions.len()).sum()
    }

    /// The share that choosing blindly gets right.
    pub fn chance(&self) -> f64 {
        let all = self.subjects.iter().flat_map(|s| &s.questions);
        all.map(|q| 1.0 / q.options.len() as f64).sum::<f64>() / self.questions().max(1) as f64
    }

    /// The measures of all ways of asking.
    pub fn measures(&self) -> Vec<Measure> {
        self.by.iter().flat_map(|by| Measure::of(*by)).copied().collect()
    }

    fn examples_of(&self, subject: &Subject) -> Result<&[Question]> {
        if self.shots == 0 {
            return Ok(&[]);
        }
        let found = self.examples.iter().find(|s| s.name == subject.name);
        let questions = found.map_or(&[][..], |s| s.questions.as_slice());
        questions.get(..self.shots).ok_or_else(|| {
            Error::failed(format!(
                "`examples`: subject {}: expected {}, found {}",
                subject.name,
                counted(self.shots, "example"),
                questions.len()
            ))
        })
    }
}

/// A question's outcome in one way of asking.
#[derive(Clone, Debug)]
pub struct Answered {
    /// Index of the subject.
    pub subject: usize,
    /// Index of the question in it.
    pub question: usize,
    /// The way of asking.
    pub by: By,
    /// The text before the answer.
    pub prompt: String,
    /// Log-likelihood of each answer, nats.
    pub log_likelihoods: Vec<f64>,
    /// The answer that each measure of this way chooses.
    pub chosen: Vec<(Measure, usize)>,
}

/// A model's outcome.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// Every question, in order.
    pub answered: Vec<Answered>,
    /// Number of prompts that were longer than the model's context and lost their beginning.
    pub cut: usize,
}

impl Scores {
    /// Counts the questions that a measure answers rightly: `(right, all)`; of one subject, or of
    /// all.
    pub fn count(
        &self,
        request: &Request,
        measure: Measure,
        subject: Option<usize>,
    ) -> (usize, usize) {
        let (mut right, mut all) = (0, 0);
        for a in self.answered.iter().filter(|a| subject.is_none_or(|s| s == a.subject)) {
            let Some((_, chosen)) = a.chosen.iter().find(|(m, _)| *m == measure) else { continue };
            all += 1;
            right +=
                usize::from(request.subjects[a.subject].questions[a.question].right == *chosen);
        }
        (right, all)
    }

    /// Counts the questions that get the same answer as in `reference`, right or wrong.
    pub fn same_answers(&self, reference: &Self, measure: Measure) -> usize {
        let chosen = |a: &Answered| a.chosen.iter().find(|(m, _)| *m == measure).map(|(_, i)| *i);
        let pairs = self.answered.iter().zip(&reference.answered);
        pairs.filter(|(a, b)| chosen(a).is_some() && chosen(a) == chosen(b)).count()
    }

    /// The mean of the subjects' shares, as C-Eval's own table has it.
    pub fn mean_of_subjects(&self, request: &Request, measure: Measure) -> f64 {
        let n = request.subjects.len();
        let shares = (0..n).map(|subject| {
            let (right, all) = self.count(request, measure, Some(subject));
            right as f64 / all.max(1) as f64
        });
        shares.sum::<f64>() / n.max(1) as f64
    }

    /// A count with its interval.
    fn share_json(&self, request: &Request, measure: Measure, subject: Option<usize>) -> Value {
        let (right, all) = self.count(request, measure, subject);
        let (low, high) = interval(right, all);
        json!({"right": right, "accuracy": right as f64 / all.max(1) as f64, "interval": [low, high]})
    }

    /// The scores as JSON.
    pub fn to_json(&self, request: &Request) -> Value {
        let measures = request.measures();
        let of = |subject: Option<usize>, questions: usize| {
            let mut object = serde_json::Map::new();
            if let Some(subject) = subject {
                object.insert("subject".into(), request.subjects[subject].name.clone().into());
            }
            object.insert("questions".into(), questions.into());
            for &measure in &measures {
                object.insert(measure.name().into(), self.share_json(request, measure, subject));
            }
            object
        };
        let subjects = request.subjects.iter().enumerate();
        let subjects: Vec<_> = subjects.map(|(i, s)| of(Some(i), s.questions.len())).collect();
        let means = measures
            .iter()
            .map(|&m| (m.name().to_owned(), Value::from(self.mean_of_subjects(request, m))));
        json!({
            "overall": of(None, request.questions()),
            "mean_of_subjects": means.collect::<serde_json::Map<_, _>>(),
            "subjects": subjects,
            "cut_prompts": self.cut,
        })
    }
}

/// Asks a model all questions. `limit` is the longest sequence it takes; longer prompts lose their
/// beginning. `progress` hears of questions done.
///
/// # Errors
/// Fewer examples than asked for, a template that refuses a question, the engine's failure.
pub fn score(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    request: &Request,
    limit: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Scores> {
    let mut scores = Scores::default();
    let mut done = 0;
    for (s, subject) in request.subjects.iter().enumerate() {
        let examples = request.examples_of(subject)?;
        let chinese = subject.is_chinese();
        for (q, question) in subject.questions.iter().enumerate() {
            for &by in &request.by {
                let style = &request.style;
                let prompt = prompt::prompt(
                    tokenizer,
                    style,
                    &subject.name,
                    examples,
                    question,
                    by,
                    chinese,
                )?;
                let (log_likelihoods, cut) = log_likelihoods(engine, &prompt, limit)?;
                scores.cut += usize::from(cut);
                let answers = prompt::answers(question, by);
                let chosen =
                    Measure::of(by).iter().map(|m| (*m, m.chosen(&log_likelihoods, &answers)));
                let chosen = chosen.collect();
                scores.answered.push(Answered {
                    subject: s,
                    question: q,
                    by,
                    prompt: prompt.text,
                    log_likelihoods,
                    chosen,
                });
            }
            done += 1;
            progress(done);
        }
    }
    Ok(scores)
}

/// Log-likelihoods of the continuations, nats, and whether the prompt's beginning had to go.
fn log_likelihoods(
    engine: &mut dyn Engine,
    prompt: &Prompt,
    limit: usize,
) -> Result<(Vec<f64>, bool)> {
    let vocab = engine.vocab();
    let mut cut = false;
    let mut all = Vec::with_capacity(prompt.continuations.len());
    // letters are one token each: what comes before them is computed once
    let mut last: Option<(Vec<u32>, usize, Vec<f32>)> = None;
    for continuation in &prompt.continuations {
        let mut seen = [&prompt.context[..], continuation].concat();
        seen.pop(); // the last token is predicted, but predicts nothing
        if seen.len() > limit {
            seen.drain(..seen.len() - limit);
            cut = true;
        }
        let scored = continuation.len().min(seen.len());
        let from = seen.len() - scored;
        if !last.as_ref().is_some_and(|(ids, at, _)| *ids == seen && *at == from) {
            let rows = engine.logits_from(&seen, from)?; // [scored, vocab]
            last = Some((seen, from, rows));
        }
        let Some((_, _, rows)) = &last else { continue };
        let ids = &continuation[continuation.len() - scored..];
        all.push(
            rows.chunks_exact(vocab)
                .zip(ids)
                .map(|(row, &id)| compare::log_likelihood(row, id))
                .sum(),
        );
    }
    Ok((all, cut))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Logits that grow with the id and the position, so that sums can be written down.
    struct Growing {
        calls: usize,
    }

    impl Engine for Growing {
        fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
            self.calls += 1;
            Ok((0..ids.len()).flat_map(|at| (0..8).map(move |id| (at * id) as f32 * 0.1)).collect())
        }

        fn tokenize(&mut self, _: &str) -> Result<Option<Vec<u32>>> {
            Ok(None)
        }

        fn vocab(&self) -> usize {
            8
        }
    }

    #[test]
    fn an_answers_likelihood_is_the_sum_over_its_tokens() {
        let mut engine = Growing { calls: 0 };
        let prompt = Prompt {
            text: String::new(),
            context: vec![1, 2, 3],
            continuations: vec![vec![5], vec![4], vec![6, 7]],
        };
        let (found, cut) = log_likelihoods(&mut engine, &prompt, 100).expect("numbers");
        assert!(!cut && engine.calls == 2, "both single tokens share one computation");
        let at = |position: usize, id: usize| -> f64 {
            let all: Vec<f64> = (0..8).map(|i| f64::from((position * i) as f32 * 0.1)).collect();
            all[id] - all.iter().map(|x| x.exp()).sum::<f64>().ln()
        };
        let expected = [at(2, 5), at(2, 4), at(2, 6) + at(3, 7)];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        // the beginning goes, the answer stays
        let (found, cut) = log_likelihoods(&mut engine, &prompt, 2).expect("numbers");
        assert!(cut && (found[2] - at(0, 6) - at(1, 7)).abs() < 1e-6);
    }

    #[test]
    fn measures_choose_by_sum_by_character_and_by_byte() {
        let answers = ["ab".to_owned(), "好".to_owned(), "abcdef".to_owned()];
        let sums = [-2.0, -2.4, -4.8];
        assert_eq!(Measure::Answer.chosen(&sums, &answers), 0);
        assert_eq!(Measure::AnswerPerCharacter.chosen(&sums, &answers), 2); // 1.0, 2.4, 0.8
        assert_eq!(Measure::AnswerPerByte.chosen(&sums, &answers), 1); // 1.0, 0.8, 0.8: the first of equals
        assert_eq!(Measure::Letter.chosen(&[-1.0, -1.0], &answers), 0);
    }

    #[test]
    fn shares_are_counted_by_subject_and_over_all() {
        let question = |right| Question {
            file: PathBuf::new(),
            line: 1,
            text: "q".into(),
            options: vec!["a".into(), "b".into()],
            right,
        };
        let request = Request {
            subjects: vec![
                Subject { name: "one".into(), questions: vec![question(0)] },
                Subject {
                    name: "two".into(),
                    questions: vec![question(0), question(1), question(1)],
                },
            ],
            examples: Vec::new(),
            shots: 0,
            by: vec![By::Letter],
            style: Style::default(),
        };
        let answered = |subject, question| Answered {
            subject,
            question,
            by: By::Letter,
            prompt: String::new(),
            log_likelihoods: Vec::new(),
            chosen: vec![(Measure::Letter, 0)],
        };
        let answered = vec![answered(0, 0), answered(1, 0), answered(1, 1), answered(1, 2)];
        let scores = Scores { answered, cut: 0 };
        let mut other = scores.clone();
        other.answered[2].chosen[0].1 = 1;
        assert_eq!(other.same_answers(&scores, Measure::Letter), 3);
        assert_eq!(other.same_answers(&scores, Measure::Answer), 0);
        let json = scores.to_json(&request);
        assert_eq!(json["overall"]["letter"]["right"], 2);
        assert_eq!(json["overall"]["letter"]["accuracy"], 0.5);
        assert_eq!(json["subjects"][1]["letter"]["right"], 1);
        let mean = json["mean_of_subjects"]["letter"].as_f64().expect("a number");
        assert!((mean - (1.0 + 1.0 / 3.0) / 2.0).abs() < 1e-12);
        assert!((request.chance() - 0.5).abs() < 1e-12);
    }
}
