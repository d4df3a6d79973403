//! Decontamination: records that share a sequence of words with an evaluation file.
//!
//! A sequence is 13 words unless told otherwise, each Chinese character a word, without case and
//! punctuation. Source: Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C.
//! A question of fewer words is looked for as a whole, if it has at least [`SHORTEST`].

use std::path::PathBuf;

use mmx_converters::{Error, Result};

use super::sign::shingle;
use crate::reading::{self, Reading};
use crate::words::{HashedMap, hash, plain_words};

/// Words of the shortest text of an evaluation that is looked for. Source: Brown et al. (2020),
/// appendix C: N is at least 8.
pub const SHORTEST: usize = 8;

/// The sequences of evaluation files.
#[derive(Debug)]
pub struct Against {
    files: Vec<PathBuf>,
    /// Words of a sequence.
    ngram: usize,
    /// Of each length the sequences, with the record of an evaluation that has them first.
    grams: Vec<(usize, HashedMap<(u32, u32)>)>,
}

fn hashes(text: &str) -> Vec<u64> {
    plain_words(&text.to_lowercase()).map(|word| hash(word.as_bytes(), 0)).collect()
}

impl Against {
    /// Reads evaluation files: every string of a record.
    ///
    /// # Errors
    /// Files that cannot be read, faulty records, a sequence of fewer than [`SHORTEST`] words.
    pub fn open(files: &[PathBuf], ngram: usize) -> Result<Self> {
        if ngram < SHORTEST {
            return Err(Error::setting("overlap", format!("at least {SHORTEST} words"), ngram));
        }
        let mut grams: Vec<(usize, HashedMap<(u32, u32)>)> = Vec::new();
        let texts = |raw: reading::Raw<'_>| {
            let mut all = Vec::new();
            raw.object.values().for_each(|value| reading::strings(value, &mut all));
            (raw.source, all.iter().map(|text| hashes(text)).collect::<Vec<_>>())
        };
        reading::for_each(&Reading::of(files), "reading", texts, |(source, texts)| {
            for words in texts.iter().filter(|words| words.len() >= SHORTEST) {
                let length = ngram.min(words.len());
                let at = grams.iter().position(|(n, _)| *n == length).unwrap_or_else(|| {
                    grams.push((length, HashedMap::default()));
                    grams.len() - 1
                });
                let place = (source.file as u32, source.number as u32);
                for gram in words.windows(length) {
                    grams[at].1.entry(shingle(gram)).or_insert(place);
                }
            }
            Ok(())
        })?;
        grams.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        Ok(Self { files: files.to_vec(), ngram, grams })
    }

    /// The evaluation's record that a record's texts share a sequence with.
    #[must_use]
    pub fn found(&self, texts: &[String]) -> Option<String> {
        for text in texts {
            let words = hashes(text);
            for (length, grams) in &self.grams {
                let hit = words.windows(*length).find_map(|gram| grams.get(&shingle(gram)));
                if let Some((file, number)) = hit {
                    let path = self.files[*file as usize].display();
                    return Some(format!("{length} words in a row of {path}:{number}"));
                }
            }
        }
        None
    }

    /// Words of a sequence.
    #[must_use]
    pub fn ngram(&self) -> usize {
        self.ngram
    }
}

#[cfg(test)]
mod tests {
    use mmx_converters::random::Random;

    use super::*;

    #[test]
    fn records_are_found_as_by_comparing_all_sequences() {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random::new(11, 0);
        let mut text = |n: usize| {
            let words: Vec<String> = (0..n).map(|_| format!("w{}", random.below(2))).collect();
            words.join(" ")
        };
        let questions: Vec<String> = [30, 9, 5, 13].iter().map(|n| text(*n)).collect();
        let lines: Vec<String> =
            questions.iter().map(|q| serde_json::json!({ "question": q }).to_string()).collect();
        let path = dir.path().join("eval.jsonl");
        fs_err::write(&path, lines.join("\n")).unwrap();
        let against = Against::open(&[path], 13).unwrap();
        let mut hits = 0;
        for _ in 0..3000 {
            let record = text(25);
            let padded = format!(" {record} ");
            let naive = questions.iter().any(|question| {
                let words: Vec<&str> = question.split(' ').collect();
                let length = words.len().min(13);
                words.len() >= SHORTEST
                    && words.windows(length).any(|w| padded.contains(&format!(" {} ", w.join(" "))))
            });
            assert_eq!(against.found(std::slice::from_ref(&record)).is_some(), naive, "{record}");
            hits += usize::from(naive);
        }
        assert!(hits > 0, "nothing was to be found");
    }

    #[test]
    fn case_and_punctuation_make_no_difference_and_chinese_is_counted_by_characters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("eval.jsonl");
        fs_err::write(&path, r#"{"question": "下列哪一项是中国的首都？", "A": "北京"}"#).unwrap();
        let against = Against::open(std::slice::from_ref(&path), 13).unwrap();
        let found = against.found(&["问：下列 哪一项，是中国的首都".to_owned()]).unwrap();
        assert!(found.starts_with("11 words in a row of") && found.ends_with(":1"), "{found}");
        assert_eq!(against.found(&["中国的首都是北京".to_owned()]), None);
        assert!(Against::open(&[path], 7).unwrap_err().is_misuse());
    }
}
