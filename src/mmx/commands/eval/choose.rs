//! `mmx eval --choice`: which questions, which examples, and what is said of them.

use std::path::Path;

use mmx_eval::Row;
use mmx_eval::choice::Request;
use mmx_eval::prompt::{self, Style};
use mmx_eval::questions::{self, Role};
use serde_json::{Value, json};

use super::EvalArgs;
use crate::error::Result;
use crate::talk::note;

/// Examples where a file of them is given.
const SHOTS: usize = 5;

/// The questions and how they are asked, where some were given.
pub(super) fn request(args: &EvalArgs) -> Result<Option<Request>> {
    if args.choice.is_empty() {
        return Ok(None);
    }
    let found = questions::read(&args.choice, Role::Asked)?;
    let given = !args.examples.is_empty();
    let shots = args.shots.unwrap_or(if given { SHOTS } else { 0 });
    let examples = match (shots, given) {
        (0, _) => Vec::new(),
        (_, true) => questions::read(&args.examples, Role::Shown)?.subjects,
        (_, false) => questions::examples(&args.choice, &found.subjects)?,
    };
    let request = Request {
        subjects: found.subjects,
        examples,
        shots,
        by: args.by.map(|by| by.ways()).unwrap_or_default(),
        style: Style { preamble: args.preamble.clone(), chat: args.chat },
    };
    for benchmark in request.benchmarks() {
        note!("{}", request.describe(benchmark));
    }
    if let Some(first) = found.left_out.first() {
        let more = match found.left_out.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        note!("left out, no questions of a known layout: {}{more}", first.display());
    }
    Ok(Some(request))
}

/// A line for every question, way of asking and model.
pub(super) fn write_answers(path: &Path, rows: &[Row], request: &Request) -> Result<()> {
    let mut lines = String::new();
    for row in rows {
        for a in row.choice.iter().flat_map(|scores| &scores.answered) {
            let subject = &request.subjects[a.subject];
            let question = &subject.questions[a.question];
            let answers = prompt::answers(question, a.by);
            let chosen: serde_json::Map<String, Value> =
                a.chosen.iter().map(|(m, i)| (m.name().to_owned(), (*i).into())).collect();
            let object = json!({
                "model": row.path, "engine": row.engine.name(), "benchmark": subject.benchmark.name(),
                "subject": subject.name, "file": question.file, "line": question.line, "prompt": a.prompt,
                "answers": answers, "log_likelihoods": a.log_likelihoods, "right": question.right, "chosen": chosen,
            });
            lines.push_str(&object.to_string());
            lines.push('\n');
        }
    }
    Ok(mmx_converters::file::write_bytes(path, lines.as_bytes())?)
}
