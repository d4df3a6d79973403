//! `mmx eval`: how good a model is.

mod choose;
mod judged;
mod ranking;
mod show;
mod tasks;

use std::path::{Path, PathBuf};

use clap::Args;
use mmx_converters::arch::Stretch;
use mmx_ggml::run::SessionOptions;
use serde_json::json;

use crate::args::device::{self, DeviceArgs};
use crate::args::kinds;
use crate::args::tools::ToolArgs;
use crate::error::{Error, Result};
use crate::format;
use crate::talk::note;
use mmx_eval::choice::{self, Request};
use mmx_eval::perplexity::{self, Cut, Text};
use mmx_eval::report::{self, Report};
use mmx_eval::{Row, exact, interval};
use mmx_models::engines::{self, Kind};
use mmx_models::open::Form;

/// Length of a window where none is given, tokens: llama-perplexity's own.
const WINDOW: usize = 512;

/// Measure how good a model is
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx eval model-f16.gguf model-q8_0.gguf model-q4_0.gguf --ppl poems.txt --html report.html
  mmx eval model-q4_0.gguf --choice ceval cmmlu --shots 5 --json
  mmx eval runs/sft export/*.gguf --choice ARC-Easy-Test.jsonl --engine ggml --engine llama.cpp
  mmx eval model-q4_0.gguf --exact held-out.jsonl --min-accuracy 0.9
  mmx eval model-q4_0.gguf --tasks sums.jsonl --tools tools.json --reward reward.json
  mmx eval runs/sft runs/dpo openai:http://gpu7:8000#qwen --questions q.jsonl --judge openai:http://gpu7:8000#big --html r.html
  mmx eval model-f16.gguf --ppl book.txt --ctx 2048 --positions --rope-scaling yarn:4:512 --html positions.html

--ppl slides a window over the text: --ctx tokens at a time, moved by --stride, every token scored once. --chunks cuts it as
llama-perplexity does (chunks side by side, the second half of each scored), for numbers to compare with others'.
--choice compares likelihoods: of the letters after a prompt that lists the options, or of the answers' whole texts after one
that does not, as a sum, per character and per byte (lm-evaluation-harness' acc, acc_norm and acc_bytes). The benchmark is told by
its columns and subjects, and asked in the words of lm-evaluation-harness; other questions in the same layouts are asked both
ways, in Chinese where they have Chinese characters. --exact reads chats as SFT data has them; the last turn is the right answer, which
the model must write greedily. --tasks reads prompts with rewards (docs/rewards.md), answers each greedily, calling --tools
if there are some, and gives the mean reward and each of its parts. --questions asks every model the same; --judge compares
each pair of answers in both orders, and ranks the models by Bradley-Terry scores. Answers and verdicts are kept as they
come: the same command goes on where one was stopped, and asks nothing twice.")]
pub(crate) struct EvalArgs {
    /// Checkpoints, Transformers folders or GGUFs; others are compared with the first
    #[arg(required_unless_present = "write_judge_prompt", value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Perplexity and bits per byte of this text (a text file whole, or the texts of JSON Lines)
    #[arg(long, value_name = "FILE")]
    ppl: Option<PathBuf>,
    /// Multiple choice: C-Eval, CMMLU, A-CLUE, TMMLU+, ARC, OpenBookQA, PIQA, HellaSwag or
    /// Social-IQa as published (CSV, JSON Lines, a JSON array, Parquet); a folder stands for the
    /// split of each benchmark that is asked
    #[arg(long, value_name = "FILE", num_args = 1.., group = "asked")]
    choice: Vec<PathBuf>,
    /// Chats whose last turn is the one right answer
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ppl", "choice", "engines", "html"])]
    exact: Option<PathBuf>,
    /// Only these engines (repeatable); the runner, ggml, unless given
    #[arg(long = "engine", value_name = "ENGINE")]
    engines: Vec<kinds::Engine>,
    /// --ppl: tokens of a window; 512 or what the models hold unless given
    #[arg(long, value_name = "N", requires = "ppl")]
    ctx: Option<usize>,
    /// --ppl: tokens from window to window; half of one unless given
    #[arg(long, value_name = "N", requires = "ppl", conflicts_with = "chunks")]
    stride: Option<usize>,
    /// --ppl: chunks side by side, the second half scored, as llama-perplexity
    #[arg(long, requires = "ppl")]
    chunks: bool,
    /// --choice: compare letters, answers or both; each benchmark as lm-evaluation-harness does
    /// unless given
    #[arg(long, value_name = "WHAT", value_enum, requires = "choice")]
    by: Option<kinds::By>,
    /// --choice: questions with answers to put before each question of their subject
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "choice")]
    examples: Vec<PathBuf>,
    /// --choice: how many examples, the first of --examples, or of the benchmark's dev or train
    /// split beside the questions; 5 with --examples, otherwise none unless given
    #[arg(long, value_name = "N", requires = "choice")]
    shots: Option<usize>,
    /// --choice: text before all, in which {subject} stands for the subject's name; the benchmark's
    /// own unless given
    #[arg(long, value_name = "TEXT", requires = "choice", allow_hyphen_values = true)]
    preamble: Option<String>,
    /// --choice: ask in the model's chat template
    #[arg(long, requires = "choice")]
    chat: bool,
    /// --choice: write every question's log-likelihoods to this file (JSON Lines). --questions: keep
    /// the answers in it and go on with those that it holds; QUESTIONS.answers.jsonl in this folder
    /// unless given
    #[arg(long, value_name = "FILE", requires = "asked")]
    answers: Option<PathBuf>,
    /// Write a page with tables and plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// --exact: fail (exit code 1) below this share of right answers
    #[arg(long, value_name = "SHARE", requires = "exact")]
    min_accuracy: Option<f64>,
    /// Longest answer, tokens: 128 for --exact and --tasks, 1024 for --questions unless given
    #[arg(long, value_name = "N", value_parser = crate::args::values::at_least_one)]
    max_tokens: Option<usize>,
    /// --exact: wrong answers to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    show: usize,
    /// Threads
    #[arg(long, value_name = "N", value_parser = crate::args::values::at_least_one)]
    threads: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Tasks: prompts that are answered and rewarded (docs/rewards.md)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ppl", "choice", "exact", "engines", "html"])]
    tasks: Option<PathBuf>,
    /// --tasks: rewards for all of them, in addition to each one's own
    #[arg(long, value_name = "FILE", requires = "tasks")]
    reward: Option<PathBuf>,
    /// --tasks: turns of an answer at most; each but the last one calls tools
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = crate::args::values::at_least_one)]
    max_turns: usize,
    #[command(flatten)]
    tools: ToolArgs,
    /// --ppl: windows side by side, and the perplexity by position in them, to see where a model
    /// has no more use for what came before
    #[arg(long, requires = "ppl", conflicts_with_all = ["stride", "chunks"])]
    positions: bool,
    /// A longer context by stretched rotary positions: KIND:FACTOR or KIND:FACTOR:TRAINED with linear,
    /// ntk, yarn or (MiniMind2's families) llama3, TRAINED being the length of training in tokens, e.g.
    /// yarn:4:512
    #[arg(long, value_name = "SCALING")]
    rope_scaling: Option<Stretch>,
    #[command(flatten)]
    judged: judged::JudgedArgs,
}

impl EvalArgs {
    /// Tokens of an answer that is compared as text or rewarded, at most.
    fn max_tokens(&self) -> usize {
        self.max_tokens.unwrap_or(128)
    }
}

/// Runs it.
///
/// # Errors
/// An unreadable model, text or question, an output that is an input, settings that do not fit a
/// model, a share below the least one asked for.
pub(crate) fn run(args: EvalArgs, as_json: bool) -> Result<()> {
    if let Some(path) = &args.judged.write_judge_prompt {
        return judged::write_prompt(path, as_json);
    }
    if let Some(path) = &args.exact {
        return run_exact(&args, path, as_json);
    }
    if let Some(path) = &args.tasks {
        return tasks::run(&args, path, as_json);
    }
    if args.tools.is_some() {
        return Err(Error::usage("--tools: expected --tasks beside it, found none"));
    }
    if let Some(path) = &args.judged.questions {
        return judged::run(&args, path, as_json);
    }
    if args.ppl.is_none() && args.choice.is_empty() {
        return Err(Error::usage(
            "expected one of --ppl, --choice, --exact, --tasks and --questions, found none",
        ));
    }
    let text = args.ppl.as_deref().map(Text::read).transpose()?;
    let request = choose::request(&args)?;
    let forms: Vec<Form> =
        args.models.iter().map(|path| open(&args, path)).collect::<Result<_>>()?;
    for output in [&args.html, &args.answers].into_iter().flatten() {
        let texts = args.ppl.iter().chain(&args.choice).chain(&args.examples);
        let models = forms.iter().map(Form::path);
        mmx_converters::file::refuse_input(output, texts.map(PathBuf::as_path).chain(models))?;
    }
    let cut = text.as_ref().map(|_| cut(&args, &forms)).transpose()?;
    let names = names(&args.models);
    let mut rows = Vec::new();
    for (form, name) in forms.iter().zip(&names) {
        let asked: Vec<Kind> = args.engines.iter().map(|&engine| engine.into()).collect();
        for kind in kinds(form, &asked)? {
            let name = match args.engines.len() {
                0 | 1 => name.clone(),
                _ => format!("{name} ({})", kind.name()),
            };
            rows.push(measure(&args, form, name, kind, text.as_ref().zip(cut), request.as_ref())?);
        }
    }
    if let (Some(path), Some(request)) = (&args.answers, &request) {
        choose::write_answers(path, &rows, request)?;
    }
    let report = Report { rows: &rows, text: text.as_ref().zip(cut), choice: request.as_ref() };
    if let Some(path) = &args.html {
        report::write(&report, path)?;
        note!("{}: a page with tables and plots", path.display());
    }
    if as_json {
        return format::print_json(&show::to_json(&report));
    }
    format::print(&show::to_text(&report))
}

/// A model as it is measured.
fn open(args: &EvalArgs, path: &Path) -> Result<Form> {
    Ok(Form::open(path)?.stretched(args.rope_scaling))
}

/// The windows, which are the same for all models.
fn cut(args: &EvalArgs, forms: &[Form]) -> Result<Cut> {
    let most = forms.iter().map(|f| f.model.config.longest()).min().unwrap_or(WINDOW);
    let window = args.ctx.unwrap_or(WINDOW.min(most));
    // chunks need a token to score in their second half
    let least = if args.chunks { 3 } else { 2 };
    if window < least || window > most {
        return Err(Error::usage(format!(
            "--ctx: expected {least} to {most} tokens (what the models hold), found {window}"
        )));
    }
    if args.chunks {
        return Ok(Cut::Chunks { window });
    }
    if args.positions {
        return Ok(Cut::Positions { window });
    }
    let stride = args.stride.unwrap_or((window / 2).max(1));
    if stride == 0 || stride >= window {
        return Err(Error::usage(format!(
            "--stride: expected 1 to {} tokens (less than a window of {window}), found {stride}",
            window - 1
        )));
    }
    Ok(Cut::Sliding { window, stride })
}

/// The engines a form is measured in.
fn kinds(form: &Form, asked: &[Kind]) -> Result<Vec<Kind>> {
    if asked.is_empty() {
        return Ok(vec![Kind::Ggml]);
    }
    let able = form.engines();
    let kinds: Vec<Kind> = asked.iter().copied().filter(|kind| able.contains(kind)).collect();
    match kinds.is_empty() {
        true => Err(engines::none_of(asked, form).into()),
        false => Ok(kinds),
    }
}

/// What tables call the models: the last parts of their paths, or the paths where these are the
/// same.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let short = |path: &PathBuf| {
        let is_file = path.extension().is_some_and(|e| e == "gguf" || e == "pth");
        let name = if is_file { path.file_stem() } else { path.file_name() };
        name.map(|name| name.to_string_lossy().into_owned())
    };
    let all: Vec<Option<String>> = paths.iter().map(short).collect();
    let twice = (1..all.len()).any(|i| all[..i].contains(&all[i]));
    let name = |(path, short): (&PathBuf, Option<String>)| {
        short.filter(|_| !twice).unwrap_or_else(|| path.display().to_string())
    };
    paths.iter().zip(all.clone()).map(name).collect()
}

fn measure(
    args: &EvalArgs,
    form: &Form,
    name: String,
    kind: Kind,
    text: Option<(&Text, Cut)>,
    request: Option<&Request>,
) -> Result<Row> {
    let tokenizer = form.expect_tokenizer()?;
    let cores = mmx_ggml::cpus().min(mmx_ggml::MAX_THREADS);
    let threads = args.threads.unwrap_or(cores);
    let mut engine = engines::open_on(kind, form, threads, args.device.load_options()?)?;
    device::announce(engine.placement());
    let bar = indicatif::ProgressBar::new(0);
    let style = indicatif::ProgressStyle::with_template("{prefix} {bar:40} {pos}/{len} {eta}");
    bar.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()));
    bar.set_prefix(name.clone());
    let mut row = Row {
        path: form.path().to_owned(),
        name,
        engine: kind,
        ty: form.weight_type(),
        bytes: size_on_disk(form.path())?,
        perplexity: None,
        choice: None,
    };
    if let Some((text, cut)) = text {
        let bos = perplexity::leading_bos(&tokenizer);
        let mut progress = |done: usize, all: usize| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        };
        let engine = engine.as_mut();
        row.perplexity =
            Some(perplexity::perplexity(engine, &tokenizer, bos, text, cut, &mut progress)?);
    }
    if let Some(request) = request {
        bar.set_length(request.questions() as u64);
        let limit = form.model.config.longest();
        let mut progress = |done: usize| bar.set_position(done as u64);
        row.choice =
            Some(choice::score(engine.as_mut(), &tokenizer, request, limit, &mut progress)?);
    }
    bar.finish_and_clear();
    Ok(row)
}

/// Bytes of a file, or of the weights in a folder.
fn size_on_disk(path: &Path) -> Result<u64> {
    let size = |path: &Path| Ok(fs_err::metadata(path).map_err(|e| Error::io(path, e))?.len());
    if !path.is_dir() {
        return size(path);
    }
    let mut total = 0;
    for entry in fs_err::read_dir(path).map_err(|e| Error::io(path, e))?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            total += size(&path)?;
        }
    }
    Ok(total)
}

fn run_exact(args: &EvalArgs, path: &Path, as_json: bool) -> Result<()> {
    if let Some(share) = args.min_accuracy.filter(|share| !(0.0..=1.0).contains(share)) {
        return Err(Error::usage(format!(
            "--min-accuracy: expected a share from 0 to 1, found {share}"
        )));
    }
    let [model_path] = &args.models[..] else {
        return Err(Error::usage(format!(
            "--exact: expected one model, found {}",
            args.models.len()
        )));
    };
    let questions = exact::read_questions(path)?;
    let form = Form::open(model_path)?.stretched(args.rope_scaling);
    let tokenizer = form.expect_tokenizer()?;
    let model = args.device.load(&form)?;
    let options = SessionOptions { threads: args.threads, ..SessionOptions::default() };
    let answered = exact::answer_all(&model, &tokenizer, questions, args.max_tokens(), options)?;
    let n = answered.len();
    let wrong: Vec<_> = answered.iter().filter(|a| !a.is_right()).collect();
    let right = n - wrong.len();
    let share = right as f64 / n as f64;
    let (low, high) = interval(right, n);
    let name = model_path.display();
    if as_json {
        let shown: Vec<_> = wrong
            .iter()
            .take(args.show)
            .map(|a| json!({"line": a.question.line, "expected": a.question.answer, "found": a.found}))
            .collect();
        format::print_json(&json!({
            "model": model_path.to_string_lossy(), "questions": n, "right": right, "accuracy": share, "interval": [low, high],
            "wrong": shown,
        }))?;
    } else {
        println!(
            "{name}: {right} of {n} answers right, {:.1} % (95 % interval {:.1} to {:.1})",
            100.0 * share,
            100.0 * low,
            100.0 * high
        );
        for a in wrong.iter().take(args.show) {
            println!(
                "  line {}: expected {:?}, found {:?}",
                a.question.line, a.question.answer, a.found
            );
        }
    }
    match args.min_accuracy {
        Some(least) if share < least => Err(Error::failed(format!(
            "{name}: expected at least {:.1} % right answers, found {:.1} %",
            100.0 * least,
            100.0 * share
        ))),
        _ => Ok(()),
    }
}
