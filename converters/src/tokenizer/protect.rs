//! Keeps the text of messages from becoming control ids.
//!
//! The template must see the messages whole (it strips them, splits them at `</think>`, compares
//! their beginnings), so a mark, a character that occurs nowhere in the chat, is put inside each
//! text that reads like a control token. After rendering, control tokens are recognised, which the
//! marked ones are not; then the marks are removed and the pieces between are encoded as plain
//! text.

use serde_json::{Map, Value};

use crate::chat::Options;
use crate::error::{Error, Result};

pub(super) struct Guard<'a> {
    pub(super) messages: Vec<Value>,
    pub(super) options: Options,
    /// Whether anything had to be marked.
    pub(super) changed: bool,
    control: Vec<&'a str>,
    mark: char,
}

/// A piece of the rendered text.
pub(super) enum Piece<'a> {
    Control(&'a str),
    Text(String),
}

impl<'a> Guard<'a> {
    pub(super) fn new(
        control: &[&'a str],
        messages: &[Value],
        options: &Options,
        template: &str,
    ) -> Result<Self> {
        // one pass over the strings tells which marks are free
        let mut used = String::new();
        let mut note = |s: &str| used.extend(s.chars().filter(|c| is_mark(*c)));
        messages.iter().for_each(|m| visit(m, &mut note));
        options.tools.iter().for_each(|t| visit(t, &mut note));
        options.variables.values().for_each(|v| visit(v, &mut note));
        note(template);
        let mark = ('\u{fdd0}'..='\u{fdef}').find(|c| !used.contains(*c)).ok_or_else(|| {
            Error::Template {
                message: "the messages use all 32 noncharacters U+FDD0..U+FDEF".into(),
            }
        })?;
        let mut guard = Self {
            messages: Vec::new(),
            options: Options::default(),
            changed: false,
            control: control.iter().copied().filter(|t| !t.is_empty()).collect(),
            mark,
        };
        // the longest first: of two that fit, the longer one is meant
        guard.control.sort_by_key(|t| std::cmp::Reverse(t.len()));
        guard.messages = messages.iter().map(|m| guard.value(m)).collect();
        let tools = options.tools.as_ref().map(|t| guard.value(t));
        let variables = guard.map(&options.variables);
        guard.options =
            Options { tools, variables, add_generation_prompt: options.add_generation_prompt };
        Ok(guard)
    }

    fn value(&mut self, value: &Value) -> Value {
        match value {
            Value::String(s) => Value::String(self.marked(s)),
            Value::Array(items) => Value::Array(items.iter().map(|v| self.value(v)).collect()),
            Value::Object(map) => Value::Object(self.map(map)),
            other => other.clone(),
        }
    }

    fn map(&mut self, map: &Map<String, Value>) -> Map<String, Value> {
        map.iter().map(|(k, v)| (self.marked(k), self.value(v))).collect()
    }

    /// The text with a mark after the first character of every control token's text, and of every
    /// beginning of one at its end (the template's text might complete it).
    fn marked(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut from = 0;
        for (at, c) in text.char_indices() {
            let rest = &text[at..];
            if self.control.iter().any(|t| rest.starts_with(t) || t.starts_with(rest)) {
                let end = at + c.len_utf8();
                out.push_str(&text[from..end]);
                out.push(self.mark);
                from = end;
            }
        }
        if from > 0 {
            self.changed = true;
        }
        out.push_str(&text[from..]);
        out
    }

    /// Splits the rendered text at control tokens; the marks are gone from the texts between.
    pub(super) fn pieces(&self, rendered: &str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut from = 0;
        let mut at = 0;
        while at < rendered.len() {
            let rest = &rendered[at..];
            if let Some(token) = self.control.iter().find(|t| rest.starts_with(**t)) {
                if from < at {
                    pieces.push(Piece::Text(self.strip(&rendered[from..at])));
                }
                pieces.push(Piece::Control(token));
                at += token.len();
                from = at;
            } else {
                at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
        if from < rendered.len() {
            pieces.push(Piece::Text(self.strip(&rendered[from..])));
        }
        pieces
    }

    /// The text without marks.
    pub(super) fn strip(&self, text: &str) -> String {
        text.replace(self.mark, "")
    }
}

fn is_mark(c: char) -> bool {
    ('\u{fdd0}'..='\u{fdef}').contains(&c)
}

fn visit(value: &Value, each: &mut impl FnMut(&str)) {
    match value {
        Value::String(s) => each(s),
        Value::Array(items) => items.iter().for_each(|v| visit(v, each)),
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            each(k);
            visit(v, each);
        }),
        _ => {}
    }
}
