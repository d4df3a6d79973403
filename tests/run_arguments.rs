//! Arguments of the commands that run a model: texts that begin with a dash, values outside their range, and folders of
//! exports in the place of a model.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{mmx, mmx_error, mmx_json, mmx_ok, shared, text};
use serde_json::Value;

/// golden/minimind2 as GGUFs of these types in `dir/export`; the first one.
fn exported(dir: &Path, types: &[&str]) -> PathBuf {
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let out = dir.join("export");
    let mut args = vec!["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "m"];
    args.extend(["--out", text(&out)]);
    types.iter().for_each(|ty| args.extend(["--gguf", ty]));
    let report = mmx_json(&args);
    PathBuf::from(report["files"][0]["path"].as_str().expect("a path"))
}

/// Runs mmx, which must refuse the command line (exit code 2); what it says.
fn misused(args: &[&str]) -> String {
    let out = mmx(args);
    let said = String::from_utf8(out.stderr).expect("stderr is UTF-8");
    assert_eq!(out.status.code(), Some(2), "mmx {args:?}: {said}");
    assert!(out.stdout.is_empty(), "stdout is data");
    said
}

#[test]
fn dash_prompt() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = exported(dir.path(), &["f32"]);
    let file = "tests/fixtures/cases/turn2/dash-prompt/args.json";
    let cases = fs_err::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file));
    let cases: Vec<Vec<String>> = serde_json::from_str(&cases.expect("a case")).expect("lists");
    assert!(cases.len() >= 5);
    let tokenizer = shared("golden");
    for case in &cases {
        let named = |arg: &'_ String| match arg.as_str() {
            "MODEL" => text(&model).to_owned(),
            "TOKENIZER" => text(&tokenizer).to_owned(),
            other => other.to_owned(),
        };
        let args: Vec<String> = case.iter().map(named).collect();
        mmx_ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }
    // the text is what was given, with its dash
    let shown = mmx_ok(&["tokenizer", "show", text(&tokenizer), "-1"]);
    assert_eq!(shown, mmx_ok(&["tokenizer", "show", text(&tokenizer), "--", "-1"]));
    assert!(shown.contains("\"-\"") && shown.contains("\"1\""), "{shown}");
    let run = |prompt: &str| {
        let settings = ["--raw", "--greedy", "-n", "4"];
        mmx_json(&[&["run", text(&model), "-p", prompt][..], &settings].concat())
    };
    assert_eq!(
        run("- x")["prompt_tokens"].as_u64(),
        Some(run("+ x")["prompt_tokens"].as_u64().unwrap())
    );
    // and an option after the text is an option
    let chat = dir.path().join("chat.json");
    fs_err::write(&chat, r#"[{"role": "user", "content": "x"}]"#).expect("a file");
    let said = misused(&["tokenizer", "show", text(&tokenizer), "-1", "--chat", text(&chat)]);
    assert!(said.contains("--chat"), "{said}");
    let ollama = dir.path().join("ollama");
    let golden = shared("golden/minimind2");
    let args = ["export", text(&golden), "--tokenizer", text(&tokenizer), "--gguf", "f32"];
    let more = ["--ollama", "--system", "- be brief", "--out", text(&ollama)];
    mmx_ok(&[&args[..], &more].concat());
    let modelfile = fs_err::read_to_string(ollama.join("Modelfile")).expect("a Modelfile");
    assert!(modelfile.contains("- be brief"), "{modelfile}");
}

/// A message that begins with a dash, and `-p -` for stdin as ever.
#[test]
fn a_dash_alone_reads_stdin() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = exported(dir.path(), &["f32"]);
    let ask = |args: &[&str], stdin: &str| -> Value {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mmx"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mmx starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        std::io::Write::write_all(&mut pipe, stdin.as_bytes()).expect("sent");
        drop(pipe);
        let out = child.wait_with_output().expect("an end");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("JSON")
    };
    let settings = ["--greedy", "-n", "8", "--json"];
    let piped = ask(&[&["run", text(&model), "-p", "-"][..], &settings].concat(), "- and you?");
    let given = ask(&[&["run", text(&model), "-p", "- and you?"][..], &settings].concat(), "");
    assert_eq!(piped["ids"], given["ids"]);
    let chat = ["chat", text(&model), "--system", "--- be brief", "--greedy", "-n", "4", "--json"];
    assert_eq!(ask(&chat, "hi\n")["messages"][0]["content"], "--- be brief");
}

/// Every command names the option, what it expects and what it found, and exits with 2.
#[test]
fn values_outside_their_range_are_misuse_and_name_the_option() {
    let dir = tempfile::tempdir().expect("a folder");
    let gguf = exported(dir.path(), &["f32"]);
    let (model, golden, tokenizer) = (text(&gguf), shared("golden/minimind2"), shared("golden"));
    let (golden, tokenizer) = (text(&golden), text(&tokenizer));
    let out = dir.path().join("never-written");
    let out = text(&out);
    let ids = shared("golden/minimind2/forward.safetensors");
    let poem = dir.path().join("poem.txt");
    fs_err::write(&poem, "a text").expect("a file");
    let poem = text(&poem);
    let run = ["run", model, "-p", "x"];
    let serve = ["serve", model, "--port", "0"];
    let bench = ["bench", model];
    let imatrix = ["imatrix", model, "--data", poem, "--out", out];
    let auto = ["export", golden, "--tokenizer", tokenizer, "--gguf", "auto", "--max-kl", "1"];
    let train = ["tokenizer", "train", "--data", poem, "--vocab-size", "300", "--out", out];
    let logits = ["logits", model, "--ids", text(&ids), "--out", out];
    for (command, option, bad) in [
        (&run[..], "--threads", "0"),
        (&run, "--threads", "-1"),
        (&run, "--threads", "two"),
        (&run, "--ctx", "0"),
        (&run, "--temperature", "-1"),
        (&run, "--temperature", "nan"),
        (&run, "--top-p", "0"),
        (&run, "--top-p", "1.5"),
        (&run, "--min-p", "2"),
        (&run, "--repeat-penalty", "0"),
        (&run, "--seed", "-2"),
        (&["chat", model], "--threads", "0"),
        (&["chat", model], "--ctx", "0"),
        (&serve, "--threads", "0"),
        (&serve, "--ctx", "0"),
        (&serve, "--parallel", "0"),
        (&serve, "--queue", "0"),
        (&serve, "--max-tokens", "0"),
        (&serve, "--max-body", "0"),
        (&bench, "--threads", "0"),
        (&bench, "--repeats", "0"),
        (&bench, "--streams", "1,0"),
        (&["verify", model, model], "--threads", "0"),
        (&["verify", model, model], "--tokens", "0"),
        (&logits, "--threads", "0"),
        (&["eval", model, "--ppl", poem], "--threads", "0"),
        (&["eval", model, "--ppl", poem], "--ctx", "0"),
        (&["eval", model, "--ppl", poem], "--stride", "0"),
        (&["eval", model, "--ppl", poem], "--max-tokens", "0"),
        (&imatrix, "--threads", "0"),
        (&imatrix, "--chunk", "1"),
        (&imatrix, "--chunks", "0"),
        (&auto, "--tokens", "0"),
        (&train, "--word-memory", "0"),
    ] {
        let said = misused(&[command, &[option, bad]].concat());
        let found = bad.split(',').next_back().expect("a value");
        for part in [option, "expected", &format!("found {found}")] {
            assert!(said.contains(part), "{command:?} {option} {bad}: {part:?} is not in: {said}");
        }
    }
    assert!(misused(&["run", model, "-p", "x", "-t", "0"]).contains("--threads"));
    assert!(!Path::new(out).exists());
}

#[test]
fn a_seed_of_minus_one_chooses_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = exported(dir.path(), &["f32"]);
    let seed =
        || mmx_json(&["run", text(&model), "-p", "x", "-n", "1", "--seed", "-1"])["seed"].clone();
    assert_ne!(seed(), seed());
}

/// What `mmx export` writes is a model wherever one is asked for, as long as there is no choice.
#[test]
fn a_folder_of_exports_stands_for_its_gguf() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = exported(dir.path(), &["f32"]);
    let folder = file.parent().expect("a folder");
    fs_err::write(folder.join("notes.txt"), "mine").expect("a file");
    let run = |model: &Path| {
        mmx_json(&["run", text(model), "-p", "x", "-n", "6", "--greedy"])["ids"].clone()
    };
    assert_eq!(run(folder), run(&file));
    // what is no model beside it is no choice
    let importance = folder.join("importance.gguf");
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    mmx_ok(&[
        "imatrix",
        text(&file),
        "--data",
        readme,
        "--out",
        text(&importance),
        "--chunks",
        "1",
    ]);
    assert_eq!(run(folder), run(&file));
    let bench = mmx_json(&["bench", text(folder), "-p", "4", "-n", "2", "-r", "1", "--llama"]);
    assert_eq!(bench["model"], file.file_name().and_then(|n| n.to_str()).expect("a name"));
    assert!(mmx_json(&["verify", text(folder), text(&file)])["ok"] == true);
    let said = mmx(&["serve", text(folder), "--host", "no.such.host.invalid"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("no.such.host.invalid"), "the model was found: {said}");
}

#[test]
fn a_folder_of_several_exports_names_what_to_choose_from() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = exported(dir.path(), &["f32", "q8_0"]);
    let folder = file.parent().expect("a folder");
    let (golden, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let source = [text(&golden), "--tokenizer", text(&tokenizer)];
    mmx_ok(&[&["export"][..], &source, &["--hf", "bf16", "--out", text(folder)]].concat());
    let folder_text = text(folder);
    for args in [
        &["run", folder_text, "-p", "x"][..],
        &["chat", folder_text],
        &["serve", folder_text],
        &["bench", folder_text],
        &["verify", folder_text, text(&file)],
        &["verify", text(&file), folder_text],
    ] {
        let error = mmx_error(args);
        assert!(error.contains("expected one GGUF in this folder of exports, found 2"), "{error}");
        let hint = String::from_utf8(mmx(args).stderr).expect("text");
        for name in ["f32.gguf", "q8_0.gguf", "hf-bf16"] {
            assert!(hint.contains(name), "{name} is not in: {hint}");
        }
    }
    // Transformers folders alone are named as well
    let alone = dir.path().join("alone");
    mmx_ok(&[&["export"][..], &source, &["--hf", "f32", "--out", text(&alone)]].concat());
    let error = mmx_error(&["run", text(&alone), "-p", "x"]);
    assert!(error.contains("found 0"), "{error}");
    let hint = String::from_utf8(mmx(&["run", text(&alone), "-p", "x"]).stderr).expect("text");
    assert!(hint.contains("hf-f32"), "{hint}");
}
