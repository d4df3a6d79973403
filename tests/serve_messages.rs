//! Anthropic's Messages API of `mmx serve` through the binary: content blocks in and out, the events of a stream, counts,
//! keys, and refusals by name; and what llama.cpp's server has besides.

#[path = "common/apis.rs"]
mod apis;
mod common;
#[path = "common/server.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod server;

use apis::{agent, golden, named_events, with};
use common::{RECITED, reciting, text};
use serde_json::{Value, json};
use server::{Answer, Server};

const PATH: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

fn user(content: &str) -> Value {
    json!([{"role": "user", "content": content}])
}

/// The message of an error in Anthropic's form, of a kind.
fn error(answer: &Answer, status: u16, kind: &str) -> String {
    assert_eq!(answer.status, status, "{}", answer.text());
    let body = answer.json();
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!(kind)), "{body}");
    body["error"]["message"].as_str().expect("a message").to_owned()
}

/// A request that must be refused with 400 by the place of what is wrong.
fn refused(server: &Server, path: &str, body: &Value, place: &str) {
    let message = error(&server.post(path, body), 400, "invalid_request_error");
    assert!(message.starts_with(place), "{body}: {message}");
}

/// A message without what differs from call to call.
fn settled(mut message: Value) -> Value {
    message.as_object_mut().expect("an object").remove("id");
    for block in message["content"].as_array_mut().expect("blocks") {
        if block["type"] == "tool_use" {
            block["id"] = Value::Null;
        }
    }
    message
}

/// The message that a stream's events build, as a client does it.
fn built(events: &[(String, Value)]) -> Value {
    let (mut message, mut json_of) = (Value::Null, String::new());
    for (name, event) in events {
        assert_eq!(event["type"], name.as_str());
        let index = event["index"].as_u64().unwrap_or_default() as usize;
        match name.as_str() {
            "message_start" => message = event["message"].clone(),
            "content_block_start" => {
                let content = message["content"].as_array_mut().expect("blocks");
                assert_eq!(content.len(), index);
                content.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                let block = &mut message["content"][index];
                let delta = &event["delta"];
                let key = match delta["type"].as_str() {
                    Some("text_delta") => "text",
                    Some("thinking_delta") => "thinking",
                    Some("signature_delta") => "signature",
                    Some("input_json_delta") => {
                        json_of += delta["partial_json"].as_str().expect("a part");
                        continue;
                    }
                    other => panic!("an unknown delta: {other:?}"),
                };
                let all = [&block[key], &delta[key]].map(|v| v.as_str().expect("a text"));
                block[key] = all.concat().into();
            }
            "content_block_stop" if message["content"][index]["type"] == "tool_use" => {
                let input = std::mem::take(&mut json_of);
                message["content"][index]["input"] = serde_json::from_str(&input).expect("JSON");
            }
            "message_delta" => {
                for key in ["stop_reason", "stop_sequence"] {
                    message[key] = event["delta"][key].clone();
                }
                message["usage"] = event["usage"].clone();
            }
            "content_block_stop" | "ping" | "message_stop" => {}
            other => panic!("an unknown event: {other}"),
        }
    }
    message
}

#[test]
fn a_message_has_its_text_its_end_and_its_counts() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let server = Server::start(&[text(&model), "--name", "m"]);
    let body = json!({"model": "m", "max_tokens": 50, "messages": user("x"), "temperature": 0, "top_k": 5,
        "metadata": {"user_id": "u"}, "system": [{"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "short."}]});
    let message = server.ask(PATH, &body);
    assert_eq!(message["content"], json!([{"type": "text", "text": RECITED}]));
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(
        (&message["stop_reason"], &message["stop_sequence"]),
        (&json!("end_turn"), &Value::Null)
    );
    let chat = json!({"messages": [{"role": "system", "content": "Be\nshort."}, {"role": "user", "content": "x"}],
        "temperature": 0});
    let chat = server.ask("/v1/chat/completions", &chat)["usage"].clone();
    let usage = |message: &Value, name: &str| message["usage"][name].as_u64().expect("a count");
    let input = usage(&message, "input_tokens") + usage(&message, "cache_read_input_tokens");
    assert_eq!(chat["prompt_tokens"], input);
    assert_eq!(chat["completion_tokens"], usage(&message, "output_tokens"));
    let mut count = body.clone();
    for key in ["max_tokens", "temperature", "top_k"] {
        count.as_object_mut().expect("an object").remove(key);
    }
    assert_eq!(server.ask(COUNT, &count), json!({"input_tokens": input}));
    // the other ends
    let few = server.ask(PATH, &with(&body, json!({"max_tokens": 2})));
    assert_eq!(few["stop_reason"], "max_tokens");
    let stopped = server.ask(PATH, &with(&body, json!({"stop_sequences": ["zz", "谢", "验"]})));
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &json!("谢"))
    );
    assert!(RECITED.starts_with(stopped["content"][0]["text"].as_str().expect("text")));
}

#[test]
fn the_events_of_a_stream_build_the_whole_message() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden-2026", "minimind3");
    let server = Server::start(&[text(&model), "--name", "m", "--kv", "f32", "--parallel", "1"]);
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["北京", "Rome"]}},
        "required": ["city"], "additionalProperties": false});
    let tools =
        json!([{"name": "weather", "description": "Tells the weather.", "input_schema": schema}]);
    let base = json!({"model": "m", "max_tokens": 300, "messages": user("x"), "seed": 3, "temperature": 1});
    let thought = json!({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 3, "temperature": 0});
    let omitted = with(&thought, json!({"thinking": {"type": "adaptive", "display": "omitted"}}));
    let one = |kind: Value| with(&kind, json!({"disable_parallel_tool_use": true}));
    for (more, kind, reason) in [
        (json!({"max_tokens": 2}), "text", "max_tokens"),
        (
            json!({"tools": tools, "tool_choice": one(json!({"type": "any"}))}),
            "tool_use",
            "tool_use",
        ),
        (
            json!({"tools": tools, "tool_choice": one(json!({"type": "tool", "name": "weather"}))}),
            "tool_use",
            "tool_use",
        ),
        (thought, "thinking", "max_tokens"),
        (omitted, "thinking", "max_tokens"),
        (
            json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}}),
            "text",
            "end_turn",
        ),
    ] {
        let body = with(&base, more);
        server.ask(PATH, &body); // then the prompt is computed alike for both
        let whole = server.ask(PATH, &body);
        assert_eq!(whole["stop_reason"], reason, "{whole}");
        let block = &whole["content"][0];
        assert_eq!(block["type"], kind, "{whole}");
        let events = named_events(&server.post(PATH, &with(&body, json!({"stream": true}))));
        let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..3], ["message_start", "ping", "content_block_start"]);
        assert_eq!(
            names[names.len() - 3..],
            ["content_block_stop", "message_delta", "message_stop"]
        );
        assert_eq!(settled(built(&events)), settled(whole.clone()));
        if kind == "tool_use" {
            assert!(
                block["input"]["city"] == "北京" || block["input"]["city"] == "Rome",
                "{block}"
            );
        }
        if kind == "thinking" {
            assert!(block["signature"].as_str().is_some_and(|s| !s.is_empty()));
            assert_eq!(block["thinking"] == "", body["thinking"]["display"] == "omitted");
        }
    }
    // a call, its result, and the answer after it
    let body = with(&base, json!({"tools": tools, "tool_choice": one(json!({"type": "any"}))}));
    let called = server.ask(PATH, &body);
    let id = &called["content"][0]["id"];
    let result = json!([{"type": "tool_result", "tool_use_id": id, "content": "sunny"},
        {"type": "text", "text": "And now?"}]);
    let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": called["content"]},
        {"role": "user", "content": result}]);
    let next = json!({"max_tokens": 3, "messages": messages, "tools": tools, "tool_choice": {"type": "none"}});
    assert_eq!(server.post(PATH, &next).status, 200);
}

/// The same conversation is the same prompt in each API.
#[test]
fn an_agents_traffic_is_the_same_prompt_as_a_chat() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden-2026", "minimind3");
    let server = Server::start(&[text(&model), "--name", "m", "--ctx", "32768"]);
    let agent = agent();
    let expected =
        server.ask("/v1/chat/completions", &with(&agent.chat(), json!({"max_tokens": 3})));
    let body = agent.messages();
    let message = server.ask(PATH, &body);
    let usage = |name: &str| message["usage"][name].as_u64().expect("a count");
    let read = usage("input_tokens") + usage("cache_read_input_tokens");
    assert_eq!(expected["usage"]["prompt_tokens"], read);
    assert!(
        usage("cache_read_input_tokens") > 1000,
        "what was read for the chat is not read again"
    );
    let mut count = body.clone();
    count.as_object_mut().expect("an object").remove("max_tokens");
    assert_eq!(server.ask(COUNT, &count)["input_tokens"], read);
    let events = named_events(&server.post(PATH, &with(&body, json!({"stream": true}))));
    assert_eq!(events[0].1["message"]["usage"]["input_tokens"], read);
}

#[test]
fn a_key_may_come_in_either_header_and_errors_have_anthropics_form() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let server =
        Server::start(&[text(&model), "--name", "m", "--api-key", "secret", "--max-body", "5000"]);
    let body = json!({"max_tokens": 2, "messages": user("x")}).to_string();
    let ask = |header: &str| server.request("POST", PATH, header, body.as_bytes());
    for header in [
        "x-api-key: secret\r\n",
        "Authorization: Bearer secret\r\nanthropic-version: 2023-06-01\r\n",
    ] {
        assert_eq!(ask(header).status, 200, "{header}");
    }
    for header in ["", "x-api-key: other\r\n"] {
        let message = error(&ask(header), 401, "authentication_error");
        assert!(message.contains("API key"), "{message}");
    }
    let long = vec![b' '; 6000];
    let large = server.request("POST", PATH, "x-api-key: secret\r\n", &long);
    error(&large, 413, "request_too_large");
    let other = server.request("GET", PATH, "x-api-key: secret\r\n", b"");
    error(&other, 405, "invalid_request_error");
}

#[test]
fn what_cannot_be_served_is_refused_by_its_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden-2026", "minimind3");
    let server = Server::start(&[text(&model), "--name", "m", "--max-body", "20000000"]);
    let base = json!({"max_tokens": 2, "messages": user("x")});
    let call = |id: &str| json!({"type": "tool_use", "id": id, "name": "f", "input": {}});
    let result = |id: &str| json!({"type": "tool_result", "tool_use_id": id, "content": "1"});
    let talk = |answer: Value, then: Value| {
        json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer},
            {"role": "user", "content": then}]})
    };
    let block = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    let cyclic = json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"});
    let format = |format: Value| json!({"output_config": {"format": format}});
    for (more, place) in [
        (json!({"max_tokens": null}), "max_tokens: "),
        (json!({"max_tokens": 0}), "max_tokens: "),
        (json!({"max_tokens": 1.5}), "max_tokens: "),
        (json!({"messages": []}), "messages: "),
        (json!({"messages": [7]}), "messages[0]: "),
        (json!({"messages": [{"role": "critic", "content": "x"}]}), "messages[0].role: "),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content: "),
        (json!({"messages": [{"role": "user", "content": []}]}), "messages[0].content: "),
        (
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}),
            "messages[1].role: ",
        ),
        (block(json!({"type": "image", "source": {}})), "messages[0].content[0].type: "),
        (block(json!({"type": "document", "source": {}})), "messages[0].content[0].type: "),
        (block(json!({"type": "text"})), "messages[0].content[0].text: "),
        (block(json!({"type": "text", "text": "x", "txet": "y"})), "messages[0].content[0].txet: "),
        (block(result("a")), "messages[0].content[0].tool_use_id: "),
        (talk(json!([call("a")]), json!([result("b")])), "messages[2].content[0].tool_use_id: "),
        (talk(json!([call("a")]), json!("y")), "messages[2].content: "),
        (talk(json!([call("a"), call("a")]), json!([result("a")])), "messages[1].content[1].id: "),
        (
            talk(json!([call("a")]), json!([result("a"), result("a")])),
            "messages[2].content[1].tool_use_id: ",
        ),
        (
            talk(json!([{"type": "redacted_thinking", "data": "x"}]), json!("y")),
            "messages[1].content[0].data: ",
        ),
        (
            talk(
                json!([{"type": "tool_use", "id": "a", "name": "f", "input": "{}"}]),
                json!([result("a")]),
            ),
            "messages[1].content[0].input: ",
        ),
        (json!({"system": [{"type": "image"}]}), "system[0].type: "),
        (json!({"thinking": {"type": "between_tools"}}), "thinking.type: "),
        (json!({"stop_sequences": [""]}), "stop_sequences: "),
        (json!({"stop_sequences": "x"}), "stop_sequences: "),
        (json!({"temperature": "hot"}), "temperature: "),
        (json!({"container": "c"}), "container: "),
        (json!({"temprature": 1}), "temprature: "),
        (format(json!({"type": "xml"})), "output_config.format.type: "),
        (format(json!({"type": "json_schema", "schema": cyclic})), "output_config.format: "),
        (
            with(
                &format(json!({"type": "json_schema", "schema": {}})),
                json!({"output_format": {"type": "json_schema", "schema": {"type": "object"}}}),
            ),
            "output_config.format and output_format are one field: ",
        ),
        (
            json!({"repeat_penalty": 1.1, "repetition_penalty": 1.2}),
            "repetition_penalty and repeat_penalty are one field: ",
        ),
        (
            json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            "tools[0].type: ",
        ),
        (json!({"tools": [{"name": "f"}]}), "tools[0].input_schema: "),
        (
            json!({"tools": [{"name": "f", "input_schema": cyclic}], "tool_choice": {"type": "any"}}),
            "tools[0].input_schema: ",
        ),
        (
            json!({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": "any"}),
            "tool_choice: ",
        ),
        (
            json!({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "g"}}),
            "tool_choice: ",
        ),
    ] {
        refused(&server, PATH, &with(&base, more), place);
    }
    refused(&server, COUNT, &json!({"messages": []}), "messages: ");
    for body in ["", "{\"max_tokens\": 2", "[]", "{\"max_tokens\": NaN}", "{\"max_tokens\": 1e999}"]
    {
        let answer = server.request("POST", PATH, "", body.as_bytes());
        error(&answer, 400, "invalid_request_error");
    }
    let nested = format!("{{\"messages\": {}", "[".repeat(100_000));
    error(&server.request("POST", PATH, "", nested.as_bytes()), 400, "invalid_request_error");
    refused(
        &server,
        PATH,
        &with(&base, json!({"messages": user(&"a ".repeat(5 << 20))})),
        "messages: ",
    );
    let many: Vec<Value> = (0..50_000).map(|i| call(&format!("{i}"))).collect();
    refused(&server, PATH, &with(&base, talk(json!(many), json!("y"))), "messages[2].content: ");
    assert_eq!(server.post(PATH, &base).status, 200, "and it still answers");
}

/// Both names of the model, as Open WebUI sends them, and different ones.
#[test]
fn two_names_of_one_field_may_both_be_given_where_they_agree() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden-2026", "minimind3");
    let server = Server::start(&[text(&model), "--name", "m"]);
    let messages = json!([{"role": "user", "content": "x"}]);
    let chat = json!({"messages": messages, "max_tokens": 2});
    let ollama = json!({"messages": messages, "options": {"num_predict": 2}, "stream": false});
    let schema = json!({"type": "object"});
    for (path, base, equal, different) in [
        (
            "/api/show",
            json!({}),
            json!({"model": "m", "name": "m:latest"}),
            json!({"model": "m", "name": "n"}),
        ),
        (
            "/api/chat",
            ollama.clone(),
            json!({"model": "m", "name": "m"}),
            json!({"model": "m", "name": "n"}),
        ),
        (
            "/api/embed",
            json!({"input": "x"}),
            json!({"model": "m", "name": "m"}),
            json!({"model": "m", "name": "n"}),
        ),
        (
            "/v1/chat/completions",
            chat.clone(),
            json!({"max_completion_tokens": 2}),
            json!({"max_completion_tokens": 3}),
        ),
        (
            "/v1/chat/completions",
            chat.clone(),
            json!({"repeat_penalty": 1.1, "repetition_penalty": 1.1}),
            json!({"repeat_penalty": 1.1, "repetition_penalty": 1.2}),
        ),
        (
            "/v1/chat/completions",
            chat.clone(),
            json!({"ignore_eos": true, "ignore_end": true}),
            json!({"ignore_eos": true, "ignore_end": false}),
        ),
        (
            "/v1/chat/completions",
            chat.clone(),
            json!({"reasoning_effort": "high", "enable_thinking": true}),
            json!({"reasoning_effort": "high", "enable_thinking": false}),
        ),
        (
            "/v1/chat/completions",
            chat.clone(),
            json!({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": false}}),
            json!({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": true}}),
        ),
        (
            "/v1/chat/completions",
            chat.clone(),
            json!({"response_format": {"type": "json_schema", "schema": schema, "json_schema": {"schema": schema}}}),
            json!({"response_format": {"type": "json_schema", "schema": {"type": "array"}, "json_schema": {"schema": schema}}}),
        ),
        (
            "/v1/chat/completions",
            json!({"max_tokens": 2}),
            json!({"messages": [{"role": "assistant", "content": "x", "thinking": "a", "reasoning_content": "a"}]}),
            json!({"messages": [{"role": "assistant", "content": "x", "thinking": "a", "reasoning_content": "b"}]}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "x"}),
            json!({"n_predict": 2, "max_tokens": 2}),
            json!({"n_predict": 2, "max_tokens": 3}),
        ),
    ] {
        let answer = server.post(path, &with(&base, equal.clone()));
        assert_eq!(answer.status, 200, "{path} {equal}: {}", answer.text());
        let answer = server.post(path, &with(&base, different.clone()));
        assert_eq!(answer.status, 400, "{path} {different}: {}", answer.text());
        let body = answer.text();
        let names: Vec<&str> = match different
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .as_slice()
        {
            ["max_completion_tokens"] => vec!["max_completion_tokens", "max_tokens"],
            ["response_format"] => vec!["json_schema.schema", "schema"],
            ["messages"] => vec!["thinking", "reasoning_content"],
            ["reasoning_effort", "chat_template_kwargs"] => {
                vec!["chat_template_kwargs.enable_thinking", "reasoning_effort"]
            }
            both => both.to_vec(),
        };
        assert!(names.iter().all(|name| body.contains(name)), "{path} {different}: {body}");
    }
    let named = |name: &str| {
        let messages = json!([{"role": "user", "content": "x"},
            {"role": "tool", "content": "y", "tool_name": "f", "name": name}]);
        server.post("/api/chat", &with(&ollama, json!({"messages": messages})))
    };
    assert_eq!(named("f").status, 200);
    let message = named("g").json()["error"].as_str().expect("a sentence").to_owned();
    assert!(message.starts_with("messages[1].tool_name: this field and name are one"), "{message}");
}

#[test]
fn texts_ids_and_templates_as_llama_cpps_server_has_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden-2026", "minimind3");
    let server = Server::start(&[text(&model), "--name", "m"]);
    let tokenizer = mmx_converters::tokenizer::Tokenizer::open(common::shared("golden-2026"))
        .expect("a tokenizer");
    let said = "好😀 3 apples<|im_end|>";
    let ids = |body: Value| server.ask("/tokenize", &body)["tokens"].clone();
    assert_eq!(ids(json!({"content": said})), json!(tokenizer.encode(said).expect("ids")));
    assert_eq!(
        ids(json!({"content": said, "parse_special": false})),
        json!(tokenizer.encode_plain(said).expect("ids"))
    );
    assert_eq!(
        ids(json!({"content": said, "add_special": true})),
        json!(tokenizer.encode_text(said).expect("ids"))
    );
    let pieces = ids(json!({"content": said, "with_pieces": true}));
    let mut bytes = Vec::new();
    for piece in pieces.as_array().expect("pieces") {
        match &piece["piece"] {
            Value::String(text) => bytes.extend(text.bytes()),
            list => bytes.extend(
                list.as_array().expect("bytes").iter().map(|b| b.as_u64().expect("a byte") as u8),
            ),
        }
    }
    assert_eq!(bytes, said.as_bytes());
    let back = server.ask("/detokenize", &json!({"tokens": tokenizer.encode(said).expect("ids")}));
    assert_eq!(back, json!({"content": said}));
    let messages = json!([{"role": "user", "content": "x"}]);
    let prompt = server.ask("/apply-template", &json!({"messages": messages}));
    let expected = tokenizer.render_chat(
        messages.as_array().expect("a list"),
        &mmx_converters::chat::Options::generation(),
    );
    assert_eq!(prompt, json!({"prompt": expected.expect("a prompt")}));
    for (path, body, place) in [
        ("/tokenize", json!({}), "content"),
        ("/tokenize", json!({"content": 7}), "content"),
        ("/detokenize", json!({"tokens": ["x"]}), "tokens"),
        ("/detokenize", json!({"tokens": [1_000_000]}), "tokens"),
        ("/detokenize", json!({}), "tokens"),
        ("/apply-template", json!({"messages": []}), "messages"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (400, &json!(place)),
            "{path} {body}"
        );
    }
}
