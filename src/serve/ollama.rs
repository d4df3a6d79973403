//! Ollama's API: `/api/chat`, `/api/generate`, `/api/tags`, `/api/show`, `/api/ps`, `/api/version`,
//! `/api/embed`. Streams are lines of JSON. Source: Ollama's API documentation.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::{Ask, start, thinking_variables};
use super::completions::Input;
use super::engine::{Event, Events, Summary};
use super::error::ApiError;
use super::params::{OneOrMany, Params, parse};
use super::served::{Served, parameters};
use super::stream::{Translate, collect, finish_name, respond};
use super::{App, blocking, embeddings};
use crate::answer::{Piece, Splitter};

/// The version whose API this is.
const VERSION: &str = "0.12.6";

#[derive(Debug, Default, Deserialize)]
struct OllamaOptions {
    num_predict: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    repeat_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
}

impl OllamaOptions {
    fn params(self) -> Params {
        Params {
            max_tokens: self.num_predict.filter(|&n| n >= 0), // negative: no limit
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            stop: self.stop,
            ..Params::default()
        }
    }
}

#[derive(Debug, Deserialize)]
struct Request {
    model: Option<String>,
    #[serde(default)]
    messages: Vec<Value>,
    #[serde(default)]
    prompt: String,
    system: Option<String>,
    raw: Option<bool>,
    suffix: Option<String>,
    images: Option<Vec<Value>>,
    stream: Option<bool>,
    format: Option<Value>,
    tools: Option<Vec<Value>>,
    /// true, false, or how hard
    think: Option<Value>,
    options: Option<OllamaOptions>,
}

/// `"json"`, or a schema.
fn schema_of(format: Option<Value>) -> Result<Option<Value>, ApiError> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => Ok(Some(json!({"type": "object"}))),
        Some(schema @ Value::Object(_)) => Ok(Some(schema)),
        Some(other) => {
            let text = format!("format: expected json or a schema, found {other}");
            Err(ApiError::invalid("format", text))
        }
    }
}

/// Answers `POST /api/chat`.
pub(crate) async fn chat(state: State<Arc<App>>, body: Bytes) -> Response {
    answer(state.0, body, Form::Chat).await.unwrap_or_else(ApiError::ollama)
}

/// Answers `POST /api/generate`.
pub(crate) async fn generate(state: State<Arc<App>>, body: Bytes) -> Response {
    answer(state.0, body, Form::Generate).await.unwrap_or_else(ApiError::ollama)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Chat,
    Generate,
}

async fn answer(app: Arc<App>, body: Bytes, form: Form) -> Result<Response, ApiError> {
    let since = Instant::now();
    let (answer, events, stream) = blocking(move || {
        let mut request: Request = parse(&body)?;
        let stream = request.stream.unwrap_or(true);
        if request.images.is_some_and(|images| !images.is_empty()) {
            return Err(ApiError::invalid("images", "images: this model reads text only"));
        }
        if request.suffix.is_some_and(|s| !s.is_empty()) {
            return Err(ApiError::invalid(
                "suffix",
                "suffix: filling in the middle is not supported",
            ));
        }
        let nothing = match form {
            Form::Chat => request.messages.is_empty(),
            Form::Generate => request.prompt.is_empty(),
        };
        if nothing {
            // what Ollama's clients send to load a model
            let served = app.find(request.model.as_deref())?;
            return Ok((
                Answer::new(served, form, Splitter::new(false, false), since),
                None,
                stream,
            ));
        }
        let params = request.options.take().unwrap_or_default().params();
        let schema = schema_of(request.format.take())?;
        if form == Form::Generate && request.raw == Some(true) {
            let served = app.find(request.model.as_deref())?;
            let ids = served.tokenizer()?.encode(&request.prompt)?;
            let checked = params.check(&app, &served, ids.len(), "prompt")?;
            let constraint = schema.map(|schema| served.constraint(schema, false)).transpose()?;
            let events =
                served.write(&app.options, vec![(ids, checked.to_write(0, None, constraint))])?;
            let answer = Answer::new(served, form, Splitter::new(false, false), since);
            return Ok((answer, Some(events), stream));
        }
        let messages = match form {
            Form::Chat => request.messages,
            Form::Generate => {
                let system = request.system.iter().map(|s| json!({"role": "system", "content": s}));
                system.chain([json!({"role": "user", "content": request.prompt})]).collect()
            }
        };
        let variables = match request.think {
            None | Some(Value::Null) => Map::new(),
            Some(think) => thinking_variables(think != Value::Bool(false)),
        };
        let chat = start(
            &app,
            Ask {
                model: request.model,
                messages,
                params,
                logprobs: None,
                schema,
                tools: request.tools,
                tool_choice: None,
                several_calls: true,
                variables,
            },
        )?;
        let splitter = chat.splitters.into_iter().next();
        let splitter = splitter.unwrap_or_else(|| Splitter::new(false, false));
        Ok((Answer::new(chat.served, form, splitter, since), Some(chat.events), stream))
    })
    .await?;
    match events {
        None => Ok(Json(answer.loaded()).into_response()),
        Some(events) if stream => Ok(respond("application/x-ndjson", events, answer)),
        Some(events) => answer.whole(events).await,
    }
}

struct Answer {
    served: Arc<Served>,
    form: Form,
    splitter: Splitter,
    since: Instant,
    done: bool,
}

impl Answer {
    fn new(served: Arc<Served>, form: Form, splitter: Splitter, since: Instant) -> Self {
        Self { served, form, splitter, since, done: false }
    }

    fn object(&self) -> Value {
        let created = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        json!({"model": self.served.id, "created_at": created})
    }

    /// Text, thought and calls in the protocol's places.
    fn part(&self, content: &str, thought: &str, calls: Vec<Value>) -> Value {
        let mut object = self.object();
        match self.form {
            Form::Chat => {
                let mut message = json!({"role": "assistant", "content": content});
                if !thought.is_empty() {
                    message["thinking"] = thought.into();
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                object["message"] = message;
            }
            Form::Generate => {
                object["response"] = content.into();
                if !thought.is_empty() {
                    object["thinking"] = thought.into();
                }
            }
        }
        object["done"] = false.into();
        object
    }

    fn loaded(&self) -> Value {
        let mut object = self.part("", "", Vec::new());
        object["done"] = true.into();
        object["done_reason"] = "load".into();
        object
    }

    fn end(&self, mut object: Value, summary: &Summary) -> Value {
        let nanoseconds = |d: std::time::Duration| d.as_nanos() as u64;
        object["done"] = true.into();
        object["done_reason"] = finish_name(summary.finish).into();
        object["total_duration"] = nanoseconds(self.since.elapsed()).into();
        object["load_duration"] = nanoseconds(summary.queued).into();
        object["prompt_eval_count"] = summary.prompt_tokens.into();
        object["prompt_eval_duration"] = nanoseconds(summary.prefill).into();
        object["eval_count"] = summary.completion_tokens.into();
        object["eval_duration"] = nanoseconds(summary.decode).into();
        object
    }

    async fn whole(mut self, events: Events) -> Result<Response, ApiError> {
        let (mut content, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
        let mut end = None;
        collect(events, 1, |_, event| {
            let pieces = match event {
                Event::Text(text, _) => self.splitter.push(&text),
                Event::Done(summary) => {
                    end = Some(summary);
                    self.splitter.finish()
                }
                Event::Prompt(_) | Event::Embedding(..) | Event::Failed(_) => return,
            };
            for piece in pieces {
                match piece {
                    Piece::Content(text) => content.push_str(&text),
                    Piece::Thought(text) => thought.push_str(&text),
                    Piece::Call(call) => calls.push(call_json(&call)),
                }
            }
        })
        .await?;
        let end = end.ok_or_else(|| ApiError::unavailable("the engine has ended"))?;
        let object = self.part(&content, &thought, calls);
        Ok(Json(self.end(object, &end)).into_response())
    }

    fn lines(&self, pieces: Vec<Piece>, out: &mut Vec<u8>) {
        for piece in pieces {
            let part = match piece {
                Piece::Content(text) => self.part(&text, "", Vec::new()),
                Piece::Thought(text) => self.part("", &text, Vec::new()),
                Piece::Call(call) => self.part("", "", vec![call_json(&call)]),
            };
            line(out, &part);
        }
    }
}

impl Translate for Answer {
    fn event(&mut self, _index: usize, event: Event, out: &mut Vec<u8>) {
        if self.done {
            return;
        }
        match event {
            Event::Text(text, _) => {
                let pieces = self.splitter.push(&text);
                self.lines(pieces, out);
            }
            Event::Done(summary) => {
                let pieces = self.splitter.finish();
                self.lines(pieces, out);
                line(out, &self.end(self.part("", "", Vec::new()), &summary));
                self.done = true;
            }
            Event::Prompt(_) | Event::Embedding(..) => {}
            Event::Failed(error) => {
                line(out, &json!({"error": error.message}));
                self.done = true;
            }
        }
    }

    fn is_done(&self) -> bool {
        self.done
    }
}

fn line(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(value.to_string().as_bytes());
    out.push(b'\n');
}

/// Ollama's form of a call: arguments are an object.
fn call_json(call: &crate::answer::Call) -> Value {
    json!({"function": {"name": call.name, "arguments": call.arguments}})
}

/// Answers `GET /api/version`.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}

/// Answers `GET /api/tags`.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"models": app.served.iter().map(|m| listed(m)).collect::<Vec<_>>()}))
}

/// Answers `GET /api/ps`: all models are loaded as long as the server runs.
pub(crate) async fn running(State(app): State<Arc<App>>) -> Json<Value> {
    let one = |served: &Arc<Served>| {
        let mut value = listed(served);
        value["expires_at"] = "9999-12-31T23:59:59Z".into();
        value["size_vram"] = 0.into();
        value["context_length"] = served.n_ctx.into();
        value
    };
    Json(json!({"models": app.served.iter().map(one).collect::<Vec<_>>()}))
}

fn listed(served: &Served) -> Value {
    let time = chrono::DateTime::from_timestamp(served.created as i64, 0).unwrap_or_default();
    json!({
        "name": served.id,
        "model": served.id,
        "modified_at": time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        "size": served.model.gguf().bytes().len(),
        "digest": served.digest(),
        "details": details(served),
    })
}

fn details(served: &Served) -> Value {
    let family = served.model.config().family.gguf_arch();
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": format!("{:.1}M", parameters(&served.model) as f64 / 1e6),
        "quantization_level": served.quantization(),
    })
}

/// Answers `POST /api/show`.
pub(crate) async fn show(state: State<Arc<App>>, body: Bytes) -> Response {
    show_model(&state.0, &body).unwrap_or_else(ApiError::ollama)
}

fn show_model(app: &App, body: &[u8]) -> Result<Response, ApiError> {
    #[derive(Deserialize)]
    struct Show {
        #[serde(alias = "name")]
        model: Option<String>,
    }
    let request: Show = parse(body)?;
    let served = app.find(request.model.as_deref())?;
    let tokenizer = served.tokenizer()?;
    let template = tokenizer.template().map_or("", |t| t.source());
    let config = served.model.config();
    let arch = config.family.gguf_arch();
    let mut info = Map::new();
    for (key, value) in [
        ("general.architecture".to_owned(), json!(arch)),
        ("general.parameter_count".to_owned(), json!(parameters(&served.model))),
        (format!("{arch}.context_length"), json!(config.max_position_embeddings)),
        (format!("{arch}.embedding_length"), json!(config.hidden_size)),
        (format!("{arch}.block_count"), json!(config.num_hidden_layers)),
        (format!("{arch}.attention.head_count"), json!(config.num_attention_heads)),
        (format!("{arch}.attention.head_count_kv"), json!(config.num_key_value_heads)),
    ] {
        info.insert(key, value);
    }
    let mut capabilities = vec!["completion", "embedding"];
    if template.contains("tools") {
        capabilities.push("tools");
    }
    if template.contains("<think>") {
        capabilities.push("thinking");
    }
    let s = &served.sampling;
    let parameters = [
        format!("temperature {}", s.temperature),
        format!("top_k {}", s.top_k),
        format!("top_p {}", s.top_p),
        format!("num_ctx {}", served.n_ctx),
    ];
    let time = chrono::DateTime::from_timestamp(served.created as i64, 0).unwrap_or_default();
    Ok(Json(json!({
        "modelfile": format!("FROM {}\n", served.id),
        "parameters": parameters.join("\n"),
        "template": template,
        "details": details(&served),
        "model_info": info,
        "capabilities": capabilities,
        "modified_at": time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
    }))
    .into_response())
}

/// Answers `POST /api/embed`.
pub(crate) async fn embed(state: State<Arc<App>>, body: Bytes) -> Response {
    embed_texts(state.0, body).await.unwrap_or_else(ApiError::ollama)
}

async fn embed_texts(app: Arc<App>, body: Bytes) -> Result<Response, ApiError> {
    #[derive(Deserialize)]
    struct Embed {
        model: Option<String>,
        input: Input,
    }
    let since = Instant::now();
    let request: Embed = parse(&body)?;
    let served = app.find(request.model.as_deref())?;
    let (mut vectors, tokens) = embeddings::compute(&app, &served, request.input).await?;
    for vector in &mut vectors {
        // Ollama gives vectors of length one
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        if norm > 0.0 {
            vector.iter_mut().for_each(|x| *x /= norm);
        }
    }
    Ok(Json(json!({
        "model": served.id,
        "embeddings": vectors,
        "total_duration": since.elapsed().as_nanos() as u64,
        "load_duration": 0,
        "prompt_eval_count": tokens,
    }))
    .into_response())
}
