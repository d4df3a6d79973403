//! GGUFs with tokenizers of others: the ids are llama.cpp's, the model runs, and what is not known is refused by its
//! name. Real vocabularies are compared by the peers (scripts/peers/vocabularies.py).

mod common;

use std::path::{Path, PathBuf};

use common::{mmx_error, mmx_json, shared, text};
use mmx_converters::gguf::{self, Gguf, Metadata, TensorSpec, Value as Key};
use serde_json::{Value, json};

/// What the expressions tell apart: contractions, cases, digits, line ends, blanks, scripts, marks.
const TEXT: &str = "I'll PAY 12345 €, don'T née  Ünlü_x\n\n\t  你好，世界 ١٢٣ 3.14!!\r\n  HelloWorld's/ 😀 e\u{301} ";

/// A golden model as a GGUF whose keys of the tokenizer are changed.
fn model(dir: &Path, name: &str, change: impl FnOnce(&mut Vec<(String, Key)>)) -> PathBuf {
    let out = dir.join("export");
    let source = out.join("m-131K-f32.gguf");
    if !source.exists() {
        let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
        let args = ["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "m"];
        mmx_json(&[&args[..], &["--gguf", "f32", "--out", text(&out)]].concat());
    }
    let file = Gguf::open(&source).expect("a GGUF");
    let mut keys: Vec<(String, Key)> =
        file.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    change(&mut keys);
    let mut metadata = Metadata::new();
    for (key, value) in keys {
        metadata.set(key, value);
    }
    let tensors = file.tensors();
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), shape: t.shape.clone(), ty: t.ty })
        .collect();
    let path = dir.join(format!("{name}.gguf"));
    let data = |i: usize| Ok(file.data(&tensors[i]).to_vec().into());
    gguf::write(&path, &metadata, &specs, data).expect("written");
    path
}

fn set(keys: &mut Vec<(String, Key)>, name: &str, value: Key) {
    let key = format!("tokenizer.ggml.{name}");
    keys.retain(|(own, _)| *own != key);
    keys.push((key, value));
}

/// Fails unless llama.cpp's tokenizer gives the same ids for the text and the corpus, and unless the model runs.
fn assert_as_llama_cpp(dir: &Path, model: &Path) {
    let file = dir.join("text.txt");
    fs_err::write(&file, TEXT).expect("a file");
    for more in [&["--text", text(&file)][..], &[]] {
        let args =
            [&["verify", text(model), text(model), "--engine", "llama.cpp"][..], more].concat();
        let report = mmx_json(&args);
        let rows = report["rows"].as_array().expect("rows");
        assert!(!rows.is_empty() && rows.iter().all(|row| row["tokens_equal"] == true), "{report}");
    }
    let run = mmx_json(&["run", text(model), "-p", "Hello", "-n", "3", "--greedy", "--raw"]);
    assert!(run["prompt_tokens"].as_u64().expect("a number") > 0);
    let said = mmx_json(&["run", text(model), "-p", "Hello", "-n", "3", "--greedy"]);
    assert!(said["prompt_tokens"].as_u64() > run["prompt_tokens"].as_u64(), "a chat's template");
}

#[test]
fn ids_of_other_pre_tokenizers_are_llama_cpps() {
    let dir = tempfile::tempdir().expect("a folder");
    for pre in [
        "llama-bpe",
        "qwen2",
        "qwen35",
        "gpt-4o",
        "tekken",
        "starcoder",
        "smollm",
        "command-r",
        "smaug-bpe",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "mpt",
        "olmo",
    ] {
        let model = model(dir.path(), pre, |keys| set(keys, "pre", Key::String(pre.into())));
        assert_as_llama_cpp(dir.path(), &model);
    }
}

#[test]
fn sentencepieces_bpe_has_llama_cpps_ids() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut tokens: Vec<(String, i32)> =
        vec![("<unk>".into(), 2), ("<s>".into(), 3), ("</s>".into(), 3)];
    tokens.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 6)));
    let pieces = "▁ e t a o i n h s r d l u H W P A Y I ' , ▁t ▁a th he in er ▁the an re ll or ld lo el ▁d ▁W ▁H \
        ▁He Hell ▁Hell ▁Hello 你 好 世 界 你好 世界 ， 1 2 3 4 5 12 123 ▁▁ ▁▁▁ ne ée on ▁do é Ü ü";
    tokens.extend(pieces.split(' ').filter(|p| !p.is_empty()).map(|p| (p.to_owned(), 1)));
    tokens.push(("<|x|>".into(), 4));
    while tokens.len() < 512 {
        tokens.push((format!("[PAD{}]", tokens.len()), 5));
    }
    let scores = Key::F32s((0..tokens.len()).map(|i| -(i as f32) / 7.0).collect());
    for (name, prefix, bos) in
        [("with", Some(true), None), ("without", Some(false), Some(false)), ("usual", None, None)]
    {
        let model = model(dir.path(), name, |keys| {
            keys.retain(|(key, _)| {
                !["merges", "pre", "add_bos_token", "add_space_prefix"]
                    .iter()
                    .any(|end| key.ends_with(end))
            });
            let template = "{% for m in messages %}<s>[INST] {{ m.content }} [/INST]{% endfor %}";
            keys.retain(|(key, _)| !key.starts_with("tokenizer.chat_template"));
            keys.push(("tokenizer.chat_template".into(), Key::String(template.into())));
            set(keys, "model", Key::String("llama".into()));
            set(keys, "tokens", Key::Strings(tokens.iter().map(|t| t.0.clone()).collect()));
            set(keys, "token_type", Key::I32s(tokens.iter().map(|t| t.1).collect()));
            set(keys, "scores", scores.clone());
            for (key, id) in [("bos", 1), ("eos", 2), ("eot", 2), ("unknown", 0), ("padding", 0)] {
                set(keys, &format!("{key}_token_id"), Key::U32(id));
            }
            for (key, value) in [("add_space_prefix", prefix), ("add_bos_token", bos)] {
                if let Some(value) = value {
                    set(keys, key, Key::Bool(value));
                }
            }
        });
        assert_as_llama_cpp(dir.path(), &model);
        let shown = mmx_json(&["tokenizer", "show", text(&model), "Hello 世界"]);
        let begins = shown["ids"][0] == 1;
        assert_eq!(
            begins,
            bos.is_none(),
            "bos comes first unless the file says otherwise: {shown}"
        );
        let error = mmx_error(&["import", text(&model), "--out", text(&dir.path().join("back"))]);
        assert!(
            error.contains("SentencePiece's BPE is read from a GGUF, and not written"),
            "{error}"
        );
    }
}

/// Transformers folders as Qwen and Meta publish them: the folder's tokenizer, the runner's and llama.cpp's agree.
#[test]
fn expressions_of_a_folder_go_into_a_gguf_under_their_names() {
    let begin = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}";
    let end = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    for (name, digits, normalizer, whole) in
        [("qwen2", "", json!({"type": "NFC"}), false), ("llama-bpe", "{1,3}", json!(null), true)]
    {
        let dir = tempfile::tempdir().expect("a folder");
        let (model, tokenizer) = (shared("golden/minimind3"), shared("golden"));
        let args = ["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "m"];
        mmx_json(&[&args[..], &["--hf", "f32", "--out", text(dir.path())]].concat());
        let folder = dir.path().join("hf-f32");
        let path = folder.join("tokenizer.json");
        let json = fs_err::read(&path).expect("a tokenizer");
        let mut json: Value = serde_json::from_slice(&json).expect("JSON");
        json["normalizer"] = normalizer;
        json["model"]["ignore_merges"] = json!(whole);
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": format!("{begin}{digits}{end}")},
             "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        ]});
        fs_err::write(&path, json.to_string()).expect("written");
        let out = dir.path().join("gguf");
        let made = mmx_json(&[
            "export",
            text(&folder),
            "--name",
            "m",
            "--gguf",
            "f32",
            "--out",
            text(&out),
        ]);
        let gguf = made["files"][0]["path"].as_str().expect("a path");
        let pre = Gguf::open(gguf)
            .expect("a GGUF")
            .metadata()
            .string("tokenizer.ggml.pre")
            .map(str::to_owned);
        assert_eq!(pre.as_deref(), Some(name));
        let file = dir.path().join("text.txt");
        fs_err::write(&file, TEXT.replace("e\u{301}", "")).expect("a file");
        let report = mmx_json(&["verify", text(&folder), gguf, "--text", text(&file)]);
        let rows = report["rows"].as_array().expect("rows");
        assert!(rows.len() >= 2 && rows.iter().all(|row| row["tokens_equal"] == true), "{report}");
    }
}

#[test]
fn tokenizers_that_are_not_known_are_refused_by_their_names() {
    let dir = tempfile::tempdir().expect("a folder");
    for (key, value) in [("pre", "falcon"), ("pre", "default"), ("model", "t5"), ("model", "bert")]
    {
        let model = model(dir.path(), value, |keys| set(keys, key, Key::String(value.into())));
        let error = mmx_error(&["tokenizer", "show", text(&model), "x"]);
        assert!(
            error.contains(&format!("tokenizer.ggml.{key}")) && error.contains(value),
            "{error}"
        );
    }
}
