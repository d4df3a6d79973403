//! Chats to text, as Transformers renders them: a Jinja template with the same settings, filters
//! and functions, and JSON written as Python writes it.
//!
//! In: messages (JSON objects with `role`, `content`, ...), tools, and what the template may ask
//! for. Out: the prompt as text; [`crate::tokenizer::Tokenizer::encode_chat`] turns it into ids.

pub mod answer;
mod python;
mod tags;

use std::sync::OnceLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

pub use python::float as python_float;

/// Steps a rendering may take: a chat of ten thousand turns needs some millions; loops in loops are
/// ended after about a second.
const MOST_STEPS: u64 = 20_000_000;
/// The name of the one template of an environment.
const NAME: &str = "chat_template";

/// A chat template. One that does not compile is kept as text, and is an error only when a chat is
/// rendered: raw completion and conversion need no template.
pub struct Template {
    source: String,
    variables: Map<String, Value>,
    compiled: std::result::Result<Environment<'static>, String>,
    /// Whether it renders tools, once somebody has asked.
    shows_tools: OnceLock<bool>,
}

/// Settings that a rendering may depend on beside the messages.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Tools the model may call, as the template wants them (a JSON array, mostly).
    pub tools: Option<Value>,
    /// End with the beginning of an assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables of the template, `open_thinking` for instance.
    pub variables: Map<String, Value>,
}

impl Options {
    /// The options of a prompt that an answer is generated from: the beginning of the assistant's
    /// turn comes last.
    pub fn generation() -> Self {
        Self { add_generation_prompt: true, ..Self::default() }
    }
}

/// A message with nothing but a role and a content.
pub fn message(role: &str, content: &str) -> Value {
    serde_json::json!({ "role": role, "content": content })
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Clone for Template {
    fn clone(&self) -> Self {
        Self::new(self.source.clone(), self.variables.clone())
    }
}

impl Template {
    /// Compiles a template. `variables` are always visible to it: Transformers gives the special
    /// tokens' texts (`bos_token`, `eos_token`, `pad_token`, `unk_token`).
    pub fn new(source: impl Into<String>, variables: Map<String, Value>) -> Self {
        let source = source.into();
        let compiled = compile(&source);
        Self { source, variables, compiled, shows_tools: OnceLock::new() }
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Why the template does not compile, if it does not: worth a warning when loading.
    pub fn compile_error(&self) -> Option<&str> {
        self.compiled.as_ref().err().map(String::as_str)
    }

    /// True when a chat with tools is rendered otherwise than the same without them: a template
    /// that takes no notice of tools would drop them in silence. Found by rendering two short
    /// chats, once.
    ///
    /// A template that refuses both chats counts as one that shows tools: it says itself what it
    /// wants.
    pub fn shows_tools(&self) -> bool {
        *self.shows_tools.get_or_init(|| {
            let tool = serde_json::json!({"type": "function", "function": {
                "name": "mmx_probe", "description": "mmx_probe",
                "parameters": {"type": "object", "properties": {}, "required": []},
            }});
            let with = Options { tools: Some(Value::Array(vec![tool])), ..Options::generation() };
            let user = message("user", "hi");
            let chats = [vec![user.clone()], vec![message("system", "be brief"), user]];
            let mut refused = true;
            for chat in chats {
                if let (Ok(with), Ok(without)) =
                    (self.render(&chat, &with), self.render(&chat, &Options::generation()))
                {
                    refused = false;
                    if with != without {
                        return true;
                    }
                }
            }
            refused
        })
    }

    /// Renders messages as Transformers' `apply_chat_template(..., tokenize=False)` does.
    ///
    /// # Errors
    /// [`Error::Template`]: the template does not compile, or it refused the messages
    /// (`raise_exception`), in its own words.
    pub fn render(&self, messages: &[Value], options: &Options) -> Result<String> {
        let environment = match &self.compiled {
            Ok(environment) => environment,
            Err(why) => {
                return Err(Error::Template { message: format!("it does not compile: {why}") });
            }
        };
        let mut context = self.variables.clone();
        context.extend(options.variables.clone());
        context.insert("messages".into(), Value::Array(messages.to_vec()));
        context.insert("tools".into(), options.tools.clone().unwrap_or(Value::Null));
        context.insert("documents".into(), Value::Null);
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        environment
            .get_template(NAME)
            .and_then(|template| template.render(python::from_json(&Value::Object(context))))
            .map_err(|e| Error::Template { message: describe(&e) })
    }
}

/// Settings, filters and functions of Transformers' `render_jinja_template`:
/// blocks trimmed, loop controls, generation tags, `tojson`, `raise_exception`, `strftime_now`.
fn compile(source: &str) -> std::result::Result<Environment<'static>, String> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(|e| describe(&e))?);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_fuel(Some(MOST_STEPS));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(|out, _, value| {
        if value.is_undefined() {
            return Ok(());
        }
        out.write_str(&python::text(value)).map_err(minijinja::Error::from)
    });
    env.add_filter("tojson", python::tojson);
    env.add_filter("string", |value: minijinja::Value| python::text(&value));
    env.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", strftime_now);
    env.add_template_owned(NAME, tags::without_generation(source)).map_err(|e| describe(&e))?;
    Ok(env)
}

/// The local time, formatted as C's strftime does.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let items = chrono::format::StrftimeItems::new(format).parse().map_err(|e| {
        minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now: bad format {format:?}: {e}"),
        )
    })?;
    Ok(chrono::Local::now().format_with_items(items.iter()).to_string())
}

/// The engine's words without its own location prefix; the line where it has one.
fn describe(error: &minijinja::Error) -> String {
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, messages: Value) -> Result<String> {
        let list = messages.as_array().cloned().unwrap_or_default();
        Template::new(source, Map::new()).render(&list, &Options::default())
    }

    #[test]
    fn python_spelling_of_constants_and_containers() {
        let text = render(
            "{{ true }} {{ none }} {{ 1.0 }} {{ messages }} {{ missing }}",
            json!([{"a": 1, "b": ["x", null, 2.5]}]),
        );
        assert_eq!(text.unwrap(), "True None 1.0 [{'a': 1, 'b': ['x', None, 2.5]}] ");
    }

    #[test]
    fn loop_controls_namespace_and_negative_slices() {
        let source = "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% if m.n == 1 %}\
            {% continue %}{% endif %}{% if m.n == 0 %}{% break %}{% endif %}\
            {% set ns.n = ns.n + m.n %}{% endfor %}{{ ns.n }}";
        let messages = json!([{"n": 7}, {"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}]);
        assert_eq!(render(source, messages).unwrap(), "5");
    }

    #[test]
    fn a_template_that_does_not_compile_is_an_error_only_when_rendered() {
        let template = Template::new("{% for x in %}", Map::new());
        assert!(template.compile_error().is_some());
        let error = template.render(&[], &Options::default()).unwrap_err();
        assert!(error.to_string().contains("does not compile"), "{error}");
    }

    #[test]
    fn strftime_now_formats_and_refuses_a_bad_format() {
        let year = render("{{ strftime_now('%Y') }}", json!([])).unwrap();
        assert!(year.len() == 4 && year.bytes().all(|b| b.is_ascii_digit()), "{year}");
        assert!(render("{{ strftime_now('%Q') }}", json!([])).is_err());
    }

    #[test]
    fn a_template_that_renders_nothing_of_the_tools_is_known() {
        let shows = |source: &str| Template::new(source, Map::new()).shows_tools();
        assert!(shows("{% if tools %}{{ tools | tojson }}{% endif %}{{ messages[0].content }}"));
        assert!(!shows("{{ messages[0].content }}"));
        // a word in a comment is no tool
        assert!(!shows("{# tools are not supported #}{{ messages[0].content }}"));
        assert!(!shows("{% if tools %}{% endif %}{{ messages[0].content }}"));
        // only beside a system turn
        assert!(shows("{% for m in messages if m.role == 'system' %}{{ tools }}{% endfor %}"));
        assert!(shows("{{ raise_exception('no chats today') }}"));
    }

    #[test]
    fn special_token_texts_are_variables() {
        let variables = json!({"bos_token": "<s>"}).as_object().cloned().unwrap();
        let template = Template::new("{{ bos_token }}{{ custom }}", variables);
        let extra = json!({"custom": 3}).as_object().cloned().unwrap();
        let options = Options { variables: extra, ..Options::default() };
        assert_eq!(template.render(&[], &options).unwrap(), "<s>3");
    }
}
