//! `/v1/completions`: text after text, without a template.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::StreamOptions;
use super::engine::{Event, Events, Summary, TokenLogprob};
use super::error::ApiError;
use super::params::{Params, check_logprobs, parse, schema_of};
use super::served::Served;
use super::stream::{Translate, Usage, collect, finish_name, respond, sse, sse_done};
use super::{App, blocking, new_id, now};

/// Texts of one request.
const PROMPTS: usize = 64;

#[derive(Debug, Deserialize)]
struct Request {
    model: Option<String>,
    prompt: Input,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<i64>,
    echo: Option<bool>,
    suffix: Option<String>,
    response_format: Option<Value>,
    #[serde(flatten)]
    params: Params,
}

/// A text or ids, or a list of one of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Input {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    ManyIds(Vec<Vec<u32>>),
}

impl Input {
    /// Ids of each text. Control tokens are read as such: a raw text is the client's own template.
    pub(crate) fn ids(self, served: &Served, field: &str) -> Result<Vec<Vec<u32>>, ApiError> {
        let tokenizer = served.tokenizer()?;
        let all = match self {
            Self::Text(text) => vec![tokenizer.encode_text(&text)?],
            Self::Texts(texts) => {
                texts.iter().map(|t| tokenizer.encode_text(t)).collect::<Result<_, _>>()?
            }
            Self::Ids(ids) => vec![ids],
            Self::ManyIds(ids) => ids,
        };
        let fault = |text: String| Err(ApiError::invalid(field, format!("{field}: {text}")));
        if all.is_empty() || all.len() > PROMPTS {
            return fault(format!("expected 1 to {PROMPTS} texts, found {}", all.len()));
        }
        if all.iter().any(Vec::is_empty) {
            return fault("expected text, found an empty one".to_owned());
        }
        let vocab = served.model.config().vocab_size;
        match all.iter().flatten().find(|&&id| id as usize >= vocab) {
            Some(id) => fault(format!("expected ids below {vocab}, found {id}")),
            None => Ok(all),
        }
    }
}

/// Answers `POST /v1/completions`.
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (answer, events, stream) = blocking(move || {
        let request: Request = parse(&body)?;
        if request.suffix.is_some_and(|s| !s.is_empty()) {
            return Err(ApiError::invalid(
                "suffix",
                "suffix: filling in the middle is not supported",
            ));
        }
        let served = app.find(request.model.as_deref())?;
        let schema = schema_of(request.response_format)?;
        let logprobs = request.logprobs.map(|n| check_logprobs("logprobs", n)).transpose()?;
        let tokenizer = served.tokenizer()?;
        let mut texts = Vec::new();
        let mut choices = Vec::new();
        for ids in request.prompt.ids(&served, "prompt")? {
            let checked = request.params.clone().check(&app, &served, ids.len())?;
            let echo = request.echo.unwrap_or(false).then(|| tokenizer.decode(&ids, false));
            for choice in 0..checked.choices {
                let constraint =
                    schema.clone().map(|schema| served.constraint(schema, false)).transpose()?;
                texts.push((ids.clone(), checked.to_write(choice, logprobs, constraint)));
                choices.push(Choice {
                    text: String::new(),
                    echo: echo.clone(),
                    tokens: Vec::new(),
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
            include_usage: request.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
            logprobs: logprobs.is_some(),
            usage: Usage::default(),
            broken: false,
        };
        Ok((answer, events, request.stream.unwrap_or(false)))
    })
    .await?;
    if stream {
        return Ok(respond("text/event-stream", events, answer));
    }
    answer.whole(events).await
}

struct Choice {
    text: String,
    /// The prompt, until it was sent.
    echo: Option<String>,
    tokens: Vec<TokenLogprob>,
    /// Not the first text after its prompt.
    same_prompt: bool,
    finish: &'static str,
}

struct Answer {
    id: String,
    created: u64,
    served: Arc<Served>,
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
            let Some(choice) = self.choices.get_mut(index) else { return };
            match event {
                Event::Text(text, tokens) => {
                    choice.text.push_str(&text);
                    choice.tokens.extend(tokens);
                }
                Event::Done(summary) => {
                    choice.finish = finish_name(summary.finish);
                    self.usage.add(&summary, choice.same_prompt);
                }
                Event::Embedding(..) | Event::Failed(_) => {}
            }
        })
        .await?;
        let choices: Vec<Value> = self
            .choices
            .iter()
            .enumerate()
            .map(|(index, choice)| {
                let logprobs = self.logprobs.then(|| self.logprobs_json(&choice.tokens));
                json!({
                    "index": index,
                    "text": choice.echo.clone().unwrap_or_default() + &choice.text,
                    "logprobs": logprobs,
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

    fn text(
        &self,
        index: usize,
        text: &str,
        tokens: &[TokenLogprob],
        finish: Option<&str>,
    ) -> Value {
        let logprobs = (self.logprobs && !tokens.is_empty()).then(|| self.logprobs_json(tokens));
        self.chunk(json!([
            {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        ]))
    }

    /// OpenAI's older form of probabilities.
    fn logprobs_json(&self, tokens: &[TokenLogprob]) -> Value {
        let Ok(tokenizer) = self.served.tokenizer() else { return Value::Null };
        let text = |id: u32| tokenizer.decode(&[id], false);
        let mut offset = 0;
        let mut offsets = Vec::new();
        for token in tokens {
            offsets.push(offset);
            offset += text(token.id).chars().count();
        }
        let top = |token: &TokenLogprob| -> Map<String, Value> {
            token.top.iter().map(|&(id, logprob)| (text(id), logprob.into())).collect()
        };
        json!({
            "tokens": tokens.iter().map(|t| text(t.id)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }

    fn echo(&mut self, index: usize, out: &mut Vec<u8>) {
        if let Some(prompt) = self.choices[index].echo.take() {
            sse(out, &self.text(index, &prompt, &[], None));
        }
    }

    fn done(&mut self, index: usize, summary: &Summary, out: &mut Vec<u8>) {
        sse(out, &self.text(index, "", &[], Some(finish_name(summary.finish))));
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
            Event::Text(text, tokens) => {
                self.echo(index, out);
                sse(out, &self.text(index, &text, &tokens, None));
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
