//! OpenAI's Responses API of `mmx serve` through the binary: items in and out, the events of a stream, what is kept, and
//! refusals by name.

#[path = "common/apis.rs"]
mod apis;
mod common;
#[path = "common/server.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod server;

use apis::{agent, golden, named_events, with};
use common::{RECITED, reciting, text};
use serde_json::{Value, json};
use server::Server;

const PATH: &str = "/v1/responses";

/// A request that must be refused with 400, in OpenAI's form, by the place of what is wrong.
fn refused(server: &Server, body: &Value, place: &str) {
    let answer = server.post(PATH, body);
    assert_eq!(answer.status, 400, "{body}: {}", answer.text());
    let error = answer.json()["error"].clone();
    assert_eq!(error["param"], place, "{body}: {error}");
    assert_eq!(error["type"], "invalid_request_error");
    let message = error["message"].as_str().expect("a message");
    assert!(message.starts_with(place), "{body}: {message}");
}

/// The fields of a response without those that differ from call to call.
fn settled(mut response: Value) -> Value {
    for key in ["id", "created_at", "completed_at", "usage"] {
        response.as_object_mut().expect("an object").remove(key);
    }
    for item in response["output"].as_array_mut().expect("items") {
        item.as_object_mut().expect("an object").remove("id");
        if item["type"] == "function_call" {
            item["call_id"] = Value::Null;
        }
    }
    response
}

#[test]
fn a_text_becomes_a_response_that_is_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = reciting(dir.path(), None, json!(2), 2);
    let server = Server::start(&[text(&model), "--name", "m"]);
    let body =
        json!({"model": "m", "input": "x", "temperature": 0, "metadata": {"a": "b"}, "user": "u"});
    let response = server.ask(PATH, &body);
    assert_eq!(response["object"], "response");
    assert_eq!(response["status"], "completed");
    let part = json!({"type": "output_text", "text": RECITED, "annotations": [], "logprobs": []});
    assert_eq!(response["output"][0]["content"], json!([part]));
    assert_eq!(response["output"].as_array().map(Vec::len), Some(1));
    assert_eq!(response["metadata"], json!({"a": "b"}));
    assert_eq!(response["tools"], json!([]));
    assert_eq!(response["incomplete_details"], Value::Null);
    let usage = &response["usage"];
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "temperature": 0});
    let chat = server.ask("/v1/chat/completions", &chat);
    assert_eq!(usage["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!(usage["output_tokens"], chat["usage"]["completion_tokens"]);

    // it is there, later requests go on after it, and it can be deleted
    let id = response["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("{PATH}/{id}")).json(), response);
    let again = json!({"input": "y", "previous_response_id": id, "temperature": 0});
    let next = server.ask(PATH, &again);
    assert_eq!(next["previous_response_id"], id);
    let said = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": RECITED},
        {"role": "user", "content": "y"}]);
    let whole = server.ask(PATH, &json!({"input": said, "temperature": 0, "store": false}));
    assert_eq!(next["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
    let gone = whole["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("{PATH}/{gone}")).status, 404, "store: false");
    // its items by their ids, as clients send them
    let item = response["output"][0]["id"].as_str().expect("an id");
    let referred = json!([{"role": "user", "content": "x"}, {"type": "item_reference", "id": item},
        {"role": "user", "content": "y"}]);
    let referred = server.ask(PATH, &json!({"input": referred, "temperature": 0}));
    assert_eq!(referred["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
    let deleted = server.request("DELETE", &format!("{PATH}/{id}"), "", b"").json();
    assert_eq!(deleted, json!({"id": id, "object": "response", "deleted": true}));
    assert_eq!(server.get(&format!("{PATH}/{id}")).status, 404);
    refused(&server, &again, "previous_response_id");
}

/// Every event has its number, its item and its place; the texts of the deltas are those of the
/// items; and the last event holds what a whole answer is.
#[test]
fn the_events_of_a_stream_build_the_whole_response() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden-2026", "minimind3");
    let server = Server::start(&[text(&model), "--name", "m", "--kv", "f32", "--parallel", "1"]);
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["北京", "Rome"]}},
        "required": ["city"], "additionalProperties": false});
    let weather =
        json!([{"type": "function", "name": "weather", "parameters": schema, "strict": true}]);
    let base = json!({"input": "x", "instructions": "Be short.", "seed": 3, "temperature": 1, "max_output_tokens": 300});
    let thought = json!({"reasoning": {"effort": "high"}, "max_output_tokens": 12, "ignore_eos": true, "temperature": 0});
    let summary = with(&thought, json!({"reasoning": {"effort": "high", "summary": "auto"}}));
    let format =
        json!({"text": {"format": {"type": "json_schema", "name": "place", "schema": schema}}});
    let cases = [
        (json!({"max_output_tokens": 9, "ignore_eos": true}), "message", "incomplete"),
        (
            json!({"tools": weather, "tool_choice": "required", "parallel_tool_calls": false}),
            "function_call",
            "completed",
        ),
        (
            json!({"tools": weather, "tool_choice": {"type": "function", "name": "weather"}, "parallel_tool_calls": false}),
            "function_call",
            "completed",
        ),
        (thought, "reasoning", "incomplete"),
        (summary, "reasoning", "incomplete"),
        (format, "message", "completed"),
        (
            json!({"max_output_tokens": 5, "ignore_eos": true, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}),
            "message",
            "incomplete",
        ),
    ];
    for (more, kind, status) in cases {
        let body = with(&base, more);
        let whole = server.ask(PATH, &body);
        assert_eq!(whole["status"], status, "{whole}");
        assert_eq!(whole["output"][0]["type"], kind, "{whole}");
        let events = named_events(&server.post(PATH, &with(&body, json!({"stream": true}))));
        let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..2], ["response.created", "response.in_progress"]);
        assert_eq!(names.last(), Some(&format!("response.{status}").as_str()));
        for (i, (name, event)) in events.iter().enumerate() {
            assert_eq!(event["type"], name.as_str());
            assert_eq!(event["sequence_number"], i);
        }
        let last = &events.last().expect("an end").1["response"];
        assert_eq!(settled(last.clone()), settled(whole.clone()));
        assert_eq!(last["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
        for (index, item) in last["output"].as_array().expect("items").iter().enumerate() {
            let of_item: Vec<_> =
                events.iter().filter(|(_, e)| e["output_index"] == index).collect();
            assert_eq!(of_item[0].0, "response.output_item.added");
            let end = of_item.last().expect("an end");
            assert_eq!((end.0.as_str(), &end.1["item"]), ("response.output_item.done", item));
            assert!(of_item[1..of_item.len() - 1].iter().all(|(_, e)| e["item_id"] == item["id"]));
            let deltas: String = of_item.iter().filter_map(|(_, e)| e["delta"].as_str()).collect();
            let said = match item["type"].as_str() {
                Some("function_call") => &item["arguments"],
                Some("reasoning") if item["content"].is_null() => &item["summary"][0]["text"],
                _ => &item["content"][0]["text"],
            };
            assert_eq!(said, deltas.as_str(), "{item}");
            let texts: Vec<_> =
                of_item.iter().filter(|(name, _)| name.ends_with("text.done")).collect();
            assert!(texts.iter().all(|(_, e)| e["text"] == deltas.as_str()));
        }
        if kind == "function_call" {
            let arguments = whole["output"][0]["arguments"].as_str().expect("a text");
            let arguments: Value = serde_json::from_str(arguments).expect("JSON");
            assert!(arguments["city"] == "北京" || arguments["city"] == "Rome");
        }
        if body["text"].is_object() {
            let said = whole["output"][0]["content"][0]["text"].as_str().expect("a text");
            assert!(serde_json::from_str::<Value>(said).expect("JSON")["city"].is_string());
        }
        if body["top_logprobs"] == 2 {
            let tokens = whole["output"][0]["content"][0]["logprobs"].as_array().expect("tokens");
            assert!(
                !tokens.is_empty()
                    && tokens.iter().all(|t| t["top_logprobs"].as_array().map(Vec::len) == Some(2))
            );
        }
        if kind == "reasoning" {
            let tokens = whole["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64();
            assert!(tokens.is_some_and(|n| n > 0 && n <= 12), "{whole}");
            assert_eq!(
                whole["output"][0]["summary"].as_array().map(Vec::len),
                Some(usize::from(body["reasoning"]["summary"] == "auto"))
            );
        }
    }
    // a call, its output, and the answer after it
    let first = server.ask(
        PATH,
        &with(
            &base,
            json!({"tools": weather, "tool_choice": "required", "parallel_tool_calls": false}),
        ),
    );
    let call = &first["output"][0]["call_id"];
    let output = json!([{"type": "function_call_output", "call_id": call, "output": "sunny"}]);
    let next = json!({"previous_response_id": first["id"], "input": output, "tools": weather, "max_output_tokens": 5});
    let next = server.ask(PATH, &next);
    assert!(next["usage"]["input_tokens"].as_u64() > first["usage"]["input_tokens"].as_u64());
    refused(&server, &json!({"previous_response_id": first["id"], "input": "y"}), "input");
}

/// The same conversation is the same prompt in each API.
#[test]
fn an_agents_traffic_is_the_same_prompt_as_a_chat() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden-2026", "minimind3");
    let server = Server::start(&[text(&model), "--name", "m", "--ctx", "32768"]);
    let agent = agent();
    let mut chat = agent.chat();
    chat["max_tokens"] = 3.into();
    let expected = server.ask("/v1/chat/completions", &chat)["usage"]["prompt_tokens"].clone();
    assert!(expected.as_u64() > Some(3000), "a long prompt: {expected}");
    let mut body = agent.responses();
    body["max_output_tokens"] = 3.into();
    let response = server.ask(PATH, &body);
    assert_eq!(response["usage"]["input_tokens"], expected);
    assert_eq!(response["tools"].as_array().map(Vec::len), Some(15));
    body["stream"] = true.into();
    assert!(named_events(&server.post(PATH, &body)).len() > 3);
}

#[test]
fn what_cannot_be_served_is_refused_by_its_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = golden(dir.path(), "golden-2026", "minimind3");
    let server = Server::start(&[text(&model), "--name", "m", "--max-body", "20000000"]);
    let base = json!({"input": "x", "max_output_tokens": 2});
    let object = json!({"type": "object"});
    let cyclic = json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"});
    for (more, place) in [
        (json!({"background": true}), "background"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"max_tokens": 5}), "max_tokens"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"max_output_tokens": "5"}), "max_output_tokens"),
        (json!({"n": 2}), "n"),
        (json!({"temprature": 1}), "temprature"),
        (json!({"include": ["file_search_call.results"]}), "include[0]"),
        (json!({"reasoning": {"effort": "hard"}}), "reasoning.effort"),
        (json!({"reasoning": {"summary": "long"}}), "reasoning.summary"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
        (json!({"text": {"format": {"type": "json_schema", "name": "x"}}}), "text.format.schema"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "x", "schema": cyclic}}}),
            "text.format.schema",
        ),
        (json!({"text": {"verbosity": "high"}}), "text.verbosity"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options.include_usage"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function", "function": {"name": "f"}}]}), "tools[0].name"),
        (
            json!({"tools": [{"type": "function", "name": "f", "parameters": 7}]}),
            "tools[0].parameters",
        ),
        (
            json!({"tools": [{"type": "function", "name": "f", "parameters": cyclic}], "tool_choice": "required"}),
            "tools[0].parameters",
        ),
        (
            json!({"tools": [{"type": "function", "name": "f", "parameters": object}], "tool_choice": "f"}),
            "tool_choice",
        ),
        (
            json!({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "g"}}),
            "tool_choice",
        ),
        (json!({"previous_response_id": "resp_none"}), "previous_response_id"),
        (json!({"input": []}), "input"),
        (json!({"input": [{"type": "computer_call_output"}]}), "input[0].type"),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}),
            "input[0].call_id",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}),
            "input[0].content[0].type",
        ),
    ] {
        refused(&server, &with(&base, more), place);
    }
    let both = json!({"reasoning": {"summary": "auto", "generate_summary": "concise"}});
    let answer = server.post(PATH, &with(&base, both));
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.message().starts_with("reasoning.summary and generate_summary are one field"));
    // bodies that are no request at all
    for body in [
        "",
        "{\"input\": \"x\"",
        "[]",
        "{\"input\": \"x\", \"temperature\": NaN}",
        "{\"temperature\": 1e999, \"input\": \"x\"}",
    ] {
        let answer = server.request("POST", PATH, "", body.as_bytes());
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    let nested = "[".repeat(100_000);
    assert_eq!(
        server.request("POST", PATH, "", format!("{{\"input\": {nested}").as_bytes()).status,
        400
    );
    let long = json!({"input": "a ".repeat(5 << 20)});
    refused(&server, &long, "input");
    let items: Vec<Value> =
        (0..100_000).map(|i| json!({"role": "user", "content": format!("{i}")})).collect();
    refused(&server, &json!({"input": items}), "input");
    assert_eq!(server.get(&format!("{PATH}/resp_none")).status, 404);
    assert_eq!(server.get(&format!("{PATH}/resp_none?stream=true")).status, 400);
    // and it still answers
    assert_eq!(server.post(PATH, &base).status, 200);
}
