//! Greedy text of every program installed in a Python, on every form of a model that it reads,
//! against the runner's on the same file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mmx_converters::gguf::GgmlType;
use mmx_converters::words::counted;
use mmx_converters::{Error, Result, digest};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::judge::{Answer, Judge, Verdict};
use super::python::{Fault, Python};
use super::table::{Asked, CONSUMERS, Consumer, Reads};
use crate::open::Form;

/// Tokens of each text.
const TOKENS: usize = 24;
/// The user's message of the chat.
pub(crate) const CHAT: &str = "hello 你好";
/// The text to go on after.
pub(crate) const RAW: &str = "Once upon a time";
/// Positions that the programs are told to make room for.
const CONTEXT: usize = 512;

/// A request to check a model in the programs of a Python.
#[derive(Debug)]
pub struct Request {
    /// The Python.
    pub python: PathBuf,
    /// The time that a program has for a form.
    pub timeout: Duration,
    /// Threads of the runner.
    pub threads: usize,
}

/// What became of a program on a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The same text.
    Same,
    /// Another text, of tokens that are as likely within what rounding moves.
    NearTie,
    /// Another text.
    Differs,
    /// It ended without an answer.
    Failed,
    /// It took too long.
    TimedOut,
    /// It is known not to carry the model, and was not asked.
    NotCarried,
}

impl Outcome {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Same => "same text",
            Self::NearTie => "near tie",
            Self::Differs => "DIFFERS",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED OUT",
            Self::NotCarried => "not carried",
        }
    }

    /// False where something is wrong.
    pub fn is_ok(self) -> bool {
        matches!(self, Self::Same | Self::NearTie | Self::NotCarried)
    }
}

/// A program on a form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The program.
    pub consumer: String,
    /// Its version.
    pub version: String,
    /// The form.
    pub path: PathBuf,
    /// The SHA-256 of its weights.
    pub sha256: String,
    /// What became of it.
    pub outcome: Outcome,
    /// False where something is wrong.
    pub ok: bool,
    /// The text is the checkpoint's too; nothing where there is no text.
    pub as_reference: Option<bool>,
    /// Why, in a sentence; empty where there is nothing to say.
    pub note: String,
    /// Seconds that it took, its start included.
    pub seconds: f64,
}

/// The outcome of a check.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The Python.
    pub python: PathBuf,
    /// The user's message of the chat; nothing where the model has no chat template.
    pub chat: Option<String>,
    /// The text to go on after.
    pub raw: String,
    /// Tokens of each text.
    pub tokens: usize,
    /// A row for each program and form.
    pub rows: Vec<Row>,
    /// Programs that are not installed.
    pub not_installed: Vec<String>,
}

impl Report {
    /// True where nothing is wrong.
    pub fn ok(&self) -> bool {
        self.rows.iter().all(|row| row.ok)
    }
}

/// How far the logit of a token may be from the likeliest one's before a text counts as another
/// one: about twice what a logit differs by between the runner and llama.cpp on the same file of a
/// model of 0.4M parameters (f32 5e-6, f16 5.5e-3, bf16 4.9e-2, q8_0 and q4_k_m 6.1e-2), since two
/// logits may move apart. float32 counts as f16: programs keep their caches in that.
fn limit(ty: GgmlType) -> f64 {
    match ty {
        GgmlType::F32 | GgmlType::F64 | GgmlType::F16 => 2e-2,
        _ => 0.15,
    }
}

/// Programs and their versions, as the script answers.
#[derive(Deserialize)]
struct Versions {
    versions: std::collections::BTreeMap<String, Option<String>>,
}

/// The texts of a program, as the script answers.
#[derive(Deserialize)]
struct Answers {
    answers: Texts,
}

#[derive(Deserialize)]
struct Texts {
    chat: Option<Answer>,
    raw: Answer,
}

/// The runner's texts.
struct Truth {
    chat: Option<super::judge::Expected>,
    raw: super::judge::Expected,
}

impl Truth {
    fn of(judge: &Judge) -> Result<Self> {
        let template = judge.tokenizer()?.template().is_some();
        Ok(Self {
            chat: template.then(|| judge.after_chat(CHAT)).transpose()?,
            raw: judge.after_text(RAW)?,
        })
    }

    fn ids(&self) -> Vec<&[u32]> {
        let all = self.chat.iter().chain(std::iter::once(&self.raw));
        all.map(|expected| expected.generated.ids.as_slice()).collect()
    }
}

/// Asks every program that is installed, on every form. `reference` is the checkpoint, whose text is
/// compared too; without other forms it is checked itself. `progress` hears of each row before it is
/// made.
///
/// # Errors
/// A form that cannot be opened or has no tokenizer, a Python that cannot be started or has none of
/// the programs. What a program does wrong is no error, but a row.
pub fn check(
    reference: &Path,
    forms: &[PathBuf],
    request: &Request,
    progress: &mut dyn FnMut(&Path, &str),
) -> Result<Report> {
    let python = Python::new(&request.python, request.timeout)?;
    let installed = installed(&python, &request.python)?;
    let reference = Form::open(reference)?;
    let truth = Truth::of(&Judge::open(&reference, request.threads, TOKENS)?)?;
    let others = forms.iter().map(|path| Form::open(path)).collect::<Result<Vec<_>>>()?;
    let forms: Vec<&Form> =
        if others.is_empty() { vec![&reference] } else { others.iter().collect() };
    let mut rows = Vec::new();
    for form in forms {
        rows.extend(of_form(form, &truth, &python, &installed, request, progress)?);
    }
    let missing =
        |c: &&Consumer| c.asked.is_some() && !installed.iter().any(|(i, ..)| i.name == c.name);
    Ok(Report {
        python: request.python.clone(),
        chat: truth.chat.is_some().then(|| CHAT.to_owned()),
        raw: RAW.to_owned(),
        tokens: TOKENS,
        rows,
        not_installed: CONSUMERS.iter().filter(missing).map(|c| c.name.to_owned()).collect(),
    })
}

type Installed = (&'static Consumer, Asked, String);

/// The programs that are installed, with their versions.
fn installed(python: &Python, name: &Path) -> Result<Vec<Installed>> {
    let asked = || CONSUMERS.iter().filter_map(|c| Some((c, c.asked?)));
    let modules: serde_json::Map<_, _> =
        asked().map(|(c, asked)| (c.name.to_owned(), asked.modules.into())).collect();
    let found = match python.ask::<Versions>(&json!({ "modules": modules }))? {
        Ok(found) => found.versions,
        Err(Fault::TimedOut) => {
            return Err(Error::failed(format!(
                "{}: expected the versions of its packages, found no answer in time",
                name.display()
            )));
        }
        Err(Fault::Failed(said)) => {
            return Err(Error::failed(format!(
                "{}: expected a Python 3.9 or newer, found: {}",
                name.display(),
                said.lines().last().unwrap_or_default()
            )));
        }
    };
    let all: Vec<Installed> =
        asked().filter_map(|(c, asked)| Some((c, asked, found.get(c.name)?.clone()?))).collect();
    if all.is_empty() {
        let mut names: Vec<_> = asked().filter_map(|(_, a)| a.modules.first().copied()).collect();
        names.dedup();
        return Err(Error::failed_with_hint(
            format!(
                "{}: expected one of the packages {}, found none",
                name.display(),
                names.join(", ")
            ),
            "`python` PYTHON names the Python in which they are installed",
        ));
    }
    Ok(all)
}

/// The rows of one form.
fn of_form(
    form: &Form,
    reference: &Truth,
    python: &Python,
    installed: &[Installed],
    request: &Request,
    progress: &mut dyn FnMut(&Path, &str),
) -> Result<Vec<Row>> {
    let reads = |consumer: &Consumer| match consumer.reads {
        Reads::Both => true,
        Reads::Gguf => form.is_gguf(),
        Reads::Folder => form.path().is_dir(),
    };
    let judge = Judge::open(form, request.threads, TOKENS)?;
    let truth = Truth::of(&judge)?;
    let as_reference = truth.ids() == reference.ids();
    let sha256 = weights_digest(form.path())?;
    let path = fs_err::canonicalize(form.path()).map_err(|e| Error::io(form.path(), e))?;
    let mut rows = Vec::new();
    for (consumer, asked, version) in installed.iter().filter(|(c, ..)| reads(c)) {
        let mut row = Row {
            consumer: consumer.name.to_owned(),
            version: version.clone(),
            path: form.path().to_owned(),
            sha256: sha256.clone(),
            outcome: Outcome::NotCarried,
            ok: true,
            as_reference: None,
            note: String::new(),
            seconds: 0.0,
        };
        if let Err(reason) = consumer.carries(&form.model.config) {
            row.note = reason;
            rows.push(row);
            continue;
        }
        progress(form.path(), consumer.name);
        let start = Instant::now();
        let job = json!({
            "ask": asked.function,
            "path": path.to_string_lossy(),
            "chat": truth.chat.is_some().then(|| json!([{ "role": "user", "content": CHAT }])),
            "raw": RAW,
            "tokens": TOKENS,
            "context": CONTEXT,
        });
        let answer = python.ask::<Answers>(&job)?;
        row.seconds = start.elapsed().as_secs_f64();
        (row.outcome, row.note) = match answer {
            Ok(found) => {
                row.as_reference = Some(as_reference);
                judged(&judge, &truth, &found.answers, limit(form.weight_type()))?
            }
            Err(Fault::TimedOut) => {
                let seconds = usize::try_from(request.timeout.as_secs()).unwrap_or(usize::MAX);
                (Outcome::TimedOut, format!("no answer in {}", counted(seconds, "second")))
            }
            Err(Fault::Failed(said)) => (Outcome::Failed, said),
        };
        row.ok = row.outcome.is_ok();
        if row.outcome != Outcome::Same {
            row.as_reference = row.as_reference.map(|_| false);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Compares the texts of a program with the runner's.
fn judged(judge: &Judge, truth: &Truth, found: &Texts, limit: f64) -> Result<(Outcome, String)> {
    let mut pairs = vec![("raw", &truth.raw, &found.raw)];
    match (&truth.chat, &found.chat) {
        (Some(expected), Some(found)) => pairs.insert(0, ("chat", expected, found)),
        (Some(_), None) => return Ok((Outcome::Differs, "chat: found no text".to_owned())),
        (None, _) => (),
    }
    let (mut outcome, mut notes) = (Outcome::Same, Vec::new());
    for (name, expected, found) in pairs {
        match judge.compare(expected, found, limit)? {
            Verdict::Same => (),
            Verdict::Tie(gap) => {
                if outcome == Outcome::Same {
                    outcome = Outcome::NearTie;
                }
                notes.push(format!("{name}: other tokens, as likely but for {gap:.1e} of a logit"));
            }
            Verdict::Differs => {
                outcome = Outcome::Differs;
                let (own, other) = (&expected.generated.text, found.text());
                notes.push(format!("{name}: expected {own:?}, found {other:?}"));
            }
        }
    }
    Ok((outcome, notes.join("; ")))
}

/// The SHA-256 of a form's weights: of the file, or over the names and digests of a folder's files
/// in order.
///
/// # Errors
/// A file that cannot be read.
pub fn weights_digest(path: &Path) -> Result<String> {
    let of = |path: &Path| digest::of_file(path).map_err(|e| Error::io(path, e));
    if !path.is_dir() {
        return of(path);
    }
    let mut files = Vec::new();
    for entry in fs_err::read_dir(path).map_err(|e| Error::io(path, e))? {
        let file = entry.map_err(|e| Error::io(path, e))?.path();
        if file.extension().is_some_and(|e| e == "safetensors" || e == "bin") {
            files.push(file);
        }
    }
    files.sort();
    let mut lines = String::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        lines.push_str(&format!("{name} {}\n", of(&file)?));
    }
    Ok(digest::of_bytes(lines.as_bytes()))
}
