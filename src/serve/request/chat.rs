//! A chat as every protocol asks for it: checked, rendered and queued.

use std::sync::Arc;

use mmx_converters::chat::answer::Splitter;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::engine::Events;
use crate::engine::grammar::Function;
use crate::error::ApiError;
use crate::fields::wrong_type;
use crate::request::messages;
use crate::request::sampling::Params;
use crate::served_model::ServedModel;

/// A queued chat: everything that a protocol needs to answer it.
pub(crate) struct Chat {
    pub(crate) served: Arc<ServedModel>,
    pub(crate) events: Events,
    pub(crate) splitters: Vec<Splitter>,
}

/// A request for a chat, in the words that all protocols share.
pub(crate) struct Ask {
    pub(crate) model: Option<String>,
    pub(crate) messages: Vec<Value>,
    pub(crate) params: Params,
    pub(crate) logprobs: Option<usize>,
    pub(crate) schema: Option<Value>,
    pub(crate) tools: Option<Vec<Value>>,
    pub(crate) tool_choice: Option<Value>,
    /// One answer may hold several calls.
    pub(crate) several_calls: bool,
    /// Variables for the chat template.
    pub(crate) variables: Map<String, Value>,
}

/// Template variables that turn thinking on or off: MiniMind's own name and Qwen's.
pub(crate) fn thinking_variables(think: bool) -> Map<String, Value> {
    ["open_thinking", "enable_thinking"]
        .map(|key| (key.to_owned(), think.into()))
        .into_iter()
        .collect()
}

/// Checks, renders and queues a chat.
///
/// # Errors
/// 400 with the field, 404 for an unknown model, 429 when the queue is full, 503 when the engine is
/// gone.
pub(crate) fn start(app: &App, ask: Ask) -> Result<Chat, ApiError> {
    let served = app.find(ask.model.as_deref())?;
    let messages = messages::check(ask.messages)?;
    let choice = ToolChoice::of(ask.tool_choice)?;
    let tools = ask.tools.filter(|t| !t.is_empty() && choice != ToolChoice::None);
    let functions = functions(tools.as_deref().unwrap_or_default())?;
    if tools.is_some() {
        let knows = served.tokenizer()?.shows_tools();
        if !knows {
            let text = format!("tools: the chat template of {} has no place for tools", served.id);
            return Err(ApiError::invalid("tools", text));
        }
    }
    let rendered = served.render(&messages, tools.map(Value::Array), ask.variables)?;
    let checked = ask.params.check(app, &served, rendered.ids.len(), "messages")?;
    let forced: Option<Vec<Function>> = match &choice {
        ToolChoice::None | ToolChoice::Auto => None,
        ToolChoice::Required => Some(functions.clone()),
        ToolChoice::Named(name) => {
            Some(functions.iter().filter(|f| f.name == *name).cloned().collect())
        }
    };
    if forced.as_ref().is_some_and(Vec::is_empty) {
        return Err(ApiError::invalid(
            "tool_choice",
            "tool_choice: no such tool is among the tools",
        ));
    }
    let mut texts = Vec::new();
    for index in 0..checked.choices {
        let constraint = match (&forced, &ask.schema) {
            (Some(tools), _) => {
                let several = ask.several_calls;
                Some(served.call_constraint(tools, several, rendered.thinking)?)
            }
            (None, Some(schema)) => Some(served.constraint(schema.clone(), rendered.thinking)?),
            (None, None) => None,
        };
        texts.push((rendered.ids.clone(), checked.to_write(index, ask.logprobs, constraint)));
    }
    let splitter = Splitter::new(rendered.thinking, !functions.is_empty());
    let splitters = vec![splitter; texts.len()];
    let events = served.write(&app.options, texts)?;
    Ok(Chat { served, events, splitters })
}

#[derive(Debug, PartialEq)]
enum ToolChoice {
    None,
    Auto,
    Required,
    Named(String),
}

impl ToolChoice {
    fn of(value: Option<Value>) -> Result<Self, ApiError> {
        match value {
            None | Some(Value::Null) => Ok(Self::Auto),
            Some(Value::String(word)) if word == "auto" => Ok(Self::Auto),
            Some(Value::String(word)) if word == "none" => Ok(Self::None),
            Some(Value::String(word)) if word == "required" => Ok(Self::Required),
            Some(value) => match value.pointer("/function/name").and_then(Value::as_str) {
                Some(name) => Ok(Self::Named(name.to_owned())),
                None => Err(ApiError::invalid(
                    "tool_choice",
                    format!(
                        "tool_choice: expected none, auto, required or a function, found {value}"
                    ),
                )),
            },
        }
    }
}

/// Reads names and argument schemas of the tools of a request.
fn functions(tools: &[Value]) -> Result<Vec<Function>, ApiError> {
    tools
        .iter()
        .enumerate()
        .map(|(i, tool)| {
            if let Some(kind) = tool.get("type").filter(|kind| *kind != "function") {
                let place = format!("tools[{i}].type");
                let text = format!("{place}: expected function, found {kind}");
                return Err(ApiError::invalid(&place, text));
            }
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name").and_then(Value::as_str).filter(|n| !n.is_empty());
            let name = name.ok_or_else(|| {
                let place = format!("tools[{i}].function.name");
                ApiError::invalid(&place, format!("{place}: expected a name, found none"))
            })?;
            let place = format!("tools[{i}].function.parameters");
            let schema = match function.get("parameters") {
                None | Some(Value::Null) => json!({"type": "object"}),
                Some(schema @ Value::Object(_)) => schema.clone(),
                Some(other) => return Err(wrong_type(&place, "a schema", other)),
            };
            Ok(Function { name: name.to_owned(), schema, place })
        })
        .collect()
}
