//! A chat as every protocol asks for it: rendered and queued.

use std::sync::Arc;

use mmx_converters::chat::answer::Splitter;
use serde_json::{Map, Value};

use crate::answer::Text;
use crate::app::App;
use crate::engine::Events;
use crate::engine::grammar::Constraint;
use crate::error::ApiError;
use crate::request::sampling::Params;
use crate::request::tools::Tools;
use crate::served_model::ServedModel;

/// A queued chat: everything that a protocol needs to answer it.
pub(crate) struct Chat {
    pub(crate) events: Events,
    pub(crate) texts: Vec<Text>,
    /// Number of the prompt's tokens.
    pub(crate) prompt_tokens: usize,
}

/// A request for a chat, in the words that all protocols share.
pub(crate) struct Ask {
    pub(crate) served: Arc<ServedModel>,
    /// Messages in the form of templates, checked.
    pub(crate) messages: Vec<Value>,
    /// The request's field that holds the messages.
    pub(crate) field: &'static str,
    pub(crate) params: Params,
    pub(crate) logprobs: Option<usize>,
    pub(crate) schema: Option<Schema>,
    pub(crate) tools: Tools,
    /// Variables for the chat template.
    pub(crate) variables: Map<String, Value>,
}

/// A JSON schema that an answer must fit.
#[derive(Clone, Debug)]
pub(crate) struct Schema {
    pub(crate) value: Value,
    /// The request's field that holds it.
    pub(crate) place: &'static str,
}

impl Schema {
    /// Makes the constraint of a text that must fit it.
    pub(crate) fn constraint(
        &self,
        served: &ServedModel,
        thinking: bool,
    ) -> Result<Constraint, ApiError> {
        served.constraint(self.value.clone(), self.place, thinking)
    }
}

/// Template variables that turn thinking on or off: MiniMind's own name and Qwen's.
pub(crate) const THINKING: [&str; 2] = ["open_thinking", "enable_thinking"];

/// The template variables [`THINKING`] with a value.
pub(crate) fn thinking_variables(think: bool) -> Map<String, Value> {
    THINKING.map(|key| (key.to_owned(), think.into())).into_iter().collect()
}

/// True where the template has a place for thoughts.
pub(crate) fn thinks(served: &ServedModel) -> bool {
    let words = ["<think>", "open_thinking", "enable_thinking"];
    let template = served.model.tokenizer().ok().and_then(|t| t.template());
    template.is_some_and(|t| words.iter().any(|word| t.source().contains(word)))
}

/// Renders a chat, checks what is asked against the prompt, and queues it.
///
/// # Errors
/// 400 with the field, 429 when the queue is full, 503 when the engine is gone.
pub(crate) fn start(app: &App, ask: Ask) -> Result<Chat, ApiError> {
    let Ask { served, tools, .. } = ask;
    let any = !tools.functions.is_empty();
    if any && !served.tokenizer()?.shows_tools() {
        let text = format!("tools: the chat template of {} has no place for tools", served.id);
        return Err(ApiError::invalid("tools", text));
    }
    let shown = any.then(|| Value::Array(tools.shown.clone()));
    let rendered = served.render(&ask.messages, shown, ask.variables, ask.field)?;
    let checked = ask.params.check(app, &served, rendered.ids.len(), ask.field)?;
    let forced = tools.forced()?;
    let mut texts = Vec::new();
    for index in 0..checked.choices {
        let constraint = match (&forced, &ask.schema) {
            (Some(forced), _) => {
                Some(served.call_constraint(forced, !tools.one_call, rendered.thinking)?)
            }
            (None, Some(schema)) => Some(schema.constraint(&served, rendered.thinking)?),
            (None, None) => None,
        };
        texts.push((rendered.ids.clone(), checked.to_write(index, ask.logprobs, constraint)));
    }
    let splitter = Splitter::new(rendered.thinking, any);
    let states = (0..texts.len()).map(|index| Text::new(Some(splitter.clone()), index > 0));
    let states = states.collect();
    let events = served.write(&app.options, texts)?;
    Ok(Chat { events, texts: states, prompt_tokens: rendered.ids.len() })
}
