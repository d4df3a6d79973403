//! The tokenizers library's answer, computed directly: MiniMind's kind of tokenizer (byte-level BPE
//! with GPT-2's regex, no normalizer) without an object per token.
//!
//! In: text. Out: ids, those of the library (the tests compare them). Measured on 100 MB of made-up
//! Chinese and English JSON Lines: 4.9 s of CPU time to check and tokenize, by the library 22 s.
//! Other kinds of tokenizers are left to it.

use std::cell::RefCell;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

use super::bytes::char_of;
use super::special::is_control;
use super::split::{Pre, Split};
use super::words::Words;

/// A tokenizer's merges and its added tokens.
#[derive(Clone)]
pub(super) struct Fast {
    /// Finds added tokens, and which id each has; nothing where there are none.
    added: Option<(AhoCorasick, Vec<u32>)>,
    merges: Arc<Merges>,
}

impl fmt::Debug for Fast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fast({} merges)", self.merges.ranks.len())
    }
}

/// The merges of a vocabulary as tables of ids.
struct Merges {
    /// Tells apart whose words a thread has kept.
    number: u64,
    /// The id of each byte.
    bytes: [u32; 256],
    /// Rank and result of a pair.
    ranks: Pairs,
    /// How a text is cut into words; GPT-2's way without.
    split: Option<Split>,
    /// The tokens that a word is taken whole as, by their bytes.
    whole: HashMap<Vec<u8>, u32>,
}

impl Fast {
    /// Makes two encoders of a parsed tokenizer.json and the ids by their texts, one with all added
    /// tokens and one without control tokens; nothing where it is of another kind.
    pub(super) fn of_json(json: &Value, ids: &HashMap<String, u32>) -> Option<[Self; 2]> {
        let added = added(json, ids)?;
        let vocab = json.pointer("/model/vocab")?.as_object()?;
        let id = |text: &str| u32::try_from(vocab.get(text)?.as_u64()?).ok();
        Self::new(&merges(json)?, id, &added, None)
    }

    /// Makes the two encoders of byte-level BPE with nothing before or after: its merges, the ids of
    /// its tokens, the added tokens, each with its id and whether it is a control token, and another
    /// pre-tokenizer than GPT-2's with the tokens by their bytes. Nothing without a token for each byte, or where a merge is of or to something
    /// that is no token.
    pub(super) fn new(
        merges: &[(&str, &str)],
        id: impl Fn(&str) -> Option<u32>,
        added: &[(&str, u32, bool)],
        other: Option<(&Pre, HashMap<Vec<u8>, u32>)>,
    ) -> Option<[Self; 2]> {
        let mut made = Merges::new(merges, id)?;
        if let Some((pre, tokens)) = other {
            made.split = Some(Split::of(pre)?);
            if pre.whole_words {
                made.whole = tokens;
            }
        }
        let merges = Arc::new(made);
        let with = |control: bool| {
            let kept = added.iter().filter(|added| control || !added.2);
            let (texts, of): (Vec<&str>, Vec<u32>) = kept.map(|added| (added.0, added.1)).unzip();
            let added = if texts.is_empty() {
                None
            } else {
                let mut finder = AhoCorasick::builder();
                finder.match_kind(MatchKind::LeftmostLongest);
                Some((finder.build(texts).ok()?, of))
            };
            Some(Self { added, merges: merges.clone() })
        };
        Some([with(true)?, with(false)?])
    }

    /// The ids of a text.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        // about three bytes make a token, in Chinese as in English
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        WORK.with_borrow_mut(|work| {
            if work.of != self.merges.number {
                *work = Work { of: self.merges.number, ..Work::default() };
            }
            let mut from = 0;
            for found in self.added.iter().flat_map(|(finder, _)| finder.find_iter(text)) {
                self.merges.plain(&text[from..found.start()], work, &mut ids);
                ids.extend(
                    self.added.iter().filter_map(|(_, of)| of.get(found.pattern().as_usize())),
                );
                from = found.end();
            }
            self.merges.plain(&text[from..], work, &mut ids);
        });
        ids
    }
}

/// The added tokens, if none of them strips blanks, wants whole words or reads normalized text.
fn added<'v>(json: &'v Value, ids: &HashMap<String, u32>) -> Option<Vec<(&'v str, u32, bool)>> {
    let list = json.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let one = |token: &'v Value| {
        let flag = |key: &str| token.get(key).and_then(Value::as_bool);
        let plain = ["single_word", "lstrip", "rstrip", "normalized"]
            .into_iter()
            .all(|key| flag(key) == Some(false));
        let text = token.get("content").and_then(Value::as_str).filter(|text| !text.is_empty());
        let text = text.filter(|_| plain)?;
        Some((text, *ids.get(text)?, is_control(text, flag("special").unwrap_or(false))))
    };
    list.map(one).collect()
}

/// The merges, if the tokenizer is of the kind and they are well formed.
fn merges(json: &Value) -> Option<Vec<(&str, &str)>> {
    let absent = |value: Option<&Value>| value.is_none_or(Value::is_null);
    let (model, before) = (json.get("model")?, json.get("pre_tokenizer")?);
    let plain = ["unk_token", "continuing_subword_prefix", "end_of_word_suffix"]
        .into_iter()
        .all(|key| absent(model.get(key)) || model[key] == "")
        && absent(model.get("dropout"))
        && ["fuse_unk", "byte_fallback", "ignore_merges"]
            .into_iter()
            .all(|key| absent(model.get(key)) || model[key] == false);
    let split = before["type"] == "ByteLevel"
        && before["add_prefix_space"] == false
        && before["use_regex"] != false;
    // what a post-processor adds comes around the ids (`around`), whatever they are
    if !(plain && split && absent(json.get("normalizer"))) {
        return None;
    }
    fn pair(merge: &Value) -> Option<(&str, &str)> {
        match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) => match pair.as_slice() {
                [left, right] => Some((left.as_str()?, right.as_str()?)),
                _ => None,
            },
            _ => None,
        }
    }
    model.get("merges")?.as_array()?.iter().map(pair).collect()
}

impl Merges {
    fn new(merges: &[(&str, &str)], id: impl Fn(&str) -> Option<u32>) -> Option<Self> {
        let mut bytes = [0; 256];
        for (byte, place) in (0..=u8::MAX).zip(&mut bytes) {
            *place = id(char_of(byte).encode_utf8(&mut [0; 4]))?;
        }
        let mut ranks = Pairs::with_room(merges.len());
        let mut joined = String::new();
        for (rank, (left, right)) in (0..).zip(merges) {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            ranks.set(id(left)?, id(right)?, rank, id(&joined)?);
        }
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Some(Self { number, bytes, ranks, split: None, whole: HashMap::new() })
    }

    /// Appends the ids of a text without added tokens.
    fn plain(&self, text: &str, work: &mut Work, ids: &mut Vec<u32>) {
        match &self.split {
            None => Words::new(text).for_each(|word| self.known(word.as_bytes(), work, ids)),
            Some(split) => {
                split.words(text).iter().for_each(|word| self.known(word.as_bytes(), work, ids));
            }
        }
    }

    /// Appends the ids of a word, which may be kept from before.
    fn known(&self, word: &[u8], work: &mut Work, ids: &mut Vec<u32>) {
        let Some(key) = key(word) else {
            self.word(word, &mut work.symbols);
            ids.extend_from_slice(&work.symbols.ids);
            return;
        };
        let kept = &mut work.kept[place(key)];
        if kept.key != key {
            self.word(word, &mut work.symbols);
            let made = &work.symbols.ids;
            if made.len() > kept.ids.len() {
                ids.extend_from_slice(made);
                return;
            }
            kept.key = key;
            kept.count = made.len() as u32;
            kept.ids[..made.len()].copy_from_slice(made);
        }
        ids.extend_from_slice(&kept.ids[..kept.count as usize]);
    }

    /// Merges a word's bytes: the pair of the lowest rank first, of equal ones the leftmost.
    fn word(&self, word: &[u8], symbols: &mut Symbols) {
        /// Longer words are merged with a heap: looking through all pairs each time would take
        /// quadratic time.
        const SHORT: usize = 96;
        symbols.ids.clear();
        if let Some(id) = self.whole.get(word) {
            symbols.ids.push(*id);
            return;
        }
        symbols.ids.extend(word.iter().map(|&byte| self.bytes[usize::from(byte)]));
        if word.len() > SHORT {
            self.long(symbols);
            return;
        }
        let Symbols { ids, pairs, .. } = symbols;
        pairs.clear();
        pairs.extend(ids.windows(2).map(|pair| self.ranks.get(pair[0], pair[1])));
        loop {
            let mut least = (NONE, 0);
            for (at, pair) in pairs.iter().enumerate() {
                if pair.rank < least.0 {
                    least = (pair.rank, at);
                }
            }
            let (rank, at) = least;
            if rank == NONE {
                return;
            }
            ids[at] = pairs[at].id;
            ids.remove(at + 1);
            pairs.remove(at);
            if at > 0 {
                pairs[at - 1] = self.ranks.get(ids[at - 1], ids[at]);
            }
            if at < pairs.len() {
                pairs[at] = self.ranks.get(ids[at], ids[at + 1]);
            }
        }
    }

    /// Merges the bytes of a word of any length, in n log n.
    fn long(&self, symbols: &mut Symbols) {
        let ids = &mut symbols.ids;
        let count = ids.len();
        // neighbours that are still there; `count` is the end
        let mut next: Vec<usize> = (1..=count).collect();
        let mut before: Vec<usize> = (0..count).map(|i| i.wrapping_sub(1)).collect();
        let mut gone = vec![false; count];
        // the heap gives its largest first, and the lowest rank at the first place is wanted
        let mut heap = BinaryHeap::new();
        let push = |heap: &mut BinaryHeap<_>, ids: &[u32], at: usize, right: usize| {
            let pair = self.ranks.get(ids[at], ids[right]);
            if pair.rank != NONE {
                heap.push((std::cmp::Reverse((pair.rank, at)), ids[at], ids[right]));
            }
        };
        for at in 1..count {
            push(&mut heap, ids, at - 1, at);
        }
        while let Some((std::cmp::Reverse((_, at)), left, right)) = heap.pop() {
            let after = next[at];
            // the pair may have gone since
            if gone[at] || after == count || ids[at] != left || ids[after] != right {
                continue;
            }
            ids[at] = self.ranks.get(left, right).id;
            gone[after] = true;
            next[at] = next[after];
            if next[at] < count {
                before[next[at]] = at;
                push(&mut heap, ids, at, next[at]);
            }
            if before[at] < count {
                push(&mut heap, ids, before[at], at);
            }
        }
        let mut kept = gone.iter();
        ids.retain(|_| kept.next() == Some(&false));
    }
}

/// The rank of a pair that is no merge.
const NONE: u32 = u32::MAX;

/// What a pair becomes.
#[derive(Clone, Copy)]
struct Pair {
    rank: u32,
    id: u32,
}

/// Pairs of ids by open addressing: a multiplication and mostly one place to look.
struct Pairs {
    /// Left and right id, rank and result; a power of two of them, at most half of them taken.
    table: Vec<(u64, Pair)>,
    len: usize,
}

impl Pairs {
    /// No pair of ids is this.
    const EMPTY: u64 = u64::MAX;

    fn with_room(count: usize) -> Self {
        let size = (2 * count + 2).next_power_of_two();
        Self { table: vec![(Self::EMPTY, Pair { rank: NONE, id: 0 }); size], len: 0 }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn key(left: u32, right: u32) -> u64 {
        u64::from(left) << 32 | u64::from(right)
    }

    fn place(&self, key: u64) -> usize {
        // Fibonacci hashing (Knuth, TAOCP 3, 6.4): the product's upper bits
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.table.len() - 1)
    }

    /// The last of several with the same ids counts, as in the library.
    fn set(&mut self, left: u32, right: u32, rank: u32, id: u32) {
        let key = Self::key(left, right);
        let mut at = self.place(key);
        while self.table[at].0 != key && self.table[at].0 != Self::EMPTY {
            at = (at + 1) & (self.table.len() - 1);
        }
        self.len += usize::from(self.table[at].0 == Self::EMPTY);
        self.table[at] = (key, Pair { rank, id });
    }

    fn get(&self, left: u32, right: u32) -> Pair {
        let key = Self::key(left, right);
        let mut at = self.place(key);
        loop {
            let (found, pair) = self.table[at];
            if found == key || found == Self::EMPTY {
                return pair;
            }
            at = (at + 1) & (self.table.len() - 1);
        }
    }
}

/// A word in work.
#[derive(Default)]
struct Symbols {
    ids: Vec<u32>,
    /// The merge of each two neighbours.
    pairs: Vec<Pair>,
}

/// A word and its ids.
#[derive(Clone, Copy, Default)]
struct Kept {
    /// 0 is no word.
    key: u128,
    count: u32,
    ids: [u32; 7],
}

/// Words that a thread keeps: 48 bytes each, so they stay in its core's cache.
const KEPT: usize = 1 << 13;

/// A thread's own: what it works in, and the last words of each place.
struct Work {
    /// [`Merges::number`].
    of: u64,
    symbols: Symbols,
    kept: Vec<Kept>,
}

impl Default for Work {
    fn default() -> Self {
        Self { of: 0, symbols: Symbols::default(), kept: vec![Kept::default(); KEPT] }
    }
}

thread_local! {
    static WORK: RefCell<Work> = RefCell::new(Work::default());
}

/// A word of up to 15 bytes as a number, its length in the last byte.
fn key(word: &[u8]) -> Option<u128> {
    let mut bytes = [0; 16];
    bytes.get_mut(..word.len()).filter(|_| word.len() < 16)?.copy_from_slice(word);
    bytes[15] = word.len() as u8;
    Some(u128::from_le_bytes(bytes))
}

fn place(key: u128) -> usize {
    let folded = (key as u64) ^ ((key >> 64) as u64).rotate_left(29);
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & (KEPT - 1)
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use super::super::encoder::{Encoder, libraries};

    /// Each with the library's two forms of it.
    fn tokenizers() -> Vec<(Tokenizer, [tokenizers::Tokenizer; 2])> {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");
        let golden = ["golden", "golden-2026"].map(|name| format!("{fixtures}/{name}"));
        // MiniMind's own are not ours to ship
        let published = std::env::var("MMX_TEST_TOKENIZERS").into_iter();
        let published =
            published.flat_map(|dir| ["2025-04", "2026-08"].map(|name| format!("{dir}/{name}")));
        golden
            .into_iter()
            .chain(published)
            .map(|folder| {
                let tokenizer = Tokenizer::open(&folder).expect(&folder);
                let value = serde_json::from_slice(tokenizer.json()).expect(&folder);
                let (full, plain) = libraries(tokenizer.path(), value).expect(&folder);
                (tokenizer, [full, plain])
            })
            .collect()
    }

    fn assert_same(
        (tokenizer, [full, plain]): &(Tokenizer, [tokenizers::Tokenizer; 2]),
        text: &str,
    ) {
        assert!(matches!(tokenizer.encoder, Encoder::Fast { .. }), "MiniMind's kind");
        for (ids, library) in
            [(tokenizer.encode(text), full), (tokenizer.encode_plain(text), plain)]
        {
            let expected = library.encode_fast(text, false).expect("any text");
            assert_eq!(ids.expect("any text"), expected.get_ids(), "{text:?}");
        }
    }

    /// Texts of parts that the regex tells apart, in any order: the library's ids.
    #[test]
    fn ids_are_the_librarys() {
        let parts = [
            "a",
            "B",
            "the",
            "é",
            "京",
            "你好",
            "ß",
            "ñ",
            "0",
            "12",
            "٣",
            "Ⅷ",
            "½",
            " ",
            "  ",
            "\t",
            "\n",
            "\r\n",
            "\u{a0}",
            "\u{3000}",
            "\u{2028}",
            "\u{85}",
            "\u{200b}",
            "'",
            "'s",
            "'T",
            "'ll",
            "'re",
            "''",
            "’s",
            ".",
            ",",
            "，",
            "!?",
            "_",
            "-",
            "😀",
            "👩‍👩‍👧",
            "\u{301}",
            "\u{0}",
            "\u{7f}",
            "\u{fffd}",
            "<|im_start|>",
            "<|im_end|>",
            "<|im_",
            "<think>",
            "</think>",
            "|>",
            "ǅ",
            "ʰ",
            "ª",
            "𝒳",
            "𝟙",
            "〇",
            "ก",
            "ำ",
            "क्ष",
        ];
        let mut state = 7u64;
        let mut draw = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for tokenizer in tokenizers() {
            for _ in 0..3000 {
                let count = draw(14);
                let text: String = (0..count).map(|_| parts[draw(parts.len())]).collect();
                assert_same(&tokenizer, &text);
            }
            // any character, and words longer than what is looked through
            for _ in 0..300 {
                let any: String =
                    (0..40).filter_map(|_| char::from_u32(draw(0x11_0000) as u32)).collect();
                assert_same(&tokenizer, &any);
                let letters = ["ab", "a", "the", "ing", "中", "国"];
                let long: String = (0..90).map(|_| letters[draw(letters.len())]).collect();
                assert_same(&tokenizer, &long);
            }
            assert_same(&tokenizer, &"a".repeat(100_000));
            assert_same(&tokenizer, "");
        }
    }

    #[test]
    fn other_kinds_are_left_to_the_library() {
        let (tokenizer, _) = &tokenizers()[0];
        let json = String::from_utf8(tokenizer.json().to_vec()).expect("UTF-8");
        let open = |json: &str| Tokenizer::from_json(json.into(), "x.json").expect("a tokenizer");
        let is_fast = |json: &str| matches!(open(json).encoder, Encoder::Fast { .. });
        assert!(is_fast(&json));
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let with = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = value.clone();
            change(&mut value);
            !is_fast(&value.to_string())
        };
        assert!(with(&|v| v["pre_tokenizer"]["add_prefix_space"] = true.into()));
        assert!(with(&|v| v["pre_tokenizer"]["use_regex"] = false.into()));
        assert!(with(&|v| v["normalizer"] = serde_json::json!({"type": "NFC"})));
        assert!(with(&|v| v["added_tokens"][0]["lstrip"] = true.into()));
        assert!(with(&|v| v["model"]["ignore_merges"] = true.into()));
    }
}
