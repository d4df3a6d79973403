//! Rewards as data: what each gives, what is refused, and how parts, weights and records come together.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::{Arc, Mutex};

use mmx_converters::Result;
use mmx_data::Task;
use mmx_rollout::reward::{Judge, Judges, Rewards};
use mmx_rollout::sandbox::Sandbox;
use mmx_rollout::{Called, Draw, Finish, Score, Scorer, Written};
use serde_json::{Value, json};

fn draw(record: Value) -> Draw {
    let task = Task { record: record.as_object().unwrap().clone(), ..Task::default() };
    Draw {
        sample: 3,
        task: Arc::new(task),
        messages: vec![json!({"role": "user", "content": "How many?"})],
        options: mmx_converters::chat::Options::generation(),
        thinking: false,
        text: String::new(),
        prompt: vec![1],
        full_len: 1,
    }
}

fn rewards(spec: &Value) -> Result<Rewards> {
    let at = Path::new("rewards.json");
    Rewards::from_json(spec, at, Path::new("."), Judges::default(), Sandbox::default())
}

fn scores(spec: Value, record: Value, written: &[Written]) -> Result<Vec<Score>> {
    rewards(&spec)?.score(&draw(record), written)
}

/// The reward of one text.
fn value(spec: Value, record: Value, text: &str) -> f64 {
    scores(spec, record, &[Written::one_turn(text)]).unwrap()[0].reward
}

#[test]
fn texts_are_compared_with_the_right_answer() {
    let record = || json!({"answer": "42", "other": ["Oslo", 7]});
    for (spec, text, expected) in [
        (json!("exact"), " 42\n", 1.0),
        (json!("exact"), "<think>41?</think>\n42", 1.0),
        (json!("exact"), "the answer is 42", 0.0),
        (json!("exact"), "<think>42", 0.0),
        (json!({"type": "exact", "of": "response"}), "<think>42", 0.0),
        (json!({"type": "exact", "answer": ["a", "B"], "ignore_case": true}), "b", 1.0),
        (json!({"type": "exact", "from": "other"}), "7", 1.0),
        (json!({"type": "exact", "tag": "answer"}), "so <answer> 42 </answer>", 1.0),
        (json!({"type": "exact", "tag": "answer"}), "42", 0.0),
        (json!("numeric"), "It is 42.", 1.0),
        (json!("numeric"), "42 or 43", 0.0),
        (json!("numeric"), "142", 0.0),
        (json!("numeric"), "4 2", 0.0),
        (json!("numeric"), "1e42", 0.0),
        (json!("numeric"), "42.0", 1.0),
        (json!("numeric"), "no number", 0.0),
        (json!({"type": "numeric", "which": "any"}), "42 or 43", 1.0),
        (json!({"type": "numeric", "which": "only"}), "42 or 43", 0.0),
        (json!({"type": "numeric", "tolerance": 0.5}), "41.6", 1.0),
        (json!({"type": "numeric", "answer": "3 + 4 = 7\n#### 1,007"}), "1007", 1.0),
        (json!({"type": "regex", "pattern": r"^\d+$"}), "42", 1.0),
        (json!({"type": "regex", "pattern": r"^\d+$"}), "x42", 0.0),
        (json!({"type": "contains", "from": "other"}), "In Oslo", 0.5),
        (json!({"type": "contains", "from": "other", "ignore_case": true}), "oslo 7", 1.0),
        (json!({"type": "contains", "text": "x"}), "", 0.0),
    ] {
        assert_eq!(value(json!([spec]), record(), text), expected, "{spec} {text:?}");
    }
}

#[test]
fn form_length_and_language_are_measured() {
    for (spec, text, expected) in [
        (json!("format"), "<think>a</think>b", 1.0),
        (json!("format"), "<think></think>b", 0.0),
        (json!("format"), "<think>a</think>", 0.0),
        (json!("format"), "a</think>b</think>c", 0.0),
        (json!("format"), "b", 0.0),
        (
            json!({"type": "format", "form": "think_answer"}),
            "<think>a</think>\n<answer>b</answer>",
            1.0,
        ),
        (
            json!({"type": "format", "form": "think_answer"}),
            "<think>a</think><answer></answer>",
            0.0,
        ),
        (json!({"type": "format", "form": "think_answer"}), "<think>a</think>b", 0.0),
        (json!({"type": "format", "form": "json"}), "{\"a\": 1}", 1.0),
        (json!({"type": "format", "form": "json"}), "{a: 1}", 0.0),
        (json!({"type": "length", "max": 3}), "一二三", 1.0),
        (json!({"type": "length", "max": 3}), "一二三四", 0.0),
        (json!({"type": "length", "max": 3, "soft": 4}), "一二三四", 0.75),
        (json!({"type": "length", "max": 3, "soft": 4}), "一二三四五六七", 0.0),
        (json!({"type": "length", "min": 2, "unit": "words"}), "one", 0.0),
        (json!({"type": "length", "min": 2, "unit": "words"}), "one two", 1.0),
        (json!("repetition"), "no no no no no no", -0.5),
        (json!("repetition"), "one two three four", 0.0),
        (json!({"type": "language", "language": "zh"}), "你好 ab", 0.5),
        (json!({"type": "language", "language": "en"}), "all of it", 1.0),
        (json!({"type": "language", "language": "en"}), "123", 0.0),
    ] {
        assert_eq!(value(json!([spec]), json!({}), text), expected, "{spec} {text:?}");
    }
    // the prompt has opened the thought already
    let written = Written { thinking: true, ..Written::one_turn("a</think>b") };
    assert_eq!(scores(json!(["format"]), json!({}), &[written]).unwrap()[0].reward, 1.0);
    // ids are those that were sampled
    let written = Written { ids: 5, ..Written::one_turn("a") };
    let spec = json!([{"type": "length", "unit": "ids", "max": 4}]);
    assert_eq!(scores(spec, json!({}), &[written]).unwrap()[0].reward, 0.0);
}

#[test]
fn calls_of_tools_are_rewarded() {
    let called = |name: &str, x: i32, is_valid| Called {
        call: json!({"name": name, "arguments": {"x": x}}),
        is_valid,
        ..Called::default()
    };
    let written = |calls: Vec<Called>| Written { calls, ..Written::one_turn("done") };
    let reward =
        |spec: Value, calls| scores(json!([spec]), json!({}), &[written(calls)]).unwrap()[0].reward;
    let tool = || json!("tool");
    assert_eq!(reward(tool(), vec![]), 0.0);
    assert_eq!(reward(tool(), vec![called("f", 1, true)]), 1.0);
    assert_eq!(reward(tool(), vec![called("f", 1, true), called("g", 1, false)]), 0.0);
    let named = json!({"type": "tool", "tools": ["f"], "max": 1});
    assert_eq!(reward(named.clone(), vec![called("f", 1, true)]), 1.0);
    assert_eq!(reward(named.clone(), vec![called("g", 1, true)]), 0.0);
    assert_eq!(reward(named, vec![called("f", 1, true), called("f", 2, true)]), 0.0);
    let expect = json!({"type": "tool", "expect": [
        {"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": 2}}]});
    assert_eq!(reward(expect.clone(), vec![called("f", 1, true)]), 0.5);
    // one call is no two
    assert_eq!(reward(expect, vec![called("f", 1, true), called("f", 1, true)]), 0.5);
}

#[test]
fn weights_clamps_and_records_come_together_and_parts_stay_apart() {
    let spec = json!({"reward": [
        {"type": "numeric", "weight": 2}, {"type": "length", "max": 10, "weight": -1, "name": "short"},
        {"type": "length", "max": 1}], "clamp": [0, 1.5]});
    let record = json!({"answer": 5, "reward": [{"type": "contains", "text": "!", "weight": 0.25}, "numeric"]});
    let written = [Written::one_turn("it is 5!"), Written::one_turn("a long text about nothing")];
    let scores = scores(spec, record, &written).unwrap();
    let parts: Vec<(&str, f64)> =
        scores[0].parts.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(
        parts,
        [
            ("numeric", 1.0),
            ("short", 1.0),
            ("length", 0.0),
            ("contains", 1.0),
            ("task/numeric", 1.0)
        ]
    );
    // 2 - 1 = 1 within the clamp, and the record's own 0.25 + 1
    assert_eq!((scores[0].reward, scores[1].reward), (2.25, 0.0));
}

#[test]
fn a_reward_that_cannot_be_computed_is_an_error_and_is_seen_before_the_run() {
    let error = |spec: Value, record: Value| {
        let written = [Written::one_turn("5")];
        let said = scores(spec.clone(), record.clone(), &written).unwrap_err().to_string();
        let checked = rewards(&spec).unwrap().check(&draw(record).task).unwrap_err().to_string();
        assert!(
            said.contains(&checked) || checked.contains("expected a reward"),
            "{said} {checked}"
        );
        said
    };
    assert!(error(json!(["exact"]), json!({})).contains("expected a right answer in the task"));
    assert!(error(json!(["numeric"]), json!({"answer": "none"})).contains("expected a number"));
    assert!(error(json!([]), json!({})).contains("expected a reward, found none"));
    assert!(
        error(json!([{"type": "exact", "from": "truth"}]), json!({}))
            .contains("expected key truth")
    );
    assert!(error(json!([]), json!({"reward": "exakt"})).contains("key reward[0].type"));
}

#[test]
fn an_impossible_reward_is_refused_with_its_key() {
    for (spec, words) in [
        (json!([3]), "key [0]: expected an object"),
        (json!([{"weight": 1}]), "key [0].type: expected a type"),
        (json!(["exact", "sentiment"]), "key [1].type: expected one of exact"),
        (json!([{"type": "exact", "wieght": 2}]), "key [0].wieght: expected one of answer"),
        (json!([{"type": "exact", "answer": "a", "from": "b"}]), "found both"),
        (json!([{"type": "regex", "pattern": "("}]), "key [0].pattern: no pattern"),
        (json!([{"type": "regex"}]), "key [0].pattern: expected a pattern"),
        (json!([{"type": "length"}]), "expected min or max"),
        (json!([{"type": "language", "language": "tlh"}]), "no script of tlh"),
        (json!([{"type": "numeric", "tolerance": -1}]), "key [0].tolerance"),
        (json!([{"type": "numeric", "which": "first"}]), "expected one of last, any, only"),
        (json!([{"type": "model"}]), "key [0].model"),
        (json!([{"type": "model", "model": "m", "scale": [1]}]), "key [0].scale"),
        (json!([{"type": "reference", "judge": "m"}]), "key [0].judge"),
        (json!([{"type": "command"}]), "key [0].command: expected a list"),
        (json!([{"type": "command", "command": ["a"], "time_s": 0}]), "key [0].time_s"),
        (json!({"reward": [], "clamp": [2, 1]}), "key .clamp"),
        (json!({"reward": [], "klamp": 1}), "key .klamp"),
    ] {
        let said = rewards(&spec).unwrap_err().to_string();
        assert!(said.contains(words), "{spec}: {said}");
    }
}

/// A judge that remembers what it was asked.
#[derive(Clone, Default)]
struct Judging(Arc<Mutex<Vec<String>>>);

impl Judge for Judging {
    fn reply(&self, message: &str, _: usize) -> Result<String> {
        self.0.lock().unwrap().push(message.to_owned());
        Ok("<think>3 or 9?</think>I give it 8 of 10.\nFinal: 8".to_owned())
    }
}

#[test]
fn a_model_judges_by_a_prompt_of_ones_own() {
    let judging = Judging::default();
    let opened = Arc::new(Mutex::new(0));
    let (judge, count) = (judging.clone(), opened.clone());
    let open = move |name: &str| {
        assert_eq!(name, "a-model");
        *count.lock().unwrap() += 1;
        Ok(Arc::new(judge.clone()) as Arc<dyn Judge>)
    };
    let spec = json!([{"type": "model", "model": "a-model", "scale": [0, 5],
        "prompt": "Q {prompt} A {answer} T {expected}"}]);
    let judges = Judges::new(Some(Box::new(open)));
    let at = Path::new("rewards.json");
    let rewards = Rewards::from_json(&spec, at, at, judges, Sandbox::default()).unwrap();
    // what was answered is not a place of the prompt
    let written = [Written::one_turn("{expected}"), Written::one_turn("b")];
    let scores = rewards.score(&draw(json!({"answer": 5})), &written).unwrap();
    // 8 is beyond the scale
    assert_eq!(scores.iter().map(|s| s.reward).collect::<Vec<_>>(), [5.0, 5.0]);
    assert_eq!(
        *judging.0.lock().unwrap(),
        ["Q user: How many? A {expected} T 5", "Q user: How many? A b T 5"]
    );
    assert_eq!(*opened.lock().unwrap(), 1);
    let none = Rewards::from_json(&spec, at, at, Judges::default(), Sandbox::default()).unwrap();
    let said = none.score(&draw(json!({})), &written).unwrap_err().to_string();
    assert!(said.contains("expected openai:URL or ollama:NAME"), "{said}");
}

#[test]
fn finish_is_told_from_the_engine() {
    let written = Written { finish: Finish::Unfinished, ..Written::one_turn("x") };
    assert_eq!(written.answer(), "x");
}
