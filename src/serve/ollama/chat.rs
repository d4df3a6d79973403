//! `/api/chat` and `/api/generate`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use mmx_converters::chat::answer::Splitter;
use serde_json::{Map, Value, json};

use super::options;
use super::wire::{end, is_zero, model};
use super::words::{Form, Words};
use crate::answer::{Answer, Text};
use crate::app::{App, blocking};
use crate::engine::Events;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::request::chat::{Ask, Schema, start, thinking_variables, thinks};
use crate::request::messages;
use crate::request::sampling::{Params, check_logprobs};
use crate::request::tools::{ToolChoice, Tools};

/// Degrees of thinking that clients may ask for; any of them turns thinking on.
const EFFORTS: [&str; 4] = ["low", "medium", "high", "max"];

/// Reads the field `format`: nothing, `"json"`, or a schema.
fn schema_of(format: Option<Value>) -> Result<Option<Schema>, ApiError> {
    let schema = |value| Ok(Some(Schema { value, place: "format" }));
    match format {
        None => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => schema(json!({"type": "object"})),
        Some(value @ Value::Object(_)) => schema(value),
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
        let mut fields = Fields::parse(body)?;
        let model = model(&mut fields)?;
        let stream = fields.flag("stream")?.unwrap_or(true);
        let format = fields.any("format");
        let think = match fields.any("think") {
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
        let params = options::params(fields.within("options")?)?;
        let wanted = fields.flag("logprobs")?.unwrap_or(false);
        let top = match fields.int("top_logprobs")? {
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
        let unload = is_zero(fields.any("keep_alive"))?;
        let (mut messages, mut raw, mut tools, mut nothing) = (Vec::new(), None, Vec::new(), true);
        match form {
            Form::Chat => {
                tools = fields.list("tools")?.unwrap_or_default();
                for (index, message) in
                    fields.list("messages")?.unwrap_or_default().into_iter().enumerate()
                {
                    nothing = false;
                    messages.push(message_of(index, message)?);
                }
            }
            Form::Generate => {
                if fields.list("images")?.is_some_and(|list| !list.is_empty()) {
                    return Err(fields.fault("images", "this model reads text only"));
                }
                for (name, why) in [
                    ("suffix", "filling in the middle is not supported"),
                    ("template", "another template than the model's own is not supported"),
                ] {
                    if fields.filled(name)?.is_some() {
                        return Err(fields.fault(name, why));
                    }
                }
                if fields.list("context")?.is_some_and(|list| !list.is_empty()) {
                    let why = "not supported: /api/chat takes a conversation as messages";
                    return Err(fields.fault("context", why));
                }
                let system = fields.filled("system")?;
                let prompt = fields.filled("prompt")?;
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
        end(fields)?;
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
        if let Some(other) = message.get("name").filter(|other| **other != name) {
            let text = format!(
                "this field and name are one: expected one value, found {name} and {other}"
            );
            return Err(fault("tool_name", &text));
        }
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

async fn answer(app: Arc<App>, body: Bytes, form: Form) -> Result<Response, ApiError> {
    let since = Instant::now();
    let (words, begun, stream) = blocking(move || {
        let request = Request::of(&body, form)?;
        let (num_ctx, stream) = (request.params.n_ctx, request.stream);
        let (words, begun) = begin(&app, request, form, since)
            .map_err(|error| options::with_context(error, num_ctx))?;
        Ok((words, begun, stream))
    })
    .await?;
    match begun {
        None => Ok(Json(words.loaded()).into_response()),
        Some((events, text)) => Answer::new(words, vec![text]).respond(events, stream).await,
    }
}

/// Checks, renders and queues a request. Returns the answer's words, and the events with the state
/// of the text where one is wanted.
fn begin(
    app: &App,
    request: Request,
    form: Form,
    since: Instant,
) -> Result<(Words, Option<(Events, Text)>), ApiError> {
    let served = app.find(request.model.as_deref())?;
    if request.think == Some(true) && !thinks(&served) {
        let text = format!("think: the chat template of {} has no place for thoughts", served.id);
        return Err(ApiError::invalid("think", text));
    }
    let logprobs = request.logprobs.is_some();
    let words = Words { served: served.clone(), form, since, logprobs };
    if request.unload {
        let text = format!(
            "keep_alive: {} stays loaded until mmx serve ends, and is not unloaded",
            served.id
        );
        return Err(ApiError::invalid("keep_alive", text));
    }
    if request.nothing {
        // what Ollama's clients send to load a model
        return Ok((words, None));
    }
    let schema = schema_of(request.format)?;
    if let Some(prompt) = request.raw {
        let ids = served.tokenizer()?.encode_text(&prompt)?;
        let checked = request.params.check(app, &served, ids.len(), "prompt")?;
        let constraint = schema.map(|schema| schema.constraint(&served, false)).transpose()?;
        let write = checked.to_write(0, request.logprobs, constraint);
        let events = served.write(&app.options, vec![(ids, write)])?;
        return Ok((words, Some((events, Text::new(Some(Splitter::new(false, false)), false)))));
    }
    let chat = start(
        app,
        Ask {
            served,
            messages: messages::check(request.messages)?,
            field: "messages",
            params: request.params,
            logprobs: request.logprobs,
            schema,
            tools: Tools::of(request.tools, ToolChoice::Auto)?,
            variables: request.think.map_or_else(Map::new, thinking_variables),
        },
    )?;
    Ok((words, chat.texts.into_iter().next().map(|text| (chat.events, text))))
}
