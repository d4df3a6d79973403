//! A question and a subject's questions, whatever file they come from.

use std::path::PathBuf;

use crate::benchmarks::{Benchmark, Split};

/// A subject with its questions.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// The benchmark that it is a part of.
    pub benchmark: Benchmark,
    /// Name, from the file's: `physics` of `physics_val.csv`.
    pub name: String,
    /// The split that its questions are of, where the names say so.
    pub split: Option<Split>,
    /// Questions in the files' order.
    pub questions: Vec<Question>,
}

impl Subject {
    /// True where a question has Chinese characters: it is asked in Chinese then.
    pub fn is_chinese(&self) -> bool {
        self.questions.iter().any(|q| q.text.chars().any(is_han))
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// File that holds it.
    pub file: PathBuf,
    /// Its line in the file, from 1; of a file without lines its row.
    pub line: usize,
    /// Text of the question.
    pub text: String,
    /// The answers to choose from, two at least.
    pub options: Vec<String>,
    /// Index of the right answer.
    pub right: usize,
}

/// Unicode's main blocks of Chinese characters.
pub(super) fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{20000}'..='\u{323af}')
}

/// Number of letters that there are for options.
pub(super) const LETTERS: usize = 26;

/// The letter of an option: A, B, ...
pub fn letter(option: usize) -> char {
    char::from(b'A' + (option % LETTERS) as u8)
}
