//! `/v1/completions`: texts that continue raw texts, without a template.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use mmx_converters::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use crate::app::{App, blocking, new_id, now};
use crate::engine::{Event, Events, Summary, TokenLogprob, finish_name};
use crate::error::ApiError;
use crate::fields::{Fields, Refused};
use crate::openai::wire::{Usage, include_usage, sse_done};
use crate::request::input::Input;
use crate::request::sampling::{Params, check_logprobs, schema_of};
use crate::served_model::ServedModel;
use crate::stream::{EVENT_STREAM, Translate, collect, respond, sse};

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
        let mut params = Params::take(&mut fields)?;
        let logprobs = fields.int("logprobs")?;
        let logprobs = logprobs.map(|n| check_logprobs("logprobs", n)).transpose()?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        params.none_written = echo; // then the prompt is an answer too
        let schema = schema_of(fields.any("response_format"))?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        let include_usage = include_usage(&mut fields)?;
        let best_of = fields.int("best_of")?;
        if best_of.is_some_and(|best| best != params.n.unwrap_or(1)) {
            let text =
                "best_of: choosing among texts is not supported: leave it out or set it to n";
            return Err(ApiError::invalid("best_of", text).coded("unsupported_parameter"));
        }
        fields.finish(REFUSED)?;
        let served = app.find(model.as_deref())?;
        let tokenizer = served.tokenizer()?;
        let mut texts = Vec::new();
        let mut choices = Vec::new();
        for ids in prompt.ids(&served, "prompt")? {
            let checked = params.clone().check(&app, &served, ids.len(), "prompt")?;
            let echoed = echo.then(|| Echo { text: tokenizer.decode(&ids, false), first: ids[0] });
            for choice in 0..checked.choices {
                let constraint =
                    schema.clone().map(|schema| served.constraint(schema, false)).transpose()?;
                let mut write = checked.to_write(choice, logprobs, constraint);
                write.echo_logprobs = echo && logprobs.is_some();
                texts.push((ids.clone(), write));
                choices.push(Choice {
                    text: String::new(),
                    echo: echoed.clone(),
                    logprobs: Logprobs::default(),
                    same_prompt: choice > 0,
                    finish: "stop",
                });
            }
        }
        let events = served.write(&app.options, texts)?;
        let answer = Answer {
            id: new_id("cmpl"),
            created: now(),
            served,
            left: choices.len(),
            choices,
            include_usage,
            logprobs: logprobs.is_some(),
            usage: Usage::default(),
            broken: false,
        };
        Ok((answer, events, stream))
    })
    .await?;
    if stream {
        return Ok(respond(EVENT_STREAM, events, answer));
    }
    answer.whole(events).await
}

struct Choice {
    text: String,
    /// The prompt, as long as it is to be sent.
    echo: Option<Echo>,
    /// Probabilities that were not sent yet.
    logprobs: Logprobs,
    /// True for all texts after a prompt but the first.
    same_prompt: bool,
    finish: &'static str,
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

struct Answer {
    id: String,
    created: u64,
    served: Arc<ServedModel>,
    choices: Vec<Choice>,
    left: usize,
    include_usage: bool,
    logprobs: bool,
    usage: Usage,
    broken: bool,
}

impl Answer {
    async fn whole(mut self, events: Events) -> Result<Response, ApiError> {
        collect(events, self.left, |index, event| {
            match &event {
                Event::Prompt(tokens) | Event::Text(_, tokens) => {
                    self.add(index, matches!(event, Event::Prompt(_)), tokens);
                }
                _ => {}
            }
            let Some(choice) = self.choices.get_mut(index) else { return };
            match event {
                Event::Text(text, _) => choice.text.push_str(&text),
                Event::Done(summary) => {
                    choice.finish = finish_name(summary.finish);
                    self.usage.add(&summary, choice.same_prompt);
                }
                Event::Prompt(_) | Event::Embedding(..) | Event::Failed(_) => {}
            }
        })
        .await?;
        let choices: Vec<Value> = self
            .choices
            .iter_mut()
            .enumerate()
            .map(|(index, choice)| {
                let prompt = choice.echo.take().map_or_else(String::new, |echo| echo.text);
                json!({
                    "index": index,
                    "text": prompt + &choice.text,
                    "logprobs": self.logprobs.then(|| choice.logprobs.take()),
                    "finish_reason": choice.finish,
                })
            })
            .collect();
        let mut whole = self.chunk(choices.into());
        whole["usage"] = self.usage.to_json();
        whole["timings"] = self.usage.timings();
        Ok(Json(whole).into_response())
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.served.id,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// Takes up the probabilities of a text's next tokens; of a prompt's, the first one has none.
    fn add(&mut self, index: usize, prompt: bool, tokens: &[TokenLogprob]) {
        let Some(choice) = self.choices.get_mut(index).filter(|_| self.logprobs) else { return };
        let Ok(tokenizer) = self.served.tokenizer() else { return };
        if let Some(echo) = choice.echo.as_ref().filter(|_| prompt) {
            choice.logprobs.push(tokenizer, echo.first, None, true);
        }
        for token in tokens {
            choice.logprobs.push(tokenizer, token.id, Some(token), prompt);
        }
    }

    /// A chunk with the probabilities that were not sent yet.
    fn text(&mut self, index: usize, text: &str, finish: Option<&str>) -> Value {
        let logprobs = &mut self.choices[index].logprobs;
        let logprobs = (!logprobs.tokens.is_empty()).then(|| logprobs.take());
        self.chunk(json!([
            {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        ]))
    }

    fn echo(&mut self, index: usize, out: &mut Vec<u8>) {
        if let Some(echo) = self.choices[index].echo.take() {
            sse(out, &self.text(index, &echo.text, None));
        }
    }

    fn done(&mut self, index: usize, summary: &Summary, out: &mut Vec<u8>) {
        sse(out, &self.text(index, "", Some(finish_name(summary.finish))));
        self.usage.add(summary, self.choices[index].same_prompt);
        self.left -= 1;
        if self.left == 0 {
            if self.include_usage {
                let mut chunk = self.chunk(json!([]));
                chunk["usage"] = self.usage.to_json();
                sse(out, &chunk);
            }
            sse_done(out);
        }
    }
}

impl Translate for Answer {
    fn event(&mut self, index: usize, event: Event, out: &mut Vec<u8>) {
        if self.is_done() || index >= self.choices.len() {
            return;
        }
        match event {
            Event::Prompt(tokens) => {
                self.add(index, true, &tokens);
                self.echo(index, out);
            }
            Event::Text(text, tokens) => {
                self.echo(index, out);
                self.add(index, false, &tokens);
                sse(out, &self.text(index, &text, None));
            }
            Event::Done(summary) => {
                self.echo(index, out);
                self.done(index, &summary, out);
            }
            Event::Embedding(..) => {}
            Event::Failed(error) => {
                self.broken = true;
                sse(out, &error.body());
                sse_done(out);
            }
        }
    }

    fn is_done(&self) -> bool {
        self.left == 0 || self.broken
    }
}
