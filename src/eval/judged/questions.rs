//! Questions for several models, from files of records or of lines.
//!
//! In: JSON Lines (an array, a table) in any form of a chat, with `question`, `prompt`, or
//! MT-Bench's `turns`; or a text with a question a line. Out: what each model is asked.

use std::path::Path;

use mmx_converters::{Error, Result};
use mmx_data::asking::{Prompt, prompt_of, user};
use mmx_data::blocks::Blocks;
use mmx_data::{Fault, jsonl, texts};
use serde_json::{Map, Value, json};

use crate::fault::fault_at;

/// A question, which may have several turns.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Its name in tables: `question_id`, `id`, or the number of its line or record.
    pub name: String,
    /// What it is about, where that is told.
    pub category: Option<String>,
    /// A right answer for the judge to look at.
    pub reference: Option<String>,
    /// The messages that the first answer goes on after.
    pub turns: Vec<Value>,
    /// Tools that may be called, a JSON list.
    pub tools: Option<Value>,
    /// Further messages of the user, each sent after the answer to the one before.
    pub later: Vec<String>,
}

impl Question {
    /// Number of the answers that it asks for.
    #[must_use]
    pub fn answers(&self) -> usize {
        1 + self.later.len()
    }

    /// The question as judges and readers see it; of several turns each with its number.
    #[must_use]
    pub fn text(&self) -> String {
        let first = self.first_text();
        let later = self.later.iter().map(String::as_str);
        by_turn(&std::iter::once(first.as_str()).chain(later).collect::<Vec<_>>())
    }

    /// What comes before the first answer: the user's message, or all messages with their roles.
    pub(super) fn first_text(&self) -> String {
        let content = |turn: &Value| match &turn["content"] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            parts => parts.to_string(),
        };
        match &self.turns[..] {
            [turn] => content(turn),
            turns => {
                let role = |turn: &Value| turn["role"].as_str().unwrap_or_default().to_owned();
                let lines = turns.iter().map(|t| format!("[{}]\n{}", role(t), content(t)));
                lines.collect::<Vec<_>>().join("\n\n")
            }
        }
    }
}

/// Texts of turns as one, each under its number; a single one as it is.
pub(super) fn by_turn(texts: &[&str]) -> String {
    match texts {
        [text] => (*text).to_owned(),
        texts => {
            let numbered = texts.iter().enumerate();
            let lines = numbered.map(|(i, text)| format!("[Turn {}]\n{text}", i + 1));
            lines.collect::<Vec<_>>().join("\n\n")
        }
    }
}

/// Reads questions; `system` is put before those that have no system turn.
///
/// # Errors
/// An unreadable file, a record without a question, no question at all.
pub fn read(path: &Path, system: Option<&str>) -> Result<Vec<Question>> {
    let mut questions = match texts::has_records(path) {
        true => of_records(path)?,
        false => of_lines(path)?,
    };
    if questions.is_empty() {
        let path = path.display();
        return Err(Error::failed(format!("{path}: expected at least one question, found none")));
    }
    for question in &mut questions {
        if let Some(system) = system.filter(|_| question.turns[0]["role"] != "system") {
            question.turns.insert(0, json!({ "role": "system", "content": system }));
        }
    }
    Ok(questions)
}

fn of_lines(path: &Path) -> Result<Vec<Question>> {
    let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let question = |(index, line): (usize, &str)| Question {
        name: (index + 1).to_string(),
        category: None,
        reference: None,
        turns: vec![user(line.trim())],
        tools: None,
        later: Vec::new(),
    };
    Ok(lines.map(question).collect())
}

fn of_records(path: &Path) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    let mut blocks = Blocks::open(path)?;
    while let Some(block) = blocks.next_block()? {
        for line in block.lines() {
            let object = jsonl::object(&line).map_err(|fault| fault_at(path, fault))?;
            let question = of_object(object, line.label()).map_err(|message| {
                let (line, record) = (line.number, line.record);
                fault_at(path, Fault { line, record, message, hint: None })
            })?;
            questions.push(question);
        }
    }
    Ok(questions)
}

/// The question of a record.
fn of_object(mut object: Map<String, Value>, number: usize) -> Result<Question, String> {
    let mut later = Vec::new();
    if let Some(turns) = object.shift_remove("turns").filter(|turns| !turns.is_null()) {
        let mut turns = strings(&turns)
            .filter(|turns| !turns.is_empty())
            .ok_or("key turns: expected a list of texts")?;
        object.insert("prompt".into(), turns.remove(0).into());
        later = turns;
    } else if let (Some(Value::String(question)), None) =
        (object.get("question"), object.get("prompt"))
    {
        object.insert("prompt".into(), question.as_str().into());
    }
    let Prompt { turns, tools } = prompt_of(&object).map_err(|why| {
        why.replace("expected key prompt,", "expected key question, turns, prompt,")
    })?;
    let word = |key: &str| match object.get(key) {
        Some(Value::String(text)) if !text.trim().is_empty() => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let reference = object.get("reference").and_then(|value| match value {
        Value::String(text) => Some(text.clone()),
        list => strings(list)
            .map(|texts| by_turn(&texts.iter().map(String::as_str).collect::<Vec<_>>())),
    });
    Ok(Question {
        name: word("question_id").or_else(|| word("id")).unwrap_or_else(|| number.to_string()),
        category: word("category"),
        reference: reference.filter(|text| !text.trim().is_empty()),
        turns,
        tools,
        later,
    })
}

fn strings(list: &Value) -> Option<Vec<String>> {
    list.as_array()?.iter().map(|value| value.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(record: Value) -> Result<Question, String> {
        let Value::Object(object) = record else { panic!("a record") };
        of_object(object, 7)
    }

    #[test]
    fn questions_are_read_in_every_form() {
        for record in [
            json!({"question": "a"}),
            json!({"prompt": "a"}),
            json!({"turns": ["a"]}),
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        ] {
            let question = of(record).unwrap();
            assert_eq!((question.text().as_str(), question.answers()), ("a", 1));
            assert_eq!((question.name.as_str(), question.category), ("7", None));
        }
        let bench = of(json!({"question_id": 81, "category": "写作", "turns": ["a", "b"],
            "reference": ["x", "y"]}))
        .unwrap();
        assert_eq!((bench.name.as_str(), bench.category.as_deref()), ("81", Some("写作")));
        assert_eq!(bench.text(), "[Turn 1]\na\n\n[Turn 2]\nb");
        assert_eq!(bench.reference.as_deref(), Some("[Turn 1]\nx\n\n[Turn 2]\ny"));
        assert_eq!((bench.turns, bench.later), (vec![user("a")], vec!["b".to_owned()]));
    }

    #[test]
    fn a_record_without_a_question_is_refused_with_its_place() {
        assert!(of(json!({"text": "a"})).unwrap_err().contains("key question, turns, prompt,"));
        assert!(of(json!({"turns": []})).unwrap_err().contains("turns"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.jsonl");
        fs_err::write(&path, "{\"question\": \"a\"}\n{\"other\": 1}\n").unwrap();
        let error = read(&path, None).unwrap_err().to_string();
        assert!(error.contains("q.jsonl:2:"), "{error}");
        fs_err::write(&path, "\n").unwrap();
        assert!(read(&path, None).unwrap_err().to_string().contains("at least one question"));
    }

    #[test]
    fn lines_of_a_text_are_questions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.txt");
        fs_err::write(&path, "\u{feff}one?\n\n 二？ \r\n").unwrap();
        let questions = read(&path, Some("brief")).unwrap();
        let names: Vec<&str> = questions.iter().map(|q| q.name.as_str()).collect();
        assert_eq!(names, ["1", "3"]);
        assert_eq!(questions[1].text(), "[system]\nbrief\n\n[user]\n二？");
    }
}
