//! Records to JSON of a form.

use mmx_data::Record;
use serde_json::{Map, Value, json};

/// The forms of chats that can be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// MiniMind's: `conversations` with `role` and `content`.
    #[default]
    Own,
    /// OpenAI's: `messages`, tools beside them.
    Messages,
    /// `conversations` with `from` and `value`.
    ShareGpt,
    /// `instruction` and `output`, perhaps `system` and `history`.
    Alpaca,
}

impl Form {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Messages => "messages",
            Self::ShareGpt => "sharegpt",
            Self::Alpaca => "alpaca",
        }
    }

    /// A record in this form.
    ///
    /// # Errors
    /// A chat that the form cannot hold, in a sentence.
    pub(super) fn value(self, record: &Record) -> Result<Value, String> {
        match (record, self) {
            (Record::Text(text), _) => Ok(json!({ "text": text })),
            (Record::Preference { chosen, rejected }, _) => {
                Ok(json!({ "chosen": chosen, "rejected": rejected }))
            }
            (Record::Chat(turns), Self::Own) => Ok(json!({ "conversations": turns })),
            (Record::Chat(turns), Self::Messages) => Ok(messages(turns)),
            (Record::Chat(turns), Self::ShareGpt) => sharegpt(turns),
            (Record::Chat(turns), Self::Alpaca) => alpaca(turns),
        }
    }
}

/// The tools of the first turn beside the turns.
fn messages(turns: &[Value]) -> Value {
    let mut turns = turns.to_vec();
    let tools =
        turns.first_mut().and_then(Value::as_object_mut).and_then(|t| t.shift_remove("tools"));
    let mut object = json!({ "messages": turns });
    if let Some(tools) = tools.filter(|tools| !tools.is_null()) {
        object["tools"] = tools;
    }
    object
}

/// A turn's text; refuses what only its other keys say.
fn text<'a>(turn: &'a Value, form: &str) -> Result<&'a str, String> {
    for key in ["tool_calls", "reasoning_content", "tools"] {
        let given = !matches!(&turn[key], Value::Null) && turn[key].as_str() != Some("");
        if given {
            return Err(format!(
                "expected turns of role and content for the form {form}, found {key}"
            ));
        }
    }
    turn["content"]
        .as_str()
        .ok_or_else(|| format!("expected a text for the form {form}, found none"))
}

fn sharegpt(turns: &[Value]) -> Result<Value, String> {
    let turn = |turn: &Value| {
        let from = match turn["role"].as_str() {
            Some("user") => "human",
            Some("assistant") => "gpt",
            Some("system") => "system",
            other => {
                let found = other.unwrap_or("none");
                return Err(format!("expected a role of the form sharegpt, found {found}"));
            }
        };
        Ok(json!({ "from": from, "value": text(turn, "sharegpt")? }))
    };
    Ok(json!({ "conversations": turns.iter().map(turn).collect::<Result<Vec<_>, _>>()? }))
}

fn alpaca(turns: &[Value]) -> Result<Value, String> {
    let mut object = Map::new();
    let mut rest = turns;
    if let Some((first, after)) = rest.split_first()
        && first["role"] == "system"
    {
        object.insert("system".into(), text(first, "alpaca")?.into());
        rest = after;
    }
    let mut pairs = Vec::new();
    for pair in rest.chunks(2) {
        match pair {
            [asked, answered] if asked["role"] == "user" && answered["role"] == "assistant" => {
                pairs.push((text(asked, "alpaca")?, text(answered, "alpaca")?));
            }
            _ => {
                return Err(
                    "expected questions and answers for the form alpaca, found others".into()
                );
            }
        }
    }
    let Some((instruction, output)) = pairs.pop() else {
        return Err("expected a question and an answer for the form alpaca, found none".into());
    };
    object.insert("instruction".into(), instruction.into());
    object.insert("input".into(), "".into());
    object.insert("output".into(), output.into());
    if !pairs.is_empty() {
        object.insert("history".into(), json!(pairs));
    }
    Ok(Value::Object(object))
}
