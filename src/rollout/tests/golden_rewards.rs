//! The reference's rewards: every number that it computed for `golden-rl/rewards.json`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use mmx_rollout::reward::{self, Judge, Judges, Rewards, reference};
use mmx_rollout::sandbox::Sandbox;
use mmx_rollout::tools::{Toolbox, Tools, calls};
use mmx_rollout::{Draw, Finish, Scorer, Written};
use serde_json::{Value, json};

/// The golden file's sums are of 32-bit floats.
const NEAR: f64 = 2e-6;

fn golden(key: &str, least: usize) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/golden-rl/rewards.json");
    let all: Value = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
    let found = match key {
        "single_turn" => &all[key]["cases"],
        key => &all[key],
    };
    let found = found.as_array().unwrap().clone();
    assert!(found.len() >= least, "{key}: {}", found.len());
    found
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|t| text(t).to_owned()).collect()
}

fn near(found: f64, expected: &Value, case: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() < NEAR, "expected {expected}, found {found}: {case}");
}

fn offered(names: &Value) -> Value {
    let tool = |name: &String| {
        json!({"type": "function", "function": {"name": name, "parameters": {
            "type": "object", "required": ["expression"], "properties": {"expression": {"type": "string"}}}}})
    };
    texts(names).iter().map(tool).collect()
}

#[test]
fn rewards_of_one_turn() {
    for case in golden("single_turn", 40) {
        let mut asked = Vec::new();
        let mut model = |answer: &str| {
            asked.push(answer.to_owned());
            Ok(case["model_score"].as_f64().unwrap())
        };
        let parts = reference::single_turn(text(&case["text"]), Some(&mut model)).unwrap();
        near(parts.sum(), &case["reward"], &case);
        assert_eq!(asked, [text(&case["scored_answer"])]);
        let repetition = parts.parts.iter().find(|(name, _)| *name == "repetition").unwrap();
        near(-repetition.1, &case["repetition_penalty_of_answer"], &case);
    }
}

#[test]
fn repetition_of_words_in_every_script() {
    for case in golden("repetition", 100) {
        let (n, cap) = (case["n"].as_u64().unwrap() as usize, case["cap"].as_f64().unwrap());
        near(reward::repetition(text(&case["text"]), n, cap), &case["penalty"], &case);
    }
}

#[test]
fn right_answers_found_in_texts() {
    for case in golden("ground_truth_match", 13) {
        let mut found = reference::matched(text(&case["text"]), &texts(&case["gt"]));
        found.sort();
        assert_eq!(found, texts(&case["matched"]), "{case}");
    }
}

#[test]
fn calls_found_in_texts() {
    for case in golden("parse_tool_calls", 9) {
        assert_eq!(Value::Array(calls(text(&case["text"]))), case["calls"], "{case}");
    }
}

#[test]
fn rewards_of_agents() {
    for case in golden("agent", 35) {
        let turns = texts(&case["turns"]);
        let truths = texts(&case["gt"]);
        let tools = offered(&case["tools"]);
        let agent = reference::Agent {
            turns: &turns,
            unfinished: case["unfinished"].as_bool().unwrap(),
            truths: &truths,
            tools: &tools,
        };
        let mut asked = 0;
        let mut model = |_: &str| {
            asked += 1;
            Ok(case["model_score"].as_f64().unwrap())
        };
        let parts = reference::agent(agent, Some(&mut model)).unwrap();
        near(parts.sum().clamp(-3.0, 3.0), &case["reward"], &case);
        assert_eq!(Value::from(asked), case["model_asked"]);
    }
}

#[test]
fn rewards_of_2025_10() {
    for case in golden("reasoning_2025_10", 7) {
        let mut scores = [&case["whole_score"], &case["answer_score"]].into_iter();
        let mut model = |_: &str| Ok(scores.next().unwrap().as_f64().unwrap());
        let parts = reference::reasoning(text(&case["text"]), Some(&mut model)).unwrap();
        near(parts.sum(), &case["reward"], &case);
    }
}

#[test]
fn what_a_reward_model_is_sent() {
    for case in golden("messages_from_prompt", 14) {
        assert_eq!(
            Value::Array(reference::messages_of(text(&case["prompt"]))),
            case["messages"],
            "{case}"
        );
    }
    for case in golden("reward_model_call", 15) {
        let messages = case["messages"].as_array().unwrap();
        let sent = reference::model_call(messages, "{note}", text(&case["answer"]));
        assert_eq!(json!(sent), case["sent"], "{case}");
    }
}

#[test]
fn results_of_the_references_tools() {
    // the calculator, and a table in place of the reference's own converter of units
    let file = json!([
        {"type": "function", "function": {"name": "calculate_math", "parameters": {"required": ["expression"]}},
         "run": "calculator"},
        {"type": "function", "function": {"name": "unit_converter"},
         "run": {"type": "lookup", "by": ["from_unit", "to_unit"], "table": {"km": {"miles": 0.621371}},
                 "times": "value", "digits": 4}},
    ]);
    let at = std::path::Path::new("tools.json");
    let tools = Tools::from_json(&file, at, at, Sandbox::default()).unwrap();
    for case in golden("execute_tool", 8) {
        let call = json!({"name": case["name"], "arguments": case["arguments"]});
        let answer = tools.run(&call, &tools.shown()).unwrap();
        let result: Value = serde_json::from_str(&answer.result).unwrap();
        match &case["result"] {
            Value::Null => assert!(result.get("error").is_some(), "{case}: {result}"),
            expected => assert_eq!(&result, expected, "{case}"),
        }
    }
}

/// A judge that says one thing.
struct Says(&'static str);

impl Judge for Says {
    fn reply(&self, _: &str, _: usize) -> mmx_converters::Result<String> {
        Ok(self.0.to_owned())
    }
}

#[test]
fn the_references_rewards_are_named_rewards_with_every_part_apart() {
    let score = |spec: Value, written: Written, record: Value, says: &'static str| {
        let judges =
            Judges::new(Some(Box::new(move |_| Ok(Arc::new(Says(says)) as Arc<dyn Judge>))));
        let at = std::path::Path::new("rewards.json");
        let rewards = Rewards::from_json(&spec, at, at, judges, Sandbox::default()).unwrap();
        let draw = draw(record);
        rewards.score(&draw, &[written]).map(|mut scores| scores.remove(0))
    };
    let judge = json!({"model": "any"});
    let first = &golden("single_turn", 1)[4];
    let written = Written::one_turn(text(&first["text"]));
    let spec = json!([{"type": "reference", "judge": judge}]);
    let found = score(spec.clone(), written.clone(), json!({}), "a score of 1.25").unwrap();
    near(found.reward, &first["reward"], first);
    let names: Vec<&str> = found.parts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["reference/length", "reference/repetition", "reference/model"]);
    // a judge that gives no number is an error, never a 0
    let error = score(spec, written.clone(), json!({}), "very good").unwrap_err().to_string();
    assert!(error.contains("expected a number"), "{error}");
    let case = golden("agent", 1).remove(0);
    let written =
        Written { turns: texts(&case["turns"]), finish: Finish::Stop, ..Written::default() };
    let spec = json!(["reference_agent"]);
    let record = json!({"gt": case["gt"]});
    let found = score(spec.clone(), written.clone(), record, "").unwrap();
    near(found.reward, &case["reward"], &case);
    let error = score(spec, written, json!({}), "").unwrap_err().to_string();
    assert!(error.contains("key gt"), "{error}");
}

/// A draw with the tools of the golden agents.
fn draw(record: Value) -> Draw {
    let mut options = mmx_converters::chat::Options::generation();
    options.tools = Some(offered(&json!(["calculate_math"])));
    let task =
        mmx_data::Task { record: record.as_object().unwrap().clone(), ..mmx_data::Task::default() };
    Draw {
        sample: 0,
        task: Arc::new(task),
        messages: vec![json!({"role": "user", "content": "12*7=?"})],
        options,
        thinking: false,
        text: String::new(),
        prompt: vec![1],
        full_len: 1,
    }
}
