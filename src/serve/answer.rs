//! The state of an answer, whatever protocol it is written in.
//!
//! In: the events of a request's texts. Out: the bytes of a response, whole or streamed. What all
//! protocols share is done here: texts are taken apart into thoughts, content and calls, put
//! together, counted, and watched for their end. A [`Dialect`] puts the parts into its words.

use axum::Json;
use axum::response::{IntoResponse, Response};
use mmx_converters::chat::answer::{Call, Piece, Splitter};
use serde_json::Value;

use crate::engine::{Event, Events, Summary, TokenLogprob, finish_name};
use crate::error::ApiError;
use crate::request_log::Facts;
use crate::stream::{Translate, collect, respond};

/// The words of a protocol for the parts of an answer.
pub(crate) trait Dialect: Send + 'static {
    /// Content type of its streams.
    const STREAM: &'static str;

    /// Adds what a stream begins with, before any text has an event.
    fn open(&mut self, _out: &mut Vec<u8>) {}

    /// Adds what comes before the first part of text `index`; `text` has what is known of its
    /// prompt.
    fn begin(&mut self, _index: usize, _text: &Text, _out: &mut Vec<u8>) {}

    /// Adds a part of text `index`, with the probabilities of its tokens where they were asked for.
    /// Calls of a text are numbered by `text`.
    fn delta(
        &mut self,
        index: usize,
        text: &Text,
        piece: &Piece,
        tokens: &[TokenLogprob],
        out: &mut Vec<u8>,
    );

    /// Adds the end of text `index`.
    fn end(&mut self, index: usize, text: &Text, summary: &Summary, out: &mut Vec<u8>);

    /// Adds what a stream ends with, after the end of all texts.
    fn close(&mut self, _usage: &Usage, _out: &mut Vec<u8>) {}

    /// Adds an error, after which nothing comes.
    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>);

    /// Makes the whole answer; every text has a summary.
    fn whole(self, texts: Vec<Text>, usage: &Usage) -> Value;
}

/// Tells a dialect whole texts as a stream would, for what it keeps of them; their events are
/// dropped.
pub(crate) fn retell(dialect: &mut impl Dialect, texts: &[Text]) {
    let mut events = Vec::new();
    for text in texts {
        for part in &text.parts {
            dialect.delta(0, text, &part.piece, &part.tokens, &mut events);
        }
        if let Some(summary) = &text.summary {
            dialect.end(0, text, summary, &mut events);
        }
        events.clear();
    }
}

/// A part of a text, with the probabilities of its tokens where they were asked for.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) piece: Piece,
    pub(crate) tokens: Vec<TokenLogprob>,
}

/// A text of an answer, as far as it is written.
pub(crate) struct Text {
    /// Takes the text apart; nothing for a raw one.
    splitter: Option<Splitter>,
    /// True for all texts after a prompt but the first, which counts the prompt.
    same_prompt: bool,
    begun: bool,
    /// Parts in order; no two of content or thought come one after the other.
    pub(crate) parts: Vec<Part>,
    /// Tokens after the last part of which no text is certain yet.
    waiting: Vec<TokenLogprob>,
    /// Number of the calls among the parts.
    pub(crate) calls: usize,
    /// The prompt's tokens, where their probabilities were asked for.
    pub(crate) prompt: Vec<TokenLogprob>,
    /// How it ended, once it has.
    pub(crate) summary: Option<Summary>,
}

impl Text {
    /// Makes the state of a text that is not written yet.
    pub(crate) fn new(splitter: Option<Splitter>, same_prompt: bool) -> Self {
        Self {
            splitter,
            same_prompt,
            begun: false,
            parts: Vec::new(),
            waiting: Vec::new(),
            calls: 0,
            prompt: Vec::new(),
            summary: None,
        }
    }

    /// All content, without thoughts and calls.
    pub(crate) fn content(&self) -> String {
        let content = |part: &Part| match &part.piece {
            Piece::Content(text) => Some(text.clone()),
            Piece::Thought(_) | Piece::Call(_) => None,
        };
        self.parts.iter().filter_map(content).collect()
    }

    /// All thoughts.
    pub(crate) fn thought(&self) -> String {
        let thought = |part: &Part| match &part.piece {
            Piece::Thought(text) => Some(text.clone()),
            Piece::Content(_) | Piece::Call(_) => None,
        };
        self.parts.iter().filter_map(thought).collect()
    }

    /// All calls of tools.
    pub(crate) fn called(&self) -> impl Iterator<Item = &Call> {
        self.parts.iter().filter_map(|part| match &part.piece {
            Piece::Call(call) => Some(call),
            Piece::Content(_) | Piece::Thought(_) => None,
        })
    }

    /// All tokens, where their probabilities were asked for.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = &TokenLogprob> {
        self.parts.iter().flat_map(|part| &part.tokens).chain(&self.waiting)
    }

    /// OpenAI's word for how it ended.
    pub(crate) fn finish(&self) -> &'static str {
        self.summary.map_or("stop", |summary| finish_name(summary.finish))
    }

    /// Takes text apart.
    fn split(&mut self, text: String) -> Vec<Piece> {
        match &mut self.splitter {
            Some(splitter) => splitter.push(&text),
            None => vec![Piece::Content(text)],
        }
    }

    /// Adds a part; tokens that come with no text go with the next one.
    fn add(&mut self, piece: Piece, mut tokens: Vec<TokenLogprob>) {
        self.waiting.append(&mut tokens);
        if matches!(&piece, Piece::Content(text) | Piece::Thought(text) if text.is_empty()) {
            return;
        }
        self.calls += usize::from(matches!(piece, Piece::Call(_)));
        let tokens = std::mem::take(&mut self.waiting);
        match (self.parts.last_mut(), &piece) {
            (Some(Part { piece: Piece::Content(all), tokens: before }), Piece::Content(more))
            | (Some(Part { piece: Piece::Thought(all), tokens: before }), Piece::Thought(more)) => {
                all.push_str(more);
                before.extend(tokens);
            }
            _ => self.parts.push(Part { piece, tokens }),
        }
    }

    /// Adds parts; the tokens go with the first.
    fn extend(&mut self, pieces: Vec<Piece>, mut tokens: Vec<TokenLogprob>) {
        for piece in pieces {
            self.add(piece, std::mem::take(&mut tokens));
        }
        self.waiting.extend(tokens);
    }
}

/// The counts of tokens of all texts of one request, and the end of the last one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    /// Tokens of the prompts that another request had computed.
    pub(crate) cached: usize,
    pub(crate) completion: usize,
    pub(crate) last: Option<Summary>,
}

impl Usage {
    /// Adds a text; texts after the same prompt count it once, with the first of them, whichever
    /// ends first.
    fn add(&mut self, summary: &Summary, same_prompt: bool) {
        if !same_prompt {
            self.prompt += summary.prompt_tokens;
            self.cached += summary.cached_tokens;
        }
        self.completion += summary.completion_tokens;
        self.last = Some(*summary);
    }
}

/// An answer in progress.
pub(crate) struct Answer<D> {
    dialect: D,
    texts: Vec<Text>,
    left: usize,
    usage: Usage,
    broken: bool,
    /// Of the request's log, where one is kept.
    facts: Option<Facts>,
}

impl<D: Dialect> Answer<D> {
    /// Makes the answer of so many texts in a dialect.
    pub(crate) fn new(dialect: D, texts: Vec<Text>) -> Self {
        let left = texts.len();
        Self { dialect, texts, left, usage: Usage::default(), broken: false, facts: None }
    }

    /// Responds as the texts' events come: piece by piece, or once all have ended.
    ///
    /// # Errors
    /// A text that could not be computed, where the answer is not a stream.
    pub(crate) async fn respond(
        mut self,
        events: Events,
        stream: bool,
    ) -> Result<Response, ApiError> {
        self.facts = Facts::current();
        if stream {
            return Ok(respond(D::STREAM, events, self));
        }
        collect(events, self.left, |index, event| self.take(index, event)).await?;
        Ok(Json(self.dialect.whole(self.texts, &self.usage)).into_response())
    }

    /// Takes up an event of a whole answer.
    fn take(&mut self, index: usize, event: Event) {
        let Some(text) = self.texts.get_mut(index) else { return };
        match event {
            Event::Prompt(tokens) => text.prompt = tokens,
            Event::Text(more, tokens) => {
                let pieces = text.split(more);
                text.extend(pieces, tokens);
            }
            Event::Done(summary) => {
                let rest = text.splitter.as_mut().map(Splitter::finish).unwrap_or_default();
                text.extend(rest, Vec::new());
                text.summary = Some(summary);
                self.count(&summary, index);
            }
            Event::Embedding(..) | Event::Failed(_) => {}
        }
    }

    /// Counts a text that has ended.
    fn count(&mut self, summary: &Summary, index: usize) {
        self.usage.add(summary, self.texts[index].same_prompt);
        if let Some(facts) = &self.facts {
            facts.tokens(self.usage.prompt, self.usage.completion);
        }
    }

    /// Adds parts of a text; the tokens' probabilities go with the first, or with an empty one.
    fn pieces(
        &mut self,
        index: usize,
        mut pieces: Vec<Piece>,
        mut tokens: Vec<TokenLogprob>,
        out: &mut Vec<u8>,
    ) {
        if pieces.is_empty() && !tokens.is_empty() {
            pieces.push(Piece::Content(String::new()));
        }
        for piece in pieces {
            let tokens = std::mem::take(&mut tokens);
            self.dialect.delta(index, &self.texts[index], &piece, &tokens, out);
            self.texts[index].add(piece, tokens);
        }
    }

    /// Begins a text with its first event.
    fn begin(&mut self, index: usize, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.texts[index].begun, true) {
            self.dialect.begin(index, &self.texts[index], out);
        }
    }
}

impl<D: Dialect> Translate for Answer<D> {
    fn open(&mut self, out: &mut Vec<u8>) {
        self.dialect.open(out);
    }

    fn event(&mut self, index: usize, event: Event, out: &mut Vec<u8>) {
        if self.is_done() || index >= self.texts.len() {
            return;
        }
        match event {
            Event::Prompt(tokens) => {
                self.texts[index].prompt = tokens;
                self.begin(index, out);
            }
            Event::Text(text, tokens) => {
                self.begin(index, out);
                let pieces = self.texts[index].split(text);
                self.pieces(index, pieces, tokens, out);
            }
            Event::Done(summary) => {
                self.begin(index, out);
                let text = &mut self.texts[index];
                let rest = text.splitter.as_mut().map(Splitter::finish).unwrap_or_default();
                self.pieces(index, rest, Vec::new(), out);
                let text = &mut self.texts[index];
                text.summary = Some(summary);
                self.count(&summary, index);
                self.dialect.end(index, &self.texts[index], &summary, out);
                self.left -= 1;
                if self.left == 0 {
                    self.dialect.close(&self.usage, out);
                }
            }
            Event::Embedding(..) => {}
            Event::Failed(error) => {
                self.broken = true;
                self.dialect.fail(&error, out);
            }
        }
    }

    fn is_done(&self) -> bool {
        self.left == 0 || self.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmx_ggml::run::Finish;
    use serde_json::json;
    use std::time::Duration;

    /// Writes a line for each thing that happens.
    struct Lines;

    impl Dialect for Lines {
        const STREAM: &'static str = "text/plain";

        fn open(&mut self, out: &mut Vec<u8>) {
            out.extend_from_slice(b"open\n");
        }

        fn begin(&mut self, index: usize, _text: &Text, out: &mut Vec<u8>) {
            out.extend_from_slice(format!("{index} begin\n").as_bytes());
        }

        fn delta(
            &mut self,
            index: usize,
            text: &Text,
            piece: &Piece,
            tokens: &[TokenLogprob],
            out: &mut Vec<u8>,
        ) {
            let line = match piece {
                Piece::Content(text) => format!("says {text:?}"),
                Piece::Thought(text) => format!("thinks {text:?}"),
                Piece::Call(call) => format!("call {}: {}", text.calls, call.name),
            };
            out.extend_from_slice(format!("{index} {line}, {} tokens\n", tokens.len()).as_bytes());
        }

        fn end(&mut self, index: usize, text: &Text, _summary: &Summary, out: &mut Vec<u8>) {
            out.extend_from_slice(format!("{index} end: {}\n", text.finish()).as_bytes());
        }

        fn close(&mut self, usage: &Usage, out: &mut Vec<u8>) {
            let line = format!("close: {} and {}\n", usage.prompt, usage.completion);
            out.extend_from_slice(line.as_bytes());
        }

        fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
            out.extend_from_slice(error.message.as_bytes());
        }

        fn whole(self, texts: Vec<Text>, usage: &Usage) -> Value {
            let one = |text: &Text| {
                let names: Vec<&str> = text.called().map(|call| call.name.as_str()).collect();
                json!([text.thought(), text.content(), names, text.tokens().count(), text.finish()])
            };
            json!([texts.iter().map(one).collect::<Vec<_>>(), usage.prompt, usage.completion])
        }
    }

    fn done(finish: Finish) -> Event {
        Event::Done(Summary {
            finish,
            stop: None,
            prompt_tokens: 5,
            cached_tokens: 0,
            completion_tokens: 7,
            queued: Duration::ZERO,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        })
    }

    fn said(text: &str, tokens: usize) -> Event {
        let token = TokenLogprob { id: 1, logprob: -1.0, top: Vec::new() };
        Event::Text(text.to_owned(), vec![token; tokens])
    }

    /// Two texts after one prompt: the first thinks, speaks and calls, the second is cut.
    fn events() -> Vec<(usize, Event)> {
        vec![
            (0, said("<think>\nh", 3)),
            (1, said("a", 1)),
            (0, said("m\n</think>\n", 2)),
            (0, said("\nyes\n<tool_call>{\"name\": \"f\"}</tool_call>", 1)),
            (1, done(Finish::Length)),
            (0, done(Finish::Stop)),
        ]
    }

    fn answer() -> Answer<Lines> {
        let text = |same_prompt| Text::new(Some(Splitter::new(false, true)), same_prompt);
        Answer::new(Lines, vec![text(false), text(true)])
    }

    #[test]
    fn parts_come_as_soon_as_they_are_certain_and_a_prompt_is_counted_once() {
        let (mut answer, mut out) = (answer(), Vec::new());
        Translate::open(&mut answer, &mut out);
        for (index, event) in events() {
            assert!(!answer.is_done());
            answer.event(index, event, &mut out);
        }
        assert!(answer.is_done());
        let expected = "open\n0 begin\n0 thinks \"h\", 3 tokens\n1 begin\n1 says \"a\", 1 tokens\n\
             0 thinks \"m\", 2 tokens\n0 says \"yes\", 1 tokens\n0 call 0: f, 0 tokens\n\
             1 end: length\n0 end: stop\nclose: 5 and 14\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_whole_answer_has_the_parts_of_a_stream() {
        let mut answer = answer();
        events().into_iter().for_each(|(index, event)| answer.take(index, event));
        let whole = answer.dialect.whole(answer.texts, &answer.usage);
        let expected =
            json!([[["hm", "yes", ["f"], 6, "stop"], ["", "a", [], 1, "length"]], 5, 14]);
        assert_eq!(whole, expected);
    }

    #[test]
    fn nothing_comes_after_a_failure() {
        let (mut answer, mut out) = (answer(), Vec::new());
        answer.event(0, Event::Failed(ApiError::unavailable("gone")), &mut out);
        assert!(answer.is_done());
        answer.event(1, said("a", 0), &mut out);
        assert_eq!(out, b"gone");
    }
}
