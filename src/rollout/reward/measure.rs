//! Measures of a rollout that need more than a line.

use mmx_converters::chat::answer::Call;

use super::kind::Form;
use super::text::strip;
use crate::written::Written;

/// 1 where something holds, else 0.
pub(super) fn share(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// A text with its places filled, each once from left to right: what is put in is not read again.
pub(super) fn filled(text: &str, places: &[(&str, &str)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    loop {
        let next = places
            .iter()
            .filter_map(|(place, value)| rest.find(place).map(|at| (at, place, value)))
            .min_by_key(|(at, ..)| *at);
        let Some((at, place, value)) = next else { break };
        out.push_str(&rest[..at]);
        out.push_str(value);
        rest = &rest[at + place.len()..];
    }
    out.push_str(rest);
    out
}

/// Whether the last turn has a form.
pub(super) fn has_form(form: Form, written: &Written) -> bool {
    let text = written.last();
    match form {
        Form::Think => {
            let once = text.matches("</think>").count() == 1;
            let begun = written.thinking || text.trim_start().starts_with("<think>");
            let thought = text.split_once("</think>").map_or("", |(thought, _)| thought);
            let thought = thought.trim_start().trim_start_matches("<think>");
            once && begun && !thought.trim().is_empty() && !written.answer().is_empty()
        }
        Form::ThinkAnswer => {
            let text = strip(text);
            let text = match written.thinking {
                true => format!("<think>\n{}", text.trim_start_matches("<think>").trim_start()),
                false => text.to_owned(),
            };
            let inner = text.strip_prefix("<think>").and_then(|t| t.strip_suffix("</answer>"));
            inner.and_then(|inner| inner.split_once("</think>")).is_some_and(|(thought, rest)| {
                let answer = rest.trim_start().strip_prefix("<answer>");
                let tags = ["<think>", "</think>", "<answer>", "</answer>"];
                let plain = |text: &str| tags.iter().all(|tag| !text.contains(tag));
                answer.is_some_and(|answer| {
                    plain(thought) && plain(answer) && !answer.trim().is_empty()
                })
            })
        }
        Form::Json => {
            !written.answer().is_empty()
                && serde_json::from_str::<serde::de::IgnoredAny>(written.answer()).is_ok()
        }
    }
}

/// What calls of tools are worth.
pub(super) fn tool_value(
    written: &Written,
    expect: &[Call],
    tools: &[String],
    min: usize,
    max: usize,
) -> f64 {
    let valid: Vec<Call> = written
        .calls
        .iter()
        .filter(|called| called.is_valid)
        .filter_map(|called| Call::from_json(called.call.clone()))
        .collect();
    if !expect.is_empty() {
        // each call that was made serves one that is expected
        let mut left: Vec<&Call> = valid.iter().collect();
        let mut made = 0;
        for call in expect {
            if let Some(at) = left.iter().position(|found| *found == call) {
                left.swap_remove(at);
                made += 1;
            }
        }
        return made as f64 / expect.len() as f64;
    }
    let all_valid = valid.len() == written.calls.len();
    let called = |name: &String| valid.iter().any(|call| call.name == *name);
    share(all_valid && (min..=max).contains(&valid.len()) && tools.iter().all(called))
}
