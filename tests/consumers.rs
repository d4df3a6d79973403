//! `mmx verify --consumers` and `mmx export --card` through the binary, with a script that plays a Python with programs
//! in it: right, wrong, broken and hanging ones. scripts/peers/consumers.py asks the real ones.
#![cfg(unix)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{mmx, mmx_error, mmx_json, mmx_ok, shared, text};
use mmx_models::engines::{self, Kind};
use mmx_models::open::Form;
use serde_json::{Value, json};

const CHAT: &str = "hello 你好";
const RAW: &str = "Once upon a time";
const TOKENS: usize = 24;

/// The exports of a golden model: folder and GGUF.
fn exported(dir: &Path, model: &str, more: &[&str]) -> Vec<PathBuf> {
    let (source, tokenizer) = (shared(model), shared(model.split('/').next().expect("a set")));
    let args = ["export", text(&source), "--tokenizer", text(&tokenizer), "--name", "m"];
    let out = dir.join("export");
    let kinds = ["--hf", "f32", "--gguf", "f32", "--out", text(&out)];
    let report = mmx_json(&[&args[..], &kinds, more].concat());
    let files = report["files"].as_array().expect("files");
    let gguf = files.iter().find(|f| f["format"] == "gguf").expect("a GGUF");
    vec![out.join("hf-f32"), PathBuf::from(gguf["path"].as_str().expect("a path"))]
}

/// What the runner writes after the two prompts: the answers of a program that is right.
fn right(model: &Path) -> Value {
    let n = TOKENS.to_string();
    let run = |prompt: &str, more: &[&str]| {
        let args = ["run", text(model), "-p", prompt, "-n", &n, "--greedy", "--kv", "f32"];
        let out = mmx_json(&[&args[..], more].concat());
        json!({ "text": out["text"], "ids": out["ids"] })
    };
    json!({ "answers": { "chat": run(CHAT, &[]), "raw": run(RAW, &["--raw"]) } })
}

/// A script in place of a Python. `programs`: name in the table, version, function of the script, what it does; an answer
/// is written, other text is run by the shell.
fn python(dir: &Path, programs: &[(&str, &str, &str, Played)]) -> PathBuf {
    let mut script = String::from(
        "#!/bin/sh\njob=$(cat)\nanswer=$(printf '%s' \"$job\" | sed 's/.*\"answer\":\"\\([^\"]*\\)\".*/\\1/')\ncase $job in\n",
    );
    let versions: serde_json::Map<String, Value> =
        programs.iter().map(|(name, version, ..)| ((*name).to_owned(), json!(version))).collect();
    let file = dir.join("versions.json");
    fs_err::write(&file, json!({ "versions": versions }).to_string()).expect("a file");
    script.push_str(&format!("*'\"modules\"'*) cp '{}' \"$answer\" ;;\n", file.display()));
    for (_, _, function, played) in programs {
        let does = match played {
            Played::Answers(value) => {
                let file = dir.join(format!("{function}.json"));
                fs_err::write(&file, value.to_string()).expect("a file");
                format!("echo 'noise on stdout'; cp '{}' \"$answer\"", file.display())
            }
            Played::Does(command) => (*command).to_owned(),
        };
        script.push_str(&format!("*'\"ask\":\"{function}\"'*) {does} ;;\n"));
    }
    script.push_str("*) exit 3 ;;\nesac\n");
    let path = dir.join("python");
    fs_err::write(&path, script).expect("a file");
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a program");
    path
}

enum Played {
    Answers(Value),
    Does(&'static str),
}

/// The rows of a check, and whether mmx was content.
fn checked(reference: &Path, forms: &[PathBuf], python: &Path) -> (Value, bool) {
    let forms: Vec<&str> = forms.iter().map(|path| text(path)).collect();
    let options = ["--consumers", "--python", text(python), "--consumer-timeout", "5", "--json"];
    let out = mmx(&[&["verify", text(reference)][..], &forms, &options].concat());
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let report: Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    (report["consumers"].clone(), out.status.success())
}

fn row<'a>(report: &'a Value, program: &str) -> &'a Value {
    let rows = report["rows"].as_array().expect("rows");
    rows.iter().find(|r| r["consumer"] == program).unwrap_or_else(|| panic!("{program}: {report}"))
}

#[test]
fn programs_are_right_wrong_broken_or_hang_each_in_a_row_of_its_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let forms = exported(dir.path(), "golden/minimind2", &[]);
    let own = right(&forms[0]);
    let mut wrong = own.clone();
    wrong["answers"]["raw"] = json!({ "text": "something else", "ids": null });
    let mut other_text = own.clone(); // the same ids under another text
    other_text["answers"]["chat"]["text"] = json!("x");
    let broken = Played::Does("echo Traceback >&2; echo 'ValueError: no such class' >&2; exit 1");
    let python = python(
        dir.path(),
        &[
            ("Transformers", "5.24.0", "transformers", Played::Answers(own.clone())),
            ("MLX", "0.32.2", "mlx", Played::Answers(wrong)),
            ("CTranslate2", "4.8.5", "ctranslate2", broken),
            ("vLLM", "0.32.0", "vllm", Played::Does("exec sleep 600")),
            ("mistral.rs", "0.9.5", "mistral_rs", Played::Does(":")),
            ("ONNX Runtime", "0.1.0", "onnx", Played::Answers(other_text)),
            ("llama-cpp-python", "0.3.36", "llama_cpp_python", Played::Answers(own)),
        ],
    );
    let (report, ok) = checked(&forms[0], &forms, &python);
    assert!(!ok);
    let outcome = |program| row(&report, program)["outcome"].as_str().expect("a word").to_owned();
    let note = |program| row(&report, program)["note"].as_str().expect("a text").to_owned();
    assert_eq!(outcome("Transformers"), "same");
    assert_eq!(row(&report, "Transformers")["as_reference"], true);
    assert_eq!(row(&report, "Transformers")["version"], "5.24.0");
    assert_eq!(outcome("llama-cpp-python"), "same");
    assert!(
        text(Path::new(row(&report, "llama-cpp-python")["path"].as_str().expect("a path")))
            .ends_with(".gguf")
    );
    assert_eq!(outcome("MLX"), "differs");
    assert!(
        note("MLX").contains("raw") && note("MLX").contains("something else"),
        "{}",
        note("MLX")
    );
    assert_eq!(outcome("ONNX Runtime"), "differs");
    assert_eq!(outcome("CTranslate2"), "failed");
    assert!(note("CTranslate2").contains("ValueError: no such class"));
    assert_eq!(outcome("vLLM"), "timed_out");
    assert_eq!(outcome("mistral.rs"), "failed");
    assert_eq!(note("mistral.rs"), "it ended without an answer");
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.iter().filter(|r| r["consumer"] == "mistral.rs").count(), 2, "folder and GGUF");
    assert!(rows.iter().all(|r| r["ok"] == (r["outcome"] == "same")));
    let missing = report["not_installed"].as_array().expect("names");
    assert!(missing.contains(&json!("ONNX Runtime GenAI")) && !missing.contains(&json!("vLLM")));
}

/// A program that draws ids for which the tokenizer has no token, which the runner never does: as likely as can be.
#[test]
fn another_text_of_the_likeliest_tokens_is_a_near_tie() {
    let dir = tempfile::tempdir().expect("a folder");
    let forms = exported(dir.path(), "golden-2026/minimind3", &[]);
    let form = Form::open(&forms[0]).expect("a model");
    let tokenizer = form.expect_tokenizer().expect("a tokenizer");
    let messages = [mmx_converters::chat::message("user", CHAT)];
    let options = mmx_converters::chat::Options::generation();
    let prompt = tokenizer.encode_chat(&messages, &options).expect("a prompt").ids;
    let mut engine = engines::open(Kind::Ggml, &form, 1).expect("an engine");
    let mut ids = prompt.clone();
    for _ in 0..TOKENS {
        let logits = engine.logits_from(&ids, ids.len() - 1).expect("logits");
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("ids");
        ids.push(u32::try_from(best).expect("an id"));
    }
    let found = &ids[prompt.len()..];
    let own = right(&forms[0]);
    assert_ne!(json!(found), own["answers"]["chat"]["ids"], "the model draws such an id");
    let mut answers = own.clone();
    answers["answers"]["chat"] = json!({ "text": tokenizer.decode(found, true), "ids": found });
    let fake = python(
        dir.path(),
        &[("Transformers", "5", "transformers", Played::Answers(answers.clone()))],
    );
    let (report, ok) = checked(&forms[0], &forms[..1], &fake);
    assert!(ok, "{report}");
    assert_eq!(row(&report, "Transformers")["outcome"], "near_tie");
    // one that stops there has no reason to
    let mut cut = answers;
    cut["answers"]["chat"]["ids"] = json!(&found[..5]);
    let fake = python(dir.path(), &[("Transformers", "5", "transformers", Played::Answers(cut))]);
    let (report, ok) = checked(&forms[0], &forms[..1], &fake);
    assert!(!ok && row(&report, "Transformers")["outcome"] == "differs", "{report}");
}

#[test]
fn what_a_program_is_known_not_to_carry_is_said_and_not_asked() {
    let dir = tempfile::tempdir().expect("a folder");
    let forms = exported(dir.path(), "golden/minimind2-moe", &[]);
    let fake = python(dir.path(), &[("MLX", "0.32.2", "mlx", Played::Does("exit 1"))]);
    let (report, ok) = checked(&forms[0], &forms[..1], &fake);
    assert!(ok, "{report}");
    assert_eq!(row(&report, "MLX")["outcome"], "not_carried");
    assert!(row(&report, "MLX")["note"].as_str().expect("a text").contains("granitemoeshared"));
}

/// Without forms the reference itself is checked.
#[test]
fn a_python_without_programs_and_no_python_at_all_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let forms = exported(dir.path(), "golden/minimind2", &[]);
    let folder = text(&forms[0]);
    let ask =
        |python: &Path| mmx_error(&["verify", folder, "--consumers", "--python", text(python)]);
    let none = python(dir.path(), &[]);
    let line = ask(&none);
    assert!(line.contains("expected one of the packages transformers, vllm"), "{line}");
    let line = ask(&dir.path().join("nowhere"));
    assert!(line.contains("nowhere: expected a Python"), "{line}");
    let answers = Played::Answers(right(&forms[0]));
    let fake = python(dir.path(), &[("Transformers", "5.24.0", "transformers", answers)]);
    let shown = mmx_ok(&["verify", folder, "--consumers", "--python", text(&fake)]);
    for words in ["Transformers", "5.24.0", "same text", "not installed: vLLM"] {
        assert!(shown.contains(words), "{words:?} in {shown}");
    }
    assert_eq!(mmx(&["verify", folder]).status.code(), Some(2), "forms are asked for still");
}

#[test]
fn the_card_says_what_a_file_was_checked_in_while_it_is_the_same_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let forms = exported(dir.path(), "golden/minimind2", &[]);
    let own = right(&forms[0]);
    let fake = python(
        dir.path(),
        &[
            ("Transformers", "5.24.0", "transformers", Played::Answers(own.clone())),
            ("llama-cpp-python", "0.3.36", "llama_cpp_python", Played::Answers(own)),
        ],
    );
    let [folder, gguf] = [0, 1].map(|i| text(&forms[i]));
    let asked = ["verify", folder, folder, gguf, "--consumers", "--python", text(&fake), "--json"];
    let checks = dir.path().join("checks.json");
    fs_err::write(&checks, mmx_ok(&asked)).expect("a file");
    exported(dir.path(), "golden/minimind2", &["--card", text(&checks)]);
    let card = |path: PathBuf| fs_err::read_to_string(path).expect("a card");
    let of_folder = card(forms[0].join("README.md"));
    assert!(of_folder.contains("## Checked in"), "{of_folder}");
    assert!(of_folder.contains("| `hf-f32` | Transformers | 5.24.0 | same text |"), "{of_folder}");
    assert!(!of_folder.contains("llama-cpp-python"), "{of_folder}");
    let of_gguf = card(dir.path().join("export/README.md"));
    assert!(of_gguf.contains("| llama-cpp-python | 0.3.36 | same text |"), "{of_gguf}");

    // of another model's files it says nothing
    let other = shared("golden/minimind3");
    let out = dir.path().join("other");
    let refused = |checks: &Path| {
        let export =
            ["export", text(&other), "--hf", "f32", "--out", text(&out), "--card", text(checks)];
        mmx_error(&export)
    };
    let line = refused(&checks);
    assert!(line.contains("--card: expected rows on the files of this export"), "{line}");
    for (content, reason) in [
        ("{", "checks.json: expected what `mmx verify --json` prints"),
        ("[1]", "checks.json: consumers: expected rows of programs, found none"),
        ("{\"ok\": true}", "checks.json: consumers: expected rows of programs, found none"),
        ("{\"consumers\": {\"rows\": 3}}", "checks.json: consumers: expected rows of programs"),
    ] {
        fs_err::write(&checks, content).expect("a file");
        let line = refused(&checks);
        assert!(line.contains(reason), "{content}: {line}");
    }
}

#[test]
fn doctor_says_of_each_program_what_it_carries_and_the_version_that_was_tried() {
    let report = mmx_json(&["doctor", "--preset", "minimind2-moe"]);
    let targets = report["model"]["targets"].as_array().expect("targets");
    let target = |name: &str| {
        targets
            .iter()
            .find(|t| t["runtime"] == name)
            .unwrap_or_else(|| panic!("{name}: {targets:?}"))
    };
    for (name, ok, version) in [
        ("Transformers", true, json!("5.24.0, 4.57.6")),
        ("MLX", false, json!("0.32.2, 0.32.0")),
        ("mistral.rs", false, json!("0.9.5")),
        ("CTranslate2", false, json!("4.8.5")),
        ("Open WebUI", true, json!("0.12.4")),
        ("mmx", true, Value::Null),
    ] {
        assert_eq!(target(name)["ok"], ok, "{name}");
        assert_eq!(target(name)["version"], version, "{name}");
        assert_eq!(
            target(name)["note"].as_str().expect("a note").is_empty(),
            ok && !matches!(name, "Open WebUI")
        );
    }
    let keys: Vec<&String> = target("MLX").as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["runtime", "form", "ok", "note", "version"], "new fields at the end");
}

/// Linux lets names be any bytes; JSON does not.
#[cfg(target_os = "linux")]
#[test]
fn verify_and_inspect_answer_in_json_also_for_a_name_that_is_no_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().expect("a folder");
    let forms = exported(dir.path(), "golden/minimind2", &[]);
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"m\xff.gguf"));
    fs_err::copy(&forms[1], &odd).expect("a file");
    let run = |args: &[&str]| {
        let out =
            std::process::Command::new(env!("CARGO_BIN_EXE_mmx")).args(args).arg(&odd).output();
        let out = out.expect("mmx starts");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
        serde_json::from_slice::<Value>(&out.stdout).unwrap_or_else(|e| panic!("{e}: {said}"))
    };
    let report = run(&["verify", "--json", "--engine", "ggml", text(&forms[1])]);
    let rows = report["rows"].as_array().expect("rows");
    let shown = |value: &Value| value.as_str().expect("a path").ends_with("m\u{fffd}.gguf");
    assert!(rows.iter().any(|row| shown(&row["path"])), "{report}");
    assert!(shown(&run(&["inspect", "--json"])["path"]));
}
