//! What is asked: subjects of benchmarks, the ways of asking, the measures that decide.
//!
//! In: questions. Out: a [`Request`], its parts and the measures of each. An answer's likelihood is
//! the sum of its tokens' log-probabilities: as it is (lm-evaluation-harness' `acc`), divided by its
//! characters (`acc_norm`), or by its bytes (`acc_bytes`).

use mmx_converters::words::counted;
use mmx_converters::{Error, Result};

use super::benchmarks::{Benchmark, By, Split};
use super::prompt::Style;
use super::questions::{Question, Subject};

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
    /// All measures.
    const ALL: [Self; 4] =
        [Self::Letter, Self::Answer, Self::AnswerPerCharacter, Self::AnswerPerByte];

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
    pub(super) fn chosen(self, log_likelihoods: &[f64], answers: &[String]) -> usize {
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

/// A part of the questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    All,
    /// Those of a benchmark.
    Benchmark(Benchmark),
    /// Those of the subject of an index.
    Subject(usize),
}

impl Part {
    pub(super) fn holds(self, index: usize, subject: &Subject) -> bool {
        match self {
            Self::All => true,
            Self::Benchmark(benchmark) => subject.benchmark == benchmark,
            Self::Subject(wanted) => wanted == index,
        }
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
    /// Ways of asking; each benchmark's own where none is given.
    pub by: Vec<By>,
    /// The wording.
    pub style: Style,
}

impl Request {
    /// Number of all questions.
    pub fn questions(&self) -> usize {
        self.subjects.iter().map(|s| s.questions.len()).sum()
    }

    /// The share of a part that choosing blindly gets right.
    pub fn chance(&self, part: Part) -> f64 {
        let all = || self.subjects_of(part).flat_map(|(_, s)| &s.questions);
        all().map(|q| 1.0 / q.options.len() as f64).sum::<f64>() / all().count().max(1) as f64
    }

    /// The ways in which a benchmark's questions are asked.
    pub fn ways(&self, benchmark: Benchmark) -> &[By] {
        if self.by.is_empty() { benchmark.ways() } else { &self.by }
    }

    /// The benchmarks, in the order of their first subjects.
    pub fn benchmarks(&self) -> Vec<Benchmark> {
        let mut all: Vec<Benchmark> = Vec::new();
        for subject in &self.subjects {
            if !all.contains(&subject.benchmark) {
                all.push(subject.benchmark);
            }
        }
        all
    }

    /// The subjects of a part.
    pub fn subjects_of(&self, part: Part) -> impl Iterator<Item = (usize, &Subject)> {
        let all = self.subjects.iter().enumerate();
        all.filter(move |(i, subject)| part.holds(*i, subject))
    }

    /// The measures of a part.
    pub fn measures(&self, part: Part) -> Vec<Measure> {
        let of = |measure: &Measure| {
            let mut ways = self.subjects_of(part).flat_map(|(_, s)| self.ways(s.benchmark));
            ways.any(|by| Measure::of(*by).contains(measure))
        };
        Measure::ALL.into_iter().filter(of).collect()
    }

    /// The splits of a benchmark's questions, as far as their names say.
    pub fn splits(&self, benchmark: Benchmark) -> Vec<Split> {
        let mut splits = Vec::new();
        for split in self.subjects_of(Part::Benchmark(benchmark)).filter_map(|(_, s)| s.split) {
            if !splits.contains(&split) {
                splits.push(split);
            }
        }
        splits
    }

    /// What a benchmark is and how it is asked, in a line.
    pub fn describe(&self, benchmark: Benchmark) -> String {
        let part = Part::Benchmark(benchmark);
        let subjects = self.subjects_of(part).count();
        let questions = self.subjects_of(part).map(|(_, s)| s.questions.len()).sum();
        let splits: Vec<&str> = self.splits(benchmark).iter().map(|split| split.name()).collect();
        let splits = match splits.is_empty() {
            true => String::new(),
            false => format!(" ({})", splits.join(", ")),
        };
        let task = match benchmark.task() {
            Some(task) if self.ways(benchmark) == benchmark.ways() => {
                format!(", asked as {task} of lm-evaluation-harness")
            }
            _ => String::new(),
        };
        let shots = match self.shots {
            0 => String::new(),
            shots => format!(" after {}", counted(shots, "example")),
        };
        format!(
            "{}{splits}: {}, {}{shots}{task}",
            benchmark.title(),
            counted(subjects, "subject"),
            counted(questions, "question"),
        )
    }

    pub(super) fn examples_of(&self, subject: &Subject) -> Result<&[Question]> {
        if self.shots == 0 {
            return Ok(&[]);
        }
        let named = || self.examples.iter().filter(|s| s.name == subject.name);
        let found = named().find(|s| s.benchmark == subject.benchmark).or_else(|| named().next());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_choose_by_sum_by_character_and_by_byte() {
        let answers = ["ab".to_owned(), "好".to_owned(), "abcdef".to_owned()];
        let sums = [-2.0, -2.4, -4.8];
        assert_eq!(Measure::Answer.chosen(&sums, &answers), 0);
        assert_eq!(Measure::AnswerPerCharacter.chosen(&sums, &answers), 2); // 1.0, 2.4, 0.8
        assert_eq!(Measure::AnswerPerByte.chosen(&sums, &answers), 1); // 1.0, 0.8, 0.8: the first of equals
        assert_eq!(Measure::Letter.chosen(&[-1.0, -1.0], &answers), 0);
    }
}
