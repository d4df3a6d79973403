//! The model's continuations of held-out samples' beginnings, so that a run can be read as well as
//! measured.
//!
//! In: held-out batches. Out: [`Sample`]s: prompt and greedy continuation as text, the same prompts
//! every time.

use mmx_converters::tokenizer::Tokenizer;

use crate::error::Result;
use crate::model::Model;
use mmx_data::Batch;
use mmx_data::batches::Batches;

/// Prompts that are continued.
const PROMPTS: usize = 3;
/// Ids of a text's beginning; of a chat, everything before the answer is the prompt.
const BEGINNING: usize = 8;
/// Longer prompts are passed over: every id of a continuation costs a forward pass over all before
/// it.
const LONGEST: usize = 256;
/// Ids of a continuation, at most.
const CONTINUED: usize = 32;

/// A prompt and what the model made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Special tokens included: the model reads them.
    pub prompt: String,
    /// What follows, up to an end token.
    pub text: String,
}

impl Sample {
    /// The sample as TensorBoard's text panel shows it.
    pub fn to_markdown(&self) -> String {
        // indented blocks, which no text can close from within
        let block = |text: &str| {
            text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
        };
        format!("prompt\n\n{}\n\ncontinued\n\n{}\n", block(&self.prompt), block(&self.text))
    }

    /// One line of a terminal: control characters escaped, long texts cut.
    pub fn to_line(&self) -> String {
        /// Characters of either text.
        const SHOWN: usize = 60;
        let short = |text: &str, from_end: bool| {
            let count = text.chars().count();
            let skipped = if from_end { count.saturating_sub(SHOWN) } else { 0 };
            let cut: String = text.chars().skip(skipped).take(SHOWN).collect();
            let more = if count > SHOWN { "..." } else { "" };
            match from_end {
                true => format!("{more}{}", cut.escape_debug()),
                false => format!("{}{more}", cut.escape_debug()),
            }
        };
        format!("  \"{}\" -> \"{}\"", short(&self.prompt, true), short(&self.text, false))
    }
}

/// The prompts of a run's samples: the first that are short enough.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompts(Vec<Vec<u32>>);

impl Prompts {
    /// The prompts from the first held-out batches; none where all are too long.
    ///
    /// # Errors
    /// See [`Batches::batch`].
    pub fn new(batches: &mut dyn Batches) -> Result<Self> {
        let mut prompts = Vec::new();
        for index in 0..batches.micro_steps(0) {
            for prompt in of_batch(&batches.batch(0, index)?) {
                // a pair's two answers have the same one
                if !prompts.contains(&prompt) {
                    prompts.push(prompt);
                }
            }
            if prompts.len() >= PROMPTS {
                break;
            }
        }
        prompts.truncate(PROMPTS);
        Ok(Self(prompts))
    }

    /// Continues each greedily.
    ///
    /// # Errors
    /// libtorch's.
    pub fn continued(&self, model: &Model, tokenizer: &Tokenizer) -> Result<Vec<Sample>> {
        let stops = tokenizer.stop_ids(&model.config().eos_token_id);
        let continued = self.0.iter().map(|prompt| {
            let mut ids = prompt.clone();
            while ids.len() < prompt.len() + CONTINUED {
                let next = model.greedy(&ids, 1)?;
                if next.iter().any(|id| stops.contains(id)) {
                    break;
                }
                ids.extend(next);
            }
            let text = tokenizer.decode(&ids[prompt.len()..], true);
            Ok(Sample { prompt: tokenizer.decode(prompt, false), text })
        });
        continued.collect()
    }
}

/// A batch's prompts: each sample up to its first learned target, or its first [`BEGINNING`] ids
/// where it is learned from the start.
fn of_batch(batch: &Batch) -> Vec<Vec<u32>> {
    let mut prompts = Vec::new();
    let whole = [batch.seq];
    for row in 0..batch.batch {
        let mut start = row * batch.seq;
        for &length in if batch.packed.is_empty() { &whole } else { batch.packed.as_slice() } {
            let (x, mask) = (&batch.x[start..start + length], &batch.mask[start..start + length]);
            start += length;
            // the target at position i is the id at i + 1
            let Some(learned) = mask.iter().position(|&m| m != 0.0) else { continue };
            let end = if learned == 0 { BEGINNING.min(length) } else { learned + 1 };
            if end <= LONGEST {
                prompts.push(x[..end].iter().map(|&id| id as u32).collect());
            }
        }
    }
    prompts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_end_where_answers_begin_also_in_shared_rows() {
        let batch = Batch {
            x: (0..16).collect(),
            y: (1..17).collect(),
            mask: [0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1].map(|m| m as f32).into(),
            batch: 2,
            seq: 8,
            lines: vec![(0, 1), (0, 2)],
            ..Batch::default()
        };
        let expected: [&[u32]; 2] = [&[0, 1, 2], &[8, 9, 10, 11, 12, 13, 14, 15]];
        assert_eq!(of_batch(&batch), expected);
        let shared = Batch { batch: 1, seq: 16, packed: vec![4, 4, 3, 5], ..batch };
        let expected: [&[u32]; 3] = [&[0, 1, 2], &[8, 9, 10], &[11, 12, 13, 14, 15]];
        assert_eq!(of_batch(&shared), expected);
    }

    #[test]
    fn a_sample_fits_a_terminals_line() {
        let sample = Sample { prompt: "a\n".repeat(100), text: "\u{1b}[31mred".into() };
        let line = sample.to_line();
        assert!(!line.contains(['\n', '\u{1b}']) && line.starts_with("  \"...a\\n"), "{line}");
        let markdown = Sample { prompt: "# x\n```".into(), text: "y".into() }.to_markdown();
        assert_eq!(markdown, "prompt\n\n    # x\n    ```\n\ncontinued\n\n    y\n");
    }
}
