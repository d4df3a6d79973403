//! Tools that a request offers, in the form that chat templates show to a model: OpenAI's.

use serde_json::{Value, json};

use crate::engine::grammar::{Function, endless_reference};
use crate::error::ApiError;
use crate::fields::wrong_type;

/// The tools of a request, and which of them the answer may or must call.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    /// What the template shows, one for each function.
    pub(crate) shown: Vec<Value>,
    pub(crate) functions: Vec<Function>,
    pub(crate) choice: ToolChoice,
    /// One answer may hold only one call.
    pub(crate) one_call: bool,
}

/// Which tools an answer may or must call.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum ToolChoice {
    /// None: the tools are not even shown.
    None,
    /// Any, or none, as the model likes.
    #[default]
    Auto,
    /// At least one of all.
    Required,
    /// At least one of these.
    Named(Vec<String>),
}

impl Tools {
    /// Reads tools in OpenAI's form; none where none may be called.
    ///
    /// # Errors
    /// 400 for a tool of another type, without a name, or with a schema that is none.
    pub(crate) fn of(list: Vec<Value>, choice: ToolChoice) -> Result<Self, ApiError> {
        let shown = if choice == ToolChoice::None { Vec::new() } else { list };
        let functions = shown.iter().enumerate().map(|(i, tool)| function(i, tool));
        let functions = functions.collect::<Result<_, _>>()?;
        Ok(Self { shown, functions, choice, one_call: false })
    }

    /// The functions one of which must be called; nothing where the model may write what it likes.
    ///
    /// # Errors
    /// 400 where no tool has the name.
    pub(crate) fn forced(&self) -> Result<Option<Vec<Function>>, ApiError> {
        let forced: Vec<Function> = match &self.choice {
            ToolChoice::None | ToolChoice::Auto => return Ok(None),
            ToolChoice::Required => self.functions.clone(),
            ToolChoice::Named(names) => {
                self.functions.iter().filter(|f| names.contains(&f.name)).cloned().collect()
            }
        };
        if forced.is_empty() {
            let text = "tool_choice: no such tool is among the tools";
            return Err(ApiError::invalid("tool_choice", text));
        }
        Ok(Some(forced))
    }
}

/// Reads name and argument schema of a tool.
fn function(index: usize, tool: &Value) -> Result<Function, ApiError> {
    if let Some(kind) = tool.get("type").filter(|kind| *kind != "function") {
        let place = format!("tools[{index}].type");
        let text = format!("{place}: expected function, found {kind}");
        return Err(ApiError::invalid(&place, text));
    }
    let function = tool.get("function").unwrap_or(tool);
    let name = function.get("name").and_then(Value::as_str).filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| {
        let place = format!("tools[{index}].function.name");
        ApiError::invalid(&place, format!("{place}: expected a name, found none"))
    })?;
    let place = format!("tools[{index}].function.parameters");
    let schema = schema(function.get("parameters"), &place)?;
    Ok(Function { name: name.to_owned(), schema, place })
}

/// The schema of a function's arguments, which stands at `place`; any object where none is given.
///
/// # Errors
/// 400 for what is no schema, or one that leads to nothing but itself.
pub(crate) fn schema(found: Option<&Value>, place: &str) -> Result<Value, ApiError> {
    match found {
        None | Some(Value::Null) => Ok(json!({"type": "object"})),
        Some(schema @ Value::Object(_)) => match endless_reference(schema) {
            None => Ok(schema.clone()),
            Some(reference) => {
                let text =
                    format!("{place}: no text fits the schema: {reference} refers to itself");
                Err(ApiError::invalid(place, text))
            }
        },
        Some(other) => Err(wrong_type(place, "a schema", other)),
    }
}
