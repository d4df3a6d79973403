//! One reward as data: read from JSON, and its values for a group's texts.

use std::path::Path;

use fancy_regex::Regex;
use mmx_converters::{Error, Result};
use mmx_data::Task;
use serde_json::{Map, Value, json};

use super::fields::{Fault, Fields, fault, texts_of};
use super::judge::Judges;
use super::kind::{Asked, Expected, Kind, Of, Unit, Which, kind_of};
use super::measure::{filled, has_form, share, tool_value};
use super::reference;
use super::text::{last_number, length, numbers, repetition, strip, words};
use crate::prompts::Draw;
use crate::rollout::Finish;
use crate::sandbox::{Command, Sandbox};
use crate::written::Written;

/// Keys of a record that hold its right answer, the first that is there.
const ANSWERS: [&str; 5] = ["answer", "gt", "solution", "target", "label"];
/// Tokens of a judge's answer at most.
const VERDICT: usize = 256;

/// One reward.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) weight: f64,
    kind: Kind,
    of: Of,
    tag: Option<String>,
}

/// The values of one rollout: by name, and what is weighed.
pub(super) type Values = (Vec<(String, f64)>, f64);

/// What rewards need beside texts.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub(super) judges: &'a Judges,
    pub(super) sandbox: Sandbox,
}

impl Part {
    /// Reads one. `folder`: where its commands lie.
    pub(super) fn from_json(value: &Value, folder: &Path) -> std::result::Result<Self, Fault> {
        let object = match value {
            Value::Object(object) => object.clone(),
            Value::String(kind) => Map::from_iter([("type".to_owned(), kind.as_str().into())]),
            other => {
                return Err((
                    String::new(),
                    format!("expected an object or a type's name, found {other}"),
                ));
            }
        };
        let fields = Fields::new(&object);
        let kind =
            fields.text("type")?.ok_or_else(|| fault("type", "expected a type, found none"))?;
        let name = fields.text("name")?.unwrap_or(kind).to_owned();
        let weight = fields.number("weight")?.unwrap_or(1.0);
        if !weight.is_finite() {
            return Err(fault("weight", "expected a finite number"));
        }
        let of = [("answer", Of::Answer), ("response", Of::Response), ("all", Of::All)];
        let of = fields.word("of", &of)?.unwrap_or(Of::Answer);
        let tag = fields.text("tag")?.map(str::to_owned);
        let kind = kind_of(kind, &fields, &object, folder)?;
        fields.finish()?;
        Ok(Self { name, weight, kind, of, tag })
    }

    /// Refuses a task that this reward cannot score.
    pub(super) fn check(&self, task: &Task) -> Result<()> {
        match &self.kind {
            Kind::Exact { expected, .. } | Kind::Contains { expected, .. } => {
                self.expected(expected, task).map(|_| ())
            }
            Kind::Numeric { expected, .. } => self.expected_numbers(expected, task).map(|_| ()),
            Kind::Agent(_) => self.expected(&Expected::Key("gt".to_owned()), task).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// The values of a group's rollouts, in their order.
    pub(super) fn values(
        &self,
        draw: &Draw,
        written: &[Written],
        means: Means<'_>,
    ) -> Result<Vec<Values>> {
        if let Kind::Command(command) = &self.kind {
            return self.command_values(command, draw, written, means);
        }
        written.iter().map(|written| self.value(draw, written, means)).collect()
    }

    fn value(&self, draw: &Draw, written: &Written, means: Means<'_>) -> Result<Values> {
        let text = self.text(written);
        let text = text.as_str();
        let value = match &self.kind {
            Kind::Exact { expected, ignore_case } => {
                let same = |a: &str, b: &str| match ignore_case {
                    true => a.to_lowercase() == b.to_lowercase(),
                    false => a == b,
                };
                let expected = self.expected(expected, &draw.task)?;
                share(expected.iter().any(|truth| same(strip(text), strip(truth))))
            }
            Kind::Numeric { expected, tolerance, which } => {
                let expected = self.expected_numbers(expected, &draw.task)?;
                let found = numbers(text);
                let found = match which {
                    Which::Any => &found[..],
                    Which::Last => &found[found.len().saturating_sub(1)..],
                    Which::Only if found.len() == 1 => &found[..],
                    Which::Only => &[],
                };
                let near = |a: &f64| expected.iter().any(|b| (a - b).abs() <= *tolerance);
                share(found.iter().any(near))
            }
            Kind::Regex(pattern) => share(self.matches(pattern, text)?),
            Kind::Contains { expected, ignore_case } => {
                let expected = self.expected(expected, &draw.task)?;
                let lower = text.to_lowercase();
                let holds = |truth: &&String| match ignore_case {
                    true => lower.contains(&truth.to_lowercase()),
                    false => text.contains(truth.as_str()),
                };
                expected.iter().filter(holds).count() as f64 / expected.len().max(1) as f64
            }
            Kind::Format(form) => share(has_form(*form, written)),
            Kind::Length { min, max, soft, unit } => {
                let length = match unit {
                    Unit::Characters => length(text),
                    Unit::Words => words(text).len(),
                    Unit::Ids => written.ids,
                };
                match length.checked_sub(*max) {
                    _ if length < *min => 0.0,
                    None | Some(0) => 1.0,
                    Some(over) if over < *soft => 1.0 - over as f64 / *soft as f64,
                    Some(_) => 0.0,
                }
            }
            Kind::Repetition { n, cap } => -repetition(text, *n, *cap),
            Kind::Language(script) => {
                let letters = text.chars().filter(|c| c.is_alphabetic());
                let mut buffer = [0; 4];
                let (mut own, mut all) = (0, 0);
                for letter in letters {
                    all += 1;
                    own += usize::from(self.matches(script, letter.encode_utf8(&mut buffer))?);
                }
                own as f64 / all.max(1) as f64
            }
            Kind::Tool { expect, tools, min, max } => {
                tool_value(written, expect, tools, *min, *max)
            }
            Kind::Model(asked) => self.verdict(asked, draw, text, means)?,
            Kind::Command(_) => 0.0, // asked for the whole group
            Kind::Reference(asked) => {
                return self.named(draw, asked.as_ref(), means, |model| {
                    reference::single_turn(written.last(), model)
                });
            }
            Kind::Reasoning(asked) => {
                return self.named(draw, asked.as_ref(), means, |model| {
                    reference::reasoning(written.last(), model)
                });
            }
            Kind::Agent(asked) => {
                let truths = self.expected(&Expected::Key("gt".to_owned()), &draw.task)?;
                let tools = draw.options.tools.clone().unwrap_or_else(|| json!([]));
                let agent = reference::Agent {
                    turns: &written.turns,
                    unfinished: written.finish == Finish::Unfinished,
                    truths: &truths,
                    tools: &tools,
                };
                let (parts, sum) = self
                    .named(draw, asked.as_ref(), means, |model| reference::agent(agent, model))?;
                return Ok((parts, sum.clamp(-3.0, 3.0)));
            }
        };
        Ok((vec![(self.name.clone(), value)], value))
    }

    /// A reward of several parts, whose names follow its own.
    fn named(
        &self,
        draw: &Draw,
        asked: Option<&Asked>,
        means: Means<'_>,
        parts: impl FnOnce(Option<&mut dyn FnMut(&str) -> Result<f64>>) -> Result<reference::Parts>,
    ) -> Result<Values> {
        let found = match asked {
            None => parts(None)?,
            Some(asked) => {
                let mut model = |answer: &str| self.verdict(asked, draw, answer, means);
                parts(Some(&mut model))?
            }
        };
        let sum = found.sum();
        let own = |(name, value): &(&str, f64)| (format!("{}/{name}", self.name), *value);
        Ok((found.parts.iter().map(own).collect(), sum))
    }

    /// The text that is looked at.
    fn text(&self, written: &Written) -> String {
        let text = match self.of {
            Of::Answer => written.answer().to_owned(),
            Of::Response => written.last().to_owned(),
            Of::All => written.turns.join("\n"),
        };
        let Some(tag) = &self.tag else { return text };
        let within = text
            .rsplit_once(&format!("<{tag}>"))
            .and_then(|(_, after)| after.split_once(&format!("</{tag}>")));
        within.map_or_else(String::new, |(inside, _)| strip(inside).to_owned())
    }

    fn fault(&self, message: impl std::fmt::Display) -> Error {
        Error::failed(format!("reward {}: {message}", self.name))
    }

    fn matches(&self, pattern: &Regex, text: &str) -> Result<bool> {
        pattern.is_match(text).map_err(|e| self.fault(e))
    }

    fn expected(&self, expected: &Expected, task: &Task) -> Result<Vec<String>> {
        let found = match expected {
            Expected::Given(texts) => return Ok(texts.clone()),
            Expected::Key(key) => match task.record.get(key) {
                Some(value) => texts_of(value).ok_or_else(|| {
                    self.fault(format!("key {key}: expected a text, a number or a list of them"))
                })?,
                None => {
                    return Err(self.fault(format!("expected key {key} in the task, found none")));
                }
            },
            Expected::Record => {
                let key = ANSWERS.iter().find_map(|key| task.record.get(*key).and_then(texts_of));
                let last = || task.answer.clone().map(|answer| vec![answer]);
                key.or_else(last).ok_or_else(|| {
                    let keys = ANSWERS.join(", ");
                    self.fault(format!(
                        "expected a right answer in the task (a key of {keys}, or an assistant's last turn), found none"
                    ))
                })?
            }
        };
        Ok(found)
    }

    fn expected_numbers(&self, expected: &Expected, task: &Task) -> Result<Vec<f64>> {
        let texts = self.expected(expected, task)?;
        let number = |text: &String| {
            last_number(text).ok_or_else(|| {
                self.fault(format!("expected a number as the right answer, found {text:?}"))
            })
        };
        texts.iter().map(number).collect()
    }

    /// A judge's number, as a share of its scale for a reward of its own, as it is where the scale
    /// is that of the reference.
    fn verdict(&self, asked: &Asked, draw: &Draw, answer: &str, means: Means<'_>) -> Result<f64> {
        let turn = |message: &Value| {
            let text = |key: &str| message[key].as_str().unwrap_or_default();
            format!("{}: {}", text("role"), text("content"))
        };
        let chat: Vec<String> = draw.messages.iter().map(turn).collect();
        let truths = self.expected(&Expected::Record, &draw.task).unwrap_or_default();
        let question = filled(
            &asked.prompt,
            &[
                ("{prompt}", &chat.join("\n")),
                ("{answer}", answer),
                ("{expected}", &truths.join(", ")),
            ],
        );
        let judge = means.judges.get(&asked.model)?;
        let reply = judge.reply(&question, VERDICT)?;
        let reply = reply.rsplit_once("</think>").map_or(reply.as_str(), |(_, answer)| answer);
        let [low, high] = asked.scale;
        match (numbers(reply).pop(), asked.otherwise) {
            (Some(number), _) => Ok(number.clamp(low.min(high), low.max(high))),
            (None, Some(otherwise)) => Ok(otherwise),
            (None, None) => {
                let begin: String = reply.chars().take(80).collect();
                Err(self.fault(format!("{}: expected a number, found {begin:?}", asked.model)))
            }
        }
    }

    /// A line for each rollout to the command, and a number (or numbers by name) for each from it.
    fn command_values(
        &self,
        command: &Command,
        draw: &Draw,
        written: &[Written],
        means: Means<'_>,
    ) -> Result<Vec<Values>> {
        let line = |written: &Written| {
            let calls: Vec<Value> = written
                .calls
                .iter()
                .map(|c| json!({"call": c.call, "valid": c.is_valid, "result": c.result}))
                .collect();
            json!({
                "messages": draw.messages, "record": draw.task.record, "turns": written.turns,
                "answer": self.text(written), "finish": written.finish, "ids": written.ids, "calls": calls,
            })
            .to_string()
        };
        let lines: Vec<String> = written.iter().map(line).collect();
        let replies = means.sandbox.exchange(command, &lines)?;
        let number = |value: &Value| {
            let number = match value {
                Value::Bool(flag) => Some(share(*flag)),
                other => other.as_f64(),
            };
            number.filter(|number| number.is_finite())
        };
        let values = |reply: Value| {
            let wrong = || {
                self.fault(format!(
                    "command {}: expected a number, or an object with the key reward, found {reply}",
                    command.name()
                ))
            };
            let Value::Object(object) = &reply else {
                let value = number(&reply).ok_or_else(wrong)?;
                return Ok((vec![(self.name.clone(), value)], value));
            };
            let value = object.get("reward").and_then(number).ok_or_else(wrong)?;
            let mut parts = vec![(self.name.clone(), value)];
            for (key, part) in object.iter().filter(|(key, _)| *key != "reward") {
                parts.push((format!("{}/{key}", self.name), number(part).ok_or_else(wrong)?));
            }
            Ok((parts, value))
        };
        replies.into_iter().map(values).collect()
    }
}
