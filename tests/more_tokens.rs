//! A model whose tokenizer got more entries gets rows for them: the mean of their pieces' rows; all
//! other rows, and what is computed of old ids, stay as they were, in every format.

mod common;

use std::path::{Path, PathBuf};

use common::{copy, mmx_error, mmx_json, mmx_ok, shared, text};
use mmx_converters::Model;
use mmx_converters::arch::Role;
use mmx_converters::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// A folder of the golden model with the golden tokenizer, its head its own where `untied`.
fn model(dir: &Path, family: &str, untied: bool) -> PathBuf {
    let folder = dir.join(format!("{family}-{untied}"));
    let golden = shared("golden").join(family);
    if untied {
        // a tied model as another one, whose head is trained apart afterwards
        let data = shared("golden/pretrain.jsonl");
        copy(&golden, &folder);
        let path = folder.join("config.json");
        let mut config: Value =
            serde_json::from_slice(&fs_err::read(&path).expect("a file")).expect("JSON");
        config["tie_word_embeddings"] = json!(false);
        fs_err::write(&path, config.to_string()).expect("a file");
        let new = dir.join("new-untied");
        let tokenizer = shared("golden");
        let args = ["--tokenizer", text(&tokenizer), "--data", text(&data), "--out", text(&new)];
        let begin = ["train", "pretrain", "--config", text(&path), "--max-steps", "1"];
        let short =
            ["--max-seq-len", "32", "--batch-size", "2", "--device", "cpu", "--dtype", "f32"];
        mmx_json(&[&begin[..], &args, &short].concat());
        return new.join("checkpoint-000001");
    }
    copy(&golden, &folder);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs_err::copy(shared("golden").join(name), folder.join(name)).expect("copied");
    }
    folder
}

/// The golden tokenizer with more entries: 528, whose rows are computed by the kernel of the 512 (groups of
/// sixteen).
fn extended(dir: &Path) -> PathBuf {
    let (text_file, out) = (dir.join("more.txt"), dir.join("tok-more"));
    let line = "transformers transform the transformation of 注意力 机制 注意力机制 🙂🙂🙂\n";
    fs_err::write(&text_file, line.repeat(50)).expect("written");
    let old = shared("golden");
    let args = ["tokenizer", "extend", text(&old), "--data", text(&text_file), "--add", "18"];
    mmx_ok(&[&args[..], &["--out", text(&out)]].concat());
    out
}

/// The rows of a weight, float32.
fn rows(model: &Model, role: Role) -> Option<Vec<Vec<f32>>> {
    let weight = model.weights().iter().find(|weight| weight.role == role)?;
    let values = model.weight_f32(weight).expect("values");
    Some(values.chunks(weight.shape[1]).map(<[f32]>::to_vec).collect())
}

/// Checks every row of `found` against the model it was made of.
fn check(old: &Model, found: &Model, tokenizers: (&Tokenizer, &Tokenizer)) {
    let (before, after) = tokenizers;
    for role in [Role::Embedding, Role::Head] {
        let (Some(was), Some(now)) = (rows(old, role), rows(found, role)) else {
            assert_eq!(role, Role::Head, "a tied model has no head of its own");
            continue;
        };
        assert_eq!(now.len(), was.len().max(after.vocab_size()));
        let mut new = 0;
        for id in 0..now.len() as u32 {
            let i = id as usize;
            if !after.has_token(id) || before.has_token(id) {
                assert!(i < was.len() && now[i] == was[i], "row {i} stays");
                continue;
            }
            new += 1;
            let bytes = after.token_bytes(id);
            let Ok(text) = std::str::from_utf8(bytes) else { continue };
            let pieces = before.encode_plain(text).expect("ids");
            assert!(pieces.len() > 1, "{text:?} is new");
            for (column, value) in now[i].iter().enumerate() {
                let sum: f64 = pieces.iter().map(|p| f64::from(was[*p as usize][column])).sum();
                assert_eq!(*value, (sum / pieces.len() as f64) as f32, "row {i}, {text:?}");
            }
        }
        assert_eq!(new, 18);
    }
}

fn logits(dir: &Path, model: &Path, ids: &[u32]) -> Vec<Vec<f32>> {
    let (ids_file, out) = (dir.join("ids.json"), dir.join("logits.safetensors"));
    fs_err::write(&ids_file, format!("{ids:?}")).expect("written");
    let args = ["logits", text(model), "--ids", text(&ids_file), "--out", text(&out)];
    let shape = mmx_json(&[&args[..], &["--engine", "ggml"]].concat())["shape"].clone();
    let vocab = shape[1].as_u64().expect("a number") as usize;
    let bytes = fs_err::read(&out).expect("logits");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let values: Vec<f32> = bytes[8 + header..]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")))
        .collect();
    values.chunks(vocab).map(<[f32]>::to_vec).collect()
}

#[test]
fn an_import_with_a_larger_tokenizer_keeps_old_rows_and_logits_and_exports() {
    let dir = tempfile::tempdir().expect("a folder");
    let tokenizer = extended(dir.path());
    let (before, after) =
        (Tokenizer::open(shared("golden")).unwrap(), Tokenizer::open(&tokenizer).unwrap());
    let sample = before.encode("the cat and the transformation of words").expect("ids");
    for family in ["minimind2", "minimind3-moe"] {
        let from = model(dir.path(), family, false);
        let out = dir.path().join(format!("{family}-grown"));
        mmx_ok(&["import", text(&from), "--tokenizer", text(&tokenizer), "--out", text(&out)]);
        let (old, new) = (Model::open(&from).unwrap(), Model::open(&out).unwrap());
        check(&old, &new, (&before, &after));
        // what is computed of old ids is the same number by number, in the runner and as a GGUF
        let files = dir.path().join(format!("{family}-files"));
        mmx_ok(&["export", text(&out), "--out", text(&files), "--name", "m", "--gguf", "f32"]);
        let was = logits(dir.path(), &from, &sample);
        let mut paths =
            fs_err::read_dir(&files).expect("files").map(|file| file.expect("a file").path());
        let gguf = paths.find(|path| path.extension().is_some_and(|e| e == "gguf"));
        for form in [&out, &gguf.expect("a GGUF")] {
            let now = logits(dir.path(), form, &sample);
            for (was, now) in was.iter().zip(&now) {
                let old = 0..before.vocab_size();
                assert!(now[old.clone()] == was[old], "{family} {}", form.display());
            }
        }
        // a new token counts: the text is shorter, and each of its ids has a row
        let shorter = after.encode("the cat and the transformation of words").expect("ids");
        assert!(shorter.len() < sample.len());
        assert!(logits(dir.path(), &out, &shorter).iter().flatten().all(|x| x.is_finite()));
    }
}

#[test]
fn training_with_a_larger_tokenizer_begins_with_the_mean_of_the_pieces() {
    if !common::TRAINS {
        return; // the runner's half is tested above
    }
    let dir = tempfile::tempdir().expect("a folder");
    let tokenizer = extended(dir.path());
    let data = shared("golden/pretrain.jsonl");
    let (before, after) =
        (Tokenizer::open(shared("golden")).unwrap(), Tokenizer::open(&tokenizer).unwrap());
    for untied in [false, true] {
        let from = model(dir.path(), "minimind2", untied);
        let out = dir.path().join(format!("run-{untied}"));
        let begin = ["train", "pretrain", "--from", text(&from), "--tokenizer", text(&tokenizer)];
        let rest =
            ["--data", text(&data), "--out", text(&out), "--max-steps", "1", "--lr", "1e-30"];
        let short =
            ["--max-seq-len", "32", "--batch-size", "2", "--device", "cpu", "--dtype", "f32"];
        mmx_json(&[&begin[..], &rest, &short, &["--weight-decay", "0"]].concat());
        let (old, new) = (
            Model::open(&from).unwrap(),
            Model::open(out.join("checkpoint-000001")).unwrap(), // a step too small to be seen
        );
        check(&old, &new, (&before, &after));
    }
}

#[test]
fn another_tokenizer_that_has_more_entries_is_refused_by_the_first_that_differs() {
    let dir = tempfile::tempdir().expect("a folder");
    let from = model(dir.path(), "minimind2", false);
    let other = shared("golden-2026");
    let out = dir.path().join("out");
    let error =
        mmx_error(&["import", text(&from), "--tokenizer", text(&other), "--out", text(&out)]);
    assert!(error.contains("id ") && error.contains("as in the model's tokenizer"), "{error}");
}
