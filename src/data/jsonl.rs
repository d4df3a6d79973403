//! Lines to records: one JSON object a line, UTF-8; a byte order mark, CRLF and blank lines are
//! fine.
//!
//! In: the bytes of a file. Out: per line a [`Record`], or a [`Fault`] that says what is wrong with
//! it. Source: docs/stages.md, data (the files of 2025 and 2026); `from`/`value` with
//! `human`/`gpt`, as many published chats are spelled; `messages`; and Alpaca's `instruction`,
//! `input`, `output`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The kind of data that a training stage reads.
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

    /// A record of this kind, for messages.
    fn example(self) -> &'static str {
        match self {
            Self::Text => r#"{"text": "..."}"#,
            Self::Chat => {
                r#"{"conversations": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}"#
            }
            Self::Preference => {
                r#"{"chosen": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], "rejected": [...]}"#
            }
        }
    }

    /// The users' word for data of this kind.
    fn name(self) -> &'static str {
        match self {
            Self::Text => "pretraining data",
            Self::Chat => "SFT data",
            Self::Preference => "DPO data",
        }
    }
}

/// The content of one record. Messages are JSON objects with `role` and `content`, in an order that
/// was checked: perhaps a system turn, then user and assistant in turns, tool results after tool
/// calls.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A text to continue.
    Text(String),
    /// A chat to answer.
    Chat(Vec<Value>),
    /// Two chats that differ in the answer.
    Preference {
        /// The chat with the better answer.
        chosen: Vec<Value>,
        /// The chat with the worse answer.
        rejected: Vec<Value>,
    },
}

impl Record {
    /// True where nothing but an end can be learned: a text without a character, an answer without
    /// a word, thought or call, be it one of several.
    #[must_use]
    pub fn has_empty_answer(&self) -> bool {
        let empty = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.trim().is_empty(),
            _ => false,
        };
        let of_chat = |turns: &[Value]| {
            turns.iter().filter(|turn| turn["role"] == "assistant").any(|turn| {
                ["content", "reasoning_content", "tool_calls"].iter().all(|key| empty(&turn[*key]))
            })
        };
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Chat(turns) => of_chat(turns),
            Self::Preference { chosen, rejected } => of_chat(chosen) || of_chat(rejected),
        }
    }
}

/// A fault of a line, or of a record that is not a line of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The physical line, from 1.
    pub line: usize,
    /// The record's number, from 1, where records are no lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<usize>,
    /// What was expected and what was found.
    pub message: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
}

impl Fault {
    /// The place in words: `line 3`, or `record 2 (line 17)`.
    #[must_use]
    pub fn place(&self) -> String {
        match self.record {
            Some(record) => format!("record {record} (line {})", self.line),
            None => format!("line {}", self.line),
        }
    }

    /// The noun of the place: `record` or `line`.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        if self.record.is_some() { "record" } else { "line" }
    }
}

/// The text of one record: a line that is not blank, or an element of an array.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The physical line it begins in, from 1; blank lines count.
    pub number: usize,
    /// Its number among the records, from 1, where records are no lines.
    pub record: Option<usize>,
    /// Where it begins in the file, bytes.
    pub offset: usize,
    /// The text without its end.
    pub bytes: &'a [u8],
}

impl Line<'_> {
    /// The number its sample is known by: the line, or the record's number where records are no
    /// lines.
    #[must_use]
    pub fn label(&self) -> usize {
        self.record.unwrap_or(self.number)
    }
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
            let line = Line { number: first + index, record: None, offset, bytes };
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
            record: line.record,
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
    match serde_json::from_str(utf8(line)?) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            let message = format!("expected a JSON object, found {}", describe(&other));
            Err(fault(line, message, None))
        }
        Err(e) => {
            Err(fault(line, format!("expected a JSON object: {}", without_line(&e, line)), None))
        }
    }
}

fn fault(line: &Line<'_>, message: String, hint: Option<String>) -> Fault {
    Fault { line: line.number, record: line.record, message, hint }
}

/// Reads one line.
///
/// # Errors
/// A [`Fault`]: bad UTF-8, no JSON object, a missing key, or turns out of order.
pub fn parse(line: &Line<'_>, kind: Kind) -> Result<Record, Fault> {
    let object = object(line)?;
    if kind == Kind::Chat
        && let Some(chat) = any_chat(&object)
    {
        return chat.map(Record::Chat).map_err(|message| fault(line, message, None));
    }
    if let Some(missing) = kind.keys().iter().find(|key| !object.contains_key(**key)) {
        let (message, hint) = missing_key(missing, &object, kind);
        return Err(fault(line, message, Some(hint)));
    }
    let record = match kind {
        Kind::Text => match &object["text"] {
            Value::String(text) => Ok(Record::Text(text.clone())),
            other => Err(format!("key text: expected a string, found {}", describe(other))),
        },
        Kind::Chat => chat(&object, "conversations").map(Record::Chat),
        Kind::Preference => chat(&object, "chosen").and_then(|chosen| {
            let rejected = chat(&object, "rejected")?;
            let [chosen, rejected] =
                [chosen, rejected].map(|turns| with_system_and_tools(&object, turns));
            Ok(Record::Preference { chosen, rejected })
        }),
    };
    record.map_err(|message| fault(line, message, None))
}

/// The chat of a record of any form; nothing where it has none.
fn any_chat(object: &Map<String, Value>) -> Option<Result<Vec<Value>, String>> {
    let key = ["conversations", "messages"].into_iter().find(|key| object.contains_key(*key));
    match key {
        Some(key) => Some(chat(object, key).map(|turns| with_system_and_tools(object, turns))),
        None => is_alpaca(object).then(|| alpaca(object)),
    }
}

/// serde counts lines within the one line: only the column says something, unless the record goes
/// over several.
fn without_line(error: &serde_json::Error, line: &Line<'_>) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    match error.line() {
        0 | 1 => format!("{what} at column {}", error.column()),
        below => format!("{what} at line {}, column {}", line.number + below - 1, error.column()),
    }
}

/// The message about a key that is missing, and a hint.
fn missing_key(missing: &str, object: &Map<String, Value>, kind: Kind) -> (String, String) {
    let found: Vec<&str> = object.keys().map(String::as_str).collect();
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    let has_all = |k: Kind| k.keys().iter().all(|key| object.contains_key(*key));
    let other = [Kind::Text, Kind::Chat, Kind::Preference]
        .into_iter()
        .find(|k| *k != kind && (has_all(*k) || *k == Kind::Chat && any_chat(object).is_some()));
    let form = match other {
        Some(Kind::Chat) if is_alpaca(object) => " in Alpaca's form",
        _ => "",
    };
    let looks = other.map_or_else(String::new, |k| format!("; this looks like {}{form}", k.name()));
    let hint = match other {
        Some(Kind::Text) => "such files are for `mmx train pretrain`".to_owned(),
        Some(Kind::Chat) => "such files are for `mmx train sft`".to_owned(),
        Some(Kind::Preference) => "such files are for `mmx train dpo`".to_owned(),
        None => match within(object) {
            Some(key) => format!(
                "the records are within key {key}: a file of them alone, one a line or as a JSON array, can be read"
            ),
            None => format!("a record is {}", kind.example()),
        },
    };
    (format!("expected key {missing}, found {found}{looks}"), hint)
}

/// The key of an object that holds nothing but a list of objects, as some data sets are wrapped.
fn within(object: &Map<String, Value>) -> Option<&str> {
    let list =
        |value: &Value| value.as_array().is_some_and(|l| l.first().is_some_and(Value::is_object));
    object.iter().find(|(_, value)| list(value)).map(|(key, _)| key.as_str())
}

/// Alpaca's keys: an instruction and the output it asks for.
fn is_alpaca(object: &Map<String, Value>) -> bool {
    object.contains_key("instruction") && object.contains_key("output")
}

/// A record of Alpaca's form as a chat: instruction and input, a line each, are the user's turn,
/// the output is the answer; perhaps a system turn and turns before. Source: LLaMA-Factory's
/// data/README.md.
fn alpaca(object: &Map<String, Value>) -> Result<Vec<Value>, String> {
    let text = |key: &str| match object.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(format!("key {key}: expected a string, found {}", describe(other))),
    };
    let mut turns = Vec::new();
    match object.get("history") {
        None | Some(Value::Null) => {}
        Some(Value::Array(history)) => {
            for (index, pair) in history.iter().enumerate() {
                let texts = pair.as_array().map(Vec::as_slice).unwrap_or_default();
                let [Value::String(asked), Value::String(answered)] = texts else {
                    return Err(format!(
                        "key history: pair {}: expected a list of two strings, what was asked and answered",
                        index + 1
                    ));
                };
                turns.push(turn("user", asked));
                turns.push(turn("assistant", answered));
            }
        }
        Some(other) => {
            return Err(format!("key history: expected a list, found {}", describe(other)));
        }
    }
    let asked = [text("instruction")?, text("input")?];
    let asked: Vec<&str> = asked.into_iter().filter(|part| !part.is_empty()).collect();
    if asked.is_empty() {
        return Err("expected a text in key instruction or input, found none".into());
    }
    if object["output"].is_null() {
        return Err("key output: expected a string, found null".into());
    }
    turns.push(turn("user", &asked.join("\n")));
    turns.push(turn("assistant", text("output")?));
    text("system")?;
    Ok(with_system_and_tools(object, turns))
}

/// The turns with what a record has beside them: the text of key system before them, where they
/// begin with no system turn, and the list of key tools in the first of them, where it has none of
/// its own. Source: OpenAI's fine-tuning format, LLaMA-Factory's data/README.md.
fn with_system_and_tools(object: &Map<String, Value>, mut turns: Vec<Value>) -> Vec<Value> {
    let system = object.get("system").and_then(Value::as_str).unwrap_or_default();
    if !system.is_empty() && turns.first().is_some_and(|first| first["role"] != "system") {
        turns.insert(0, turn("system", system));
    }
    if let Some(tools) = object.get("tools").filter(|tools| !tools.is_null())
        && let Some(Value::Object(first)) = turns.first_mut()
    {
        first.entry("tools").or_insert_with(|| tools.clone());
    }
    turns
}

fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
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

/// True when most bytes that are no ASCII pair up as GBK's do (lead 0x81..=0xFE, trail
/// 0x40..=0xFE).
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
        parse(&Line { number: 7, record: None, offset: 100, bytes: text.as_bytes() }, kind)
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
        assert_eq!(message("[1]", Kind::Text), "expected a JSON object, found a list");
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

    fn chat_of(text: &str) -> Value {
        match read(text, Kind::Chat) {
            Ok(Record::Chat(turns)) => turns.into(),
            other => panic!("expected a chat, found {other:?}"),
        }
    }

    #[test]
    fn alpaca_records_become_chats_as_llama_factory_makes_them() {
        let text = r#"{"instruction": "Translate", "input": "apple", "output": "Apfel"}"#;
        let expected = json!([turn("user", "Translate\napple"), turn("assistant", "Apfel")]);
        assert_eq!(chat_of(text), expected);
        let text = r#"{"instruction": "Go on", "input": "", "output": "3", "system": "Count.",
            "history": [["1?", "1"], ["2?", "2"]]}"#;
        let expected = json!([
            turn("system", "Count."),
            turn("user", "1?"),
            turn("assistant", "1"),
            turn("user", "2?"),
            turn("assistant", "2"),
            turn("user", "Go on"),
            turn("assistant", "3"),
        ]);
        assert_eq!(chat_of(text), expected);
        let faults = [
            (r#"{"instruction": "", "output": "a"}"#, "key instruction or input"),
            (
                r#"{"instruction": "a", "output": null}"#,
                "key output: expected a string, found null",
            ),
            (
                r#"{"instruction": "a", "output": ["b"]}"#,
                "key output: expected a string, found a list",
            ),
            (r#"{"instruction": "a", "output": "b", "history": [["c"]]}"#, "key history: pair 1"),
        ];
        for (text, words) in faults {
            assert!(message(text, Kind::Chat).contains(words), "{text}");
        }
        let fault = read(text, Kind::Text).unwrap_err();
        assert!(fault.message.ends_with("this looks like SFT data in Alpaca's form"), "{fault:?}");
        assert!(fault.hint.unwrap().contains("mmx train sft"));
    }

    #[test]
    fn a_system_text_beside_the_turns_is_the_first_turn_unless_there_is_one() {
        let turns = r#"{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}"#;
        let first = |text: &str| chat_of(text)[0].clone();
        let beside = format!(r#"{{"conversations": [{turns}], "system": "Be brief."}}"#);
        assert_eq!(first(&beside), turn("system", "Be brief."));
        let both = r#"{"messages": [{"role": "system", "content": "mine"}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"}], "system": "other"}"#;
        assert_eq!(first(both), turn("system", "mine"));
    }

    #[test]
    fn what_a_record_should_look_like_is_said_where_its_keys_say_nothing() {
        let hint = |text: &str, kind| read(text, kind).unwrap_err().hint.unwrap();
        assert!(hint(r#"{"question": "a", "answer": "b"}"#, Kind::Chat).contains("conversations"));
        assert!(hint(r#"{"body": "a"}"#, Kind::Text).contains(r#"{"text": "..."}"#));
        assert!(hint(r#"{"data": [{"text": "a"}]}"#, Kind::Text).contains("within key data"));
    }

    #[test]
    fn empty_answers_are_told_from_calls_and_thoughts() {
        let with = |answer: &str| {
            let text = format!(
                r#"{{"messages": [{{"role": "user", "content": "a"}}, {{"role": "assistant", {answer}}}]}}"#
            );
            read(&text, Kind::Chat).unwrap().has_empty_answer()
        };
        assert!(with(r#""content": "\n ""#) && with(r#""content": "", "tool_calls": """#));
        assert!(!with(r#""content": "b""#) && !with(r#""content": "", "tool_calls": "[1]""#));
        assert!(!with(r#""content": "", "reasoning_content": "hm""#));
    }

    #[test]
    fn line_numbers_and_offsets_count_bytes_of_the_file() {
        let all: Vec<(usize, usize)> =
            lines(b"\xef\xbb\xbf\n{}\r\n \t\n{}").map(|l| (l.number, l.offset)).collect();
        assert_eq!(all, [(2, 4), (4, 11)]);
    }
}
