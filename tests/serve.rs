//! `mmx serve` through the binary: the protocols' bytes, the texts against `mmx run`, refusals, and
//! a soak.

mod common;
#[path = "common/server.rs"]
mod server;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{RECITED, mmx_json, reciting, shared, text};
use mmx_converters::chat::Options;
use mmx_converters::tokenizer::Tokenizer;
use serde_json::{Value, json};
use server::{Server, streamed_text};

/// A golden model as a GGUF with its tokenizer, called `m`.
fn golden(dir: &Path, set: &str, model: &str) -> PathBuf {
    let (source, tokenizer) = (shared(&format!("{set}/{model}")), shared(set));
    let out = dir.join(format!("{set}-{model}"));
    let args = ["export", text(&source), "--tokenizer", text(&tokenizer), "--gguf", "f32"];
    let report = mmx_json(&[&args[..], &["--name", "m", "--out", text(&out)]].concat());
    let path = report["files"][0]["path"].as_str().expect("a path").to_owned();
    PathBuf::from(path)
}

/// Reads until the text so far is what is waited for.
fn until(stream: &mut std::net::TcpStream, bytes: &mut Vec<u8>, found: impl Fn(&str) -> bool) {
    let mut buffer = [0; 4096];
    while !found(&String::from_utf8_lossy(bytes)) {
        let n = stream.read(&mut buffer).expect("readable");
        assert!(n > 0, "it ended before: {}", String::from_utf8_lossy(bytes));
        bytes.extend_from_slice(&buffer[..n]);
    }
}

fn user(content: &str) -> Value {
    json!([{"role": "user", "content": content}])
}

/// A case's file.
fn case(path: &str) -> Value {
    let text = fs_err::read_to_string(shared("cases/files").join(path)).expect("a case");
    serde_json::from_str(&text).expect("JSON")
}

/// Sends a streamed request and the same one unstreamed: the chunks, and the whole answer. What
/// both cases ask of every chunk is checked.
fn streamed_and_whole(server: &Server, request: &Value) -> (Vec<Value>, Value) {
    let mut request = request.clone();
    request["seed"] = 1.into();
    let answer = server.post("/v1/chat/completions", &request);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let events = answer.events();
    request["stream"] = false.into();
    let whole = server.ask("/v1/chat/completions", &request);
    for event in &events {
        for key in ["id", "created", "model", "object"] {
            assert_eq!(event[key], events[0][key], "{key}");
        }
        assert_eq!(event["object"], "chat.completion.chunk");
    }
    assert_eq!(streamed_text(&events), whole["choices"][0]["message"]["content"], "{request}");
    (events, whole)
}

#[test]
fn sse_protocol() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let server = Server::start(&[text(&model), "--name", "m"]);
    let rules = case("sse-protocol/rules.json");
    let (chunks, whole) = streamed_and_whole(&server, &rules["request"]);
    for (i, chunk) in chunks.iter().enumerate() {
        let choice = &chunk["choices"][0];
        assert_eq!(choice["index"], 0);
        assert!(choice["delta"].is_object() && choice.get("finish_reason").is_some());
        let ends = i + 1 == chunks.len();
        assert_eq!(choice["finish_reason"].is_null(), !ends);
        assert_eq!(choice["delta"]["role"], if i == 0 { json!("assistant") } else { Value::Null });
        if i > 0 && !ends {
            let keys: Vec<_> = choice["delta"].as_object().expect("an object").keys().collect();
            assert_eq!(keys, ["content"]);
        }
        if ends {
            assert_eq!(choice["delta"], json!({}));
            assert_eq!(choice["finish_reason"], whole["choices"][0]["finish_reason"]);
        }
    }
    let one = json!({"messages": user("hi"), "max_tokens": 1, "ignore_eos": true});
    let one = server.ask("/v1/chat/completions", &one);
    assert_eq!(one["usage"]["completion_tokens"], 1);
    assert_eq!(one["choices"][0]["finish_reason"], "length");
    // the client is gone: generation stops
    let mut long = rules["request"].clone();
    (long["max_tokens"], long["ignore_eos"]) = (3000.into(), true.into());
    let body = long.to_string();
    let mut stream = server.send("POST", "/v1/chat/completions", "", body.as_bytes());
    assert!(stream.read(&mut [0; 256]).expect("a beginning") > 0);
    drop(stream);
    let stopped = (0..400).any(|_| {
        std::thread::sleep(Duration::from_millis(25));
        server.metric("texts_cancelled_total{") == 1.0 && server.metric("active{") == 0.0
    });
    assert!(stopped && server.metric("completion_tokens_total{") < 3000.0, "it was written on");
}

#[test]
fn sse_usage() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let server = Server::start(&[text(&model), "--name", "m"]);
    let tokenizer = Tokenizer::open(shared("golden")).expect("golden");
    for request in case("sse-usage/requests.json").as_array().expect("requests") {
        let (events, whole) = streamed_and_whole(&server, request);
        let usage = request["stream_options"]["include_usage"] == true;
        let (chunks, last) = events.split_at(events.len() - usize::from(usage));
        for chunk in chunks {
            assert_eq!(chunk.get("usage"), usage.then_some(&Value::Null), "{request}");
        }
        let found = &whole["usage"];
        let messages = request["messages"].as_array().expect("messages");
        let prompt = tokenizer.encode_chat(messages, &Options::generation()).expect("a prompt");
        assert_eq!(found["prompt_tokens"], prompt.ids.len());
        let sum = found["prompt_tokens"].as_u64().zip(found["completion_tokens"].as_u64());
        assert_eq!(found["total_tokens"].as_u64(), sum.map(|(a, b)| a + b));
        if usage {
            assert_eq!(last[0]["choices"], json!([]));
            for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
                assert_eq!(last[0]["usage"][key], found[key], "{key}");
            }
        }
    }
}

/// A token ends within a character: whole characters go out, each at once.
#[test]
fn sse_utf8() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let server = Server::start(&[text(&model), "--name", "m"]);
    let body = json!({"messages": user("x"), "temperature": 0, "stream": true, "logprobs": true});
    let events = server.post("/v1/chat/completions", &body).events();
    let mut said = String::new();
    for event in &events {
        said.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        assert!(RECITED.starts_with(&said), "{said}");
        // the tokens of what was said so far are all sent: nothing complete is held back
        let tokens = event["choices"][0]["logprobs"]["content"].as_array();
        assert!(tokens.is_none_or(|t| !t.is_empty()), "{event}");
    }
    assert_eq!(said, RECITED);
    let deltas = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    let deltas: Vec<&str> = deltas.filter(|delta| !delta.is_empty()).collect();
    assert!(deltas.iter().all(|delta| !delta.contains('\u{fffd}')), "{deltas:?}");
    assert!(deltas.len() >= 4, "more than one delta: {deltas:?}");
}

#[test]
fn api_content_parts() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let server = Server::start(&[text(&model), "--name", "m"]);
    let tokenizer = Tokenizer::open(shared("golden")).expect("golden");
    for request in case("api-content-parts/requests.json").as_array().expect("requests") {
        let body = json!({"messages": request["messages"], "max_tokens": 1, "ignore_eos": true});
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!(answer.status, request["status"], "{request}: {}", answer.text());
        if answer.status == 200 {
            let prompt = tokenizer.encode(request["prompt"].as_str().expect("a prompt"));
            let length = prompt.expect("ids").len();
            assert_eq!(answer.json()["usage"]["prompt_tokens"], length, "{request}");
            continue;
        }
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["param"].is_string() && error.get("code").is_some(), "{error}");
        let named = request["message_names"].as_str().expect("what the message names");
        assert!(answer.message().contains(named), "{request}: {error}");
    }
}

/// A message that says `<|im_end|>` has said ten characters.
#[test]
fn tok_special_in_content() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let server = Server::start(&[text(&model)]);
    let case = case("tok-special-in-content/messages.json");
    let body = json!({"messages": case["messages"], "max_tokens": 1});
    let found = server.ask("/v1/chat/completions", &body);
    let ids = case["serve_ids"].as_array().expect("ids").len();
    assert_ne!(Some(ids), case["train_ids"].as_array().map(Vec::len));
    assert_eq!(found["usage"]["prompt_tokens"], ids, "no control id from a message");
}

/// Tags of a chat template that only Transformers knows, one that refuses, and one that does not
/// compile.
#[test]
fn tmpl_generation_tag() {
    let dir = tempfile::tempdir().expect("a folder");
    let template = shared("cases/files/tmpl-generation-tag/tokenizer_config.json");
    let tagged = reciting(dir.path(), Some(&template), json!(2), 2);
    let broken = dir.path().join("broken.json");
    let bad = r#"{"eos_token": "<|im_end|>", "chat_template": "{% for x in %}"}"#;
    fs_err::write(&broken, bad).expect("a file");
    fs_err::create_dir_all(dir.path().join("b")).expect("a folder");
    let broken = reciting(&dir.path().join("b"), Some(&broken), json!(2), 2);
    let names = ["--name", "tagged", "--name", "broken"];
    let server = Server::start(&[&[text(&tagged), text(&broken)], &names[..]].concat());
    let expected = case("tmpl-generation-tag/expect.json");
    let chat = |model: &str, messages: &Value| {
        let body = json!({"model": model, "messages": messages, "max_tokens": 4});
        server.post("/v1/chat/completions", &body)
    };
    let good = chat("tagged", &expected["messages"]);
    assert_eq!(good.status, 200, "{}", good.text());
    let prompt = Tokenizer::open(shared("golden")).expect("golden");
    let prompt = prompt.encode(expected["expected"].as_str().expect("a prompt")).expect("ids");
    assert_eq!(good.json()["usage"]["prompt_tokens"], prompt.len());
    // a role that OpenAI's API knows and the template does not: the template's own words
    let refused = chat("tagged", &json!([{"role": "tool", "content": "x"}]));
    assert_eq!(refused.status, 400);
    let words = expected["error_contains"].as_str().expect("words").replace("critic", "tool");
    assert!(refused.message().contains(&words), "{}", refused.message());
    assert_eq!(chat("tagged", &expected["error_messages"]).status, 400);
    let answer = chat("broken", &expected["messages"]);
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("does not compile"), "{}", answer.message());
    let raw = json!({"model": "broken", "prompt": "好", "temperature": 0});
    assert_eq!(server.ask("/v1/completions", &raw)["choices"][0]["text"], RECITED[3..]);
}

/// Texts computed together, with shared beginnings, are those of `mmx run`, for all four families.
#[test]
fn texts_computed_together_are_those_of_run() {
    let dir = tempfile::tempdir().expect("a folder");
    for (set, name) in [
        ("golden", "minimind2"),
        ("golden", "minimind2-moe"),
        ("golden-2026", "minimind3"),
        ("golden-2026", "minimind3-moe"),
    ] {
        let model = golden(dir.path(), set, name);
        let prompts = ["3 apples", "3 apples and", "好😀", "3 apples and pears", "a", "好😀一下"];
        let expected: Vec<Value> = prompts
            .iter()
            .map(|prompt| {
                let args = ["run", text(&model), "-p", prompt, "--raw", "--greedy", "-n", "120"];
                mmx_json(&[&args[..], &["--kv", "f32"]].concat())
            })
            .collect();
        let server = Server::start(&[text(&model), "--kv", "f32", "--parallel", "4"]);
        for round in 0..2 {
            std::thread::scope(|scope| {
                for (prompt, expected) in prompts.iter().zip(&expected) {
                    let server = &server;
                    scope.spawn(move || {
                        let body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 120});
                        let found = server.ask("/v1/completions", &body);
                        assert_eq!(
                            found["choices"][0]["text"], expected["text"],
                            "{name}, {prompt}"
                        );
                        assert_eq!(found["usage"]["prompt_tokens"], expected["prompt_tokens"]);
                        assert_eq!(found["usage"]["completion_tokens"], expected["tokens"]);
                    });
                }
            });
            let cached = server.metric("cached_tokens_total{");
            assert!(round == 0 || cached > 0.0, "beginnings are shared: {cached}");
        }
    }
}

/// Draft tokens never show: texts and all that belongs to them are what they are without, alone and
/// together.
#[test]
fn texts_drafted_ahead_are_those_written_token_by_token() {
    let dir = tempfile::tempdir().expect("a folder");
    let phrase = "3 apples and 4 pears, ".repeat(5);
    let schema = json!({"type": "array", "items": {"enum": ["apples", "pears"]}, "minItems": 3});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let (chat, raw) = ("/v1/chat/completions", "/v1/completions");
    let requests = [
        (raw, json!({"prompt": phrase, "temperature": 0, "max_tokens": 120, "logprobs": 2})),
        (raw, json!({"prompt": phrase, "temperature": 0.3, "seed": 5, "max_tokens": 90, "n": 2})),
        (raw, json!({"prompt": phrase, "temperature": 0, "max_tokens": 61, "ignore_eos": true})),
        // to the end of the context
        (raw, json!({"prompt": phrase, "temperature": 0.3, "seed": 6, "ignore_eos": true})),
        (
            chat,
            json!({"messages": user(&phrase), "temperature": 0, "max_tokens": 90,
            "frequency_penalty": 0.1, "repetition_penalty": 1.01}),
        ),
        (
            chat,
            json!({"messages": user(&phrase), "temperature": 0, "max_tokens": 90,
            "response_format": format}),
        ),
    ];
    for (set, name) in [("golden", "minimind2"), ("golden-2026", "minimind3-moe")] {
        let model = golden(dir.path(), set, name);
        let start = |speculate: &str| {
            let args = ["--ctx", "320", "--parallel", "3", "--speculate", speculate];
            Server::start(&[&[text(&model), "--name", "m"], &args[..]].concat())
        };
        let (plain, ahead) = (start("0"), start("3"));
        let both = |path: &str, body: &Value| {
            let [expected, found] = [&plain, &ahead].map(|server| server.ask(path, body));
            assert_eq!(found["choices"], expected["choices"], "{name}, {body}");
            assert_eq!(found["usage"], expected["usage"], "{name}, {body}");
            expected
        };
        let expected: Vec<Value> = requests.iter().map(|(path, body)| both(path, body)).collect();
        // a stop string in the middle of what is repeated
        let said = expected[0]["choices"][0]["text"].as_str().expect("text");
        let stop: String = said.chars().skip(said.chars().count() / 2).take(4).collect();
        let (_, mut stopped) = requests[0].clone();
        stopped["stop"] = json!([stop]);
        assert_eq!(both(raw, &stopped)["choices"][0]["finish_reason"], "stop");
        // chunk by chunk
        let streamed = json!({"messages": user(&phrase), "temperature": 0, "max_tokens": 90,
            "stream": true, "logprobs": true});
        let [one, other] = [&plain, &ahead].map(|server| server.post(chat, &streamed).events());
        let choices =
            |events: &[Value]| events.iter().map(|e| e["choices"].clone()).collect::<Vec<_>>();
        assert_eq!(choices(&other), choices(&one));
        std::thread::scope(|scope| {
            for ((path, body), expected) in requests.iter().zip(&expected) {
                let ahead = &ahead;
                scope.spawn(move || {
                    let found = ahead.ask(path, body);
                    assert_eq!(found["choices"], expected["choices"], "{name}, together, {body}");
                });
            }
        });
        assert_eq!(plain.metric("guessed_tokens_total{"), 0.0);
        let [drafted, accepted] =
            ["guessed", "accepted"].map(|what| ahead.metric(&format!("{what}_tokens_total{{")));
        assert!(accepted > 0.0 && accepted <= drafted, "{name}: {accepted} of {drafted}");
        let written = ahead.metric("completion_tokens_total{");
        let steps = ahead.metric("steps_total{");
        eprintln!("{name}: {written} tokens in {steps} steps, {accepted} of {drafted} drafts");
    }
}

#[test]
fn stop_texts_and_forms_are_obeyed_streamed_and_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let server = Server::start(&[text(&model), "--name", "m"]);
    let ask = |extra: Value| {
        let mut body = json!({"messages": user("x"), "temperature": 0});
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("one").clone());
        let whole = server.ask("/v1/chat/completions", &body)["choices"][0].clone();
        body["stream"] = true.into();
        let events = server.post("/v1/chat/completions", &body).events();
        let content = whole["message"]["content"].as_str().expect("text").to_owned();
        assert_eq!(streamed_text(&events), content, "{body}");
        assert_eq!(events[events.len() - 1]["choices"][0]["finish_reason"], whole["finish_reason"]);
        (content, whole["finish_reason"].as_str().expect("a reason").to_owned())
    };
    assert_eq!(ask(json!({})), (RECITED.to_owned(), "stop".to_owned()));
    for (stop, shown) in [
        (json!("中谢"), "好😀"),
        (json!(["谢验,OK!", ",O"]), "好😀中谢验"),
        (json!(["OKO"]), RECITED),
        (json!([]), RECITED),
    ] {
        assert_eq!(ask(json!({"stop": stop})), (shown.to_owned(), "stop".to_owned()));
    }
    // tokens end inside characters: one token more, and the character is whole
    assert_eq!(ask(json!({"max_tokens": 3})).1, "length");
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["OK", "好"]}}, "required": ["a"],
        "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let (content, reason) = ask(json!({"response_format": format, "max_tokens": 100}));
    let value: Value = serde_json::from_str(&content).expect("JSON");
    assert!(value["a"] == "OK" || value["a"] == "好", "{content}");
    assert_eq!(reason, "stop");
    let logprobs = json!({"messages": user("x"), "temperature": 0, "logprobs": true, "top_logprobs": 2,
        "stop": "中谢"});
    let found = server.ask("/v1/chat/completions", &logprobs);
    let entries = found["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone();
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|e| e["bytes"].as_array().expect("bytes"))
        .map(|b| b.as_u64().expect("a byte") as u8)
        .collect();
    assert_eq!(String::from_utf8(bytes).expect("UTF-8"), "好😀", "no token of the stop text");
    assert!(entries.iter().all(|e| e["logprob"].as_f64().is_some_and(|l| l <= 0.0)));
    assert!(entries.iter().all(|e| e["top_logprobs"][0]["logprob"] == e["logprob"]), "greedy");
}

/// Thoughts, tools and their calls, with the template of 2026.
#[test]
fn thoughts_and_tool_calls_have_places_of_their_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden-2026", "minimind3");
    let server = Server::start(&[text(&model), "--name", "m"]);
    let parameters = json!({"type": "object", "properties": {"city": {"enum": ["北京", "Rome"]}},
        "required": ["city"], "additionalProperties": false});
    let tools =
        json!([{"type": "function", "function": {"name": "weather", "parameters": parameters}}]);
    let mut body = json!({"messages": user("x"), "tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "seed": 3,
        "temperature": 1, "max_tokens": 300});
    let whole = server.ask("/v1/chat/completions", &body)["choices"][0].clone();
    assert_eq!(whole["finish_reason"], "tool_calls", "{whole}");
    let call = &whole["message"]["tool_calls"][0];
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("weather")));
    let arguments = call["function"]["arguments"].as_str().expect("a string");
    let arguments: Value = serde_json::from_str(arguments).expect("JSON");
    assert!(arguments["city"] == "北京" || arguments["city"] == "Rome");
    body["stream"] = true.into();
    let events = server.post("/v1/chat/completions", &body).events();
    let streamed: Vec<&Value> =
        events.iter().filter_map(|e| e.pointer("/choices/0/delta/tool_calls/0")).collect();
    assert_eq!(streamed[0]["index"], 0);
    assert_eq!(streamed[0]["function"], call["function"]);
    // a template that opens a thought: what comes first is the thought
    let thinking = json!({"messages": user("x"), "enable_thinking": true, "temperature": 0,
        "max_tokens": 12, "ignore_eos": true});
    let message = server.ask("/v1/chat/completions", &thinking)["choices"][0]["message"].clone();
    assert!(message["reasoning_content"].as_str().is_some_and(|t| !t.is_empty()), "{message}");
    assert_eq!(message["content"], "");
    let ollama = json!({"messages": user("x"), "think": true, "stream": false,
        "options": {"temperature": 0, "num_predict": 12}});
    let found = server.ask("/api/chat", &ollama);
    assert!(found["message"]["thinking"].is_string() || found["eval_count"] == 0, "{found}");
}

#[test]
fn refuses_what_makes_no_sense_and_says_why() {
    let dir = tempfile::tempdir().expect("a folder");
    let plain = golden(dir.path(), "golden", "minimind2");
    let other = reciting(dir.path(), None, json!(2), 2);
    let mut args = vec![text(&other), text(&plain)];
    args.extend(["--name", "recites", "--name", "plain", "--ctx", "256"]);
    args.extend(["--parallel", "2", "--queue", "3", "--max-body", "20000"]);
    let server = Server::start(&args);
    let base = json!({"model": "plain", "messages": user("x"), "max_tokens": 2});
    let with = |key: &str, value: Value| {
        let mut body = base.clone();
        body[key] = value;
        body
    };
    for (body, status, part) in [
        (with("messages", json!([])), 400, "at least one"),
        (with("messages", json!([{"role": "critic", "content": "x"}])), 400, "found critic"),
        (with("messages", user(&"x ".repeat(400))), 400, "the context holds 256"),
        (with("model", json!("other")), 404, "expected one of recites, plain"),
        (with("temperature", json!(-1)), 400, "temperature: expected 0"),
        (with("top_p", json!(1.5)), 400, "top_p: expected"),
        (with("max_tokens", json!(0)), 400, "max_tokens: expected at least 1"),
        (with("max_tokens", json!("many")), 400, "max_tokens: expected an integer"),
        (with("n", json!(0)), 400, "n: expected at least 1"),
        (with("n", json!(4)), 429, "do not fit"),
        (with("stop", json!([""])), 400, "found an empty one"),
        (with("stop", json!(["a", "b", "c", "d", "e"])), 400, "at most 4"),
        (with("top_logprobs", json!(3)), 400, "logprobs to be true"),
        (with("logit_bias", json!({"9999": 1})), 400, "ids below 512"),
        (with("response_format", json!({"type": "xml"})), 400, "found xml"),
        (
            with(
                "response_format",
                json!({"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}),
            ),
            400,
            "schema cannot be followed",
        ),
        (
            with("tools", json!([{"type": "function", "function": {"name": "f"}}])),
            400,
            "no place for tools",
        ),
    ] {
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        assert!(answer.message().contains(part), "{body}: {}", answer.message());
        let error = &answer.json()["error"];
        assert!(
            error["type"].is_string()
                && error.get("param").is_some()
                && error.get("code").is_some()
        );
    }
    let many = json!({"model": "plain", "messages": user("x"), "n": 4});
    assert!(
        server.post("/v1/chat/completions", &many).headers.to_lowercase().contains("retry-after")
    );
    let post = |body: &[u8]| server.request("POST", "/v1/chat/completions", "", body);
    assert_eq!(post(b"{\"messages\": [").status, 400);
    assert_eq!(post(&[b'['; 5000]).status, 400, "deep JSON is no stack overflow");
    assert_eq!(post(&[b' '; 30000]).status, 413);
    assert_eq!(server.get("/v1/chat/completions").status, 405);
    assert_eq!(server.get("/nothing").status, 404);
    let from = |header: &str| server.request("GET", "/v1/models", header, b"").status;
    assert_eq!(from("Origin: http://evil.example\r\n"), 403);
    assert_eq!(from(&format!("Origin: http://{}\r\n", server.address)), 200);
    assert_eq!(
        server.post("/api/chat", &json!({"model": "other", "messages": user("x")})).status,
        404
    );
    let late = Server::start(&[text(&plain), "--timeout", "0"]);
    let answer = late.post("/v1/chat/completions", &base);
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("timeout")));
    let page = server.get("/").text();
    assert!(!page.contains("://"), "the page asks nobody else");
}

#[test]
fn keys_and_origins_are_checked() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let server = Server::start(&[text(&model), "--api-key", "k", "--cors", "https://a.example"]);
    let get = |path: &str, header: &str| server.request("GET", path, header, b"");
    assert_eq!(get("/v1/models", "").status, 401);
    assert_eq!(get("/api/tags", "Authorization: Bearer x\r\n").status, 401);
    assert_eq!(get("/v1/models", "Authorization: Bearer k\r\n").status, 200);
    assert_eq!((get("/health", "").status, get("/", "").status), (200, 200));
    let allowed = get("/v1/models", "Origin: https://a.example\r\nAuthorization: Bearer k\r\n");
    assert!(allowed.headers.contains("access-control-allow-origin: https://a.example"));
    let ask = server.request("OPTIONS", "/v1/models", "Origin: https://a.example\r\n", b"");
    assert_eq!(ask.status, 204);
    assert!(!get("/health", "").headers.contains("access-control"));
}

/// The vectors are means of hidden states: of one token they are the state, and order counts.
#[test]
fn embeddings_and_ollamas_calls_answer() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let server = Server::start(&[text(&model), "--name", "m", "--kv", "f32"]);
    let embed = |input: Value| server.ask("/v1/embeddings", &json!({"input": input}));
    let vector = |input: Value| -> Vec<f64> {
        serde_json::from_value(embed(input)["data"][0]["embedding"].clone()).expect("numbers")
    };
    let (a, b) = (vector(json!("好😀")), vector(json!("😀好")));
    assert_eq!(a.len(), 64);
    assert_ne!(a, b);
    assert_eq!(a, vector(json!("好😀")));
    let both = embed(json!(["好😀", "x"]));
    assert_eq!(both["data"].as_array().map(Vec::len), Some(2));
    assert_eq!(embed(json!([[5, 6], [7]]))["usage"]["prompt_tokens"], 3);
    let encoded = server.ask("/v1/embeddings", &json!({"input": "x", "encoding_format": "base64"}));
    assert!(encoded["data"][0]["embedding"].is_string());

    assert_eq!(server.get("/api/tags").json()["models"][0]["name"], "m");
    assert!(server.get("/api/version").json()["version"].is_string());
    let shown = server.ask("/api/show", &json!({"model": "m:latest"}));
    assert_eq!(shown["model_info"]["general.architecture"], "llama");
    let body = json!({"model": "m", "messages": user("x"), "options": {"temperature": 0, "num_predict": 9}});
    let lines = server.post("/api/chat", &body);
    assert!(lines.headers.contains("application/x-ndjson"));
    let lines: Vec<Value> =
        lines.text().lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let last = &lines[lines.len() - 1];
    assert!(last["done"] == true && last["eval_count"].as_u64() <= Some(9), "{last}");
    let whole = server.ask("/api/chat", &{
        let mut body = body.clone();
        body["stream"] = false.into();
        body
    });
    let streamed: String = lines.iter().filter_map(|l| l["message"]["content"].as_str()).collect();
    assert_eq!(whole["message"]["content"], streamed);
    let loaded = server.ask("/api/generate", &json!({"model": "m"}));
    assert_eq!(loaded["done_reason"], "load");
}

/// A server that is told to stop ends what it began.
#[cfg(unix)]
#[test]
fn what_is_being_written_ends_before_the_server_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let mut server = Server::start(&[text(&model), "--ctx", "2000"]);
    let body =
        json!({"messages": user("x"), "stream": true, "ignore_eos": true, "max_tokens": 1500});
    let mut stream = server.send("POST", "/v1/chat/completions", "", body.to_string().as_bytes());
    let mut first = [0; 512];
    let n = stream.read(&mut first).expect("a beginning");
    let id = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill").success());
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the rest");
    let all = [&first[..n], &rest].concat();
    assert!(String::from_utf8_lossy(&all).contains("data: [DONE]"), "the stream was cut");
    assert!(server.child.wait().expect("an end").success());
}

/// 200 mixed requests of 16 clients, some of which leave, lie or shout: every answer is right, no
/// slot stays in use, and memory does not grow.
#[test]
fn soak() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden-2026", "minimind3");
    let args = [text(&model), "--api-key", "k", "--parallel", "6", "--queue", "200", "--kv", "f32"];
    let server = Server::start(&[&args[..], &["--max-body", "100000", "--ctx", "600"]].concat());
    let key = "Authorization: Bearer k\r\n";
    let post =
        |path: &str, body: &Value| server.request("POST", path, key, body.to_string().as_bytes());
    let metrics = |name: &str| -> f64 {
        let text = server.request("GET", "/metrics", key, b"").text();
        let line = text.lines().find(|l| l.starts_with(&format!("mmx_{name}"))).expect("a metric");
        line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number")
    };
    let prompts = ["hello", "hello there", "你好", "3 apples and 4 pears"];
    let greedy = |i: usize, stream: bool| {
        json!({"messages": user(prompts[i % 4]), "temperature": 0, "max_tokens": 60, "ignore_eos": true,
            "stream": stream})
    };
    let text_of = |answer: Value| answer["choices"][0]["message"]["content"].clone();
    let expected: Vec<Value> =
        (0..4).map(|i| text_of(post("/v1/chat/completions", &greedy(i, false)).json())).collect();
    let first_tokens = Mutex::new(Vec::new());
    let one = |i: usize| match i % 10 {
        0..=2 => {
            let found = post("/v1/chat/completions", &greedy(i, false));
            assert_eq!(text_of(found.json()), expected[i % 4], "request {i}");
        }
        3..=5 => {
            let body = greedy(i, true).to_string();
            let start = Instant::now();
            let mut stream = server.send("POST", "/v1/chat/completions", key, body.as_bytes());
            let mut bytes = Vec::new();
            // headers come first, then a chunk with the role alone: what counts is the first text
            until(&mut stream, &mut bytes, |text| {
                text.split("\"content\":\"")
                    .skip(1)
                    .any(|rest| !rest.is_empty() && !rest.starts_with('"'))
            });
            first_tokens.lock().expect("a list").push(start.elapsed());
            stream.read_to_end(&mut bytes).expect("the rest");
            let all = String::from_utf8_lossy(&bytes).into_owned();
            let found: String = all
                .lines()
                .filter_map(|l| l.strip_prefix("data: "))
                .filter_map(|l| serde_json::from_str::<Value>(l).ok())
                .filter_map(|e| e["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
                .collect();
            assert_eq!(found, expected[i % 4], "request {i}");
        }
        6 => {
            // leaves in the middle of an answer, or before it begins
            let mut body = greedy(i, i % 20 == 6);
            body["max_tokens"] = 500.into();
            let mut stream =
                server.send("POST", "/v1/chat/completions", key, body.to_string().as_bytes());
            if i % 20 == 6 {
                let _ = stream.read(&mut [0; 64]);
            }
        }
        7 => {
            let answer = server.request("POST", "/v1/chat/completions", key, b"{\"messages\": [}");
            assert_eq!(answer.status, 400);
            assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
        }
        8 if i % 20 == 8 => {
            let answer = server.request("POST", "/v1/chat/completions", key, &[b'x'; 200_000]);
            assert_eq!(
                (answer.status, &answer.json()["error"]["code"]),
                (413, &json!("body_too_large"))
            );
        }
        8 => {
            let body = greedy(i, false).to_string();
            let wrong = "Authorization: Bearer wrong\r\n";
            let answer = server.request("POST", "/v1/chat/completions", wrong, body.as_bytes());
            assert_eq!(
                (answer.status, &answer.json()["error"]["code"]),
                (401, &json!("invalid_api_key"))
            );
        }
        _ => {
            let body = json!({"input": prompts[i % 4]});
            assert_eq!(post("/v1/embeddings", &body).status, 200);
        }
    };
    let rounds = |from: usize, to: usize| {
        let next = std::sync::atomic::AtomicUsize::new(from);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if i >= to {
                            break;
                        }
                        one(i);
                    }
                });
            }
        });
        let settled = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(25));
            metrics("active{") + metrics("waiting{") == 0.0
        });
        assert!(settled, "slots are still in use");
    };
    rounds(0, 60); // buffers have their size, graphs are made
    let before = metrics("resident_memory_bytes");
    rounds(60, 260);
    let grown = metrics("resident_memory_bytes") - before;
    // a leaked slot, queue or answer of these requests would be kilobytes each; what is allowed is
    // what an allocator keeps for 16 connections at a time
    assert!(grown < 16e6, "memory grew by {grown} bytes");
    assert!(metrics("texts_cancelled_total{") >= 5.0, "clients left");
    assert_eq!(metrics("texts_failed_total{"), 0.0);
    for (status, sent) in [(400, 26.0), (413, 13.0), (401, 13.0)] {
        let name = format!("requests_total{{path=\"/v1/chat/completions\",status=\"{status}\"}}");
        assert_eq!(metrics(&name), sent, "answers {status}");
    }
    let again = text_of(post("/v1/chat/completions", &greedy(2, false)).json());
    assert_eq!(again, expected[2]);
    let mut times = first_tokens.into_inner().expect("a list");
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    eprintln!(
        "soak: {} streams, first token p50 {:?}, p99 {:?}; memory grew by {:.1} MB",
        times.len(),
        at(0.5),
        at(0.99),
        grown / 1e6
    );
}

/// A framework's own limit of 2 MB would answer in plain text.
#[test]
fn a_body_of_more_than_two_megabytes_is_read_where_max_body_allows_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden", "minimind2");
    let server = Server::start(&[text(&model), "--name", "m", "--max-body", "4000000"]);
    let long = "a ".repeat(1_500_000);
    for (path, body, status) in [
        ("/tokenize", json!({"content": long}), 200),
        ("/v1/completions", json!({"prompt": long}), 400),
        ("/v1/chat/completions", json!({"messages": user(&long)}), 400),
        ("/api/generate", json!({"prompt": long}), 400),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        if status == 400 {
            assert!(answer.text().contains("tokens"), "{path}: {}", answer.text());
        }
    }
    let larger = server.post("/v1/completions", &json!({"prompt": "a ".repeat(2_100_000)}));
    assert_eq!(larger.status, 413);
    assert_eq!(larger.json()["error"]["code"], "body_too_large");
}
