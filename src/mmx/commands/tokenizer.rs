//! `mmx tokenizer`: train a vocabulary, and look at what a tokenizer makes of a text or a chat.

mod eval;
mod extend;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use mmx_converters::chat::Options;
use mmx_converters::file;
use mmx_converters::gguf::Gguf;
use mmx_converters::manifest::Manifest;
use mmx_converters::model::folder;
use mmx_converters::tokenizer::train::{WordCounts, gb2312, train_with_alphabet};
use mmx_converters::tokenizer::{SpecialSet, TokenKind, Tokenizer};
use mmx_converters::words::counted;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::talk::{note, warning};
use mmx_data::{Fields, texts};

/// Train or extend a tokenizer, compare several, see what one makes of a text
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx tokenizer train --data text.jsonl --vocab-size 6400 --out tok
  mmx tokenizer show tok 'Hello, 世界!'
  mmx tokenizer show model.gguf --chat messages.json
  mmx tokenizer eval tok model.gguf --data held-out.jsonl")]
pub(crate) struct TokenizerArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Train(TrainArgs),
    Show(ShowArgs),
    Eval(eval::EvalArgs),
    Extend(extend::ExtendArgs),
}

/// Train a byte-level BPE vocabulary of exactly the size asked for
///
/// Writes tokenizer.json, tokenizer_config.json (with the chat template and the special tokens) and
/// chat_template.jinja. Memory does not grow with the data. The same data gives the same files.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx tokenizer train --data text.jsonl --vocab-size 6400 --out tok
  mmx tokenizer train --data a.jsonl b.txt --vocab-size 6400 --specials minimind2 --out tok
  mmx tokenizer train --data zh.jsonl --vocab-size 12800 --alphabet gb2312 --out tok")]
struct TrainArgs {
    /// JSON Lines (`text`, `conversations`, `chosen` and `rejected`) or plain text
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// Entries, special tokens and the 256 bytes included
    #[arg(long, value_name = "N")]
    vocab_size: usize,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Special tokens and chat template of this generation
    #[arg(long, value_name = "SET", default_value = "minimind3")]
    specials: Specials,
    /// Distinct words kept, MiB; beyond it rare words are sampled
    #[arg(long, value_name = "MIB", default_value_t = WordCounts::LIMIT_BYTES >> 20, value_parser = crate::args::values::at_least_one)]
    word_memory: usize,
    /// Replace a tokenizer in --out that mmx did not write, or that was changed since
    #[arg(long)]
    overwrite: bool,
    /// The data's key for one of the known names, such as text=content; repeatable
    #[arg(long, value_name = "NAME=KEY")]
    field: Vec<String>,
    /// Give every character of this text file a token, whatever the data holds; gb2312: the 3755
    /// common characters of simplified Chinese
    #[arg(long, value_name = "gb2312|FILE")]
    alphabet: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Specials {
    /// 3 special tokens; a system turn is always there
    Minimind2,
    /// 36 special tokens; tools and thinking
    Minimind3,
}

/// Show the ids and pieces of a text, or render a chat
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx tokenizer show tok 'Hello, 世界!'
  mmx tokenizer show model.gguf --chat messages.json

The chat is a JSON list of messages, or an object with `messages` and perhaps `tools`.")]
struct ShowArgs {
    /// A folder with tokenizer.json, a tokenizer.json, or a GGUF
    model: PathBuf,
    /// The text to encode
    #[arg(required_unless_present = "chat", conflicts_with = "chat", allow_hyphen_values = true)]
    text: Option<String>,
    /// Render the messages of this JSON file
    #[arg(long, value_name = "FILE")]
    chat: Option<PathBuf>,
    /// Read the names of control tokens in the text as plain text
    #[arg(long)]
    plain: bool,
}

/// Runs it.
///
/// # Errors
/// Unreadable data or model, too little text, a chat the template refuses, an unwritable folder.
pub(crate) fn run(args: TokenizerArgs, as_json: bool) -> Result<()> {
    match args.command {
        Command::Train(args) => run_train(&args, as_json),
        Command::Show(args) => run_show(&args, as_json),
        Command::Eval(args) => {
            let open = |path: &PathBuf| open(path);
            let tokenizers = args.models.iter().map(open).collect::<Result<Vec<_>>>()?;
            eval::run(&args, &tokenizers, as_json)
        }
        Command::Extend(args) => {
            let tokenizer = open(&args.model)?;
            let claim = claim(&args.out, &args.data, args.overwrite)?;
            extend::run(&args, &tokenizer, claim, as_json)
        }
    }
}

/// Opens the tokenizer of a folder, of a tokenizer.json, or in a GGUF; prints its warnings.
///
/// # Errors
/// No tokenizer there, or one mmx cannot use.
pub(crate) fn open(path: &Path) -> Result<Tokenizer> {
    let tokenizer = if path.extension().is_some_and(|e| e == "gguf") {
        Tokenizer::from_gguf(Gguf::open(path)?.metadata(), path)?
    } else {
        Tokenizer::open(path)?
    };
    for warning in &tokenizer.warnings {
        warning!("{warning}");
    }
    Ok(tokenizer)
}

fn run_train(args: &TrainArgs, as_json: bool) -> Result<()> {
    let specials = match args.specials {
        Specials::Minimind2 => SpecialSet::MiniMind2,
        Specials::Minimind3 => SpecialSet::MiniMind3,
    };
    let least = specials.tokens().len() + 256;
    if args.vocab_size < least {
        return Err(Error::failed(format!(
            "--vocab-size: expected at least {least} ({} special tokens and 256 bytes), found {}",
            specials.tokens().len(),
            args.vocab_size
        )));
    }
    let alphabet = args.alphabet.as_deref().map(characters).transpose()?.unwrap_or_default();
    let inputs: Vec<PathBuf> = args.data.iter().chain(&args.alphabet).cloned().collect();
    let mut manifest = claim(&args.out, &inputs, args.overwrite)?;
    /// Text kept to measure the new vocabulary on.
    const SAMPLE_BYTES: usize = 1 << 20;
    let mut counts = WordCounts::new(args.word_memory << 20).cutting_out(specials)?;
    let (mut texts_read, mut bytes_read, mut sample) = (0usize, 0usize, String::new());
    let fields = Fields::parse(&args.field)?;
    for path in &mmx_hub::resolve_data(&args.data)? {
        texts::for_each_batch(path, &fields, |batch| {
            counts.add(batch)?;
            texts_read += batch.len();
            bytes_read += batch.iter().map(String::len).sum::<usize>();
            for text in batch {
                if sample.len() + text.len() <= SAMPLE_BYTES {
                    sample.push_str(text);
                    sample.push('\n');
                }
            }
            Ok(())
        })?;
    }
    if counts.is_empty() {
        let files: Vec<String> = args.data.iter().map(|p| p.display().to_string()).collect();
        return Err(Error::failed(format!(
            "{}: expected text to train on, found none",
            files.join(", ")
        )));
    }
    let (words, sampled) = (counts.len(), counts.is_sampled());
    let tokenizer = train_with_alphabet(counts, args.vocab_size, specials, &alphabet)?;
    for warning in &tokenizer.warnings {
        warning!("{warning}");
    }
    tokenizer.save(&args.out)?;
    for path in folder::tokenizer_files(&args.out) {
        manifest.add(&path)?;
    }
    manifest.save()?;
    let tokens = tokenizer.encode(&sample)?.len();
    let bytes_per_token = sample.len() as f64 / tokens.max(1) as f64;
    if as_json {
        let report = json!({
            "path": args.out.to_string_lossy(), "vocab_size": tokenizer.vocab_size(), "texts": texts_read,
            "bytes": bytes_read, "distinct_words": words, "sampled": sampled,
            "bytes_per_token": bytes_per_token,
        });
        println!("{report}");
        return Ok(());
    }
    if sampled {
        note!("note: the text has too many distinct words to keep; rare ones were sampled");
    }
    println!(
        "{}: {} from {} ({}, {}); {bytes_per_token:.2} bytes per token",
        args.out.display(),
        counted(tokenizer.vocab_size(), "entry"),
        counted(texts_read, "text"),
        counted(bytes_read, "byte"),
        counted(words, "distinct word")
    );
    Ok(())
}

/// Refuses a folder that a tokenizer cannot be written to: with a model, or files of others.
fn claim(out: &Path, inputs: &[PathBuf], overwrite: bool) -> Result<Manifest> {
    for path in folder::tokenizer_places(out) {
        file::refuse_input(&path, inputs.iter().map(PathBuf::as_path))?;
    }
    let taken = ["config.json", "adapter_config.json"].map(|name| out.join(name));
    if let Some(found) = taken.iter().find(|path| path.exists()) {
        return Err(Error::failed_with_hint(
            format!("{}: expected a folder without a model, found one", found.display()),
            "a model's ids are those of its own tokenizer: give another --out",
        ));
    }
    let mut manifest = Manifest::open(out)?;
    for path in folder::tokenizer_places(out).filter(|_| !overwrite) {
        if !manifest.is_free(&path)? {
            return Err(Error::failed_with_hint(
                format!(
                    "{}: expected nothing, or what mmx wrote there, found a file that is not its own or was changed",
                    path.display()
                ),
                "--overwrite replaces it, another --out writes elsewhere",
            ));
        }
    }
    Ok(manifest)
}

/// The characters of an alphabet: those of a text file but for blanks, each once.
fn characters(path: &Path) -> Result<Vec<char>> {
    let text = match path.to_str() == Some("gb2312") && !path.exists() {
        true => return Ok(gb2312()),
        false => fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?,
    };
    let mut seen = std::collections::HashSet::new();
    let fresh = text.chars().filter(|c| !c.is_whitespace() && *c != '\u{feff}' && seen.insert(*c));
    let all: Vec<char> = fresh.collect();
    match all.is_empty() {
        true => Err(Error::failed(format!("{}: expected characters, found none", path.display()))),
        false => Ok(all),
    }
}

/// Messages and options of a chat file.
fn read_chat(path: &Path) -> Result<(Vec<Value>, Options)> {
    let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let fault = |what: String| Error::failed(format!("{}: {what}", path.display()));
    let value: Value =
        serde_json::from_str(&text).map_err(|e| fault(format!("expected JSON: {e}")))?;
    let mut options = Options::default();
    let messages = match value {
        Value::Array(messages) => messages,
        Value::Object(mut object) => {
            options.tools = object.remove("tools").filter(|tools| !tools.is_null());
            match object.remove("messages").or(object.remove("conversations")) {
                Some(Value::Array(messages)) => messages,
                Some(other) => {
                    return Err(fault(format!("key messages: expected a list, found {other}")));
                }
                None => return Err(fault("key messages: expected a list, found none".into())),
            }
        }
        _ => return Err(fault("expected a list of messages, or an object with messages".into())),
    };
    let answered = messages.last().is_some_and(|m| m["role"] == "assistant");
    options.add_generation_prompt = !answered;
    Ok((messages, options))
}

fn run_show(args: &ShowArgs, as_json: bool) -> Result<()> {
    let tokenizer = open(&args.model)?;
    let (text, ids) = match (&args.chat, &args.text) {
        (Some(path), _) => {
            let (messages, options) = read_chat(path)?;
            if options.tools.is_some() && !tokenizer.shows_tools() {
                note!(
                    "warning: {}: the chat template renders nothing of the tools",
                    tokenizer.path().display()
                );
            }
            let prompt = tokenizer.encode_chat(&messages, &options)?;
            (prompt.text, prompt.ids)
        }
        (None, Some(text)) if args.plain => (text.clone(), tokenizer.encode_plain(text)?),
        (None, Some(text)) => (text.clone(), tokenizer.encode_text(text)?),
        (None, None) => return Err(Error::usage("expected a text or --chat")),
    };
    let pieces: Vec<String> = ids.iter().map(|&id| piece(&tokenizer, id)).collect();
    if as_json {
        let report = json!({ "text": text, "tokens": ids.len(), "ids": ids, "pieces": pieces });
        println!("{report}");
        return Ok(());
    }
    if args.chat.is_some() {
        println!("{text}\n");
    }
    for (id, piece) in ids.iter().zip(&pieces) {
        let kind = match tokenizer.token_kind(*id) {
            Some(TokenKind::Control) => "  control",
            Some(TokenKind::UserDefined) => "  added",
            _ => "",
        };
        println!("{id:>6}  {piece}{kind}");
    }
    println!("{}, {}", counted(ids.len(), "token"), counted(text.len(), "byte"));
    Ok(())
}

/// The bytes of a token, readable: text in quotes, bytes that are no text as `\xE4`.
pub(crate) fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id);
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => {
            let escaped: String = bytes.iter().map(|b| format!("\\x{b:02X}")).collect();
            format!("\"{escaped}\"")
        }
    }
}
