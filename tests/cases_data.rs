//! Faults that people met in data files, each test named after its case.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use mmx_converters::tokenizer::Tokenizer;
use mmx_data::{Cache, Dataset, Kind, OnBad, Recipe, SampleOptions};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn shared(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(name)
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
    for (a, b) in dirty.samples().zip(clean.samples()) {
        assert_eq!(a.ids, b.ids);
        assert_eq!(a.spans, b.spans);
    }
    let bytes = fs_err::read(case("jsonl-bom-crlf-blank/dirty.jsonl")).unwrap();
    let physical: Vec<u32> = (1..)
        .zip(bytes.split(|&b| b == b'\n'))
        .filter(|(_, line)| line.contains(&b'{'))
        .map(|(number, _)| number)
        .collect();
    assert_eq!(dirty.samples().map(|s| s.line).collect::<Vec<_>>(), physical);
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
    assert_says(&error, &["data.jsonl", "line 2", "turn 2", "found user", "`on_bad` skip"]);

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
        assert_eq!(tokenizer.decode(&data.sample(i).ids, false), expected["text"]);
        assert_eq!(data.sample(i).ids.len(), length);
        assert_eq!(u64::from(data.sample(i).line), expected["line"]);
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
    assert_says(&error, &["only.jsonl", "expected at least one sample", "`max_seq_len`"]);
}

#[test]
fn dpo_truncated() {
    let expected = json("dpo-truncated/expect.json");
    for recipe in [Recipe::R2025, Recipe::R2026] {
        let options = SampleOptions::new(recipe, Kind::Preference, 64);
        let data = load("dpo-truncated/data.jsonl", &options).unwrap();
        assert_eq!(data.nothing_to_learn.iter().map(|(_, l)| *l).collect::<Vec<_>>(), [1]);
        assert_says(&data.warnings[0], &["1 sample is left out", "line 1"]);
        assert_eq!((data.len(), data.rejected(0).is_some()), (1, true));
        assert_eq!(data.sample(0).line, 2);
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
    assert!(data.sample(0).ids.starts_with(&train));
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
        // what mmx trains and evaluates on: no repeats
        let parts = (0..ranks).map(|rank| mmx_data::batches::Part { rank, ranks }.of(samples));
        let once: Vec<u32> = parts.flat_map(|part| order[part].to_vec()).collect();
        assert_eq!((once.len(), &once), (number("eval_total"), &order), "{case}");
    }
}

/// Token files in a cache's folder, each with the time it was made.
fn kept(folder: &std::path::Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let mut all: Vec<_> = fs_err::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.path(), entry.metadata().unwrap().modified().unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn tokens_are_kept_and_made_again_when_anything_they_depend_on_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, path) = (dir.path().join("cache"), dir.path().join("sft.jsonl"));
    fs_err::copy(shared("golden-2026/sft.jsonl"), &path).unwrap();
    let (cache, paths) = (Cache::at(&folder), [path.clone()]);
    let base = SampleOptions::new(Recipe::R2026, Kind::Chat, 160);
    let (old, new) = (tokenizer(), Tokenizer::open(shared("golden-2026")).unwrap());
    let load = |tokenizer: &Tokenizer, options: &SampleOptions| {
        let data = Dataset::load_cached(&paths, tokenizer, options, &cache).unwrap();
        let plain = Dataset::load(&paths, tokenizer, options).unwrap();
        assert!(data.samples().eq(plain.samples()), "{options:?}");
        assert_eq!(data.tokens(), plain.tokens());
        assert_eq!(data.warnings, plain.warnings);
        kept(&folder)
    };
    let first = load(&new, &base);
    assert_eq!(first.len(), 1);
    assert_eq!(load(&new, &base), first, "the second time it is there");
    let skip = SampleOptions { on_bad: OnBad::Skip, ..base.clone() };
    assert_eq!(load(&new, &skip), first, "what is done about faults changes no token");

    let mut files = 1;
    let mut grows = |tokenizer: &Tokenizer, options: &SampleOptions| {
        files += 1;
        assert_eq!(load(tokenizer, options).len(), files, "{options:?}");
    };
    grows(&old, &base);
    grows(&new, &SampleOptions { recipe: Recipe::R2025, ..base.clone() });
    grows(&new, &SampleOptions { max_seq_len: 159, ..base.clone() });
    grows(&new, &SampleOptions { system_ratio: 0.5, ..base.clone() });
    grows(&new, &SampleOptions { empty_think_ratio: 0.5, ..base.clone() });
    grows(&new, &SampleOptions { seed: 2, ..base.clone() });
    let other_template = dir.path().join("tokenizer");
    new.save(&other_template).unwrap();
    let template = other_template.join("chat_template.jinja");
    let source = fs_err::read_to_string(&template).unwrap();
    fs_err::write(&template, format!("{{# changed #}}{source}")).unwrap();
    grows(&Tokenizer::open(&other_template).unwrap(), &base);
    let text = fs_err::read_to_string(&path).unwrap();
    fs_err::write(&path, text.trim_end()).unwrap();
    grows(&new, &base);
}

/// No folder, no right to write there, no room: training goes on without a cache.
#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    let dir = tempfile::tempdir().unwrap();
    let in_the_way = dir.path().join("file");
    fs_err::write(&in_the_way, "no folder").unwrap();
    let (paths, options) = ([shared("golden/sft.jsonl")], options(Kind::Chat, 128));
    let plain = Dataset::load(&paths, &tokenizer(), &options).unwrap();
    for folder in [in_the_way.join("tokens"), PathBuf::from("/proc/mmx-tokens"), "/sys".into()] {
        let cache = Cache::at(&folder);
        let data = Dataset::load_cached(&paths, &tokenizer(), &options, &cache).unwrap();
        assert!(data.samples().eq(plain.samples()), "{}", folder.display());
        assert_says(&data.warnings[0], &["sft.jsonl are not kept", folder.to_str().unwrap()]);
        assert_eq!(data.warnings[1..], plain.warnings);
    }
}

#[test]
fn old_tokens_are_removed_beyond_the_limit_unless_they_are_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [shared("golden/sft.jsonl")];
    let load = |max_seq_len: usize, limit: u64| {
        let cache = Cache::at(dir.path()).with_limit(limit);
        let options = options(Kind::Chat, max_seq_len);
        Dataset::load_cached(&paths, &tokenizer(), &options, &cache).unwrap()
    };
    let names = || kept(dir.path()).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    // which file belongs to which length, none of them in use
    let mut made = std::collections::BTreeMap::new();
    for max_seq_len in [128, 127, 126] {
        let before = names();
        drop(load(max_seq_len, u64::MAX));
        let new = names().into_iter().find(|path| !before.contains(path)).unwrap();
        made.insert(max_seq_len, new);
    }
    let sizes = |lengths: &[usize]| -> u64 {
        lengths.iter().map(|n| fs_err::metadata(&made[n]).unwrap().len()).sum()
    };
    let room_for_two = sizes(&[128, 127]) + sizes(&[126]) / 2;
    drop(load(128, u64::MAX)); // used again: 127 is the oldest now
    let abandoned = dir.path().join(".mmx-killed.part");
    let file = fs_err::File::create(&abandoned).unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    file.file().set_modified(long_ago).unwrap();
    drop(file);
    let in_use = load(126, u64::MAX);
    drop(load(125, room_for_two));
    let left = names();
    assert!(!left.contains(&made[&127]) && !left.contains(&made[&128]), "{left:?}");
    assert!(left.contains(&made[&126]) && left.len() == 2, "{left:?}");
    // a limit below any file: what is read stays, and what was just made
    drop(load(124, 1));
    assert!(names().contains(&made[&126]) && names().len() == 2, "{:?}", names());
    assert_eq!(in_use.len(), in_use.samples().count());
    drop(in_use);
    drop(load(123, 1));
    assert_eq!(names().len(), 1);
}

#[test]
fn a_damaged_token_file_is_recognised_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, paths) = (Cache::at(dir.path()), [shared("golden/dpo.jsonl")]);
    let options = options(Kind::Preference, 128);
    let load = || Dataset::load_cached(&paths, &tokenizer(), &options, &cache).unwrap();
    let good = load();
    let (file, _) = kept(dir.path()).remove(0);
    let whole = fs_err::read(&file).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        bytes
    };
    let damages = [
        whole[..whole.len() / 2].to_vec(),
        Vec::new(),
        flipped(20),
        flipped(60),
        flipped(whole.len() - 30),
        flipped(whole.len() - 50),
        flipped(whole.len() - 1),
    ];
    for damaged in damages {
        // a new file, since the old one is mapped
        fs_err::remove_file(&file).unwrap();
        fs_err::write(&file, damaged).unwrap();
        let again = load();
        assert_says(&again.warnings[0], &["damaged", "dpo.jsonl are made again"]);
        assert!(again.samples().eq(good.samples()));
        assert!((0..good.len()).all(|i| again.rejected(i) == good.rejected(i)));
        assert_eq!(fs_err::read(&file).unwrap(), whole, "the same file again");
        assert_eq!(load().warnings, good.warnings);
    }
}

#[test]
fn faults_and_marks_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, path) = (Cache::at(dir.path().join("cache")), dir.path().join("x.jsonl"));
    let lines = "{\"text\": \"one\"}\n{\"no\": 1}\n{\"text\": \"<|im_end|> two\"}\n[]\n";
    fs_err::write(&path, lines).unwrap();
    let (paths, fail) = ([path], options(Kind::Text, 64));
    let skip = SampleOptions { on_bad: OnBad::Skip, ..fail.clone() };
    let load = |options: &SampleOptions| {
        Dataset::load_cached(&paths, &tokenizer(), options, &cache).map_err(|e| e.to_string())
    };
    let (first, second) = (load(&skip).unwrap(), load(&skip).unwrap());
    assert_eq!(first.skipped.iter().map(|(_, f)| f.line).collect::<Vec<_>>(), [2, 4]);
    assert_eq!((&first.skipped, &first.warnings), (&second.skipped, &second.warnings));
    assert_eq!(first.warnings.iter().filter(|w| w.contains("control token")).count(), 1);
    for _ in 0..2 {
        let error = load(&fail).unwrap_err();
        assert_says(&error, &["x.jsonl: line 2", "1 more faulty"]);
    }
}

#[test]
fn packed_files_give_the_samples_and_faults_of_the_plain_one() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let mut plain = fs_err::read(shared("golden/pretrain.jsonl")).unwrap();
    plain.extend(b"\n{\"text\": 1}\n");
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let (head, tail) = plain.split_at(plain.len() / 3);
    let files = [
        ("plain.jsonl", plain.clone()),
        ("gzip", gzip(&plain)),
        ("members.gz", [gzip(head), gzip(tail)].concat()),
        ("zstd", zstd::encode_all(&plain[..], 1).unwrap()),
    ];
    let options =
        SampleOptions { on_bad: OnBad::Skip, ..SampleOptions::new(Recipe::R2026, Kind::Text, 64) };
    let load = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs_err::write(&path, bytes).unwrap();
        Dataset::load(&[path], &tokenizer(), &options).map_err(|e| e.to_string())
    };
    let whole = load(files[0].0, &files[0].1).unwrap();
    assert_eq!(whole.skipped.len(), 1);
    for (name, bytes) in &files[1..] {
        let data = load(name, bytes).unwrap();
        assert!(data.samples().eq(whole.samples()), "{name}");
        assert_eq!(data.skipped[0].1, whole.skipped[0].1, "{name}");
        assert!(data.skipped[0].0.ends_with(name));
        let error = load("cut", &bytes[..bytes.len() - 9]).unwrap_err();
        assert_says(&error, &["cut: expected a whole", "archive, found one that is cut off"]);
    }
    let mut damaged = files[1].1.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 40].fill(0xff);
    assert_says(&load("bad", &damaged).unwrap_err(), &["bad: expected a gzip archive"]);
}

#[test]
fn batches_from_kept_tokens_go_on_in_the_middle_of_an_epoch() {
    use mmx_data::batches::{Batches, Ordered, Packed};
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let paths = [shared("golden/sft.jsonl"), shared("golden/reason.jsonl")];
    let options = options(Kind::Chat, 128);
    let plain = Dataset::load(&paths, &tokenizer(), &options).unwrap();
    let all = |source: &mut dyn Batches| {
        let of = |source: &mut dyn Batches, epoch| {
            let count = source.micro_steps(epoch);
            (0..count).map(|index| source.batch(epoch, index).unwrap()).collect::<Vec<_>>()
        };
        [of(source, 0), of(source, 1)]
    };
    let unbroken = [
        all(&mut Packed::new(&plain, &paths, 7, true, 2)),
        all(&mut Ordered::new(&plain, &paths, 7, true, 2, false)),
    ];
    for time in 0..2 {
        let data = Dataset::load_cached(&paths, &tokenizer(), &options, &cache).unwrap();
        let packed: &mut dyn Batches = &mut Packed::new(&data, &paths, 7, true, 2);
        let ordered: &mut dyn Batches = &mut Ordered::new(&data, &paths, 7, true, 2, false);
        for (source, unbroken) in [packed, ordered].into_iter().zip(&unbroken) {
            // at once in the middle of the second epoch, as a resumed run begins
            let middle = unbroken[1].len() / 2;
            for (index, batch) in unbroken[1].iter().enumerate().skip(middle) {
                assert_eq!(&source.batch(1, index).unwrap(), batch, "time {time}, {index}");
            }
            assert_eq!(&all(source), unbroken);
        }
        assert_eq!(kept(dir.path()).len(), 2, "time {time}");
    }
}

#[test]
fn several_may_build_the_same_tokens_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, paths) = (Cache::at(dir.path()), [shared("golden/sft.jsonl")]);
    let options = options(Kind::Chat, 128);
    let plain = Dataset::load(&paths, &tokenizer(), &options).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let data = Dataset::load_cached(&paths, &tokenizer(), &options, &cache).unwrap();
                assert!(data.warnings == plain.warnings && data.samples().eq(plain.samples()));
            });
        }
    });
    assert_eq!(kept(dir.path()).len(), 1, "and nothing half done beside it");
}
