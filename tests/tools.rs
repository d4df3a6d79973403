//! Tools through the program: `mmx run`, `mmx chat` and `mmx eval` with `--tools`, tasks and their rewards, prompts and
//! rollouts in `mmx data show`.

#[path = "common/answering.rs"]
mod answering;
mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{mmx, mmx_error, mmx_json, mmx_ok, reciting_ids, shared, text};
use serde_json::{Value, json};

/// What the model of these tests says at every turn.
const CALL: &str = "<tool_call>{\"name\": \"q\"}</tool_call>";

/// A model that calls the tool `q` whatever it reads.
fn calling(dir: &Path) -> PathBuf {
    let golden = shared("golden-2026");
    let files = ["tokenizer.json", "tokenizer_config.json"].map(|name| golden.join(name));
    let tokenizer = mmx_converters::tokenizer::Tokenizer::open(&golden).expect("a tokenizer");
    // a newline ends the prompt, and each token has one successor
    let pieces = [
        "\n",
        "<tool_call>",
        "{\"",
        "name",
        "\":",
        " \"",
        "q",
        "\"}",
        "</tool_call>",
        "<|im_end|>",
    ];
    let id = |piece: &&str| match tokenizer.encode(piece).expect("ids")[..] {
        [id] => id,
        _ => panic!("{piece} is not one token"),
    };
    let order: Vec<u32> = pieces.iter().map(id).collect();
    reciting_ids(dir.join("calling"), files, &order, (640, 4096), json!(2))
}

/// A file of tools, of which `q` says what time it always is.
fn tools(dir: &Path) -> PathBuf {
    let path = dir.join("tools.json");
    let tools = json!([
        {"type": "function", "function": {"name": "q", "description": "The time"}, "run": {"type": "clock", "now": "noon"}},
        {"type": "function", "function": {"name": "other"}, "run": "calculator"},
    ]);
    fs_err::write(&path, tools.to_string()).expect("written");
    path
}

#[test]
fn run_calls_tools_until_its_turns_are_used_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, tools) = (calling(dir.path()), tools(dir.path()));
    let args = ["run", text(&model), "-p", "what time is it?", "--greedy", "--tools", text(&tools)];
    let report = mmx_json(&args);
    assert_eq!(report["turns"], json!(vec![CALL; 8]));
    let calls = report["calls"].as_array().expect("calls");
    assert_eq!(calls.len(), 8);
    assert_eq!(
        calls[7],
        json!({"turn": 7, "call": {"name": "q"}, "valid": true, "result": "{\"result\": \"noon\"}"})
    );
    let output = mmx(&args);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{CALL}\n").repeat(8));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("q({}) gives {\"result\": \"noon\"}").count(), 8, "{said}");
    // without tools the same text is text
    let plain = mmx_json(&["run", text(&model), "-p", "x", "--greedy"]);
    assert_eq!((&plain["text"], plain.get("calls")), (&json!(CALL), None));
}

#[test]
fn chat_keeps_calls_and_results_in_its_history() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, tools) = (calling(dir.path()), tools(dir.path()));
    let history = dir.path().join("talk.json");
    let mut child = Command::new(env!("CARGO_BIN_EXE_mmx"))
        .args(["chat", text(&model), "--greedy", "--json"])
        .args(["--tools", text(&tools), "--history", text(&history)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mmx starts");
    child.stdin.take().expect("a pipe").write_all(b"what time is it?\n").expect("typed");
    let output = child.wait_with_output().expect("an end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let messages: Vec<Value> =
        serde_json::from_slice(&fs_err::read(&history).expect("a history")).expect("messages");
    // a question, eight answers, and a result after each but the last one
    assert_eq!(messages.len(), 1 + 8 + 7);
    let call = json!([{"type": "function", "function": {"name": "q", "arguments": {}}}]);
    assert_eq!((&messages[1]["content"], &messages[1]["tool_calls"]), (&json!(""), &call));
    assert_eq!(messages[2], json!({"role": "tool", "content": "{\"result\": \"noon\"}"}));
}

#[test]
fn eval_answers_tasks_with_tools_and_gives_every_part_of_the_reward() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, tools) = (calling(dir.path()), tools(dir.path()));
    let tasks = dir.path().join("tasks.jsonl");
    let task = |answer: &str| json!({"prompt": "what time is it?", "answer": answer, "reward": {"type": "contains", "of": "all"}});
    fs_err::write(&tasks, format!("{}\n{}\n", task("name"), task("noon"))).expect("written");
    let rewards = dir.path().join("rewards.json");
    let spec = json!([{"type": "tool", "tools": ["q"], "weight": 2}, {"type": "length", "of": "all", "max": 5}]);
    fs_err::write(&rewards, spec.to_string()).expect("written");
    let args = [
        "eval",
        text(&model),
        "--tasks",
        text(&tasks),
        "--reward",
        text(&rewards),
        "--tools",
        text(&tools),
    ];
    let report = mmx_json(&args);
    assert_eq!(
        (&report["tasks"], &report["reward"], &report["calls"], &report["valid_calls"]),
        (&json!(2), &json!(2.5), &json!(6), &json!(6))
    );
    assert_eq!(report["parts"], json!({"tool": 1.0, "length": 0.0, "contains": 0.5}));
    assert_eq!((&report["unfinished"], &report["cut_off"]), (&json!(2), &json!(0)));
    let answers = report["answers"].as_array().expect("answers");
    assert_eq!((&answers[0]["reward"], &answers[1]["reward"]), (&json!(3.0), &json!(2.0)));
    assert_eq!(answers[0]["turns"], json!(vec![CALL; 3]));
    let words = mmx_ok(&args);
    assert!(words.contains("2 tasks, mean reward 2.5000"), "{words}");
    assert!(
        words.contains("tool: 1.0000") && words.contains("6 calls of tools, 6 of them valid"),
        "{words}"
    );
    // the worst answer is shown first
    let line = |number: usize| words.find(&format!("line {number}: reward")).expect("a line");
    assert!(line(2) < line(1), "{words}");
    let one = mmx_json(&[&args[..], &["--max-turns", "1"]].concat());
    assert_eq!(one["calls"], 2);
    // without tools a call is text
    let none = mmx_json(&["eval", text(&model), "--tasks", text(&tasks), "--max-tokens", "4"]);
    assert_eq!((&none["calls"], &none["cut_off"]), (&json!(0), &json!(2)));
}

#[test]
fn tasks_without_a_reward_are_refused_before_anything_is_answered() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = calling(dir.path());
    let tasks = dir.path().join("tasks.jsonl");
    fs_err::write(&tasks, json!({"prompt": "x"}).to_string()).expect("written");
    let error = mmx_error(&["eval", text(&model), "--tasks", text(&tasks)]);
    assert!(error.contains("tasks.jsonl:1: expected a reward, found none"), "{error}");
    fs_err::write(&tasks, json!({"prompt": "x", "reward": "exact"}).to_string()).expect("written");
    let error = mmx_error(&["eval", text(&model), "--tasks", text(&tasks)]);
    assert!(error.contains("expected a right answer in the task"), "{error}");
}

#[test]
fn a_file_of_tools_that_is_none_is_refused_with_its_key() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = calling(dir.path());
    let path = dir.path().join("tools.json");
    for (file, words) in [
        (json!(3), "expected a list of tools"),
        (json!([{"function": {"name": "a"}}]), "key tools[0].run: expected what runs the tool"),
        (json!([{"function": {}, "run": "calculator"}]), "key tools[0].function.name"),
        (
            json!([{"function": {"name": "a"}, "run": "eval"}]),
            "key tools[0].run.type: expected calculator, lookup",
        ),
        (json!([{"function": {"name": "a"}, "run": {"type": "lookup"}}]), "key tools[0].run.by"),
        (json!([{"function": {"name": "a"}, "run": {"type": "clock"}}]), "key tools[0].run.now"),
        (
            json!([{"function": {"name": "a"}, "run": {"type": "command", "command": "sh"}}]),
            "key tools[0].run.command",
        ),
        (
            json!([{"function": {"name": "a"}, "run": {"type": "calculator", "arg": "x"}}]),
            "key tools[0].run.arg",
        ),
        (
            json!({"tools": [{"function": {"name": "a"}, "run": "calculator"}, {"function": {"name": "a"}, "run": "calculator"}]}),
            "found a twice",
        ),
    ] {
        fs_err::write(&path, file.to_string()).expect("written");
        let error = mmx_error(&["run", text(&model), "-p", "x", "--tools", text(&path)]);
        assert!(error.contains("tools.json") && error.contains(words), "{file}: {error}");
    }
    let output = mmx(&["run", text(&model), "-p", "x", "--raw", "--tools", text(&path)]);
    assert_eq!(output.status.code(), Some(2));
    let output = mmx(&["eval", text(&model), "--tools", text(&path), "--ppl", text(&path)]);
    assert_eq!(output.status.code(), Some(2));
    // a template that shows no tools
    let golden = shared("golden/minimind2");
    let tokenizer = shared("golden");
    let args =
        ["export", text(&golden), "--tokenizer", text(&tokenizer), "--gguf", "f32", "--name", "m"];
    mmx_json(&[&args[..], &["--out", text(dir.path())]].concat());
    fs_err::write(&path, json!([{"function": {"name": "a"}, "run": "calculator"}]).to_string())
        .expect("written");
    let gguf = dir.path().join("m-131K-f32.gguf");
    let error = mmx_error(&["run", text(&gguf), "-p", "x", "--tools", text(&path)]);
    assert!(error.contains("expected a chat template that shows tools"), "{error}");
}

#[test]
fn a_server_judges() {
    let address = answering::answering(|method, path, body| match (method, path) {
        ("GET", "/v1/models") => (200, json!({"data": [{"id": "judge"}]}).to_string()),
        ("POST", "/v1/chat/completions") => {
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!((&body["model"], body.get("logprobs")), (&json!("judge"), None));
            let asked = body["messages"][0]["content"].as_str().expect("a question");
            // as good as the answer is long
            let good = asked.len() % 10;
            (
                200,
                json!({"choices": [{"message": {"content": format!("I say {good}")}}]}).to_string(),
            )
        }
        other => panic!("{other:?}"),
    });
    let dir = tempfile::tempdir().expect("a folder");
    let model = calling(dir.path());
    let tasks = dir.path().join("tasks.jsonl");
    let judge = json!({"type": "model", "model": format!("openai:http://{address}"), "scale": [0, 10], "prompt": "{answer}"});
    fs_err::write(&tasks, json!({"prompt": "x", "reward": judge}).to_string()).expect("written");
    let report = mmx_json(&["eval", text(&model), "--tasks", text(&tasks)]);
    assert_eq!(report["reward"], json!((CALL.len() % 10) as f64));
}

#[test]
fn any_model_that_mmx_opens_judges() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = calling(dir.path());
    let tasks = dir.path().join("tasks.jsonl");
    let mut judge = json!({"type": "model", "model": text(&model)});
    fs_err::write(&tasks, json!({"prompt": "x", "reward": judge}).to_string()).expect("written");
    let error = mmx_error(&["eval", text(&model), "--tasks", text(&tasks)]);
    // this one says no number
    assert!(error.contains("expected a number") && error.contains("tool_call"), "{error}");
    judge["otherwise"] = json!(0.5);
    fs_err::write(&tasks, json!({"prompt": "x", "reward": judge}).to_string()).expect("written");
    assert_eq!(mmx_json(&["eval", text(&model), "--tasks", text(&tasks)])["reward"], 0.5);
}
