//! Multiple-choice questions from files, in the layouts that benchmarks are published in.
//!
//! In: CSV, JSON Lines, a JSON array or Parquet, of C-Eval, CMMLU, A-CLUE and TMMLU+ (`question`,
//! `A`, `B`, .., `answer`), ARC and OpenBookQA (`choices`, `answerKey`; from Hugging Face or
//! AllenAI), PIQA, HellaSwag and Social-IQa, labels in the records or in a file of their own; or
//! folders of them. Out: [`Subject`]s, each with its questions. A fault names file and line, or row.

mod files;
mod question;
mod record;

use std::path::{Path, PathBuf};

use super::benchmarks::{Benchmark, Split};
use super::fault::fault_at;
use files::{Look, Source};
use mmx_converters::{Error, Result};
use mmx_data::blocks::Blocks;
use mmx_data::jsonl;
pub use question::{Question, Subject, letter};

/// What questions are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// To be asked.
    Asked,
    /// To be shown with their answers before others.
    Shown,
}

/// Questions that were read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The subjects, in the order of the files.
    pub subjects: Vec<Subject>,
    /// Files in folders that hold something else.
    pub left_out: Vec<PathBuf>,
}

/// Reads questions from files. A folder stands for the files in it and in its folders; where it has
/// several splits of a benchmark, for the one that this benchmark asks, or shows. Files of one
/// subject are joined.
///
/// # Errors
/// A file that cannot be read or has another layout, a faulty question (file:line), no question at
/// all.
pub fn read(paths: &[PathBuf], role: Role) -> Result<Found> {
    let mut found = Found::default();
    let mut sources = Vec::new();
    for path in paths {
        if path.is_dir() {
            sources.extend(in_folder(path, role, &mut found.left_out)?);
            continue;
        }
        if !files::is_named(path) {
            return Err(Error::misuse(format!(
                "{}: expected questions in a file that ends in .csv, .jsonl, .json or .parquet",
                path.display()
            )));
        }
        match files::look(path)? {
            Look::Questions(source) => sources.push(source),
            Look::Else(error) => return Err(error),
        }
    }
    found.subjects = joined(&sources)?;
    Ok(found)
}

/// Reads the examples of subjects from the splits that lie beside what was asked.
///
/// # Errors
/// See [`read`]; no such split.
pub fn examples(paths: &[PathBuf], subjects: &[Subject]) -> Result<Vec<Subject>> {
    let mut sources: Vec<Source> = Vec::new();
    let mut seen = Vec::new();
    for path in paths {
        for file in files::beside(path)? {
            if seen.contains(&file) {
                continue;
            }
            if let Look::Questions(source) = files::look(&file)? {
                sources.push(source);
            }
            seen.push(file);
        }
    }
    without_twins(&mut sources);
    let mut chosen = Vec::new();
    for subject in subjects {
        let of_it: Vec<&Source> = sources.iter().filter(|s| is_of(s, subject)).collect();
        let wanted =
            subject.benchmark.shown().iter().filter(|split| Some(**split) != subject.split);
        let split = wanted.copied().find(|split| of_it.iter().any(|s| s.split == Some(*split)));
        let Some(split) = split else {
            let names: Vec<&str> = subject.benchmark.shown().iter().map(|s| s.name()).collect();
            return Err(Error::failed_with_hint(
                format!(
                    "{}: subject {}: expected examples in a split {} beside it, found none",
                    file_of(subject).display(),
                    subject.name,
                    names.join(" or ")
                ),
                "give a file of examples, or none are shown",
            ));
        };
        chosen.extend(of_it.into_iter().filter(|s| s.split == Some(split)).cloned());
    }
    joined(&chosen)
}

fn is_of(source: &Source, subject: &Subject) -> bool {
    source.benchmark == subject.benchmark && source.subject == subject.name
}

fn file_of(subject: &Subject) -> &Path {
    subject.questions.first().map_or(Path::new(""), |question| &question.file)
}

/// The files of a folder that have a role, of each benchmark's one split.
fn in_folder(folder: &Path, role: Role, left_out: &mut Vec<PathBuf>) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut first = None;
    for path in files::walk(folder)? {
        match files::look(&path)? {
            Look::Questions(source) => sources.push(source),
            Look::Else(error) => {
                first.get_or_insert(error);
                left_out.push(path);
            }
        }
    }
    if sources.is_empty() {
        return Err(first.unwrap_or_else(|| {
            Error::failed(format!(
                "{}: expected .csv, .jsonl, .json or .parquet files in the folder, found none",
                folder.display()
            ))
        }));
    }
    let mut benchmarks: Vec<Benchmark> = Vec::new();
    for source in &sources {
        if !benchmarks.contains(&source.benchmark) {
            benchmarks.push(source.benchmark);
        }
    }
    for benchmark in benchmarks {
        let of_it = || sources.iter().filter(|s| s.benchmark == benchmark);
        let has = |split: &Split| of_it().any(|s| s.split == Some(*split));
        let split = match role {
            Role::Asked => benchmark.asked().iter().copied().find(has),
            Role::Shown => benchmark.shown().iter().copied().find(has),
        };
        // without it the folder is one split of another name, or its files name none
        let split = split.or_else(|| match of_it().any(|s| s.split.is_none()) {
            true => None,
            false => of_it().find_map(|s| s.split),
        });
        sources.retain(|s| s.benchmark != benchmark || s.split.is_none() || s.split == split);
    }
    without_twins(&mut sources);
    Ok(sources)
}

/// OpenBookQA is published twice, as `main` and, with facts that are not asked, as `additional`.
fn without_twins(sources: &mut Vec<Source>) {
    let is_twin = |source: &Source| {
        let mut folders = source.path.components();
        source.benchmark == Benchmark::OpenBookQa
            && folders.any(|folder| folder.as_os_str().eq_ignore_ascii_case("additional"))
    };
    let is_main = |source: &Source| source.benchmark == Benchmark::OpenBookQa && !is_twin(source);
    if sources.iter().any(is_main) {
        sources.retain(|source| !is_twin(source));
    }
}

/// Reads files, those of one subject into one.
fn joined(sources: &[Source]) -> Result<Vec<Subject>> {
    let mut subjects: Vec<Subject> = Vec::new();
    for source in sources {
        let questions = read_file(source)?;
        match subjects.iter_mut().find(|s| is_of(source, s)) {
            Some(subject) => {
                subject.questions.extend(questions);
                if subject.split != source.split {
                    subject.split = None;
                }
            }
            None => subjects.push(Subject {
                benchmark: source.benchmark,
                name: source.subject.clone(),
                split: source.split,
                questions,
            }),
        }
    }
    Ok(subjects)
}

fn read_file(source: &Source) -> Result<Vec<Question>> {
    let path = &source.path;
    let labels = labels(path)?;
    let mut questions = Vec::new();
    let mut blocks = Blocks::open(path)?;
    while let Some(block) = blocks.next_block()? {
        for line in block.lines() {
            let label = match &labels {
                None => None,
                Some((file, labels)) => Some(
                    labels.get(questions.len()).ok_or_else(|| uneven(file, labels.len(), path))?,
                ),
            };
            let read = jsonl::object(&line).and_then(|object| {
                record::question(&line, source.layout, &object, label.map(String::as_str))
            });
            let mut question = read.map_err(|fault| fault_at(path, fault))?;
            path.clone_into(&mut question.file);
            questions.push(question);
        }
    }
    if let Some((file, labels)) = &labels
        && labels.len() != questions.len()
    {
        return Err(uneven(file, labels.len(), path));
    }
    if questions.is_empty() {
        return Err(Error::failed(format!(
            "{}: expected at least one question, found none",
            path.display()
        )));
    }
    Ok(questions)
}

fn uneven(labels: &Path, found: usize, questions: &Path) -> Error {
    Error::failed(format!(
        "{}: expected as many labels as {} has questions, found {found}",
        labels.display(),
        questions.display()
    ))
}

/// The labels of `dev.jsonl` in `dev-labels.lst`, a line each, where there is such a file.
fn labels(path: &Path) -> Result<Option<(PathBuf, Vec<String>)>> {
    let file = path.with_file_name(format!("{}-labels.lst", files::stem(path)));
    if !file.is_file() {
        return Ok(None);
    }
    let text = fs_err::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
    Ok(Some((file, text.lines().map(|line| line.trim().to_owned()).collect())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &tempfile::TempDir, name: &str, content: &str) -> PathBuf {
        let path = dir.path().join(name);
        fs_err::write(&path, content).expect("written");
        path
    }

    fn asked(paths: &[PathBuf]) -> Vec<Subject> {
        read(paths, Role::Asked).expect("subjects").subjects
    }

    fn refused(name: &str, content: &str) -> String {
        let dir = tempfile::tempdir().expect("a folder");
        let error = read(&[file(&dir, name, content)], Role::Asked).expect_err(content).to_string();
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
        let subjects = asked(&[ceval, cmmlu.clone()]);
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
        let subjects = asked(&[path]);
        assert_eq!((subjects.len(), subjects[0].name.as_str()), (1, "ARC-Easy"));
        let found: Vec<(usize, &str, usize, usize)> = subjects[0]
            .questions
            .iter()
            .map(|q| (q.line, q.text.as_str(), q.options.len(), q.right))
            .collect();
        assert_eq!(found, [(1, "Why?", 3, 2), (3, "The sun", 2, 1), (4, "How?", 2, 0)]);
        // one array, over any number of lines
        let path = file(&dir, "ARC-Easy.json", &format!("[{hub},\n\n{book}, {allen}\n]\n"));
        let array = asked(&[path]);
        let texts = |subjects: &[Subject]| -> Vec<(usize, String)> {
            subjects[0].questions.iter().map(|q| (q.right, q.text.clone())).collect()
        };
        assert_eq!(texts(&array), texts(&subjects));
        assert_eq!(array[0].questions[1].line, 3);
        assert!(!subjects[0].is_chinese());
    }

    #[test]
    fn a_folder_stands_for_the_split_that_its_benchmark_asks() {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in [("b_dev.csv", "one"), ("a_val.csv", "two"), ("b_val.csv", "three")] {
            file(&dir, name, &format!("question,A,B,answer\n{text},x,y,B\n"));
        }
        file(&dir, "README.md", "not a question");
        let left = file(&dir, "info.json", "{\"features\": 3}");
        let found = read(&[dir.path().to_owned()], Role::Asked).expect("two subjects");
        let all = |subjects: &[Subject]| -> Vec<(String, Vec<String>)> {
            let texts = |s: &Subject| s.questions.iter().map(|q| q.text.clone()).collect();
            subjects.iter().map(|s| (s.name.clone(), texts(s))).collect()
        };
        let of = |name: &str, texts: &[&str]| {
            (name.to_owned(), texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(all(&found.subjects), [of("a", &["two"]), of("b", &["three"])]);
        assert_eq!(found.left_out, [left]);
        assert_eq!(found.subjects[1].split, Some(Split::Validation));
        // the examples are the other split's, of the subjects that are asked
        let shown = examples(&[dir.path().to_owned()], &found.subjects[1..]).expect("b's");
        assert_eq!(all(&shown), [of("b", &["one"])]);
        let beside = examples(&[dir.path().join("b_val.csv")], &found.subjects[1..]).expect("b's");
        assert_eq!(beside, shown);
        let shown = read(&[dir.path().to_owned()], Role::Shown).expect("one subject").subjects;
        assert_eq!(all(&shown), [of("b", &["one"])]);
        let error = examples(&[dir.path().to_owned()], &found.subjects).expect_err("none of a");
        assert!(error.to_string().contains("subject a: expected examples in a split"), "{error}");
        // files that are named are all read, and joined by subject
        let files = ["b_dev.csv", "b_val.csv"].map(|name| dir.path().join(name));
        assert_eq!(all(&asked(&files)), [of("b", &["one", "three"])]);
    }

    #[test]
    fn rejects_faulty_questions_with_file_and_line() {
        let head = "question,A,B,C,D,answer\n";
        let csv = |rest: &str| refused("x.csv", &format!("{head}{rest}"));
        assert_eq!(csv("q,a,b,c,d,E\n"), ":2: expected an answer among A, B, C, D, found \"E\"");
        assert_eq!(csv("q,a,b,c,d,A\nq,a,,c,d,A\n"), ":3: option B: expected text, found none");
        assert_eq!(csv("q,a,b,c,d\n"), ":2: expected 6 cells as in the header, found 5");
        assert_eq!(csv(" ,a,b,c,d,A\n"), ":2: expected a question, found an empty one");
        assert_eq!(
            refused("x.csv", "id,question,A,B,C,D\n1,q,a,b,c,d\n"),
            ":2: expected key answer, found id, question, A, B, C, D"
        );
        assert!(csv("").contains("expected at least one question"));
        let json = |text: &str| refused("x.jsonl", text);
        let known = |line: &str| format!(":{line}: expected the keys of a benchmark's questions");
        assert!(json(r#"{"text": "a"}"#).starts_with(&known("1")));
        assert!(refused("x.json", "[\n{\"text\": 1}\n]").starts_with(&known("2")));
        assert!(refused("x.json", "[\n{\"text\": 1}\n]").ends_with("), found text"));
        let choices = r#""question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}"#;
        assert!(json(&format!("{{{choices}}}")).contains(":1: expected key answerKey"));
        let error = json(&format!("{{{choices}, \"answerKey\": \"3\"}}"));
        assert!(error.contains("an answer among 1, 2") && error.contains("found \"3\""), "{error}");
        assert!(json(r#"{"question": "q", "choices": {"text": ["a"], "label": ["1", "2"]}, "answerKey": "1"}"#)
            .contains("as many labels as texts"));
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("gbk.csv");
        fs_err::write(&path, b"question,A,B,answer\n\xc4\xe3,a,b,A\n").expect("written");
        let error = read(&[path], Role::Asked).expect_err("GBK");
        assert!(error.to_string().contains("gbk.csv:2: expected UTF-8"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("GBK")));
        let error = read(&[dir.path().join("x.pdf")], Role::Asked).expect_err("no layout");
        assert!(matches!(error, Error::Misuse { .. }), "{error}");
    }
}
