//! The share of multiple-choice questions whose right answer is the likeliest one.
//!
//! In: subjects' questions, a model in an engine. Out: log-likelihoods of each question's answers,
//! and shares with their intervals, by subject, by benchmark and over all.

use serde_json::{Value, json};

use mmx_converters::tokenizer::Tokenizer;

use super::benchmarks::By;
use super::prompt::{self, Prompt, Wording};
pub use super::request::{Measure, Part, Request};
use super::stats::interval;
use mmx_converters::Result;
use mmx_models::compare;
use mmx_models::engines::Engine;

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
    /// Counts the questions of a part that a measure answers rightly: `(right, all)`.
    pub fn count(&self, request: &Request, measure: Measure, part: Part) -> (usize, usize) {
        let (mut right, mut all) = (0, 0);
        for a in &self.answered {
            let subject = &request.subjects[a.subject];
            let chosen = a.chosen.iter().find(|(m, _)| *m == measure);
            let Some((_, chosen)) = chosen.filter(|_| part.holds(a.subject, subject)) else {
                continue;
            };
            all += 1;
            right += usize::from(subject.questions[a.question].right == *chosen);
        }
        (right, all)
    }

    /// Counts the questions that get the same answer as in `reference`, right or wrong.
    pub fn same_answers(&self, reference: &Self, measure: Measure) -> usize {
        let chosen = |a: &Answered| a.chosen.iter().find(|(m, _)| *m == measure).map(|(_, i)| *i);
        let pairs = self.answered.iter().zip(&reference.answered);
        pairs.filter(|(a, b)| chosen(a).is_some() && chosen(a) == chosen(b)).count()
    }

    /// The mean of the subjects' shares, as C-Eval's own table has it, and its interval at 95 %:
    /// the subjects' own intervals put together. Source: Zou and Donner 2008, equation 5 (MOVER).
    pub fn mean_of_subjects(
        &self,
        request: &Request,
        measure: Measure,
        part: Part,
    ) -> (f64, (f64, f64)) {
        let (mut n, mut sum, mut below, mut above) = (0.0, 0.0, 0.0, 0.0);
        for (subject, _) in request.subjects_of(part) {
            let (right, all) = self.count(request, measure, Part::Subject(subject));
            if all == 0 {
                continue; // asked in another way
            }
            let share = right as f64 / all as f64;
            let (low, high) = interval(right, all);
            n += 1.0;
            sum += share;
            below += (share - low).powi(2);
            above += (high - share).powi(2);
        }
        let n = f64::max(n, 1.0);
        let mean = sum / n;
        (mean, (mean - below.sqrt() / n, mean + above.sqrt() / n))
    }

    /// The counts of a part with their intervals, measure by measure.
    fn shares_json(&self, request: &Request, part: Part) -> serde_json::Map<String, Value> {
        let share = |measure: Measure| {
            let (right, all) = self.count(request, measure, part);
            let (low, high) = interval(right, all);
            let accuracy = right as f64 / all.max(1) as f64;
            let share = json!({
                "right": right, "questions": all, "accuracy": accuracy, "interval": [low, high],
            });
            (measure.name().to_owned(), share)
        };
        let questions = request.subjects_of(part).map(|(_, s)| s.questions.len()).sum::<usize>();
        let mut object = serde_json::Map::new();
        object.insert("questions".into(), questions.into());
        object.extend(request.measures(part).into_iter().map(share));
        object
    }

    /// The scores as JSON.
    pub fn to_json(&self, request: &Request) -> Value {
        let mean = |measure: Measure, part| self.mean_of_subjects(request, measure, part);
        let subjects = request.subjects.iter().enumerate().map(|(i, subject)| {
            let mut object = serde_json::Map::new();
            object.insert("subject".into(), subject.name.clone().into());
            object.insert("benchmark".into(), subject.benchmark.name().into());
            object.extend(self.shares_json(request, Part::Subject(i)));
            Value::from(object)
        });
        let benchmarks = request.benchmarks().into_iter().map(|benchmark| {
            let part = Part::Benchmark(benchmark);
            let means = request.measures(part).into_iter().map(|m| {
                let (mean, (low, high)) = mean(m, part);
                (m.name().to_owned(), json!({"accuracy": mean, "interval": [low, high]}))
            });
            let mut object = serde_json::Map::new();
            object.insert("benchmark".into(), benchmark.name().into());
            object.insert("subjects".into(), request.subjects_of(part).count().into());
            object.extend(self.shares_json(request, part));
            object.insert("mean_of_subjects".into(), Value::Object(means.collect()));
            Value::from(object)
        });
        let all = request.measures(Part::All).into_iter();
        let means = all.map(|m| (m.name().to_owned(), Value::from(mean(m, Part::All).0)));
        json!({
            "overall": self.shares_json(request, Part::All),
            "mean_of_subjects": means.collect::<serde_json::Map<_, _>>(),
            "benchmarks": benchmarks.collect::<Vec<_>>(),
            "subjects": subjects.collect::<Vec<_>>(),
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
        let wording = Wording::of(subject, &request.style);
        for (q, question) in subject.questions.iter().enumerate() {
            for &by in request.ways(subject.benchmark) {
                let prompt = prompt::prompt(tokenizer, &wording, examples, question, by)?;
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
    use crate::benchmarks::Benchmark;
    use crate::prompt::Style;
    use crate::questions::{Question, Subject};

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
    fn shares_are_counted_by_subject_and_over_all() {
        let question = |right| Question {
            file: PathBuf::new(),
            line: 1,
            text: "q".into(),
            options: vec!["a".into(), "b".into()],
            right,
        };
        let subject = |name: &str, benchmark, questions| Subject {
            benchmark,
            name: name.into(),
            split: None,
            questions,
        };
        let request = Request {
            subjects: vec![
                subject("one", Benchmark::Cmmlu, vec![question(0)]),
                subject("two", Benchmark::Cmmlu, vec![question(0), question(1), question(1)]),
                subject("three", Benchmark::Arc, vec![question(1)]),
            ],
            examples: Vec::new(),
            shots: 0,
            by: Vec::new(),
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
        let mut answered = vec![answered(0, 0), answered(1, 0), answered(1, 1), answered(1, 2)];
        answered.push(Answered {
            subject: 2,
            by: By::Answer,
            chosen: Measure::of(By::Answer).iter().map(|m| (*m, 1)).collect(),
            ..answered[0].clone()
        });
        let scores = Scores { answered, cut: 0 };
        let mut other = scores.clone();
        other.answered[2].chosen[0].1 = 1;
        assert_eq!(other.same_answers(&scores, Measure::Letter), 3);
        assert_eq!(other.same_answers(&scores, Measure::Answer), 1);
        let json = scores.to_json(&request);
        assert_eq!(json["overall"]["letter"]["right"], 2);
        assert_eq!(json["overall"]["letter"]["accuracy"], 0.5);
        assert_eq!(json["subjects"][1]["letter"]["right"], 1);
        let mean = json["mean_of_subjects"]["letter"].as_f64().expect("a number");
        assert!((mean - (1.0 + 1.0 / 3.0) / 2.0).abs() < 1e-12);
        // each benchmark by its own measures, and those alone
        let [cmmlu, arc] = [0, 1].map(|i| &json["benchmarks"][i]);
        assert_eq!((&cmmlu["benchmark"], &cmmlu["subjects"]), (&json!("cmmlu"), &json!(2)));
        assert_eq!((&cmmlu["questions"], &cmmlu["letter"]["right"]), (&json!(4), &json!(2)));
        assert!(cmmlu["answer"].is_null() && arc["letter"].is_null());
        assert_eq!(
            (&arc["answer_norm"]["right"], &arc["answer"]["questions"]),
            (&json!(1), &json!(1))
        );
        assert_eq!(json["overall"]["letter"]["questions"], 4);
        // the means' intervals: (1, 1/3) with Wilson's 0.2065 .. 1 and 0.0615 .. 0.7923
        let of_cmmlu = &cmmlu["mean_of_subjects"]["letter"];
        assert_eq!(of_cmmlu["accuracy"].as_f64(), Some(mean));
        let end = |i: usize| of_cmmlu["interval"][i].as_f64().expect("a number");
        let low = ((1.0f64 - 0.2065).powi(2) + (1.0f64 / 3.0 - 0.0615).powi(2)).sqrt() / 2.0;
        assert!((end(0) - (mean - low)).abs() < 1e-3, "{of_cmmlu}");
        assert!((end(1) - (mean + (0.7923 - 1.0 / 3.0) / 2.0)).abs() < 1e-3, "{of_cmmlu}");
        assert!((request.chance(Part::All) - 0.5).abs() < 1e-12);
    }
}
