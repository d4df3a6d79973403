use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::reading::Reading;
use crate::words::hash;
use crate::writing::Output;

/// A model whose answer is a function of what it is asked.
fn said(body: &Value) -> Value {
    let asked = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
    let text = match asked {
        asked if asked.starts_with("Compare") => {
            // the longer answer is the better one
            let part = |from: &str, to: &str| {
                asked.split(from).nth(1).and_then(|rest| rest.split(to).next()).unwrap_or("").len()
            };
            let (a, b) = (part("[Answer A]\n", "\n\n[Answer B]"), part("[Answer B]\n", "\n\nGive"));
            (if a > b { "I say [[A]]" } else { "I say [[B]]" }).to_owned()
        }
        asked if asked.starts_with("Here are") => format!("Do task {}", body["seed"]),
        asked => format!(
            "<think>hm</think>{asked} {}",
            "!".repeat((body["seed"].as_u64().unwrap() % 7) as usize)
        ),
    };
    json!({
        "choices": [{ "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }],
        "usage": { "total_tokens": 10 },
    })
}

struct Good;

impl Chat for Good {
    fn ask(&self, body: &Value) -> Result<Value, Refused> {
        Ok(said(body))
    }
}

/// A server that gives each request every kind of trouble once before it answers, and that is gone
/// for good after so many answers.
#[derive(Default)]
struct Hostile {
    seen: Mutex<HashMap<u64, usize>>,
    answers: AtomicUsize,
    most: usize,
}

impl Chat for Hostile {
    fn ask(&self, body: &Value) -> Result<Value, Refused> {
        let refused = |why: &str, again| Err(Refused { why: why.into(), again, after: None });
        let time = {
            let mut seen = self.seen.lock().unwrap();
            let times = seen.entry(hash(body.to_string().as_bytes(), 0)).or_default();
            *times += 1;
            *times
        };
        match time {
            1 => Err(Refused {
                why: "HTTP 429: busy".into(),
                again: true,
                after: Some(Duration::from_millis(1)),
            }),
            2 => refused("HTTP 500: broken", true),
            3 => refused("expected JSON: EOF while parsing", true),
            4 => Ok(json!({ "choices": [] })),
            5 => Ok(json!({ "choices": [{ "text": "no message" }] })),
            _ if self.answers.fetch_add(1, Ordering::SeqCst) >= self.most => {
                refused("HTTP 401: no more", false)
            }
            _ => Ok(said(body)),
        }
    }
}

fn job(mode: Mode) -> Generate {
    Generate {
        mode,
        model: "m".into(),
        judge: "m".into(),
        system: None,
        sampling: Sampling::default(),
        parallel: 4,
        retries: Retries {
            count: 6,
            first: Duration::from_millis(1),
            longest: Duration::from_millis(2),
        },
        budget: None,
        skip_failed: false,
    }
}

fn prompts(dir: &Path, count: usize) -> PathBuf {
    let path = dir.join("prompts.jsonl");
    let lines: Vec<String> =
        (0..count).map(|i| json!({ "prompt": format!("question {i}") }).to_string()).collect();
    fs_err::write(&path, lines.join("\n")).unwrap();
    path
}

fn run(
    job: &Generate,
    input: &Path,
    chat: &dyn Chat,
    journal: &Path,
) -> mmx_converters::Result<(String, Generated)> {
    let mut out = Vec::new();
    let reading = Reading::of(&[input.to_owned()]);
    let made = job.run(&reading, (chat, chat), journal, &mut Output::lines(&mut out))?;
    Ok((String::from_utf8(out).unwrap(), made))
}

#[test]
fn a_hostile_server_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let input = prompts(dir.path(), 30);
    for mode in [Mode::Answers, Mode::Pairs { judge_prompt: JUDGE_PROMPT.into() }] {
        let name = dir.path().join(format!("{}.journal", mode == Mode::Answers));
        let (expected, _) = run(&job(mode.clone()), &input, &Good, &dir.path().join("g")).unwrap();
        fs_err::remove_file(dir.path().join("g")).unwrap();
        let hostile = Hostile { most: usize::MAX, ..Hostile::default() };
        let (found, made) = run(&job(mode), &input, &hostile, &name).unwrap();
        assert_eq!(found, expected);
        assert!(made.report.kept > 15 && made.resumed == 0, "{made:?}");
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_at_the_request_and_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let input = prompts(dir.path(), 40);
    let job = job(Mode::Pairs { judge_prompt: JUDGE_PROMPT.into() });
    let (expected, whole) = run(&job, &input, &Good, &dir.path().join("whole")).unwrap();
    let journal = dir.path().join("j");
    let dying = Hostile { most: 37, ..Hostile::default() };
    let error = run(&job, &input, &dying, &journal).unwrap_err();
    assert!(error.to_string().contains("no more"), "{error}");
    // and the process died while it wrote a line
    let mut bytes = fs_err::read(&journal).unwrap();
    bytes.extend(b"{\"prompt\":39,\"st");
    fs_err::write(&journal, bytes).unwrap();
    let (found, made) = run(&job, &input, &Good, &journal).unwrap();
    assert_eq!((found, made.requests), (expected, whole.requests));
    assert_eq!(made.resumed, 37);
    // other settings are another run
    let other = Generate { system: Some("s".into()), ..job };
    let error = run(&other, &input, &Good, &journal).unwrap_err().to_string();
    assert!(error.contains("expected the journal of this run"), "{error}");
}

#[test]
fn a_budget_gives_the_same_prompts_whatever_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let input = prompts(dir.path(), 50);
    let outputs: Vec<String> = [1, 3, 16]
        .map(|parallel| {
            let job = Generate { parallel, budget: Some(205), ..job(Mode::Answers) };
            let journal = dir.path().join(format!("{parallel}"));
            let (out, made) = run(&job, &input, &Good, &journal).unwrap();
            assert_eq!((made.tokens, made.beyond_budget, made.report.kept), (200, 30, 20));
            out
        })
        .into();
    assert!(outputs.iter().all(|out| *out == outputs[0]) && outputs[0].lines().count() == 20);
}

#[test]
fn answers_keep_thoughts_tags_and_tool_calls_and_pairs_are_in_order() {
    struct Tools;
    impl Chat for Tools {
        fn ask(&self, body: &Value) -> Result<Value, Refused> {
            assert_eq!(body["tools"][0]["type"], "function");
            let calls =
                json!([{ "type": "function", "function": { "name": "f", "arguments": "{}" } }]);
            Ok(json!({ "choices": [{ "message": {
                "content": null, "reasoning_content": "let me see", "tool_calls": calls } }] }))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("p.jsonl");
    let record = json!({ "prompt": "a", "tools": [{ "type": "function" }] });
    fs_err::write(&input, record.to_string()).unwrap();
    let (out, _) = run(&job(Mode::Answers), &input, &Tools, &dir.path().join("j")).unwrap();
    let record: Value = serde_json::from_str(&out).unwrap();
    let answer = &record["conversations"][1];
    assert_eq!(answer["reasoning_content"], "let me see");
    assert_eq!(answer["tool_calls"][0]["function"]["name"], "f");
    assert_eq!(record["conversations"][0]["tools"], "[{\"type\":\"function\"}]");

    let input = prompts(dir.path(), 20);
    let pairs = job(Mode::Pairs { judge_prompt: JUDGE_PROMPT.into() });
    let (out, made) = run(&pairs, &input, &Good, &dir.path().join("k")).unwrap();
    assert!(made.report.kept > 10);
    for line in out.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let length = |side: &str| record[side][1]["content"].as_str().unwrap().len();
        assert!(length("chosen") > length("rejected"), "{line}");
        assert!(line.contains("<think>hm</think>question"));
    }
}

#[test]
fn cut_off_and_empty_answers_and_bad_prompts_are_left_out_with_their_rule() {
    struct Cut;
    impl Chat for Cut {
        fn ask(&self, body: &Value) -> Result<Value, Refused> {
            let first = body["messages"][0]["content"] == "question 0";
            let (content, reason) = if first { ("half", "length") } else { (" ", "stop") };
            Ok(
                json!({ "choices": [{ "message": { "content": content }, "finish_reason": reason }] }),
            )
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let input = prompts(dir.path(), 2);
    let text = fs_err::read_to_string(&input).unwrap() + "\n{\"other\": 1}";
    fs_err::write(&input, text).unwrap();
    let (out, made) = run(&job(Mode::Answers), &input, &Cut, &dir.path().join("j")).unwrap();
    let rules: Vec<&str> = made.report.dropped.iter().map(|c| c.rule.as_str()).collect();
    assert_eq!((out.as_str(), rules), ("", vec!["answer.cut_off", "answer.empty", "prompt"]));
}

#[test]
fn new_instructions_are_unlike_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let input = prompts(dir.path(), 12);
    let instructions = job(Mode::Instructions { count: 25 });
    let (out, made) = run(&instructions, &input, &Good, &dir.path().join("j")).unwrap();
    // "Do task N" share two of three words, 0.67
    assert_eq!(made.report.kept + made.report.dropped_records(), 25);
    assert!(made.report.kept > 20 && out.contains("Do task"), "{made:?}");
    struct Same;
    impl Chat for Same {
        fn ask(&self, _: &Value) -> Result<Value, Refused> {
            Ok(json!({ "choices": [{ "message": { "content": "Write a poem about rain" } }] }))
        }
    }
    let (_, made) = run(&instructions, &input, &Same, &dir.path().join("k")).unwrap();
    assert_eq!((made.report.kept, made.report.dropped[0].records), (1, 24));
    assert_eq!(made.report.dropped[0].rule, "instruction.alike");
}
