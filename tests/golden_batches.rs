//! The second rung of the golden ladder: files to batches, equal to the references' position by position.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use mmx_converters::safetensors::SafeTensors;
use mmx_converters::tensor::Dtype;
use mmx_converters::tokenizer::Tokenizer;
use mmx_data::{Batch, Dataset, Kind, Recipe, SampleOptions, reason_tag_ids};

fn shared(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(name)
}

/// One integer tensor `[rows, columns]` of a fixture.
fn tensor(file: &SafeTensors, name: &str) -> (usize, usize, Vec<i64>) {
    let view = file.get(name).unwrap_or_else(|| panic!("fixture lacks {name}"));
    assert_eq!((view.dtype, view.shape.len()), (Dtype::I64, 2), "{name}");
    let values =
        view.data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    (view.shape[0], view.shape[1], values)
}

fn assert_same(what: &str, columns: usize, ours: &[i64], theirs: &[i64]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    if let Some(at) = (0..ours.len()).find(|&i| ours[i] != theirs[i]) {
        panic!(
            "{what}: row {}, position {}: ours {}, the reference's {}",
            at / columns,
            at % columns,
            ours[at],
            theirs[at]
        );
    }
}

fn load(folder: &str, stage: &str, recipe: Recipe, kind: Kind, max_seq_len: usize) -> Dataset {
    let tokenizer = Tokenizer::open(shared(folder)).unwrap();
    let options = SampleOptions {
        // pinned in the fixtures: never a system turn, never an empty thought
        system_ratio: 0.0,
        empty_think_ratio: 0.0,
        ..SampleOptions::new(recipe, kind, max_seq_len)
    };
    let path = shared(&format!("{folder}/{stage}.jsonl"));
    Dataset::load(&[path], &tokenizer, &options).unwrap()
}

/// The batches of a fixture that holds x, y and mask; returns how many.
fn compare_xy(folder: &str, stage: &str, recipe: Recipe, kind: Kind, max_seq_len: usize) -> usize {
    let data = load(folder, stage, recipe, kind, max_seq_len);
    let file = shared(&format!("{folder}/train/{stage}-batches.safetensors"));
    let file = SafeTensors::open(file).unwrap();
    let order = data.order(0, 0, false);
    let sides = if kind == Kind::Preference { 2 } else { 1 };
    let (rows, ..) = tensor(&file, "0.x");
    let batches: Vec<Batch> =
        order.chunks(rows / sides).map(|chunk| data.batch(chunk, true)).collect();
    assert_eq!(batches.len() * 3, file.len(), "{folder}/{stage}: number of batches");
    for (i, ours) in batches.iter().enumerate() {
        let mask: Vec<i64> = ours.mask.iter().map(|&m| m as i64).collect();
        for (name, values) in [("x", &ours.x), ("y", &ours.y), ("mask", &mask)] {
            let name = format!("{i}.{name}");
            let (rows, columns, theirs) = tensor(&file, &name);
            assert_eq!((ours.batch, ours.seq), (rows, columns), "{folder}/{stage} {name}");
            assert_same(&format!("{folder}/{stage} {name}"), columns, values, &theirs);
        }
    }
    batches.len()
}

/// The batches of a fixture that holds input_ids and labels.
fn compare_labels(stage: &str, kind: Kind) -> usize {
    let data = load("golden-2026", stage, Recipe::R2026, kind, 160);
    let file = shared(&format!("golden-2026/train/{stage}-batches.safetensors"));
    let file = SafeTensors::open(file).unwrap();
    let order = data.order(0, 0, false);
    let (rows, ..) = tensor(&file, "0.input_ids");
    let chunks: Vec<&[u32]> = order.chunks(rows).collect();
    assert_eq!(chunks.len() * 2, file.len(), "{stage}: number of batches");
    for (i, chunk) in chunks.iter().enumerate() {
        let ours = data.batch(chunk, true);
        let (rows, columns, ids) = tensor(&file, &format!("{i}.input_ids"));
        assert_eq!((ours.batch, ours.seq), (rows, columns), "{stage}");
        assert_same(&format!("{stage} {i}.input_ids"), columns, &ours.x, &ids);
        let (_, _, labels) = tensor(&file, &format!("{i}.labels"));
        let own: Vec<i64> =
            chunk.iter().flat_map(|&s| data.sample(s as usize).labels(columns)).collect();
        assert_same(&format!("{stage} {i}.labels"), columns, &own, &labels);
        // the batch's y and mask are these labels, moved by one
        for (at, (&y, &mask)) in ours.y.iter().zip(&ours.mask).enumerate() {
            let next = if at % columns + 1 < columns { labels[at + 1] } else { -100 };
            assert_eq!(mask != 0.0, next != -100, "{stage} batch {i} position {at}");
            assert!(mask == 0.0 || y == next, "{stage} batch {i} position {at}: {y} {next}");
        }
    }
    chunks.len()
}

#[test]
fn batches_of_2025_equal_the_reference() {
    assert_eq!(compare_xy("golden", "pretrain", Recipe::R2025, Kind::Text, 128), 8);
    assert_eq!(compare_xy("golden", "sft", Recipe::R2025, Kind::Chat, 128), 8);
    assert_eq!(compare_xy("golden", "dpo", Recipe::R2025, Kind::Preference, 128), 4);
    assert_eq!(compare_xy("golden", "reason", Recipe::R2025, Kind::Chat, 128), 4);
}

#[test]
fn batches_of_2026_equal_the_reference() {
    assert_eq!(compare_labels("pretrain", Kind::Text), 8);
    assert_eq!(compare_labels("sft", Kind::Chat), 8);
    assert_eq!(compare_xy("golden-2026", "dpo", Recipe::R2026, Kind::Preference, 160), 4);
}

#[test]
fn reason_tag_ids_equal_the_reference() {
    let tokenizer = Tokenizer::open(shared("golden")).unwrap();
    let text = fs_err::read_to_string(shared("golden/tokenizer-cases.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected: Vec<u32> = serde_json::from_value(cases["reason_tag_ids"].clone()).unwrap();
    assert_eq!(reason_tag_ids(&tokenizer).unwrap(), expected);
}

#[test]
fn unpadded_batches_are_the_padded_ones_cut_to_the_longest_row() {
    let data = load("golden", "sft", Recipe::R2025, Kind::Chat, 128);
    let chunk = [3, 0, 7];
    let (padded, short) = (data.batch(&chunk, true), data.batch(&chunk, false));
    assert!(short.seq < padded.seq);
    for row in 0..chunk.len() {
        let cut = |v: &[i64]| v[row * padded.seq..row * padded.seq + short.seq].to_vec();
        assert_eq!(cut(&padded.x), short.x[row * short.seq..(row + 1) * short.seq]);
        assert_eq!(cut(&padded.y), short.y[row * short.seq..(row + 1) * short.seq]);
    }
    assert_eq!(padded.trained_tokens(), short.trained_tokens());
}

#[test]
fn order_depends_on_seed_and_epoch_alone() {
    let data = load("golden", "sft", Recipe::R2025, Kind::Chat, 128);
    let order = data.order(1337, 1, true);
    assert_eq!(order, data.order(1337, 1, true));
    assert_ne!(order, data.order(1337, 2, true));
    assert_ne!(order, data.order(1338, 1, true));
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, data.order(1337, 1, false));
}

#[test]
fn augmentations_have_the_rates_asked_for_and_depend_on_the_seed_alone() {
    let tokenizer = Tokenizer::open(shared("golden-2026")).unwrap();
    let line = r#"{"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}"#;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.jsonl");
    fs_err::write(&path, format!("{line}\n").repeat(2000)).unwrap();
    let options = SampleOptions::new(Recipe::R2026, Kind::Chat, 160);
    let data = Dataset::load(std::slice::from_ref(&path), &tokenizer, &options).unwrap();
    let count = |what: &str| {
        data.samples().filter(|s| tokenizer.decode(&s.ids, false).contains(what)).count()
    };
    // 0.2 of 2000, within five standard deviations
    let (system, think) = (count("<|im_start|>system"), count("<think>"));
    assert!(system.abs_diff(400) < 90, "{system}");
    assert!(think.abs_diff(400) < 90, "{think}");
    let again = Dataset::load(&[path], &tokenizer, &options).unwrap();
    assert!(data.samples().eq(again.samples()));
}

#[test]
fn packed_rows_hold_every_sample_once_with_its_own_targets() {
    for (folder, recipe, max_seq_len) in
        [("golden", Recipe::R2025, 128), ("golden-2026", Recipe::R2026, 160)]
    {
        for (stage, kind) in [("pretrain", Kind::Text), ("sft", Kind::Chat)] {
            let data = load(folder, stage, recipe, kind, max_seq_len);
            let order = data.order(7, 3, true);
            let rows = data.pack(&order);
            assert_eq!(rows, data.pack(&order), "the same order packs the same");
            let mut all: Vec<u32> = rows.iter().flatten().copied().collect();
            all.sort_unstable();
            assert_eq!(all, data.order(0, 0, false), "{folder}/{stage}: every sample once");
            assert!(rows.len() < order.len(), "{folder}/{stage}: {} rows", rows.len());

            let packed = data.packed_batch(rows.iter());
            assert_eq!((packed.batch, packed.seq), (1, packed.packed.iter().sum()), "no padding");
            let mut start = 0;
            for (&index, &length) in rows.iter().flatten().zip(&packed.packed) {
                let alone = data.batch(&[index], false);
                // the 2026 rows have a last position without a target
                assert_eq!(length, data.sample(index as usize).ids.len() - 1);
                assert_eq!(packed.x[start..start + length], alone.x[..length]);
                assert_eq!(packed.y[start..start + length], alone.y[..length]);
                assert_eq!(packed.mask[start..start + length], alone.mask[..length]);
                start += length;
            }
            assert_eq!(start, packed.seq);
            let one_by_one: usize =
                order.iter().map(|&i| data.batch(&[i], true).trained_tokens()).sum();
            assert_eq!(packed.trained_tokens(), one_by_one);
        }
    }
}
