//! `mmx serve`: models over HTTP.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mmx_ggml::run::KvType;
use serde_json::json;

use crate::args::device::DeviceArgs;
use crate::args::values;
use crate::commands::run::Kv;
use crate::commands::serve_config::{Config, ServedConfig};
use crate::error::{Error, Result};
use crate::format;
use crate::talk::{note, says, warning};
use crate::terminal::Terminal;
use mmx_serve::{ModelOptions, Options, RequestLine, RequestLog};

/// Serve models: OpenAI's, Anthropic's and Ollama's APIs, and a web page to chat on
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The page is at the printed address; OpenAI's clients take it with /v1 as their base URL, Anthropic's
as it is, Ollama's as their host. Requests are computed together, --parallel at a time; more wait in
the queue, and beyond that get 429. Only this machine reaches the server unless --host says
otherwise.

Examples:
  mmx serve runs/sft/export/model-q4_0.gguf
  mmx serve small.gguf large.gguf --name small --name large --port 8000
  mmx serve model.gguf --host 0.0.0.0 --api-key secret --parallel 16 --ctx 2048
  mmx serve --config serve.toml --port 8000")]
pub(crate) struct ServeArgs {
    /// Checkpoints, Transformers folders or GGUFs
    #[arg(required_unless_present = "config", value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// The name a model is served under, in order; by default that of its file or folder
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// The address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// The port to listen on; 0: any that is free [default: 8080]
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Ask this key of every request, as a bearer token
    #[arg(long, value_name = "KEY", env = "MMX_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Texts of a model that are computed together [default: 8]
    #[arg(long, value_name = "N", value_parser = values::at_least_one, allow_negative_numbers = true)]
    parallel: Option<usize>,
    /// Tokens a text can have; by default the model's own length, at most 4096
    #[arg(long, value_name = "N", value_parser = values::at_least_one, allow_negative_numbers = true)]
    ctx: Option<usize>,
    /// Threads; by default what suits the model's size
    #[arg(short, long, value_name = "N", value_parser = values::at_least_one, allow_negative_numbers = true)]
    threads: Option<usize>,
    /// Element type of the keys and values that are kept; f32 rounds nothing, f16 is quicker
    /// [default: f16]
    #[arg(long, value_name = "TYPE", value_enum)]
    kv: Option<Kv>,
    /// Draft tokens at most where a text repeats itself and few are written (speculative decoding);
    /// the text stays the same. 0: none [default: 3]
    #[arg(long, value_name = "N")]
    speculate: Option<usize>,
    /// Texts that may wait; beyond, requests get 429 [default: 64]
    #[arg(long, value_name = "N", value_parser = values::at_least_one, allow_negative_numbers = true)]
    queue: Option<usize>,
    /// Bytes of a request's body [default: 1048576]
    #[arg(long, value_name = "BYTES", value_parser = values::at_least_one, allow_negative_numbers = true)]
    max_body: Option<usize>,
    /// Tokens written for one request at most [default: 4096]
    #[arg(long, value_name = "N", value_parser = values::at_least_one, allow_negative_numbers = true)]
    max_tokens: Option<usize>,
    /// Time for one request, waiting included [default: 600]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Let web pages of this origin use the server (* for all); may be repeated
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// Time for what is being written when the server is told to stop [default: 10]
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u64>,
    /// Let requests in that reach this machine by this name (* for any); may be repeated
    #[arg(long, value_name = "NAME")]
    allowed_host: Vec<String>,
    /// Memory of each model for texts whose place others took, MiB: a conversation that comes back
    /// is not read again. 0: none [default: 256]
    #[arg(long, value_name = "MIB")]
    prompt_cache: Option<usize>,
    /// Append a JSON object a line for each request to this file, or a line to stderr with `-`:
    /// time, path, status, model, tokens and seconds, nothing of what is asked and answered
    #[arg(long, value_name = "FILE")]
    request_log: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Settings, models and keys of this TOML file; options win over it, and models given here are
    /// served instead of its own
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// An origin as browsers send it: scheme and host, without a path; `null` is that of a page from a
/// file.
fn origin(given: &str) -> Result<String> {
    let origin = given.trim_end_matches('/');
    let whole = origin.split_once("://").is_some_and(|(scheme, host)| {
        let fits = |text: &str| {
            !text.is_empty() && !text.contains(|c: char| c == '/' || c.is_whitespace())
        };
        fits(scheme) && fits(host)
    });
    match whole || matches!(origin, "*" | "null") {
        true => Ok(origin.to_owned()),
        false => Err(Error::usage(format!(
            "--cors: expected an origin such as https://app.example, or *, found {given}"
        ))),
    }
}

/// The log of requests that is asked for; `-v` asks for lines on stderr.
///
/// # Errors
/// A file that cannot be opened.
fn request_log(path: Option<&Path>) -> Result<Option<RequestLog>> {
    let path = match path {
        Some(path) if path != "-" => path.to_owned(),
        None if !says(log::Level::Debug) => return Ok(None),
        _ => return Ok(Some(RequestLog::new(|line| eprintln!("{}", in_words(line))))),
    };
    let file = fs_err::OpenOptions::new().create(true).append(true).open(&path);
    let file = std::sync::Mutex::new((file.map_err(|e| Error::io(&path, e))?, false));
    Ok(Some(RequestLog::new(move |line| {
        let mut text = as_json(line).to_string();
        text.push('\n');
        let mut held = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (file, failed) = &mut *held;
        // a full disk stops no answer, and is told once
        if let Err(error) = file.write_all(text.as_bytes())
            && !std::mem::replace(failed, true)
        {
            warning!("{}: {error}: requests are not logged", path.display());
        }
    })))
}

fn as_json(line: &RequestLine) -> serde_json::Value {
    json!({
        "time": line.time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        "method": line.method,
        "path": line.path,
        "status": line.status,
        "model": line.model,
        "prompt_tokens": line.tokens.map(|(prompt, _)| prompt),
        "completion_tokens": line.tokens.map(|(_, completion)| completion),
        "began_s": rounded(line.began),
        "seconds": rounded(line.ended),
        "bytes": line.bytes,
        "whole": line.whole,
    })
}

/// Seconds to the tenth of a millisecond.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e4).round() / 1e4
}

fn in_words(line: &RequestLine) -> String {
    let time = line.time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let model = line.model.as_deref().map_or(String::new(), |model| format!(", {model}"));
    let tokens = line.tokens.map_or(String::new(), |(prompt, completion)| {
        format!(", {prompt} tokens in, {completion} out")
    });
    let cut = if line.whole { "" } else { ", the client left" };
    let RequestLine { method, path, status, ended, .. } = line;
    format!("{time} {method} {path} {status} in {ended:.3} s{model}{tokens}{cut}")
}

/// What is given on the command line, else in the file.
fn either<'a>(given: &'a [String], file: &'a [String]) -> &'a [String] {
    if given.is_empty() { file } else { given }
}

/// The models that are served: those of the command line, else those of the file.
///
/// # Errors
/// None at all, layers for the CPU.
fn models(args: &ServeArgs, file: Vec<ServedConfig>) -> Result<Vec<ModelOptions>> {
    let mut models = file;
    if !args.models.is_empty() {
        let names = args.name.iter().cloned().map(Some).chain(std::iter::repeat(None));
        let given = args.models.iter().cloned().zip(names);
        models = given.map(|(path, name)| ServedConfig::new(path, name)).collect();
    }
    if let (true, Some(path)) = (models.is_empty(), &args.config) {
        let path = path.display();
        return Err(Error::failed(format!("{path}: expected a model in [[models]], found none")));
    }
    let each = models.into_iter().map(|model| {
        Ok(ModelOptions {
            load: args.device.or(model.gpu_layers, model.device).load_options()?,
            path: model.path,
            name: model.name,
            aliases: model.aliases,
            parallel: args.parallel.or(model.parallel).unwrap_or(8),
            ctx: args.ctx.or(model.ctx),
            threads: args.threads.or(model.threads),
            kv: KvType::from(args.kv.or(model.kv).unwrap_or(Kv::F16)),
            speculate: args.speculate.or(model.speculate).unwrap_or(3),
            prompt_cache: args
                .prompt_cache
                .or(model.prompt_cache)
                .unwrap_or(256)
                .saturating_mul(1 << 20),
        })
    });
    each.collect()
}

/// Runs it.
///
/// # Errors
/// A file without sense, a model that cannot be opened, an address that cannot be had.
pub(crate) fn run(args: ServeArgs, as_json: bool) -> Result<()> {
    let mut config = match &args.config {
        Some(path) => Config::open(path)?,
        None => Config::default(),
    };
    if args.name.len() > args.models.len() {
        return Err(Error::usage(format!(
            "--name: expected at most one for each of {}, found {}",
            mmx_converters::words::counted(args.models.len(), "model"),
            args.name.len()
        )));
    }
    if args.name.iter().any(String::is_empty) {
        return Err(Error::usage("--name: expected a model's name, found none"));
    }
    if args.api_key.as_deref() == Some("") {
        return Err(Error::usage("--api-key: expected a key, found none"));
    }
    let allowed_host = |name: &String| match name.as_str() {
        "*" => Ok("*".to_owned()),
        name => mmx_serve::host_name(name).ok_or_else(|| {
            Error::usage(format!("--allowed-host: expected a name such as box.lan, found {name}"))
        }),
    };
    let allowed_hosts = either(&args.allowed_host, &config.allowed_host);
    let allowed_hosts = allowed_hosts.iter().map(allowed_host).collect::<Result<_>>()?;
    let cors = either(&args.cors, &config.cors);
    let cors = cors.iter().map(|given| origin(given)).collect::<Result<_>>()?;
    let keys = match (&args.api_key, &args.config) {
        (Some(key), _) => vec![mmx_serve::Key { key: key.clone(), models: None }],
        (None, Some(path)) => config.read_keys(path)?,
        (None, None) => Vec::new(),
    };
    let request_log = args.request_log.as_deref().or(config.request_log.as_deref());
    let request_log = self::request_log(request_log)?;
    let models = models(&args, std::mem::take(&mut config.models))?;
    let options = Options {
        listener: Arc::new(Terminal::default()),
        models,
        keys,
        host: args.host.or(config.host).unwrap_or_else(|| "127.0.0.1".to_owned()),
        port: args.port.or(config.port).unwrap_or(8080),
        queue: args.queue.or(config.queue).unwrap_or(64),
        max_body: args.max_body.or(config.max_body).unwrap_or(1 << 20),
        max_tokens: args.max_tokens.or(config.max_tokens).unwrap_or(4096),
        timeout: Duration::from_secs(args.timeout.or(config.timeout).unwrap_or(600)),
        cors,
        allowed_hosts,
        settings: mmx_serve::Settings { cors: "--cors", allowed_host: "--allowed-host" },
        grace: Duration::from_secs(args.grace.or(config.grace).unwrap_or(10)),
        request_log,
    };
    mmx_serve::run(options, |address, names| {
        let url = format!("http://{address}");
        note!("serving {} at {url}", names.join(", "));
        if as_json {
            // a reader that has gone does not stop the server
            let _ = format::print_json(&json!({"url": url, "models": names}));
        }
    })?;
    Ok(())
}
