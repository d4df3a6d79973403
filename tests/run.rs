//! `mmx run`, `mmx chat` and `mmx bench` through the binary: the fields of their JSON, the text as it streams, where it
//! ends, the ids against the other engines, and conversations over pipes.

mod common;

use std::path::{Path, PathBuf};

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::{GOLDEN, RECITED, mmx, mmx_error, mmx_json, mmx_ok, reciting, shared, text};
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

/// In the binary: what may begin a stop text is held back, and the stop text is never shown.
#[test]
fn stop_split() {
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

/// config.json ends with 0, the tokenizer with 2; both end the text and neither is in it, from the
/// folder, from its exports, and from the GGUF.
#[test]
fn eos_union() {
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

/// The embedding's rows 259..271 have no token; not even a hot sampler draws one, from the
/// folder or the GGUF.
#[test]
fn tok_vocab_padding() {
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
        let judge = mmx_ggml::judge::LlamaModel::open(&gguf).expect("a GGUF for llama.cpp");
        let mut compared = 0;
        for prompt in ["Translate 一下: apples", "好😀", "3 apples", "a", "一下"] {
            let args = ["run", text(&gguf), "-p", prompt, "--raw", "--greedy", "-n", "40"];
            let report = mmx_json(&[&args[..], &["--kv", "f32"]].concat());
            let found: Vec<u32> = serde_json::from_value(report["ids"].clone()).expect("ids");
            let ids = tokenizer.encode(prompt).expect("ids");
            assert_eq!(report["prompt_tokens"], ids.len(), "{name}");
            let mut others = vec![("llama.cpp", judge.greedy(&ids, 40, 1).expect("greedy"))];
            #[cfg(feature = "train")]
            others.push(("tch", {
                use mmx_training::model::Model;
                let open = mmx_converters::Model::open(&model).expect("a golden model");
                let native = Model::from_model(&open, tch::Device::Cpu, tch::Kind::Float);
                native.expect("tch").greedy(&ids, 40).expect("greedy")
            }));
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

/// `mmx chat` over pipes: starts it.
fn chat(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_mmx"))
        .arg("chat")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mmx starts")
}

/// Types everything at once and waits for the end.
fn chatted(args: &[&str], typed: &str) -> Output {
    let mut child = chat(args);
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(typed.as_bytes()).expect("typed");
    drop(stdin);
    child.wait_with_output().expect("an end")
}

/// What a pipe says, as it says it.
struct Heard {
    pieces: Receiver<Vec<u8>>,
    all: Vec<u8>,
}

impl Heard {
    fn new(mut pipe: impl Read + Send + 'static) -> Self {
        let (sender, pieces) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { pieces, all: Vec::new() }
    }

    /// Waits, a minute at most, until what was said is what is waited for; false when it ends before.
    fn until(&mut self, found: impl Fn(&str) -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(60);
        while !found(&String::from_utf8_lossy(&self.all)) {
            let left = end.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(piece) => self.all.extend(piece),
                Err(_) => return false,
            }
        }
        true
    }
}

/// A golden model whose greedy text has no end, as a GGUF with its tokenizer.
fn endless(dir: &Path) -> PathBuf {
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let args = ["export", text(&model), "--tokenizer", text(&tokenizer), "--gguf", "f32", "--out"];
    mmx_json(&[&args[..], &[text(dir)]].concat());
    gguf_in(dir)
}

#[test]
fn a_chat_over_a_pipe_answers_each_line_and_keeps_its_history() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let history = dir.path().join("talk.json");
    let args = [text(&model), "--greedy", "--system", "S", "--history", text(&history)];
    let kept = || -> Value {
        serde_json::from_str(&fs_err::read_to_string(&history).expect("a history")).expect("JSON")
    };
    let out = chatted(&args, "one\n\ntwo\n");
    assert!(out.status.success());
    // blank lines are no messages; a pipe gets no prompts and no figures
    assert_eq!(String::from_utf8_lossy(&out.stdout), format!("{RECITED}\n{RECITED}\n"));
    let answer = json!({"role": "assistant", "content": RECITED});
    let says = |role: &str, content: &str| json!({"role": role, "content": content});
    let talk = [
        says("system", "S"),
        says("user", "one"),
        answer.clone(),
        says("user", "two"),
        answer.clone(),
    ];
    assert_eq!(kept(), json!(talk));

    let out = chatted(&args, "/help\n/reset\nonce \\\nmore\n/exit\nnever\n");
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && stderr.contains("/exit leaves"), "{stderr}");
    assert!(stderr.contains("the conversation is forgotten"), "{stderr}");
    assert_eq!(kept(), json!([says("system", "S"), says("user", "once \nmore"), answer.clone()]));

    // taken up again, with a call without words in it; --json tells what a turn cost
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]});
    let long = [says("system", "S"), says("user", "a"), call, says("tool", "1"), answer];
    fs_err::write(&history, json!(long).to_string()).expect("written");
    let out = chatted(&[&args[..], &["--json"]].concat(), "b\nc\n");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| {
        panic!(
            "{e}: {} {}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        )
    });
    assert_eq!(report["messages"].as_array().map(Vec::len), Some(9));
    assert_eq!(
        (&report["turns"][1]["text"], &report["turns"][1]["finish"]),
        (&json!(RECITED), &json!("stop"))
    );
    let read = |i: usize| report["turns"][i]["prompt_tokens"].as_u64().expect("a number");
    assert!(read(1) < read(0), "a turn reads its own tokens only: {report}");
    assert_eq!(kept().as_array().map(Vec::len), Some(9));
}

/// The context becomes full within the answer.
#[test]
fn a_full_context_shifts_within_an_answer_or_stops_it_clearly() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = endless(dir.path());
    let history = dir.path().join("talk.json");
    let args = [text(&model), "--greedy", "-n", "700", "--ctx", "256", "--kv", "f32", "--json"];
    let turns = |more: &[&str], typed: &str| -> (Value, String) {
        let out = chatted(&[&args[..], more].concat(), typed);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{stderr}");
        let report: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        (report["turns"].clone(), stderr)
    };
    let (shifted, said) = turns(&["--history", text(&history)], "x\nagain\n");
    for turn in shifted.as_array().expect("turns") {
        assert_eq!((&turn["finish"], &turn["tokens"]), (&json!("length"), &json!(700)), "{said}");
    }
    assert!(
        said.contains("became full") && said.contains("what was oldest is forgotten"),
        "{said}"
    );
    // what the model no longer sees is still in the history
    let kept = fs_err::read_to_string(&history).expect("a history");
    let kept: Value = serde_json::from_str(&kept).expect("JSON");
    assert_eq!((kept.as_array().map(Vec::len), &kept[0]["content"]), (Some(4), &json!("x")));

    let (stopped, said) = turns(&["--when-full", "stop"], "x\n");
    assert_eq!(stopped[0]["finish"], "context");
    assert!(said.contains("the answer stops here") && said.contains("--when-full shift"), "{said}");
    // up to there both are the same text
    let text_of = |turns: &Value| turns[0]["text"].as_str().expect("a text").to_owned();
    let (stopped, shifted) = (text_of(&stopped), text_of(&shifted));
    let stopped = stopped.trim_end_matches('\u{fffd}');
    assert!(stopped.len() > 100 && shifted.starts_with(stopped), "{stopped:?} {shifted:?}");
    // a conversation without room for an answer is refused, with what helps
    let words = "word ".repeat(200);
    let out = chatted(&args, &format!("{words}\n"));
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("error: the context of 256 tokens is full")
            && stderr.contains("hint: `--ctx`"),
        "{stderr}"
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_an_answer_and_not_the_chat() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = endless(dir.path());
    let history = dir.path().join("talk.json");
    let args = [text(&model), "--greedy", "-n", "10000000", "--ctx", "256"];
    let mut child = chat(&[&args[..], &["--history", text(&history)]].concat());
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut out = Heard::new(child.stdout.take().expect("a pipe"));
    let mut err = Heard::new(child.stderr.take().expect("a pipe"));
    let id = child.id().to_string();
    let interrupt = || {
        let sent = Command::new("kill").args(["-INT", &id]).status().expect("kill");
        assert!(sent.success());
    };
    stdin.write_all(b"first\n").expect("typed");
    // more than a context holds: the answer goes on and on
    assert!(out.until(|said| said.len() > 4000), "{}", String::from_utf8_lossy(&err.all));
    interrupt();
    stdin.write_all(b"/reset\n").expect("typed");
    let forgotten = err.until(|said| said.contains("the conversation is forgotten"));
    assert!(forgotten, "the chat is still there: {}", String::from_utf8_lossy(&err.all));
    let before = out.all.len();
    stdin.write_all(b"second\n").expect("typed");
    assert!(out.until(|said| said.len() > before + 4000), "it answers again");
    interrupt();
    drop(stdin);
    assert!(child.wait().expect("an end").success());
    let kept: Value =
        serde_json::from_str(&fs_err::read_to_string(&history).expect("a history")).expect("JSON");
    assert_eq!(kept[0]["content"], "second");
    assert!(
        kept[1]["content"].as_str().is_some_and(|answer| answer.len() > 1000),
        "what was said is kept"
    );
}

#[test]
fn layers_for_a_device_that_is_not_there_are_refused() {
    let folder = shared("golden/minimind2");
    let folder = text(&folder);
    let error = mmx_error(&["run", folder, "-p", "a", "--raw", "--device", "Abacus7"]);
    assert!(error.contains("found Abacus7"), "{error}");
    let out = mmx(&["run", folder, "-p", "a", "--gpu-layers", "2", "--device", "cpu"]);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("expected 0 with --device cpu"), "{stderr}");
}
