//! The first rung of the golden ladder: text to ids, chats to text and ids, in both vocabularies.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use mmx_converters::arch::presets;
use mmx_converters::chat::Options;
use mmx_converters::gguf::Metadata;
use mmx_converters::tokenizer::{TokenKind, Tokenizer};
use serde_json::Value;

fn shared(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

/// The folder of MiniMind's published tokenizers (`2025-04`, `2026-08`), which are not ours to
/// ship: the tests on them run where `MMX_TEST_TOKENIZERS` names it.
fn published(name: &str) -> Option<PathBuf> {
    std::env::var_os("MMX_TEST_TOKENIZERS").map(|folder| PathBuf::from(folder).join(name))
}

fn json(name: &str) -> Value {
    let path = shared(name);
    let text = fs_err::read_to_string(&path).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// Both generations, golden and, where they are, published: folder, rows of the model's embedding.
fn tokenizers() -> Vec<(PathBuf, usize)> {
    let golden = [(shared("golden"), 512), (shared("golden-2026"), 640)];
    let published = ["2025-04", "2026-08"].into_iter().filter_map(published);
    golden.into_iter().chain(published.map(|folder| (folder, 6400))).collect()
}

fn through_gguf(tokenizer: &Tokenizer, rows: usize) -> Tokenizer {
    let mut config = presets::preset("minimind2-small").unwrap();
    config.vocab_size = rows;
    let mut metadata = Metadata::new();
    for (key, value) in tokenizer.to_gguf_keys(&config).unwrap() {
        assert!(metadata.set(key, value));
    }
    Tokenizer::from_gguf(&metadata, "x.gguf".as_ref()).unwrap()
}

#[test]
fn golden_texts_have_the_reference_ids() {
    for folder in ["golden", "golden-2026"] {
        let tokenizer = Tokenizer::open(shared(folder)).unwrap();
        let cases = json(&format!("{folder}/tokenizer-cases.json"));
        for case in cases["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let expected = ids(&case["ids"]);
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{folder}: {text:?}");
            assert_eq!(tokenizer.decode(&expected, false), text, "{folder}");
        }
    }
}

#[test]
fn golden_chats_have_the_reference_text_and_ids() {
    for folder in ["golden", "golden-2026"] {
        let direct = Tokenizer::open(shared(folder)).unwrap();
        let rows = if folder == "golden" { 512 } else { 640 };
        for tokenizer in [&direct, &through_gguf(&direct, rows)] {
            for chat in json(&format!("{folder}/tokenizer-cases.json"))["chats"].as_array().unwrap()
            {
                let mut options = Options {
                    add_generation_prompt: chat["add_generation_prompt"].as_bool().unwrap(),
                    ..Options::default()
                };
                if chat["tools"].is_array() {
                    options.tools = Some(chat["tools"].clone());
                }
                if let Some(open) = chat.get("open_thinking").and_then(Value::as_bool) {
                    options.variables.insert("open_thinking".into(), open.into());
                }
                let messages = chat["messages"].as_array().unwrap();
                let text = chat["text"].as_str().unwrap();
                assert_eq!(tokenizer.render_chat(messages, &options).unwrap(), text, "{folder}");
                let prompt = tokenizer.encode_chat(messages, &options).unwrap();
                assert_eq!(prompt.text, text, "{folder}");
                assert_eq!(prompt.ids, ids(&chat["ids"]), "{folder}: {text}");
                assert_eq!(tokenizer.encode(text).unwrap(), prompt.ids, "{folder}: {text}");
            }
        }
    }
}

#[test]
fn reason_tags_have_the_reference_ids() {
    let tokenizer = Tokenizer::open(shared("golden")).unwrap();
    let mut tags: Vec<u32> = ["<think>", "</think>", "<answer>", "</answer>"]
        .iter()
        .flat_map(|t| tokenizer.encode(t).unwrap())
        .collect();
    tags.sort_unstable();
    tags.dedup();
    let expected = ids(&json("golden/tokenizer-cases.json")["reason_tag_ids"]);
    assert!(expected.iter().all(|id| tags.contains(id)), "{tags:?}");
}

/// A small generator of odd texts: no two runs differ.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    }

    fn text(&mut self) -> String {
        const WORDS: [&str; 34] = [
            "hello",
            " world",
            "你好",
            "，",
            "世界！",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "1234567",
            " 3.14",
            "don't",
            "I'LL",
            "😀",
            "👩‍👩‍👧",
            "é",
            "한국어",
            "ไทย",
            "<|im_start|>",
            "<|im_end|>",
            "<|endoftext|>",
            "<think>",
            "</think>",
            "<tool_call>",
            "<|im_",
            "end|>",
            "fn main() { x += 1; }",
            "\u{0}",
            "\u{3000}",
            "１２３",
            "#include <a.h>",
            "\u{a0}",
            "'s",
            "<|buffer1|>",
        ];
        let mut out = String::new();
        for _ in 0..self.next(9) {
            match self.next(3) {
                0 => out.extend(char::from_u32(self.next(0x2_ffff) as u32)),
                _ => out.push_str(WORDS[self.next(WORDS.len())]),
            }
        }
        out
    }
}

#[test]
fn random_texts_survive_and_agree_between_json_and_gguf() {
    for (folder, rows) in tokenizers() {
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let folder = folder.display();
        let from_gguf = through_gguf(&tokenizer, rows);
        let mut random = Random(1337);
        for _ in 0..3000 {
            let text = random.text();
            let ids = tokenizer.encode(&text).unwrap();
            assert_eq!(tokenizer.decode(&ids, false), text, "{folder}");
            assert_eq!(from_gguf.encode(&text).unwrap(), ids, "{folder}: {text:?}");
            let plain = tokenizer.encode_plain(&text).unwrap();
            assert!(!plain.iter().any(|&id| tokenizer.is_control(id)), "{folder}: {text:?}");
            assert_eq!(tokenizer.decode(&plain, true), text, "{folder}");
            assert_eq!(from_gguf.encode_plain(&text).unwrap(), plain, "{folder}: {text:?}");
            let mut stream = tokenizer.decode_stream(false);
            let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
            streamed.push_str(&stream.finish());
            assert_eq!(streamed, text, "{folder}");
        }
    }
}

#[test]
fn batches_are_encoded_in_order() {
    let tokenizer = Tokenizer::open(shared("golden-2026")).unwrap();
    let mut random = Random(7);
    let texts: Vec<String> = (0..500).map(|_| random.text()).collect();
    let batch = tokenizer.encode_batch(&texts).unwrap();
    for (text, ids) in texts.iter().zip(&batch) {
        assert_eq!(&tokenizer.encode(text).unwrap(), ids);
    }
}

#[test]
fn special_ids_and_kinds_of_both_vocabularies() {
    let (Some(old), Some(new)) = (published("2025-04"), published("2026-08")) else { return };
    let (old, new) = (Tokenizer::open(old).unwrap(), Tokenizer::open(new).unwrap());
    for tokenizer in [&old, &new, &through_gguf(&old, 6400), &through_gguf(&new, 6400)] {
        assert_eq!(tokenizer.vocab_size(), 6400);
        assert_eq!(tokenizer.pad_id(), Some(0));
        assert_eq!(tokenizer.bos_id(), Some(1));
        assert_eq!(tokenizer.eos_ids(), [2]);
        assert_eq!(tokenizer.unk_id(), Some(0));
        assert!(tokenizer.warnings.is_empty(), "{:?}", tokenizer.warnings);
    }
    let user_defined: Vec<u32> = new
        .added_tokens()
        .filter(|(_, _, kind)| *kind == TokenKind::UserDefined)
        .map(|(id, _, _)| id)
        .collect();
    assert_eq!(user_defined, [21, 22, 23, 24, 25, 26]);
    assert_eq!(new.added_tokens().count(), 36);
}

#[test]
fn a_long_run_of_blanks_is_split_as_the_pattern_says() {
    // the pattern's lookahead takes all blanks but the last; an engine that gives up would not
    let tokenizer = Tokenizer::open(shared("golden")).unwrap();
    let text = format!("{}x", " ".repeat(300_000));
    let ids = tokenizer.encode(&text).unwrap();
    let one = tokenizer.encode(" x").unwrap();
    assert!(ids.ends_with(&one), "the blank before the word belongs to it");
    assert_eq!(tokenizer.decode(&ids, false), text);
}
