//! Ollama's API: `/api/chat`, `/api/generate`, `/api/tags`, `/api/show`, `/api/ps`, `/api/version`,
//! `/api/embed`, `/api/embeddings`. Streams are lines of JSON. Source: Ollama's API documentation,
//! and api/types.go of the version below. docs/api-ollama.md lists what is done with every field.

mod fields;
mod manage;
mod options;

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::app::{App, blocking};
use crate::engine::{Event, Events, Summary, TokenLogprob, finish_name};
use crate::error::ApiError;
use crate::request::chat::{Ask, start, thinking_variables};
use crate::request::embed::compute;
use crate::request::input::Input;
use crate::request::messages::name_of;
use crate::request::sampling::{Params, check_logprobs};
use crate::served_model::{ServedModel, parameters};
use crate::stream::{Translate, collect, logprob_json, respond};
use fields::Fields;
pub(crate) use manage::{blob, unsupported};
use mmx_converters::chat::answer::{Piece, Splitter};

/// The version of Ollama whose API is answered.
const VERSION: &str = "0.33.0";
/// Degrees of thinking that clients may ask for; any of them turns thinking on.
const EFFORTS: [&str; 4] = ["low", "medium", "high", "max"];

/// Reads the field `format`: nothing, `"json"`, or a schema.
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

/// A request for text, its fields known and of their types.
struct Request {
    model: Option<String>,
    stream: bool,
    format: Option<Value>,
    think: Option<bool>,
    params: Params,
    logprobs: Option<usize>,
    /// No text is wanted: the model is to be loaded, or unloaded.
    nothing: bool,
    unload: bool,
    tools: Vec<Value>,
    messages: Vec<Value>,
    /// A prompt that is read as it is, without a template.
    raw: Option<String>,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// 400: a field of another type, or one that would be ignored although it changes the answer.
    fn of(body: &[u8], form: Form) -> Result<Self, ApiError> {
        let mut fields = Fields::of(body)?;
        let model = fields.model()?;
        let stream = fields.flag("stream")?.unwrap_or(true);
        let format = fields.take("format");
        let think = match fields.take("think") {
            None => None,
            Some(Value::Bool(think)) => Some(think),
            Some(Value::String(word)) if word.is_empty() => None,
            Some(Value::String(word)) if EFFORTS.contains(&word.as_str()) => Some(true),
            Some(other) => {
                let efforts = EFFORTS.join(", ");
                let text = format!("expected true, false, {efforts}, found {other}");
                return Err(fields.fault("think", &text));
            }
        };
        let params = options::params(fields.options()?)?;
        let wanted = fields.flag("logprobs")?.unwrap_or(false);
        let top = match fields.integer("top_logprobs")? {
            None => 0,
            Some(n) => check_logprobs("top_logprobs", n)?,
        };
        if top > 0 && !wanted {
            return Err(fields.fault("top_logprobs", "expected logprobs to be true beside it"));
        }
        // a prompt that is too long is an error with and without it: nothing is cut in silence
        fields.flag("truncate")?;
        for (name, why) in [
            ("shift", "a text ends where its context is full: expected false or nothing"),
            ("_debug_render_only", "not supported: expected false or nothing"),
        ] {
            if fields.flag(name)? == Some(true) {
                return Err(fields.fault(name, &format!("{why}, found true")));
            }
        }
        let unload = is_zero(fields.take("keep_alive"))?;
        let (mut messages, mut raw, mut tools, mut nothing) = (Vec::new(), None, Vec::new(), true);
        match form {
            Form::Chat => {
                tools = fields.list("tools")?;
                for (index, message) in fields.list("messages")?.into_iter().enumerate() {
                    nothing = false;
                    messages.push(message_of(index, message)?);
                }
            }
            Form::Generate => {
                if !fields.list("images")?.is_empty() {
                    return Err(fields.fault("images", "this model reads text only"));
                }
                for (name, why) in [
                    ("suffix", "filling in the middle is not supported"),
                    ("template", "another template than the model's own is not supported"),
                ] {
                    if fields.text(name)?.is_some() {
                        return Err(fields.fault(name, why));
                    }
                }
                if !fields.list("context")?.is_empty() {
                    let why = "not supported: /api/chat takes a conversation as messages";
                    return Err(fields.fault("context", why));
                }
                let system = fields.text("system")?;
                let prompt = fields.text("prompt")?;
                nothing = prompt.is_none();
                if fields.flag("raw")? == Some(true) {
                    let beside = [("system", system.is_some()), ("think", think == Some(true))];
                    if let Some((name, _)) = beside.into_iter().find(|(_, given)| *given) {
                        return Err(fields.fault(name, "expected none beside raw, found one"));
                    }
                    raw = prompt;
                } else if let Some(prompt) = prompt {
                    messages.extend(system.map(|s| json!({"role": "system", "content": s})));
                    messages.push(json!({"role": "user", "content": prompt}));
                }
            }
        }
        fields.end()?;
        let logprobs = wanted.then_some(top);
        Ok(Self {
            model,
            stream,
            format,
            think,
            params,
            logprobs,
            nothing,
            unload: unload && nothing,
            tools,
            messages,
            raw,
        })
    }
}

/// True for a `keep_alive` of no time at all (`0`, `"0s"`), which asks to unload the model. Any
/// other time changes nothing: models stay loaded.
fn is_zero(keep_alive: Option<Value>) -> Result<bool, ApiError> {
    match keep_alive {
        None => Ok(false),
        Some(Value::Number(number)) => Ok(number.as_f64() == Some(0.0)),
        Some(Value::String(text)) => {
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            Ok(!digits.is_empty() && digits.bytes().all(|b| b == b'0'))
        }
        Some(other) => {
            let text = format!("keep_alive: expected a time, found {}", name_of(&other));
            Err(ApiError::invalid("keep_alive", text))
        }
    }
}

/// Brings one of Ollama's messages into the words that all protocols share. Content other than text
/// is refused, never dropped.
fn message_of(index: usize, message: Value) -> Result<Value, ApiError> {
    let Value::Object(mut message) = message else { return Ok(message) };
    message.retain(|_, value| !value.is_null());
    let fault = |field: &str, text: &str| {
        let place = format!("messages[{index}].{field}");
        ApiError::invalid(&place, format!("{place}: {text}"))
    };
    match message.remove("images") {
        None => {}
        Some(Value::Array(images)) if images.is_empty() => {}
        Some(_) => return Err(fault("images", "this model reads text only")),
    }
    if let Some(name) = message.remove("tool_name") {
        message.insert("name".to_owned(), name);
    }
    if let Some(Value::String(role)) = message.get_mut("role") {
        *role = role.to_lowercase();
    }
    message.entry("content").or_insert_with(|| "".into());
    const KNOWN: [&str; 7] =
        ["role", "content", "thinking", "reasoning_content", "tool_calls", "tool_call_id", "name"];
    match message.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        Some(key) => Err(fault(key, "this field is not supported, and might change the answer")),
        None => Ok(Value::Object(message)),
    }
}

/// True where the template has a place for thoughts.
fn thinks(served: &ServedModel) -> bool {
    let words = ["<think>", "open_thinking", "enable_thinking"];
    let template = served.model.tokenizer().ok().and_then(|t| t.template());
    template.is_some_and(|t| words.iter().any(|word| t.source().contains(word)))
}

/// The capabilities of a model, in Ollama's words. Every model here has embeddings too, but
/// Ollama's clients take a model that says so for one that has nothing else: its command line would
/// answer `run` with a vector.
fn capabilities(served: &ServedModel) -> Vec<&'static str> {
    let tools = served.model.tokenizer().is_ok_and(|t| t.shows_tools());
    let all = [("completion", true), ("tools", tools), ("thinking", thinks(served))];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

async fn answer(app: Arc<App>, body: Bytes, form: Form) -> Result<Response, ApiError> {
    let since = Instant::now();
    let (answer, events, stream) = blocking(move || {
        let request = Request::of(&body, form)?;
        let num_ctx = request.params.n_ctx;
        begin(&app, request, form, since).map_err(|error| options::in_ollamas_words(error, num_ctx))
    })
    .await?;
    match events {
        None => Ok(Json(answer.loaded()).into_response()),
        Some(events) if stream => Ok(respond("application/x-ndjson", events, answer)),
        Some(events) => answer.whole(events).await,
    }
}

/// Checks, renders and queues a request. Returns the answer's state, the events (none where no text
/// is wanted), and whether the answer is streamed.
fn begin(
    app: &App,
    request: Request,
    form: Form,
    since: Instant,
) -> Result<(Answer, Option<Events>, bool), ApiError> {
    let served = app.find(request.model.as_deref())?;
    if request.think == Some(true) && !thinks(&served) {
        let text = format!("think: the chat template of {} has no place for thoughts", served.id);
        return Err(ApiError::invalid("think", text));
    }
    let logprobs = request.logprobs.is_some();
    let new = |served, splitter| Answer { served, form, splitter, since, logprobs, done: false };
    if request.unload {
        let text = format!(
            "keep_alive: {} stays loaded until mmx serve ends, and is not unloaded",
            served.id
        );
        return Err(ApiError::invalid("keep_alive", text));
    }
    if request.nothing {
        // what Ollama's clients send to load a model
        return Ok((new(served, Splitter::new(false, false)), None, request.stream));
    }
    let schema = schema_of(request.format)?;
    if let Some(prompt) = request.raw {
        let ids = served.tokenizer()?.encode_text(&prompt)?;
        let checked = request.params.check(app, &served, ids.len(), "prompt")?;
        let constraint = schema.map(|schema| served.constraint(schema, false)).transpose()?;
        let write = checked.to_write(0, request.logprobs, constraint);
        let events = served.write(&app.options, vec![(ids, write)])?;
        return Ok((new(served, Splitter::new(false, false)), Some(events), request.stream));
    }
    let chat = start(
        app,
        Ask {
            model: request.model,
            messages: request.messages,
            params: request.params,
            logprobs: request.logprobs,
            schema,
            tools: Some(request.tools),
            tool_choice: None,
            several_calls: true,
            variables: request.think.map_or_else(Map::new, thinking_variables),
        },
    )?;
    let splitter = chat.splitters.into_iter().next();
    let splitter = splitter.unwrap_or_else(|| Splitter::new(false, false));
    Ok((new(chat.served, splitter), Some(chat.events), request.stream))
}

struct Answer {
    served: Arc<ServedModel>,
    form: Form,
    splitter: Splitter,
    since: Instant,
    logprobs: bool,
    done: bool,
}

impl Answer {
    /// Adds the probabilities of tokens to an object, where they were asked for.
    fn with_logprobs(&self, mut object: Value, tokens: Vec<Value>) -> Value {
        if self.logprobs && !tokens.is_empty() {
            object["logprobs"] = tokens.into();
        }
        object
    }

    fn logprobs_json(&self, tokens: &[TokenLogprob]) -> Vec<Value> {
        tokens.iter().map(|token| logprob_json(&self.served, token)).collect()
    }

    fn object(&self) -> Value {
        let created = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        json!({"model": self.served.id, "created_at": created})
    }

    /// Puts text, thought and calls into the protocol's places.
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
        let (mut end, mut logprobs) = (None, Vec::new());
        collect(events, 1, |_, event| {
            let pieces = match event {
                Event::Text(text, tokens) => {
                    logprobs.extend(self.logprobs_json(&tokens));
                    self.splitter.push(&text)
                }
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
        let object = self.with_logprobs(object, logprobs);
        Ok(Json(self.end(object, &end)).into_response())
    }

    /// Writes a line for each piece; the tokens' probabilities go with the first, or with an empty
    /// one.
    fn lines(&self, mut pieces: Vec<Piece>, mut logprobs: Vec<Value>, out: &mut Vec<u8>) {
        if self.logprobs && !logprobs.is_empty() && pieces.is_empty() {
            pieces.push(Piece::Content(String::new()));
        }
        for piece in pieces {
            let part = match piece {
                Piece::Content(text) => self.part(&text, "", Vec::new()),
                Piece::Thought(text) => self.part("", &text, Vec::new()),
                Piece::Call(call) => self.part("", "", vec![call_json(&call)]),
            };
            line(out, &self.with_logprobs(part, std::mem::take(&mut logprobs)));
        }
    }
}

impl Translate for Answer {
    fn event(&mut self, _index: usize, event: Event, out: &mut Vec<u8>) {
        if self.done {
            return;
        }
        match event {
            Event::Text(text, tokens) => {
                let pieces = self.splitter.push(&text);
                self.lines(pieces, self.logprobs_json(&tokens), out);
            }
            Event::Done(summary) => {
                let pieces = self.splitter.finish();
                self.lines(pieces, Vec::new(), out);
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

/// A call in Ollama's form, in which arguments are an object.
fn call_json(call: &mmx_converters::chat::answer::Call) -> Value {
    json!({"function": {"name": call.name, "arguments": call.arguments}})
}

/// Answers `GET /api/version`.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}

/// Answers `GET /api/status`, which asks for Ollama's own cloud only.
pub(crate) async fn status() -> Json<Value> {
    Json(json!({"cloud": {"disabled": true, "source": "none"}}))
}

/// Answers `GET /api/tags`.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"models": app.served.iter().map(|m| listed(m)).collect::<Vec<_>>()}))
}

/// Answers `GET /api/ps`: all models are loaded as long as the server runs.
pub(crate) async fn running(State(app): State<Arc<App>>) -> Json<Value> {
    let one = |served: &Arc<ServedModel>| {
        let mut value = listed(served);
        value["expires_at"] = "9999-12-31T23:59:59Z".into();
        value["size_vram"] = 0.into();
        value["context_length"] = served.n_ctx.into();
        value
    };
    Json(json!({"models": app.served.iter().map(one).collect::<Vec<_>>()}))
}

fn listed(served: &ServedModel) -> Value {
    let time = chrono::DateTime::from_timestamp(served.created as i64, 0).unwrap_or_default();
    json!({
        "name": served.id,
        "model": served.id,
        "modified_at": time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        "size": served.model.gguf().size(),
        "digest": served.digest(),
        "details": details(served),
        "capabilities": capabilities(served),
    })
}

fn details(served: &ServedModel) -> Value {
    let family = served.model.config().family.gguf_arch();
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": format!("{:.1}M", parameters(&served.model) as f64 / 1e6),
        "quantization_level": served.quantization(),
        "context_length": served.n_ctx,
        "embedding_length": served.model.config().hidden_size,
    })
}

/// Answers `POST /api/show`.
pub(crate) async fn show(state: State<Arc<App>>, body: Bytes) -> Response {
    show_model(&state.0, &body).unwrap_or_else(ApiError::ollama)
}

fn show_model(app: &App, body: &[u8]) -> Result<Response, ApiError> {
    let mut fields = Fields::of(body)?;
    let model = fields.model()?;
    let verbose = fields.flag("verbose")?.unwrap_or(false);
    for name in ["system", "template"] {
        if fields.text(name)?.is_some() {
            return Err(fields.fault(name, "a model is shown as it is: expected nothing"));
        }
    }
    fields.options()?.end()?;
    fields.end()?;
    let served = app.find(model.as_deref())?;
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
    let s = &served.sampling;
    let parameters = [
        format!("temperature {}", s.temperature),
        format!("top_k {}", s.top_k),
        format!("top_p {}", s.top_p),
        format!("num_ctx {}", served.n_ctx),
    ];
    let time = chrono::DateTime::from_timestamp(served.created as i64, 0).unwrap_or_default();
    let mut shown = json!({
        "modelfile": format!("FROM {}\n", served.id),
        "parameters": parameters.join("\n"),
        "template": template,
        "details": details(&served),
        "model_info": info,
        "capabilities": capabilities(&served),
        "modified_at": time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
    });
    let gguf = served.model.gguf();
    if let Some(license) = gguf.metadata().get("general.license").and_then(|l| l.as_str()) {
        shown["license"] = license.into();
    }
    if verbose {
        let tensor = |t: &mmx_converters::gguf::TensorInfo| {
            // the file's order, as Ollama gives it
            let shape: Vec<usize> = t.shape.iter().rev().copied().collect();
            json!({"name": t.name, "type": t.ty.name().to_uppercase(), "shape": shape})
        };
        shown["tensors"] = gguf.tensors().iter().map(tensor).collect();
    }
    Ok(Json(shown).into_response())
}

/// Answers `POST /api/embed`.
pub(crate) async fn embed(state: State<Arc<App>>, body: Bytes) -> Response {
    embed_texts(state.0, body).await.unwrap_or_else(ApiError::ollama)
}

async fn embed_texts(app: Arc<App>, body: Bytes) -> Result<Response, ApiError> {
    let since = Instant::now();
    let mut fields = Fields::of(&body)?;
    let input = match fields.take("input") {
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::Array(texts)) if texts.is_empty() => None,
        None => None,
        Some(value) => Some(serde_json::from_value::<Input>(value).map_err(|_| {
            fields.fault("input", "expected a text or a list of texts, found something else")
        })?),
    };
    let truncate = fields.flag("truncate")?.unwrap_or(true);
    let dimensions = fields.integer("dimensions")?.filter(|&n| n != 0);
    let request = Embed::of(fields, &app)?;
    let hidden = request.served.model.config().hidden_size;
    let dimensions = match dimensions.map(usize::try_from) {
        None => hidden,
        Some(Ok(n)) if n <= hidden => n,
        Some(_) => {
            let text = format!("dimensions: expected 1 to {hidden}");
            return Err(ApiError::invalid("dimensions", text));
        }
    };
    let served = request.served.clone();
    let (vectors, tokens) = match input {
        None => (Vec::new(), 0), // what clients send to load a model
        Some(input) => request.compute(app, input, truncate, dimensions).await?,
    };
    Ok(Json(json!({
        "model": served.id,
        "embeddings": vectors,
        "total_duration": since.elapsed().as_nanos() as u64,
        "load_duration": 0,
        "prompt_eval_count": tokens,
    }))
    .into_response())
}

/// Answers `POST /api/embeddings`, the older form: one prompt, one vector, that of `/api/embed`.
pub(crate) async fn embeddings(state: State<Arc<App>>, body: Bytes) -> Response {
    embed_prompt(state.0, body).await.unwrap_or_else(ApiError::ollama)
}

async fn embed_prompt(app: Arc<App>, body: Bytes) -> Result<Response, ApiError> {
    let mut fields = Fields::of(&body)?;
    let prompt = fields.text("prompt")?;
    let request = Embed::of(fields, &app)?;
    let hidden = request.served.model.config().hidden_size;
    let vector = match prompt {
        None => None, // what clients send to load a model
        Some(prompt) => {
            let (vectors, _) = request.compute(app, Input::Text(prompt), true, hidden).await?;
            vectors.into_iter().next()
        }
    };
    Ok(Json(json!({"embedding": vector.unwrap_or_default()})).into_response())
}

/// A request for vectors: the model, and the most tokens of a text.
struct Embed {
    served: Arc<ServedModel>,
    n_ctx: usize,
}

impl Embed {
    /// Reads the fields that both addresses for vectors share.
    fn of(mut fields: Fields, app: &App) -> Result<Self, ApiError> {
        let model = fields.model()?;
        is_zero(fields.take("keep_alive"))?;
        let params = options::params(fields.options()?)?; // how text is written does not matter
        fields.end()?;
        let served = app.find(model.as_deref())?;
        let n_ctx = params.n_ctx.map_or(served.n_ctx, |n| n.min(served.n_ctx));
        Ok(Self { served, n_ctx })
    }

    /// Computes vectors of length one, `[texts, dimensions]`, and counts the tokens read. A text
    /// that is too long is cut where `truncate` says so.
    ///
    /// # Errors
    /// 400: no texts, or one that is too long.
    async fn compute(
        self,
        app: Arc<App>,
        input: Input,
        truncate: bool,
        dimensions: usize,
    ) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
        let (served, n_ctx) = (self.served.clone(), self.n_ctx);
        let ids = blocking(move || {
            let mut all = input.ids(&served, "input")?;
            for ids in all.iter_mut().filter(|ids| ids.len() > n_ctx) {
                if !truncate {
                    let text = format!("input: {} tokens, the context holds {n_ctx}", ids.len());
                    return Err(ApiError::invalid("input", text).coded("context_length_exceeded"));
                }
                ids.truncate(n_ctx);
            }
            Ok(all)
        })
        .await?;
        let input = Input::ManyIds(ids);
        let (mut vectors, tokens) = compute(&app, &self.served, input).await?;
        for vector in &mut vectors {
            vector.truncate(dimensions);
            let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            if norm > 0.0 {
                vector.iter_mut().for_each(|x| *x /= norm);
            }
        }
        Ok((vectors, tokens))
    }
}
