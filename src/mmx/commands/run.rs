//! `mmx run`: a prompt to streamed text, through mmx's own runner.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use mmx_converters::arch::Stretch;
use mmx_converters::chat;
use mmx_converters::model::generation::Generation as Defaults;
use mmx_converters::words::counted;
use mmx_ggml::run::{
    Finish, Generated, Generation, KvType, Sampling, Session, SessionOptions, generate_after,
    reusable,
};
use serde_json::json;

use crate::args::device::DeviceArgs;
use crate::args::tools::{self, ToolArgs};
use crate::args::values;
use crate::error::{Error, Result};
use crate::format;
use crate::talk::note;
use mmx_models::open::Form;
use mmx_rollout::tools::Tools;
use mmx_rollout::{Completion, Conversation, Draw, Limits};

/// Generate text from a prompt
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Without --raw the prompt is a user's message in the model's own chat template. Sampling settings that
are not given are the model's own (generation_config.json, general.sampling.* of a GGUF).

Examples:
  mmx run runs/sft/export/model-q4_0.gguf -p \"What is 7 + 5?\"
  mmx run model.gguf -p \"Once upon a time\" --raw -n 100 --temperature 0.8 --seed 1
  mmx run model.gguf -p \"What is 63 * 67?\" --tools tools.json
  mmx run hf:me/my-model-GGUF:q8_0 -p \"Hello\"
  echo \"Tell a story\" | mmx run runs/sft -p - --greedy --json")]
pub(crate) struct RunArgs {
    /// A checkpoint, a Transformers folder, a GGUF, hf:owner/name, ms:owner/name or ollama:NAME
    model: PathBuf,
    /// The prompt; - reads it from stdin
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Tokens to generate at most
    #[arg(short, value_name = "N", default_value_t = 512)]
    n: usize,
    /// Complete the prompt as it is, without chat template
    #[arg(long)]
    raw: bool,
    /// A system message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true)]
    system: Option<String>,
    /// Print the generated ids too
    #[arg(long)]
    ids: bool,
    /// Stop at this text, which is not printed; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    runner: RunnerArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    tools: ToolArgs,
}

/// The options that say how the runner computes.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct RunnerArgs {
    /// Threads; by default what suits the model's size
    #[arg(short, long, value_name = "N", value_parser = values::at_least_one, allow_negative_numbers = true)]
    threads: Option<usize>,
    /// Tokens the context holds; by default the model's own length, at most 4096
    #[arg(long, value_name = "N", value_parser = values::at_least_one, allow_negative_numbers = true)]
    ctx: Option<usize>,
    /// Element type of the keys and values that are kept; f32 rounds nothing, f16 is quicker
    #[arg(long, value_name = "TYPE", value_enum, default_value = "f16")]
    kv: Kv,
    /// Draft tokens at most where the text repeats itself (speculative decoding); the text stays
    /// the same. 0: none
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) speculate: usize,
    /// A longer context by stretched rotary positions: KIND:FACTOR or KIND:FACTOR:TRAINED with linear,
    /// ntk, yarn or (MiniMind2's families) llama3, TRAINED being the length of training in tokens, e.g.
    /// yarn:4:512
    #[arg(long, value_name = "SCALING")]
    pub(crate) rope_scaling: Option<Stretch>,
}

impl From<RunnerArgs> for SessionOptions {
    fn from(args: RunnerArgs) -> Self {
        Self { n_ctx: args.ctx, threads: args.threads, kv: args.kv.into() }
    }
}

/// Types of the cache on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kv {
    F32,
    F16,
}

impl From<Kv> for KvType {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F32 => Self::F32,
            Kv::F16 => Self::F16,
        }
    }
}

/// The options that say how ids are chosen.
#[derive(clap::Args, Debug)]
pub(crate) struct SamplingArgs {
    /// Always the most likely token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    greedy: bool,
    /// Divides the logits; 0 is --greedy
    #[arg(long, value_name = "X", value_parser = values::temperature, allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Only the N most likely tokens; 0: all
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Only the likeliest tokens that reach this probability together; 1: all
    #[arg(long, value_name = "X", value_parser = values::top_p, allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Only tokens of at least this share of the likeliest one's probability; 0: all
    #[arg(long, value_name = "X", value_parser = values::min_p, allow_negative_numbers = true)]
    min_p: Option<f64>,
    /// Makes tokens that were there already less likely; 1: off
    #[arg(long, value_name = "X", value_parser = values::factor, allow_negative_numbers = true)]
    repeat_penalty: Option<f64>,
    /// The same seed gives the same text; a new one each time unless given, or with -1
    #[arg(long, value_name = "N", value_parser = values::seed, allow_negative_numbers = true)]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The settings given, the model's own for the others.
    pub(crate) fn resolve(&self, defaults: &Defaults) -> Sampling {
        let seed = self.seed.unwrap_or_else(mmx_converters::random::random_seed);
        let own = Sampling::from_defaults(defaults, seed);
        let temperature = self.temperature.unwrap_or(own.temperature);
        Sampling {
            temperature: if self.greedy { 0.0 } else { temperature },
            top_k: self.top_k.unwrap_or(own.top_k),
            top_p: self.top_p.unwrap_or(own.top_p),
            min_p: self.min_p.unwrap_or(own.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(own.repeat_penalty),
            ..own
        }
    }
}

/// Runs it.
///
/// # Errors
/// A model that cannot be opened or lacks a tokenizer or template, settings without sense, a full
/// context.
pub(crate) fn run(args: RunArgs, as_json: bool) -> Result<()> {
    if args.raw && args.tools.is_some() {
        return Err(Error::usage(
            "--tools: expected no --raw beside it, for a chat template shows tools",
        ));
    }
    let tools = args.tools.open()?;
    let form = Form::open(&args.model)?.stretched(args.runner.rope_scaling);
    let model = args.device.load(&form)?;
    if model.gguf().metadata().get("tokenizer.ggml.model").is_none() {
        form.expect_tokenizer()?;
    }
    let tokenizer = model.tokenizer()?;
    let mut prompt = args.prompt.clone();
    if prompt == "-" {
        prompt.clear();
        std::io::stdin().read_to_string(&mut prompt).map_err(|e| Error::io("stdin", e))?;
    }
    let mut asked = None;
    let prompt_ids = if args.raw {
        tokenizer.encode_text(&prompt)?
    } else {
        if tokenizer.template().is_none() {
            return Err(Error::failed_with_hint(
                format!("{}: the model has no chat template", args.model.display()),
                "`--raw` completes the prompt as it is",
            ));
        }
        if tools.is_some() && !tokenizer.shows_tools() {
            return Err(Error::failed(format!(
                "{}: expected a chat template that shows tools, found one that does not",
                args.model.display()
            )));
        }
        let mut messages = Vec::new();
        if let Some(system) = &args.system {
            messages.push(chat::message("system", system));
        }
        messages.push(chat::message("user", &prompt));
        let mut options = chat::Options::generation();
        options.tools = tools.as_ref().map(Tools::shown);
        let rendered = tokenizer.encode_chat(&messages, &options)?;
        let thinking = rendered.text.trim_end().ends_with("<think>");
        asked = Some(Draw {
            sample: 0,
            task: Arc::default(),
            messages,
            options,
            thinking,
            text: rendered.text,
            full_len: rendered.ids.len(),
            prompt: rendered.ids.clone(),
        });
        rendered.ids
    };
    let defaults = Defaults::from_gguf_keys(model.gguf().metadata()).unwrap_or_default();
    let request = Generation {
        max_tokens: args.n,
        sampling: args.sampling.resolve(&defaults),
        stop: args.stop,
        ignore_end: false,
        speculate: args.runner.speculate,
    };
    let options = SessionOptions::from(args.runner);
    let mut session = Session::new(&model, options)?;

    let mut out = std::io::stdout().lock();
    let context = session.n_ctx();
    let limits = Limits { max_turns: MOST_TURNS, context, learn_stop: false, ..Limits::default() };
    let mut row = match (&tools, &asked) {
        (Some(tools), Some(draw)) => {
            Some(Conversation::new(tokenizer, draw, &limits, Some(tools), 0, 0))
        }
        _ => None,
    };
    let (mut prompt, mut held) = (prompt_ids, Vec::new());
    let generated = loop {
        let common = reusable(&held, &prompt);
        session.truncate(common);
        let (seen, rest) = prompt.split_at(common);
        // a reader that has gone away ends the generation
        let generated = generate_after(&mut session, seen, rest, &request, |text| {
            as_json || out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
        })?;
        let Some(row) = &mut row else { break generated };
        let told = row.written().calls.len();
        let next = row.push(completion(&generated))?;
        for called in &row.written().calls[told..] {
            note!("{}", tools::in_words(called));
        }
        match next {
            Some(next) if matches!(generated.finish, Finish::Stop | Finish::Length) => {
                held = generated.held;
                prompt = next.prompt;
            }
            _ => break generated,
        }
        if !as_json {
            out.write_all(b"\n").map_err(|e| Error::io("stdout", e))?;
        }
    };
    drop(out);
    let (prefill, decode) = (generated.prefill_tokens_per_s(), generated.decode_tokens_per_s());
    if as_json {
        let mut report = json!({
            "text": generated.text,
            "ids": generated.ids,
            "finish": finish_name(generated.finish),
            "prompt_tokens": generated.prompt_tokens,
            "tokens": generated.ids.len(),
            "prefill_tokens_per_s": prefill,
            "decode_tokens_per_s": decode,
            "seed": request.sampling.seed,
        });
        if let Some(row) = &row {
            report["turns"] = json!(row.written().turns);
            report["calls"] = row.written().calls.iter().map(tools::to_json).collect();
        }
        return format::print_json(&report);
    }
    format::print("\n")?;
    if args.ids {
        format::print(&format!("{:?}\n", generated.ids))?;
    }
    note!(
        "{} read at {prefill:.0}/s, {} written at {decode:.0}/s, {}, ended by {}",
        counted(generated.prompt_tokens, "token"),
        generated.ids.len(),
        counted(session.threads(), "thread"),
        finish_name(generated.finish)
    );
    Ok(())
}

/// Turns of an answer at most: each but the last one calls tools.
const MOST_TURNS: usize = 8;

/// A turn as a conversation takes it.
fn completion(generated: &Generated) -> Completion {
    let mut ids = generated.ids.clone();
    let finish = match generated.finish {
        Finish::Stop => {
            ids.push(0); // the end, which is not kept: the template writes its own
            mmx_rollout::Finish::Stop
        }
        Finish::Length | Finish::Context | Finish::Cancelled => mmx_rollout::Finish::Length,
    };
    Completion { logps: vec![0.0; ids.len()], ids, finish }
}

/// The reason for the end, as JSON spells it.
pub(crate) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Context => "context",
        Finish::Cancelled => "cancelled",
    }
}
