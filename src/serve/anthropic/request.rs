//! A request for a message: its fields, each known, refused or ignored by name.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::blocks::{self, required};
use super::words::MessageWords;
use crate::app::App;
use crate::engine::grammar::Function;
use crate::error::ApiError;
use crate::fields::{Fields, Refused};
use crate::request::chat::{Ask, Chat, Schema, start, thinking_variables};
use crate::request::sampling::{Names, OneOrMany, Params};
use crate::request::tools::{ToolChoice, Tools, schema};
use crate::served_model::ServedModel;

/// Fields that are not supported and would change the answer.
const REFUSED: &[Refused] =
    &[("container", &[]), ("context_management", &[]), ("mcp_servers", &["[]"])];
/// Fields that change nothing here: they are about accounts, caches and speed.
const IGNORED: &[&str] = &[
    "betas",
    "cache_control",
    "diagnostics",
    "inference_geo",
    "metadata",
    "service_tier",
    "speed",
    "user_profile_id",
    "workspace_id",
];
/// Fields of a tool that change nothing: caches, and how its arguments are streamed and checked.
const TOOL_IGNORED: &[&str] =
    &["allowed_callers", "cache_control", "eager_input_streaming", "strict"];
/// Degrees of effort; a model here thinks or does not, as `thinking` says.
const EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];
/// Most stop sequences.
const STOPS: usize = 64;

/// A request's fields, known and of their types.
struct Request {
    served: Arc<ServedModel>,
    messages: Vec<Value>,
    tools: Tools,
    schema: Option<Schema>,
    variables: Map<String, Value>,
    /// The text of thoughts is left out of the answer.
    thoughts_omitted: bool,
    params: Params,
    stream: bool,
}

/// Reads, checks, renders and queues a request. Returns the chat, the words of its answer, and
/// whether it is a stream.
///
/// # Errors
/// 400 with the field, 404 for an unknown model, 429 when the queue is full.
pub(super) fn begin(app: &Arc<App>, body: &[u8]) -> Result<(Chat, MessageWords, bool), ApiError> {
    let request = Request::of(app, body, true)?;
    let stop = request.params.stop.clone().map(OneOrMany::into_vec).unwrap_or_default();
    let ask = Ask {
        served: request.served.clone(),
        messages: request.messages,
        field: "messages",
        params: request.params,
        logprobs: None,
        schema: request.schema,
        tools: request.tools,
        variables: request.variables,
    };
    let chat = start(app, ask)?;
    let model = request.served.id.clone();
    let words = MessageWords::new(model, chat.prompt_tokens, stop, request.thoughts_omitted);
    Ok((chat, words, request.stream))
}

/// Counts the tokens of a request's prompt.
///
/// # Errors
/// 400 with the field, 404 for an unknown model.
pub(super) fn count(app: &App, body: &[u8]) -> Result<usize, ApiError> {
    let Request { served, messages, tools, variables, .. } = Request::of(app, body, false)?;
    let shown = (!tools.shown.is_empty()).then(|| Value::Array(tools.shown));
    Ok(served.render(&messages, shown, variables, "messages")?.ids.len())
}

impl Request {
    /// Reads a request; without `write`, one that only counts tokens.
    fn of(app: &App, body: &[u8], write: bool) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.text("model")?;
        let system = blocks::system(&mut fields)?;
        let messages = fields.list("messages")?.unwrap_or_default();
        let (thinking, thoughts_omitted) = thinking(&mut fields)?;
        let schema = output(&mut fields)?;
        let tools = tools(&mut fields)?;
        let mut params = Params::default();
        let mut stream = false;
        if write {
            params = sampling(&mut fields)?;
            stream = fields.flag("stream")?.unwrap_or(false);
        }
        fields.finish(&[REFUSED], IGNORED)?;
        let served = app.find(model.as_deref())?;
        let messages = system.into_iter().chain(blocks::messages(messages)?).collect();
        let variables = thinking.map_or_else(Map::new, thinking_variables);
        Ok(Self { served, messages, tools, schema, variables, thoughts_omitted, params, stream })
    }
}

/// Takes the sampling settings: Anthropic's fields, and the usual ones that Anthropic lacks.
fn sampling(fields: &mut Fields) -> Result<Params, ApiError> {
    let Some(max_tokens) = fields.int("max_tokens")? else {
        return Err(fields.fault("max_tokens", "expected an integer, found none"));
    };
    if max_tokens < 1 {
        let text = format!("expected at least 1, found {max_tokens}");
        return Err(fields.fault("max_tokens", &text));
    }
    let stop = fields.list("stop_sequences")?.filter(|list| !list.is_empty());
    let stop = stop.map(|list| OneOrMany::of(list.into(), "stop_sequences")).transpose()?;
    let repetition_penalty =
        fields.either(&["repetition_penalty", "repeat_penalty"], Fields::number)?;
    Ok(Params {
        max_tokens: Some(max_tokens),
        temperature: fields.number("temperature")?,
        top_p: fields.number("top_p")?,
        top_k: fields.int("top_k")?,
        min_p: fields.number("min_p")?,
        repetition_penalty: repetition_penalty.map(|(_, x)| x),
        seed: fields.int("seed")?,
        stop,
        names: Names {
            stop: "stop_sequences",
            most_stops: STOPS,
            repetition_penalty: repetition_penalty.map_or("repetition_penalty", |(name, _)| name),
            ..Names::default()
        },
        ..Params::default()
    })
}

/// Takes the field `thinking`: whether a thought is asked for, and whether its text is left out.
fn thinking(fields: &mut Fields) -> Result<(Option<bool>, bool), ApiError> {
    let Some(thinking) = fields.object("thinking")? else { return Ok((None, false)) };
    let mut thinking = Fields::of(thinking, "thinking");
    let think = match required(&mut thinking, "type")?.as_str() {
        "enabled" => {
            // there is no bound besides max_tokens
            thinking.int("budget_tokens")?;
            true
        }
        "adaptive" => true,
        "disabled" => false,
        other => {
            let text = format!("expected enabled, adaptive or disabled, found {other}");
            return Err(thinking.fault("type", &text));
        }
    };
    let omitted = match thinking.text("display")?.as_deref() {
        None | Some("summarized") => false,
        Some("omitted") => true,
        Some(other) => {
            let text = format!("expected summarized or omitted, found {other}");
            return Err(thinking.fault("display", &text));
        }
    };
    thinking.finish(&[], &[])?;
    Ok((Some(think), omitted))
}

/// Takes the field `output_config`: the schema of the answer. `output_format` is its older name.
fn output(fields: &mut Fields) -> Result<Option<Schema>, ApiError> {
    const PLACE: &str = "output_config.format";
    let mut config = fields.within("output_config")?;
    if let Some(effort) = config.text("effort")?.filter(|e| !EFFORTS.contains(&e.as_str())) {
        let text = format!("expected one of {}, found {effort}", EFFORTS.join(", "));
        return Err(config.fault("effort", &text));
    }
    let (new, old) = (config.any("format"), fields.any("output_format"));
    config.finish(&[], &[])?;
    let (format, place) = match (new, old) {
        (Some(new), Some(old)) if new != old => {
            let text = format!(
                "{PLACE} and output_format are one field: expected one value, found {new} and {old}"
            );
            return Err(ApiError::invalid("output_format", text));
        }
        (Some(new), _) => (new, PLACE),
        (None, Some(old)) => (old, "output_format"),
        (None, None) => return Ok(None),
    };
    let mut format = Fields::at(format, place)?;
    let kind = required(&mut format, "type")?;
    if kind != "json_schema" {
        return Err(format.fault("type", &format!("expected json_schema, found {kind}")));
    }
    let Some(value) = format.object("schema")? else {
        return Err(format.fault("schema", "expected a schema, found none"));
    };
    format.finish(&[], &[])?;
    Ok(Some(Schema { value: value.into(), place }))
}

/// Takes the fields `tools` and `tool_choice`, and brings them into the form of templates.
fn tools(fields: &mut Fields) -> Result<Tools, ApiError> {
    let listed = fields.list("tools")?.unwrap_or_default();
    let (choice, one_call) = tool_choice(fields)?;
    let mut tools = Tools { choice, one_call, ..Tools::default() };
    for (i, tool) in listed.into_iter().enumerate() {
        let mut tool = Fields::at(tool, &format!("tools[{i}]"))?;
        if let Some(kind) = tool.text("type")?.filter(|kind| kind != "custom") {
            let text = format!("expected custom, found {kind}: no tools are run by this server");
            return Err(tool.fault("type", &text));
        }
        let name = required(&mut tool, "name")?;
        if name.is_empty() {
            return Err(tool.fault("name", "expected a name, found an empty text"));
        }
        let place = tool.place("input_schema");
        let Some(found) = tool.any("input_schema") else {
            return Err(tool.fault("input_schema", "expected a schema, found none"));
        };
        let schema = schema(Some(&found), &place)?;
        let mut function = json!({"name": name});
        if let Some(description) = tool.text("description")? {
            function["description"] = description.into();
        }
        function["parameters"] = schema.clone();
        tool.finish(
            &[&[("defer_loading", &["false"]), ("input_examples", &["[]"])]],
            TOOL_IGNORED,
        )?;
        tools.shown.push(json!({"type": "function", "function": function}));
        tools.functions.push(Function { name, schema, place });
    }
    if tools.choice == ToolChoice::None {
        (tools.shown, tools.functions) = (Vec::new(), Vec::new());
    }
    Ok(tools)
}

/// Takes the field `tool_choice`, and whether an answer may hold only one call.
fn tool_choice(fields: &mut Fields) -> Result<(ToolChoice, bool), ApiError> {
    let Some(choice) = fields.object("tool_choice")? else { return Ok((ToolChoice::Auto, false)) };
    let mut choice = Fields::of(choice, "tool_choice");
    let one_call = choice.flag("disable_parallel_tool_use")?.unwrap_or(false);
    let of = match required(&mut choice, "type")?.as_str() {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => ToolChoice::Named(vec![required(&mut choice, "name")?]),
        other => {
            let text = format!("expected auto, any, tool or none, found {other}");
            return Err(choice.fault("type", &text));
        }
    };
    choice.finish(&[], &[])?;
    Ok((of, one_call))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/api-anthropic.md has a row for every field of the tables.
    #[test]
    fn the_manual_lists_every_field() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api-anthropic.md");
        let manual = fs_err::read_to_string(page).unwrap();
        let row = |name: &str, what: &str| {
            let start = format!("| `{name}` | {what} |");
            assert!(manual.lines().any(|line| line.starts_with(&start)), "no row {start}");
        };
        IGNORED.iter().for_each(|name| row(name, "ignored"));
        REFUSED.iter().for_each(|(name, _)| row(name, "refused"));
        for name in TOOL_IGNORED {
            assert!(manual.contains(&format!("`{name}`")), "{name}");
        }
    }
}
