//! `mmx data generate`: records made by asking a model.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use clap::{Args, ValueEnum};
use mmx_corpus::generate::{Generate, JUDGE_PROMPT, Mode, Sampling, missing_place};
use mmx_ggml::run::KvType;
use mmx_hub::chat::ChatServer;
use serde_json::json;

use super::out::{self, HowArgs};
use crate::args::asking::{Asked, AskingArgs};
use crate::args::device::DeviceArgs;
use crate::args::values;
use crate::error::{Error, Result};
use crate::format;
use crate::talk::note;
use crate::terminal::Terminal;

/// Make records by asking a model: answers to prompts, pairs that a judge compares, new instructions
///
/// Every answer is kept in OUT.journal as it comes: the same command goes on where one was stopped or
/// killed, and writes OUT once all are there. The journal is removed then.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx data generate prompts.jsonl --model openai:http://127.0.0.1:8000 --out distilled.jsonl
  mmx data generate prompts.jsonl --model runs/sft --mode pairs --judge openai:http://gpu7:8000/v1#judge --out pairs.jsonl
  mmx data generate seeds.jsonl --model hf:Qwen/Qwen3-0.6B --mode instructions --count 5000 --budget 10M --out new.jsonl

A record has key prompt (a text or turns), instruction and input, or a chat, whose last answer is
written anew; tools go along. OPENAI_API_KEY holds the key of a server that wants one.")]
pub(crate) struct GenerateArgs {
    /// Prompts; for --mode instructions the seeds
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    how: HowArgs,
    /// openai:URL[#NAME], any server that speaks OpenAI's interface; or any model that mmx opens
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// What is made
    #[arg(long, value_name = "MODE", default_value = "answers")]
    mode: ModeName,
    /// The model that compares two answers; --model unless given
    #[arg(long, value_name = "MODEL")]
    judge: Option<String>,
    /// What the judge is asked: a text with {question}, {first}, {second}; it ends with A, B
    /// or C in two pairs of square brackets
    #[arg(long, value_name = "FILE")]
    judge_prompt: Option<PathBuf>,
    /// New instructions to ask for
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// A system turn before prompts that have none
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Divides the logits; the server's own unless given
    #[arg(long, value_name = "X", value_parser = values::temperature)]
    temperature: Option<f64>,
    /// Only the likeliest tokens that reach this probability together
    #[arg(long, value_name = "X", value_parser = values::top_p)]
    top_p: Option<f64>,
    /// Tokens of an answer at most; answers cut off there are left out
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,
    /// The seed that each request's own comes from
    #[arg(long, value_name = "N", default_value_t = 1337)]
    seed: u64,
    #[command(flatten)]
    asking: AskingArgs,
    /// Tokens, prompts and answers together: what lies beyond is not asked for
    #[arg(long, value_name = "N", value_parser = super::mix::amount)]
    budget: Option<u64>,
    /// Leave out prompts whose requests failed for good, instead of an error
    #[arg(long)]
    skip_failed: bool,
    /// The file to write: .jsonl, packed with .gz or .zst behind it
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Replace a file that mmx did not write, or that was changed since
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum ModeName {
    /// a chat with the model's answer for each prompt
    Answers,
    /// two answers to each prompt, chosen and rejected by a judge
    Pairs,
    /// new instructions in the manner of seeds, with answers
    Instructions,
}

/// The server of a name; a model that mmx opens is served in a thread of this process.
fn server(name: &str, args: &GenerateArgs) -> Result<Asked> {
    let timeout = args.asking.timeout();
    let open =
        |address: &str, model: Option<&str>| Ok(Asked(ChatServer::open(address, model, timeout)?));
    if let Some(rest) = name.strip_prefix("openai:") {
        let (address, model) = rest.split_once('#').map_or((rest, None), |(a, m)| (a, Some(m)));
        return open(address, model.filter(|model| !model.is_empty()));
    }
    let address = serve(Path::new(name), args)?;
    open(&format!("http://{address}"), None)
}

fn serve(model: &Path, args: &GenerateArgs) -> Result<SocketAddr> {
    let model = mmx_serve::ModelOptions {
        path: model.to_owned(),
        name: None,
        aliases: Vec::new(),
        parallel: args.asking.parallel,
        load: args.device.load_options()?,
        ctx: None,
        threads: None,
        kv: KvType::F16,
        speculate: 0,
        prompt_cache: 64 << 20,
    };
    let options = mmx_serve::Options {
        models: vec![model],
        host: "127.0.0.1".to_owned(),
        port: 0,
        keys: Vec::new(),
        queue: 2 * args.asking.parallel,
        timeout: args.asking.timeout(),
        listener: Arc::new(Terminal::default()),
        max_body: 64 << 20,
        max_tokens: usize::try_from(args.max_tokens.unwrap_or(2048)).unwrap_or(usize::MAX),
        cors: Vec::new(),
        allowed_hosts: Vec::new(),
        settings: mmx_serve::Settings { cors: "", allowed_host: "" },
        grace: Duration::ZERO,
        request_log: None,
    };
    let (send, receive) = channel();
    let ready = send.clone();
    std::thread::spawn(move || {
        let ended = mmx_serve::run(options, |address, _| {
            let _ = ready.send(Ok(address));
        });
        if let Err(error) = ended {
            let _ = send.send(Err(error));
        }
    });
    let begun = receive.recv().map_err(|_| Error::failed("expected the model to be served"))?;
    Ok(begun?)
}

/// Runs it.
///
/// # Errors
/// Prompts that cannot be read, a server that cannot be reached, requests that failed for good.
pub(crate) fn run(args: &GenerateArgs, as_json: bool) -> Result<()> {
    mmx_corpus::writing::check_lines(&args.out)?;
    let judge_prompt = match &args.judge_prompt {
        Some(path) => fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?,
        None => JUDGE_PROMPT.to_owned(),
    };
    if let Some(place) = missing_place(&judge_prompt) {
        return Err(Error::failed(format!("--judge-prompt: expected {place} in it, found none")));
    }
    let reading = args.how.reading(&args.files)?;
    let claim = out::claim(&args.out, &reading.files, args.overwrite)?;
    if !claim.is_file() {
        return Err(Error::usage("--out: expected a file, whose journal lies beside it"));
    }
    let path = claim.path().to_owned();
    let journal = Generate::journal_of(&path);
    let chat = server(&args.model, args)?;
    let other = match args.judge.as_deref().filter(|_| args.mode == ModeName::Pairs) {
        Some(name) => Some(server(name, args)?),
        None => None,
    };
    let judge = other.as_ref().unwrap_or(&chat);
    let job = Generate {
        mode: match args.mode {
            ModeName::Answers => Mode::Answers,
            ModeName::Pairs => Mode::Pairs { judge_prompt },
            ModeName::Instructions => Mode::Instructions { count: args.count },
        },
        model: chat.0.model().to_owned(),
        judge: judge.0.model().to_owned(),
        system: args.system.clone(),
        sampling: Sampling {
            temperature: args.temperature,
            top_p: args.top_p,
            max_tokens: args.max_tokens,
            seed: args.seed,
        },
        parallel: args.asking.parallel,
        retries: args.asking.retries()?,
        budget: args.budget,
        skip_failed: args.skip_failed,
    };
    let made = claim.write(|output| job.run(&reading, (&chat, judge), &journal, output))?;
    fs_err::remove_file(&journal).map_err(|e| Error::io(&journal, e))?;
    let more = json!({
        "tokens": made.tokens, "requests": made.requests, "resumed": made.resumed,
        "beyond_budget": made.beyond_budget, "model": job.model,
    });
    out::show(&made.report, &path, more, as_json)?;
    if !as_json {
        let tokens = format::count(made.tokens as usize);
        note!("{} requests, {} of them before, {tokens} tokens", made.requests, made.resumed);
        if made.beyond_budget > 0 {
            note!("{} prompts lie beyond the budget", made.beyond_budget);
        }
    }
    Ok(())
}
