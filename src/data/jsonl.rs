//! Lines to records: one JSON object a line, UTF-8; a byte order mark, CRLF and blank lines are fine.
//!
//! In: the bytes of a file. Out: per line a [`Record`], or a [`Fault`] that says what is wrong with it.
//! Source: MODEL_AND_STAGES section 3 (the files of 2025 and 2026), and `from`/`value` with
//! `human`/`gpt`, as many published chats are spelled.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a training stage reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `{"text": ...}`: pretraining.
    Text,
    /// `{"conversations": [...]}`: SFT, LoRA, distillation, reasoning.
    Chat,
    /// `{"chosen": [...], "rejected": [...]}`: DPO.
    Preference,
}

impl Kind {
    /// The keys a record of this kind has.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Text => &["text"],
            Self::Chat => &["conversations"],
            Self::Preference => &["chosen", "rejected"],
        }
    }

    /// What users call data of this kind.
    fn name(self) -> &'static str {
        match self {
            Self::Text => "pretraining data",
            Self::Chat => "SFT data",
            Self::Preference => "DPO data",
        }
    }
}

/// One line's content. Messages are JSON objects with `role` and `content`, in an order that was
/// checked: perhaps a system turn, then user and assistant in turns, tool results after tool calls.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A text to continue.
    Text(String),
    /// A chat to answer.
    Chat(Vec<Value>),
    /// Two chats that differ in the answer.
    Preference {
        /// With the better answer.
        chosen: Vec<Value>,
        /// With the worse answer.
        rejected: Vec<Value>,
    },
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The physical line, from 1.
    pub line: usize,
    /// What was expected and what was found.
    pub message: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
}

/// One line that is not blank.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// Physical line, from 1; blank lines count.
    pub number: usize,
    /// Where it begins in the file, bytes.
    pub offset: usize,
    /// Without its end.
    pub bytes: &'a [u8],
}

/// The lines of a file that are not blank; a byte order mark at the beginning is passed over.
pub fn lines(file: &[u8]) -> impl Iterator<Item = Line<'_>> {
    lines_from(file, 1, 0)
}

/// [`lines`] of a part of a file that begins with line `first` at byte `offset`.
pub fn lines_from(part: &[u8], first: usize, offset: usize) -> impl Iterator<Item = Line<'_>> {
    const BOM: &[u8] = b"\xef\xbb\xbf";
    let start = if offset == 0 && part.starts_with(BOM) { BOM.len() } else { 0 };
    let mut offset = offset + start;
    part[start..]
        .split(|&b| b == b'\n')
        .enumerate()
        .map(move |(index, bytes)| {
            let line = Line { number: first + index, offset, bytes };
            offset += bytes.len() + 1;
            line
        })
        .filter(|line| !line.bytes.iter().all(u8::is_ascii_whitespace))
}

/// The text of a line.
///
/// # Errors
/// Bytes that are no UTF-8, with the offset of the first in the file.
pub fn utf8<'a>(line: &Line<'a>) -> Result<&'a str, Fault> {
    std::str::from_utf8(line.bytes).map_err(|e| {
        let at = e.valid_up_to();
        let byte = line.bytes.get(at).copied().unwrap_or_default();
        let hint = if looks_like_gbk(&line.bytes[at..]) {
            "the file is not UTF-8, GBK perhaps: `iconv -f GB18030 -t UTF-8 IN > OUT` converts it"
        } else {
            "the file is not UTF-8 here: it is damaged, or in another encoding"
        };
        Fault {
            line: line.number,
            message: format!(
                "expected UTF-8, found byte 0x{byte:02x} at offset {} of the file",
                line.offset + at
            ),
            hint: Some(hint.to_owned()),
        }
    })
}

/// The JSON object of a line.
///
/// # Errors
/// Bad UTF-8, or anything else than one JSON object.
pub fn object(line: &Line<'_>) -> Result<Map<String, Value>, Fault> {
    let fault = |message: String| Fault { line: line.number, message, hint: None };
    match serde_json::from_str(utf8(line)?) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(fault("expected a JSON object, found another JSON value".into())),
        Err(e) => Err(fault(format!("expected a JSON object: {}", without_line(&e)))),
    }
}

/// Reads one line.
///
/// # Errors
/// A [`Fault`]: bad UTF-8, no JSON object, a missing key, or turns out of order.
pub fn parse(line: &Line<'_>, kind: Kind) -> Result<Record, Fault> {
    let fault = |message: String| Fault { line: line.number, message, hint: None };
    let object = object(line)?;
    if kind == Kind::Chat
        && !object.contains_key("conversations")
        && object.contains_key("messages")
    {
        return chat(&object, "messages").map(Record::Chat).map_err(fault);
    }
    if let Some(missing) = kind.keys().iter().find(|key| !object.contains_key(**key)) {
        return Err(missing_key(line.number, missing, &object, kind));
    }
    let record = match kind {
        Kind::Text => match &object["text"] {
            Value::String(text) => Ok(Record::Text(text.clone())),
            other => Err(format!("key text: expected a string, found {}", describe(other))),
        },
        Kind::Chat => chat(&object, "conversations").map(Record::Chat),
        Kind::Preference => chat(&object, "chosen").and_then(|chosen| {
            Ok(Record::Preference { chosen, rejected: chat(&object, "rejected")? })
        }),
    };
    record.map_err(fault)
}

/// serde's message counts lines within the one line: only the column says something.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("{what} at column {}", error.column())
}

fn missing_key(line: usize, missing: &str, object: &Map<String, Value>, kind: Kind) -> Fault {
    let found: Vec<&str> = object.keys().map(String::as_str).collect();
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    let other = [Kind::Text, Kind::Chat, Kind::Preference]
        .into_iter()
        .find(|k| *k != kind && k.keys().iter().all(|key| object.contains_key(*key)));
    let looks = other.map_or_else(String::new, |k| format!("; this looks like {}", k.name()));
    let stage = match other {
        Some(Kind::Text) => Some("pretrain"),
        Some(Kind::Chat) => Some("sft"),
        Some(Kind::Preference) => Some("dpo"),
        None => None,
    };
    Fault {
        line,
        message: format!("expected key {missing}, found {found}{looks}"),
        hint: stage.map(|stage| format!("such files are for `mmx train {stage}`")),
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "true or false".into(),
        Value::Number(_) => "a number".into(),
        Value::String(_) => "a string".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// The messages under a key, with roles and contents in the usual spelling and in order.
fn chat(object: &Map<String, Value>, key: &str) -> Result<Vec<Value>, String> {
    let turns = match object.get(key) {
        Some(Value::Array(turns)) => turns,
        Some(other) => {
            return Err(format!("key {key}: expected a list, found {}", describe(other)));
        }
        None => return Err(format!("expected key {key}, found none")),
    };
    let has_role = |turn: &Value| turn.get("role").is_some() || turn.get("from").is_some();
    let bare = !turns.iter().any(has_role);
    let mut messages = Vec::with_capacity(turns.len());
    for (index, turn) in turns.iter().enumerate() {
        let message = message(turn, bare.then_some(index));
        messages.push(message.map_err(|why| format!("{key}: turn {}: {why}", index + 1))?);
    }
    check_order(&messages).map_err(|why| format!("{key}: {why}"))?;
    Ok(messages)
}

/// One message; `bare` is its index in a chat without roles (2025: user first, then in turns).
fn message(turn: &Value, bare: Option<usize>) -> Result<Value, String> {
    let Value::Object(turn) = turn else {
        return Err(format!("expected an object, found {}", describe(turn)));
    };
    let role = match (turn.get("role").or(turn.get("from")), bare) {
        (_, Some(index)) => if index % 2 == 0 { "user" } else { "assistant" }.to_owned(),
        (Some(Value::String(role)), None) => match role.as_str() {
            "human" => "user".to_owned(),
            "gpt" => "assistant".to_owned(),
            other => other.to_owned(),
        },
        (Some(other), None) => {
            return Err(format!("role: expected a string, found {}", describe(other)));
        }
        (None, None) => return Err("expected a role, found none (other turns have one)".into()),
    };
    let calls = turn.get("tool_calls").is_some_and(|v| !v.is_null());
    let content = match turn.get("content").or(turn.get("value")) {
        Some(Value::String(content)) => content.clone(),
        // a call alone may come without words
        Some(Value::Null) | None if calls => String::new(),
        Some(other) => {
            return Err(format!(
                "role {role}: content: expected a string, found {}",
                describe(other)
            ));
        }
        None => return Err(format!("role {role}: expected key content, found none")),
    };
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), content.into());
    for (key, value) in turn {
        if matches!(key.as_str(), "role" | "from" | "content" | "value") || value.is_null() {
            continue;
        }
        message.insert(key.clone(), value.clone());
    }
    Ok(Value::Object(message))
}

/// System only first; user and assistant in turns; tool results after an assistant's turn; an
/// assistant's turn last. With other orders the template's text and the loss mask go apart.
fn check_order(messages: &[Value]) -> Result<(), String> {
    let mut before = "nothing";
    for (index, message) in messages.iter().enumerate() {
        let turn = index + 1;
        let role = message["role"].as_str().unwrap_or_default();
        let expected = match (before, role) {
            (_, "system") if index == 0 => "",
            ("nothing", _) => "system or user first",
            ("system" | "assistant", "user") => "",
            ("user" | "tool", "assistant") | ("assistant" | "tool", "tool") => "",
            ("system", _) => "user after system",
            ("user", _) => "assistant after user",
            ("assistant", _) => "user or tool after assistant",
            _ => "assistant or tool after tool",
        };
        let expected = if index == 0 && role == "user" { "" } else { expected };
        if !expected.is_empty() {
            return Err(format!("turn {turn}: expected role {expected}, found {role}"));
        }
        before = role;
    }
    match before {
        "assistant" => Ok(()),
        "nothing" => Err("expected at least one turn, found none".into()),
        last => Err(format!(
            "turn {}: expected an assistant's turn at the end, found role {last}",
            messages.len()
        )),
    }
}

/// True when most bytes that are no ASCII pair up as GBK's do (lead 0x81..=0xFE, trail 0x40..=0xFE).
fn looks_like_gbk(bytes: &[u8]) -> bool {
    let (mut pairs, mut strays) = (0, 0);
    let mut i = 0;
    while let Some(&lead) = bytes.get(i) {
        i += 1;
        if lead < 0x80 {
            continue;
        }
        match bytes.get(i) {
            Some(0x80..=0xfe) if (0x81..=0xfe).contains(&lead) => {
                pairs += 1;
                i += 1;
            }
            _ => strays += 1,
        }
    }
    pairs > 0 && strays == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, kind: Kind) -> Result<Record, Fault> {
        parse(&Line { number: 7, offset: 100, bytes: text.as_bytes() }, kind)
    }

    fn message(text: &str, kind: Kind) -> String {
        read(text, kind).unwrap_err().message
    }

    #[test]
    fn turns_without_roles_alternate() {
        let Ok(Record::Chat(turns)) =
            read(r#"{"conversations": [{"content": "a"}, {"content": "b"}]}"#, Kind::Chat)
        else {
            panic!("expected a chat")
        };
        assert_eq!((&turns[0]["role"], &turns[1]["role"]), (&"user".into(), &"assistant".into()));
    }

    #[test]
    fn rejects_turns_where_only_some_have_roles() {
        let text = r#"{"conversations": [{"role": "user", "content": "a"}, {"content": "b"}]}"#;
        assert!(message(text, Kind::Chat).contains("turn 2: expected a role"));
    }

    #[test]
    fn names_the_kind_of_data_it_was_given() {
        assert_eq!(
            message(r#"{"chosen": [], "rejected": []}"#, Kind::Chat),
            "expected key conversations, found chosen, rejected; this looks like DPO data"
        );
        assert!(message(r#"{"text": "x"}"#, Kind::Chat).contains("looks like pretraining data"));
    }

    #[test]
    fn rejects_what_is_no_object_or_cut_off() {
        assert!(message("[1]", Kind::Text).contains("another JSON value"));
        assert!(message(r#"{"text": "x"#, Kind::Text).contains("column 11"));
        assert!(message(r#"{"text": 3}"#, Kind::Text).contains("found a number"));
    }

    #[test]
    fn tool_results_follow_calls_and_a_call_needs_no_content() {
        let text = r#"{"conversations": [{"role": "user", "content": "a"},
            {"role": "assistant", "content": null, "tool_calls": "[]"},
            {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "b"}]}"#;
        assert!(read(text, Kind::Chat).is_ok());
        let text = text.replace(r#""role": "user""#, r#""role": "tool""#);
        assert!(message(&text, Kind::Chat).contains("turn 1: expected role system or user first"));
    }

    #[test]
    fn line_numbers_and_offsets_count_bytes_of_the_file() {
        let all: Vec<(usize, usize)> =
            lines(b"\xef\xbb\xbf\n{}\r\n \t\n{}").map(|l| (l.number, l.offset)).collect();
        assert_eq!(all, [(2, 4), (4, 11)]);
    }
}
