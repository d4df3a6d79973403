//! `mmx verify --engine ollama:NAME` and `openai:URL`: running servers beside the forms of a model, in one table.

#[path = "common/answering.rs"]
mod answering;
mod common;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "common/server.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use answering::answering;
use common::{mmx_json, shared, text};
use serde_json::{Value, json};
use server::Server;

/// A golden model of the older set as a GGUF, with its tokenizer.
fn gguf(dir: &Path, model: &str, ty: &str) -> PathBuf {
    let (source, tokenizer) = (shared(&format!("golden/{model}")), shared("golden"));
    let out = dir.join(format!("{model}-{ty}"));
    let args = ["export", text(&source), "--tokenizer", text(&tokenizer), "--name", model];
    let report = mmx_json(&[&args[..], &["--gguf", ty, "--out", text(&out)]].concat());
    PathBuf::from(report["files"][0]["path"].as_str().expect("a path"))
}

fn verify(args: &[&str], ollama: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
    command.arg("verify").args(args).env("OLLAMA_HOST", ollama).env_remove("OPENAI_API_KEY");
    command.output().expect("mmx starts")
}

fn report(args: &[&str], ollama: &str) -> (Value, Option<i32>) {
    let out = verify(&[args, &["--json"]].concat(), ollama);
    let said = String::from_utf8_lossy(&out.stderr);
    let report = serde_json::from_slice(&out.stdout);
    (report.unwrap_or_else(|e| panic!("{args:?}: {e}: {said}")), out.status.code())
}

fn rows<'r>(report: &'r Value, engine: &str) -> Vec<&'r Value> {
    let rows = report["rows"].as_array().expect("rows").iter();
    rows.filter(|row| row["engine"] == engine).collect()
}

/// 1e-3: the server keeps its cache in float16, verify in float32.
#[test]
fn servers_of_the_same_file_are_equal_in_one_table_with_the_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let (one, other) =
        (gguf(dir.path(), "minimind3", "f32"), gguf(dir.path(), "minimind3", "q8_0"));
    let running = Server::start(&[text(&one), "--name", "gold"]);
    let url = format!("openai:http://{}", running.address);
    let args = [text(&one), text(&other), "--engine", &url, "--engine", "ollama:gold"];
    let (report, code) = report(&args, &running.address);
    assert_eq!((&report["ok"], code), (&json!(true), Some(0)), "{report}");
    assert_eq!(rows(&report, "ggml").len() + rows(&report, "llama.cpp").len(), 3, "{report}");
    for (engine, name) in [("openai", url.as_str()), ("ollama", "ollama:gold")] {
        let rows = rows(&report, engine);
        assert_eq!(rows.len(), 1, "{report}");
        let row = rows[0];
        assert_eq!((&row["path"], &row["tokens_equal"]), (&json!(name), &json!(true)), "{row}");
        assert_eq!((&row["top1_agreement"], &row["first_difference"]), (&json!(1.0), &json!(null)));
        let far = row["max_abs_diff"].as_f64().expect("log-probabilities");
        assert!(far < 1e-3 && row["mean_kl"].as_f64().expect("a number") < 1e-6, "{row}");
        let count = row["tokens"].as_u64().expect("a number");
        assert!(count > 24, "a text and a chat: {row}");
    }
    assert_eq!(rows(&report, "ollama")[0]["type"], "F32");
    let shown = verify(&args, &running.address);
    let shown = String::from_utf8(shown.stdout).expect("UTF-8");
    assert!(shown.lines().any(|l| l.starts_with(&url) && l.ends_with("ok")), "{shown}");
    // only the server: no other form is needed
    let named = format!("{url}/v1#gold");
    let (alone, _) = self::report(&[text(&one), "--engine", &named], "");
    assert_eq!(rows(&alone, "openai")[0]["ok"], true);
}

#[test]
fn another_model_on_the_server_does_not_pass_and_the_first_difference_is_shown() {
    let dir = tempfile::tempdir().expect("a folder");
    let (one, other) = (gguf(dir.path(), "minimind3", "f32"), gguf(dir.path(), "minimind2", "f32"));
    let running = Server::start(&[text(&other)]);
    let url = format!("openai:http://{}", running.address);
    let (report, code) = report(&[text(&one), "--engine", &url], "");
    assert_eq!((&report["ok"], code), (&json!(false), Some(1)), "{report}");
    let row = rows(&report, "openai")[0];
    let first = &row["first_difference"];
    assert!(first["position"].is_u64() && first["expected"] != first["found"], "{row}");
    assert!(first["logit_gap"].as_f64().expect("a number") > 0.0, "{row}");
    assert!(row["mean_kl"].as_f64().expect("a number") > 0.01, "{row}");
    let out = verify(&[text(&one), "--engine", &url], "");
    let shown = String::from_utf8(out.stdout).expect("UTF-8");
    assert!(shown.contains("first differing token: ") && shown.contains("NO: mean_kl"), "{shown}");
    let wrong = format!("{url}#none");
    let said = String::from_utf8(verify(&[text(&one), "--engine", &wrong], "").stderr);
    let said = said.expect("UTF-8");
    assert!(said.contains("expected the model none, found "), "{said}");
    for misuse in ["openai:box", "ollama:", "vllm"] {
        assert_eq!(
            verify(&[text(&one), "--engine", misuse], "").status.code(),
            Some(2),
            "{misuse}"
        );
    }
    assert_eq!(verify(&[text(&one), "--engine", "ggml"], "").status.code(), Some(2));
    let gone = verify(&[text(&one), "--engine", "openai:http://127.0.0.1:9"], "");
    assert_eq!(gone.status.code(), Some(1));
}

/// A server that gives texts and nothing else, and no chat.
fn bare(answer: String) -> String {
    let address = answering(move |_, path, _| {
        let (status, body) = match path {
            "/v1/models" => (200, json!({"data": [{"id": "bare"}]})),
            "/v1/completions" => (200, json!({"choices": [{"text": answer}]})),
            _ => (404, json!({"error": {"message": "no chats here"}})),
        };
        (status, body.to_string())
    });
    format!("openai:http://{address}")
}

#[test]
fn what_a_server_does_not_return_is_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = common::reciting(dir.path(), None, json!(2), 2);
    let tokenizer = mmx_converters::tokenizer::Tokenizer::open(&model).expect("a tokenizer");
    assert!(tokenizer.template().is_some());
    let run = ["run", text(&model), "-p", "Once upon a time", "-n", "24", "--greedy", "--raw"];
    let own = mmx_json(&run)["text"].as_str().expect("a text").to_owned();
    let (report, code) = report(&[text(&model), "--engine", &bare(own)], "");
    let row = rows(&report, "openai")[0];
    assert_eq!((&row["ok"], code), (&json!(true), Some(0)), "{row}");
    assert_eq!((&row["max_abs_diff"], &row["tokens_equal"]), (&json!(null), &json!(null)), "{row}");
    let lacking = row["not_returned"].to_string();
    for what in ["log-probabilities", "number of a prompt's tokens", "a chat (", "no chats here"] {
        assert!(lacking.contains(what), "{what}: {lacking}");
    }
    let (report, code) = self::report(&[text(&model), "--engine", &bare("谢谢谢".to_owned())], "");
    let row = rows(&report, "openai")[0];
    assert_eq!((&row["ok"], code), (&json!(false), Some(1)), "{row}");
    assert!(row["first_difference"]["position"].is_u64(), "{row}");
}

/// vLLM and Ollama tell a token that ends within a character as an empty text, and the one that completes
/// it as the whole character: what comes after is compared all the same.
#[test]
fn tokens_that_are_parts_of_characters_are_no_ends_and_no_other_tokens() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = gguf(dir.path(), "minimind3", "f32");
    let running = Server::start(&[text(&model), "--name", "gold"]);
    let address = answering(move |_, path, body| match path {
        "/v1/models" => (200, json!({"data": [{"id": "gold"}]}).to_string()),
        "/v1/completions" => {
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            let mut answer = running.ask(path, &body);
            let logprobs = &mut answer["choices"][0]["logprobs"];
            // a part, a part that completes it, and one of which nothing was told before
            for (place, before) in [(3, None), (4, Some("谢")), (9, None)] {
                let told = logprobs["tokens"][place].as_str().expect("a token").to_owned();
                let shown = before.map_or_else(String::new, |part| format!("{part}{told}"));
                logprobs["tokens"][place] = json!(shown);
                let top = logprobs["top_logprobs"][place].as_object_mut().expect("other tokens");
                let logprob = top.remove(&told).expect("the likeliest is the one that is told");
                top.insert(shown, logprob);
            }
            (200, answer.to_string())
        }
        _ => (404, json!({"error": {"message": "no chats here"}}).to_string()),
    });
    let url = format!("openai:http://{address}");
    let (report, code) = report(&[text(&model), "--engine", &url], "");
    let row = rows(&report, "openai")[0];
    assert_eq!((&row["ok"], code), (&json!(true), Some(0)), "{row}");
    assert_eq!((&row["tokens"], &row["top1_agreement"]), (&json!(24), &json!(1.0)), "{row}");
    assert!(row["not_returned"].to_string().contains("parts of characters"), "{row}");
}
