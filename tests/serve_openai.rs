//! OpenAI's side of `mmx serve` through the binary: probabilities of prompts, schemas of tools, seeds, fields by name, and
//! what stands at the server's door.

mod common;
#[path = "common/server.rs"]
mod server;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use common::{RECITED, mmx_json, reciting, shared, text};
use serde_json::{Value, json};
use server::{Answer, Server, streamed_text};

const CHAT: &str = "/v1/chat/completions";
const RAW: &str = "/v1/completions";

/// A golden model as a GGUF with its tokenizer, called `m`.
fn golden(dir: &Path, set: &str, model: &str) -> PathBuf {
    let (source, tokenizer) = (shared(&format!("{set}/{model}")), shared(set));
    let out = dir.join(format!("{set}-{model}"));
    let args = ["export", text(&source), "--tokenizer", text(&tokenizer), "--gguf", "f32"];
    let report = mmx_json(&[&args[..], &["--name", "m", "--out", text(&out)]].concat());
    let path = report["files"][0]["path"].as_str().expect("a path").to_owned();
    PathBuf::from(path)
}

/// A case's file.
fn case(path: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cases/turn2");
    let text = fs_err::read_to_string(folder.join(path)).expect("a case");
    serde_json::from_str(&text).expect("JSON")
}

fn user(content: &str) -> Value {
    json!([{"role": "user", "content": content}])
}

/// `base` with the fields of `extra`.
fn with(base: &Value, extra: Value) -> Value {
    let mut body = base.clone();
    let Value::Object(extra) = extra else { panic!("expected an object") };
    body.as_object_mut().expect("an object").extend(extra);
    body
}

/// An answer of 400 whose error names `param`; its message.
fn refused(answer: &Answer, param: &str, what: &Value) -> String {
    assert_eq!(answer.status, 400, "{what}: {}", answer.text());
    assert_eq!(answer.json()["error"]["param"], param, "{what}: {}", answer.text());
    answer.message()
}

#[test]
fn echo_logprobs() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let server = Server::start(&[text(&model), "--name", "m"]);
    let case = case("echo-logprobs/requests.json");
    let tolerance = case["tolerance"].as_f64().expect("a number");
    let near = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= tolerance,
        _ => a.is_null() && b.is_null(),
    };
    // twice: what was computed before is of no use, and does no harm
    for case in
        [&case["cases"], &case["cases"]].into_iter().flat_map(|c| c.as_array().expect("cases"))
    {
        let found = server.ask(RAW, &case["request"]);
        let list =
            |key: &str| found["choices"][0]["logprobs"][key].as_array().expect("a list").clone();
        let expected = case["token_logprobs_of_the_prompt"].as_array().expect("a list");
        let (tokens, own, top) = (list("tokens"), list("token_logprobs"), list("top_logprobs"));
        let lengths = [tokens.len(), own.len(), top.len(), list("text_offset").len()];
        assert_eq!(lengths, [expected.len() + 1; 4], "the prompt, and what was drawn");
        assert!(own.iter().zip(expected).all(|(a, b)| near(a, b)), "{own:?} for {expected:?}");
        for (top, expected) in
            top.iter().zip(case["most_likely_id_and_logprob"].as_array().expect("a list"))
        {
            match expected.as_object().and_then(|e| e.values().next()) {
                None => assert!(top.is_null()),
                Some(expected) => {
                    let best = top.as_object().and_then(|t| t.values().next()).expect("a token");
                    assert!(near(best, expected), "{top} for {expected}");
                }
            }
        }
        let context = case["lm_eval"]["context_tokens"].as_u64().expect("a number") as usize;
        let sum: f64 = own[context..own.len() - 1].iter().filter_map(Value::as_f64).sum();
        assert!(near(&sum.into(), &case["lm_eval"]["sum_of_token_logprobs[context:-1]"]), "{sum}");
        let said: String = tokens.iter().filter_map(Value::as_str).collect();
        assert!(said.starts_with(found["choices"][0]["text"].as_str().expect("text")), "{said}");

        // the prompt alone
        let alone = server.ask(RAW, &with(&case["request"], json!({"max_tokens": 0})));
        assert_eq!(alone["choices"][0]["logprobs"]["token_logprobs"], json!(own[..own.len() - 1]));
        assert_eq!(alone["choices"][0]["finish_reason"], "length");
        assert_eq!(alone["usage"]["completion_tokens"], 0);
    }
    let nothing = json!({"prompt": "x", "max_tokens": 0});
    let message = refused(&server.post(RAW, &nothing), "max_tokens", &nothing);
    assert!(message.contains("at least 1"), "{message}");
}

/// Texts and ids, several choices, streamed and whole: every form gives the same lists.
#[test]
fn probabilities_of_prompts_are_the_same_in_every_form_of_a_request() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    // a prompt of more tokens than a step reads beside others
    let server = Server::start(&[
        text(&model),
        "--name",
        "m",
        "--kv",
        "f32",
        "--ctx",
        "1000",
        "--parallel",
        "3",
    ]);
    let long = "好😀 3 apples and 4 pears, ".repeat(40);
    let base = json!({"prompt": ["好😀一下", long], "max_tokens": 5, "temperature": 0.8, "seed": 3, "n": 2,
        "logprobs": 2, "echo": true, "ignore_eos": true});
    let whole = server.ask(RAW, &base);
    let choices = whole["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 4);
    let close = |a: &Value, b: &Value| {
        let lists = [a, b].map(|v| v.as_array().expect("a list"));
        assert_eq!(lists[0].len(), lists[1].len());
        // sums in another order where other texts are in a step
        let near = |(a, b): (&Value, &Value)| {
            a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() < 1e-4)
        };
        assert!(lists[0].iter().zip(lists[1]).all(near), "{a}\n{b}");
    };
    let mut found = 0;
    for (i, choice) in choices.iter().enumerate() {
        let text = choice["text"].as_str().expect("text");
        assert!(text.starts_with(base["prompt"][i / 2].as_str().expect("a prompt")), "{text}");
        let logprobs = &choice["logprobs"];
        let first = &choices[i / 2 * 2]["logprobs"];
        let prompt = first["tokens"].as_array().expect("tokens").len() - 5;
        let of_prompt =
            |v: &Value| json!(v["token_logprobs"].as_array().expect("a list")[..prompt]);
        close(&of_prompt(logprobs), &of_prompt(first));
        // where a token is whole characters, it stands at its offset
        let characters: Vec<char> = text.chars().collect();
        let tokens = logprobs["tokens"].as_array().expect("tokens");
        let offsets = logprobs["text_offset"].as_array().expect("offsets");
        for (token, offset) in tokens[..prompt].iter().zip(offsets) {
            let (token, offset) =
                (token.as_str().expect("text"), offset.as_u64().expect("a number") as usize);
            if !token.contains('\u{fffd}') && offset < characters.len() {
                let there: String =
                    characters[offset..].iter().take(token.chars().count()).collect();
                assert!(token.starts_with(&there), "{token:?} is not {there:?} at {offset}");
                found += 1;
            }
        }
    }
    assert!(found > 100, "{found} tokens stand at their offsets");
    let events = server.post(RAW, &with(&base, json!({"stream": true}))).events();
    for (i, choice) in choices.iter().enumerate() {
        let mine = || events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == i);
        let said: String = mine().filter_map(|c| c["text"].as_str()).collect();
        assert_eq!(said, choice["text"]);
        assert!(mine().next().is_some_and(|c| c["logprobs"]["token_logprobs"][0].is_null()));
        for key in ["token_logprobs", "text_offset"] {
            let lists = mine().filter_map(|c| c["logprobs"][key].as_array());
            close(&lists.flatten().cloned().collect(), &choice["logprobs"][key]);
        }
    }
    // the same as ids
    let tokenizer = mmx_converters::tokenizer::Tokenizer::open(shared("golden")).expect("golden");
    let ids: Vec<Vec<u32>> = ["好😀一下", &long].map(|p| tokenizer.encode(p).expect("ids")).into();
    let found = server.ask(RAW, &with(&base, json!({"prompt": ids})));
    for (found, expected) in found["choices"].as_array().expect("choices").iter().zip(choices) {
        assert_eq!(found["text"], expected["text"]);
        close(&found["logprobs"]["token_logprobs"], &expected["logprobs"]["token_logprobs"]);
    }
    // what was read for its probabilities serves others
    assert_eq!(server.metric("texts_failed_total{"), 0.0);
    let plain = server.ask(RAW, &json!({"prompt": long, "max_tokens": 1, "echo": true}));
    assert!(plain["choices"][0]["logprobs"].is_null());
    assert!(
        plain["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(100),
        "{plain}"
    );
}

/// A harness counts the list from its end: a text that ends at once has its end token there.
#[test]
fn the_end_of_a_text_after_an_echo_has_its_probability() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let server = Server::start(&[text(&model), "--name", "m"]);
    let body =
        json!({"prompt": RECITED, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true});
    let found = server.ask(RAW, &body);
    assert_eq!(
        (&found["choices"][0]["text"], &found["choices"][0]["finish_reason"]),
        (&json!(RECITED), &json!("stop"))
    );
    let tokens = found["choices"][0]["logprobs"]["tokens"].as_array().expect("tokens").clone();
    assert_eq!(Some(tokens.len() as u64 - 1), found["usage"]["prompt_tokens"].as_u64());
    assert_eq!(tokens[tokens.len() - 1], "<|im_end|>");
}

#[test]
fn tool_defs() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden-2026", "minimind3");
    let server = Server::start(&[text(&model), "--name", "m"]);
    let arguments = |answer: &Value| -> Vec<(String, Value)> {
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().expect("calls");
        let one = |call: &Value| {
            let text = call["function"]["arguments"].as_str().expect("a string");
            let name = call["function"]["name"].as_str().expect("a name").to_owned();
            (name, serde_json::from_str(text).expect("JSON"))
        };
        calls.iter().map(one).collect()
    };
    let stop = |value: &Value| {
        value.as_object().is_some_and(|o| o.len() == 1)
            && (value["place"] == "Aa" || value["place"] == "Bb")
    };
    let request = case("tool-defs/request.json");
    for choice in [
        json!("required"),
        json!({"type": "function", "function": {"name": "book"}}),
        json!({"type": "function", "function": {"name": "count"}}),
    ] {
        for seed in 0..4 {
            let body =
                with(&request, json!({"tool_choice": choice, "temperature": 1, "seed": seed}));
            let answer = server.post(CHAT, &body);
            assert_eq!(answer.status, 200, "{}", answer.text());
            let answer = answer.json();
            if answer["choices"][0]["finish_reason"] == "length" {
                continue; // calls without end
            }
            for (name, arguments) in arguments(&answer) {
                let fits = match name.as_str() {
                    "book" => {
                        let others = arguments["others"].as_array().expect("a list");
                        stop(&arguments["first"]) && others.len() <= 1 && others.iter().all(stop)
                    }
                    _ => arguments["n"].as_i64().is_some_and(|n| (0..=9).contains(&n)),
                };
                assert!(fits, "{name}: {arguments}");
            }
        }
    }
    let recursive = case("tool-defs/recursive.json");
    let mut whole = 0;
    for seed in 0..60 {
        let answer = server.ask(CHAT, &with(&recursive, json!({"seed": seed})));
        let text = answer["choices"][0].to_string();
        assert!(!text.contains("\\\\\\\"arguments"), "seed {seed}: {text}");
        if answer["choices"][0]["finish_reason"] != "tool_calls" {
            continue;
        }
        for (name, mut node) in arguments(&answer) {
            assert_eq!(name, "tree");
            loop {
                assert!(node["v"] == 0 || node["v"] == 1, "seed {seed}: {text}");
                let fields = node.as_object().expect("an object").clone();
                assert!(fields.keys().all(|k| k == "v" || k == "next"), "seed {seed}: {text}");
                match fields.get("next") {
                    Some(next) => node = next.clone(),
                    None => break,
                }
            }
            whole += 1;
        }
    }
    assert!(whole > 20, "{whole} calls are whole");
    for parameters in
        [json!({"type": "x"}), json!({"properties": {"a": {"$ref": "#/$defs/A"}}}), json!([])]
    {
        let mut body = request.clone();
        body["tools"][1]["function"]["parameters"] = parameters.clone();
        let message =
            refused(&server.post(CHAT, &body), "tools[1].function.parameters", &parameters);
        assert!(message.contains("tools[1].function.parameters"), "{message}");
    }
    // a schema that means itself and nothing else
    let mut body = recursive.clone();
    body["tools"][0]["function"]["parameters"] = json!({"$ref": "#"});
    let answer = server.post(CHAT, &body);
    let message = answer.message();
    assert!(answer.status == 400 && message.contains("no text fits the schema"), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn seed_minus_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let server = Server::start(&[text(&model), "--name", "m"]);
    let request = case("seed-minus-one/request.json");
    let text_of = |body: &Value| server.ask(CHAT, body)["choices"][0]["message"]["content"].clone();
    let texts: Vec<Value> = (0..5).map(|_| text_of(&request)).collect();
    assert!(texts.iter().any(|t| *t != texts[0]), "{texts:?}");
    let fixed = with(&request, json!({"seed": 7.0}));
    assert_eq!(text_of(&fixed), text_of(&fixed));
    for seed in [-2, i64::MIN] {
        let message =
            refused(&server.post(CHAT, &with(&request, json!({"seed": seed}))), "seed", &request);
        assert!(message.starts_with("seed: expected 0 or more, or -1"), "{message}");
    }
    let ollama = |seed: i64| {
        let options = json!({"seed": seed, "temperature": 2.0, "num_predict": 12});
        server.post(
            "/api/chat",
            &json!({"messages": user("hi"), "stream": false, "options": options}),
        )
    };
    let texts: Vec<Value> =
        (0..5).map(|_| ollama(-1).json()["message"]["content"].clone()).collect();
    assert!(texts.iter().any(|t| *t != texts[0]), "{texts:?}");
    let answer = ollama(-5);
    assert_eq!(answer.status, 400);
    let said = "options.seed: expected -1 (choose one), 0 or more";
    assert!(answer.text().contains(said), "{}", answer.text());
}

#[test]
fn host_docker() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let server = Server::start(&[text(&model), "--name", "m", "--allowed-host", "Box.lan"]);
    let port = server.address.rsplit(':').next().expect("a port").to_owned();
    let ask = |method: &str, path: &str, host: &str| -> (u16, String) {
        let mut stream = TcpStream::connect(&server.address).expect("a connection");
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("sent");
        let mut bytes = String::new();
        stream.read_to_string(&mut bytes).expect("an answer");
        let status = bytes.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        (status, bytes)
    };
    for request in case("host-docker/requests.json").as_array().expect("requests") {
        let field = |key: &str| request[key].as_str().expect("text").replace("PORT", &port);
        let (status, said) = ask(&field("method"), &field("path"), &field("host"));
        assert_eq!(status, request["status"], "{request}: {said}");
        if status == 403 {
            assert!(said.contains(&field("host")) && said.contains("--allowed-host"), "{said}");
        }
    }
    assert_eq!(ask("GET", "/v1/models", "box.lan").0, 200);
    assert_eq!(ask("GET", "/api/tags", &format!("BOX.lan:{port}")).0, 200);
    assert_eq!(ask("GET", "/v1/models", "other.lan").0, 403);
    let any = Server::start(&[text(&model), "--allowed-host", "*"]);
    let header = "Host: other.lan\r\n";
    // the second Host header of two: both are refused by the HTTP library or the first counts
    assert!(any.request("GET", "/v1/models", header, b"").status < 500);
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_mmx"))
        .args(["serve", text(&model), "--allowed-host", "http://box.lan/"])
        .output()
        .expect("mmx starts");
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("--allowed-host: expected a name"));
}

/// What no browser sends as an origin, and a name that no request can ask for, are misuse: they would do nothing.
#[test]
fn origins_and_names_that_nobody_can_send_are_misuse() {
    for (option, value, expected) in [
        ("--cors", "app.example", "--cors: expected an origin such as https://app.example"),
        ("--cors", "https://", "--cors: expected an origin"),
        ("--cors", "https://app.example/page", "--cors: expected an origin"),
        ("--name", "", "--name: expected a model's name, found none"),
    ] {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_mmx"))
            .args(["serve", "no-model.gguf", option, value])
            .output()
            .expect("mmx starts");
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{option} {value}: {stderr}");
        assert!(stderr.contains(expected), "{option} {value}: {stderr}");
    }
}

#[test]
fn both_names() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let server = Server::start(&[text(&model), "--name", "m"]);
    let base =
        json!({"messages": user("hi"), "temperature": 0, "ignore_eos": true, "max_tokens": 2});
    for (names, same, other) in [
        (["max_tokens", "max_completion_tokens"], json!(3), json!(4)),
        (["max_completion_tokens", "n_predict"], json!(2), json!(4)),
        (["repetition_penalty", "repeat_penalty"], json!(1.5), json!(1.25)),
    ] {
        let body = with(&base, json!({names[0]: same, names[1]: same}));
        let body =
            if names[1] == "n_predict" { with(&body, json!({"max_tokens": same})) } else { body };
        server.ask(CHAT, &body);
        let body = with(&body, json!({names[1]: other}));
        let answer = server.post(CHAT, &body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        let message = answer.message();
        assert!(names.iter().all(|name| message.contains(name)), "{message}");
    }
    let limits = json!({"max_tokens": 3, "max_completion_tokens": 3});
    assert_eq!(server.ask(CHAT, &with(&base, limits))["usage"]["completion_tokens"], 3);
}

/// Types, values and unknown names: whatever is wrong is named, in every route.
#[test]
fn what_is_wrong_in_a_request_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let server = Server::start(&[text(&model), "--name", "m", "--ctx", "100"]);
    let chat = json!({"messages": user("hi"), "max_tokens": 2});
    let raw = json!({"prompt": "hi", "max_tokens": 2});
    let embed = json!({"input": "hi"});
    for (path, base, extra, param) in [
        (CHAT, &chat, json!({"max_tokens": "5"}), "max_tokens"),
        (CHAT, &chat, json!({"max_tokens": 5.5}), "max_tokens"),
        (CHAT, &chat, json!({"seed": "7"}), "seed"),
        (CHAT, &chat, json!({"temperature": []}), "temperature"),
        (CHAT, &chat, json!({"repeat_penalty": 0}), "repeat_penalty"),
        (CHAT, &chat, json!({"stream": "yes"}), "stream"),
        (CHAT, &chat, json!({"stop": ["a", 5]}), "stop[1]"),
        (CHAT, &chat, json!({"logit_bias": [[65]]}), "logit_bias"),
        (CHAT, &chat, json!({"messages": "hi"}), "messages"),
        (CHAT, &chat, json!({"model": 5}), "model"),
        (
            CHAT,
            &chat,
            json!({"stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
        ),
        (CHAT, &chat, json!({"stream_options": {"x": 1}}), "stream_options.x"),
        (CHAT, &chat, json!({"reasoning_effort": "huge"}), "reasoning_effort"),
        (
            CHAT,
            &chat,
            json!({"reasoning_effort": "none", "enable_thinking": true}),
            "reasoning_effort",
        ),
        (CHAT, &chat, json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (
            CHAT,
            &chat,
            json!({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}),
            "messages[0].images",
        ),
        (RAW, &raw, json!({"prompt": null}), "prompt"),
        (RAW, &raw, json!({"prompt": ["a", 5]}), "prompt[1]"),
        (RAW, &raw, json!({"prompt": [5, "a"]}), "prompt[1]"),
        (RAW, &raw, json!({"prompt": [[5], [6, -1]]}), "prompt[1][1]"),
        (RAW, &raw, json!({"prompt": "x ".repeat(200)}), "prompt"),
        (RAW, &raw, json!({"best_of": 3}), "best_of"),
        (RAW, &raw, json!({"suffix": "x"}), "suffix"),
        (RAW, &raw, json!({"echo": 1}), "echo"),
        (RAW, &raw, json!({"messages": user("hi")}), "messages"),
        ("/v1/embeddings", &embed, json!({"dimensions": "x"}), "dimensions"),
        ("/v1/embeddings", &embed, json!({"input": {"a": 1}}), "input"),
        ("/v1/embeddings", &embed, json!({"truncate_prompt_tokens": 5}), "truncate_prompt_tokens"),
    ] {
        let body = with(base, extra);
        let message = refused(&server.post(path, &body), param, &body);
        assert!(message.contains(param) && !message.contains("column"), "{message}");
    }
    for (path, base) in [(CHAT, &chat), (RAW, &raw), ("/v1/embeddings", &embed)] {
        for (name, value, neutral) in [
            ("mirostat", json!(2), Some(json!(0))),
            ("min_tokens", json!(5), Some(json!(0))),
            ("guided_json", json!({"type": "object"}), None),
            ("functions", json!([{"name": "f"}]), Some(json!([]))),
            ("top_a", json!(0.5), Some(json!(0.0))),
            ("temprature", json!(1), None),
        ] {
            let body = with(base, json!({name: value}));
            let message = refused(&server.post(path, &body), name, &body);
            assert!(message.starts_with(name), "{message}");
            let neutral = [Some(Value::Null), neutral];
            for neutral in neutral.into_iter().flatten() {
                server.ask(path, &with(base, json!({name: neutral})));
            }
        }
        server.ask(path, &with(base, json!({"user": "u", "metadata": {"a": "b"}, "store": false})));
    }
    for extra in [
        json!({"max_tokens": 5.0, "seed": 7.0, "top_k": 3.0, "n": 1.0}),
        json!({"logit_bias": [[65, -1], ["hi", false]]}),
        json!({"logit_bias": {"65": -1.0}, "stop": null, "temperature": null}),
        json!({"reasoning_effort": "none", "enable_thinking": false}),
    ] {
        server.ask(CHAT, &with(&chat, extra));
    }
    // what is forbidden never comes: of all ids one is left
    let forbidden: Vec<Value> =
        (0..512).filter(|&id| id != 65).map(|id| json!([id, false])).collect();
    let one =
        json!({"logit_bias": forbidden, "temperature": 1, "max_tokens": 3, "ignore_eos": true});
    let tokenizer = mmx_converters::tokenizer::Tokenizer::open(shared("golden")).expect("golden");
    assert_eq!(
        server.ask(RAW, &with(&raw, one))["choices"][0]["text"],
        tokenizer.decode(&[65; 3], true)
    );
}

#[test]
fn names_of_models_may_have_slashes() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let args = [text(&model), text(&model), "--name", "me/my-model", "--name", "a/b/c:x y"];
    let server = Server::start(&args);
    for (path, id) in [
        ("/v1/models/me/my-model", "me/my-model"),
        ("/v1/models/me%2Fmy-model", "me/my-model"),
        ("/v1/models/a/b/c:x%20y", "a/b/c:x y"),
        ("/v1/models/a%2Fb%2Fc%3Ax%20y", "a/b/c:x y"),
    ] {
        assert_eq!(server.get(path).json()["id"], id, "{path}");
    }
    assert_eq!(server.get("/v1/models/me/other").status, 404);
    let body = json!({"model": "me/my-model", "messages": user("x"), "temperature": 0});
    assert_eq!(server.ask(CHAT, &body)["choices"][0]["message"]["content"], RECITED);
    let streamed = server.post(CHAT, &with(&body, json!({"stream": true}))).events();
    assert_eq!(streamed_text(&streamed), RECITED);
    assert!(server.ask("/api/show", &json!({"model": "me/my-model"}))["details"].is_object());
}

#[test]
fn pages_of_allowed_origins_may_send_what_the_known_clients_send() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let server = Server::start(&[text(&model), "--cors", "https://a.example/", "--api-key", "k"]);
    let ask = |more: &str| {
        let headers =
            format!("Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n{more}");
        server.request("OPTIONS", CHAT, &headers, b"")
    };
    let asked =
        "Access-Control-Request-Headers: authorization,content-type,x-stainless-arch,x-mine\r\n";
    let answer = ask(asked);
    assert_eq!(answer.status, 204);
    let allowed = |answer: &Answer| -> Vec<String> {
        let prefix = "access-control-allow-headers: ";
        let line = answer.headers.lines().find_map(|l| l.strip_prefix(prefix)).expect("a header");
        line.split(", ").map(str::to_owned).collect()
    };
    let names = allowed(&answer);
    for name in [
        "authorization",
        "content-type",
        "x-stainless-arch",
        "x-stainless-timeout",
        "openai-project",
        "x-mine",
    ] {
        assert!(names.iter().any(|n| n == name), "{name}: {names:?}");
    }
    assert!(allowed(&ask("")).iter().any(|n| n == "x-stainless-os"));
    assert!(answer.headers.contains("access-control-allow-origin: https://a.example"));
    let other =
        server.request("OPTIONS", CHAT, &format!("Origin: https://b.example\r\n{asked}"), b"");
    assert!(other.status == 403 && !other.headers.contains("access-control-allow-headers"));
}

/// A text that waits for its turn: the headers come at once, comments while it waits, then the text.
#[test]
fn a_stream_that_waits_in_the_queue_is_kept_alive() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let args = ["--name", "m", "--parallel", "1", "--ctx", "30000", "--max-tokens", "30000"];
    let server = Server::start(&[&[text(&model)], &args[..]].concat());
    // 16 long texts, one after the other, whose client reads no more than the beginning
    let long = json!({"messages": user("x"), "stream": true, "ignore_eos": true, "n": 16,
        "logprobs": true, "top_logprobs": 20});
    let mut slow = server.send("POST", CHAT, "", long.to_string().as_bytes());
    assert!(slow.read(&mut [0; 64]).expect("a beginning") > 0);
    let body =
        json!({"prompt": "hi", "stream": true, "max_tokens": 2, "ignore_eos": true}).to_string();
    let mut waiting = server.send("POST", RAW, "", body.as_bytes());
    let mut bytes = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&bytes).contains(": waiting\n\n") {
        let n = waiting.read(&mut buffer).expect("a comment");
        assert!(n > 0, "it ended: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buffer[..n]);
    }
    assert!(String::from_utf8_lossy(&bytes).to_lowercase().contains("x-accel-buffering: no"));
    drop(slow);
    waiting.read_to_end(&mut bytes).expect("the rest");
    assert!(String::from_utf8_lossy(&bytes).contains("data: [DONE]"));
}
