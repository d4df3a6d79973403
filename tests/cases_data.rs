//! Faults that people met in data files, each test named after its case.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use mmx::data::{Dataset, Kind, OnBad, Recipe, SampleOptions};
use mmx_converters::tokenizer::Tokenizer;
use serde_json::Value;
use sha2::{Digest, Sha256};

fn shared(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")).join(name)
}

fn case(name: &str) -> PathBuf {
    shared("cases/files").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_str(&fs_err::read_to_string(case(name)).unwrap()).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open(shared("golden")).unwrap()
}

fn load(name: &str, options: &SampleOptions) -> Result<Dataset, String> {
    Dataset::load(&[case(name)], &tokenizer(), options)
        .map_err(|e| format!("{e}\nhint: {}", e.hint().unwrap_or_default()))
}

fn options(kind: Kind, max_seq_len: usize) -> SampleOptions {
    SampleOptions::new(Recipe::R2025, kind, max_seq_len)
}

#[track_caller]
fn assert_says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "expected {word:?} in: {error}");
    }
}

#[test]
fn jsonl_bom_crlf_blank() {
    let text = options(Kind::Text, 64);
    let (dirty, clean) = (
        load("jsonl-bom-crlf-blank/dirty.jsonl", &text).unwrap(),
        load("jsonl-bom-crlf-blank/clean.jsonl", &text).unwrap(),
    );
    assert_eq!(dirty.len(), 4);
    for (a, b) in dirty.samples.iter().zip(&clean.samples) {
        assert_eq!(a.ids, b.ids);
        assert_eq!(a.spans, b.spans);
    }
    let bytes = fs_err::read(case("jsonl-bom-crlf-blank/dirty.jsonl")).unwrap();
    let physical: Vec<u32> = (1..)
        .zip(bytes.split(|&b| b == b'\n'))
        .filter(|(_, line)| line.contains(&b'{'))
        .map(|(number, _)| number)
        .collect();
    assert_eq!(dirty.samples.iter().map(|s| s.line).collect::<Vec<_>>(), physical);
}

#[test]
fn jsonl_missing_key() {
    let error = load("jsonl-missing-key/data.jsonl", &options(Kind::Text, 64)).unwrap_err();
    assert_says(&error, &["data.jsonl", "line 2", "key text", "found content"]);
    let error = load("jsonl-missing-key/sft-as-pretrain.jsonl", &options(Kind::Text, 64));
    assert_says(&error.unwrap_err(), &["line 1", "looks like SFT data", "mmx train sft"]);
    let error = load("jsonl-missing-key/data.jsonl", &options(Kind::Chat, 64)).unwrap_err();
    assert_says(&error, &["line 1", "key conversations", "looks like pretraining data"]);
}

#[test]
fn jsonl_bad_bytes() {
    let error = load("jsonl-bad-bytes/data.jsonl", &options(Kind::Text, 64)).unwrap_err();
    assert_says(&error, &["data.jsonl", "line 2", "offset 27", "not UTF-8"]);
    let error = load("jsonl-bad-bytes/gbk.jsonl", &options(Kind::Text, 64)).unwrap_err();
    assert_says(&error, &["gbk.jsonl", "line 1", "not UTF-8", "GBK"]);
}

#[test]
fn sft_roles() {
    let expected = json("sft-roles/expect.json");
    let expected = expected.as_array().unwrap();
    let bad: Vec<u64> =
        expected.iter().filter(|e| e["ok"] == false).map(|e| e["line"].as_u64().unwrap()).collect();
    let error = load("sft-roles/data.jsonl", &options(Kind::Chat, 128)).unwrap_err();
    assert_says(&error, &["data.jsonl", "line 2", "turn 2", "found user", "--on-bad skip"]);

    let skip = SampleOptions { on_bad: OnBad::Skip, ..options(Kind::Chat, 128) };
    let data = load("sft-roles/data.jsonl", &skip).unwrap();
    let skipped: Vec<u64> = data.skipped.iter().map(|(_, f)| f.line as u64).collect();
    assert_eq!(skipped, bad);
    assert_says(&data.warnings[0], &["5 faulty lines", "2, 3, 4, 6, 7"]);
    assert!(
        data.skipped[2].1.message.contains("turn 2")
            && data.skipped[2].1.message.contains("critic")
    );

    let tokenizer = tokenizer();
    let good: Vec<&Value> = expected.iter().filter(|e| e["ok"] == true).collect();
    assert_eq!(data.len(), good.len());
    for (i, expected) in good.iter().enumerate() {
        let batch = data.batch(&[i as u32], true);
        let length = expected["length"].as_u64().unwrap() as usize;
        assert_eq!(tokenizer.decode(&data.samples[i].ids, false), expected["text"]);
        assert_eq!(data.samples[i].ids.len(), length);
        assert_eq!(u64::from(data.samples[i].line), expected["line"]);
        let at: Vec<usize> = (0..batch.seq).filter(|&p| batch.mask[p] != 0.0).collect();
        assert_eq!(Value::from(at.clone()), expected["mask_at"], "line {}", expected["line"]);
        assert_eq!(at.len() as u64, expected["mask_ones"]);
        let digests = [
            digest(batch.x.iter().flat_map(|v| v.to_le_bytes())),
            digest(batch.x.iter().flat_map(|v| (*v as u32).to_le_bytes())),
            digest(batch.x.iter().flat_map(|v| (*v as f32).to_le_bytes())),
        ];
        let wanted = expected["x_sha256"].as_str().unwrap();
        assert!(digests.iter().any(|d| d == wanted), "line {}: {digests:?}", expected["line"]);
    }
}

fn digest(bytes: impl Iterator<Item = u8>) -> String {
    let bytes: Vec<u8> = bytes.collect();
    Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn sft_all_masked() {
    let expected = json("sft-all-masked/expect.json");
    let data = load("sft-all-masked/data.jsonl", &options(Kind::Chat, 64)).unwrap();
    let lines: Vec<usize> = data.nothing_to_learn.iter().map(|(_, line)| *line).collect();
    assert_eq!(lines, [1, 2]);
    assert_eq!(data.warnings.len(), 1, "{:?}", data.warnings);
    assert_says(&data.warnings[0], &["2 samples", "lines 1, 2", "64 tokens"]);
    let trained: Vec<usize> = (0..3).map(|i| data.batch(&[i], true).trained_tokens()).collect();
    assert_eq!(Value::from(trained), expected["mask_ones"]);
    let error = load("sft-all-masked/only.jsonl", &options(Kind::Chat, 64)).unwrap_err();
    assert_says(&error, &["only.jsonl", "expected at least one sample", "--max-seq-len"]);
}

#[test]
fn dpo_truncated() {
    let expected = json("dpo-truncated/expect.json");
    for recipe in [Recipe::R2025, Recipe::R2026] {
        let options = SampleOptions::new(recipe, Kind::Preference, 64);
        let data = load("dpo-truncated/data.jsonl", &options).unwrap();
        assert_eq!(data.nothing_to_learn.iter().map(|(_, l)| *l).collect::<Vec<_>>(), [1]);
        assert_says(&data.warnings[0], &["1 samples", "lines 1"]);
        assert_eq!((data.len(), data.rejected.len()), (1, 1));
        assert_eq!(data.samples[0].line, 2);
        if recipe == Recipe::R2025 {
            let batch = data.batch(&[0], true);
            let ones = |row: usize| {
                batch.mask[row * batch.seq..(row + 1) * batch.seq].iter().sum::<f32>() as u64
            };
            assert_eq!(ones(0), expected["mask_ones"]["chosen"]);
            assert_eq!(ones(1), expected["mask_ones"]["rejected"]);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let only = dir.path().join("only.jsonl");
    let text = fs_err::read_to_string(case("dpo-truncated/data.jsonl")).unwrap();
    fs_err::write(&only, text.lines().next().unwrap()).unwrap();
    assert!(Dataset::load(&[only], &tokenizer(), &options(Kind::Preference, 64)).is_err());
}

#[test]
fn tok_special_in_content_when_training() {
    let expected = json("tok-special-in-content/messages.json");
    let mut messages = expected["messages"].as_array().unwrap().clone();
    messages.push(serde_json::json!({"role": "assistant", "content": "x"}));
    let line = serde_json::json!({ "conversations": messages }).to_string();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("marks.jsonl");
    fs_err::write(&path, format!("{line}\n{line}\n")).unwrap();
    let tokenizer = tokenizer();
    let data = Dataset::load(&[path], &tokenizer, &options(Kind::Chat, 512)).unwrap();
    let train: Vec<u32> = serde_json::from_value(expected["train_ids"].clone()).unwrap();
    assert!(data.samples[0].ids.starts_with(&train));
    assert_eq!(data.warnings.len(), 1, "once per file: {:?}", data.warnings);
    assert_says(&data.warnings[0], &["marks.jsonl", "line 1", "control token"]);
}

#[test]
fn sampler_ranks() {
    for case in json("sampler-ranks/expect.json").as_array().unwrap() {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let (samples, ranks) = (number("samples"), number("ranks"));
        let order: Vec<u32> = (0..samples as u32).rev().collect();
        let parts: Vec<Vec<u32>> =
            (0..ranks).map(|r| Dataset::rank_order(&order, r, ranks)).collect();
        assert!(parts.iter().all(|part| part.len() == number("train_per_rank")), "{case}");
        let mut all: Vec<u32> = parts.concat();
        all.sort_unstable();
        let with_repeats = all.len();
        all.dedup();
        assert_eq!(all.len(), samples, "every sample at least once: {case}");
        assert_eq!(with_repeats - samples, number("train_repeats"), "{case}");
    }
}
