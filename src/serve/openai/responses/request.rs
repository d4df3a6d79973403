//! A request for a response: its fields, each known, refused or ignored by name.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::items::Conversation;
use super::words::{ResponseWords, Sent};
use crate::app::{App, now};
use crate::error::ApiError;
use crate::fields::{Fields, Refused, wrong_type};
use crate::openai::known;
use crate::openai::wire::{effort, params};
use crate::request::chat::{Ask, Chat, Schema, start, thinking_variables};
use crate::request::sampling::check_logprobs;
use crate::request::tools::{ToolChoice, Tools};

/// Fields that this address does not support, besides those that no route of OpenAI's does.
const REFUSED: &[Refused] = &[
    ("background", &["false"]),
    ("context_management", &["[]"]),
    ("conversation", &[]),
    ("moderation", &[]),
    ("prompt", &[]),
    ("truncation", &["\"disabled\""]),
];
/// Fields that change nothing here, besides those that change nothing in any of OpenAI's routes.
const IGNORED: &[&str] = &[
    "access_programs",
    "background_options",
    "image",
    "max_tool_calls", // of tools that OpenAI's server runs
    "prompt_cache_options",
];

/// Reads, checks, renders and queues a request. Returns the chat, the words of its answer, and
/// whether it is a stream.
///
/// # Errors
/// 400 with the field, 404 for an unknown model or response, 429 when the queue is full.
pub(super) fn begin(app: &Arc<App>, body: &[u8]) -> Result<(Chat, ResponseWords, bool), ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = fields.text("model")?;
    let input = fields.any("input");
    let instructions = fields.text("instructions")?;
    let previous = fields.text("previous_response_id")?;
    let store = fields.flag("store")?.unwrap_or(true);
    let metadata = fields.object("metadata")?.unwrap_or_default();
    let params = params(&mut fields, &["max_output_tokens"])?;
    if params.n.is_some_and(|n| n != 1) {
        return Err(fields.fault("n", "a response is one text: leave it out"));
    }
    let Reasoning { effort, summary } = reasoning(&mut fields)?;
    let Format { schema, shown: format } = format(&mut fields)?;
    let top = fields.int("top_logprobs")?;
    let top = top.map(|n| check_logprobs("top_logprobs", n)).transpose()?;
    let logprobs = include(&mut fields)? || top.is_some_and(|n| n > 0);
    let listed = fields.list("tools")?.unwrap_or_default();
    let asked = fields.any("tool_choice");
    let several = fields.flag("parallel_tool_calls")?.unwrap_or(true);
    let stream = fields.flag("stream")?.unwrap_or(false);
    let mut options = fields.within("stream_options")?;
    options.any("include_obfuscation"); // bytes against listeners, no part of the text
    options.finish(&[], &[])?;
    fields.finish(&[REFUSED, known::REFUSED], &[known::IGNORED, IGNORED].concat())?;

    let served = app.find(model.as_deref())?;
    let before = match &previous {
        None => Vec::new(),
        Some(id) => match app.kept.find(id) {
            Some(kept) => kept.messages.clone(),
            None => {
                let text = format!("previous_response_id: no response {id:?} is kept here");
                let error = ApiError::invalid("previous_response_id", text);
                return Err(error.coded("previous_response_not_found"));
            }
        },
    };
    let mut conversation = Conversation::after(before);
    conversation.add(input, &app.kept)?;
    let mut tools = tools(listed.clone(), asked.clone())?;
    tools.one_call = !several;
    let said = conversation.messages;
    let first = instructions.as_ref().map(|text| json!({"role": "system", "content": text}));
    let messages = first.into_iter().chain(said.iter().cloned()).collect();
    let own = &served.sampling;
    // what a response says about its request, in the order of OpenAI's reference
    let about = json!({
        "background": false,
        "instructions": instructions,
        "max_output_tokens": params.max_tokens.filter(|&n| n != -1),
        "max_tool_calls": null,
        "metadata": metadata,
        "model": served.id,
        "parallel_tool_calls": several,
        "previous_response_id": previous,
        "reasoning": {"effort": effort, "summary": summary},
        "service_tier": "default",
        "store": store,
        "temperature": params.temperature.unwrap_or(own.temperature),
        "text": {"format": format, "verbosity": "medium"},
        "tool_choice": asked.unwrap_or_else(|| "auto".into()),
        "tools": listed,
        "top_logprobs": top.unwrap_or(0),
        "top_p": params.top_p.unwrap_or(own.top_p),
        "truncation": "disabled",
    });
    let ask = Ask {
        served: served.clone(),
        messages,
        field: "input",
        params,
        logprobs: logprobs.then(|| top.unwrap_or(0)),
        schema,
        tools,
        variables: effort.map_or_else(Map::new, |effort| thinking_variables(effort != "none")),
    };
    let chat = start(app, ask)?;
    let sent =
        Sent { about, created: now(), messages: said, store, logprobs, summary: summary.is_some() };
    Ok((chat, ResponseWords::new(app.clone(), served, sent), stream))
}

struct Reasoning {
    effort: Option<String>,
    /// A summary is asked for, in this form.
    summary: Option<String>,
}

/// Takes the field `reasoning`.
fn reasoning(fields: &mut Fields) -> Result<Reasoning, ApiError> {
    let mut reasoning = fields.within("reasoning")?;
    let effort = effort(&mut reasoning, "effort")?;
    // generate_summary is its older name
    let summary = reasoning.either(&["summary", "generate_summary"], Fields::text)?;
    if let Some((name, other)) = summary
        .as_ref()
        .filter(|(_, text)| !["auto", "concise", "detailed"].contains(&text.as_str()))
    {
        let text = format!("expected auto, concise or detailed, found {other}");
        return Err(reasoning.fault(name, &text));
    }
    reasoning.finish(&[], &[])?;
    Ok(Reasoning { effort, summary: summary.map(|(_, text)| text) })
}

struct Format {
    schema: Option<Schema>,
    /// The format as the response shows it.
    shown: Value,
}

/// Takes the field `text`: the form of the answer.
fn format(fields: &mut Fields) -> Result<Format, ApiError> {
    let mut text = fields.within("text")?;
    let shown = text.any("format").unwrap_or_else(|| json!({"type": "text"}));
    text.finish(&[&[("verbosity", &["\"medium\""])]], &[])?;
    let mut format = Fields::at(shown.clone(), "text.format")?;
    let schema = |value, place| Some(Schema { value, place });
    let schema = match format.text("type")?.as_deref() {
        Some("text") => None,
        Some("json_object") => schema(json!({"type": "object"}), "text.format"),
        Some("json_schema") => {
            let value = format.any("schema").filter(|s| s.is_object() || s.is_boolean());
            let value = value.ok_or_else(|| format.fault("schema", "expected a schema"))?;
            format.ignore(&["name", "description", "strict"]); // always strict
            schema(value, "text.format.schema")
        }
        other => {
            let found = other.unwrap_or("none");
            let text = format!("expected text, json_object or json_schema, found {found}");
            return Err(format.fault("type", &text));
        }
    };
    format.finish(&[], &[])?;
    Ok(Format { schema, shown })
}

/// Takes the field `include`: whether the answer's tokens bear their probabilities.
fn include(fields: &mut Fields) -> Result<bool, ApiError> {
    let mut logprobs = false;
    for (i, what) in fields.list("include")?.unwrap_or_default().iter().enumerate() {
        match what.as_str() {
            Some("message.output_text.logprobs") => logprobs = true,
            // nothing is encrypted here: reasoning is sent as it is
            Some("reasoning.encrypted_content") => {}
            _ => {
                let place = format!("include[{i}]");
                let text = format!(
                    "{place}: expected message.output_text.logprobs or \
                     reasoning.encrypted_content, found {what}"
                );
                return Err(ApiError::invalid(&place, text));
            }
        }
    }
    Ok(logprobs)
}

/// Brings tools, which are flat here, into the form of templates.
fn tools(listed: Vec<Value>, choice: Option<Value>) -> Result<Tools, ApiError> {
    let (choice, among) = tool_choice(choice)?;
    let mut nested = Vec::new();
    for (i, tool) in listed.into_iter().enumerate() {
        let place = format!("tools[{i}]");
        let Value::Object(mut tool) = tool else {
            return Err(wrong_type(&place, "an object", &tool));
        };
        match tool.shift_remove("type") {
            Some(Value::String(kind)) if kind == "function" => {}
            other => {
                let found = other.map_or("none".to_owned(), |kind| kind.to_string());
                let text = format!(
                    "{place}.type: expected function, found {found}: no tools are run by this server"
                );
                return Err(ApiError::invalid(&format!("{place}.type"), text));
            }
        }
        // arguments of forced calls always fit their schema
        tool.shift_remove("strict");
        tool.retain(|_, value| !value.is_null());
        nested.push(json!({"type": "function", "function": tool}));
    }
    let mut tools = Tools::of(nested, choice).map_err(flat)?;
    for function in &mut tools.functions {
        function.place = function.place.replace(".function.", ".");
    }
    if let Some(names) = among {
        tools.functions.retain(|function| names.contains(&function.name));
        let among =
            |tool: &Value| names.iter().any(|name| tool["function"]["name"] == name.as_str());
        tools.shown.retain(among);
    }
    Ok(tools)
}

/// Names the place of a fault as it is where tools are flat.
fn flat(error: ApiError) -> ApiError {
    let param = error.param.map(|place| place.replace(".function.", "."));
    ApiError { message: error.message.replacen(".function.", ".", 1), param, ..error }
}

/// Reads which tools may or must be called; also, where only some of them may, their names.
fn tool_choice(value: Option<Value>) -> Result<(ToolChoice, Option<Vec<String>>), ApiError> {
    let fault = |found: &Value| {
        let text = format!(
            "tool_choice: expected none, auto, required, a function or allowed_tools, found {found}"
        );
        ApiError::invalid("tool_choice", text)
    };
    let name = |value: &Value| match (value["type"].as_str(), value["name"].as_str()) {
        (Some("function"), Some(name)) => Ok(name.to_owned()),
        _ => Err(fault(value)),
    };
    let Some(value) = value else { return Ok((ToolChoice::Auto, None)) };
    match (value.as_str(), value["type"].as_str()) {
        (Some("auto"), _) => Ok((ToolChoice::Auto, None)),
        (Some("none"), _) => Ok((ToolChoice::None, None)),
        (Some("required"), _) => Ok((ToolChoice::Required, None)),
        (None, Some("function")) => Ok((ToolChoice::Named(vec![name(&value)?]), None)),
        (None, Some("allowed_tools")) => {
            let listed = value["tools"].as_array().ok_or_else(|| fault(&value))?;
            let names = listed.iter().map(name).collect::<Result<Vec<_>, _>>()?;
            match value["mode"].as_str() {
                Some("auto") => Ok((ToolChoice::Auto, Some(names))),
                Some("required") => Ok((ToolChoice::Named(names), None)),
                _ => Err(fault(&value)),
            }
        }
        _ => Err(fault(&value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/api.md names every field of the tables in the section on responses.
    #[test]
    fn the_manual_names_every_field() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md");
        let manual = fs_err::read_to_string(page).unwrap();
        let section = manual.split("### `/v1/responses`").nth(1).unwrap();
        let section = section.split("### `/v1/completions`").next().unwrap();
        for name in REFUSED.iter().map(|(name, _)| name).chain(IGNORED) {
            assert!(section.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn tools_that_are_not_allowed_are_not_shown() {
        let tool = |name: &str| json!({"type": "function", "name": name, "strict": true});
        let choice = |mode: &str| json!({"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "b"}]});
        let of = |mode| tools(vec![tool("a"), tool("b")], Some(choice(mode))).unwrap();
        let auto = of("auto");
        assert_eq!(auto.shown, [json!({"type": "function", "function": {"name": "b"}})]);
        assert_eq!(auto.choice, ToolChoice::Auto);
        let required = of("required");
        assert_eq!(required.shown.len(), 2);
        assert_eq!(required.choice, ToolChoice::Named(vec!["b".to_owned()]));
    }
}
