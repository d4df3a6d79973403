//! `mmx logits`, `mmx verify` and `mmx eval` through the binary, on the golden models and one whose answers are known.

mod common;

use std::path::{Path, PathBuf};

use common::{TRAINS, mmx, mmx_error, mmx_json, mmx_ok, reciting, shared, text};
use serde_json::{Value, json};

fn values(path: &std::path::Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = mmx_converters::safetensors::SafeTensors::open(path).expect("a safetensors file");
    let view = file.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", path.display()));
    (view.shape.to_vec(), view.to_f32())
}

/// 2e-5: float32 sums in another order than the reference's.
#[test]
fn ids_beyond_the_vocabulary_are_refused_and_their_file_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let ids = dir.path().join("ids.json");
    fs_err::write(&ids, "[1, 2, 500000, 3]").expect("a file");
    let model = shared("golden/minimind3");
    let said = mmx_error(&["verify", text(&model), text(&model), "--ids", text(&ids)]);
    assert!(said.contains(text(&ids)) && said.contains("found 500000"), "{said}");
}

#[test]
fn logits_of_a_two_dimensional_list_equal_the_reference() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("logits.safetensors");
    let golden = shared("golden/minimind3-moe/forward.safetensors");
    let answer = mmx_json(&[
        "logits",
        text(&shared("golden/minimind3-moe")),
        "--ids",
        text(&golden),
        "--out",
        text(&out),
    ]);
    assert_eq!(answer["shape"], serde_json::json!([2, 48, 512]));
    let (shape, found) = values(&out, "logits");
    let (expected_shape, expected) = values(&golden, "logits");
    assert_eq!(shape, expected_shape);
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst <= 2e-5, "largest difference {worst:e}");
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let ids = folder.path().join("ids.json");
    fs_err::write(&ids, "[1, 2, 512]").expect("a file");
    let line = common::mmx_error(&[
        "verify",
        text(&shared("golden/minimind2")),
        text(&shared("golden/minimind2")),
        "--ids",
        text(&ids),
    ]);
    assert!(line.contains("512"), "{line}");
}

/// Another model of the same shape is far away, and verify says so with exit code 1.
#[test]
fn another_model_does_not_pass() {
    let (one, other) = (shared("golden/minimind3"), shared("golden/minimind2"));
    let out = mmx(&["verify", text(&one), text(&other), "--json"]);
    assert_eq!(out.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one JSON object");
    assert_eq!(report["ok"], false);
    let rows = report["rows"].as_array().expect("rows");
    let other = rows.iter().find(|r| r["path"] == text(&other)).expect("a row of the other model");
    assert_eq!(other["ok"], false);
    assert!(other["max_abs_diff"].as_f64().expect("a number") > 0.1);
}

/// A golden model as f32 and q8_0 GGUFs with its tokenizer.
fn ggufs(dir: &Path, model: &str) -> [PathBuf; 2] {
    let (source, tokenizer) = (shared(model), shared(model.split('/').next().expect("a set")));
    let args = ["export", text(&source), "--tokenizer", text(&tokenizer), "--name", "m"];
    let report =
        mmx_json(&[&args[..], &["--gguf", "f32", "--gguf", "q8_0", "--out", text(dir)]].concat());
    [0, 1].map(|i| PathBuf::from(report["files"][i]["path"].as_str().expect("a path")))
}

fn written(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    fs_err::write(&path, content).expect("a file");
    path
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

/// Text of some 280 tokens: one window holds it, or many do.
fn poem() -> String {
    "床前明月光，疑是地上霜。Time and tide wait for no man 😀.\n".repeat(6)
}

/// One window over everything is the perplexity that verify computes; windows that slide score the same tokens with
/// less before them; chunks score fewer. Every engine agrees.
#[test]
fn perplexity_is_the_same_in_every_engine_and_what_verify_says() {
    let dir = tempfile::tempdir().expect("a folder");
    let [f32_file, q8_file] = ggufs(dir.path(), "golden-2026/minimind3");
    let poem_file = written(dir.path(), "poem.txt", &poem());
    let eval = |models: &[&str], more: &[&str]| -> Value {
        mmx_json(&[&["eval", "--threads", "1", "--ppl", text(&poem_file)], models, more].concat())
    };
    let whole = eval(&[text(&f32_file)], &[]);
    let window = number(&whole["text"]["window"]);
    assert_eq!(number(&whole["text"]["stride"]), (window / 2.0).floor(), "{whole}");
    let p = &whole["rows"][0]["perplexity"];
    let tokens = number(&p["tokens"]);
    assert!(tokens > 200.0 && tokens < window, "one window: {whole}");
    let without_end = written(dir.path(), "same.txt", poem().trim_end_matches('\n'));
    let judged =
        mmx_json(&["verify", text(&f32_file), text(&f32_file), "--text", text(&without_end)]);
    // 1e-5: sums in another order
    let ppl = number(&p["ppl"]);
    assert!((ppl / number(&judged["rows"][0]["ppl"]) - 1.0).abs() < 1e-5, "{p} {judged}");
    let bits = number(&p["nll"]) / std::f64::consts::LN_2 / number(&p["bytes"]);
    assert!((bits - number(&p["bits_per_byte"])).abs() < 1e-9);
    let first = "床".len() as f64; // its first token alone is not scored
    assert!(number(&p["bytes"]) >= poem().len() as f64 - 1.0 - first, "{p}");

    let short = eval(&[text(&f32_file)], &["--ctx", "32", "--stride", "8"]);
    assert_eq!(number(&short["rows"][0]["perplexity"]["tokens"]), tokens, "each token once");
    assert_ne!(number(&short["rows"][0]["perplexity"]["ppl"]), ppl);
    if TRAINS {
        let source = dir.path().join("folder");
        fs_err::create_dir_all(&source).expect("a folder");
        for name in [
            "minimind3/config.json",
            "minimind3/model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ] {
            let from = shared("golden-2026").join(name);
            fs_err::copy(&from, source.join(from.file_name().expect("a name"))).expect("copied");
        }
        let native = eval(&[text(&source)], &["--engine", "native"]);
        let found = number(&native["rows"][0]["perplexity"]["ppl"]);
        assert!((found / ppl - 1.0).abs() < 1e-5, "{found} in tch, {ppl} in the runner");
    }
    let engines = ["--engine", "ggml", "--engine", "llama.cpp"];
    for cut in [&["--ctx", "64"][..], &["--ctx", "64", "--chunks"]] {
        let models = [text(&f32_file), text(&q8_file)];
        let rows = eval(&models, &[cut, &engines].concat())["rows"].clone();
        let ppl = |i: usize| number(&rows[i]["perplexity"]["ppl"]);
        assert_eq!(rows.as_array().map(Vec::len), Some(4));
        assert_eq!((&rows[0]["type"], &rows[2]["type"]), (&json!("F32"), &json!("Q8_0")));
        // f32: rounding alone; q8_0: both engines round their activations, each its own way
        assert!((ppl(0) / ppl(1) - 1.0).abs() < 1e-5, "{cut:?}: {rows}");
        assert!((ppl(2) / ppl(3) - 1.0).abs() < 5e-3, "{cut:?}: {rows}");
        assert!(ppl(0) != ppl(2) && rows[0]["bytes"].as_u64() > rows[2]["bytes"].as_u64());
        // the same model in another engine is the same, the quantized one is not
        let against = |i: usize| &rows[i]["perplexity"]["against_first"];
        let ends = |i: usize| [0, 1].map(|at| number(&against(i)["interval"][at]));
        assert!(ends(1)[0] > 0.999 && ends(1)[1] < 1.001, "{rows}");
        let own = number(&against(2)["ratio"]);
        assert!((own - ppl(2) / ppl(0)).abs() < 1e-9 && ends(2)[0] < own && own < ends(2)[1]);
        if cut.len() == 3 {
            let chunks = (tokens + 1.0) as usize / 64;
            assert_eq!(number(&rows[0]["perplexity"]["tokens"]) as usize, chunks * 31);
        }
    }
}

/// A model that recites one text finds the answers that are parts of it likelier than the same letters in disorder, in
/// both layouts and both ways of asking.
#[test]
fn questions_are_answered_by_likelihood_and_the_page_shows_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let ceval = "id,question,A,B,C,D,answer,explanation\n0,背诵,谢好中,好😀中谢,验中好,谢😀好,B,\n1,又?,中谢验,谢中验,验谢中,谢验中,A,\n";
    let arc = |right: &str, wrong: &str, key: &str| {
        json!({"id": "x", "question": "<go on> & on?", "choices": {"text": [wrong, right], "label": ["A", "B"]},
            "answerKey": key})
    };
    let arc = format!("{}\n{}\n", arc("谢验,OK", "OK,验谢", "B"), arc("中谢验", "谢中验", "A"));
    let files = [
        written(dir.path(), "物理_val.csv", ceval),
        written(dir.path(), "ARC-Easy-Test.jsonl", &arc),
    ];
    let page = dir.path().join("page.html");
    let answers = dir.path().join("answers.jsonl");
    let args = ["eval", text(&model), "--choice", text(&files[0]), text(&files[1])];
    let both = ["--by", "both"];
    let more = ["--by", "both", "--html", text(&page), "--answers", text(&answers)];
    let report = mmx_json(&[&args[..], &more].concat());
    let choice = &report["rows"][0]["choice"];
    // of the last question the key names the disordered one
    assert_eq!(choice["overall"]["answer_norm"]["right"], 3, "{choice}");
    assert_eq!(choice["subjects"][0]["subject"], "物理");
    assert_eq!(choice["subjects"][0]["answer_norm"]["accuracy"], 1.0);
    assert_eq!(choice["subjects"][1]["answer_norm"]["accuracy"], 0.5);
    assert!((number(&choice["mean_of_subjects"]["answer_norm"]) - 0.75).abs() < 1e-12);
    let interval = &choice["overall"]["answer_norm"]["interval"];
    // Wilson's for 3 of 4
    assert!(
        (number(&interval[0]) - 0.3006).abs() < 1e-3
            && (number(&interval[1]) - 0.9544).abs() < 1e-3
    );
    assert!((number(&report["questions"]["chance"]) - 0.375).abs() < 1e-12);

    let lines = fs_err::read_to_string(&answers).expect("answers");
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines.len(), 8, "a line for each question and way");
    let words = |i: usize| lines[i]["prompt"].as_str().expect("a prompt");
    assert_eq!(words(0), "背诵\nA. 谢好中\nB. 好😀中谢\nC. 验中好\nD. 谢😀好\n答案：");
    assert_eq!(words(1), "背诵\n答案：");
    assert_eq!(words(5), "Question: <go on> & on?\nAnswer:");
    assert_eq!(
        (&lines[2]["line"], &lines[2]["answers"]),
        (&json!(3), &json!(["A", "B", "C", "D"]))
    );
    assert_eq!(lines[1]["log_likelihoods"].as_array().map(Vec::len), Some(4));

    let html = fs_err::read_to_string(&page).expect("a page");
    assert!(html.contains("物理") && html.contains("<svg") && html.contains("75.0 %"), "{html}");
    for foreign in ["://", "<script", "src=", "url("] {
        assert!(!html.contains(foreign), "the page stands alone: {foreign}");
    }
    mmx_json(&[&args[..], &both, &["--html", text(&page)]].concat());
    assert_eq!(fs_err::read_to_string(&page).expect("a page"), html, "the same twice");

    let twice = mmx_json(&[&["eval", text(&model)], &args[1..], &both].concat());
    assert_eq!(twice["rows"][1]["choice"]["same_answers_as_first"]["answer"], 4, "{twice}");
    let shown = mmx_ok(&[&args[..], &["--by", "answer"]].concat());
    assert!(
        shown.contains("4 questions of 2 subjects") && shown.contains("75.0 % (30.1 to 95.4)"),
        "{shown}"
    );
    let shots = [
        &args[..],
        &["--by", "answer", "--examples", text(&files[0]), text(&files[1]), "--shots", "1"],
    ];
    let with = mmx_json(&shots.concat());
    assert_eq!(with["questions"]["shots"], 1);
    let chat = mmx_json(&[&args[..], &["--chat", "--by", "answer"]].concat());
    // after the template's line break the model goes on with its text's beginning: that answer is right by sum too
    assert_eq!(chat["rows"][0]["choice"]["subjects"][0]["questions"], 2);
}

#[test]
fn eval_says_what_is_wrong_with_questions_and_settings() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let bad = written(dir.path(), "x_val.csv", "question,A,B,answer\nq,a,b,A\nq,a,b,C\n");
    let line = mmx_error(&["eval", text(&model), "--choice", text(&bad)]);
    assert!(line.contains("x_val.csv:3: expected an answer among A, B, found \"C\""), "{line}");
    let good = written(dir.path(), "y_val.csv", "question,A,B,answer\nq,a,b,A\n");
    let line =
        mmx_error(&["eval", text(&model), "--choice", text(&good), "--examples", text(&good)]);
    assert!(line.contains("subject y: expected 5 examples, found 1"), "{line}");
    let poem = written(dir.path(), "p.txt", &poem());
    let line = mmx_error(&["eval", text(&model), "--ppl", text(&poem), "--chunks"]);
    assert!(line.contains("expected a text of at least 1024 tokens"), "{line}");
    for misuse in [
        &["--ppl", text(&poem), "--ctx", "9000"][..],
        &["--ppl", text(&poem), "--ctx", "16", "--stride", "16"],
        &["--choice", text(&good), "--engine", "llama.cpp"],
        &["--stride", "4"],
        &[],
    ] {
        let out = mmx(&[&["eval", text(&model)], misuse].concat());
        assert_eq!(
            out.status.code(),
            Some(2),
            "{misuse:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}
