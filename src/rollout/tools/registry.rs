//! The tools of a run, read from a file: each in OpenAI's form, with what runs it.
//!
//! ```json
//! [{"type": "function",
//!   "function": {"name": "calculate_math", "description": "...", "parameters": {...}},
//!   "run": {"type": "calculator", "argument": "expression"}}]
//! ```

use std::path::Path;

use mmx_converters::chat::answer::Call;
use mmx_converters::{Error, Result};
use serde_json::{Map, Value, json};

use super::calculator;
use super::lookup::Lookup;
use super::python::json_text;
use super::toolbox::{Answer, Toolbox};
use crate::sandbox::{Command, Sandbox};

/// What the reference answers to a call that leads nowhere.
const NOT_FOUND: &str = "tool not found";

/// Tools by name, with what runs each.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    tools: Vec<Tool>,
    sandbox: Sandbox,
}

#[derive(Clone, Debug)]
struct Tool {
    /// In OpenAI's form, without what runs it.
    shown: Value,
    name: String,
    runner: Runner,
}

#[derive(Clone, Debug)]
enum Runner {
    /// The argument that holds an expression.
    Calculator(String),
    Lookup(Lookup),
    /// What it says, whenever it is asked.
    Clock(Value),
    Command(Command),
}

impl Tools {
    /// Reads a file of tools: a JSON list, or an object with the key `tools`.
    ///
    /// # Errors
    /// An unreadable file; a tool without a name or without what runs it; two of one name.
    pub fn open(path: &Path, sandbox: Sandbox) -> Result<Self> {
        let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Error::format(path, format!("expected a list of tools: {e}")))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Self::from_json(&value, path, folder.unwrap_or(Path::new(".")), sandbox)
    }

    /// The tools of a JSON value. `path`: the file it is from, for messages; `folder`: where its
    /// commands lie, which they may name `{dir}`.
    ///
    /// # Errors
    /// See [`Tools::open`].
    pub fn from_json(value: &Value, path: &Path, folder: &Path, sandbox: Sandbox) -> Result<Self> {
        let list = match value {
            Value::Object(object) => object.get("tools").and_then(Value::as_array),
            other => other.as_array(),
        };
        let list = list.ok_or_else(|| Error::format(path, "expected a list of tools"))?;
        let mut tools: Vec<Tool> = Vec::new();
        for (index, entry) in list.iter().enumerate() {
            let place = format!("tools[{index}]");
            let tool = tool(entry, folder)
                .map_err(|(key, message)| Error::key(path, format!("{place}{key}"), message))?;
            if tools.iter().any(|known| known.name == tool.name) {
                let message = format!("expected each name once, found {} twice", tool.name);
                return Err(Error::key(path, format!("{place}.function.name"), message));
            }
            tools.push(tool);
        }
        Ok(Self { tools, sandbox })
    }

    /// The calculator under the names that MiniMind's data gives it, for runs without a file.
    #[must_use]
    pub fn calculator() -> Self {
        let tools = ["calculate_math", "calculator"].map(|name| Tool {
            shown: json!({"type": "function", "function": {
                "name": name,
                "description": "Evaluates one arithmetic expression",
                "parameters": {"type": "object", "required": ["expression"],
                    "properties": {"expression": {"type": "string", "description": "For example 3*(4+5)"}}},
            }}),
            name: name.to_owned(),
            runner: Runner::Calculator("expression".to_owned()),
        });
        Self { tools: tools.into(), sandbox: Sandbox::default() }
    }

    /// The tools as a template shows them, a list in OpenAI's form.
    #[must_use]
    pub fn shown(&self) -> Value {
        self.tools.iter().map(|tool| tool.shown.clone()).collect()
    }

    /// The names of the tools.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tools.iter().map(|tool| tool.name.as_str())
    }

    /// Runs a tool: what it gives, or why it gives nothing.
    fn answer(&self, tool: &Tool, call: &Call) -> Result<std::result::Result<Value, String>> {
        Ok(match &tool.runner {
            Runner::Calculator(argument) => match &call.arguments[argument.as_str()] {
                Value::String(text) => calculator::evaluate(text).map(Value::String),
                Value::Number(number) => {
                    calculator::evaluate(&number.to_string()).map(Value::String)
                }
                _ => Err(format!("{argument}: expected an expression")),
            },
            Runner::Lookup(lookup) => lookup.find(&call.arguments),
            Runner::Clock(now) => Ok(now.clone()),
            Runner::Command(command) => {
                let line = json!({"name": call.name, "arguments": call.arguments});
                match self.sandbox.attempt(command, &[line.to_string()])? {
                    Ok(mut lines) => Ok(lines.pop().unwrap_or_default()),
                    // its own words may hold paths and times: the policy is to read the same twice
                    Err(why) => {
                        log::debug!("tool {}: {why}", tool.name);
                        Err("tool failed".to_owned())
                    }
                }
            }
        })
    }
}

impl Toolbox for Tools {
    fn run(&self, call: &Value, offered: &Value) -> Result<Answer> {
        let error =
            |why: &str| Answer { result: json_text(&json!({"error": why})), is_valid: false };
        let Some(call) = Call::from_json(call.clone()) else {
            return Ok(error("expected a call: an object with name and arguments"));
        };
        let name = |tool: &Value| {
            tool.get("function").unwrap_or(tool).get("name").and_then(Value::as_str)
                == Some(&call.name)
        };
        let listed = offered.as_array().map(Vec::as_slice).unwrap_or_default();
        let (Some(schema), Some(tool)) = (
            listed.iter().find(|tool| name(tool)),
            self.tools.iter().find(|tool| tool.name == call.name),
        ) else {
            return Ok(error(NOT_FOUND));
        };
        let schema = schema.get("function").unwrap_or(schema);
        let required = schema["parameters"]["required"].as_array();
        let missing = required
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .find(|name| call.arguments.get(*name).is_none());
        if let Some(missing) = missing {
            return Ok(error(&format!("expected argument {missing}")));
        }
        Ok(match self.answer(tool, &call)? {
            Ok(value @ Value::Object(_)) => Answer { result: json_text(&value), is_valid: true },
            Ok(value) => Answer { result: json_text(&json!({"result": value})), is_valid: true },
            Err(why) => Answer { is_valid: true, ..error(&why) },
        })
    }
}

type Fault = (String, String);

fn tool(entry: &Value, folder: &Path) -> std::result::Result<Tool, Fault> {
    let fault = |key: &str, message: &str| (key.to_owned(), message.to_owned());
    let Value::Object(object) = entry else {
        return Err(fault("", "expected an object"));
    };
    let mut shown = object.clone();
    let run = shown.shift_remove("run");
    let function = object.get("function").unwrap_or(entry);
    let name = function.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| fault(".function.name", "expected a name, found none"))?;
    let run = match run {
        Some(Value::String(kind)) => json!({ "type": kind }),
        Some(run @ Value::Object(_)) => run,
        Some(_) => return Err(fault(".run", "expected an object or the name of a type")),
        None => return Err(fault(".run", "expected what runs the tool, found none")),
    };
    let runner = runner(&run, folder).map_err(|(key, message)| (format!(".run{key}"), message))?;
    if let Some(parameters) = function.get("parameters")
        && !parameters.is_object()
    {
        return Err(fault(".function.parameters", "expected a schema"));
    }
    Ok(Tool { shown: Value::Object(shown), name: name.to_owned(), runner })
}

fn runner(run: &Value, folder: &Path) -> std::result::Result<Runner, Fault> {
    let empty = Map::new();
    let run = run.as_object().unwrap_or(&empty);
    let known = |keys: &[&str]| {
        let unknown = run.keys().find(|key| *key != "type" && !keys.contains(&key.as_str()));
        unknown.map_or(Ok(()), |key| {
            Err((
                format!(".{key}"),
                format!("expected one of type, {}, found {key}", keys.join(", ")),
            ))
        })
    };
    let text = |key: &str| match run.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err((format!(".{key}"), "expected a string".to_owned())),
    };
    match run.get("type").and_then(Value::as_str) {
        Some("calculator") => {
            known(&["argument"])?;
            Ok(Runner::Calculator(text("argument")?.unwrap_or_else(|| "expression".to_owned())))
        }
        Some("clock") => {
            known(&["now"])?;
            let now = run.get("now").cloned();
            now.map(Runner::Clock).ok_or_else(|| {
                (".now".to_owned(), "expected the time it says, found none".to_owned())
            })
        }
        Some("lookup") => {
            known(&["by", "table", "otherwise", "ignore_case", "times", "digits"])?;
            let by = match run.get("by") {
                Some(Value::String(name)) => vec![name.clone()],
                Some(Value::Array(names)) => {
                    names.iter().filter_map(Value::as_str).map(str::to_owned).collect()
                }
                _ => Vec::new(),
            };
            if by.is_empty() {
                return Err((
                    ".by".to_owned(),
                    "expected the argument that is looked up".to_owned(),
                ));
            }
            let table = run.get("table").filter(|table| table.is_object()).cloned();
            let digits = run.get("digits").map_or(Some(4), Value::as_i64);
            let digits =
                digits.and_then(|d| i32::try_from(d).ok()).filter(|d| (0..=15).contains(d));
            Ok(Runner::Lookup(Lookup {
                by,
                table: table
                    .ok_or_else(|| (".table".to_owned(), "expected an object".to_owned()))?,
                otherwise: run.get("otherwise").cloned(),
                ignore_case: run.get("ignore_case").and_then(Value::as_bool).unwrap_or(false),
                times: text("times")?.zip(Some(
                    digits.ok_or_else(|| (".digits".to_owned(), "expected 0 to 15".to_owned()))?,
                )),
            }))
        }
        Some("command") => Command::from_json(run, folder).map(Runner::Command),
        found => {
            let found = found.unwrap_or("none");
            let message = format!("expected calculator, lookup, clock or command, found {found}");
            Err((".type".to_owned(), message))
        }
    }
}
