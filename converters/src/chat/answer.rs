//! A model's output taken apart: its thought, its answer, and the tools it calls.
//!
//! In: text as it streams. Out: [`Piece`]s, each as soon as it is certain. A thought stands between
//! `<think>` and `</think>` at the beginning, a call between `<tool_call>` and `</tool_call>`, as
//! JSON with `name` and `arguments` (Source: the template of MiniMind-3).

use serde_json::Value;

const THOUGHT: (&str, &str) = ("<think>", "</think>");
const CALL: (&str, &str) = ("<tool_call>", "</tool_call>");

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text of the answer, never empty.
    Content(String),
    /// Text of the thought, never empty.
    Thought(String),
    /// A tool to be called.
    Call(Call),
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The tool's name.
    pub name: String,
    /// A JSON object.
    pub arguments: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but space so far: a thought may begin.
    Start,
    /// At the beginning of a thought: line breaks do not count.
    ThoughtStart,
    Thought,
    /// After a thought or a call: line breaks do not count.
    Gap,
    Content,
    Call,
}

/// A splitter of streamed text into [`Piece`]s.
#[derive(Clone, Debug)]
pub struct Splitter {
    state: State,
    /// Whether calls are looked for.
    tools: bool,
    held: String,
}

impl Splitter {
    /// `thinking`: the prompt ended inside a thought. `tools`: calls are looked for, else they are
    /// text.
    pub fn new(thinking: bool, tools: bool) -> Self {
        let state = if thinking { State::ThoughtStart } else { State::Start };
        Self { state, tools, held: String::new() }
    }

    /// Adds text; gives what is certain now.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.advance(&mut out) {}
        out
    }

    /// Ends the text and gives what was held back.
    pub fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        let mut out = Vec::new();
        match self.state {
            State::Start | State::Content => add(&mut out, Piece::Content, &held),
            State::ThoughtStart | State::Thought => {
                add(&mut out, Piece::Thought, held.trim_end_matches('\n'));
            }
            State::Gap => {}
            State::Call => match parse_call(&held) {
                Some(call) => out.push(Piece::Call(call)),
                None => add(&mut out, Piece::Content, &format!("{}{held}", CALL.0)),
            },
        }
        out
    }

    /// One change of state; false when more text is needed.
    fn advance(&mut self, out: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(THOUGHT.0) {
                    self.held = rest.to_owned();
                    self.state = State::ThoughtStart;
                } else if THOUGHT.0.starts_with(text) {
                    return false;
                } else {
                    self.state = State::Content;
                }
                true
            }
            State::ThoughtStart | State::Gap => {
                let text = self.held.trim_start_matches('\n');
                self.held = text.to_owned();
                if self.held.is_empty() {
                    return false;
                }
                let thought = self.state == State::ThoughtStart;
                self.state = if thought { State::Thought } else { State::Content };
                true
            }
            State::Thought => self.until(THOUGHT.1, State::Gap, Piece::Thought, out),
            State::Content if self.tools => self.until(CALL.0, State::Call, Piece::Content, out),
            State::Content => {
                add(out, Piece::Content, &std::mem::take(&mut self.held));
                false
            }
            State::Call => {
                let Some(at) = self.held.find(CALL.1) else { return false };
                let rest = self.held.split_off(at + CALL.1.len());
                let inside = std::mem::replace(&mut self.held, rest);
                match parse_call(&inside[..at]) {
                    Some(call) => out.push(Piece::Call(call)),
                    // not a call after all: the text as it was
                    None => add(out, Piece::Content, &format!("{}{inside}", CALL.0)),
                }
                self.state = State::Gap;
                true
            }
        }
    }

    /// Lets text through up to `tag`, without line breaks before it, and goes on to `next`.
    fn until(
        &mut self,
        tag: &str,
        next: State,
        piece: fn(String) -> Piece,
        out: &mut Vec<Piece>,
    ) -> bool {
        if let Some(at) = self.held.find(tag) {
            let rest = self.held.split_off(at + tag.len());
            let before = std::mem::replace(&mut self.held, rest);
            add(out, piece, before[..at].trim_end_matches('\n'));
            self.state = next;
            return true;
        }
        // the longest end that the tag begins with, and the line breaks before it
        let held = &self.held;
        let tail = held.char_indices().map(|(at, _)| at).find(|&at| tag.starts_with(&held[at..]));
        let certain = held[..tail.unwrap_or(held.len())].trim_end_matches('\n').len();
        let rest = self.held.split_off(certain);
        add(out, piece, &std::mem::replace(&mut self.held, rest));
        false
    }
}

fn add(out: &mut Vec<Piece>, piece: fn(String) -> Piece, text: &str) {
    if !text.is_empty() {
        out.push(piece(text.to_owned()));
    }
}

/// `{"name": .., "arguments": {..}}`; arguments may be an object in a string.
fn parse_call(text: &str) -> Option<Call> {
    Call::from_json(serde_json::from_str(text.trim()).ok()?)
}

impl Call {
    /// The call of a JSON value `{"name": .., "arguments": {..}}`, whose arguments may be an object
    /// in a string; nothing of any other value.
    #[must_use]
    pub fn from_json(mut value: Value) -> Option<Self> {
        let object = value.as_object_mut()?;
        let name = object.get("name")?.as_str()?.to_owned();
        let arguments = match object.remove("arguments").or_else(|| object.remove("parameters")) {
            None | Some(Value::Null) => Value::Object(serde_json::Map::new()),
            Some(Value::String(text)) => serde_json::from_str(&text).ok()?,
            Some(value) => value,
        };
        arguments.is_object().then_some(Self { name, arguments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Pieces of the same kind joined.
    fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
        let mut out: Vec<Piece> = Vec::new();
        for piece in pieces {
            match (out.last_mut(), piece) {
                (Some(Piece::Content(a)), Piece::Content(b))
                | (Some(Piece::Thought(a)), Piece::Thought(b)) => a.push_str(&b),
                (_, piece) => out.push(piece),
            }
        }
        out
    }

    /// The same pieces however the text is cut.
    fn check(text: &str, thinking: bool, tools: bool, expected: &[Piece]) {
        let letters: Vec<String> = text.chars().map(String::from).collect();
        for size in [1, 2, 3, 7, text.len()] {
            let mut splitter = Splitter::new(thinking, tools);
            let mut pieces = Vec::new();
            for part in letters.chunks(size.max(1)) {
                pieces.extend(splitter.push(&part.concat()));
            }
            pieces.extend(splitter.finish());
            assert_eq!(joined(pieces), expected, "{text:?} in parts of {size}");
        }
    }

    fn content(text: &str) -> Piece {
        Piece::Content(text.into())
    }

    fn thought(text: &str) -> Piece {
        Piece::Thought(text.into())
    }

    #[test]
    fn thoughts_are_told_from_answers() {
        check("hello\n", false, false, &[content("hello\n")]);
        check(
            "<think>\n想\n\nb\n</think>\n\nyes",
            false,
            false,
            &[thought("想\n\nb"), content("yes")],
        );
        check("a</think>yes <think>", true, false, &[thought("a"), content("yes <think>")]);
        check("\n<think>open\n", false, false, &[thought("open")]);
        check("<think>\n\n</think>\n\nyes", false, false, &[content("yes")]);
        check("  <thin", false, false, &[content("  <thin")]);
        check("", true, true, &[]);
    }

    #[test]
    fn calls_are_parsed_and_what_is_none_stays_text() {
        let call =
            |name: &str, arguments: Value| Piece::Call(Call { name: name.into(), arguments });
        check(
            "Let me see.\n<tool_call>\n{\"name\": \"w\", \"arguments\": {\"city\": \"北京\"}}\n</tool_call>\n\
             <tool_call>{\"name\": \"t\", \"arguments\": \"{}\"}</tool_call>",
            false,
            true,
            &[content("Let me see."), call("w", json!({"city": "北京"})), call("t", json!({}))],
        );
        check("<tool_call>{\"name\":\"t\"}", false, true, &[call("t", json!({}))]);
        check("<tool_call>{nonsense", false, true, &[content("<tool_call>{nonsense")]);
        let text = "<tool_call>[1]</tool_call>";
        check(text, false, true, &[content(text)]);
        check(text, false, false, &[content(text)]);
        check("a < b <tool", false, true, &[content("a < b <tool")]);
    }
}
