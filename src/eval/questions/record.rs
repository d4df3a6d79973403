//! A record of a benchmark as a question.
//!
//! In: a JSON object in one of the layouts, and its label where that stands in a file of labels.
//! Out: the question's text, its options and the index of the right one.

use std::path::PathBuf;

use mmx_data::jsonl::{Fault, Line};
use serde_json::{Map, Value};

use super::question::{LETTERS, Question, letter};
use crate::benchmarks::{Layout, find};

/// What to do about a record without an answer.
const NO_ANSWER: &str = "a part of a benchmark without answers scores nothing";

/// A question and its answers, before they are checked.
struct Draft {
    text: String,
    options: Vec<String>,
    /// Names of the options in messages.
    labels: Vec<String>,
    right: Right,
}

/// The right answer.
enum Right {
    /// One of the labels.
    Label(String),
    /// A number from `first` on, or one of the labels.
    Number { first: usize, label: String },
}

/// Reads a record. `label`: what a file of labels says of it.
///
/// # Errors
/// A key that is missing or holds something else, fewer than two options, an empty one, an answer
/// that is none of them.
pub(super) fn question(
    line: &Line<'_>,
    layout: Layout,
    object: &Map<String, Value>,
    label: Option<&str>,
) -> Result<Question, Fault> {
    let draft = match layout {
        Layout::Lettered => lettered(object),
        Layout::Choices => choices(object),
        Layout::Piqa => piqa(object, label),
        Layout::HellaSwag => hellaswag(object, label),
        Layout::SocialIqa => social_iqa(object, label),
    };
    draft
        .and_then(checked)
        .map_err(|(message, hint)| Fault {
            line: line.number,
            record: line.record,
            message,
            hint: hint.map(str::to_owned),
        })
        .map(|(text, options, right)| Question {
            file: PathBuf::new(),
            line: if line.number == 0 { line.label() } else { line.number },
            text,
            options,
            right,
        })
}

/// What is wrong, and what to do about it.
type Wrong = (String, Option<&'static str>);

fn wrong(message: String) -> Wrong {
    (message, None)
}

fn missing(object: &Map<String, Value>, key: &str) -> Wrong {
    let found: Vec<&str> = object.keys().map(String::as_str).collect();
    let hint = ["answer", "answerKey"].contains(&key).then_some(NO_ANSWER);
    (format!("expected key {key}, found {}", found.join(", ")), hint)
}

/// The text at a key; numbers are texts where a table's writer took a column for numbers.
fn text(value: &Value, key: &str) -> Result<String, Wrong> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Null => Ok(String::new()),
        other => Err(wrong(format!("key {key}: expected a string, found {other}"))),
    }
}

fn expect(object: &Map<String, Value>, key: &str) -> Result<String, Wrong> {
    text(object.get(key).ok_or_else(|| missing(object, key))?, key)
}

/// C-Eval, CMMLU, A-CLUE, TMMLU+: a letter is the answer.
fn lettered(object: &Map<String, Value>) -> Result<Draft, Wrong> {
    let expect = |key: &str| text(find(object, key).ok_or_else(|| missing(object, key))?, key);
    let letters = (0..LETTERS).map(|i| letter(i).to_string());
    let labels: Vec<String> = letters.take_while(|key| find(object, key).is_some()).collect();
    Ok(Draft {
        text: expect("question")?,
        options: labels.iter().map(|key| expect(key)).collect::<Result<_, _>>()?,
        labels,
        right: Right::Label(expect("answer")?.trim().to_uppercase()),
    })
}

/// ARC and OpenBookQA, as Hugging Face has them and as AllenAI does.
fn choices(object: &Map<String, Value>) -> Result<Draft, Wrong> {
    let (text, choices) = match (object.get("question"), object.get("question_stem")) {
        (Some(Value::Object(question)), _) => (question.get("stem"), question.get("choices")),
        (text @ Some(_), _) | (None, text) => (text, object.get("choices")),
    };
    let question = text.and_then(Value::as_str).ok_or_else(|| missing(object, "question"))?;
    let choices = choices.ok_or_else(|| missing(object, "choices"))?;
    let (options, labels) = options(choices).map_err(wrong)?;
    if let Some(twice) = (1..labels.len()).find(|&i| labels[..i].contains(&labels[i])) {
        return Err(wrong(format!("choices: the label {} comes twice", labels[twice])));
    }
    let key = expect(object, "answerKey")?.trim().to_owned();
    Ok(Draft { text: question.to_owned(), options, labels, right: Right::Label(key) })
}

/// Texts and labels of `choices`: an object of two lists, or a list of objects.
fn options(choices: &Value) -> Result<(Vec<String>, Vec<String>), String> {
    let strings = |object: &Map<String, Value>, key: &str| -> Result<Vec<String>, String> {
        let list = object.get(key).and_then(Value::as_array);
        let list = list.ok_or_else(|| format!("choices: expected a list {key}, found none"))?;
        let strings = list.iter().map(|item| item.as_str().map(str::to_owned));
        strings
            .collect::<Option<_>>()
            .ok_or_else(|| format!("choices.{key}: expected strings, found something else"))
    };
    let (texts, mut labels) = match choices {
        Value::Object(object) => (strings(object, "text")?, strings(object, "label")?),
        Value::Array(list) => {
            let one =
                |item: &Value, key: &str| item.get(key).and_then(Value::as_str).map(str::to_owned);
            let pair = |item: &Value| one(item, "text").zip(one(item, "label"));
            let pairs: Option<Vec<_>> = list.iter().map(pair).collect();
            let pairs = pairs.ok_or("choices: expected objects with text and label")?;
            pairs.into_iter().unzip()
        }
        _ => return Err("choices: expected a list or an object".to_owned()),
    };
    if texts.len() != labels.len() {
        return Err(format!(
            "choices: expected as many labels as texts, found {} and {}",
            labels.len(),
            texts.len()
        ));
    }
    labels.iter_mut().for_each(|label| *label = label.trim().to_owned());
    Ok((texts, labels))
}

/// The label of a record: its own, or what a file of labels says.
fn label(
    object: &Map<String, Value>,
    keys: &[&str],
    of_file: Option<&str>,
) -> Result<String, Wrong> {
    let own = keys.iter().find_map(|key| Some((key, object.get(*key)?)));
    match (own, of_file) {
        (Some((key, value)), _) => Ok(text(value, key)?.trim().to_owned()),
        (None, Some(label)) => Ok(label.trim().to_owned()),
        (None, None) => {
            let found: Vec<&str> = object.keys().map(String::as_str).collect();
            let message = format!(
                "expected key label, or a file of labels (test-labels.lst beside test.jsonl), found {}",
                found.join(", ")
            );
            Err((message, Some(NO_ANSWER)))
        }
    }
}

fn piqa(object: &Map<String, Value>, of_file: Option<&str>) -> Result<Draft, Wrong> {
    Ok(Draft {
        text: expect(object, "goal")?,
        options: vec![expect(object, "sol1")?, expect(object, "sol2")?],
        labels: vec!["sol1".to_owned(), "sol2".to_owned()],
        right: Right::Number { first: 0, label: label(object, &["label"], of_file)? },
    })
}

fn social_iqa(object: &Map<String, Value>, of_file: Option<&str>) -> Result<Draft, Wrong> {
    let text = format!("{} {}", expect(object, "context")?, expect(object, "question")?);
    let options = ["answerA", "answerB", "answerC"].map(|key| expect(object, key));
    Ok(Draft {
        text,
        options: options.into_iter().collect::<Result<_, _>>()?,
        labels: ["A", "B", "C"].map(str::to_owned).to_vec(),
        // version 1.4 has letters at the key `correct`
        right: Right::Number { first: 1, label: label(object, &["label", "correct"], of_file)? },
    })
}

/// The scene and its endings without the marks that WikiHow's texts brought along, as the task
/// `hellaswag` prepares them.
fn hellaswag(object: &Map<String, Value>, of_file: Option<&str>) -> Result<Draft, Wrong> {
    let scene = format!(
        "{}: {} {}",
        expect(object, "activity_label")?,
        expect(object, "ctx_a")?,
        capitalized(&expect(object, "ctx_b")?)
    );
    let endings = object.get("endings").and_then(Value::as_array);
    let endings = endings.ok_or_else(|| wrong("endings: expected a list, found none".into()))?;
    let endings = endings.iter().map(|ending| Ok(plain(&text(ending, "endings")?)));
    let options: Vec<String> = endings.collect::<Result<_, Wrong>>()?;
    Ok(Draft {
        text: plain(&scene),
        labels: (0..options.len()).map(|i| format!("endings[{i}]")).collect(),
        options,
        right: Right::Number { first: 0, label: label(object, &["label"], of_file)? },
    })
}

/// The first character in upper case, all others in lower case, as Python's `capitalize` does.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return String::new() };
    // of a letter that becomes two, `ß`, the second one is small
    let mut upper = first.to_uppercase();
    let head: String = upper.next().into_iter().collect();
    let rest: String = upper.chain(chars).collect();
    head + &rest.to_lowercase()
}

/// ` [title]` ends a sentence; other brackets go with what is in them, on one line; two blanks
/// become one.
fn plain(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, from)) = rest.find('[').map(|at| rest.split_at(at)) {
        out.push_str(before);
        let line = from.split('\n').next().unwrap_or(from);
        let end = line.find(']').map(|close| close + 1);
        if end.is_none() {
            out.push('[');
        }
        rest = &from[end.unwrap_or(1)..];
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

/// Text, options and the index of the right one.
fn checked(draft: Draft) -> Result<(String, Vec<String>, usize), Wrong> {
    let Draft { text, options, labels, right } = draft;
    if text.trim().is_empty() {
        return Err(wrong("expected a question, found an empty one".to_owned()));
    }
    if options.len() < 2 || options.len() > LETTERS {
        let found = options.len();
        return Err(wrong(format!("expected 2 to {LETTERS} options, found {found}")));
    }
    if let Some(empty) = options.iter().position(|option| option.trim().is_empty()) {
        return Err(wrong(format!("option {}: expected text, found none", labels[empty])));
    }
    let (found, expected, index) = match right {
        Right::Label(label) => {
            let index = labels.iter().position(|l| *l == label);
            (label, format!("an answer among {}", labels.join(", ")), index)
        }
        Right::Number { first, label } => {
            let index = label.parse::<usize>().ok().and_then(|n| n.checked_sub(first));
            let index = index.or_else(|| labels.iter().position(|l| *l == label));
            let last = first + options.len() - 1;
            (label, format!("a label from {first} to {last}"), index)
        }
    };
    match index.filter(|index| *index < options.len()) {
        Some(index) => Ok((text, options, index)),
        None => {
            // what stands where answers are kept back
            let none = ["", "-1"].contains(&found.as_str());
            let message = format!("expected {expected}, found {found:?}");
            Err((message, none.then_some(NO_ANSWER)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts: Python's `preprocess` of the task `hellaswag` on the same inputs.
    #[test]
    fn marks_of_wikihow_are_taken_away() {
        for (text, expected) in [
            (
                " How to cook [title] Get a pot. [step] Fill  it. ",
                "How to cook. Get a pot. Fill it.",
            ),
            ("[header] Boil [substeps] now", " Boil now"),
            ("an [open one, [and] another ] end", "an another ] end"),
            ("a [b\nc] d", "a [b\nc] d"),
            ("three   blanks", "three  blanks"),
        ] {
            assert_eq!(plain(text), expected, "{text:?}");
        }
        assert_eq!(capitalized("hE said NO."), "He said no.");
        assert_eq!(capitalized("ßa"), "Ssa");
        assert_eq!(capitalized(""), "");
        assert_eq!(capitalized("Ζωή ΣΑΣ"), "Ζωή σας");
    }

    #[test]
    fn labels_are_numbers_from_the_layouts_first_or_letters() {
        let of = |layout, record: Value, label: Option<&str>| {
            let object = record.as_object().expect("an object").clone();
            let line = Line { number: 7, record: None, offset: 0, bytes: b"", damage: None };
            question(&line, layout, &object, label).map(|q| q.right).map_err(|f| f.message)
        };
        let piqa = |label: Value| serde_json::json!({"goal": "g", "sol1": "a", "sol2": "b", "label": label});
        assert_eq!(of(Layout::Piqa, piqa(1.into()), None), Ok(1));
        assert_eq!(of(Layout::Piqa, piqa("0".into()), None), Ok(0));
        let error = of(Layout::Piqa, piqa((-1).into()), None).expect_err("no label");
        assert_eq!(error, "expected a label from 0 to 1, found \"-1\"");
        let error = of(Layout::Piqa, piqa(2.into()), None).expect_err("beyond");
        assert_eq!(error, "expected a label from 0 to 1, found \"2\"");
        let social = serde_json::json!(
            {"context": "c", "question": "q", "answerA": "a", "answerB": "b", "answerC": "c"}
        );
        assert_eq!(of(Layout::SocialIqa, social.clone(), Some("3")), Ok(2));
        assert_eq!(of(Layout::SocialIqa, social.clone(), Some("B\r")), Ok(1));
        let error = of(Layout::SocialIqa, social.clone(), Some("0")).expect_err("from 1 on");
        assert_eq!(error, "expected a label from 1 to 3, found \"0\"");
        let error = of(Layout::SocialIqa, social, None).expect_err("no label");
        assert!(error.starts_with("expected key label, or a file of labels"), "{error}");
    }
}
