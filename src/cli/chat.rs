//! `mmx chat`: a conversation in the terminal.

use std::collections::VecDeque;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use mmx_converters::chat;
use mmx_converters::generation::Generation as Defaults;
use mmx_ggml::run::{
    Finish, Generated, Generation, LoadOptions, Model, Sampling, Session, SessionOptions,
    generate_after,
};
use rustyline::error::ReadlineError;
use serde_json::{Map, Value, json};

use super::format;
use super::run::{RunnerArgs, SamplingArgs, finish_name};
use crate::answer::{Piece, Splitter};
use crate::error::{Error, Result};
use crate::form::Form;

/// Chat with a model
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Ctrl-C stops an answer; Ctrl-D or /exit leaves; /reset forgets the conversation; a line that ends with \\
goes on in the next one. Without a terminal each line of stdin is a message. Thoughts are dimmed. What was read stays
computed, so a turn costs only its own tokens.

Examples:
  mmx chat runs/sft/export/model-q4_0.gguf
  mmx chat model.gguf --system \"Answer in one sentence.\" --history talk.json
  printf 'hello\\nand you?\\n' | mmx chat model.gguf --greedy")]
pub struct ChatArgs {
    /// A checkpoint, a Transformers folder or a GGUF
    model: PathBuf,
    /// A system message before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most
    #[arg(short, value_name = "N", default_value_t = 1024)]
    n: usize,
    /// When the context is full: forget the oldest turns, or stop
    #[arg(long, value_name = "HOW", value_enum, default_value = "shift")]
    when_full: WhenFull,
    /// Go on with the conversation in this file, and keep it there (a JSON list of messages)
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Let the model think before it answers, if its template can ask for that
    #[arg(long)]
    think: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    runner: RunnerArgs,
}

/// What to do when the context is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum WhenFull {
    Shift,
    Stop,
}

/// An answer is being written: Ctrl-C ends it, and the program otherwise.
static ANSWERING: AtomicBool = AtomicBool::new(false);
/// Ctrl-C came while an answer was being written.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Runs it.
///
/// # Errors
/// A model that cannot be opened or has no template, a history that is none, a full context with
/// `--when-full stop`.
pub(super) fn run(args: ChatArgs, as_json: bool) -> Result<()> {
    ctrlc::set_handler(|| {
        if ANSWERING.load(Ordering::SeqCst) {
            STOPPED.store(true, Ordering::SeqCst);
        } else {
            std::process::exit(130); // as a shell counts it
        }
    })
    .map_err(|e| Error::failed(format!("Ctrl-C cannot be caught: {e}")))?;
    let mut talk = Talk::open(&args)?;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && !as_json;
    let screen = Screen { quiet: as_json, dim: terminal && std::env::var_os("NO_COLOR").is_none() };
    if terminal {
        eprintln!("Ctrl-C stops an answer, Ctrl-D leaves, /help helps");
    }
    let mut input = Input::new(terminal)?;
    let mut turns = Vec::new();
    while let Some(line) = input.next()? {
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" => break,
            "/reset" => {
                talk.reset();
                talk.save(args.history.as_deref())?;
                eprintln!("the conversation is forgotten");
                continue;
            }
            "/help" => {
                eprintln!("/reset forgets the conversation, /exit leaves");
                continue;
            }
            _ => {}
        }
        let generated = talk.answer(&line, &screen)?;
        talk.save(args.history.as_deref())?;
        if terminal {
            eprintln!("{}", figures(&generated));
        }
        turns.push(json!({
            "text": talk.last(),
            "finish": finish_name(generated.finish),
            "prompt_tokens": generated.prompt_tokens,
            "tokens": generated.ids.len(),
            "prefill_tokens_per_s": generated.prefill_tokens_per_s(),
            "decode_tokens_per_s": generated.decode_tokens_per_s(),
        }));
    }
    if as_json {
        return format::print_json(&json!({"messages": talk.messages, "turns": turns}));
    }
    Ok(())
}

fn figures(g: &Generated) -> String {
    let how = match g.finish {
        Finish::Stop => "",
        Finish::Length => ", cut at -n",
        Finish::Context => ", cut: the context is full",
        Finish::Cancelled => ", stopped",
    };
    format!(
        "[{} tokens read at {:.0}/s, {} written at {:.0}/s{how}]",
        g.prompt_tokens,
        g.prefill_tokens_per_s(),
        g.ids.len(),
        g.decode_tokens_per_s()
    )
}

/// Where messages come from.
enum Input {
    Editor(Box<rustyline::DefaultEditor>),
    Lines(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Input {
    fn new(terminal: bool) -> Result<Self> {
        if !terminal {
            return Ok(Self::Lines(std::io::stdin().lock().lines()));
        }
        let editor = rustyline::DefaultEditor::new()
            .map_err(|e| Error::failed(format!("the terminal: {e}")))?;
        Ok(Self::Editor(Box::new(editor)))
    }

    /// One message; nothing at the end.
    fn next(&mut self) -> Result<Option<String>> {
        let mut text = String::new();
        loop {
            let prompt = if text.is_empty() { "> " } else { ". " };
            let line = match self {
                Self::Lines(lines) => match lines.next() {
                    None => return Ok((!text.is_empty()).then_some(text)),
                    Some(line) => line.map_err(|e| Error::io("stdin", e))?,
                },
                Self::Editor(editor) => match editor.readline(prompt) {
                    Ok(line) => {
                        // a line that cannot be remembered is no reason to stop
                        let _ = editor.add_history_entry(line.as_str());
                        line
                    }
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(ReadlineError::Interrupted) => {
                        text.clear();
                        continue;
                    }
                    Err(error) => return Err(Error::failed(format!("the terminal: {error}"))),
                },
            };
            match line.strip_suffix('\\') {
                Some(part) => {
                    text.push_str(part);
                    text.push('\n');
                }
                None => {
                    text.push_str(&line);
                    return Ok(Some(text));
                }
            }
        }
    }
}

/// Where answers go.
struct Screen {
    quiet: bool,
    dim: bool,
}

impl Screen {
    /// Shows pieces; false when nobody reads any more.
    fn show(&self, pieces: &[Piece], thinking: &mut bool) -> bool {
        if self.quiet {
            return true;
        }
        let mut text = String::new();
        let (open, close) =
            if self.dim { ("\x1b[2m", "\x1b[0m") } else { ("<think>\n", "\n</think>") };
        for piece in pieces {
            let thought = matches!(piece, Piece::Thought(_));
            match (*thinking, thought) {
                (false, true) => text.push_str(open),
                (true, false) => text.push_str(&format!("{close}\n\n")),
                _ => {}
            }
            *thinking = thought;
            match piece {
                Piece::Content(t) | Piece::Thought(t) => text.push_str(t),
                Piece::Call(_) => {}
            }
        }
        write(&text)
    }

    /// The end of an answer.
    fn end(&self, thinking: bool) {
        if self.quiet {
            return;
        }
        let close = match (thinking, self.dim) {
            (true, true) => "\x1b[0m",
            (true, false) => "\n</think>",
            _ => "",
        };
        write(&format!("{close}\n"));
    }
}

fn write(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// A conversation and the session that has read it.
struct Talk {
    session: Session,
    model: Model,
    messages: VecDeque<Value>,
    /// What the session has read.
    held: Vec<u32>,
    request: Generation,
    variables: Map<String, Value>,
    when_full: WhenFull,
}

impl Talk {
    fn open(args: &ChatArgs) -> Result<Self> {
        let form = Form::open(&args.model)?;
        let model = Model::from_gguf(form.to_gguf()?, LoadOptions::default())?;
        if model.gguf().metadata().get("tokenizer.ggml.model").is_none() {
            form.expect_tokenizer()?;
        }
        if model.tokenizer()?.template().is_none() {
            return Err(Error::failed_with_hint(
                format!("{}: the model has no chat template", args.model.display()),
                "`mmx run --raw` completes a text as it is",
            ));
        }
        let mut messages = VecDeque::new();
        if let Some(path) = args.history.as_deref().filter(|path| path.exists()) {
            messages = read_history(path)?;
        }
        if let Some(system) = &args.system {
            if messages.front().is_some_and(is_system) {
                messages.pop_front();
            }
            messages.push_front(chat::message("system", system));
        }
        let defaults = Defaults::from_gguf_keys(model.gguf().metadata()).unwrap_or_default();
        let options = SessionOptions::from(args.runner);
        let mut variables = Map::new();
        if args.think {
            variables.insert("open_thinking".into(), true.into());
            variables.insert("enable_thinking".into(), true.into());
        }
        Ok(Self {
            session: Session::new(&model, options)?,
            messages,
            held: Vec::new(),
            request: Generation {
                max_tokens: args.n,
                sampling: args.sampling.resolve(&defaults),
                stop: Vec::new(),
                ignore_end: false,
            },
            variables,
            when_full: args.when_full,
            model,
        })
    }

    /// Forgets all but the system message.
    fn reset(&mut self) {
        self.messages.retain(is_system);
    }

    fn last(&self) -> Value {
        self.messages.back().map_or(Value::Null, |m| m["content"].clone())
    }

    fn save(&self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let mut text = serde_json::to_vec_pretty(&self.messages)
            .map_err(|e| Error::failed(format!("{}: {e}", path.display())))?;
        text.push(b'\n');
        Ok(mmx_converters::file::write_bytes(path, &text)?)
    }

    /// The prompt for an answer, short enough to leave room for one, and whether it opens a thought.
    fn prompt(&mut self) -> Result<(Vec<u32>, bool)> {
        let tokenizer = self.model.tokenizer()?;
        let options = chat::Options {
            add_generation_prompt: true,
            variables: self.variables.clone(),
            ..chat::Options::default()
        };
        let n_ctx = self.session.n_ctx();
        let room = self.request.max_tokens.min(n_ctx / 4).max(1);
        let mut forgotten = 0;
        loop {
            let prompt = tokenizer.encode_chat(self.messages.make_contiguous(), &options)?;
            let length = prompt.ids.len();
            if length + room <= n_ctx {
                if forgotten > 0 {
                    eprintln!(
                        "the context of {n_ctx} tokens is full: {forgotten} old messages are forgotten"
                    );
                }
                return Ok((prompt.ids, prompt.text.trim_end().ends_with("<think>")));
            }
            // the oldest turn goes, a question with its answer; the last question stays
            let first = usize::from(self.messages.front().is_some_and(is_system));
            if self.when_full == WhenFull::Stop || self.messages.len() <= first + 1 {
                let text = format!(
                    "the context of {n_ctx} tokens is full: {length} are in the conversation, and an answer needs room"
                );
                let hint = match self.when_full {
                    WhenFull::Stop => {
                        "`--when-full shift` forgets the oldest turns; `--ctx` makes more room"
                    }
                    WhenFull::Shift => "`--ctx` makes more room",
                };
                return Err(Error::failed_with_hint(text, hint));
            }
            self.messages.remove(first);
            forgotten += 1;
            while self.messages.len() > first + 1 && self.messages[first]["role"] != "user" {
                self.messages.remove(first);
                forgotten += 1;
            }
        }
    }

    /// Answers a message; both become part of the conversation.
    fn answer(&mut self, text: &str, screen: &Screen) -> Result<Generated> {
        self.messages.push_back(chat::message("user", text));
        let (ids, thinking) = match self.prompt() {
            Ok(prompt) => prompt,
            Err(error) => {
                self.messages.pop_back();
                return Err(error);
            }
        };
        // what is read already stays, but the last token, whose logits are needed
        let equal = self.held.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        let common = equal.min(ids.len() - 1);
        self.session.truncate(common);
        let (seen, rest) = ids.split_at(common);
        let sampling = self.request.sampling.clone();

        let mut splitter = Splitter::new(thinking, false);
        let (mut content, mut thought, mut in_thought) = (String::new(), String::new(), false);
        let mut keep = |pieces: &[Piece]| {
            for piece in pieces {
                match piece {
                    Piece::Content(text) => content.push_str(text),
                    Piece::Thought(text) => thought.push_str(text),
                    Piece::Call(_) => {}
                }
            }
        };
        STOPPED.store(false, Ordering::SeqCst);
        ANSWERING.store(true, Ordering::SeqCst);
        let generated = generate_after(&mut self.session, seen, rest, &self.request, |text| {
            let pieces = splitter.push(text);
            keep(&pieces);
            screen.show(&pieces, &mut in_thought) && !STOPPED.load(Ordering::SeqCst)
        });
        ANSWERING.store(false, Ordering::SeqCst);
        let generated = generated?;
        let pieces = splitter.finish();
        keep(&pieces);
        screen.show(&pieces, &mut in_thought);
        screen.end(in_thought);
        if generated.finish == Finish::Context {
            eprintln!("the context of {} tokens is full: the answer was cut", self.session.n_ctx());
        }
        self.held = [&ids[..], &generated.ids].concat();
        self.held.truncate(self.session.n_past());
        let mut message = chat::message("assistant", &content);
        if !thought.is_empty() {
            message["reasoning_content"] = thought.into();
        }
        self.messages.push_back(message);
        // another answer, another draw
        self.request.sampling = Sampling { seed: sampling.seed.wrapping_add(1), ..sampling };
        Ok(generated)
    }
}

fn is_system(message: &Value) -> bool {
    message["role"] == "system"
}

/// A list of messages with role and content.
fn read_history(path: &Path) -> Result<VecDeque<Value>> {
    let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let messages: VecDeque<Value> = serde_json::from_str(&text).map_err(|e| {
        Error::failed(format!("{}: expected a JSON list of messages: {e}", path.display()))
    })?;
    for (i, message) in messages.iter().enumerate() {
        if !message["role"].is_string() || !message["content"].is_string() {
            return Err(Error::failed(format!(
                "{}: message {i}: expected role and content as strings, found {message}",
                path.display()
            )));
        }
    }
    Ok(messages)
}
