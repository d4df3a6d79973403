//! `mmx chat`: a conversation in the terminal.

mod args;
mod screen;
mod stop;
mod talk;

use std::collections::VecDeque;
use std::io::{BufRead, IsTerminal};
use std::sync::atomic::Ordering;

use mmx_ggml::run::{Finish, Generated};
use rustyline::error::ReadlineError;
use serde_json::json;

use crate::commands::run::finish_name;
use crate::error::{Error, Result};
use crate::format;
use screen::Screen;
use stop::{ANSWERING, STOPPED};
use talk::Talk;

pub(crate) use args::ChatArgs;

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
