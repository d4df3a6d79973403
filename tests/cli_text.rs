//! `mmx tokenizer` and `mmx data` as their users see them.

mod common;

use common::{mmx, mmx_error, mmx_json, mmx_ok, shared, text};
use serde_json::Value;

#[test]
fn a_trained_tokenizer_opens_everywhere_and_is_the_same_twice() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = shared("golden/pretrain.jsonl");
    let chats = shared("golden-2026/sft.jsonl");
    let mut written = Vec::new();
    for name in ["a", "b"] {
        let out = dir.path().join(name);
        let report = mmx_json(&[
            "tokenizer",
            "train",
            "--data",
            text(&data),
            text(&chats),
            "--vocab-size",
            "500",
            "--out",
            text(&out),
        ]);
        assert_eq!(report["vocab_size"], 500);
        assert!(report["bytes_per_token"].as_f64().is_some_and(|n| n > 2.0), "{report}");
        written.push(
            ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
                .map(|file| fs_err::read(out.join(file)).expect("a file")),
        );
    }
    assert_eq!(written[0], written[1]);

    let tokenizer = dir.path().join("a");
    let shown = mmx_json(&["tokenizer", "show", text(&tokenizer), "Ada 有 3 个<|im_end|>"]);
    let ids: Vec<u64> = serde_json::from_value(shown["ids"].clone()).expect("ids");
    assert_eq!(ids.last(), Some(&2));
    let plain = mmx_json(&["tokenizer", "show", text(&tokenizer), "<|im_end|>", "--plain"]);
    assert!(plain["ids"].as_array().is_some_and(|ids| ids.len() > 1 && !ids.contains(&2.into())));
    let checked = mmx_json(&[
        "data",
        "check",
        "--stage",
        "sft",
        "--tokenizer",
        text(&tokenizer),
        text(&chats),
    ]);
    assert_eq!((&checked["samples"], &checked["faults"]), (&32.into(), &Value::Array(vec![])));
}

#[test]
fn a_chat_file_is_rendered_with_its_tools() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("chat.json");
    let case = shared("cases/files/tmpl-tojson/chat.json");
    let case: Value =
        serde_json::from_str(&fs_err::read_to_string(case).expect("a case")).expect("JSON");
    fs_err::write(&file, case.to_string()).expect("written");
    let model = shared("golden-2026");
    let shown = mmx_json(&["tokenizer", "show", text(&model), "--chat", text(&file)]);
    assert_eq!(shown["text"], case["expected"]);
    let words = mmx_ok(&["tokenizer", "show", text(&model), "--chat", text(&file)]);
    assert!(words.contains("\"<think>\"  added") && words.contains("\"<|im_start|>\"  control"));
}

#[test]
fn a_vocabulary_below_the_alphabet_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("tok");
    let data = shared("cases/files/tok-train-alphabet/ascii.txt");
    let error = mmx_error(&[
        "tokenizer",
        "train",
        "--data",
        text(&data),
        "--vocab-size",
        "258",
        "--specials",
        "minimind2",
        "--out",
        text(&out),
    ]);
    assert!(error.contains("at least 259"), "{error}");
    assert!(!out.exists());
}

#[test]
fn data_check_lists_every_fault_with_its_line_and_fails() {
    let file = shared("cases/files/sft-roles/data.jsonl");
    let out = mmx(&["data", "check", "--stage", "sft", text(&file)]);
    assert_eq!(out.status.code(), Some(1));
    let stdout = String::from_utf8(out.stdout).expect("UTF-8");
    for line in [2, 3, 4, 6, 7] {
        assert!(stdout.contains(&format!("data.jsonl:{line}: ")), "{stdout}");
    }
    assert!(String::from_utf8_lossy(&out.stderr).contains("error: 5 faulty lines"));
    let out = mmx(&["data", "check", "--stage", "sft", text(&file), "--json"]);
    assert_eq!(out.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&out.stdout).expect("one JSON object");
    assert_eq!(report["faults"].as_array().map(Vec::len), Some(5));
    assert_eq!(report["faults"][0]["line"], 2);
    assert_eq!(report["samples"], 3);
}

#[test]
fn data_check_measures_lengths_cuts_and_packing() {
    let (tokenizer, file) = (shared("golden"), shared("cases/files/sft-all-masked/data.jsonl"));
    let report = mmx_json(&[
        "data",
        "check",
        "--stage",
        "sft",
        "--recipe",
        "2025",
        "--max-seq-len",
        "64",
        "--tokenizer",
        text(&tokenizer),
        text(&file),
    ]);
    assert_eq!(report["nothing_to_learn"], serde_json::json!([1, 2]));
    assert_eq!((&report["samples"], &report["cut"]), (&3.into(), &2.into()));
    let sft = shared("golden/sft.jsonl");
    let report = mmx_json(&[
        "data",
        "check",
        "--stage",
        "sft",
        "--recipe",
        "2025",
        "--max-seq-len",
        "512",
        "--tokenizer",
        text(&tokenizer),
        text(&sft),
    ]);
    assert!(report["packing_gain"].as_f64().is_some_and(|gain| gain > 3.0), "{report}");
    assert_eq!(report["cut"], 0);
}

#[test]
fn data_show_marks_what_is_learned() {
    let (tokenizer, file) = (shared("golden"), shared("cases/files/sft-roles/data.jsonl"));
    let show = |more: &[&str]| {
        let mut args = vec![
            "data",
            "show",
            "--stage",
            "sft",
            "--recipe",
            "2025",
            "--tokenizer",
            text(&tokenizer),
            text(&file),
        ];
        args.extend(more);
        mmx_ok(&args)
    };
    let plain = show(&["--line", "8"]);
    assert!(plain.contains("assistant\n\u{27e6}5<|im_end|>\n\u{27e7}<|im_start|>user"), "{plain}");
    let colour = show(&["--line", "8", "--color", "always"]);
    assert!(colour.contains("assistant\n\u{1b}[32m5<|im_end|>\n\u{1b}[0m"), "{colour}");
    let error = mmx_error(&[
        "data",
        "show",
        "--stage",
        "sft",
        "--tokenizer",
        text(&tokenizer),
        text(&file),
        "--line",
        "2",
    ]);
    assert!(error.contains("turn 2"), "{error}");
}
