//! Scripts of characters and words of texts, also of scripts that put no blanks between words.
//!
//! Source of the ranges: Unicode 16, Scripts.txt, the blocks that hold a script's letters.

/// A script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Script {
    /// Chinese characters, wherever they are used.
    Han,
    /// Latin letters.
    Latin,
    /// Cyrillic letters.
    Cyrillic,
    /// Greek letters.
    Greek,
    /// Arabic letters.
    Arabic,
    /// Hebrew letters.
    Hebrew,
    /// Devanagari letters.
    Devanagari,
    /// Thai letters.
    Thai,
    /// Japanese syllables, Hiragana and Katakana.
    Kana,
    /// Korean syllables and letters.
    Hangul,
    /// Letters of every other script.
    Other,
}

/// Every script with its name.
pub const SCRIPTS: [(&str, Script); 11] = [
    ("han", Script::Han),
    ("latin", Script::Latin),
    ("cyrillic", Script::Cyrillic),
    ("greek", Script::Greek),
    ("arabic", Script::Arabic),
    ("hebrew", Script::Hebrew),
    ("devanagari", Script::Devanagari),
    ("thai", Script::Thai),
    ("kana", Script::Kana),
    ("hangul", Script::Hangul),
    ("other", Script::Other),
];

/// The script of a letter; nothing for what is no letter.
#[must_use]
pub fn script(c: char) -> Option<Script> {
    if c.is_ascii() {
        return c.is_ascii_alphabetic().then_some(Script::Latin);
    }
    let script = match c as u32 {
        // CJK unified ideographs and extensions, compatibility ideographs, U+3005 and U+3007
        0x3400..=0x4dbf
        | 0x4e00..=0x9fff
        | 0xf900..=0xfaff
        | 0x2_0000..=0x3_23af
        | 0x3005
        | 0x3007 => return Some(Script::Han),
        0x00aa..=0x024f | 0x1e00..=0x1eff | 0x2c60..=0x2c7f | 0xa720..=0xa7ff | 0xff21..=0xff5a => {
            Script::Latin
        }
        0x0370..=0x03ff | 0x1f00..=0x1fff => Script::Greek,
        0x0400..=0x052f | 0x1c80..=0x1c8f | 0x2de0..=0x2dff | 0xa640..=0xa69f => Script::Cyrillic,
        0x0590..=0x05ff | 0xfb1d..=0xfb4f => Script::Hebrew,
        0x0600..=0x06ff | 0x0750..=0x077f | 0x08a0..=0x08ff | 0xfb50..=0xfdff | 0xfe70..=0xfeff => {
            Script::Arabic
        }
        0x0900..=0x097f | 0xa8e0..=0xa8ff => Script::Devanagari,
        0x0e00..=0x0e7f => Script::Thai,
        0x3040..=0x30ff | 0x31f0..=0x31ff | 0xff66..=0xff9f => Script::Kana,
        0x1100..=0x11ff | 0x3130..=0x318f | 0xa960..=0xa97f | 0xac00..=0xd7ff => Script::Hangul,
        _ => Script::Other,
    };
    c.is_alphabetic().then_some(script)
}

/// True for a letter of a script that puts no blanks between words: it counts as a word.
#[must_use]
pub fn stands_alone(c: char) -> bool {
    // Thai, Lao, Burmese, Khmer; kana, Han
    !c.is_ascii()
        && matches!(c as u32,
            0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3005..=0x3007 | 0x3040..=0x30ff
            | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x2_0000..=0x3_23af)
}

/// Words as Gopher's rules count them: what stands between blanks, and of scripts that have none
/// each character.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    split(text, |c| !c.is_whitespace())
}

/// Words for comparison: letters and digits alone; of scripts without blanks each character.
pub fn plain_words(text: &str) -> impl Iterator<Item = &str> {
    split(text, char::is_alphanumeric)
}

fn split(text: &str, within: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let start = rest.find(&within)?;
        rest = &rest[start..];
        let mut chars = rest.char_indices();
        let alone = chars.next().is_some_and(|(_, c)| stands_alone(c));
        let end = match alone {
            true => chars.next().map_or(rest.len(), |(at, _)| at),
            false => {
                chars.find(|&(_, c)| !within(c) || stands_alone(c)).map_or(rest.len(), |(at, _)| at)
            }
        };
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}

/// A hash of 64 bits of bytes, the same on every machine: eight bytes at a time, each mixed by
/// multiplication (the finalizer of MurmurHash3, Appleby 2011).
#[must_use]
pub fn hash(bytes: &[u8], seed: u64) -> u64 {
    let mut state = seed ^ (bytes.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        state = mixed(state ^ u64::from_le_bytes(eight));
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mixed(state ^ u64::from_le_bytes(last))
}

/// Every bit of a number spread over all others.
#[must_use]
pub fn mixed(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// A hasher for keys that are hashes already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hashed(u64);

impl std::hash::Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = hash(bytes, self.0);
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

/// A map whose keys are hashes.
pub type HashedMap<V> = std::collections::HashMap<u64, V, std::hash::BuildHasherDefault<Hashed>>;
/// A set of hashes.
pub type HashedSet = std::collections::HashSet<u64, std::hash::BuildHasherDefault<Hashed>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_at_blanks_and_around_characters_that_stand_alone() {
        let all = |text| words(text).collect::<Vec<_>>();
        assert_eq!(all("Hello,  world!"), ["Hello,", "world!"]);
        assert_eq!(all("我有 3 个apple。"), ["我", "有", "3", "个", "apple。"]);
        let plain = |text| plain_words(text).collect::<Vec<_>>();
        assert_eq!(plain("Don't stop -- 我们, ok"), ["Don", "t", "stop", "我", "们", "ok"]);
        assert!(plain(" ...\n").is_empty());
    }

    #[test]
    fn letters_have_scripts_and_digits_none() {
        for (c, expected) in [
            ('a', Some(Script::Latin)),
            ('é', Some(Script::Latin)),
            ('中', Some(Script::Han)),
            ('の', Some(Script::Kana)),
            ('한', Some(Script::Hangul)),
            ('я', Some(Script::Cyrillic)),
            ('7', None),
            ('，', None),
            ('😀', None),
            ('ა', Some(Script::Other)),
        ] {
            assert_eq!(script(c), expected, "{c}");
        }
    }

    #[test]
    fn hashes_differ_by_length_and_seed() {
        let all = [hash(b"", 0), hash(b"\0", 0), hash(b"\0\0", 0), hash(b"", 1), hash(&[0; 9], 0)];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| b != a), "{i}");
        }
    }
}
