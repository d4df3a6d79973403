//! Training a vocabulary: byte-level BPE, deterministic, in bounded memory.
//!
//! In: texts, batch by batch, into [`WordCounts`]. Out: a [`Tokenizer`] of exactly the size asked
//! for (or smaller, with a warning, when the text has no more pairs): the special tokens, all 256
//! bytes, then one token per merge, the most frequent pair first and of equal ones that with the
//! lower ids. The library's trainer walks hash maps and may order equal pairs differently from run
//! to run, so merging is done here; text is cut into words by the library.

use std::collections::{BinaryHeap, HashMap};
use std::path::Path;

use aho_corasick::{AhoCorasick, MatchKind};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::bytes;
use super::codec::Tokenizer;
use super::json::tokenizer_json;
use super::special::SpecialSet;
use crate::error::{Error, Result};

/// How often each word occurs, a word being what ByteLevel cuts a text into.
///
/// Memory is bounded: beyond the limit, rare words are thinned out. Which ones stay is decided by a
/// hash of the word, so the sample does not depend on the order of the text, and those that stay
/// weigh as much more as fewer of them are left. Frequent words are never dropped.
#[derive(Debug)]
pub struct WordCounts {
    words: HashMap<String, u64>,
    bytes: usize,
    limit_bytes: usize,
    /// Rare words stay if the last `level` bits of their hash are 0.
    level: u32,
    /// Finds what is no text: the special tokens.
    cut: Option<AhoCorasick>,
    /// Cuts a text into words; GPT-2's pattern unless a tokenizer has another.
    pre: PreTokenizerWrapper,
}

/// A word is rare below this count (times 2^level).
const RARE: u64 = 16;

impl WordCounts {
    /// Bytes of distinct words kept unless said otherwise; training needs some 15 times as much.
    pub const LIMIT_BYTES: usize = 64 << 20;

    /// No words yet; at most about `limit_bytes` of distinct words are kept.
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            words: HashMap::new(),
            bytes: 0,
            limit_bytes: limit_bytes.max(1 << 16),
            level: 0,
            cut: None,
            pre: ByteLevel::default().add_prefix_space(false).into(),
        }
    }

    /// Cuts texts into words as a tokenizer does, and its added tokens out of them.
    ///
    /// # Errors
    /// A tokenizer whose text is not cut into byte-level words.
    pub fn cutting_as(mut self, tokenizer: &Tokenizer) -> Result<Self> {
        let json: Value = serde_json::from_slice(tokenizer.json())
            .map_err(|e| tokenizer.fault(format!("expected tokenizer.json: {e}")))?;
        self.pre = serde_json::from_value(json["pre_tokenizer"].clone())
            .map_err(|e| tokenizer.fault(format!("key pre_tokenizer: {e}")))?;
        let texts: Vec<&str> = tokenizer.added_tokens().map(|(_, text, _)| text).collect();
        let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
        self.cut = Some(built.map_err(|e| fault(&e))?);
        Ok(self)
    }

    /// Cuts these tokens' texts out of all texts that are added from now on. Their ids are there
    /// already: words made of their pieces (`im`, `_end`) would be learned for nothing.
    ///
    /// # Errors
    /// The search's own, on texts too large for it.
    pub fn cutting_out(mut self, specials: SpecialSet) -> Result<Self> {
        let texts = specials.tokens().into_iter().map(|(text, _)| text);
        let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
        self.cut = Some(built.map_err(|e| fault(&e))?);
        Ok(self)
    }

    /// Counts the words of texts, in parallel.
    ///
    /// # Errors
    /// The library's own, on a text it cannot cut.
    pub fn add<T: AsRef<str> + Sync>(&mut self, texts: &[T]) -> Result<()> {
        let counted: Result<Vec<HashMap<String, u64>>> = texts
            .par_iter()
            .map(|text| words_of(text.as_ref(), self.cut.as_ref(), &self.pre))
            .collect();
        for map in counted? {
            for (word, count) in map {
                let length = word.len();
                let entry = self.words.entry(word).or_insert_with(|| {
                    self.bytes += length;
                    0
                });
                *entry += count;
            }
        }
        if self.bytes > self.limit_bytes {
            while self.bytes > self.limit_bytes / 2 && self.level < 60 {
                self.level += 1;
                self.thin_out();
            }
        }
        Ok(())
    }

    /// True when the text was too large and rare words are a sample.
    pub fn is_sampled(&self) -> bool {
        self.level > 0
    }

    /// Distinct words.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// True without words.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    fn thin_out(&mut self) {
        let (rare, mask) = (RARE << self.level, (1u64 << self.level) - 1);
        self.words.retain(|word, count| *count >= rare || hash(word) & mask == 0);
        self.bytes = self.words.keys().map(String::len).sum();
    }

    /// Words and weights in the order of their bytes.
    pub(super) fn weighted(mut self) -> Vec<(String, u64)> {
        let (rare, level) = (RARE << self.level, self.level);
        if level > 0 {
            self.thin_out(); // what came after the last time
        }
        let mut words: Vec<(String, u64)> = self
            .words
            .into_iter()
            .map(|(word, n)| (word, if n < rare { n.saturating_mul(1 << level) } else { n }))
            .collect();
        words.sort_unstable();
        words
    }
}

/// FNV-1a, 64 bits, then mixed: its low bits alone are poor.
fn hash(word: &str) -> u64 {
    let fnv = word.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (fnv ^ (fnv >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 3
}

/// The words of a text in the byte-level alphabet, counted.
/// What `special` finds is cut out, as the tokenizer will cut it.
fn words_of(
    text: &str,
    special: Option<&AhoCorasick>,
    pre: &PreTokenizerWrapper,
) -> Result<HashMap<String, u64>> {
    let mut counts = HashMap::new();
    let mut count = |text: &str| {
        let mut cut = PreTokenizedString::from(text);
        pre.pre_tokenize(&mut cut).map_err(|e| fault(&e))?;
        for (word, _, _) in cut.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            match counts.get_mut(word) {
                Some(count) => *count += 1,
                None => {
                    counts.insert(word.to_owned(), 1);
                }
            }
        }
        Ok(())
    };
    let mut from = 0;
    for found in special.into_iter().flat_map(|special| special.find_iter(text)) {
        count(&text[from..found.start()])?;
        from = found.end();
    }
    count(&text[from..])?;
    Ok(counts)
}

fn fault(error: &dyn std::fmt::Display) -> Error {
    Error::Tokenizer {
        path: "training text".into(),
        message: format!("expected a text that can be cut into words: {error}"),
    }
}

/// The 3755 characters of level 1 of GB 2312-80, the common ones of simplified Chinese.
#[must_use]
pub fn gb2312() -> Vec<char> {
    include_str!("gb2312.txt").chars().filter(|c| !c.is_whitespace()).collect()
}

/// Trains a tokenizer of exactly `vocab_size` entries; of fewer, with a warning in it, when every
/// word of the text has become one token before that.
///
/// # Errors
/// A size below the special tokens plus 256 bytes.
pub fn train(counts: WordCounts, vocab_size: usize, specials: SpecialSet) -> Result<Tokenizer> {
    train_with_alphabet(counts, vocab_size, specials, &[])
}

/// [`train`], with a token for every character of an alphabet, whatever the text holds: their bytes
/// are merged before all other pairs.
///
/// # Errors
/// A size below the special tokens, 256 bytes, and what the alphabet needs.
pub fn train_with_alphabet(
    counts: WordCounts,
    vocab_size: usize,
    specials: SpecialSet,
    characters: &[char],
) -> Result<Tokenizer> {
    let path = Path::new("tokenizer.json");
    let fault = |message: String| Error::Tokenizer { path: path.to_owned(), message };
    let added = specials.tokens();
    let least = added.len() + 256;
    if vocab_size < least {
        return Err(fault(format!(
            "vocabulary size: expected at least {least} ({} special tokens and 256 bytes), found \
             {vocab_size}",
            added.len()
        )));
    }
    // the alphabet in the order of its characters, as the tokenizers library has it
    let mut alphabet: Vec<char> = (0..=u8::MAX).map(bytes::char_of).collect();
    alphabet.sort_unstable();
    let mut texts: Vec<String> = added.iter().map(|(text, _)| text.clone()).collect();
    texts.extend(alphabet.iter().map(char::to_string));
    let first = added.len() as u32;
    let id_of: HashMap<char, u32> = alphabet.into_iter().zip(first..).collect();
    let words: Vec<(Vec<u32>, u64)> = counts
        .weighted()
        .into_iter()
        .map(|(word, n)| (word.chars().filter_map(|c| id_of.get(&c).copied()).collect(), n))
        .collect();

    let mut merger = Merger::new(words);
    let mut ids: HashMap<String, u32> = texts.iter().cloned().zip(0..).collect();
    let mut pairs = Vec::with_capacity(vocab_size - texts.len());
    for character in characters {
        let mut utf8 = [0; 4];
        let bytes = character.encode_utf8(&mut utf8).bytes().map(bytes::char_of);
        let mut before: Option<u32> = None;
        for id in bytes.filter_map(|c| ids.get(&c.to_string()).copied()).collect::<Vec<_>>() {
            let Some(left) = before else {
                before = Some(id);
                continue;
            };
            let (a, b) = (&texts[left as usize], &texts[id as usize]);
            let text = format!("{a}{b}");
            // its beginning is that of another character's, or it stands in the alphabet twice
            let known = ids.get(&text).copied();
            let made = known.unwrap_or(texts.len() as u32);
            if known.is_none() {
                pairs.push(json!([a, b]));
                ids.insert(text.clone(), made);
                texts.push(text);
                merger.merge((left, id), made);
            }
            before = Some(made);
        }
    }
    if texts.len() > vocab_size {
        return Err(fault(format!(
            "vocabulary size: expected at least {} for the alphabet of {} characters, found {vocab_size}",
            texts.len(),
            characters.len()
        )));
    }
    while texts.len() < vocab_size {
        let Some((left, right)) = merger.best() else { break };
        let (a, b) = (&texts[left as usize], &texts[right as usize]);
        let text = format!("{a}{b}");
        pairs.push(json!([a, b]));
        // the same text may come from two pairs: one token, two merges
        let id = *ids.entry(text).or_insert_with_key(|text| {
            texts.push(text.clone());
            texts.len() as u32 - 1
        });
        merger.merge((left, right), id);
    }
    let found = texts.len();
    let vocab: Map<String, Value> = texts.into_iter().zip((0..).map(|id: u32| id.into())).collect();
    let added = added
        .iter()
        .enumerate()
        .map(|(id, (text, special))| {
            json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            })
        })
        .collect();
    let mut json = serde_json::to_vec_pretty(&tokenizer_json(added, vocab, pairs, Value::Null))
        .map_err(|e| fault(e.to_string()))?;
    json.push(b'\n');
    let template = Some(specials.template().to_owned());
    let mut tokenizer = Tokenizer::assemble(path, json, specials.settings(), template)?;
    if found < vocab_size {
        tokenizer.warnings.push(format!(
            "vocabulary size: expected {vocab_size} entries, found text for {found}: give more text, or \
             leave the model's other rows unused"
        ));
    }
    Ok(tokenizer)
}

pub(super) type Pair = (u32, u32);

/// Words as ids, the weight of every pair of neighbours, and where each pair occurs.
pub(super) struct Merger {
    words: Vec<(Vec<u32>, u64)>,
    weights: HashMap<Pair, u64>,
    /// Words that hold (or once held) the pair.
    places: HashMap<Pair, Vec<u32>>,
    /// The highest weight first, of equal ones the lower pair; entries may be out of date.
    queue: BinaryHeap<(u64, std::cmp::Reverse<Pair>)>,
}

impl Merger {
    pub(super) fn new(words: Vec<(Vec<u32>, u64)>) -> Self {
        let mut merger = Self {
            words: Vec::new(),
            weights: HashMap::new(),
            places: HashMap::new(),
            queue: BinaryHeap::new(),
        };
        for (index, (word, n)) in (0u32..).zip(&words) {
            for pair in word.windows(2).map(|w| (w[0], w[1])) {
                *merger.weights.entry(pair).or_default() += n;
                let places = merger.places.entry(pair).or_default();
                if places.last() != Some(&index) {
                    places.push(index);
                }
            }
        }
        merger.words = words;
        merger.queue =
            merger.weights.iter().map(|(&pair, &n)| (n, std::cmp::Reverse(pair))).collect();
        merger
    }

    /// The heaviest pair.
    pub(super) fn best(&mut self) -> Option<Pair> {
        while let Some((n, std::cmp::Reverse(pair))) = self.queue.pop() {
            match self.weights.get(&pair) {
                Some(&now) if now == n && n > 0 => return Some(pair),
                Some(&now) if now > 0 && now < n => {
                    self.queue.push((now, std::cmp::Reverse(pair)));
                }
                _ => {} // gone, or a heavier entry of the same pair was pushed when it grew
            }
        }
        None
    }

    /// Leaves a pair apart for good.
    pub(super) fn forbid(&mut self, pair: Pair) {
        self.weights.remove(&pair);
    }

    /// Joins a pair wherever it occurs.
    pub(super) fn merge(&mut self, pair: Pair, id: u32) {
        let mut grown = Vec::new();
        for index in self.places.remove(&pair).unwrap_or_default() {
            let Some((word, n)) = self.words.get_mut(index as usize) else { continue };
            let n = *n;
            let joined = joined(word, pair, id);
            if joined.len() == word.len() {
                continue; // another merge took it
            }
            for old in word.windows(2).map(|w| (w[0], w[1])) {
                if let Some(weight) = self.weights.get_mut(&old) {
                    *weight = weight.saturating_sub(n);
                }
            }
            for new in joined.windows(2).map(|w| (w[0], w[1])) {
                *self.weights.entry(new).or_default() += n;
                if new.0 == id || new.1 == id {
                    let places = self.places.entry(new).or_default();
                    if places.last() != Some(&index) {
                        places.push(index);
                    }
                    grown.push(new);
                }
            }
            *word = joined;
        }
        self.weights.remove(&pair);
        grown.sort_unstable();
        grown.dedup();
        for pair in grown {
            if let Some(&n) = self.weights.get(&pair) {
                self.queue.push((n, std::cmp::Reverse(pair)));
            }
        }
    }
}

/// The word with every occurrence of the pair replaced, from the left.
fn joined(word: &[u32], pair: Pair, id: u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(word.len());
    let mut i = 0;
    while i < word.len() {
        if word[i] == pair.0 && word.get(i + 1) == Some(&pair.1) {
            out.push(id);
            i += 2;
        } else {
            out.push(word[i]);
            i += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "low lower lowest newer newest wide widest 你好你好吗 你们好 aaaa aaaaaa \
        the then they there these those 小明 小红 小李 ababab abab";

    /// Recounts everything before each merge.
    fn naive(mut words: Vec<(Vec<u32>, u64)>, merges: usize, first: u32) -> Vec<Pair> {
        let mut out = Vec::new();
        for id in (first..).take(merges) {
            let mut weights: HashMap<Pair, u64> = HashMap::new();
            for (word, n) in &words {
                for w in word.windows(2) {
                    *weights.entry((w[0], w[1])).or_default() += n;
                }
            }
            let Some((&pair, _)) =
                weights.iter().max_by_key(|(p, n)| (**n, std::cmp::Reverse(**p)))
            else {
                break;
            };
            out.push(pair);
            for (word, _) in &mut words {
                *word = joined(word, pair, id);
            }
        }
        out
    }

    #[test]
    fn merges_equal_those_of_recounting_everything() {
        let mut counts = WordCounts::new(WordCounts::LIMIT_BYTES);
        counts.add(&[TEXT, TEXT, "the the lowest aaaa"]).unwrap();
        let words: Vec<(Vec<u32>, u64)> = counts
            .weighted()
            .into_iter()
            .map(|(word, n)| (word.chars().map(|c| c as u32).collect(), n))
            .collect();
        let first = 1 << 20; // above every character
        let expected = naive(words.clone(), 60, first);
        let mut merger = Merger::new(words);
        let mut found = Vec::new();
        for id in (first..).take(60) {
            let Some(pair) = merger.best() else { break };
            found.push(pair);
            merger.merge(pair, id);
        }
        assert!(expected.len() > 40, "{}", expected.len());
        assert_eq!(found, expected);
    }

    #[test]
    fn trained_twice_gives_the_same_bytes_in_any_order_of_texts() {
        let run = |texts: &[&str]| {
            let mut counts = WordCounts::new(WordCounts::LIMIT_BYTES);
            counts.add(texts).unwrap();
            train(counts, 300, SpecialSet::MiniMind2).unwrap().json().to_vec()
        };
        assert_eq!(run(&[TEXT, "more text"]), run(&["more text", TEXT]));
    }

    #[test]
    fn special_strings_in_the_text_are_cut_out_and_not_learned() {
        let counts = |texts: &[&str]| {
            let counts = WordCounts::new(WordCounts::LIMIT_BYTES);
            let mut counts = counts.cutting_out(SpecialSet::MiniMind3).unwrap();
            counts.add(texts).unwrap();
            counts
        };
        let chat = "<|im_start|>user\nlow lower<|im_end|>\n<think>lowest</think>".repeat(50);
        let plain = ["user\nlow lower", "\n", "lowest"].repeat(50);
        assert_eq!(counts(&[&chat]).weighted(), counts(&plain).weighted());
        let made = train(counts(&[&chat]), 320, SpecialSet::MiniMind3).unwrap();
        let learned: Vec<&str> = (292..320).filter_map(|id| made.token_text(id)).collect();
        assert!(learned.contains(&"user"), "{learned:?}");
        for piece in ["im", "_end", "|>", "th", "think", "><"] {
            assert!(!learned.contains(&piece), "{piece} of {learned:?}");
        }
    }

    #[test]
    fn rejects_sizes_below_the_alphabet_and_warns_of_too_little_text() {
        let counts = || {
            let mut counts = WordCounts::new(WordCounts::LIMIT_BYTES);
            counts.add(&["abc abc"]).unwrap();
            counts
        };
        let error = |size, set| train(counts(), size, set).unwrap_err().to_string();
        assert!(error(258, SpecialSet::MiniMind2).contains("at least 259"));
        assert!(error(291, SpecialSet::MiniMind3).contains("at least 292"));
        let exact = train(counts(), 259, SpecialSet::MiniMind2).unwrap();
        assert_eq!((exact.vocab_size(), exact.warnings.len()), (259, 0));
        // ab, abc, and the blank before it
        let small = train(counts(), 1000, SpecialSet::MiniMind2).unwrap();
        assert_eq!(small.vocab_size(), 262);
        assert!(small.warnings[0].contains("found text for 262"), "{:?}", small.warnings);
    }

    #[test]
    fn every_character_of_an_alphabet_is_one_token_and_text_is_encoded_as_before() {
        let counts = || {
            let mut counts = WordCounts::new(WordCounts::LIMIT_BYTES);
            counts.add(&[TEXT, "龘 你好"]).unwrap();
            counts
        };
        let alphabet = gb2312();
        assert_eq!(alphabet.len(), 3755);
        let set = SpecialSet::MiniMind3;
        let made = train_with_alphabet(counts(), 4600, set, &alphabet).unwrap();
        for character in alphabet.iter().step_by(37) {
            assert_eq!(made.encode_plain(&character.to_string()).unwrap().len(), 1, "{character}");
        }
        let text = "你们好，世界 lowest 龘";
        assert_eq!(made.decode(&made.encode_plain(text).unwrap(), false), text);
        let error = train_with_alphabet(counts(), 1000, set, &alphabet).unwrap_err().to_string();
        assert!(error.contains("for the alphabet of 3755 characters, found 1000"), "{error}");
        let plain = train(counts(), 400, set).unwrap();
        assert_eq!(plain.json(), train_with_alphabet(counts(), 400, set, &[]).unwrap().json());
    }

    #[test]
    fn memory_is_bounded_and_frequent_words_stay() {
        let mut counts = WordCounts::new(1 << 16);
        for batch in 0..40 {
            let texts: Vec<String> =
                (0..2000).map(|i| format!("frequent rare{}", batch * 2000 + i)).collect();
            counts.add(&texts).unwrap();
            assert!(counts.bytes <= 1 << 16, "{}", counts.bytes);
        }
        assert!(counts.is_sampled());
        let words = counts.weighted();
        let weight = |word: &str| words.iter().find(|(w, _)| w == word).map(|(_, n)| *n);
        assert_eq!(weight("frequent"), Some(80_000));
        // digits are words of their own; what is rare is about as heavy as it was
        let rare: u64 = words.iter().filter(|(w, _)| w.parse::<u32>().is_ok()).map(|w| w.1).sum();
        assert!((60_000..100_000).contains(&rare), "{rare}");
    }
}
