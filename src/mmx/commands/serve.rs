//! `mmx serve`: models over HTTP.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mmx_ggml::run::KvType;
use serde_json::json;

use crate::args::device::DeviceArgs;
use crate::args::values;
use crate::commands::run::Kv;
use crate::error::{Error, Result};
use crate::format;
use crate::terminal::Terminal;
use mmx_serve::Options;

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
  mmx serve model.gguf --host 0.0.0.0 --api-key secret --parallel 16 --ctx 2048")]
pub(crate) struct ServeArgs {
    /// Checkpoints, Transformers folders or GGUFs
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// The name a model is served under, in order; by default that of its file or folder
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// The address to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// The port to listen on; 0: any that is free
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Ask this key of every request, as a bearer token
    #[arg(long, value_name = "KEY", env = "MMX_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Texts of a model that are computed together
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = values::at_least_one, allow_negative_numbers = true)]
    parallel: usize,
    /// Tokens a text can have; by default the model's own length, at most 4096
    #[arg(long, value_name = "N", value_parser = values::at_least_one, allow_negative_numbers = true)]
    ctx: Option<usize>,
    /// Threads; by default what suits the model's size
    #[arg(short, long, value_name = "N", value_parser = values::at_least_one, allow_negative_numbers = true)]
    threads: Option<usize>,
    /// Element type of the keys and values that are kept; f32 rounds nothing, f16 is quicker
    #[arg(long, value_name = "TYPE", value_enum, default_value = "f16")]
    kv: Kv,
    /// Draft tokens at most where a text repeats itself and few are written (speculative decoding);
    /// the text stays the same. 0: none
    #[arg(long, value_name = "N", default_value_t = 3)]
    speculate: usize,
    /// Texts that may wait; beyond, requests get 429
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = values::at_least_one, allow_negative_numbers = true)]
    queue: usize,
    /// Bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = values::at_least_one, allow_negative_numbers = true)]
    max_body: usize,
    /// Tokens written for one request at most
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = values::at_least_one, allow_negative_numbers = true)]
    max_tokens: usize,
    /// Time for one request, waiting included
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Let web pages of this origin use the server (* for all); may be repeated
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// Time for what is being written when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,
    /// Let requests in that reach this machine by this name (* for any); may be repeated
    #[arg(long, value_name = "NAME")]
    allowed_host: Vec<String>,
    /// Memory of each model for texts whose place others took, MiB: a conversation that comes back
    /// is not read again. 0: none
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    prompt_cache: usize,
    #[command(flatten)]
    device: DeviceArgs,
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

/// Runs it.
///
/// # Errors
/// A model that cannot be opened, an address that cannot be had.
pub(crate) fn run(args: ServeArgs, as_json: bool) -> Result<()> {
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
    let allowed_hosts = args.allowed_host.iter().map(allowed_host).collect::<Result<_>>()?;
    let cors = args.cors.iter().map(|given| origin(given)).collect::<Result<_>>()?;
    let names = args.name.into_iter().map(Some).chain(std::iter::repeat(None));
    let options = Options {
        listener: Arc::new(Terminal::default()),
        models: args.models.into_iter().zip(names).collect(),
        host: args.host,
        port: args.port,
        api_key: args.api_key,
        parallel: args.parallel,
        load: args.device.load_options()?,
        ctx: args.ctx,
        threads: args.threads,
        kv: KvType::from(args.kv),
        speculate: args.speculate,
        prompt_cache: args.prompt_cache.saturating_mul(1 << 20),
        queue: args.queue,
        max_body: args.max_body,
        max_tokens: args.max_tokens,
        timeout: Duration::from_secs(args.timeout),
        cors,
        allowed_hosts,
        settings: mmx_serve::Settings { cors: "--cors", allowed_host: "--allowed-host" },
        grace: Duration::from_secs(args.grace),
    };
    mmx_serve::run(options, |address, names| {
        let url = format!("http://{address}");
        eprintln!("serving {} at {url}", names.join(", "));
        if as_json {
            // a reader that has gone does not stop the server
            let _ = format::print_json(&json!({"url": url, "models": names}));
        }
    })?;
    Ok(())
}
