//! Whether the number that guards the token cache was raised with the rules it stands for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use mmx_converters::digest;
use mmx_converters::tokenizer::Tokenizer;
use mmx_data::cache::{Cache, TEXT_VERSION};
use mmx_data::{Dataset, Kind, Recipe, Sample, SampleOptions};
use serde_json::{Value, json};

/// [`TEXT_VERSION`], and the digest of all ids and spans of the corpus under its rules.
const GOLDEN: (u32, &str) = (2, "02b62195c04b54e239af6a2caeba594b7b5a2119515acc837157756c431eb966");

fn shared(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Texts of one line each that rules may be about: all that the golden tokenizer cases hold, a run
/// longer than any word, every kind of white space, tags and half characters.
fn texts(folder: &Path, golden: &str) -> PathBuf {
    let cases: Value =
        serde_json::from_slice(&fs_err::read(shared(golden).join("tokenizer-cases.json")).unwrap())
            .unwrap();
    let mut strings = Vec::new();
    fn gather(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::String(text) => into.push(text.clone()),
            Value::Array(list) => list.iter().for_each(|value| gather(value, into)),
            Value::Object(map) => map.values().for_each(|value| gather(value, into)),
            _ => {}
        }
    }
    gather(&cases, &mut strings);
    strings.extend([
        "ab".repeat(20_000),
        " \t\u{a0}\u{3000}\r\u{2028}\u{200b}  x".to_owned(),
        "e\u{301} \u{e9} \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{fffd}".to_owned(),
        "<think>\n\n</think><|im_start|>user 1234567 don't \u{4f60}\u{597d}".to_owned(),
    ]);
    let path = folder.join(format!("{}.jsonl", golden.replace('/', "-")));
    let lines: Vec<String> = strings.iter().map(|text| json!({"text": text}).to_string()).collect();
    fs_err::write(&path, lines.join("\n")).unwrap();
    path
}

/// Chats of every kind of turn: thoughts, tools and their calls, a system prompt, empty answers.
fn chats(folder: &Path) -> PathBuf {
    let tools = json!([{"type": "function", "function": {"name": "sum", "parameters": {
        "type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "integer"}}}}}]);
    let call = json!([{"name": "sum", "arguments": {"b": 2, "a": 1.0}}]);
    let records = [
        json!({"conversations": [{"role": "user", "content": "1+2?"},
            {"role": "assistant", "content": "3", "reasoning_content": "one\ntwo"},
            {"role": "user", "content": " again "}, {"role": "assistant", "content": ""}]}),
        json!({"conversations": [{"role": "system", "content": "Be brief.", "tools": tools.to_string()},
            {"role": "user", "content": "1+2?"},
            {"role": "assistant", "content": "", "tool_calls": call.to_string()},
            {"role": "tool", "content": "3"}, {"role": "assistant", "content": "It is 3."}]}),
        json!({"conversations": [{"role": "user", "content": "think"},
            {"role": "assistant", "content": "<think>\nwell\n</think>\n\nso"}]}),
    ];
    let path = folder.join("chats.jsonl");
    fs_err::write(&path, records.map(|record| record.to_string()).join("\n")).unwrap();
    path
}

/// What a file's samples are, as text.
fn rendered(data: &Dataset) -> String {
    let of = |sample: &Sample| {
        format!("{:?} {:?} {} {}\n", sample.ids, sample.spans, sample.full_len, sample.line)
    };
    (0..data.len())
        .flat_map(|i| [Some(data.sample(i)), data.rejected(i)])
        .flatten()
        .map(|sample| of(&sample))
        .collect()
}

#[test]
fn ids_change_only_with_the_version_of_text() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = String::new();
    let mut samples = 0;
    for golden in ["golden", "golden-2026"] {
        let tokenizer = Tokenizer::open(shared(golden)).unwrap();
        let files = [
            (Kind::Text, shared("golden/pretrain.jsonl")),
            (Kind::Text, shared("golden-2026/pretrain.jsonl")),
            (Kind::Text, shared("cases/files/jsonl-bom-crlf-blank/dirty.jsonl")),
            (Kind::Text, shared("cases/turn2/json-array-file/middle.json")),
            (Kind::Text, texts(folder.path(), golden)),
            (Kind::Chat, shared("golden/sft.jsonl")),
            (Kind::Chat, shared("golden/reason.jsonl")),
            (Kind::Chat, shared("golden-2026/sft.jsonl")),
            (Kind::Chat, shared("cases/files/sft-roles/data.jsonl")),
            (Kind::Chat, shared("cases/turn2/json-array-file/alpaca.jsonl")),
            (Kind::Chat, shared("cases/turn2/json-array-file/pretty.json")),
            (Kind::Chat, chats(folder.path())),
            (Kind::Preference, shared("golden/dpo.jsonl")),
            (Kind::Preference, shared("golden-2026/dpo.jsonl")),
        ];
        for recipe in [Recipe::R2025, Recipe::R2026] {
            for (kind, file) in &files {
                for max_seq_len in [48, 1024] {
                    // rates at which both outcomes of each draw occur
                    let options = SampleOptions {
                        system_ratio: 0.5,
                        empty_think_ratio: 0.5,
                        ..SampleOptions::new(recipe, *kind, max_seq_len)
                    };
                    let files = [file.clone()];
                    let (data, faults) =
                        Dataset::examine(&files, &tokenizer, &options, &Cache::none()).unwrap();
                    let lines: Vec<usize> = faults.iter().map(|(_, fault)| fault.line).collect();
                    let name = file.file_name().unwrap().display();
                    all += &format!("{golden} {name} {recipe:?} {max_seq_len}: {lines:?}\n");
                    all += &rendered(&data);
                    samples += data.len();
                }
            }
        }
    }
    assert!(samples > 1500, "{samples} samples");
    let found = digest::of_bytes(all.as_bytes());
    assert!(
        (TEXT_VERSION, found.as_str()) == GOLDEN,
        "samples of the corpus: expected version {} with digest {}, found version {TEXT_VERSION} with digest {found}. \
         Where ids or spans are meant to change, raise TEXT_VERSION in src/data/cache.rs and put both here.",
        GOLDEN.0,
        GOLDEN.1,
    );
}
