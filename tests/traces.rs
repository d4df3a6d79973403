//! `mmx data show` for stages that learn from rewards: prompts as a policy reads them, and rollouts.

mod common;

use common::{mmx_error, mmx_json, mmx_ok, shared, text};
use mmx_converters::tokenizer::Tokenizer;
use mmx_rollout::{Finish, Rollout};
use serde_json::json;

#[test]
fn tasks_are_shown_as_prompts() {
    let file = shared("golden-rl/agent_rl.jsonl");
    let tokenizer = shared("golden-2026");
    let common = ["data", "show", "--stage", "agent", "--tokenizer", text(&tokenizer)];
    let words = mmx_ok(&[&common[..], &["-n", "1", text(&file)]].concat());
    assert!(words.starts_with("line 1: 428 tokens\n<|im_start|>system\n"), "{words}");
    assert!(words.contains("63*67=?<|im_end|>\n<|im_start|>assistant\n"), "{words}");
    let report = mmx_json(&[&common[..], &["--line", "2", text(&file)]].concat());
    let samples = report["samples"].as_array().expect("samples");
    assert_eq!((samples.len(), &samples[0]["line"]), (1, &json!(2)));
    assert_eq!(samples[0]["ids"].as_array().map(Vec::len), Some(428));
    let error = mmx_error(&[&common[..], &["--line", "99", text(&file)]].concat());
    assert!(error.contains("line 99: expected a task, found none"), "{error}");
}

#[test]
fn rollouts_are_shown_with_what_was_sampled_and_its_reward() {
    let dir = tempfile::tempdir().expect("a folder");
    let tokenizer = shared("golden-2026");
    let ids = |text: &str| Tokenizer::open(&tokenizer).and_then(|t| t.encode(text)).expect("ids");
    let (first, between, last) = (ids("call"), ids("<|im_end|>\nresult\n"), ids("answer"));
    let parts = [&first, &between, &last];
    let rollout = |finish| Rollout {
        sample: 4,
        step: 0,
        group: 2,
        prompt: ids("<|im_start|>user\nhi"),
        ids: parts.iter().flat_map(|part| part.iter().copied()).collect(),
        sampled: parts
            .iter()
            .zip([true, false, true])
            .flat_map(|(p, s)| vec![s; p.len()])
            .collect(),
        logps: vec![0.0; parts.iter().map(|part| part.len()).sum()],
        finish,
        parts: vec![("numeric".to_owned(), 1.0), ("length".to_owned(), -0.5)],
        reward: 0.75,
    };
    let file = dir.path().join("rollouts.jsonl");
    let lines = [Finish::Stop, Finish::Unfinished].map(|finish| rollout(finish).to_json() + "\n");
    fs_err::write(&file, lines.concat()).expect("written");
    let common = ["data", "show", "--stage", "grpo", "--tokenizer", text(&tokenizer), text(&file)];
    let words = mmx_ok(&common);
    assert!(words.contains("line 1, task 4, group 2: "), "{words}");
    assert!(
        words.contains("ended by stop, reward 0.7500 (numeric 1.0000, length -0.5000)"),
        "{words}"
    );
    assert!(words.contains("ended by unfinished"), "{words}");
    let traced =
        "<|im_start|>user\nhi\u{27e6}call\u{27e7}<|im_end|>\nresult\n\u{27e6}answer\u{27e7}";
    assert_eq!(words.matches(traced).count(), 2, "{words}");
    let report = mmx_json(&[&common[..], &["--line", "2"]].concat());
    let sample = &report["samples"][0];
    assert_eq!((&sample["finish"], &sample["reward"]), (&json!("unfinished"), &json!(0.75)));
    assert_eq!(sample["parts"], json!({"numeric": 1.0, "length": -0.5}));
    let sampled = sample["sampled"].as_array().expect("a mask").iter().filter(|s| **s == true);
    assert_eq!(sampled.count(), first.len() + last.len());
    // a line that is no rollout among such
    fs_err::write(&file, format!("{}{{\"ids\": []}}\n", lines[0])).expect("written");
    let error = mmx_error(&common);
    assert!(error.contains("rollouts.jsonl:2") && error.contains("expected a rollout"), "{error}");
}
