//! `mmx run` and `mmx bench` through the binary: the fields of their JSON, the text as it streams, where it ends,
//! and the ids against the other engines.

mod common;

use std::path::{Path, PathBuf};

use std::io::Read;
use std::process::{Command, Stdio};

use common::{GOLDEN, RECITED, mmx_error, mmx_json, mmx_ok, reciting, shared, text};
use mmx_converters::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// What arrives on stdout, in the pieces it was written in (a pipe keeps them apart while the reader is quick).
fn streamed(args: &[&str]) -> Vec<Vec<u8>> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mmx"))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("mmx starts");
    let mut out = child.stdout.take().expect("a pipe");
    let (mut pieces, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match out.read(&mut buffer).expect("readable") {
            0 => break,
            n => pieces.push(buffer[..n].to_vec()),
        }
    }
    assert!(child.wait().expect("an end").success(), "mmx {args:?}");
    pieces
}

#[test]
fn json_has_the_fields_of_the_contract() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let report = mmx_json(&["run", text(&model), "-p", "hello", "--greedy"]);
    assert_eq!(report["text"], RECITED);
    assert_eq!(report["finish"], "stop");
    let ids = report["ids"].as_array().expect("ids");
    let expected = Tokenizer::open(&model).and_then(|t| t.encode(RECITED)).expect("ids");
    assert_eq!(
        ids.iter().filter_map(Value::as_u64).collect::<Vec<_>>(),
        expected.iter().map(|&i| i.into()).collect::<Vec<u64>>()
    );
    assert_eq!(report["tokens"], expected.len());
    // the template adds the system turn of 2025
    assert!(report["prompt_tokens"].as_u64().is_some_and(|n| n > 20), "{report}");
    for speed in ["prefill_tokens_per_s", "decode_tokens_per_s"] {
        assert!(report[speed].as_f64().is_some_and(|x| x > 0.0), "{speed}: {report}");
    }
    let raw = mmx_json(&["run", text(&model), "-p", "好", "--raw", "--greedy", "-n", "3"]);
    assert_eq!((&raw["prompt_tokens"], &raw["tokens"]), (&json!(3), &json!(3)), "{raw}");
    assert_eq!(raw["finish"], "length");
    let words = mmx_ok(&["run", text(&model), "-p", "x", "--greedy", "--ids"]);
    assert_eq!(words, format!("{RECITED}\n{expected:?}\n"));
}

/// Each flush ends a character: whatever a reader has got so far is UTF-8, though single tokens are not.
#[test]
fn chinese_and_emoji_stream_in_whole_characters() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let pieces = streamed(&["run", text(&model), "-p", "x", "--greedy"]);
    let mut all = String::new();
    for piece in &pieces {
        all.push_str(std::str::from_utf8(piece).expect("a piece is UTF-8"));
    }
    assert_eq!(all, format!("{RECITED}\n"));
    // a model that says anything, broken characters too: what is broken arrives as U+FFFD
    let (golden, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let args =
        ["export", text(&golden), "--tokenizer", text(&tokenizer), "--gguf", "f32", "--name", "m"];
    mmx_json(&[&args[..], &["--out", text(dir.path())]].concat());
    let gguf = dir.path().join("m-131K-f32.gguf");
    for seed in ["1", "2", "3"] {
        let args = [
            "run",
            text(&gguf),
            "-p",
            "好😀",
            "--raw",
            "--temperature",
            "3",
            "--seed",
            seed,
            "-n",
            "150",
        ];
        let pieces = streamed(&args);
        for piece in &pieces {
            assert!(std::str::from_utf8(piece).is_ok(), "seed {seed}: {piece:?}");
        }
        let whole = mmx_json(&args);
        let whole = format!("{}\n", whole["text"].as_str().expect("a text"));
        assert_eq!(pieces.concat(), whole.as_bytes(), "seed {seed}: streamed and not");
    }
}

/// Case stop-split, in the binary: what may begin a stop text is held back, and the stop text is never shown.
#[test]
fn a_stop_text_over_several_tokens_is_not_shown() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let run = |stop: &[&str]| {
        let args = ["run", text(&model), "-p", "x", "--greedy"];
        let stops = stop.iter().flat_map(|s| ["--stop", s]);
        mmx_json(&args.into_iter().chain(stops).collect::<Vec<_>>())
    };
    for (stop, shown) in [
        (&["中谢"][..], "好😀"),
        (&["谢验,OK!", ",O"], "好😀中谢验"),
        (&["nothing"], RECITED),
        (&["OKO"], RECITED),
    ] {
        let report = run(stop);
        assert_eq!(
            (&report["text"], &report["finish"]),
            (&json!(shown), &json!("stop")),
            "{stop:?}"
        );
        let args = ["run", text(&model), "-p", "x", "--greedy", "--stop", stop[0]];
        let streamed = String::from_utf8(streamed(&args).concat()).expect("UTF-8");
        let alone = run(&stop[..1]);
        assert_eq!(streamed.strip_suffix('\n'), alone["text"].as_str(), "{stop:?}");
    }
}

/// Case eos-union: config.json ends with 0, the tokenizer with 2; both end the text and neither is in it, from the
/// folder, from its exports, and from the GGUF.
#[test]
fn the_end_tokens_of_config_and_tokenizer_both_end_the_text() {
    let case = shared("cases/files/eos-union");
    let config: Value =
        serde_json::from_str(&fs_err::read_to_string(case.join("config.json")).expect("a case"))
            .expect("JSON");
    assert_eq!(config["eos_token_id"], 0);
    for end in [0, 2] {
        let dir = tempfile::tempdir().expect("a folder");
        let settings = case.join("tokenizer_config.json");
        let model = reciting(dir.path(), Some(&settings), config["eos_token_id"].clone(), end);
        let out = dir.path().join("out");
        mmx_json(&[
            "export",
            text(&model),
            "--hf",
            "f32",
            "--gguf",
            "f16",
            "--name",
            "m",
            "--out",
            text(&out),
        ]);
        for form in [model, out.join("hf-f32"), gguf_in(&out)] {
            let report = mmx_json(&["run", text(&form), "-p", "x", "--greedy"]);
            let what = format!("{} ending in {end}", form.display());
            assert_eq!(report["text"], RECITED, "{what}");
            assert_eq!(report["finish"], "stop", "{what}");
            let ids = report["ids"].as_array().expect("ids");
            assert!(!ids.contains(&json!(0)) && !ids.contains(&json!(2)), "{what}: {ids:?}");
        }
        for name in ["config.json", "generation_config.json"] {
            let written = fs_err::read_to_string(out.join("hf-f32").join(name)).expect("a file");
            let written: Value = serde_json::from_str(&written).expect("JSON");
            assert_eq!(written["eos_token_id"], json!([2, 0]), "{name}");
        }
    }
}

fn gguf_in(dir: &Path) -> PathBuf {
    let mut files = fs_err::read_dir(dir).expect("a folder").flatten().map(|entry| entry.path());
    files.find(|p| p.extension().is_some_and(|e| e == "gguf")).expect("a GGUF")
}

/// Case tok-vocab-padding: the embedding's rows 259..271 have no token; not even a hot sampler draws one, from the
/// folder or the GGUF.
#[test]
fn rows_without_a_token_are_never_drawn() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = shared("cases/files/tok-vocab-padding");
    mmx_json(&["export", text(&folder), "--gguf", "f16", "--name", "m", "--out", text(dir.path())]);
    let gguf = gguf_in(dir.path());
    for model in [folder, gguf] {
        for seed in ["1", "2"] {
            let report = mmx_json(&[
                "run",
                text(&model),
                "-p",
                "a",
                "--raw",
                "-n",
                "250",
                "--temperature",
                "50",
                "--top-k",
                "0",
                "--top-p",
                "1",
                "--seed",
                seed,
            ]);
            let ids: Vec<u64> = serde_json::from_value(report["ids"].clone()).expect("ids");
            assert!(!ids.is_empty() && ids.iter().all(|&id| id < 259), "seed {seed}: {ids:?}");
        }
    }
}

/// The seven golden models, each as f32 GGUF with its tokenizer: the runner's greedy ids are those of llama.cpp on the
/// same file and, where libtorch is there, of the model in tch. The cache is float32 as theirs is: rounded keys may
/// send a nearly tied router to another expert. The others may choose a row of the embedding that has no token, which
/// `run` never does: ids are compared up to there.
#[test]
fn greedy_ids_of_the_golden_models_equal_the_other_engines() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in GOLDEN {
        let (model, tokenizer) = (shared(name), shared(name.split('/').next().expect("a folder")));
        let out = dir.path().join(name);
        let args =
            ["export", text(&model), "--tokenizer", text(&tokenizer), "--gguf", "f32", "--out"];
        mmx_json(&[&args[..], &[text(&out)]].concat());
        let gguf = gguf_in(&out);
        let tokenizer = Tokenizer::open(&tokenizer).expect("a tokenizer");
        let judge = mmx_ggml::llama::LlamaModel::open(&gguf).expect("a GGUF for llama.cpp");
        #[cfg(feature = "train")]
        let native = {
            let open = mmx_converters::Model::open(&model).expect("a golden model");
            mmx::model::Model::from_model(&open, tch::Device::Cpu, tch::Kind::Float).expect("tch")
        };
        let mut compared = 0;
        for prompt in ["Translate 一下: apples", "好😀", "3 apples", "a", "一下"] {
            let args = ["run", text(&gguf), "-p", prompt, "--raw", "--greedy", "-n", "40"];
            let report = mmx_json(&[&args[..], &["--kv", "f32"]].concat());
            let found: Vec<u32> = serde_json::from_value(report["ids"].clone()).expect("ids");
            let ids = tokenizer.encode(prompt).expect("ids");
            assert_eq!(report["prompt_tokens"], ids.len(), "{name}");
            let mut others = vec![("llama.cpp", judge.greedy(&ids, 40, 1).expect("greedy"))];
            #[cfg(feature = "train")]
            others.push(("tch", native.greedy(&ids, 40).expect("greedy")));
            for (engine, expected) in &mut others {
                let known = |id: &u32| tokenizer.has_token(*id) && *id != 2;
                let end = expected.iter().position(|id| !known(id)).unwrap_or(expected.len());
                expected.truncate(end.min(found.len()));
                assert_eq!(found[..expected.len()], expected[..], "{name}, {prompt}: {engine}");
                compared += expected.len();
            }
        }
        assert!(compared >= 40, "{name}: only {compared} ids could be compared");
    }
}

#[test]
fn a_model_without_a_tokenizer_or_template_says_what_is_missing() {
    let model = shared("golden/minimind2");
    let line = mmx_error(&["run", text(&model), "-p", "x"]);
    assert!(line.contains("golden/minimind2: expected a tokenizer"), "{line}");
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    fs_err::write(model.join("tokenizer_config.json"), r#"{"eos_token": "<|im_end|>"}"#)
        .expect("a file");
    let line = mmx_error(&["run", text(&model), "-p", "x"]);
    assert!(line.contains("no chat template"), "{line}");
    let raw = mmx_json(&["run", text(&model), "-p", "好", "--raw", "--greedy"]);
    assert_eq!(raw["text"], RECITED.strip_prefix('好').expect("its first character"));
}

#[test]
fn bench_reports_the_fields_of_the_contract() {
    let model = shared("golden/minimind3");
    let common = ["-p", "16", "-n", "8", "-t", "1", "--repeats", "1"];
    let report = mmx_json(&[&["bench", text(&model)], &common[..]].concat());
    assert_eq!(report["threads"], 1);
    for field in ["load_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes"] {
        assert!(report[field].as_f64().is_some_and(|x| x > 0.0), "{field}: {report}");
    }
    let preset = ["bench", "--preset", "tiny", "--type", "q8_0", "--llama"];
    let report = mmx_json(&[&preset[..], &common[..]].concat());
    for field in ["prefill_ratio", "decode_ratio", "decode_tokens_per_s"] {
        assert!(report["llama"][field].as_f64().is_some_and(|x| x > 0.0), "{field}: {report}");
    }
}
