//! A record's texts to its signature: a hash of the normalised text, and a hash for each band of
//! its MinHashes.

use mmx_converters::random::SplitMix64;
use mmx_converters::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::words::{hash, mixed, plain_words};

/// What makes two records near duplicates.
///
/// Two texts whose sets of sequences of `ngram` words have the Jaccard similarity s share a band
/// with the probability 1 - (1 - s^rows)^bands: with 14 bands of 8 rows one half at s = 0.69, 0.92
/// at 0.8, over 0.999 at 0.9, and 0.0002 at 0.25.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Words in a sequence; each Chinese character is a word.
    pub ngram: usize,
    /// Bands; none for exact duplicates alone.
    pub bands: usize,
    /// MinHashes in a band.
    pub rows: usize,
    /// The seed of the hash functions.
    pub seed: u64,
}

impl Default for Settings {
    /// 14 bands of 8, sequences of 5 words: datatrove's, as FineWeb uses them (Penedo et al. 2024).
    fn default() -> Self {
        Self { ngram: 5, bands: 14, rows: 8, seed: 1 }
    }
}

impl Settings {
    /// Refuses what makes no signature.
    ///
    /// # Errors
    /// A count that is 0 or too large.
    pub fn check(&self) -> Result<()> {
        let count = |name: &str, value: usize, least: usize, most: usize| {
            let expected = format!("{least} to {most}");
            match (least..=most).contains(&value) {
                true => Ok(()),
                false => Err(Error::setting(name, expected, value)),
            }
        };
        count("ngram", self.ngram, 1, 100)?;
        count("bands", self.bands, 0, 256)?;
        count("rows", self.rows, 1, 64)
    }
}

/// A record's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The hash of its normalised text: lower case, blanks of any kind and number as one.
    pub exact: u128,
    /// The hash of each band; 0 in all of a text without a word.
    pub bands: Vec<u64>,
}

/// The hash functions of settings: each multiplies by an odd number and adds another, modulo 2^32.
#[derive(Clone, Debug)]
pub struct Signer {
    settings: Settings,
    multipliers: Vec<u32>,
    summands: Vec<u32>,
}

impl Signer {
    /// The functions that a seed gives.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let mut random = SplitMix64::new(settings.seed);
        let mut draw = || (random.next_u64() >> 32) as u32;
        let count = settings.bands * settings.rows;
        let multipliers = (0..count).map(|_| draw() | 1).collect();
        let summands = (0..count).map(|_| draw()).collect();
        Self { settings, multipliers, summands }
    }

    /// The signature of a record's texts.
    #[must_use]
    pub fn sign(&self, texts: &[String]) -> Signature {
        let lower: Vec<String> = texts.iter().map(|text| text.to_lowercase()).collect();
        Signature { exact: exact(&lower), bands: self.bands(&lower) }
    }

    fn least(&self, grams: &[u32]) -> Vec<u32> {
        let mut least = vec![u32::MAX; self.multipliers.len()];
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            #[expect(unsafe_code, reason = "the same loop, compiled for processors that have AVX2")]
            // SAFETY: the processor has AVX2, as was asked just before.
            unsafe {
                fold_avx2(&mut least, &self.multipliers, &self.summands, grams);
            }
            return least;
        }
        fold(&mut least, &self.multipliers, &self.summands, grams);
        least
    }

    fn bands(&self, lower: &[String]) -> Vec<u64> {
        let Settings { ngram, bands, rows, .. } = self.settings;
        if bands == 0 {
            return Vec::new();
        }
        let texts = lower.iter().flat_map(|text| plain_words(text));
        let words: Vec<u64> = texts.map(|word| hash(word.as_bytes(), 0)).collect();
        if words.is_empty() {
            return vec![0; bands];
        }
        // a text of fewer words is one sequence
        let grams: Vec<u32> = words
            .windows(ngram.min(words.len()))
            .map(|gram| (shingle(gram) >> 32) as u32)
            .collect();
        let least = self.least(&grams);
        let band = |rows: &[u32]| {
            let key = rows
                .iter()
                .fold(0, |state: u64, row| mixed(state ^ u64::from(*row)).wrapping_add(1));
            key.max(1) // 0 is a record without words
        };
        least.chunks_exact(rows).map(band).collect()
    }
}

/// The least value of each function over `grams`: the loop that takes the time.
#[inline(always)]
fn fold(least: &mut [u32], multipliers: &[u32], summands: &[u32], grams: &[u32]) {
    for gram in grams {
        for ((least, a), b) in least.iter_mut().zip(multipliers).zip(summands) {
            *least = (*least).min(a.wrapping_mul(*gram).wrapping_add(*b));
        }
    }
}

/// [`fold`], eight functions at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn fold_avx2(least: &mut [u32], multipliers: &[u32], summands: &[u32], grams: &[u32]) {
    fold(least, multipliers, summands, grams);
}

/// The hash of a sequence of words.
pub(super) fn shingle(gram: &[u64]) -> u64 {
    gram.iter().fold(0, |state, word| mixed(state.rotate_left(5) ^ word))
}

/// The hash of texts in lower case, blanks of any kind and number as one.
fn exact(lower: &[String]) -> u128 {
    let mut normal = String::new();
    for text in lower {
        for part in text.split_whitespace() {
            normal.push_str(part);
            normal.push(' ');
        }
        normal.push('\0'); // where one text ends and the next begins
    }
    let half = |seed| u128::from(hash(normal.as_bytes(), seed));
    half(0x9ae1_6a3b_2f90_404f) << 64 | half(0xc949_d7c7_509e_6557)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(text: &str) -> Signature {
        Signer::new(Settings::default()).sign(&[text.to_owned()])
    }

    #[test]
    fn blanks_and_case_make_no_difference_and_anything_else_does() {
        let one = sign("Hello,  World!\n").exact;
        assert_eq!(sign(" hello,\tworld! ").exact, one);
        assert_ne!(sign("hello, world?").exact, one);
        assert_ne!(sign("hell o, world!").exact, one);
        let signer = Signer::new(Settings::default());
        let parts = |parts: [&str; 2]| signer.sign(&parts.map(str::to_owned)).exact;
        assert_ne!(parts(["a b", "c"]), parts(["a", "b c"]));
    }

    #[test]
    fn the_least_hashes_are_those_of_the_set_of_sequences() {
        use std::collections::BTreeSet;
        let settings = Settings { ngram: 3, bands: 4, rows: 2, seed: 5 };
        let signer = Signer::new(settings);
        let text = "a b c d a b c e 我 们 f g";
        let words: Vec<u64> = text.split(' ').map(|word| hash(word.as_bytes(), 0)).collect();
        let set: BTreeSet<u32> = words.windows(3).map(|w| (shingle(w) >> 32) as u32).collect();
        let functions = signer.multipliers.iter().zip(&signer.summands);
        let least: Vec<u32> = functions
            .map(|(a, b)| set.iter().map(|x| a.wrapping_mul(*x).wrapping_add(*b)).min().unwrap())
            .collect();
        // the same set in another order of its sequences, with one of them twice
        let again = signer.sign(&[format!("{text} . a b c")]);
        let first = signer.sign(&[text.to_owned()]);
        assert_eq!(first.bands.len(), 4);
        let band = |rows: &[u32]| {
            rows.iter()
                .fold(0u64, |state, row| mixed(state ^ u64::from(*row)).wrapping_add(1))
                .max(1)
        };
        assert_eq!(first.bands, least.chunks(2).map(band).collect::<Vec<_>>());
        assert_ne!(first.exact, again.exact);
    }

    #[test]
    fn every_instruction_set_gives_the_same_least_hashes() {
        let signer = Signer::new(Settings { bands: 7, rows: 5, ..Settings::default() });
        let mut random = SplitMix64::new(3);
        for count in [1, 2, 9, 300] {
            let grams: Vec<u32> = (0..count).map(|_| random.next_u64() as u32).collect();
            let mut plain = vec![u32::MAX; 35];
            fold(&mut plain, &signer.multipliers, &signer.summands, &grams);
            assert_eq!(signer.least(&grams), plain);
        }
    }

    #[test]
    fn bands_agree_as_often_as_the_similarity_says() {
        // 2000 words each, of which a share is common: s = common / (2 * all - common)
        let signer = Signer::new(Settings { ngram: 1, bands: 200, rows: 1, seed: 9 });
        let side = |from: usize| {
            let words: Vec<String> = (from..from + 2000).map(|i| format!("w{i}")).collect();
            signer.sign(&[words.join(" ")]).bands
        };
        let (a, b) = (side(0), side(500));
        let equal = a.iter().zip(&b).filter(|(x, y)| x == y).count() as f64 / 200.0;
        // s = 1500 / 2500 = 0.6, a standard deviation of sqrt(0.6 * 0.4 / 200) = 0.035
        assert!((equal - 0.6).abs() < 0.14, "{equal}");
    }

    #[test]
    fn texts_without_words_have_no_bands() {
        assert!(sign("...").bands.iter().all(|key| *key == 0));
        assert!(sign("word").bands.iter().all(|key| *key != 0));
        assert!(Settings { ngram: 0, ..Settings::default() }.check().is_err());
    }
}
