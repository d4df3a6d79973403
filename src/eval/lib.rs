//! How good a model is, measured: perplexity of a text, the share of multiple-choice questions it answers rightly, and
//! the share of chats it goes on with exactly the right text.
//!
//! In: a model in an engine, texts or questions. Out: numbers with their intervals, as structures ([`perplexity`],
//! [`choice`], [`exact`]) and as a page with plots ([`report`]).

pub mod choice;
pub mod curves;
pub mod exact;
pub mod perplexity;
pub mod prompt;
pub mod questions;
pub mod report;
mod svg;

use std::path::{Path, PathBuf};

use mmx_converters::gguf::GgmlType;

use mmx_converters::Error;
use mmx_data::jsonl::Fault;
use mmx_models::engines::Kind;

/// z of a normal distribution within which 95 % lie.
pub const Z95: f64 = 1.959_964;

/// One model in one engine, measured.
#[derive(Debug)]
pub struct Row {
    /// The model.
    pub path: PathBuf,
    /// What tables call it.
    pub name: String,
    /// The engine that computed.
    pub engine: Kind,
    /// The type most of its weights have.
    pub ty: GgmlType,
    /// Size of its weights on disk.
    pub bytes: u64,
    /// How well it predicts the text, where one was given.
    pub perplexity: Option<perplexity::Perplexity>,
    /// How it answered the questions, where some were given.
    pub choice: Option<choice::Scores>,
}

/// How wide a character stands in a table: Chinese ones and their like are as wide as two others.
pub fn columns(c: char) -> usize {
    if u32::from(c) >= 0x2e80 { 2 } else { 1 }
}

/// Wilson's interval at 95 % for `right` of `n`. Source: Wilson 1927.
pub fn interval(right: usize, n: usize) -> (f64, f64) {
    let (n, z) = (n.max(1) as f64, Z95);
    let p = right as f64 / n;
    let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt() / (1.0 + z * z / n);
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

/// A line's fault as an error that names the file.
fn fault_at(path: &Path, fault: Fault) -> Error {
    let message = format!("{}:{}: {}", path.display(), fault.line, fault.message);
    match fault.hint {
        Some(hint) => Error::failed_with_hint(message, hint),
        None => Error::failed(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_share_and_stays_within_bounds() {
        for (right, n) in [(0, 10), (10, 10), (90, 100), (1, 1)] {
            let (low, high) = interval(right, n);
            let share = right as f64 / n as f64;
            assert!(low <= share + 1e-12 && share <= high + 1e-12 && low >= 0.0 && high <= 1.0);
        }
        // Wilson's interval for 90 of 100: 0.8256 .. 0.9448
        let (low, high) = interval(90, 100);
        assert!((low - 0.8256).abs() < 1e-3 && (high - 0.9448).abs() < 1e-3, "{low} {high}");
    }
}
