//! `mmx eval`: how good a model is.

use std::path::PathBuf;

use clap::Args;
use mmx_ggml::run::{LoadOptions, Model, SessionOptions};
use serde_json::json;

use crate::error::{Error, Result};
use crate::eval;
use crate::form::Form;

/// Measure how good a model is
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx eval model-q4_0.gguf --exact held-out.jsonl
  mmx eval runs/sft --exact held-out.jsonl --min-accuracy 0.9 --json

--exact reads chats as SFT data has them; the last turn is the right answer. The model answers greedily, and an answer
is right when it is the same text. The interval is Wilson's, 95 %.")]
pub struct EvalArgs {
    /// A checkpoint, a Transformers folder or a GGUF
    model: PathBuf,
    /// Chats whose last turn is the one right answer
    #[arg(long, value_name = "FILE")]
    exact: PathBuf,
    /// Fail (exit code 1) below this share of right answers
    #[arg(long, value_name = "SHARE")]
    min_accuracy: Option<f64>,
    /// Longest answer, tokens
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Wrong answers to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    show: usize,
    /// Threads
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Runs it.
///
/// # Errors
/// An unreadable model or file, a share below the least one asked for.
pub(super) fn run(args: EvalArgs, as_json: bool) -> Result<()> {
    let questions = eval::read_questions(&args.exact)?;
    let form = Form::open(&args.model)?;
    let tokenizer = form.expect_tokenizer()?;
    let model = Model::from_gguf(form.to_gguf()?, LoadOptions::default())?;
    let options = SessionOptions { threads: args.threads, ..SessionOptions::default() };
    let answered = eval::answer_all(&model, &tokenizer, questions, args.max_tokens, options)?;
    let n = answered.len();
    let wrong: Vec<_> = answered.iter().filter(|a| !a.is_right()).collect();
    let right = n - wrong.len();
    let share = right as f64 / n as f64;
    let (low, high) = eval::interval(right, n);
    let name = args.model.display();
    if as_json {
        let shown: Vec<_> = wrong
            .iter()
            .take(args.show)
            .map(|a| json!({"line": a.question.line, "expected": a.question.answer, "found": a.found}))
            .collect();
        println!(
            "{}",
            json!({"model": args.model, "questions": n, "right": right, "accuracy": share, "interval": [low, high], "wrong": shown})
        );
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
