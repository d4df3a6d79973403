//! Multiple-choice questions from files, in the layouts that benchmarks are published in.
//!
//! In: CSV as C-Eval has it (`id,question,A,B,C,D,answer[,explanation]`) or CMMLU (a number without
//! a heading, `Question,A,B,C,D,Answer`); JSON Lines or one JSON array, of objects as ARC and
//! OpenBookQA have them, from Hugging Face (`question` or `question_stem`, `choices.text`,
//! `choices.label`, `answerKey`) or from AllenAI (`question.stem`, `question.choices[].text`). Out:
//! [`Subject`]s, each with its questions. A fault names file and line.

use std::path::{Path, PathBuf};

use csv::ByteRecord;
use serde_json::{Map, Value};

use super::fault::fault_at;
use mmx_converters::{Error, Result};
use mmx_data::blocks::Blocks;
use mmx_data::jsonl::{self, Fault, Line};

/// A subject with its questions.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// Name, from the file's: `physics` of `physics_val.csv`.
    pub name: String,
    /// Questions in the files' order.
    pub questions: Vec<Question>,
}

impl Subject {
    /// True where a question has Chinese characters: it is asked in Chinese then.
    pub fn is_chinese(&self) -> bool {
        self.questions.iter().any(|q| q.text.chars().any(is_han))
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// File that holds it.
    pub file: PathBuf,
    /// Its line in the file, from 1.
    pub line: usize,
    /// Text of the question.
    pub text: String,
    /// The answers to choose from, two at least.
    pub options: Vec<String>,
    /// Index of the right answer.
    pub right: usize,
}

/// Unicode's main blocks of Chinese characters.
fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{20000}'..='\u{323af}')
}

/// Reads questions from files; a folder stands for the CSV and JSON Lines files in it, by name.
/// Files of one subject (`physics_dev.csv`, `physics_val.csv`) are joined.
///
/// # Errors
/// A file that cannot be read or has another layout, a faulty question (file:line), no question at
/// all.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Subject>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = fs_err::read_dir(path).map_err(|e| Error::io(path, e))?;
        let inside = entries.flatten().map(|entry| entry.path());
        let mut inside: Vec<PathBuf> = inside.filter(|p| layout(p).is_some()).collect();
        if inside.is_empty() {
            return Err(Error::failed(format!(
                "{}: expected .csv or .jsonl files in the folder, found none",
                path.display()
            )));
        }
        inside.sort();
        files.extend(inside);
    }
    let mut subjects: Vec<Subject> = Vec::new();
    for file in &files {
        let name = subject_of(file);
        let questions = read_file(file)?;
        match subjects.iter_mut().find(|s| s.name == name) {
            Some(subject) => subject.questions.extend(questions),
            None => subjects.push(Subject { name, questions }),
        }
    }
    Ok(subjects)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Csv,
    Json,
}

fn layout(path: &Path) -> Option<Layout> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "csv" => Some(Layout::Csv),
        "jsonl" | "ndjson" | "json" => Some(Layout::Json),
        _ => None,
    }
}

/// The file's name without what says which part of a benchmark it is.
fn subject_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    for part in ["validation", "valid", "val", "test", "dev", "train"] {
        let Some(at) = stem.len().checked_sub(part.len() + 1) else { continue };
        let Some((name, end)) = stem.split_at_checked(at) else { continue };
        let separated = end.starts_with(['_', '-', '.']);
        if at > 0 && separated && end[1..].eq_ignore_ascii_case(part) {
            return name.to_owned();
        }
    }
    stem
}

fn read_file(path: &Path) -> Result<Vec<Question>> {
    let layout = layout(path).ok_or_else(|| {
        Error::misuse(format!(
            "{}: expected questions in a file that ends in .csv or .jsonl",
            path.display()
        ))
    })?;
    let mut questions = match layout {
        Layout::Csv => {
            let bytes = fs_err::read(path).map_err(|e| Error::io(path, e))?;
            for line in jsonl::lines(&bytes) {
                jsonl::utf8(&line).map_err(|fault| fault_at(path, fault))?;
            }
            read_csv(&bytes).map_err(|fault| fault_at(path, fault))?
        }
        Layout::Json => read_json(path)?,
    };
    if questions.is_empty() {
        return Err(Error::failed(format!(
            "{}: expected at least one question, found none",
            path.display()
        )));
    }
    questions.iter_mut().for_each(|q| path.clone_into(&mut q.file));
    Ok(questions)
}

fn fault(line: usize, message: impl Into<String>) -> Fault {
    Fault { line, message: message.into(), ..Fault::default() }
}

/// The columns of a CSV file.
struct Columns {
    question: usize,
    options: Vec<usize>,
    answer: usize,
}

impl Columns {
    fn of(names: &ByteRecord, line: usize) -> Result<Self, Fault> {
        let names: Vec<String> = names.iter().map(text).collect();
        let find = |wanted: &str| names.iter().position(|n| n.trim().eq_ignore_ascii_case(wanted));
        let expect = |wanted: &str| {
            find(wanted).ok_or_else(|| {
                let found = names.join(",");
                let mut fault = fault(line, format!("expected a column {wanted}, found {found}"));
                if wanted == "answer" {
                    fault.hint =
                        Some("a part of a benchmark without answers scores nothing".into());
                }
                fault
            })
        };
        let question = expect("question")?;
        expect("A")?;
        expect("B")?;
        let options = ('A'..='Z').map_while(|letter| find(&letter.to_string())).collect();
        Ok(Self { question, options, answer: expect("answer")? })
    }
}

/// Bytes that were found to be UTF-8.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read_csv(bytes: &[u8]) -> Result<Vec<Question>, Fault> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
    let mut columns: Option<(Columns, usize)> = None;
    let mut questions = Vec::new();
    let mut record = ByteRecord::new();
    let (mut line, mut counted) = (1, 0);
    loop {
        // csv's reader may stop between \r and \n, and its own count of lines is off then
        let ends = bytes[reader.position().byte() as usize..].iter();
        let blank = ends.take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let start = reader.position().byte() as usize + blank;
        line += bytes[counted..start].iter().filter(|&&b| b == b'\n').count();
        counted = start;
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => return Err(fault(line, format!("expected CSV: {error}"))),
        }
        let Some((columns, count)) = &columns else {
            columns = Some((Columns::of(&record, line)?, record.len()));
            continue;
        };
        if record.len() != *count {
            return Err(fault(
                line,
                format!("expected {count} columns as in the first line, found {}", record.len()),
            ));
        }
        let field = |index: usize| text(record.get(index).unwrap_or_default());
        let options = columns.options.iter().map(|&index| field(index)).collect();
        let letters: Vec<String> =
            (0..columns.options.len()).map(|i| letter(i).to_string()).collect();
        let answer = field(columns.answer).trim().to_uppercase();
        questions.push(question(line, field(columns.question), options, &letters, &answer)?);
    }
    Ok(questions)
}

/// A question whose parts are there: `answer` is the label of the right option.
fn question(
    line: usize,
    text: String,
    options: Vec<String>,
    labels: &[String],
    answer: &str,
) -> Result<Question, Fault> {
    if text.trim().is_empty() {
        return Err(fault(line, "expected a question, found an empty one"));
    }
    if options.len() < 2 || options.len() > LETTERS {
        let found = options.len();
        return Err(fault(line, format!("expected 2 to {LETTERS} options, found {found}")));
    }
    if let Some(empty) = options.iter().position(|option| option.trim().is_empty()) {
        return Err(fault(line, format!("option {}: expected text, found none", labels[empty])));
    }
    let right = labels.iter().position(|label| label == answer).ok_or_else(|| {
        fault(line, format!("expected an answer among {}, found {answer:?}", labels.join(", ")))
    })?;
    Ok(Question { file: PathBuf::new(), line, text, options, right })
}

/// Number of letters that there are for options.
const LETTERS: usize = 26;

/// The letter of an option: A, B, ...
pub fn letter(option: usize) -> char {
    char::from(b'A' + (option % LETTERS) as u8)
}

fn read_json(path: &Path) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    let mut blocks = Blocks::open(path)?;
    while let Some(block) = blocks.next_block()? {
        for line in block.lines() {
            questions.push(read_object(&line).map_err(|fault| fault_at(path, fault))?);
        }
    }
    Ok(questions)
}

fn read_object(line: &Line<'_>) -> Result<Question, Fault> {
    let object = jsonl::object(line)?;
    let number = if line.number == 0 { line.label() } else { line.number };
    let missing = |key: &str| {
        let found: Vec<&str> = object.keys().map(String::as_str).collect();
        fault(number, format!("expected key {key}, found {}", found.join(", ")))
    };
    let (text, choices) = match (object.get("question"), object.get("question_stem")) {
        // AllenAI's layout
        (Some(Value::Object(question)), _) => (question.get("stem"), question.get("choices")),
        (text @ Some(_), _) | (None, text) => (text, object.get("choices")),
    };
    let text = text.and_then(Value::as_str).ok_or_else(|| missing("question"))?;
    let choices = choices.ok_or_else(|| missing("choices"))?;
    let (options, labels) = options(choices).map_err(|message| fault(number, message))?;
    let key = match object.get("answerKey") {
        Some(Value::String(key)) => key.trim().to_owned(),
        Some(other) => other.to_string(),
        None => return Err(missing("answerKey")),
    };
    if let Some(twice) = (1..labels.len()).find(|&i| labels[..i].contains(&labels[i])) {
        return Err(fault(number, format!("choices: the label {} comes twice", labels[twice])));
    }
    question(number, text.to_owned(), options, &labels, &key)
}

/// Texts and labels of `choices`: an object of two lists, or a list of objects.
fn options(choices: &Value) -> Result<(Vec<String>, Vec<String>), String> {
    let strings = |object: &Map<String, Value>, key: &str| -> Result<Vec<String>, String> {
        let list = object.get(key).and_then(Value::as_array);
        let list = list.ok_or_else(|| format!("choices: expected a list {key}, found none"))?;
        let strings = list.iter().map(|item| item.as_str().map(|text| text.trim().to_owned()));
        strings
            .collect::<Option<_>>()
            .ok_or_else(|| format!("choices.{key}: expected strings, found something else"))
    };
    let (texts, labels) = match choices {
        Value::Object(object) => (strings(object, "text")?, strings(object, "label")?),
        Value::Array(list) => {
            let one = |item: &Value, key: &str| {
                item.get(key).and_then(Value::as_str).map(|text| text.trim().to_owned())
            };
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
    Ok((texts, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &tempfile::TempDir, name: &str, content: &str) -> PathBuf {
        let path = dir.path().join(name);
        fs_err::write(&path, content).expect("written");
        path
    }

    fn refused(name: &str, content: &str) -> String {
        let dir = tempfile::tempdir().expect("a folder");
        let error = read(&[file(&dir, name, content)]).expect_err(content).to_string();
        error.split_once(name).expect("the file's name").1.to_owned()
    }

    #[test]
    fn both_csv_layouts_are_read_and_lines_are_the_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let ceval = file(
            &dir,
            "physics_val.csv",
            "\u{feff}id,question,A,B,C,D,answer,explanation\r\n0,\"光速,\n约是?\",\"3\"\"x\",b,c,d,A,因为\r\n1,q,1,2,3,4, d ,\r\n",
        );
        let cmmlu = file(&dir, "arts.csv", ",Question,A,B,C,D,Answer\n0,谁,甲,乙,丙,丁,C\n");
        let subjects = read(&[ceval, cmmlu.clone()]).expect("two subjects");
        let names: Vec<&str> = subjects.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["physics", "arts"]);
        let [first, second] = &subjects[0].questions[..] else { panic!("two questions") };
        assert_eq!((first.line, first.right, second.line, second.right), (2, 0, 4, 3));
        assert_eq!((first.text.as_str(), first.options[0].as_str()), ("光速,\n约是?", "3\"x"));
        let arts = &subjects[1].questions[0];
        assert_eq!((arts.right, arts.options[2].as_str(), &arts.file), (2, "丙", &cmmlu));
        assert!(subjects[1].is_chinese());
    }

    #[test]
    fn both_json_layouts_are_read_with_any_labels() {
        let dir = tempfile::tempdir().expect("a folder");
        let hub = r#"{"id": "1", "question": "Why?", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"}"#;
        let book = r#"{"id": "2", "question_stem": "The sun", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": " B"}"#;
        let allen = r#"{"id": "3", "question": {"stem": "How?", "choices": [{"text": "p", "label": "A"}, {"text": "q", "label": "B"}]}, "answerKey": "A"}"#;
        let path = file(&dir, "ARC-Easy-Test.jsonl", &format!("{hub}\n\n{book}\n{allen}\n"));
        let subjects = read(&[path]).expect("a subject");
        assert_eq!((subjects.len(), subjects[0].name.as_str()), (1, "ARC-Easy"));
        let found: Vec<(usize, &str, usize, usize)> = subjects[0]
            .questions
            .iter()
            .map(|q| (q.line, q.text.as_str(), q.options.len(), q.right))
            .collect();
        assert_eq!(found, [(1, "Why?", 3, 2), (3, "The sun", 2, 1), (4, "How?", 2, 0)]);
        // one array, over any number of lines
        let path = file(&dir, "ARC-Easy.json", &format!("[{hub},\n\n{book}, {allen}\n]\n"));
        let array = read(&[path]).expect("a subject");
        let texts = |subjects: &[Subject]| -> Vec<(usize, String)> {
            subjects[0].questions.iter().map(|q| (q.right, q.text.clone())).collect()
        };
        assert_eq!(texts(&array), texts(&subjects));
        assert_eq!(array[0].questions[1].line, 3);
        assert!(!subjects[0].is_chinese());
    }

    #[test]
    fn a_folder_stands_for_its_files_and_parts_of_a_subject_are_joined() {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in [("b_dev.csv", "one"), ("a_val.csv", "two"), ("b_val.csv", "three")] {
            file(&dir, name, &format!("question,A,B,answer\n{text},x,y,B\n"));
        }
        file(&dir, "README.md", "not a question");
        let subjects = read(&[dir.path().to_owned()]).expect("two subjects");
        let all: Vec<(&str, Vec<&str>)> = subjects
            .iter()
            .map(|s| (s.name.as_str(), s.questions.iter().map(|q| q.text.as_str()).collect()))
            .collect();
        assert_eq!(all, [("a", vec!["two"]), ("b", vec!["one", "three"])]);
    }

    #[test]
    fn rejects_faulty_questions_with_file_and_line() {
        let head = "question,A,B,C,D,answer\n";
        let csv = |rest: &str| refused("x.csv", &format!("{head}{rest}"));
        assert_eq!(csv("q,a,b,c,d,E\n"), ":2: expected an answer among A, B, C, D, found \"E\"");
        assert_eq!(csv("q,a,b,c,d,A\nq,a,,c,d,A\n"), ":3: option B: expected text, found none");
        assert_eq!(csv("q,a,b,c,d\n"), ":2: expected 6 columns as in the first line, found 5");
        assert_eq!(csv(" ,a,b,c,d,A\n"), ":2: expected a question, found an empty one");
        assert_eq!(
            refused("x.csv", "id,question,A,B,C,D\n1,q,a,b,c,d\n"),
            ":1: expected a column answer, found id,question,A,B,C,D"
        );
        assert!(csv("").contains("expected at least one question"));
        let json = |text: &str| refused("x.jsonl", text);
        assert_eq!(json(r#"{"text": "a"}"#), ":1: expected key question, found text");
        assert_eq!(
            refused("x.json", "[\n{\"text\": 1}\n]"),
            ":2: expected key question, found text"
        );
        let choices = r#""question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}"#;
        assert!(json(&format!("{{{choices}}}")).contains(":1: expected key answerKey"));
        let error = json(&format!("{{{choices}, \"answerKey\": \"3\"}}"));
        assert!(error.contains("an answer among 1, 2") && error.contains("found \"3\""), "{error}");
        assert!(json(r#"{"question": "q", "choices": {"text": ["a"], "label": ["1", "2"]}, "answerKey": "1"}"#)
            .contains("as many labels as texts"));
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("gbk.csv");
        fs_err::write(&path, b"question,A,B,answer\n\xc4\xe3,a,b,A\n").expect("written");
        let error = read(&[path]).expect_err("GBK");
        assert!(error.to_string().contains("gbk.csv:2: expected UTF-8"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("GBK")));
        let error = read(&[dir.path().join("x.pdf")]).expect_err("no layout");
        assert!(matches!(error, Error::Misuse { .. }), "{error}");
    }
}
