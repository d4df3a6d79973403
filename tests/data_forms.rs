//! The forms in which people have their data, and what is said about them: each test named after its case or behaviour,
//! through the binary.

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use common::{chat, mmx, mmx_error, mmx_json, mmx_ok, shared, text};
use serde_json::{Value, json};

fn case(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cases/turn2").join(name);
    assert!(path.exists(), "{}", path.display());
    path
}

/// A folder with a file of this content.
fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join(name);
    fs_err::write(&path, content).expect("a file");
    (dir, path)
}

/// The ids of every sample of a file.
fn ids(stage: &str, path: &Path) -> Vec<Value> {
    let tokenizer = shared("golden-2026");
    let args = ["data", "show", "--stage", stage, "--tokenizer", text(&tokenizer), "-n", "99"];
    let shown = mmx_json(&args.iter().copied().chain([text(path)]).collect::<Vec<_>>());
    let samples = shown["samples"].as_array().expect("samples");
    samples.iter().map(|sample| sample["ids"].clone()).collect()
}

#[test]
fn json_array_file() {
    // an array has the samples of its records as lines
    let lines = format!("{}\n{}\n", chat("你好", "你好！"), chat("1+1?", "2"));
    let (_dir, lines) = file("lines.jsonl", lines.as_bytes());
    for name in ["pretty.json", "line.json"] {
        let path = case("json-array-file").join(name);
        let said = mmx_ok(&["data", "check", "--stage", "sft", text(&path)]);
        assert!(said.starts_with("2 records\n"), "{name}: {said}");
        // both draw no system prompt, and draw for their number as the lines do
        assert_eq!(ids("sft", &path), ids("sft", &lines), "{name}");
    }
    let middle = case("json-array-file").join("middle.json");
    let said = mmx_ok(&["data", "check", "--stage", "pretrain", text(&middle)]);
    assert!(said.starts_with("2 records\n"), "{said}");

    // Alpaca's records as the chats that LLaMA-Factory makes of them
    let (_dir, chats) = file("chats.jsonl", chat("译成英文\n苹果", "apple").as_bytes());
    for name in ["alpaca.json", "alpaca.jsonl"] {
        let path = case("json-array-file").join(name);
        for stage in ["sft", "lora", "reason", "distill"] {
            let said = mmx_ok(&["data", "check", "--stage", stage, text(&path)]);
            assert!(said.starts_with("1 record\n"), "{name}: {said}");
        }
        assert_eq!(ids("sft", &path), ids("sft", &chats), "{name}");
        for stage in ["pretrain", "dpo"] {
            let out = mmx(&["data", "check", "--stage", stage, text(&path)]);
            let said = String::from_utf8(out.stdout).expect("UTF-8");
            assert!(said.contains("Alpaca") && said.contains("mmx train sft"), "{name}: {said}");
        }
    }
}

#[test]
fn json_array_file_trains_a_tokenizer_and_asks_questions() {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, texts) in
        [("pretty.json", 4), ("line.json", 4), ("middle.json", 2), ("alpaca.json", 3)]
    {
        let (path, out) = (case("json-array-file").join(name), dir.path().join(name));
        let args = ["tokenizer", "train", "--data", text(&path), "--vocab-size", "300"];
        let report =
            mmx_json(&args.iter().copied().chain(["--out", text(&out)]).collect::<Vec<_>>());
        assert_eq!(report["texts"], texts, "{name}");
    }
    let config = shared("golden/tokenizer_config.json");
    let model = common::reciting(dir.path(), Some(&config), json!(2), 2);
    for (name, questions) in [("pretty.json", 2), ("alpaca.json", 1)] {
        let path = case("json-array-file").join(name);
        let found = mmx_json(&["eval", text(&model), "--exact", text(&path)]);
        assert_eq!(found["questions"], questions, "{name}");
    }
}

/// A chat of several turns is asked its last question after all before it; the model answers every one alike.
#[test]
fn exact_answers_are_those_to_the_last_question_of_a_chat() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = shared("golden/tokenizer_config.json");
    let model = common::reciting(dir.path(), Some(&config), json!(2), 2);
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let two = |last: &str| {
        let turns =
            [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", last)];
        json!({ "conversations": turns }).to_string()
    };
    let path = dir.path().join("two.jsonl");
    fs_err::write(&path, format!("{}\n{}\n", two(common::RECITED), two("b"))).expect("a file");
    let found = mmx_json(&["eval", text(&model), "--exact", text(&path)]);
    assert_eq!((&found["questions"], &found["right"]), (&json!(2), &json!(1)), "{found}");
    assert_eq!(found["wrong"][0]["line"], 2);
    let least = ["eval", text(&model), "--exact", text(&path), "--min-accuracy", "0.9"];
    assert!(mmx_error(&least).contains("expected at least 90.0 %"));
    // a question's tools are part of it: golden's template has no place for them
    let tools = json!([{"type": "function", "function": {"name": "add", "parameters": {}}}]);
    let asked =
        json!({"conversations": [turn("user", "a"), turn("assistant", "b")], "tools": tools});
    fs_err::write(&path, asked.to_string()).expect("a file");
    let error = mmx_error(&["eval", text(&model), "--exact", text(&path)]);
    assert!(error.contains("expected a chat template that renders its tools"), "{error}");
}

#[test]
fn no_record_is_taken_out_of_the_middle_of_another() {
    let wrapped = b"{\"data\": [\n{\"text\": \"one\"},\n{\"text\": \"two\"}\n]}\n";
    let (_dir, path) = file("wrapped.json", wrapped);
    let out = mmx(&["data", "check", "--stage", "pretrain", text(&path)]);
    let said = String::from_utf8(out.stdout).expect("UTF-8");
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("within key data") && said.contains("0 records"), "{said}");
    // what jq and others print
    let (_dir, path) =
        file("pretty.jsonl", b"{\n  \"text\": \"one\"\n}\n{\n  \"text\": \"two\"\n}\n");
    let said = mmx_ok(&["data", "check", "--stage", "pretrain", text(&path)]);
    assert!(said.starts_with("2 records\n"), "{said}");
    assert_eq!(ids("pretrain", &path).len(), 2);
}

/// A fault within an array names the record and its line; damage between records is one error.
#[test]
fn faults_of_an_array_have_a_record_and_a_line() {
    let (_dir, path) = file(
        "a.json",
        b"[\n {\"text\": \"one\"},\n {\n  \"text\": 2\n },\n {\"text\": \"\\x\"}\n]\n",
    );
    let out = mmx(&["data", "check", "--stage", "pretrain", text(&path)]);
    let said = String::from_utf8(out.stdout).expect("UTF-8");
    assert!(
        said.contains("a.json:3: record 2: key text: expected a string, found a number"),
        "{said}"
    );
    assert!(said.contains("a.json:6: record 3: expected a JSON object: invalid escape"), "{said}");
    assert!(said.contains("1 record\n"), "{said}");
    let (_dir, path) = file("cut.json", b"[\n {\"text\": \"one\"},\n {\"text\": \"tw");
    let line = mmx_error(&["data", "check", "--stage", "pretrain", text(&path)]);
    assert!(line.contains("cut.json: line 3: expected the end of record 2"), "{line}");
}

/// One sentence for a whole file, whatever reads it, not one for each of its lines.
#[test]
fn files_that_hold_no_json_are_named_in_one_message() {
    let zip = b"PK\x03\x04\x14\0\0\0\n\xff\n\xfe\n";
    let utf16: Vec<u8> =
        "\u{feff}{\"text\": \"a\"}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"PAR1\n\n\xff").expect("packed");
    let gzip = gzip.finish().expect("packed");
    let cases: [(&str, &[u8], &str); 6] = [
        ("a.jsonl", b"PAR1\x15\x04\n\xff\n\xff", "one that is damaged or cut off"),
        ("b.json", b"ARROW1\0\0\n\xff\n", "an Arrow file"),
        ("c.jsonl", zip, "a zip archive"),
        ("d.jsonl", &gzip, "a Parquet file"),
        ("e.jsonl", &utf16, "UTF-16"),
        ("f.jsonl", b"question,answer\n1+1?,2\n", "question, answer"),
    ];
    let tokenizer = shared("golden");
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    for (name, bytes, what) in cases {
        let (_dir, path) = file(name, bytes);
        let path = text(&path);
        let check = ["data", "check", "--stage", "sft", path];
        let show = ["data", "show", "--stage", "sft", "--tokenizer", text(&tokenizer), path];
        let train =
            ["tokenizer", "train", "--data", path, "--vocab-size", "300", "--out", text(&out)];
        for args in [&check[..], &show[..], &train[..]] {
            let line = mmx_error(args);
            assert!(line.contains(name) && line.contains(&format!("found {what}")), "{line}");
            assert!(mmx(args).stdout.is_empty(), "{args:?}");
        }
    }
}

#[test]
fn empty_answers_are_counted_when_data_is_checked() {
    let lines = format!("{}\n{}\n{}\n", chat("a", ""), chat("b", "c"), chat("d", " \n"));
    let (_dir, path) = file("empty.jsonl", lines.as_bytes());
    let report = mmx_json(&["data", "check", "--stage", "sft", text(&path)]);
    assert_eq!((&report["samples"], &report["empty_answers"]), (&json!(3), &json!([1, 3])));
    let said = mmx_ok(&["data", "check", "--stage", "sft", text(&path)]);
    assert!(said.contains("2 records with an empty answer"), "{said}");
    let tokenizer = shared("golden-2026");
    let args = ["data", "check", "--stage", "sft", "--tokenizer", text(&tokenizer), text(&path)];
    let said = mmx_ok(&args);
    let expected = "2 samples have an empty answer, of which only the end is learned: lines 1, 3";
    assert!(said.contains(expected), "{said}");
    assert_eq!(mmx_json(&args)["empty_answers"], json!([1, 3]));
}

/// A chat with tools on a template without them, or by the recipe that knows none, is learned without its tools: that is
/// said with the number of such chats.
#[test]
fn tools_of_which_a_template_renders_nothing_are_never_dropped_in_silence() {
    let with_tools = |tools: &str| {
        let turns = [
            json!({"role": "system", "content": "s", "tools": tools}),
            json!({"role": "user", "content": "q"}),
            json!({"role": "assistant", "content": "a"}),
        ];
        json!({ "conversations": turns }).to_string()
    };
    let tool = r#"[{"type": "function", "function": {"name": "f", "parameters": {}}}]"#;
    let lines = [chat("a", "b"), with_tools(tool), with_tools("[]"), with_tools(tool)].join("\n");
    let (_dir, path) = file("tools.jsonl", lines.as_bytes());
    for (tokenizer, recipe, expected) in [
        (
            "golden",
            "2026",
            Some(
                "2 samples have tools, of which the chat template renders nothing; the first: line 2",
            ),
        ),
        (
            "golden-2026",
            "2025",
            Some(
                "2 samples have tools, which recipe 2025 leaves out as the reference does; the first: line 2",
            ),
        ),
        ("golden-2026", "2026", None),
    ] {
        let tokenizer = shared(tokenizer);
        let args = ["data", "check", "--stage", "sft", "--recipe", recipe, "--tokenizer"];
        let args: Vec<&str> = args.into_iter().chain([text(&tokenizer), text(&path)]).collect();
        // the second time the tokens are those kept
        for _ in 0..2 {
            let said = mmx_ok(&args);
            match expected {
                Some(expected) => assert!(said.lines().any(|l| l == expected), "{said}"),
                None => assert!(!said.contains("tools, "), "{said}"),
            }
        }
        let count = if expected.is_some() { 2 } else { 0 };
        assert_eq!(mmx_json(&args)["tools_left_out"], count, "{tokenizer:?} {recipe}");
        // a run says it once
        let options = mmx_data::SampleOptions::new(
            if recipe == "2025" { mmx_data::Recipe::R2025 } else { mmx_data::Recipe::R2026 },
            mmx_data::Kind::Chat,
            128,
        );
        let opened = mmx_converters::tokenizer::Tokenizer::open(&tokenizer).expect("a tokenizer");
        let data = mmx_data::Dataset::load(std::slice::from_ref(&path), &opened, &options)
            .expect("samples");
        let warnings = data.warnings.iter().filter(|w| w.contains("tools"));
        assert_eq!(warnings.collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
    }
}

/// OpenAI's and LLaMA-Factory's records name their tools beside the turns.
#[test]
fn tools_beside_the_turns_are_those_of_the_chat() {
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let turns =
        [json!({"role": "user", "content": "q"}), json!({"role": "assistant", "content": "a"})];
    let mut with_system =
        vec![json!({"role": "system", "content": "s", "tools": tools.to_string()})];
    with_system.extend(turns.clone());
    let lines = [
        json!({ "conversations": with_system }),
        json!({ "conversations": turns, "system": "s", "tools": tools.to_string() }),
        json!({ "messages": turns, "system": "s", "tools": tools }),
        json!({ "messages": turns, "tools": tools }),
        json!({ "messages": turns, "tools": "" }),
    ];
    // each in a file of its own: augmentations are drawn for the line
    let of = |record: &Value| {
        let (_dir, path) = file("tools.jsonl", record.to_string().as_bytes());
        ids("sft", &path).remove(0)
    };
    let found: Vec<Value> = lines.iter().map(of).collect();
    assert_eq!((&found[1], &found[2]), (&found[0], &found[0]));
    // both answers of a pair
    let pair = |side: &[Value]| json!({ "chosen": side, "rejected": side });
    let mut beside = pair(&turns);
    (beside["system"], beside["tools"]) = ("s".into(), tools.clone());
    let of_pair = |record: &Value| {
        let (_dir, path) = file("pairs.jsonl", record.to_string().as_bytes());
        ids("dpo", &path)
    };
    let sides = of_pair(&beside);
    assert_eq!((sides.len(), &sides), (2, &of_pair(&pair(&with_system))));
    let length = |i: usize| found[i].as_array().map_or(0, Vec::len);
    assert!(length(4) < length(3) && length(3) < length(0), "{found:?}");
}

/// The reference puts system prompts before chats in SFT (and in RL), never before those of DPO.
#[test]
fn random_system_prompts_follow_the_stage() {
    let pair = |i: usize| {
        let side = |answer: &str| json!([{"role": "user", "content": format!("{i}?")}, {"role": "assistant", "content": answer}]);
        json!({"chosen": side("yes"), "rejected": side("no"), "conversations": side("yes")})
    };
    let lines: Vec<String> = (0..99).map(|i| pair(i).to_string()).collect();
    let (_dir, path) = file("pairs.jsonl", lines.join("\n").as_bytes());
    let tokenizer = shared("golden-2026");
    let systems = |stage: &str| {
        let args = ["data", "show", "--stage", stage, "--tokenizer", text(&tokenizer), "-n", "99"];
        let shown = mmx_ok(&args.iter().copied().chain([text(&path)]).collect::<Vec<_>>());
        shown.matches("<|im_start|>system").count()
    };
    assert_eq!(systems("dpo"), 0);
    for stage in ["sft", "lora", "distill", "reason"] {
        let found = systems(stage);
        // 20 % of 99, within four standard deviations
        assert!((4..=36).contains(&found), "{stage}: {found} of 99");
    }
}
