//! The conversation of `mmx chat` and the session that has read it.
//!
//! In: a message. Out: the answer, shown as it is written. All messages are kept for the history;
//! what a full context has no room for is no longer shown to the model: the oldest turns first,
//! then the beginning of the answer itself.

use std::path::Path;
use std::sync::atomic::Ordering;

use mmx_converters::chat;
use mmx_converters::model::generation::Generation as Defaults;
use mmx_converters::tokenizer::{Prompt, Tokenizer};
use mmx_ggml::run::{
    Finish, Generated, Generation, Model, Sampling, Session, SessionOptions, generate_shifting,
    reusable,
};
use serde_json::{Map, Value, json};

use super::args::{ChatArgs, WhenFull};
use super::screen::Screen;
use super::stop::{ANSWERING, STOPPED};
use crate::args::tools::in_words;
use crate::error::{Error, Result};
use mmx_converters::chat::answer::{Call, Piece, Splitter};
use mmx_models::open::Form;
use mmx_rollout::tools::Tools;
use mmx_rollout::{Called, Toolbox};

/// A conversation and the session that has read it.
pub(crate) struct Talk {
    session: Session,
    model: Model,
    messages: Messages,
    /// What the session has read.
    held: Vec<u32>,
    request: Generation,
    options: chat::Options,
    when_full: WhenFull,
    tools: Option<Tools>,
}

/// Answers of the model to one message at most: each but the last one calls tools.
const MOST_TURNS: usize = 8;

/// All messages, and how many of them the model no longer sees.
#[derive(Clone, Debug, Default)]
struct Messages {
    all: Vec<Value>,
    /// The number of messages after the system message that are forgotten.
    forgotten: usize,
}

impl Messages {
    /// 1 where the first one is the system's.
    fn system(&self) -> usize {
        usize::from(self.all.first().is_some_and(is_system))
    }

    /// What the model sees.
    fn shown(&self) -> Vec<Value> {
        let (system, rest) = self.all.split_at(self.system());
        [system, &rest[self.forgotten.min(rest.len())..]].concat()
    }

    /// Forgets the oldest turn, a question with its answer; the last message stays. False when
    /// nothing else is left.
    fn forget_turn(&mut self) -> bool {
        let rest = &self.all[self.system()..];
        if self.forgotten + 1 >= rest.len() {
            return false;
        }
        self.forgotten += 1;
        while self.forgotten + 1 < rest.len() && rest[self.forgotten]["role"] != "user" {
            self.forgotten += 1;
        }
        true
    }

    fn prompt(&self, tokenizer: &Tokenizer, options: &chat::Options) -> Result<Prompt> {
        let prompt = tokenizer.encode_chat(&self.shown(), options)?;
        if prompt.ids.is_empty() {
            return Err(Error::failed(format!(
                "{}: expected a prompt from the chat template, found an empty one",
                tokenizer.path().display()
            )));
        }
        Ok(prompt)
    }
}

impl Talk {
    pub(crate) fn open(args: &ChatArgs) -> Result<Self> {
        let form = Form::open(&args.model)?;
        let model = args.device.load(&form)?;
        if model.gguf().metadata().get("tokenizer.ggml.model").is_none() {
            form.expect_tokenizer()?;
        }
        if model.tokenizer()?.template().is_none() {
            return Err(Error::failed_with_hint(
                format!("{}: the model has no chat template", args.model.display()),
                "`mmx run --raw` completes a text as it is",
            ));
        }
        let mut messages = Messages::default();
        if let Some(path) = args.history.as_deref().filter(|path| path.exists()) {
            messages.all = read_history(path)?;
        }
        if let Some(system) = &args.system {
            messages.all.drain(..messages.system());
            messages.all.insert(0, chat::message("system", system));
        }
        let tools = args.tools.open()?;
        if tools.is_some() && !model.tokenizer()?.shows_tools() {
            return Err(Error::failed(format!(
                "{}: expected a chat template that shows tools, found one that does not",
                args.model.display()
            )));
        }
        let defaults = Defaults::from_gguf_keys(model.gguf().metadata()).unwrap_or_default();
        let mut variables = Map::new();
        if args.think {
            variables.insert("open_thinking".into(), true.into());
            variables.insert("enable_thinking".into(), true.into());
        }
        Ok(Self {
            session: Session::new(&model, SessionOptions::from(args.runner))?,
            messages,
            held: Vec::new(),
            request: Generation {
                max_tokens: args.n,
                sampling: args.sampling.resolve(&defaults),
                stop: Vec::new(),
                ignore_end: false,
                speculate: args.runner.speculate,
            },
            options: chat::Options {
                add_generation_prompt: true,
                variables,
                tools: tools.as_ref().map(Tools::shown),
            },
            when_full: args.when_full,
            tools,
            model,
        })
    }

    /// Forgets all but the system message.
    pub(crate) fn reset(&mut self) {
        self.messages.all.truncate(self.messages.system());
        self.messages.forgotten = 0;
    }

    pub(crate) fn messages(&self) -> &[Value] {
        &self.messages.all
    }

    pub(crate) fn last(&self) -> Value {
        self.messages.all.last().map_or(Value::Null, |m| m["content"].clone())
    }

    pub(crate) fn save(&self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let mut text = serde_json::to_vec_pretty(&self.messages.all)
            .map_err(|e| Error::failed(format!("{}: {e}", path.display())))?;
        text.push(b'\n');
        Ok(mmx_converters::file::write_bytes(path, &text)?)
    }

    /// The prompt for an answer, short enough to leave room for one, and whether it opens a
    /// thought.
    fn prompt(&mut self) -> Result<(Vec<u32>, bool)> {
        let n_ctx = self.session.n_ctx();
        let room = self.request.max_tokens.min(n_ctx / 4).max(1);
        let before = self.messages.forgotten;
        loop {
            let prompt = self.messages.prompt(self.model.tokenizer()?, &self.options)?;
            let length = prompt.ids.len();
            if length + room <= n_ctx {
                let more = self.messages.forgotten - before;
                if more > 0 {
                    eprintln!(
                        "the context of {n_ctx} tokens is full: {more} old messages are forgotten"
                    );
                }
                return Ok((prompt.ids, prompt.text.trim_end().ends_with("<think>")));
            }
            if self.when_full == WhenFull::Stop || !self.messages.forget_turn() {
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
        }
    }

    /// Answers a message; both become part of the conversation, and what tools were called in
    /// between.
    pub(crate) fn answer(&mut self, text: &str, screen: &Screen) -> Result<Generated> {
        let before = self.messages.all.len();
        self.messages.all.push(chat::message("user", text));
        let mut turns = 1;
        loop {
            let found = self.turn(screen).and_then(|(generated, calls)| {
                let stopped = STOPPED.load(Ordering::SeqCst);
                let goes_on = !calls.is_empty() && turns < MOST_TURNS && !stopped;
                if goes_on {
                    self.call(&calls, screen)?;
                }
                Ok((generated, goes_on))
            });
            match found {
                Ok((_, true)) => turns += 1,
                Ok((generated, false)) => return Ok(generated),
                Err(error) => {
                    self.messages.all.truncate(before);
                    return Err(error);
                }
            }
        }
    }

    /// Runs calls; what the tools answer becomes part of the conversation.
    fn call(&mut self, calls: &[Call], screen: &Screen) -> Result<()> {
        let Some(tools) = &self.tools else { return Ok(()) };
        for call in calls {
            let call = json!({"name": call.name, "arguments": call.arguments});
            let answer = tools.run(&call, &tools.shown())?;
            let message = chat::message("tool", &answer.result);
            let called = Called { call, result: answer.result, ..Called::default() };
            screen.note(&in_words(&called));
            self.messages.all.push(message);
        }
        Ok(())
    }

    /// One answer of the model, and the tools it calls.
    fn turn(&mut self, screen: &Screen) -> Result<(Generated, Vec<Call>)> {
        let (ids, thinking) = self.prompt()?;
        let common = reusable(&self.held, &ids);
        self.session.truncate(common);
        self.held.clear(); // an error leaves nothing that can be trusted
        let (seen, rest) = ids.split_at(common);
        let sampling = self.request.sampling.clone();

        let mut splitter = Splitter::new(thinking, self.tools.is_some());
        let (mut content, mut thought, mut in_thought) = (String::new(), String::new(), false);
        let mut calls = Vec::new();
        let mut keep = |pieces: &[Piece]| {
            for piece in pieces {
                match piece {
                    Piece::Content(text) => content.push_str(text),
                    Piece::Thought(text) => thought.push_str(text),
                    Piece::Call(call) => calls.push(call.clone()),
                }
            }
        };
        let n_ctx = self.session.n_ctx();
        let (messages, options, when_full) = (&mut self.messages, &self.options, self.when_full);
        let tokenizer = self.model.tokenizer()?;
        let mut shifts = 0;
        let on_full = |written: &[u32]| {
            if when_full == WhenFull::Stop {
                return None;
            }
            shifts += 1;
            shifted(messages, tokenizer, options, n_ctx, written)
        };
        STOPPED.store(false, Ordering::SeqCst);
        ANSWERING.store(true, Ordering::SeqCst);
        let on_text = |text: &str| {
            let pieces = splitter.push(text);
            keep(&pieces);
            let shown = pieces.is_empty() || screen.show(&pieces, &mut in_thought);
            shown && !STOPPED.load(Ordering::SeqCst)
        };
        let generated =
            generate_shifting(&mut self.session, seen, rest, &self.request, on_text, on_full);
        ANSWERING.store(false, Ordering::SeqCst);
        let generated = match generated {
            Ok(generated) => generated,
            Err(error) => {
                self.session.truncate(0);
                return Err(error.into());
            }
        };
        let pieces = splitter.finish();
        keep(&pieces);
        screen.show(&pieces, &mut in_thought);
        screen.end(in_thought);
        if shifts > 0 {
            let times = if shifts == 1 { "once".to_owned() } else { format!("{shifts} times") };
            eprintln!(
                "the context of {n_ctx} tokens became full {times}: what was oldest is forgotten"
            );
        }
        if generated.finish == Finish::Context {
            eprintln!(
                "the context of {n_ctx} tokens is full: the answer stops here (`--when-full shift` goes on, `--ctx` makes \
                 more room)"
            );
        }
        self.held.clone_from(&generated.held);
        let mut message = chat::message("assistant", &content);
        if !thought.is_empty() {
            message["reasoning_content"] = thought.into();
        }
        if !calls.is_empty() {
            let call = |call: &Call| json!({"type": "function", "function": {"name": call.name, "arguments": call.arguments}});
            message["tool_calls"] = calls.iter().map(call).collect();
        }
        self.messages.all.push(message);
        // the next answer draws other random numbers
        self.request.sampling = Sampling { seed: sampling.seed.wrapping_add(1), ..sampling };
        Ok((generated, calls))
    }
}

/// Ids to go on after when the context became full within an answer: the conversation without its
/// oldest turns, with what is written so far; where the last question alone is left, with the later
/// half of it. A quarter of the context is free then at least. Nothing where there is no room, or
/// the template refuses what is left.
fn shifted(
    messages: &mut Messages,
    tokenizer: &Tokenizer,
    options: &chat::Options,
    n_ctx: usize,
    written: &[u32],
) -> Option<Vec<u32>> {
    loop {
        let mut ids = messages.prompt(tokenizer, options).ok()?.ids;
        let room = n_ctx.saturating_sub(ids.len());
        if written.len() + n_ctx / 4 <= room {
            ids.extend_from_slice(written);
            return Some(ids);
        }
        if messages.forget_turn() {
            continue;
        }
        let kept = (room / 2).min(written.len());
        let mut tail = &written[written.len() - kept..];
        // not from within a character
        while let [first, rest @ ..] = tail
            && tokenizer.token_bytes(*first).first().is_some_and(|b| b & 0xc0 == 0x80)
        {
            tail = rest;
        }
        ids.extend_from_slice(tail);
        return (kept > 0 && ids.len() < n_ctx).then_some(ids);
    }
}

fn is_system(message: &Value) -> bool {
    message["role"] == "system"
}

/// A list of messages with role and content; an assistant's call alone may come without words.
fn read_history(path: &Path) -> Result<Vec<Value>> {
    let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let mut messages: Vec<Value> = serde_json::from_str(&text).map_err(|e| {
        Error::failed(format!("{}: expected a JSON list of messages: {e}", path.display()))
    })?;
    for (i, message) in messages.iter_mut().enumerate() {
        let calls = message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty());
        if message["role"] == "assistant" && calls && message["content"].is_null() {
            message["content"] = "".into();
        }
        if !message["role"].is_string() || !message["content"].is_string() {
            return Err(Error::failed(format!(
                "{}: message {i}: expected role and content as strings, found {message}",
                path.display()
            )));
        }
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(roles: &[&str]) -> Messages {
        let all = roles.iter().map(|role| chat::message(role, role)).collect();
        Messages { all, forgotten: 0 }
    }

    #[test]
    fn turns_are_forgotten_whole_and_the_last_question_stays() {
        let mut m = messages(&["system", "user", "assistant", "tool", "assistant", "user"]);
        assert!(m.forget_turn());
        assert_eq!((m.shown().len(), m.all.len()), (2, 6));
        assert!(!m.forget_turn());
        assert_eq!(m.shown()[1]["role"], "user");
        assert!(!messages(&["user"]).forget_turn());
        assert!(!Messages::default().forget_turn());
    }

    #[test]
    fn a_shift_keeps_the_question_and_the_end_of_the_answer() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden");
        let tokenizer = Tokenizer::open(golden).expect("golden");
        let options = chat::Options::generation();
        let mut m = messages(&["user", "assistant", "user"]);
        let written = tokenizer.encode(&"好 and ".repeat(60)).expect("ids");
        let ids = shifted(&mut m, &tokenizer, &options, 1000, &written).expect("room");
        assert_eq!((m.forgotten, ids.ends_with(&written)), (0, true));
        let ids = shifted(&mut m, &tokenizer, &options, 200, &written).expect("room");
        let question = m.prompt(&tokenizer, &options).expect("a prompt").ids;
        assert_eq!(m.forgotten, 2, "the old turn went first");
        let (start, rest) = ids.split_at(question.len());
        assert!(start == question && written.ends_with(rest) && !rest.is_empty());
        assert!(ids.len() <= 200 - (200 - question.len()) / 2);
        let text = String::from_utf8(
            rest.iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect(),
        );
        assert!(text.is_ok(), "begins with a whole character");
        assert!(shifted(&mut m, &tokenizer, &options, question.len(), &written).is_none());
    }

    #[test]
    fn a_history_may_hold_calls_without_words() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("talk.json");
        let call = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f"}}]});
        let user = json!({"role": "user", "content": "x"});
        fs_err::write(&path, json!([user, call]).to_string()).expect("written");
        assert_eq!(read_history(&path).expect("a history")[1]["content"], "");
        for bad in
            [json!({"role": "assistant", "content": null}), json!({"role": "user"}), json!(3)]
        {
            fs_err::write(&path, json!([user, bad]).to_string()).expect("written");
            let error = read_history(&path).expect_err("no text").to_string();
            assert!(error.contains("talk.json: message 1: expected role and content"), "{error}");
        }
    }
}
