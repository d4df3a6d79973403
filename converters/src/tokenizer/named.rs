//! Several chat templates in one tokenizer: which is taken, and where they stand in files.
//!
//! Transformers keeps them by name: a list (or an object) in tokenizer_config.json, or
//! chat_template.jinja for `default` and additional_chat_templates/NAME.jinja for the others; files
//! win over tokenizer_config.json. A chat with tools is rendered by `tool_use` where there is one,
//! all else by `default`. Source: Transformers 5.24, `get_chat_template` and `save_chat_templates`.

use std::path::Path;

use serde_json::Value;

use super::codec::Tokenizer;
use crate::chat::{Options, Template};
use crate::error::{Error, Result};
use crate::file::write_bytes;

/// The folder of the templates beside the default one.
const FOLDER: &str = "additional_chat_templates";
/// The file of the default one.
const FILE: &str = "chat_template.jinja";
/// The name of the template that renders chats with tools.
const TOOL_USE: &str = "tool_use";
const DEFAULT: &str = "default";

/// The texts of a tokenizer's templates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    pub(super) default: Option<String>,
    /// The other templates by name, in the order of the file.
    pub(super) named: Vec<(String, String)>,
}

impl Sources {
    fn set(&mut self, name: &str, text: String) {
        if name == DEFAULT {
            self.default = Some(text);
        } else if let Some(old) = self.named.iter_mut().find(|(known, _)| known == name) {
            old.1 = text; // the last of one name wins
        } else {
            self.named.push((name.to_owned(), text));
        }
    }

    /// Reads tokenizer_config.json's `chat_template`: a text, a list of `{name, template}`, or an
    /// object.
    pub(super) fn of_config(value: Option<&Value>) -> Self {
        let mut sources = Self::default();
        match value {
            Some(Value::String(text)) => sources.default = Some(text.clone()),
            Some(Value::Array(list)) => {
                for one in list {
                    let text = |key: &str| one.get(key).and_then(Value::as_str);
                    if let (Some(name), Some(template)) = (text("name"), text("template")) {
                        sources.set(name, template.to_owned());
                    }
                }
            }
            Some(Value::Object(map)) => {
                for (name, template) in map {
                    if let Some(template) = template.as_str() {
                        sources.set(name, template.to_owned());
                    }
                }
            }
            _ => {}
        }
        sources
    }

    /// Reads the template files of a folder; nothing where there are none.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn of_files(dir: &Path) -> Result<Option<Self>> {
        let mut sources = Self::default();
        let mut read = |name: &str, path: &Path| {
            let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
            sources.set(name, text);
            Ok(())
        };
        let default = dir.join(FILE);
        if default.is_file() {
            read(DEFAULT, &default)?;
        }
        let folder = dir.join(FOLDER);
        if folder.is_dir() {
            let io = |e| Error::io(&folder, e);
            let mut paths = Vec::new();
            for entry in fs_err::read_dir(&folder).map_err(io)? {
                paths.push(entry.map_err(io)?.path());
            }
            paths.sort(); // the same order on every file system
            for path in paths.iter().filter(|p| p.is_file()) {
                let name = path.file_name().and_then(|name| name.to_str());
                if let Some(name) = name.and_then(|name| name.strip_suffix(".jinja")) {
                    read(name, path)?;
                }
            }
        }
        Ok((sources != Self::default()).then_some(sources))
    }
}

/// A name that is a file's name and part of a GGUF key.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// A name in GGUF keys. Source: gguf-py's `add_chat_template`.
pub(super) fn gguf_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

impl Tokenizer {
    /// Gives the tokenizer the templates beside the default one. One whose name is no file's name
    /// is left out and said.
    pub(super) fn set_named(&mut self, named: Vec<(String, String)>) {
        for (name, source) in named {
            if !is_plain(&name) {
                self.warnings.push(format!(
                    "{}: the chat template {name:?} is left out: expected a name of letters, digits, - and _",
                    self.path.display()
                ));
                continue;
            }
            let template = Template::new(source, self.variables());
            if let Some(why) = template.compile_error() {
                self.warnings.push(format!(
                    "{}: the chat template {name} does not compile: {why}",
                    self.path.display()
                ));
            }
            self.named.push((name, template));
        }
    }

    /// The template a chat is rendered by: `tool_use` where it comes with tools and there is one,
    /// else the default.
    ///
    /// # Errors
    /// There is none; the names of those that are there are in the message.
    pub fn template_for(&self, options: &Options) -> Result<&Template> {
        let tool_use = self.named.iter().find(|(name, _)| name == TOOL_USE);
        match (options.tools.as_ref().and(tool_use), &self.template) {
            (Some((_, template)), _) | (None, Some(template)) => Ok(template),
            (None, None) if self.named.is_empty() => Err(Error::Template {
                message: format!(
                    "expected one in tokenizer_config.json, chat_template.jinja or the GGUF, found none in {}",
                    self.path.display()
                ),
            }),
            (None, None) => {
                let names: Vec<&str> = self.named.iter().map(|(name, _)| name.as_str()).collect();
                Err(Error::Template {
                    message: format!(
                        "{}: expected one named default, found only {}",
                        self.path.display(),
                        names.join(", ")
                    ),
                })
            }
        }
    }

    /// True when the template for chats with tools renders them: one that does not would drop them
    /// in silence.
    pub fn shows_tools(&self) -> bool {
        let options = Options { tools: Some(Value::Null), ..Options::default() };
        self.template_for(&options).is_ok_and(Template::shows_tools)
    }

    /// The templates beside the default one, by name.
    pub fn named_templates(&self) -> impl Iterator<Item = (&str, &Template)> {
        self.named.iter().map(|(name, template)| (name.as_str(), template))
    }

    /// tokenizer_config.json's `chat_template`.
    pub(super) fn template_json(&self) -> Option<Value> {
        if self.named.is_empty() {
            return self.template.as_ref().map(|template| template.source().into());
        }
        let default = self.template.iter().map(|template| (DEFAULT, template));
        let one = |(name, template): (&str, &Template)| serde_json::json!({"name": name, "template": template.source()});
        Some(default.chain(self.named_templates()).map(one).collect())
    }

    /// The file of the only template, in a folder that is there. Several stand in
    /// tokenizer_config.json alone, which every version reads: a chat_template.jinja beside it
    /// would hide them.
    pub(super) fn save_template(&self, dir: &Path) -> Result<()> {
        match &self.template {
            Some(only) if self.named.is_empty() => {
                write_bytes(&dir.join(FILE), only.source().as_bytes())
            }
            _ => Ok(()),
        }
    }
}
