//! The reference's own rewards, in its numbers: of chats of one turn, of agents, and of 2025-10.
//!
//! Lengths are code points of stripped texts. Source: MiniMind of 2026-08 (one turn, agents) and of
//! 2025-10; `tests/fixtures/golden-rl/rewards.json` holds what it computes. Known weaknesses stay as
//! they are: a right answer is found as a substring too, and the number of calls wanted is the number
//! of right answers. The rewards of `docs/rewards.md` are better ones.

use std::sync::OnceLock;

use fancy_regex::Regex;
use mmx_converters::Result;
use mmx_converters::chat::answer::Call;
use mmx_converters::chat::message;
use serde_json::Value;

use super::text::{length, reference_numbers, repetition, strip};
use crate::tools::calls;

const THOUGHT_ENDS: &str = "</think>";

/// Parts by name, and their sum.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    /// Name and value.
    pub parts: Vec<(&'static str, f64)>,
}

impl Parts {
    fn add(&mut self, name: &'static str, value: f64) {
        self.parts.push((name, value));
    }

    /// The sum of all.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.parts.iter().map(|(_, value)| value).sum()
    }
}

/// The part of a text after its first thought, stripped; the text itself without a thought.
fn answer_of(text: &str) -> &str {
    text.split_once(THOUGHT_ENDS).map_or(text, |(_, answer)| strip(answer))
}

fn thought_parts(text: &str, parts: &mut Parts) {
    let Some((thought, _)) = text.split_once(THOUGHT_ENDS) else { return };
    let fits = (20..=300).contains(&length(thought));
    parts.add("thought", if fits { 1.0 } else { -0.5 });
    let once = text.matches(THOUGHT_ENDS).count() == 1;
    parts.add("thought_ends_once", if once { 0.25 } else { -0.25 });
}

/// A model's score as the reference counts it.
fn model_part(score: f64) -> f64 {
    score.clamp(-3.0, 3.0)
}

/// The reward of one turn. `model`: gives an answer's score, where a model is asked.
///
/// # Errors
/// Those of `model`.
pub fn single_turn(
    text: &str,
    model: Option<&mut dyn FnMut(&str) -> Result<f64>>,
) -> Result<Parts> {
    let mut parts = Parts::default();
    let fits = (20..=800).contains(&length(text));
    parts.add("length", if fits { 0.5 } else { -0.5 });
    thought_parts(text, &mut parts);
    let answer = answer_of(text);
    parts.add("repetition", -repetition(answer, 3, 0.5));
    if let Some(model) = model {
        parts.add("model", model_part(model(answer)?));
    }
    Ok(parts)
}

/// What an agent wrote, and what it should have.
#[derive(Clone, Copy, Debug)]
pub struct Agent<'a> {
    /// The text of each turn.
    pub turns: &'a [String],
    /// Whether the last turn that was allowed called a tool.
    pub unfinished: bool,
    /// What the answer must contain.
    pub truths: &'a [String],
    /// The tools offered, a list in OpenAI's form.
    pub tools: &'a Value,
}

/// The reward of an agent's whole conversation, and what the reference clamps its sum to.
///
/// # Errors
/// Those of `model`, which is asked only where no tool was called.
pub fn agent(
    agent: Agent<'_>,
    model: Option<&mut dyn FnMut(&str) -> Result<f64>>,
) -> Result<Parts> {
    let mut parts = Parts::default();
    let answers: Vec<&str> = agent.turns.iter().map(|turn| answer_of(turn)).collect();
    let unbalanced: usize = answers
        .iter()
        .map(|text| {
            text.matches("<tool_call>").count().abs_diff(text.matches("</tool_call>").count())
        })
        .sum();
    parts.add("unbalanced_calls", -0.5 * unbalanced as f64);
    let called: Vec<Value> = answers.iter().flat_map(|text| calls(text)).collect();
    let last = agent.turns.last().map_or("", String::as_str);
    let answer = answers.last().copied().unwrap_or_default();
    if called.is_empty() {
        let fits = (5..=800).contains(&length(last));
        parts.add("length", if fits { 0.5 } else { -0.5 });
        thought_parts(last, &mut parts);
        if let Some(model) = model {
            parts.add("model", model_part(model(answer)?));
        }
        parts.add("repetition", -repetition(answer, 3, 0.5));
        return Ok(parts);
    }
    let valid = called.iter().filter(|call| is_valid(call, agent.tools)).count();
    let gap = valid.abs_diff(agent.truths.len()) + called.len() - valid;
    parts.add("calls", if gap == 0 { 0.5 } else { -0.5 * gap as f64 });
    let tail = strip(answer.rsplit_once("</tool_call>").map_or(answer, |(_, tail)| tail));
    if agent.unfinished {
        parts.add("unfinished", -0.5);
        parts.add("repetition", -repetition(answer, 3, 0.5));
        return Ok(parts);
    }
    if !agent.truths.is_empty() {
        let found = matched(tail, agent.truths).len() as f64;
        parts.add("truths", 2.5 * found / agent.truths.len() as f64);
    }
    parts.add("repetition", -repetition(tail, 3, 0.5));
    Ok(parts)
}

/// Whether a call names a tool that is offered, with the arguments it requires.
fn is_valid(call: &Value, tools: &Value) -> bool {
    let Some(call) = Call::from_json(call.clone()) else { return false };
    let functions = tools.as_array().into_iter().flatten();
    let mut functions = functions.map(|tool| tool.get("function").unwrap_or(tool));
    functions.find(|function| function["name"] == call.name.as_str()).is_some_and(|function| {
        let required = function["parameters"]["required"].as_array().into_iter().flatten();
        required.filter_map(Value::as_str).all(|name| call.arguments.get(name).is_some())
    })
}

/// The right answers that a text holds: as a substring without case, or as a free-standing number
/// within 1e-6.
#[must_use]
pub fn matched(text: &str, truths: &[String]) -> Vec<String> {
    let lower = text.to_lowercase();
    let numbers = reference_numbers(text);
    let holds = |truth: &&String| {
        let truth = strip(truth);
        if !truth.is_empty() && lower.contains(&truth.to_lowercase()) {
            return true;
        }
        let number: Option<f64> = truth.replace(',', "").parse().ok();
        number.is_some_and(|truth| numbers.iter().any(|found| (found - truth).abs() < 1e-6))
    };
    truths.iter().filter(holds).cloned().collect()
}

/// The reward of 2025-10 for texts of a thought and an answer in tags. `whole` and `answer` are a
/// model's scores of the whole text and of the answer within its tags; the second is asked for only
/// where there is one.
///
/// # Errors
/// Those of `model`.
pub fn reasoning(text: &str, model: Option<&mut dyn FnMut(&str) -> Result<f64>>) -> Result<Parts> {
    static FORM: OnceLock<Option<Regex>> = OnceLock::new();
    static ANSWER: OnceLock<Option<Regex>> = OnceLock::new();
    let form = FORM.get_or_init(|| {
        Regex::new(r"\A(?s)<think>\n.*?\n</think>\n{1,2}<answer>\n.*?\n</answer>\n?\z").ok()
    });
    let fits = form.as_ref().is_some_and(|form| form.is_match(text).unwrap_or(false));
    let mut parts = Parts::default();
    parts.add("form", if fits { 0.5 } else { 0.0 });
    let tags = ["<think>", "</think>", "<answer>", "</answer>"];
    let once = tags.iter().filter(|tag| text.matches(**tag).count() == 1).count();
    parts.add("tags", 0.25 * once as f64);
    if let Some(model) = model {
        let whole = model_part(model(text)?);
        let inner = ANSWER.get_or_init(|| Regex::new(r"(?s)<answer>(.*?)</answer>").ok());
        let inner = inner.as_ref().and_then(|inner| inner.captures(text).ok().flatten());
        let score = match inner.and_then(|found| found.get(1)) {
            Some(answer) => 0.4 * whole + 0.6 * model_part(model(strip(answer.as_str()))?),
            None => whole,
        };
        parts.add("model", score);
    }
    Ok(parts)
}

/// The messages of a rendered prompt, as the reference reads them back for its reward model.
#[must_use]
pub fn messages_of(prompt: &str) -> Vec<Value> {
    static TURN: OnceLock<Option<Regex>> = OnceLock::new();
    let turn = TURN.get_or_init(|| {
        Regex::new(r"(?s)<\|im_start\|>(system|user|assistant)[\s\x1c-\x1f]+(.*?)<\|im_end\|>").ok()
    });
    let found = turn.iter().flat_map(|turn| turn.captures_iter(prompt)).flatten();
    let group = |captures: &fancy_regex::Captures<'_>, index| {
        captures.get(index).map_or("", |found| found.as_str()).to_owned()
    };
    found.map(|turn| message(&group(&turn, 1), strip(&group(&turn, 2)))).collect()
}

/// What the reference sends its reward model: the chat before the last message as lines, a note, the
/// last message; and the answer.
#[must_use]
pub fn model_call(messages: &[Value], note: &str, answer: &str) -> [Value; 2] {
    let content = |message: &Value| message["content"].as_str().unwrap_or_default().to_owned();
    let asked = match messages {
        [] => String::new(),
        [only] => content(only),
        [before @ .., last] => {
            let line = |message: &Value| {
                format!("{}: {}", message["role"].as_str().unwrap_or_default(), content(message))
            };
            let lines: Vec<String> = before.iter().map(line).collect();
            format!("{}\n{note}\n{}", lines.join("\n"), content(last))
        }
    };
    [message("user", &asked), message("assistant", answer)]
}
