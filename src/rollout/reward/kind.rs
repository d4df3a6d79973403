//! The types of rewards: what each measures, and how it is read from JSON.

use std::path::Path;

use fancy_regex::Regex;
use mmx_converters::chat::answer::Call;
use serde_json::{Map, Value};

use super::fields::{Fault, Fields, fault};
use super::text::scripts;
use crate::sandbox::Command;

/// The text that is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Of {
    /// What follows the last turn's thought.
    Answer,
    /// All of the last turn.
    Response,
    /// All turns.
    All,
}

/// The texts that a reward compares with.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expected {
    Given(Vec<String>),
    /// Of this key of the record.
    Key(String),
    /// The record's answer, wherever it is.
    Record,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Which {
    Last,
    Any,
    Only,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    Think,
    ThinkAnswer,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    Characters,
    Words,
    Ids,
}

/// A judge's name, what it is asked, and the ends of its scale.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) prompt: String,
    pub(super) scale: [f64; 2],
    pub(super) otherwise: Option<f64>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Exact { expected: Expected, ignore_case: bool },
    Numeric { expected: Expected, tolerance: f64, which: Which },
    Regex(Box<Regex>),
    Contains { expected: Expected, ignore_case: bool },
    Format(Form),
    Length { min: usize, max: usize, soft: usize, unit: Unit },
    Repetition { n: usize, cap: f64 },
    Language(Box<Regex>),
    Tool { expect: Vec<Call>, tools: Vec<String>, min: usize, max: usize },
    Model(Asked),
    Command(Command),
    Reference(Option<Asked>),
    Agent(Option<Asked>),
    Reasoning(Option<Asked>),
}

/// The reward of a type's name, from its other keys. `folder`: where its commands lie.
pub(super) fn kind_of(
    kind: &str,
    fields: &Fields<'_>,
    object: &Map<String, Value>,
    folder: &Path,
) -> std::result::Result<Kind, Fault> {
    let expected = |given: &'static str| {
        Ok(match (fields.texts(given)?, fields.text("from")?) {
            (Some(_), Some(_)) => {
                return Err(fault("from", format!("expected {given} or from, found both")));
            }
            (Some(texts), None) => Expected::Given(texts),
            (None, Some(key)) => Expected::Key(key.to_owned()),
            (None, None) => Expected::Record,
        })
    };
    let pattern = |source: &str| {
        Regex::new(source).map(Box::new).map_err(|e| fault("pattern", format!("no pattern: {e}")))
    };
    Ok(match kind {
        "exact" => {
            Kind::Exact { expected: expected("answer")?, ignore_case: fields.flag("ignore_case")? }
        }
        "numeric" => {
            let tolerance = fields.number("tolerance")?.unwrap_or(1e-6);
            if tolerance.is_nan() || tolerance < 0.0 {
                return Err(fault("tolerance", "expected 0 or more"));
            }
            let which = [("last", Which::Last), ("any", Which::Any), ("only", Which::Only)];
            let which = fields.word("which", &which)?.unwrap_or(Which::Last);
            Kind::Numeric { expected: expected("answer")?, tolerance, which }
        }
        "regex" => {
            let source = fields.text("pattern")?;
            Kind::Regex(pattern(source.ok_or_else(|| fault("pattern", "expected a pattern"))?)?)
        }
        "contains" => {
            let ignore_case = fields.flag("ignore_case")?;
            Kind::Contains { expected: expected("text")?, ignore_case }
        }
        "format" => {
            let forms =
                [("think", Form::Think), ("think_answer", Form::ThinkAnswer), ("json", Form::Json)];
            Kind::Format(fields.word("form", &forms)?.unwrap_or(Form::Think))
        }
        "length" => {
            let units =
                [("characters", Unit::Characters), ("words", Unit::Words), ("ids", Unit::Ids)];
            let (min, max) = (fields.count("min")?, fields.count("max")?);
            if min.is_none() && max.is_none() {
                return Err(fault("max", "expected min or max, found neither"));
            }
            Kind::Length {
                min: min.unwrap_or(0),
                max: max.unwrap_or(usize::MAX),
                soft: fields.count("soft")?.unwrap_or(0),
                unit: fields.word("unit", &units)?.unwrap_or(Unit::Characters),
            }
        }
        "repetition" => {
            let n = fields.count("n")?.unwrap_or(3);
            let cap = fields.number("cap")?.unwrap_or(0.5);
            if n == 0 || cap.is_nan() || cap < 0.0 {
                return Err(fault("n", "expected n of 1 or more and a cap of 0 or more"));
            }
            Kind::Repetition { n, cap }
        }
        "language" => {
            let language = fields.text("language")?;
            let language =
                language.ok_or_else(|| fault("language", "expected a language's code"))?;
            let script = scripts(language)
                .ok_or_else(|| fault("language", format!("no script of {language} is known")))?;
            Kind::Language(pattern(script)?)
        }
        "tool" => {
            let expect = fields.get("expect").map_or(Some(Vec::new()), |value| {
                value.as_array()?.iter().cloned().map(Call::from_json).collect()
            });
            Kind::Tool {
                expect: expect.ok_or_else(|| fault("expect", "expected a list of calls"))?,
                tools: fields.texts("tools")?.unwrap_or_default(),
                min: fields.count("min")?.unwrap_or(1),
                max: fields.count("max")?.unwrap_or(usize::MAX),
            }
        }
        "model" => Kind::Model(asked_of(fields, [0.0, 1.0])?),
        "command" => {
            fields.skip(&["command", "time_s", "memory_mb", "processes", "file_mb"]);
            Kind::Command(Command::from_json(object, folder)?)
        }
        "reference" | "reference_agent" | "reference_2025_10" => {
            // the reference's models score about from -3 to 3
            let asked = match fields.get("judge") {
                None => None,
                Some(Value::Object(judge)) => {
                    let fields = Fields::new(judge);
                    let asked = asked_of(&fields, [-3.0, 3.0]);
                    let inner = |(key, message): Fault| (format!(".judge{key}"), message);
                    let asked = asked.map_err(inner)?;
                    fields.finish().map_err(inner)?;
                    Some(asked)
                }
                Some(_) => return Err(fault("judge", "expected an object with the key model")),
            };
            match kind {
                "reference" => Kind::Reference(asked),
                "reference_agent" => Kind::Agent(asked),
                _ => Kind::Reasoning(asked),
            }
        }
        other => {
            let known = "exact, numeric, regex, contains, format, length, repetition, language, tool, model, \
                         command, reference, reference_agent, reference_2025_10";
            return Err(fault("type", format!("expected one of {known}, found {other}")));
        }
    })
}

fn asked_of(fields: &Fields<'_>, scale: [f64; 2]) -> std::result::Result<Asked, Fault> {
    let model =
        fields.text("model")?.ok_or_else(|| fault("model", "expected a model, found none"))?;
    let scale = match fields.get("scale") {
        None => scale,
        Some(value) => {
            let ends = value.as_array().map(Vec::as_slice).unwrap_or_default();
            match ends.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>().as_deref() {
                Some([low, high]) if low != high => [*low, *high],
                _ => return Err(fault("scale", "expected a list of two different numbers")),
            }
        }
    };
    let [low, high] = scale;
    let usual = format!(
        "{{prompt}}\n\nAn assistant answered:\n{{answer}}\n\nHow good is this answer, from {low} (wrong) to {high} \
         (right and clear)? Answer with the number alone."
    );
    Ok(Asked {
        model: model.to_owned(),
        prompt: fields.text("prompt")?.map_or(usual, str::to_owned),
        scale,
        otherwise: fields.number("otherwise")?,
    })
}
