//! `mmx eval --questions`: several models' answers, compared by a judge.

use std::path::{Path, PathBuf};

use mmx_converters::{digest, file};
use mmx_data::asking::{Chat, JUDGE_PROMPT, missing_place};
use mmx_eval::judged::{self, Asking, Contestant, Failures, Judged, Judging, Local, Page, Store};
use mmx_ggml::run::SessionOptions;
use mmx_hub::chat::ChatServer;
use mmx_models::open::Form;
use mmx_models::speaker::Speaker;
use serde_json::json;

use super::{EvalArgs, ranking};
use crate::args::asking::{Asked, AskingArgs};
use crate::args::values;
use crate::error::{Error, Result};
use crate::format;
use crate::talk::{note, warning};

/// Tokens of an answer at most unless given. Source: FastChat's questions of MT-Bench.
const ANSWER: usize = 1024;
/// The seed of a judge, which draws nothing.
const JUDGE_SEED: u64 = 1;

/// The options about judged answers.
#[derive(clap::Args, Debug)]
pub(crate) struct JudgedArgs {
    /// Questions for all models, which may be servers besides: openai:URL[#MODEL], ollama:NAME.
    /// JSON Lines with question, prompt, turns or a chat, also with category and reference; or a
    /// text, a question a line
    #[arg(long, value_name = "FILE", group = "asked", conflicts_with_all = ["ppl", "choice", "exact", "tasks", "engines"])]
    pub(super) questions: Option<PathBuf>,
    /// --questions: the model that compares answers, a server or any that mmx opens
    #[arg(long, value_name = "MODEL", requires = "questions")]
    judge: Option<String>,
    /// --judge: what it is asked, a text with {question}, {first}, {second} and {reference}, whose
    /// answer ends with A, B or C in two pairs of square brackets
    #[arg(long, value_name = "FILE", requires = "judge")]
    judge_prompt: Option<PathBuf>,
    /// Write the judge's usual prompt to a file, to be edited, and end
    #[arg(long, value_name = "FILE", conflicts_with_all = ["models", "questions"])]
    pub(super) write_judge_prompt: Option<PathBuf>,
    /// --judge: tokens of its words at most
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = values::at_least_one)]
    judge_tokens: usize,
    /// --judge: keep its words in this file (JSON Lines) and go on with it; beside the answers,
    /// .verdicts.jsonl, unless given
    #[arg(long, value_name = "FILE", requires = "judge")]
    verdicts: Option<PathBuf>,
    /// --questions: answer them, and compare nothing
    #[arg(long, requires = "questions", conflicts_with = "judge")]
    answers_only: bool,
    /// --questions: a system turn before those that have none
    #[arg(long, value_name = "TEXT", requires = "questions", allow_hyphen_values = true)]
    system: Option<String>,
    /// --questions: divides the logits; 0: the likeliest token each time
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = values::temperature)]
    temperature: f64,
    /// --questions: the seed of draws
    #[arg(long, value_name = "N", default_value_t = 1337)]
    seed: u64,
    /// --questions: leave out what servers refuse for good, instead of an error
    #[arg(long, requires = "questions")]
    skip_failed: bool,
    #[command(flatten)]
    asking: AskingArgs,
}

/// A model that can be asked, not loaded yet.
struct Named {
    contestant: Contestant,
    kind: Kind,
}

enum Kind {
    Server(Asked),
    Local(Box<Form>),
}

/// Writes the judge's usual prompt.
///
/// # Errors
/// A file that is there already.
pub(super) fn write_prompt(path: &Path, as_json: bool) -> Result<()> {
    if path.exists() {
        let path = path.display();
        return Err(Error::failed(format!("{path}: expected no file there, found one")));
    }
    file::write_bytes(path, JUDGE_PROMPT.as_bytes())?;
    note!("{}: the judge's prompt, for --judge-prompt once it is edited", path.display());
    match as_json {
        true => format::print_json(&json!({ "judge_prompt": path.to_string_lossy() })),
        false => Ok(()),
    }
}

/// Runs it.
///
/// # Errors
/// Questions that cannot be read, models that cannot be opened, requests that failed for good.
pub(super) fn run(args: &EvalArgs, path: &Path, as_json: bool) -> Result<()> {
    let own = &args.judged;
    if own.judge.is_none() && !own.answers_only {
        return Err(Error::usage("--questions: expected --judge or --answers-only, found neither"));
    }
    if own.judge.is_some() && args.models.len() < 2 {
        return Err(Error::usage("--judge: expected at least two models, found one"));
    }
    let template = template(own)?;
    let questions = judged::read(path, own.system.as_deref())?;
    let (answers_file, verdicts_file) = files(args, path);
    let inputs = args.models.iter().chain(&own.judge_prompt).map(PathBuf::as_path);
    let inputs: Vec<&Path> = inputs.chain([path]).collect();
    let outputs = [Some(&answers_file), Some(&verdicts_file), args.html.as_ref()];
    for output in outputs.into_iter().flatten() {
        file::refuse_input(output, inputs.iter().copied())?;
    }
    let same = |other: &Path| args.html.as_deref() == Some(other);
    if answers_file == verdicts_file || same(&answers_file) || same(&verdicts_file) {
        return Err(Error::usage(
            "expected a file each for answers, verdicts and page, found one for two",
        ));
    }
    let named = contestants(args)?;
    let contestants: Vec<Contestant> = named.iter().map(|n| n.contestant.clone()).collect();
    let retries = own.asking.retries()?;
    let asking = Asking {
        questions: &questions,
        max_tokens: args.max_tokens.unwrap_or(ANSWER),
        temperature: own.temperature,
        seed: own.seed,
        retries,
    };
    let store = Store::open(&answers_file, "answer")?;
    for model in &named {
        let missing = asking.missing(&model.contestant, &store)?;
        if missing > 0 {
            let bar = bar(&model.contestant.name, missing);
            let (chat, parallel) = open(args, &model.kind)?;
            let done = || bar.inc(1);
            let failures = asking.ask(&model.contestant, chat.get(), parallel, &store, &done)?;
            bar.finish_and_clear();
            tell(&failures, own.skip_failed)?;
        }
    }
    let (answers, lines) = asking.collect(&contestants, &store)?;
    store.finish(lines)?;
    note!("{}: the answers", answers_file.display());

    let mut found = None;
    if let Some(name) = &own.judge {
        let judge = self::named(args, name)?;
        let judging = Judging {
            questions: &questions,
            contestants: &contestants,
            answers: &answers,
            judge: &judge.contestant,
            template: &template,
            max_tokens: own.judge_tokens,
            seed: JUDGE_SEED,
            retries,
        };
        let store = Store::open(&verdicts_file, "words")?;
        let missing = judging.missing(&store)?;
        if missing > 0 {
            let bar = bar("judge", missing);
            let (chat, parallel) = open(args, &judge.kind)?;
            let failures = judging.ask(chat.get(), parallel, &store, &|| bar.inc(1))?;
            bar.finish_and_clear();
            tell(&failures, own.skip_failed)?;
        }
        let (pairs, lines) = judging.collect(&store)?;
        store.finish(lines)?;
        note!("{}: the verdicts", verdicts_file.display());
        let tally = judged::tally(contestants.len(), &questions, &pairs);
        found = Some((judge.contestant.name, pairs, tally));
    }
    let judged = found.as_ref().map(|(judge, pairs, tally)| Judged { judge, pairs, tally });
    let page = Page { questions: &questions, contestants: &contestants, answers: &answers, judged };
    if let Some(path) = &args.html {
        file::write_bytes(path, judged::html(&page).as_bytes())?;
        note!("{}: a page with all answers", path.display());
    }
    if as_json {
        let verdicts = own.judge.as_ref().map(|_| verdicts_file.as_path());
        return format::print_json(&ranking::to_json(&page, &args.models, &answers_file, verdicts));
    }
    format::print(&ranking::to_text(&page))
}

/// What the judge is asked.
fn template(own: &JudgedArgs) -> Result<String> {
    let Some(path) = &own.judge_prompt else { return Ok(JUDGE_PROMPT.to_owned()) };
    let template = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
    match missing_place(&template) {
        None => Ok(template),
        Some(place) => {
            let path = path.display();
            Err(Error::failed(format!(
                "{path}: expected {place} in the judge's prompt, found none"
            )))
        }
    }
}

/// The files of answers and of verdicts: in this folder, named after the questions, unless given.
fn files(args: &EvalArgs, questions: &Path) -> (PathBuf, PathBuf) {
    let stem = |path: &Path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let name =
            [".gz", ".zst"].iter().fold(name.as_str(), |n, end| n.strip_suffix(end).unwrap_or(n));
        let name = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        name.strip_suffix(".answers").unwrap_or(name).to_owned()
    };
    let answers = args.answers.clone();
    let answers =
        answers.unwrap_or_else(|| PathBuf::from(format!("{}.answers.jsonl", stem(questions))));
    let verdicts = args.judged.verdicts.clone();
    let beside = || answers.with_file_name(format!("{}.verdicts.jsonl", stem(&answers)));
    let verdicts = verdicts.unwrap_or_else(beside);
    (answers, verdicts)
}

/// All models by their short names, or by those given where two would share one.
fn contestants(args: &EvalArgs) -> Result<Vec<Named>> {
    let given: Vec<String> = args.models.iter().map(|m| m.to_string_lossy().into_owned()).collect();
    if let Some(twice) = (1..given.len()).find(|&i| given[..i].contains(&given[i])) {
        let model = &given[twice];
        return Err(Error::usage(format!("expected each model once, found {model} twice")));
    }
    let mut all: Vec<Named> = given.iter().map(|name| named(args, name)).collect::<Result<_>>()?;
    let name = |i: usize, all: &[Named]| all[i].contestant.name.clone();
    if (1..all.len()).any(|i| (0..i).any(|j| name(i, &all) == name(j, &all))) {
        all.iter_mut().zip(given).for_each(|(named, given)| named.contestant.name = given);
    }
    Ok(all)
}

/// The model of a name: a server, or one that mmx opens.
fn named(args: &EvalArgs, given: &str) -> Result<Named> {
    if let Some(server) = ChatServer::named(given, args.judged.asking.timeout()) {
        let server = server?;
        let name = server.model().to_owned();
        let identity = format!("{}#{name}", given.split('#').next().unwrap_or(given));
        let contestant = Contestant { name, identity };
        return Ok(Named { contestant, kind: Kind::Server(Asked(server)) });
    }
    let path = Path::new(given);
    let form = super::open(args, path)?;
    let name = super::names(std::slice::from_ref(&path.to_owned())).remove(0);
    let stretch = args.rope_scaling.map(|stretch| format!("{stretch:?}"));
    let identity = format!("{}{}", digest_of(form.path())?, stretch.unwrap_or_default());
    Ok(Named { contestant: Contestant { name, identity }, kind: Kind::Local(Box::new(form)) })
}

/// The digest of a model's files: of a folder all that it is read from, of a file those beside it
/// too, where it holds no tokenizer itself.
fn digest_of(path: &Path) -> Result<String> {
    const READ: [&str; 7] = ["json", "jinja", "safetensors", "bin", "pth", "pt", "gguf"];
    const BESIDE: [&str; 4] =
        ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
    let mut files: Vec<PathBuf> = Vec::new();
    if path.is_dir() {
        for entry in fs_err::read_dir(path).map_err(|e| Error::io(path, e))? {
            let file = entry.map_err(|e| Error::io(path, e))?.path();
            let ending = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
            if file.is_file() && READ.contains(&ending) {
                files.push(file);
            }
        }
        files.sort();
    } else {
        files.push(path.to_owned());
        if path.extension().is_none_or(|e| e != "gguf") {
            let beside = BESIDE.iter().map(|name| path.with_file_name(name));
            files.extend(beside.filter(|file| file.is_file()));
        }
    }
    let digests = files.iter().map(|file| {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
        // what the one file of a model is called does not matter
        let name = name.filter(|_| file != path).unwrap_or_default();
        Ok(format!("{name} {}\n", digest::of_file(file).map_err(|e| Error::io(file, e))?))
    });
    Ok(digest::of_bytes(digests.collect::<Result<String>>()?.as_bytes()))
}

/// A model that answers now.
enum Opened<'a> {
    Server(&'a Asked),
    Local(Box<Local>),
}

impl Opened<'_> {
    fn get(&self) -> &dyn Chat {
        match self {
            Self::Server(server) => *server,
            Self::Local(local) => local.as_ref(),
        }
    }
}

/// Loads a model where it is one of this machine; with the requests that it answers at once.
fn open<'a>(args: &EvalArgs, kind: &'a Kind) -> Result<(Opened<'a>, usize)> {
    match kind {
        Kind::Server(server) => Ok((Opened::Server(server), args.judged.asking.parallel)),
        Kind::Local(form) => {
            form.model.warnings.iter().for_each(|warning| warning!("{warning}"));
            let session = SessionOptions { threads: args.threads, ..SessionOptions::default() };
            let speaker = Speaker::with(form, args.device.load_options()?, session)?;
            Ok((Opened::Local(Box::new(Local::new(speaker))), 1))
        }
    }
}

/// Tells what was not answered, which is an error unless it may be left out.
fn tell(failures: &Failures, skip: bool) -> Result<()> {
    failures.check(skip)?;
    for (what, why) in &failures.failed {
        warning!("{what} was not answered: {why}");
    }
    Ok(())
}

fn bar(name: &str, length: usize) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new(length as u64);
    let style = indicatif::ProgressStyle::with_template("{prefix} {bar:40} {pos}/{len} {eta}");
    bar.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()));
    bar.set_prefix(name.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_digest_depends_on_its_bytes_and_not_on_its_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let [a, b, c] = ["a.gguf", "b.gguf", "c.gguf"].map(|name| dir.path().join(name));
        for (path, text) in [(&a, "1"), (&b, "1"), (&c, "2")] {
            fs_err::write(path, text).expect("a file");
        }
        let digest = |path: &Path| digest_of(path).expect("a digest");
        assert_eq!(digest(&a), digest(&b));
        assert_ne!(digest(&a), digest(&c));
        let before = digest(dir.path());
        fs_err::write(dir.path().join("config.json"), "{}").expect("a file");
        assert_ne!(digest(dir.path()), before);
    }
}
