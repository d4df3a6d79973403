//! `mmx verify`: the same ids through every form and engine, and the forms in the programs that open
//! them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mmx_converters::words::counted;
use serde_json::json;

use crate::args::kinds;
use crate::error::{Error, Result};
use crate::format::Clock;
use crate::talk::note;
use mmx_models::consumers::check;
use mmx_models::engines::Kind;
use mmx_models::live;
use mmx_models::verify::{Input, Report, Request, Step, verify};

/// Compare the logits of several forms of a model, in every engine that can open them
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx verify runs/sft export/hf-bf16 export/*.gguf
  mmx verify runs/sft model-q4_0.gguf --text poem.txt --json
  mmx verify model-f32.gguf model-f16.gguf --engine ggml --engine llama.cpp --tolerance 0.02
  mmx verify runs/sft export/hf-bf16 export/*.gguf --consumers --json > checks.json
  mmx verify runs/sft export/*.gguf --engine ollama:my-model --engine openai:http://127.0.0.1:8000

A row is ok when its largest difference (f32) or its mean KL divergence in nats (16 bits and blocks) is within the
limit for its type, and when the file's own tokenizer gives the same ids. Exit code 1 when a row is not.

A running server (Ollama, vLLM, llama-server, mmx serve) is asked for greedy text of 24 tokens, after a text and in a
chat; the reference follows it token by token. Its row has the probabilities that it returns against the reference's,
and the first token that the reference would not have taken. OLLAMA_HOST is Ollama's address, OPENAI_API_KEY a key.

--consumers asks the programs that are installed in a Python (Transformers, vLLM, llama-cpp-python, mistral.rs, MLX,
CTranslate2, ONNX Runtime and its GenAI) for greedy text of 24 tokens, after a chat and after a text, and compares it
with the runner's on the same file. Nothing is downloaded. `mmx export --card checks.json` puts the table into the
model cards.")]
pub(crate) struct VerifyArgs {
    /// The reference: a checkpoint, a Transformers folder or a GGUF
    reference: PathBuf,
    /// The forms to compare with it
    #[arg(required_unless_present_any = ["consumers", "engines"])]
    others: Vec<PathBuf>,
    /// Compare on this text, and give its perplexity
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ids", "tokens"])]
    text: Option<PathBuf>,
    /// Compare on these ids, and give their perplexity: a JSON array, or a safetensors file's
    /// `input_ids`
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    ids: Option<PathBuf>,
    /// Compare on at most so many tokens of a built-in text
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = crate::args::values::at_least_one)]
    tokens: usize,
    /// Only these engines (repeatable): native, ggml, llama.cpp; and running servers besides,
    /// ollama:NAME or openai:URL[#MODEL]
    #[arg(long = "engine", value_name = "ENGINE", value_parser = kinds::judged)]
    engines: Vec<kinds::Judged>,
    /// Largest absolute difference of a logit, in place of the limit for the type
    #[arg(long, value_name = "X")]
    tolerance: Option<f64>,
    /// Threads of the CPU engines
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::args::values::at_least_one)]
    threads: usize,
    /// Compare greedy text of the programs installed in a Python too, on the forms (on the reference
    /// where there are none)
    #[arg(long)]
    consumers: bool,
    /// The Python of --consumers
    #[arg(long, value_name = "PYTHON", default_value = "python3")]
    python: PathBuf,
    /// Seconds that each program of --consumers has for a form
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = crate::args::values::at_least_one)]
    consumer_timeout: usize,
}

/// Runs it.
///
/// # Errors
/// See [`verify`] and [`check`]; also when a row is not ok.
pub(crate) fn run(args: VerifyArgs, as_json: bool) -> Result<()> {
    if let Some(limit) = args.tolerance.filter(|limit| !(0.0..).contains(limit)) {
        return Err(Error::usage(format!("--tolerance: expected 0 or more, found {limit}")));
    }
    let input = match (&args.text, &args.ids) {
        (Some(path), _) => {
            let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
            if text.is_empty() {
                let path = path.display();
                return Err(Error::failed(format!("{path}: expected a text, found an empty file")));
            }
            Input::Text(text)
        }
        (None, Some(path)) => {
            Input::Ids { rows: crate::args::ids::read(path)?.rows, path: path.clone() }
        }
        (None, None) => Input::Sample(args.tokens),
    };
    let consumers = args.consumers.then(|| check::Request {
        python: args.python,
        timeout: Duration::from_secs(args.consumer_timeout as u64),
        threads: args.threads,
    });
    let (mut engines, mut servers) = (Vec::new(), Vec::new());
    for judged in args.engines {
        match judged {
            kinds::Judged::In(engine) => engines.push(Kind::from(engine)),
            kinds::Judged::At(name) => servers.push(name),
        }
    }
    if args.others.is_empty() && servers.is_empty() && consumers.is_none() {
        return Err(Error::usage(
            "OTHERS: expected forms to compare with the reference, or a server, found none",
        ));
    }
    let request = Request {
        reference: args.reference,
        others: args.others,
        engines,
        servers,
        input,
        tolerance: args.tolerance,
        threads: args.threads,
    };
    let mut clock = Clock::default();
    let report = verify(&request, &mut |path, step| {
        clock.start(match step {
            Step::Engine(kind) => format!("computing {} with {}", path.display(), kind.name()),
            Step::Server => format!("asking {}", path.display()),
        });
    })?;
    drop(clock);
    let checked = consumers.map(|asked| {
        check::check(&request.reference, &request.others, &asked, &mut |path, program| {
            note!("asking {program} for {}", path.display());
        })
    });
    let checked = checked.transpose()?;
    if as_json {
        let mut value = to_json(&report);
        if let Some(checked) = &checked {
            value["consumers"] = serde_json::to_value(checked)
                .map_err(|e| Error::failed(format!("the result as JSON: {e}")))?;
        }
        println!("{value}");
    } else {
        print_table(&report);
        if let Some(checked) = &checked {
            print_consumers(checked);
        }
    }
    refuse_bad(&report)?;
    checked.map_or(Ok(()), |checked| refuse_wrong(&checked))
}

/// An error when a program was wrong.
fn refuse_wrong(report: &check::Report) -> Result<()> {
    let wrong: Vec<_> = report.rows.iter().filter(|row| !row.ok).collect();
    match wrong.first() {
        None => Ok(()),
        Some(first) => Err(Error::failed(format!(
            "{} of {} with another text than mmx, or none: {} {} on {}, ...",
            wrong.len(),
            counted(report.rows.len(), "program"),
            first.consumer,
            first.version,
            first.path.display()
        ))),
    }
}

/// An error when a row is not ok.
pub(crate) fn refuse_bad(report: &Report) -> Result<()> {
    let bad = report.rows.iter().filter(|row| !row.ok).count();
    let bad = bad + report.live.iter().filter(|row| row.fault.is_some()).count();
    if bad > 0 {
        return Err(Error::failed(format!(
            "{bad} of {} {} beyond {} limit",
            counted(report.rows.len() + report.live.len(), "comparison"),
            if bad == 1 { "is" } else { "are" },
            if bad == 1 { "its" } else { "their" }
        )));
    }
    Ok(())
}

pub(crate) fn to_json(report: &Report) -> serde_json::Value {
    let rows: Vec<_> = report
        .rows
        .iter()
        .map(|row| {
            json!({
                "path": row.path.to_string_lossy(), // JSON is UTF-8
                "engine": row.engine.name(),
                "type": row.ty.name(),
                "max_abs_diff": row.difference.max_abs_diff,
                "mean_kl": row.difference.mean_kl,
                "top1_agreement": row.difference.top1_agreement,
                "ppl": row.ppl,
                "tokens_equal": row.tokens_equal,
                "measure": row.measure.name(),
                "tolerance": row.tolerance,
                "ok": row.ok,
            })
        })
        .chain(report.live.iter().map(live_json))
        .collect();
    json!({
        "reference": report.reference.0.to_string_lossy(),
        "reference_engine": report.reference.1.name(),
        "reference_ppl": report.reference_ppl,
        "tokens": report.tokens,
        "rows": rows,
        "ok": report.ok(),
    })
}

/// A server's row: the fields of a form's, and what only a server's has.
fn live_json(row: &live::Row) -> serde_json::Value {
    let first = row.first.as_ref().map(|first| {
        json!({
            "prompt": first.prompt,
            "position": first.position,
            "expected": first.expected,
            "found": first.found,
            "logit_gap": first.gap,
        })
    });
    json!({
        "path": row.server,
        "engine": row.kind,
        "type": row.ty,
        "max_abs_diff": row.max_abs_diff,
        "mean_kl": row.mean_kl,
        "top1_agreement": row.top1_agreement,
        "ppl": null,
        "tokens_equal": row.tokens_equal,
        "measure": row.measure.name(),
        "tolerance": row.tolerance,
        "ok": row.fault.is_none(),
        "tokens": row.tokens,
        "first_difference": first,
        "not_returned": row.not_returned,
    })
}

fn print_consumers(report: &check::Report) {
    let chat = report.chat.as_ref().map_or(String::new(), |chat| format!("the chat {chat:?} and "));
    println!(
        "\nprograms of {}: greedy, {} after {chat}the text {:?}\n",
        report.python.display(),
        counted(report.tokens, "token"),
        report.raw
    );
    let name = |row: &check::Row| {
        let name = row.path.file_name().map(|n| n.to_string_lossy().into_owned());
        name.unwrap_or_else(|| row.path.display().to_string())
    };
    let width = report.rows.iter().map(|r| name(r).chars().count()).max().unwrap_or(4).max(4);
    println!(
        "{:width$}  {:20}  {:9}  {:>7}  {:11}  as the reference",
        "form", "program", "version", "seconds", "result"
    );
    for row in &report.rows {
        let same = match row.as_reference {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        println!(
            "{:width$}  {:20}  {:9}  {:>7.1}  {:11}  {same}",
            name(row),
            row.consumer,
            row.version,
            row.seconds,
            row.outcome.words()
        );
        row.note.lines().for_each(|line| println!("{:width$}    {line}", ""));
    }
    if !report.not_installed.is_empty() {
        println!("\nnot installed: {}", report.not_installed.join(", "));
    }
}

pub(crate) fn print_table(report: &Report) {
    let (path, kind) = &report.reference;
    let ppl = |ppl: Option<f64>| ppl.map_or("-".to_owned(), |x| format!("{x:.3}"));
    // of the built-in text it would be read as the model's own
    let column = |text: &str| if report.sample { String::new() } else { format!("  {text:>8}") };
    let of_reference = match report.sample {
        true => String::new(),
        false => format!(", perplexity {}", ppl(report.reference_ppl)),
    };
    println!(
        "reference: {} with {}, {}{of_reference}\n",
        path.display(),
        kind.name(),
        counted(report.tokens, "token"),
    );
    let name = |path: &std::path::Path| {
        path.file_name()
            .map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
    };
    let names = report.rows.iter().map(|row| name(&row.path));
    let names = names.chain(report.live.iter().map(|row| row.server.clone()));
    let width = names.map(|name| name.chars().count()).max().unwrap_or(4).max(4);
    println!(
        "{:width$}  {:9}  {:5}  {:>9}  {:>9}  {:>6}{}  {:>6}  ok",
        "form",
        "engine",
        "type",
        "max diff",
        "mean KL",
        "top-1",
        column("ppl"),
        "ids"
    );
    for row in &report.rows {
        println!(
            "{:width$}  {:9}  {:5}  {:>9.2e}  {:>9.2e}  {:>5.1}%{}  {:>6}  {}",
            name(&row.path),
            row.engine.name(),
            row.ty.name(),
            row.difference.max_abs_diff,
            row.difference.mean_kl,
            100.0 * row.difference.top1_agreement,
            column(&ppl(row.ppl)),
            row.tokens_equal.map_or("-", |equal| if equal { "equal" } else { "DIFFER" }),
            row.fault().map_or("ok".to_owned(), |fault| format!("NO: {fault}")),
        );
        if let Some((at, expected, found)) = row.first_token {
            let id = |id: Option<u32>| id.map_or("none".to_owned(), |n| n.to_string());
            println!(
                "{:width$}  first differing id: position {at}, expected {}, found {}",
                "",
                id(expected),
                id(found)
            );
        }
    }
    for row in &report.live {
        let number = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.2e}"));
        println!(
            "{:width$}  {:9}  {:5}  {:>9}  {:>9}  {:>5.1}%{}  {:>6}  {}",
            row.server,
            row.kind,
            row.ty.as_deref().unwrap_or("-"),
            number(row.max_abs_diff),
            number(row.mean_kl),
            100.0 * row.top1_agreement,
            column("-"),
            row.tokens_equal.map_or("-", |equal| if equal { "equal" } else { "DIFFER" }),
            row.fault.as_ref().map_or("ok".to_owned(), |fault| format!("NO: {fault}")),
        );
        if let Some(first) = &row.first {
            println!(
                "{:width$}  first differing token: {} of the {}, expected {:?}, found {:?} ({:.1e} of a logit below)",
                "", first.position, first.prompt, first.expected, first.found, first.gap
            );
        }
        if !row.not_returned.is_empty() {
            println!("{:width$}  not returned: {}", "", row.not_returned.join("; "));
        }
    }
}
