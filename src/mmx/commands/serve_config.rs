//! The file of `mmx serve --config`: a server's settings, models and keys, in TOML.
//!
//! In: a file whose keys are named after the command's options. Out: its values, checked; what lies
//! beside the file is found from there. A key that is none is refused with its line.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::commands::run::Kv;
use crate::error::{Error, Result};

/// What names of models begin with that are not paths.
const ELSEWHERE: [&str; 3] = ["hf:", "ms:", "ollama:"];

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// The address to listen on.
    pub(crate) host: Option<String>,
    /// The port to listen on.
    pub(crate) port: Option<u16>,
    /// Texts that may wait for a model.
    pub(crate) queue: Option<usize>,
    /// Bytes of a request's body.
    pub(crate) max_body: Option<usize>,
    /// Tokens written for one request.
    pub(crate) max_tokens: Option<usize>,
    /// Seconds for one request.
    pub(crate) timeout: Option<u64>,
    /// Seconds for what is being written at the end.
    pub(crate) grace: Option<u64>,
    /// Origins of pages that may use the server.
    #[serde(default)]
    pub(crate) cors: Vec<String>,
    /// Names by which requests may reach this machine.
    #[serde(default)]
    pub(crate) allowed_host: Vec<String>,
    /// The file that a line is appended to for each request.
    pub(crate) request_log: Option<PathBuf>,
    /// The models.
    #[serde(default)]
    pub(crate) models: Vec<ServedConfig>,
    /// The keys.
    #[serde(default)]
    pub(crate) keys: Vec<KeyConfig>,
}

/// A model in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ServedConfig {
    /// Its file, folder, or name on a hub.
    pub(crate) path: PathBuf,
    /// The name it is served under.
    pub(crate) name: Option<String>,
    /// Further names.
    #[serde(default)]
    pub(crate) aliases: Vec<String>,
    /// Its texts that are computed together.
    pub(crate) parallel: Option<usize>,
    /// Tokens a text can have.
    pub(crate) ctx: Option<usize>,
    /// Threads.
    pub(crate) threads: Option<usize>,
    /// Element type of keys and values.
    pub(crate) kv: Option<Kv>,
    /// Draft tokens.
    pub(crate) speculate: Option<usize>,
    /// Memory for texts whose place others took, MiB.
    pub(crate) prompt_cache: Option<usize>,
    /// Layers on a GPU.
    pub(crate) gpu_layers: Option<usize>,
    /// That GPU.
    pub(crate) device: Option<String>,
}

impl ServedConfig {
    /// A model of which nothing else is said.
    pub(crate) fn new(path: PathBuf, name: Option<String>) -> Self {
        Self {
            path,
            name,
            aliases: Vec::new(),
            parallel: None,
            ctx: None,
            threads: None,
            kv: None,
            speculate: None,
            prompt_cache: None,
            gpu_layers: None,
            device: None,
        }
    }
}

/// A key in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct KeyConfig {
    /// The key itself.
    key: Option<String>,
    /// A file with it.
    key_file: Option<PathBuf>,
    /// The models it is for; all unless given.
    models: Option<Vec<String>>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, is no TOML, has unknown keys or values without sense.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let mut config = Self::parse(&text, &path.display().to_string())?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for model in &mut config.models {
            let name = model.path.to_string_lossy();
            if !ELSEWHERE.iter().any(|scheme| name.starts_with(scheme)) {
                model.path = folder.join(&model.path);
            }
        }
        for key in &mut config.keys {
            key.key_file = key.key_file.take().map(|file| folder.join(file));
        }
        config.request_log = config.request_log.map(|log| folder.join(log));
        Ok(config)
    }

    /// Reads the text of a file that is called `name`.
    fn parse(text: &str, name: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|e| {
            let before = e.span().and_then(|span| text.get(..span.start));
            let line = before.map_or_else(String::new, |before| {
                format!("{}: ", 1 + before.matches('\n').count())
            });
            // keys of the file: in backticks they would be spelled as options
            let message = e.message().replace('`', "\"");
            Error::failed(format!("{name}:{line}{message}"))
        })?;
        config.check(name)?;
        Ok(config)
    }

    fn check(&self, name: &str) -> Result<()> {
        let fault = |place: &str, key: &str, expected: &str, found: &str| {
            Err(Error::failed(format!("{name}: {place}{key}: expected {expected}, found {found}")))
        };
        let counts =
            [("queue", self.queue), ("max-body", self.max_body), ("max-tokens", self.max_tokens)];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == Some(0)) {
            return fault("", key, "at least one", "0");
        }
        for (index, model) in self.models.iter().enumerate() {
            let place = format!("models[{index}]: ");
            let counts =
                [("parallel", model.parallel), ("ctx", model.ctx), ("threads", model.threads)];
            if let Some((key, _)) = counts.iter().find(|(_, count)| *count == Some(0)) {
                return fault(&place, key, "at least one", "0");
            }
            let names = model.name.iter().chain(&model.aliases);
            if names.clone().any(String::is_empty) {
                return fault(&place, "name", "a model's name", "none");
            }
            if model.path.as_os_str().is_empty() {
                return fault(&place, "path", "a model", "none");
            }
        }
        for (index, key) in self.keys.iter().enumerate() {
            let place = format!("keys[{index}]: ");
            match (&key.key, &key.key_file) {
                (Some(_), Some(_)) => {
                    return fault(&place, "key", "one of key and key-file", "both");
                }
                (None, None) => return fault(&place, "key", "one of key and key-file", "neither"),
                _ => {}
            }
            if key.models.as_ref().is_some_and(Vec::is_empty) {
                return fault(&place, "models", "models, or no such line for all of them", "none");
            }
        }
        Ok(())
    }

    /// The keys with their models, those in files read.
    ///
    /// # Errors
    /// A file that cannot be read, an empty key, the same one twice.
    pub(crate) fn read_keys(&self, name: &Path) -> Result<Vec<mmx_serve::Key>> {
        let mut keys: Vec<mmx_serve::Key> = Vec::new();
        for (index, config) in self.keys.iter().enumerate() {
            let key = match (&config.key, &config.key_file) {
                (_, Some(file)) => {
                    let text = fs_err::read_to_string(file).map_err(|e| Error::io(file, e))?;
                    text.trim().to_owned()
                }
                (key, None) => key.clone().unwrap_or_default(),
            };
            let fault = |expected: &str, found: &str| {
                let place = format!("{}: keys[{index}]", name.display());
                Err(Error::failed(format!("{place}: expected {expected}, found {found}")))
            };
            if key.is_empty() {
                return fault("a key", "none");
            }
            if let Some(at) = keys.iter().position(|known| known.key == key) {
                return fault("a key of its own", &format!("that of keys[{at}]"));
            }
            keys.push(mmx_serve::Key { key, models: config.models.clone() });
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Config::parse(text, "serve.toml").expect_err(text).to_string()
    }

    /// The example of docs/serving.md: it is read, and no key of the file is missing from it.
    #[test]
    fn the_example_in_the_docs_has_every_key_and_is_read() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/serving.md");
        let page = fs_err::read_to_string(page).expect("the page");
        let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
        let example = example.expect("an example in TOML");
        let config = Config::parse(example, "serving.md").expect("a right example");
        assert!(config.models.len() > 1 && config.keys.len() > 1);
        // what is unknown is refused with the names of all that are known
        for text in ["x-y = 1", "[[models]]\nx-y = 1", "[[keys]]\nx-y = 1"] {
            let said = refused(text);
            let known: Vec<&str> = said.split('"').skip(3).step_by(2).collect();
            assert!(known.len() > 2, "{said}");
            for key in known {
                let heads = [format!("{key} ="), format!("[[{key}]]")];
                let line = |l: &str| heads.iter().any(|head| l.starts_with(head));
                assert!(example.lines().any(line), "{key} is not in the example");
            }
        }
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused_by_line_and_name() {
        for (text, expected) in [
            ("host = \"::1\"\nprot = 80", "serve.toml:2: unknown field \"prot\""),
            ("[[models]]\npath = \"a\"\ncontext = 80", "serve.toml:3: unknown field \"context\""),
            ("[[keys]]\nkeys = \"a\"", "serve.toml:2: unknown field \"keys\""),
            ("port = 70000", "serve.toml:1: "),
            ("port = \"80\"", "serve.toml:1: invalid type"),
            ("[[models]]\nname = \"a\"", "missing field \"path\""),
            ("[[models]]\npath = \"a\"\nkv = \"f8\"", "serve.toml:3: unknown variant \"f8\""),
            ("port = ", "serve.toml:1: "),
            ("queue = 0", "serve.toml: queue: expected at least one, found 0"),
            ("[[models]]\npath = \"a\"\nctx = 0", "models[0]: ctx: expected at least one"),
            ("[[models]]\npath = \"a\"\naliases = [\"\"]", "models[0]: name: expected a model"),
            ("[[models]]\npath = \"\"", "models[0]: path: expected a model"),
            ("[[keys]]\nmodels = [\"a\"]", "keys[0]: key: expected one of key and key-file"),
            ("[[keys]]\nkey = \"a\"\nkey-file = \"b\"", "key-file, found both"),
            ("[[keys]]\nkey = \"a\"\nmodels = []", "keys[0]: models: expected models"),
        ] {
            let said = refused(text);
            assert!(said.contains(expected), "{text}: {said}, expected {expected}");
        }
    }

    #[test]
    fn paths_are_found_from_the_file_and_keys_are_read_from_files_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("serve.toml");
        fs_err::write(folder.path().join("secret"), "b \n").expect("a key");
        let read = |text: &str| {
            fs_err::write(&path, text).expect("a file");
            Config::open(&path).expect("a right file").read_keys(&path)
        };
        fs_err::write(&path, "[[models]]\npath = \"m.gguf\"\n[[models]]\npath = \"hf:a/b\"")
            .expect("it");
        let found: Vec<_> =
            Config::open(&path).expect("a file").models.into_iter().map(|m| m.path).collect();
        assert_eq!(found, [folder.path().join("m.gguf"), PathBuf::from("hf:a/b")]);
        let keys = read("[[keys]]\nkey = \"a\"\nmodels = [\"m\"]\n[[keys]]\nkey-file = \"secret\"");
        let keys = keys.expect("keys");
        assert_eq!(keys[0].models.as_deref(), Some(["m".to_owned()].as_slice()));
        assert_eq!((keys[1].key.as_str(), &keys[1].models), ("b", &None));
        let twice =
            read("[[keys]]\nkey = \"b\"\n[[keys]]\nkey-file = \"secret\"").expect_err("same");
        assert!(
            twice.to_string().contains("keys[1]: expected a key of its own, found that of keys[0]")
        );
        assert!(
            read("[[keys]]\nkey = \"\"").expect_err("none").to_string().contains("expected a key")
        );
        let gone = read("[[keys]]\nkey-file = \"gone\"").expect_err("no file").to_string();
        assert!(gone.contains("gone"), "{gone}");
    }
}
