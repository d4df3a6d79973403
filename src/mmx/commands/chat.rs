//! `mmx chat`: a conversation in the terminal.

mod talk;

use std::collections::VecDeque;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use mmx_ggml::run::{Finish, Generated};
use rustyline::error::ReadlineError;
use serde_json::json;

use crate::args::device::DeviceArgs;
use crate::commands::run::{RunnerArgs, SamplingArgs, finish_name};
use crate::error::{Error, Result};
use crate::format;
use mmx_converters::chat::answer::Piece;
use talk::Talk;

/// Chat with a model
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Ctrl-C stops an answer; Ctrl-D or /exit leaves; /reset forgets the conversation; a line that ends with \\
goes on in the next one. Without a terminal each line of stdin is a message. Lines typed or pasted while an answer is
written are the next messages, one after the other. Thoughts are dimmed. What was read stays
computed, so a turn costs only its own tokens.

Examples:
  mmx chat runs/sft/export/model-q4_0.gguf
  mmx chat model.gguf --system \"Answer in one sentence.\" --history talk.json
  printf 'hello\\nand you?\\n' | mmx chat model.gguf --greedy")]
pub(crate) struct ChatArgs {
    /// A checkpoint, a Transformers folder or a GGUF
    model: PathBuf,
    /// A system message before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Tokens of an answer at most
    #[arg(short, value_name = "N", default_value_t = 1024)]
    n: usize,
    /// When the context is full, between turns or within an answer: forget what is oldest, or stop
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
    #[command(flatten)]
    device: DeviceArgs,
}

/// The action when the context is full.
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
pub(crate) fn run(args: ChatArgs, as_json: bool) -> Result<()> {
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
        return format::print_json(&json!({"messages": talk.messages(), "turns": turns}));
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

/// The source of messages.
enum Input {
    /// The terminal, and lines of a paste of several.
    Editor(Box<rustyline::DefaultEditor>, VecDeque<String>),
    Lines(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Input {
    fn new(terminal: bool) -> Result<Self> {
        if !terminal {
            return Ok(Self::Lines(std::io::stdin().lock().lines()));
        }
        let mut editor = rustyline::DefaultEditor::new()
            .map_err(|e| Error::failed(format!("the terminal: {e}")))?;
        // there is nothing to complete; what is pasted may hold tabs
        let tab = rustyline::KeyEvent::from('\t');
        editor.bind_sequence(tab, rustyline::Cmd::Insert(1, "\t".to_owned()));
        Ok(Self::Editor(Box::new(editor), VecDeque::new()))
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
                Self::Editor(_, pasted) if !pasted.is_empty() => {
                    let line = pasted.pop_front().unwrap_or_default();
                    eprintln!("{prompt}{line}");
                    line
                }
                Self::Editor(editor, pasted) => match editor.readline(prompt) {
                    Ok(text) => {
                        // a line that cannot be remembered is no reason to stop
                        let _ = editor.add_history_entry(text.as_str());
                        // a paste is what was pasted: each of its lines is one here too
                        pasted.extend(text.split('\n').map(str::to_owned));
                        pasted.pop_front().unwrap_or_default()
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

/// The place that answers go to.
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
