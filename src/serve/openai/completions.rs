//! `/v1/completions`: texts that continue raw texts, without a template.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use mmx_converters::chat::answer::Piece;
use mmx_converters::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use crate::answer::{Answer, Dialect, Text, Usage};
use crate::app::{App, blocking};
use crate::engine::{Summary, TokenLogprob};
use crate::error::ApiError;
use crate::fields::{Fields, Refused};
use crate::openai::known;
use crate::openai::wire::{
    Head, LIMITS, include_usage, params, schema_of, sse_done, sse_fail, timings, usage_json,
};
use crate::request::input::Input;
use crate::request::sampling::check_logprobs;
use crate::served_model::ServedModel;
use crate::stream::{EVENT_STREAM, sse};

/// Fields that this address does not support, besides those that none does.
const REFUSED: &[Refused] = &[("add_special_tokens", &["true"])];

/// Answers `POST /v1/completions`.
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (answer, events, stream) = blocking(move || {
        let mut fields = Fields::parse(&body)?;
        let model = fields.text("model")?;
        let prompt = Input::of(fields.any("prompt"), "prompt")?;
        let mut params = params(&mut fields, LIMITS)?;
        let logprobs = fields.int("logprobs")?;
        let logprobs = logprobs.map(|n| check_logprobs("logprobs", n)).transpose()?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        params.none_written = echo; // then the prompt is an answer too
        let schema = schema_of(fields.any("response_format"))?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        let include_usage = include_usage(&mut fields)?;
        let best_of = fields.int("best_of")?;
        if best_of.is_some_and(|best| best != params.n.unwrap_or(1)) {
            let text = "choosing among texts is not supported: leave it out or set it to n";
            return Err(fields.fault("best_of", text).coded("unsupported_parameter"));
        }
        fields.finish(&[REFUSED, known::REFUSED], known::IGNORED)?;
        let served = app.find(model.as_deref())?;
        let tokenizer = served.tokenizer()?;
        let (mut texts, mut states, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for ids in prompt.ids(&served, "prompt")? {
            let checked = params.clone().check(&app, &served, ids.len(), "prompt")?;
            let echoed = echo.then(|| Echo { text: tokenizer.decode(&ids, false), first: ids[0] });
            for choice in 0..checked.choices {
                let constraint = schema.as_ref().map(|s| s.constraint(&served, false));
                let mut write = checked.to_write(choice, logprobs, constraint.transpose()?);
                write.echo_logprobs = echo && logprobs.is_some();
                texts.push((ids.clone(), write));
                states.push(Text::new(None, choice > 0));
                parts.push(Parts { echo: echoed.clone(), logprobs: Logprobs::default() });
            }
        }
        let events = served.write(&app.options, texts)?;
        let head = Head::new("cmpl-", "text_completion", &served, include_usage);
        let words = TextWords { head, served, parts, logprobs: logprobs.is_some() };
        Ok((Answer::new(words, states), events, stream))
    })
    .await?;
    answer.respond(events, stream).await
}

/// A prompt that is a part of the answer.
#[derive(Clone)]
struct Echo {
    text: String,
    /// The prompt's first id, which has no probability, since nothing comes before it.
    first: u32,
}

/// Probabilities in OpenAI's older form: parallel lists.
#[derive(Default)]
struct Logprobs {
    tokens: Vec<Value>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
    /// Number of characters that began so far.
    characters: usize,
}

impl Logprobs {
    /// Adds a token; `None` for one without a probability. `echoed`: it is the prompt's, whose
    /// control tokens are text.
    fn push(&mut self, tokenizer: &Tokenizer, id: u32, of: Option<&TokenLogprob>, echoed: bool) {
        let text = |id: u32| tokenizer.decode(&[id], false);
        let silent = !echoed && tokenizer.is_control(id);
        let bytes = if silent { &[] } else { tokenizer.token_bytes(id) };
        // a token may begin or end within a character
        let begins = |byte: &&u8| **byte & 0xc0 != 0x80;
        let within = usize::from(bytes.first().is_some_and(|byte| !begins(&byte)));
        self.text_offset.push(self.characters.saturating_sub(within));
        self.characters += bytes.iter().filter(begins).count();
        self.tokens.push(text(id).into());
        self.token_logprobs.push(of.map(|token| token.logprob));
        self.top_logprobs.push(of.map(|token| {
            let mut top = Map::new();
            for &(id, logprob) in &token.top {
                // parts of characters look alike: the likelier one stays
                top.entry(text(id)).or_insert_with(|| logprob.into());
            }
            top
        }));
    }

    /// Takes the lists out as JSON, which leaves them empty.
    fn take(&mut self) -> Value {
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.token_logprobs),
            "top_logprobs": std::mem::take(&mut self.top_logprobs),
            "text_offset": std::mem::take(&mut self.text_offset),
        })
    }
}

/// The words of raw texts.
struct TextWords {
    head: Head,
    served: Arc<ServedModel>,
    /// One for each text.
    parts: Vec<Parts>,
    /// The tokens' probabilities were asked for.
    logprobs: bool,
}

/// What of a text is still to be sent.
struct Parts {
    /// The prompt, where it is a part of the answer.
    echo: Option<Echo>,
    logprobs: Logprobs,
}

impl TextWords {
    /// Takes up the probabilities of a prompt that is a part of the answer, or of the tokens after
    /// it.
    fn add<'t>(
        &mut self,
        index: usize,
        prompt: bool,
        tokens: impl IntoIterator<Item = &'t TokenLogprob>,
    ) {
        let Some(parts) = self.parts.get_mut(index).filter(|_| self.logprobs) else { return };
        let Ok(tokenizer) = self.served.tokenizer() else { return };
        if let Some(echo) = parts.echo.as_ref().filter(|_| prompt) {
            parts.logprobs.push(tokenizer, echo.first, None, true);
        }
        for token in tokens {
            parts.logprobs.push(tokenizer, token.id, Some(token), prompt);
        }
    }

    /// Adds a chunk with the probabilities that were not sent yet.
    fn chunk(&mut self, index: usize, text: &str, finish: Option<&str>, out: &mut Vec<u8>) {
        let logprobs = &mut self.parts[index].logprobs;
        let logprobs = (!logprobs.tokens.is_empty()).then(|| logprobs.take());
        let choice =
            json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish});
        sse(out, &self.head.chunk("", json!([choice])));
    }
}

impl Dialect for TextWords {
    const STREAM: &'static str = EVENT_STREAM;

    fn begin(&mut self, index: usize, text: &Text, out: &mut Vec<u8>) {
        if self.parts[index].echo.is_some() {
            self.add(index, true, &text.prompt);
        }
        if let Some(echo) = self.parts[index].echo.take() {
            self.chunk(index, &echo.text, None, out);
        }
    }

    fn delta(
        &mut self,
        index: usize,
        _text: &Text,
        piece: &Piece,
        tokens: &[TokenLogprob],
        out: &mut Vec<u8>,
    ) {
        self.add(index, false, tokens);
        if let Piece::Content(text) = piece {
            self.chunk(index, text, None, out);
        }
    }

    fn end(&mut self, index: usize, text: &Text, _summary: &Summary, out: &mut Vec<u8>) {
        self.chunk(index, "", Some(text.finish()), out);
    }

    fn close(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        if self.head.include_usage {
            let mut chunk = self.head.chunk("", json!([]));
            chunk["usage"] = usage_json(usage);
            sse(out, &chunk);
        }
        sse_done(out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        sse_fail(error, out);
    }

    fn whole(mut self, texts: Vec<Text>, usage: &Usage) -> Value {
        let mut choices = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            if self.parts[index].echo.is_some() {
                self.add(index, true, &text.prompt);
            }
            self.add(index, false, text.tokens());
            let parts = &mut self.parts[index];
            let prompt = parts.echo.take().map_or_else(String::new, |echo| echo.text);
            choices.push(json!({
                "index": index,
                "text": prompt + &text.content(),
                "logprobs": self.logprobs.then(|| parts.logprobs.take()),
                "finish_reason": text.finish(),
            }));
        }
        let mut whole = self.head.chunk("", choices.into());
        whole["usage"] = usage_json(usage);
        whole["timings"] = timings(usage);
        whole
    }
}
