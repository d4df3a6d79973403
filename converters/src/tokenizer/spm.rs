//! SentencePiece's BPE as a GGUF holds it (`tokenizer.ggml.model` "llama"): scores in place of
//! merges, blanks written `▁`, bytes for characters that have no token.
//!
//! In: text. Out: ids, llama.cpp's. Source: llama.cpp b10488, `llm_tokenizer_spm` and
//! `llama_vocab::impl::tokenize`; the peers compare them on the vocabularies that it ships.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

use super::token::{Token, TokenKind};

/// How SentencePiece writes a blank.
const BLANK: char = '\u{2581}';

/// An encoder; `plain` knows no control token.
#[derive(Clone, Debug)]
pub(super) struct Spm {
    vocabulary: Arc<Vocabulary>,
    full: Added,
    plain: Added,
}

/// Finds added tokens, and which id each has; nothing where there are none.
type Added = Option<(AhoCorasick, Arc<[u32]>)>;

#[derive(Debug)]
struct Vocabulary {
    /// Id and score by the text of a token.
    tokens: HashMap<String, (u32, f32)>,
    /// The token of each byte.
    bytes: Vec<Option<u32>>,
    /// The token of what has no other.
    unknown: Option<u32>,
    /// A blank comes before a text, and after an added token.
    prefix: bool,
}

/// What a normal token's text stands for.
pub(super) fn bytes_of(text: &str) -> Vec<u8> {
    match byte_of(text) {
        Some(byte) => vec![byte],
        None => text.replace(BLANK, " ").into_bytes(),
    }
}

/// The byte that `<0xE4>` stands for.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

impl Spm {
    /// Makes an encoder of the tokens, their scores, and whether a blank comes first.
    pub(super) fn new(
        tokens: &[Option<Token>],
        scores: &[f32],
        unknown: Option<u32>,
        prefix: bool,
    ) -> Option<Self> {
        let mut bytes = vec![None; 256];
        let mut known = HashMap::new();
        let mut added = Vec::new();
        for (id, token) in (0u32..).zip(tokens) {
            let Some(token) = token else { continue };
            if token.kind != TokenKind::Normal {
                added.push((token.text.as_str(), id, token.kind == TokenKind::Control));
                continue;
            }
            match byte_of(&token.text) {
                Some(byte) => bytes[usize::from(byte)] = Some(id),
                None => {
                    let score = scores.get(id as usize).copied().unwrap_or(0.0);
                    known.insert(token.text.clone(), (id, score));
                }
            }
        }
        let finder = |control: bool| -> Option<Added> {
            let kept = added.iter().filter(|added| control || !added.2);
            let (texts, ids): (Vec<&str>, Vec<u32>) = kept.map(|a| (a.0, a.1)).unzip();
            if texts.is_empty() {
                return Some(None);
            }
            let mut builder = AhoCorasick::builder();
            builder.match_kind(MatchKind::LeftmostLongest);
            Some(Some((builder.build(texts).ok()?, ids.into())))
        };
        let (full, plain) = (finder(true)?, finder(false)?);
        let vocabulary = Vocabulary { tokens: known, bytes, unknown, prefix };
        Some(Self { vocabulary: Arc::new(vocabulary), full, plain })
    }

    /// The ids of a text; nothing in it is a control token where it is `plain`.
    pub(super) fn encode(&self, text: &str, plain: bool) -> Vec<u32> {
        let added = if plain { &self.plain } else { &self.full };
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        let mut from = 0;
        for found in added.iter().flat_map(|(finder, _)| finder.find_iter(text)) {
            self.vocabulary.plain(&text[from..found.start()], &mut ids);
            let id = added.iter().filter_map(|(_, of)| of.get(found.pattern().as_usize()));
            ids.extend(id);
            from = found.end();
        }
        self.vocabulary.plain(&text[from..], &mut ids);
        ids
    }
}

/// Two neighbours that make a token.
#[derive(PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both, by which one that has changed since is known.
    size: usize,
}

impl Eq for Pair {}

impl Ord for Pair {
    /// The highest score first, of equal ones the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A piece of the text; empty once it was taken into its left neighbour.
struct Symbol {
    begin: usize,
    size: usize,
    before: Option<usize>,
    next: Option<usize>,
}

impl Vocabulary {
    /// Appends the ids of a text without added tokens, which is the beginning or follows one.
    fn plain(&self, text: &str, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let mut spelled = String::with_capacity(text.len() + 16);
        if self.prefix {
            spelled.push(BLANK);
        }
        spelled.extend(text.chars().map(|c| if c == ' ' { BLANK } else { c }));
        let mut symbols: Vec<Symbol> = Vec::with_capacity(spelled.len());
        for (begin, c) in spelled.char_indices() {
            let at = symbols.len();
            symbols.push(Symbol {
                begin,
                size: c.len_utf8(),
                before: at.checked_sub(1),
                next: Some(at + 1),
            });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.push(&spelled, &symbols, Some(right - 1), Some(right), &mut queue);
        }
        while let Some(Pair { left, right, size, .. }) = queue.pop() {
            let (l, r) = (&symbols[left], &symbols[right]);
            if l.size == 0 || r.size == 0 || l.size + r.size != size {
                continue;
            }
            let next = r.next;
            symbols[left].size = size;
            symbols[left].next = next;
            symbols[right].size = 0;
            if let Some(next) = next {
                symbols[next].before = Some(left);
            }
            self.push(&spelled, &symbols, symbols[left].before, Some(left), &mut queue);
            self.push(&spelled, &symbols, Some(left), next, &mut queue);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.size > 0) {
            let piece = &spelled[symbol.begin..symbol.begin + symbol.size];
            match self.tokens.get(piece) {
                Some((id, _)) => ids.push(*id),
                // a character without a token; a vocabulary may lack bytes too
                None => ids.extend(
                    piece.bytes().filter_map(|b| self.bytes[usize::from(b)].or(self.unknown)),
                ),
            }
        }
    }

    fn push(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
        queue: &mut BinaryHeap<Pair>,
    ) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (begin, size) = (symbols[left].begin, symbols[left].size + symbols[right].size);
        if let Some(&(_, score)) = self.tokens.get(&text[begin..begin + size]) {
            queue.push(Pair { score, left, right, size });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder(prefix: bool) -> Spm {
        let mut tokens: Vec<(&str, TokenKind)> =
            vec![("<unk>", TokenKind::Control), ("<s>", TokenKind::Control)];
        for text in ["<0x0A>", "<0xE4>", "<0xBD>", "<0xA0>", "▁", "a", "b", "ab", "▁a", "▁ab", "ba"]
        {
            tokens.push((text, TokenKind::Normal));
        }
        tokens.push(("<x>", TokenKind::UserDefined));
        let scores = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, -0.5, 0.0];
        let token = |(text, kind): &(&str, TokenKind)| {
            Some(Token { text: (*text).to_owned(), bytes: bytes_of(text), kind: *kind })
        };
        let tokens: Vec<_> = tokens.iter().map(token).collect();
        Spm::new(&tokens, &scores, Some(0), prefix).expect("an encoder")
    }

    /// By hand: the pair of the highest score first, then what that leaves.
    #[test]
    fn the_highest_score_is_joined_first() {
        let spm = encoder(true);
        assert_eq!(spm.encode("ab", false), [11]); // ▁ a b: "ab" (-1), then "▁ab"
        assert_eq!(spm.encode("aba", false), [10, 12]); // "ba" (-0.5) first
        assert_eq!(encoder(false).encode("ab", false), [9]);
        assert_eq!(spm.encode("", false), [0u32; 0]);
        assert_eq!(spm.encode("你\n", false), [6, 3, 4, 5, 2]);
    }

    #[test]
    fn added_tokens_are_found_and_a_blank_comes_after_them() {
        let spm = encoder(true);
        assert_eq!(spm.encode("<s>ab<x>a", false), [1, 11, 13, 10]);
        // no control token in plain text, whatever it says; what it is made of has no token here
        let plain = spm.encode("<s>a<x>", true);
        assert!(!plain.contains(&1) && plain.ends_with(&[13]), "{plain:?}");
    }

    #[test]
    fn bytes_and_blanks_are_read() {
        assert_eq!(bytes_of("<0xE4>"), [0xe4]);
        assert_eq!(bytes_of("▁the"), b" the");
        assert_eq!(bytes_of("<0xZZ>"), b"<0xZZ>");
    }
}
