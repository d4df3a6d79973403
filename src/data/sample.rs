//! A record to token ids and the spans that are learned, as the two references build them.
//!
//! Source: docs/stages.md, data. 2025: text alone; the answer, its `<|im_end|>` and the newline
//! after it. 2026: bos + text + eos; the answer from after `<|im_start|>assistant\n` through
//! `<|im_end|>\n`, tools and tool calls parsed, two augmentations.

use std::ops::Range;

use mmx_converters::chat;
use mmx_converters::tokenizer::{TokenKind, Tokenizer};
use serde_json::{Map, Value};

use super::fields::Fields;
use super::jsonl::Fault;
use super::record::{Kind, Record};
use mmx_converters::random::Random;
use mmx_converters::{Error, Result};

/// The reference whose conventions hold: that of 2025-04 or of 2026-08.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Recipe {
    /// MiniMind2.
    R2025,
    /// MiniMind-3.
    #[default]
    R2026,
}

/// What to do with a faulty line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnBad {
    /// Refuse the file.
    #[default]
    Error,
    /// Leave the line out and say so.
    Skip,
}

/// The options by which records become samples.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOptions {
    /// The reference whose conventions hold.
    pub recipe: Recipe,
    /// The kind of data that the files hold.
    pub kind: Kind,
    /// Samples are cut to this many tokens; at least 2.
    pub max_seq_len: usize,
    /// What to do with a faulty line.
    pub on_bad: OnBad,
    /// 2026, chats without a system turn and without tools: the share that gets one. Reference: 0.2
    /// in SFT and the stages that read its data, never in DPO.
    pub system_ratio: f64,
    /// 2026: the share of rendered chats in which empty think blocks are kept. Reference: 0.2.
    pub empty_think_ratio: f64,
    /// Seed of the augmentations.
    pub seed: u64,
    /// Names of the files' keys for those of the known forms.
    pub fields: Fields,
}

impl SampleOptions {
    /// Options with the reference's rates and seed.
    pub fn new(recipe: Recipe, kind: Kind, max_seq_len: usize) -> Self {
        Self {
            recipe,
            kind,
            max_seq_len,
            on_bad: OnBad::Error,
            system_ratio: if kind == Kind::Preference { 0.0 } else { 0.2 },
            empty_think_ratio: 0.2,
            seed: 1337,
            fields: Fields::default(),
        }
    }
}

/// A sample: token ids, and which of them are learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// At most max_seq_len ids, without padding.
    pub ids: Vec<u32>,
    /// The ids that are learned as targets, in order, apart from each other. Index 0 may be among
    /// them but is the target of nothing.
    pub spans: Vec<Range<u32>>,
    /// Tokens before it was cut.
    pub full_len: u32,
    /// The text of a control token stood in the record.
    pub has_control_text: bool,
    /// Index of the file.
    pub file: u32,
    /// Line in the file, from 1; the record's number where records are no lines.
    pub line: u32,
}

impl Sample {
    /// True when at least one target is learned.
    pub fn teaches(&self) -> bool {
        self.spans.iter().any(|span| span.end > span.start.max(1))
    }

    /// Targets that are learned.
    pub fn targets(&self) -> u64 {
        targets(self.spans.iter().cloned())
    }

    /// Whether the id at a position is learned.
    pub fn is_learned(&self, position: usize) -> bool {
        self.spans.iter().any(|span| span.contains(&(position as u32)))
    }

    /// The labels of Transformers' convention, `seq` of them: the id where it is learned, else
    /// -100.
    pub fn labels(&self, seq: usize) -> Vec<i64> {
        /// The index that PyTorch's cross-entropy ignores.
        const IGNORED: i64 = -100;
        (0..seq)
            .map(|i| match self.ids.get(i) {
                Some(&id) if self.is_learned(i) => i64::from(id),
                _ => IGNORED,
            })
            .collect()
    }
}

/// Targets in spans of learned ids: id 0 is the target of nothing.
pub(crate) fn targets(spans: impl Iterator<Item = Range<u32>>) -> u64 {
    spans.map(|span| u64::from(span.end.saturating_sub(span.start.max(1)))).sum()
}

/// The empty thought that MiniMind-3's template renders before an answer without one.
const EMPTY_THINK: &str = "<think>\n\n</think>\n\n";

/// System prompts that a chat without a system turn may get in front of it (2026 augmentation). The
/// reference draws from a list of its own; what matters is that the model sees system turns of
/// several kinds.
pub const SYSTEM_PROMPTS: [&str; 8] = [
    "You are a helpful assistant.",
    "Answer briefly and correctly.",
    "You are a friendly assistant who explains things step by step.",
    "You are a small language model. Say so when you do not know something.",
    "请认真回答用户的问题。",
    "你是一个乐于助人的小助手。",
    "请用简洁的语言作答。",
    "你是一个小型语言模型，不知道的事情请直说。",
];

/// Turns records into samples.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    options: &'a SampleOptions,
    /// Ids before an answer.
    begin: Vec<u32>,
    /// Ids that end it.
    end: Vec<u32>,
    bos: u32,
    eos: u32,
    pad: u32,
    /// Texts of control tokens.
    control: Vec<String>,
}

impl<'a> Encoder<'a> {
    /// Prepares the marks around answers.
    ///
    /// # Errors
    /// max_seq_len below 2, or a tokenizer without bos, eos or (for chats) a template.
    pub fn new(tokenizer: &'a Tokenizer, options: &'a SampleOptions) -> Result<Self> {
        if options.max_seq_len < 2 {
            let found = options.max_seq_len;
            return Err(Error::setting("max_seq_len", "at least 2", found));
        }
        let role = |id: Option<u32>, what: &str| {
            id.ok_or_else(|| {
                Error::failed(format!(
                    "{}: expected a {what}, found none",
                    tokenizer.path().display()
                ))
            })
        };
        let (bos, eos) =
            (role(tokenizer.bos_id(), "bos_token")?, role(tokenizer.eos_id(), "eos_token")?);
        let pad = tokenizer.pad_id().unwrap_or(0);
        let text = |id| tokenizer.token_text(id).unwrap_or_default();
        let newline = if options.recipe == Recipe::R2026 { "\n" } else { "" };
        if options.kind != Kind::Text && tokenizer.template().is_none() {
            return Err(Error::failed_with_hint(
                format!("{}: expected a chat template, found none", tokenizer.path().display()),
                "add chat_template to tokenizer_config.json, or a chat_template.jinja beside it",
            ));
        }
        Ok(Self {
            tokenizer,
            options,
            begin: tokenizer.encode(&format!("{}assistant{newline}", text(bos)))?,
            end: tokenizer.encode(&format!("{}{newline}", text(eos)))?,
            bos,
            eos,
            pad,
            control: tokenizer
                .added_tokens()
                .filter(|(_, _, kind)| *kind == TokenKind::Control)
                .map(|(_, text, _)| text.to_owned())
                .collect(),
        })
    }

    /// What the files hold.
    pub fn kind(&self) -> Kind {
        self.options.kind
    }

    /// Names of the files' keys for those of the known forms.
    pub fn fields(&self) -> &Fields {
        &self.options.fields
    }

    /// The sample of a record; of a preference pair two, chosen first.
    ///
    /// # Errors
    /// A chat that the template refuses, or tools that are no JSON.
    pub fn encode(&self, record: &Record, file: u32, line: usize) -> Result<Vec<Sample>, Fault> {
        let fault = |message: String| Fault { line, message, ..Fault::default() };
        // a pair draws once: both answers are rendered alike
        let random = || Random::new(self.options.seed, (u64::from(file) << 40) ^ line as u64);
        let chat = |turns: &[Value]| self.chat(turns, &mut random());
        let samples = match record {
            Record::Text(text) => self.text(text).map(|sample| vec![sample]),
            Record::Chat(turns) => chat(turns).map(|sample| vec![sample]),
            Record::Preference { chosen, rejected } => chat(chosen)
                .and_then(|chosen| chat(rejected).map(|rejected| vec![chosen, rejected])),
        };
        let mut samples = samples.map_err(fault)?;
        for sample in &mut samples {
            sample.file = file;
            sample.line = line as u32;
        }
        Ok(samples)
    }

    /// True of a record with tools that its sample holds nothing of: the chat template renders
    /// none, or the recipe hands it role and content alone (2025).
    pub fn leaves_tools_out(&self, record: &Record) -> bool {
        let given = |turns: &[Value]| turns.first().is_some_and(|turn| !is_empty(&turn["tools"]));
        let has_tools = match record {
            Record::Text(_) => false,
            Record::Chat(turns) => given(turns),
            Record::Preference { chosen, rejected } => given(chosen) || given(rejected),
        };
        has_tools && (self.options.recipe == Recipe::R2025 || !self.tokenizer.shows_tools())
    }

    fn has_control_text(&self, text: &str) -> bool {
        // all of MiniMind's begin so: a quick no for nearly every text
        text.contains('<') && self.control.iter().any(|token| text.contains(token.as_str()))
    }

    fn text(&self, text: &str) -> Result<Sample, String> {
        let max = self.options.max_seq_len;
        let mut ids = self.tokenizer.encode(text).map_err(|e| e.to_string())?;
        // the 2025 reference takes what `tokenizer(text)` gives, the 2026 one puts bos and eos
        // there itself
        let (before, after) = (self.tokenizer.before_text(), self.tokenizer.after_text());
        let full_len;
        if self.options.recipe == Recipe::R2026 {
            full_len = ids.len() + 2;
            ids.truncate(max - 2);
            ids.insert(0, self.bos);
            ids.push(self.eos);
        } else {
            full_len = ids.len() + before.len() + after.len();
            ids.truncate(max.saturating_sub(before.len() + after.len()));
            ids.splice(0..0, before.iter().copied());
            ids.extend_from_slice(after);
            ids.truncate(max);
        }
        // an id equal to padding cannot be told from it and is not learned
        let mut spans: Vec<Range<u32>> = Vec::new();
        for (i, _) in (0..).zip(&ids).filter(|(_, id)| **id != self.pad) {
            match spans.last_mut() {
                Some(span) if span.end == i => span.end += 1,
                _ => spans.push(i..i + 1),
            }
        }
        let has_control_text = self.has_control_text(text);
        Ok(Sample { ids, spans, full_len: full_len as u32, has_control_text, ..Sample::default() })
    }

    fn chat(&self, turns: &[Value], random: &mut Random) -> Result<Sample, String> {
        let text = self.render(turns, random)?;
        let mut ids = self.tokenizer.encode(&text).map_err(|e| e.to_string())?;
        let full_len = ids.len() as u32;
        let max = self.options.max_seq_len;
        ids.truncate(max);
        let spans = match self.options.recipe {
            Recipe::R2025 => self.spans_2025(&mut ids),
            Recipe::R2026 => self.spans_2026(&ids),
        };
        let contents = turns.iter().filter_map(|turn| turn["content"].as_str());
        let has_control_text = contents.into_iter().any(|text| self.has_control_text(text));
        Ok(Sample { ids, spans, full_len, has_control_text, ..Sample::default() })
    }

    /// The chat as text.
    fn render(&self, turns: &[Value], random: &mut Random) -> Result<String, String> {
        let mut options = chat::Options::default();
        if self.options.recipe == Recipe::R2025 {
            // the 2025 reference hands over role and content, nothing else
            let plain: Vec<Value> = turns
                .iter()
                .map(|t| {
                    let text = |key: &str| t[key].as_str().unwrap_or_default();
                    chat::message(text("role"), text("content"))
                })
                .collect();
            return self.tokenizer.render_chat(&plain, &options).map_err(|e| e.to_string());
        }
        let (mut messages, tools) = messages_and_tools(turns)?;
        options.tools = tools;
        // both are drawn always, so that one option does not move the other's numbers
        let (for_system, which, for_think) =
            (random.unit(), random.below(SYSTEM_PROMPTS.len()), random.unit());
        let has_system = messages.first().is_some_and(|m| m["role"] == "system");
        if !has_system && options.tools.is_none() && for_system < self.options.system_ratio {
            messages.insert(0, chat::message("system", SYSTEM_PROMPTS[which]));
        }
        let text = self.tokenizer.render_chat(&messages, &options).map_err(|e| e.to_string())?;
        Ok(if for_think < self.options.empty_think_ratio {
            text
        } else {
            text.replace(EMPTY_THINK, "")
        })
    }

    /// Learned spans of 2025: from the second id after the mark (the first is the newline) to the
    /// newline after the end.
    fn spans_2025(&self, ids: &mut Vec<u32>) -> Vec<Range<u32>> {
        let max = self.options.max_seq_len;
        let mut spans = Vec::new();
        let mut at = 0;
        while let Some(start) = find(ids, &self.begin, at) {
            let start = start + self.begin.len();
            match find(ids, &self.end, start) {
                Some(end) => {
                    let past = end + self.end.len() + 1; // with the id after the end
                    if past > ids.len() && ids.len() < max {
                        ids.push(self.pad); // the reference learns the padding here
                    }
                    spans.push(start + 1..past.min(ids.len()));
                    at = end + self.end.len();
                }
                None => {
                    spans.push(start + 1..ids.len());
                    at = ids.len();
                }
            }
        }
        kept(spans)
    }

    /// Learned spans of 2026: from after the mark through the end.
    fn spans_2026(&self, ids: &[u32]) -> Vec<Range<u32>> {
        let mut spans = Vec::new();
        let mut at = 0;
        while let Some(start) = find(ids, &self.begin, at) {
            let start = start + self.begin.len();
            let end = find(ids, &self.end, start).map_or(ids.len(), |end| end + self.end.len());
            spans.push(start..end);
            at = end;
        }
        kept(spans)
    }
}

fn kept(spans: Vec<Range<usize>>) -> Vec<Range<u32>> {
    spans.into_iter().filter(|s| s.start < s.end).map(|s| s.start as u32..s.end as u32).collect()
}

/// Where `needle` begins in `ids`, at `from` or later.
fn find(ids: &[u32], needle: &[u32], from: usize) -> Option<usize> {
    let found = ids.get(from..)?.windows(needle.len()).position(|window| window == needle)?;
    Some(from + found)
}

/// A record's turns as messages for a chat template, and the tools that stand in the first of them;
/// tools and calls may be JSON in a string.
///
/// # Errors
/// A string that is no JSON, with the turn's number.
pub fn messages_and_tools(turns: &[Value]) -> Result<(Vec<Value>, Option<Value>), String> {
    let mut messages = Vec::with_capacity(turns.len() + 1);
    let mut found = None;
    for (index, turn) in turns.iter().enumerate() {
        let mut message = turn.as_object().cloned().unwrap_or_default();
        // they stand in the system turn, or in the first one where there is none
        if index == 0 {
            found = parsed(&mut message, "tools", index)?;
        }
        if let Some(calls) = parsed(&mut message, "tool_calls", index)? {
            message.insert("tool_calls".into(), calls);
        }
        messages.push(Value::Object(message));
    }
    Ok((messages, found))
}

/// Whether a list of tools, as it is or as JSON in a string, holds none.
fn is_empty(tools: &Value) -> bool {
    match tools {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::String(text) => matches!(text.trim(), "" | "[]" | "null"),
        _ => false,
    }
}

/// A key that holds JSON as a string (or as it is), taken out of a message; empty means absent.
fn parsed(
    message: &mut Map<String, Value>,
    key: &str,
    index: usize,
) -> Result<Option<Value>, String> {
    match message.shift_remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| format!("turn {}: key {key}: expected JSON in a string: {e}", index + 1)),
        Some(value) => Ok(Some(value)),
    }
}
