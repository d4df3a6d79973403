//! The forms in which records come, as one table: MiniMind's own, ShareGPT, messages, Alpaca,
//! prompts with completions, preferences. Whatever the form, and whatever kind of file it lies in,
//! the same [`Record`] comes out.
//!
//! In: a JSON object. Out: a [`Record`], or a [`Fault`]. Sources: docs/stages.md, data (the files
//! of 2025 and 2026); LLaMA-Factory's data/README.md (Alpaca, ShareGPT, their preferences); TRL's
//! dataset formats (prompt and completion, prompt with chosen and rejected); OpenAI's fine-tuning
//! guide (messages, preferred and non-preferred output); ms-swift's custom datasets
//! (`rejected_response`, `rejected_messages`).

use std::path::Path;

use mmx_converters::Error;
use serde_json::{Map, Value};

use super::convert::{alpaca, asked, conversations, messages, pair, prompt_completion, text};
use super::fields::{Fields, NAMES};
use super::jsonl::{self, Fault, Line};
use super::record::{Kind, Record};
use super::turns::{list, of_key, or_text};

type Object = Map<String, Value>;

/// One form of records.
#[derive(Debug)]
pub struct Form {
    /// Its name, for messages.
    pub name: &'static str,
    /// The kind of data it is.
    pub kind: Kind,
    /// The keys that a record of it has.
    pub keys: &'static [&'static str],
    /// The keys it may have besides.
    pub also: &'static [&'static str],
    /// The key that tells its turns from those of the form below with the same keys.
    turn: Option<&'static str>,
    read: fn(&Object) -> Result<Record, String>,
}

const BESIDE: &[&str] = &["system", "tools"];

/// Every form, the first that fits is taken: of a kind, those that say more stand first.
pub static FORMS: [Form; 14] = [
    form("text", Kind::Text, &["text"], &[], text),
    Form {
        turn: Some("from"),
        ..form("ShareGPT", Kind::Chat, &["conversations"], BESIDE, conversations)
    },
    form("conversations", Kind::Chat, &["conversations"], BESIDE, conversations),
    form("messages", Kind::Chat, &["messages"], BESIDE, messages),
    form(
        "Alpaca",
        Kind::Chat,
        &["instruction", "output"],
        &["input", "history", "system", "tools"],
        |object| alpaca(object).map(Record::Chat),
    ),
    form("prompt and completion", Kind::Chat, &["prompt", "completion"], BESIDE, prompt_completion),
    form(
        "prompt, chosen, rejected",
        Kind::Preference,
        &["prompt", "chosen", "rejected"],
        BESIDE,
        |object| pair(object, or_text(object, "prompt", "user")?, ["chosen", "rejected"]),
    ),
    form(
        "conversations, chosen, rejected",
        Kind::Preference,
        &["conversations", "chosen", "rejected"],
        BESIDE,
        |object| pair(object, of_key(object, "conversations")?, ["chosen", "rejected"]),
    ),
    form(
        "messages, chosen, rejected",
        Kind::Preference,
        &["messages", "chosen", "rejected"],
        BESIDE,
        |object| pair(object, of_key(object, "messages")?, ["chosen", "rejected"]),
    ),
    form(
        "Alpaca's preferences",
        Kind::Preference,
        &["instruction", "chosen", "rejected"],
        &["input", "history", "system", "tools"],
        |object| pair(object, asked(object)?, ["chosen", "rejected"]),
    ),
    form("chosen and rejected", Kind::Preference, &["chosen", "rejected"], BESIDE, |object| {
        pair(object, Vec::new(), ["chosen", "rejected"])
    }),
    form(
        "messages, rejected_messages",
        Kind::Preference,
        &["messages", "rejected_messages"],
        BESIDE,
        |object| pair(object, Vec::new(), ["messages", "rejected_messages"]),
    ),
    form(
        "messages, rejected_response",
        Kind::Preference,
        &["messages", "rejected_response"],
        BESIDE,
        |object| {
            let mut before = of_key(object, "messages")?;
            let chosen = before.pop();
            let mut object = object.clone();
            object.insert("messages".into(), Value::Array(chosen.into_iter().collect()));
            pair(&object, before, ["messages", "rejected_response"])
        },
    ),
    form(
        "OpenAI's preferences",
        Kind::Preference,
        &["input", "preferred_output", "non_preferred_output"],
        &[],
        |object| {
            let Some(Value::Object(input)) = object.get("input") else {
                return Err("key input: expected an object with key messages".into());
            };
            let keys = ["preferred_output", "non_preferred_output"];
            let outputs = keys.map(|key| (key.to_owned(), object[key].clone()));
            let all: Object = input.clone().into_iter().chain(outputs).collect();
            pair(&all, of_key(&all, "messages")?, keys)
        },
    ),
];

const fn form(
    name: &'static str,
    kind: Kind,
    keys: &'static [&'static str],
    also: &'static [&'static str],
    read: fn(&Object) -> Result<Record, String>,
) -> Form {
    Form { name, kind, keys, also, turn: None, read }
}

impl Form {
    /// Whether a record is of this form; `even_null`: a null counts as a key's value.
    fn fits(&self, object: &Object, even_null: bool) -> bool {
        let has = |key: &&str| object.get(*key).is_some_and(|value| even_null || !value.is_null());
        let turn = self.turn.is_none_or(|turn| {
            let first = object.get(self.keys[0]).and_then(list).and_then(|l| l.into_iter().next());
            first.is_some_and(|first| first.get(turn).is_some_and(|value| !value.is_null()))
        });
        self.keys.iter().all(has) && turn
    }

    /// The form with the keys that make it, for messages: `Alpaca (instruction, output)`.
    #[must_use]
    pub fn in_words(&self) -> String {
        let keys = self.keys.join(", ");
        if self.name.contains(self.keys[0]) { keys } else { format!("{} ({keys})", self.name) }
    }

    /// How its data is told from data of another kind.
    fn looks_like(&self) -> String {
        let of = if self.name.starts_with(char::is_uppercase) {
            format!(" in {}'s form", self.name.trim_end_matches("'s preferences"))
        } else {
            String::new()
        };
        format!("{}{of}", self.kind.name())
    }
}

/// The form of a record, if it is one of this kind.
pub fn form_of(object: &Object, kind: Kind, fields: &Fields) -> Option<&'static Form> {
    let of_kind = || FORMS.iter().filter(|form| form.kind == kind);
    // what was mapped is meant
    let mapped = |form: &&Form| form.keys.iter().any(|key| fields.maps(key));
    of_kind()
        .filter(mapped)
        .chain(of_kind())
        .find(|form| form.fits(object, false))
        .or_else(|| of_kind().find(|form| form.fits(object, true)))
}

/// Reads one record.
///
/// # Errors
/// A [`Fault`]: bad UTF-8, no JSON object, a missing key, or turns out of order.
pub fn parse(line: &Line<'_>, kind: Kind, fields: &Fields) -> Result<Record, Fault> {
    parse_with_form(line, kind, fields).map(|(record, _)| record)
}

/// Reads one record, and says which form it had.
///
/// # Errors
/// See [`parse`].
pub fn parse_with_form(
    line: &Line<'_>,
    kind: Kind,
    fields: &Fields,
) -> Result<(Record, &'static Form), Fault> {
    let mut object = jsonl::object(line)?;
    fields.apply(&mut object);
    of_object(&object, kind, fields).map_err(|(message, hint)| line.fault(message, hint))
}

/// The record of an object, whose names are mapped already, and its form.
///
/// # Errors
/// A missing key or turns out of order: a sentence, and a hint where there is one.
pub(crate) fn of_object(
    object: &Object,
    kind: Kind,
    fields: &Fields,
) -> Result<(Record, &'static Form), (String, Option<String>)> {
    let Some(form) = form_of(object, kind, fields) else {
        let (message, hint) = missing_key("key", object, kind);
        return Err((message, Some(hint)));
    };
    let record = (form.read)(object).map_err(|message| (message, None))?;
    Ok((record, form))
}

/// Refuses a table whose columns hold no record, in one sentence instead of one for each row.
///
/// # Errors
/// The columns that are missing, those found, and the forms known.
pub fn check_columns(
    path: &Path,
    columns: &[String],
    kind: Kind,
    fields: &Fields,
) -> mmx_converters::Result<()> {
    let mut object: Object = columns.iter().map(|name| (name.clone(), Value::Null)).collect();
    fields.apply(&mut object);
    // what lies within a column is seen in its rows
    for name in NAMES.iter().filter(|name| fields.maps(name)) {
        object.insert((*name).to_owned(), Value::Null);
    }
    let fits = |form: &Form| form.keys.iter().all(|key| object.contains_key(*key));
    if FORMS.iter().any(|form| form.kind == kind && fits(form)) {
        return Ok(());
    }
    let (message, hint) = missing_key("column", &object, kind);
    Err(Error::failed_with_hint(format!("{}: {message}", path.display()), hint))
}

/// The message about a key that is missing, and a hint.
fn missing_key(noun: &str, object: &Object, kind: Kind) -> (String, String) {
    let found: Vec<&str> = object.keys().map(String::as_str).collect();
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    let of_kind = || FORMS.iter().filter(|form| form.kind == kind);
    let lacks = |form: &&Form| form.keys.iter().filter(|key| !object.contains_key(**key)).count();
    let other = FORMS.iter().find(|form| {
        form.kind != kind
            && (form.fits(object, false) || noun == "column" && form.fits(object, true))
    });
    // the form that most of a record speaks for; MiniMind's own where none does
    let near = of_kind().filter(|form| other.is_none() && lacks(form) < form.keys.len());
    let keys = near.min_by_key(lacks).map_or(kind.keys(), |form| form.keys);
    let missing = keys.iter().find(|key| !object.contains_key(**key)).unwrap_or(&keys[0]);
    let looks =
        other.map_or_else(String::new, |form| format!("; this looks like {}", form.looks_like()));
    let hint = match other.map(|form| form.kind) {
        Some(Kind::Text) => "such files are for `mmx train pretrain`".to_owned(),
        Some(Kind::Chat) => "such files are for `mmx train sft`".to_owned(),
        Some(Kind::Preference) => "such files are for `mmx train dpo`".to_owned(),
        None => match within(object) {
            Some(key) => format!(
                "the records are within key {key}: a file of them alone, one a line or as a JSON array, can be read"
            ),
            None => {
                let known: Vec<String> =
                    of_kind().filter(|form| form.turn.is_none()).map(Form::in_words).collect();
                format!(
                    "a record is {}; forms known for {}: {}; `field` NAME=KEY takes a key of another name",
                    kind.example(),
                    kind.name(),
                    known.join("; ")
                )
            }
        },
    };
    (format!("expected {noun} {missing}, found {found}{looks}"), hint)
}

/// The key of an object that holds nothing but a list of objects, as some data sets are wrapped.
fn within(object: &Object) -> Option<&str> {
    let list =
        |value: &Value| value.as_array().is_some_and(|l| l.first().is_some_and(Value::is_object));
    object.iter().find(|(_, value)| list(value)).map(|(key, _)| key.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turns::turn;
    use serde_json::json;

    fn read(text: &str, kind: Kind) -> Result<Record, Fault> {
        let bytes = text.as_bytes();
        let line = Line { number: 7, record: None, offset: 100, bytes, damage: None };
        parse(&line, kind, &Fields::default())
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
    fn every_form_of_a_chat_gives_the_same_record() {
        let turns = json!([turn("user", "a"), turn("assistant", "b")]);
        for text in [
            r#"{"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#,
            r#"{"conversations": [{"content": "a"}, {"content": "b"}]}"#,
            r#"{"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}"#,
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            r#"{"messages": "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]"}"#,
            r#"{"instruction": "a", "input": "", "output": "b", "history": null, "system": ""}"#,
            r#"{"prompt": "a", "completion": "b"}"#,
            r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#,
            r#"{"messages": null, "prompt": "a", "completion": "b", "tools": ""}"#,
        ] {
            assert_eq!(chat_of(text), turns, "{text}");
        }
    }

    #[test]
    fn every_form_of_preferences_gives_the_same_record() {
        let user = turn("user", "a");
        let [chosen, rejected] =
            ["b", "c"].map(|answer| vec![user.clone(), turn("assistant", answer)]);
        let expected = Record::Preference { chosen, rejected };
        let (b, c) = (
            r#"{"role": "assistant", "content": "b"}"#,
            r#"{"role": "assistant", "content": "c"}"#,
        );
        let a = r#"{"role": "user", "content": "a"}"#;
        for text in [
            format!(r#"{{"chosen": [{a}, {b}], "rejected": [{a}, {c}]}}"#),
            r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#.to_owned(),
            format!(r#"{{"prompt": "a", "chosen": [{a}, {b}], "rejected": [{a}, {c}]}}"#),
            format!(r#"{{"prompt": [{a}], "chosen": [{b}], "rejected": [{c}]}}"#),
            format!(r#"{{"messages": [{a}], "chosen": {b}, "rejected": {c}}}"#),
            r#"{"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"},
                "rejected": {"from": "gpt", "value": "c"}}"#.to_owned(),
            r#"{"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}"#.to_owned(),
            format!(r#"{{"messages": [{a}, {b}], "rejected_response": "c"}}"#),
            format!(r#"{{"messages": [{a}, {b}], "rejected_messages": [{a}, {c}]}}"#),
            format!(r#"{{"input": {{"messages": [{a}]}}, "preferred_output": [{b}], "non_preferred_output": [{c}]}}"#),
        ] {
            assert_eq!(read(&text, Kind::Preference).as_ref(), Ok(&expected), "{text}");
        }
        let fault = message(r#"{"chosen": "b", "rejected": "c"}"#, Kind::Preference);
        assert_eq!(fault, "key chosen: expected a list, found a string");
    }

    #[test]
    fn an_unknown_form_is_refused_with_the_keys_found_and_the_forms_known() {
        let fault = read(r#"{"prompt": "a", "reply": "b"}"#, Kind::Chat).unwrap_err();
        assert_eq!(fault.message, "expected key completion, found prompt, reply");
        let hint = fault.hint.unwrap();
        for known in
            ["conversations; messages; Alpaca (instruction, output); prompt", "`field` NAME=KEY"]
        {
            assert!(hint.contains(known), "{hint}");
        }
        let columns = ["id".to_owned(), "body".to_owned()];
        let refused = |kind, fields: &[&str]| {
            let fields = Fields::parse(fields).unwrap();
            check_columns(Path::new("a.csv"), &columns, kind, &fields).map_err(|e| e.to_string())
        };
        let said = refused(Kind::Text, &[]).unwrap_err();
        assert_eq!(said, "a.csv: expected column text, found id, body");
        assert_eq!(refused(Kind::Text, &["text=body"]), Ok(()));
    }

    #[test]
    fn every_key_of_a_form_can_be_mapped_and_is_read_from_tables() {
        let keys = FORMS.iter().flat_map(|form| form.keys.iter().chain(form.also));
        let mut all: Vec<&str> = Vec::new();
        keys.for_each(|key| {
            if !all.contains(key) {
                all.push(key)
            }
        });
        assert_eq!(all, NAMES);
    }

    #[test]
    fn what_was_mapped_is_meant() {
        let text = r#"{"messages": [], "q": "a", "a": {"best": "b"}}"#;
        let line =
            Line { number: 1, record: None, offset: 0, bytes: text.as_bytes(), damage: None };
        let fields = Fields::parse(&["instruction=q", "output=a.best"]).unwrap();
        let (record, form) = parse_with_form(&line, Kind::Chat, &fields).unwrap();
        assert_eq!(record, Record::Chat(vec![turn("user", "a"), turn("assistant", "b")]));
        assert_eq!(form.in_words(), "Alpaca (instruction, output)");
    }
}
