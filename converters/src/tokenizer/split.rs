//! Pre-tokenizers of others: how a text is cut into words before merges, by the name that a GGUF
//! has for it.
//!
//! In: a text. Out: its words, one after the other, nothing left out. Source: llama.cpp b10488,
//! `llama-vocab.cpp`: the names, their regular expressions, whether a word that is a token is taken
//! whole, and whether bos comes first unless the file says otherwise. The peers compare the ids with
//! llama.cpp's own on the vocabularies that it ships.

use std::fmt;
use std::sync::Arc;

use fancy_regex::{Regex, RegexBuilder};
use serde_json::Value;

/// A pre-tokenizer.
#[derive(Debug)]
pub(super) struct Pre {
    names: &'static [&'static str],
    /// Each one cuts what the one before left; what none of them finds stays together.
    pub(super) patterns: &'static [&'static str],
    /// A word that is a token is taken whole, whatever its merges.
    pub(super) whole_words: bool,
    /// bos comes first unless the file says otherwise.
    pub(super) bos: bool,
}

/// English contractions, in small letters and capitals.
macro_rules! contractions {
    () => {
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}
/// What cl100k's expression and its kin end with.
macro_rules! rest {
    () => {
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|", rest!());
const QWEN2: &str = concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|", rest!());
const QWEN35: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+",
    contractions!(),
    r"?|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*",
    contractions!(),
    r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+",
    r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Letters as DeepSeek's first tokenizer lists them, with a blank before.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

/// The pre-tokenizers that are known, but for GPT-2's own, which is computed by hand.
static KNOWN: [Pre; 10] = [
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        patterns: &[LLAMA3],
        whole_words: true,
        bos: true,
    },
    Pre { names: &["dbrx", "smaug-bpe"], patterns: &[LLAMA3], whole_words: false, bos: false },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "solar-open"],
        patterns: &[QWEN2],
        whole_words: false,
        bos: false,
    },
    Pre { names: &["qwen35"], patterns: &[QWEN35], whole_words: false, bos: false },
    Pre { names: &["gpt-4o", "llama4"], patterns: &[GPT4O], whole_words: false, bos: false },
    Pre { names: &["tekken"], patterns: &[TEKKEN], whole_words: true, bos: true },
    Pre {
        names: &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"],
        patterns: &[r"\p{N}", GPT2],
        whole_words: false,
        bos: false,
    },
    Pre {
        names: &["deepseek-llm"],
        patterns: &[
            "[\r\n]",
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-。]+",
            r"\s+$",
            r"[一-龥ࠀ-一가-\x{D7FF}]+",
            r"\p{N}+",
        ],
        whole_words: false,
        bos: false,
    },
    Pre {
        names: &["deepseek-coder"],
        patterns: &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-\x{D7FF}]+", r"\p{N}"],
        whole_words: false,
        bos: false,
    },
    Pre {
        names: &["deepseek-v3", "hunyuan-dense"],
        patterns: &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        whole_words: false,
        bos: false,
    },
];

/// The pre-tokenizer of a name in a GGUF.
pub(super) fn of_gguf(name: &str) -> Option<&'static Pre> {
    KNOWN.iter().find(|pre| pre.names.contains(&name))
}

/// The expressions of tokenizer.json files as which two names stand for the same: contractions are
/// written with a flag there, which llama.cpp's have not.
const FLAGGED: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

/// The name and the pre-tokenizer of a `pre_tokenizer` of tokenizer.json: expressions that cut one
/// after the other, then bytes.
pub(super) fn of_json(json: &Value) -> Option<(&'static str, &'static Pre)> {
    let parts = json.get("pretokenizers")?.as_array()?;
    let (bytes, splits) = parts.split_last()?;
    let is = |part: &Value, key: &str, value: Value| part.get(key) == Some(&value);
    if !(is(bytes, "type", "ByteLevel".into())
        && is(bytes, "use_regex", false.into())
        && is(bytes, "add_prefix_space", false.into()))
    {
        return None;
    }
    let pattern = |part: &Value| {
        let cuts = is(part, "type", "Split".into())
            && is(part, "behavior", "Isolated".into())
            && is(part, "invert", false.into());
        let text = part.pointer("/pattern/Regex")?.as_str().filter(|_| cuts)?;
        Some(text.replace(FLAGGED, contractions!()))
    };
    let patterns = splits.iter().map(pattern).collect::<Option<Vec<_>>>()?;
    let pre = KNOWN.iter().find(|pre| pre.patterns == patterns)?;
    Some((pre.names.first()?, pre))
}

/// All names, for a message.
pub(super) fn names() -> String {
    KNOWN.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", ")
}

/// A pre-tokenizer's regular expressions, compiled.
#[derive(Clone)]
pub(super) struct Split(Arc<[Regex]>);

impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(Regex::as_str)).finish()
    }
}

impl Split {
    /// Compiles a pre-tokenizer's expressions; nothing where one does not compile (a bug: they are
    /// constants, and the tests compile them).
    pub(super) fn of(pre: &Pre) -> Option<Self> {
        let compile = |pattern: &&str| {
            // texts may be long, and giving up in one would change its ids
            RegexBuilder::new(pattern).backtrack_limit(usize::MAX).build().ok()
        };
        let all: Option<Vec<Regex>> = pre.patterns.iter().map(compile).collect();
        Some(Self(all?.into()))
    }

    /// The words of a text.
    pub(super) fn words<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut words = vec![text];
        for pattern in self.0.iter() {
            let mut cut = Vec::with_capacity(words.len());
            for word in words {
                let mut from = 0;
                for found in pattern.find_iter(word).map_while(Result::ok) {
                    if found.start() > from {
                        cut.push(&word[from..found.start()]);
                    }
                    if found.end() > found.start() {
                        cut.push(found.as_str());
                    }
                    from = found.end();
                }
                if from < word.len() {
                    cut.push(&word[from..]);
                }
            }
            words = cut;
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'t>(pre: &str, text: &'t str) -> Vec<&'t str> {
        Split::of(of_gguf(pre).expect(pre)).expect("it compiles").words(text)
    }

    #[test]
    fn every_expression_compiles_and_nothing_is_left_out() {
        let text = "I'll PAY 12345 €, née  Ünlü\n\n  你好，世界 ١٢٣ a_b  \t\r\n😀 ";
        for pre in &KNOWN {
            let name = pre.names[0];
            assert_eq!(words(name, text).concat(), text, "{name}");
        }
        assert!(of_gguf("gpt-2").is_none() && of_gguf("unheard").is_none());
    }

    /// As Qwen's and Meta's own files have them.
    #[test]
    fn expressions_of_tokenizer_json_have_their_names() {
        let of = |pattern: &str| {
            let split = serde_json::json!({"type": "Split", "pattern": {"Regex": pattern},
                "behavior": "Isolated", "invert": false});
            let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
                "trim_offsets": false, "use_regex": false});
            let json = serde_json::json!({"type": "Sequence", "pretokenizers": [split, bytes]});
            of_json(&json).map(|(name, _)| name)
        };
        let begin = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
        let end = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        assert_eq!(of(&format!(r"{begin}\p{{N}}{end}")), Some("qwen2"));
        assert_eq!(of(&format!(r"{begin}\p{{N}}{{1,3}}{end}")), Some("llama-bpe"));
        assert_eq!(of(r"\s+"), None);
    }

    /// By hand from the expressions.
    #[test]
    fn digits_and_line_ends_are_cut_as_each_name_says() {
        assert_eq!(words("qwen2", "a 123\n\nb"), ["a", " ", "1", "2", "3", "\n\n", "b"]);
        assert_eq!(words("llama-bpe", "a 12345, I'LL"), ["a", " ", "123", "45", ",", " I", "'LL"]);
        assert_eq!(words("starcoder", "a 12b"), ["a", " ", "1", "2", "b"]);
        assert_eq!(words("gpt-4o", "HelloWorld's!/"), ["Hello", "World's", "!/"]);
        assert_eq!(words("qwen2", "  x"), [" ", " x"]);
    }
}
