//! The way of a GGUF and its Modelfile to a running Ollama: the file by its digest, then a model
//! made of it.
//!
//! Source: Ollama's description of its HTTP interface (blobs, create).

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use mmx_converters::gguf::Gguf;
use mmx_converters::modelfile::Modelfile;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::digest::sha256;
use super::http::{Client, Counted, expect_ok};
use mmx_converters::{Error, Result};

/// Address at which Ollama listens unless `OLLAMA_HOST` names another.
const DEFAULT_HOST: &str = "http://127.0.0.1:11434";

/// A connection to a running Ollama.
pub struct Ollama {
    client: Client,
}

/// A model that was made in Ollama.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Created {
    /// The model's name.
    pub model: String,
    /// The GGUF.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub digest: String,
    /// True where its bytes were sent; false where the server had them.
    pub sent: bool,
}

impl Ollama {
    /// The Ollama of `OLLAMA_HOST`.
    pub fn from_environment() -> Self {
        Self::new(&environment_address())
    }

    /// An Ollama by its address.
    pub fn new(address: &str) -> Self {
        Self { client: Client::new(address, None) }
    }

    /// Ollama's address.
    pub fn address(&self) -> &str {
        self.client.base()
    }

    /// Makes the model `name` of a Modelfile and the GGUF that it names. `progress` hears of the
    /// bytes sent and in all; `say` of what the server is doing.
    ///
    /// # Errors
    /// A Modelfile that cannot be read, a GGUF that is none, the server's refusal.
    pub fn create(
        &self,
        name: &str,
        modelfile: &Path,
        progress: &mut dyn FnMut(u64, u64),
        say: &mut dyn FnMut(&str),
    ) -> Result<Created> {
        let text = fs_err::read_to_string(modelfile).map_err(|e| Error::io(modelfile, e))?;
        let file = Modelfile::read(&text)
            .map_err(|e| Error::failed(format!("{}: {e}", modelfile.display())))?;
        let path = modelfile.parent().unwrap_or(Path::new(".")).join(&file.from);
        if Gguf::open(&path)?.files().count() > 1 {
            return Err(Error::failed_with_hint(
                format!("{}: expected one file, found a model in several parts", path.display()),
                "`mmx export MODEL --gguf TYPE --ollama` without `split_size` writes one",
            ));
        }
        let bytes = fs_err::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        let digest = format!("sha256:{}", sha256(&path)?);
        let blob = format!("/api/blobs/{digest}");
        let sent = match self.client.get("HEAD", &blob, &[])?.status().as_u16() {
            200 => false,
            _ => {
                let mut done = 0;
                let mut count = |read: u64| {
                    done += read;
                    progress(done, bytes);
                };
                let mut body = Counted::open(&path, &mut count)?;
                let answer = self.client.send("POST", &blob, &[], &mut body, bytes)?;
                expect_ok(&format!("{}: sending it", path.display()), answer)?;
                true
            }
        };
        let body = request(name, &file, &path, &digest);
        let doing = format!("{name}: creating it");
        let answer = expect_ok(&doing, self.client.post_json("/api/create", &[], &body)?)?;
        let lines = BufReader::new(answer.into_body().into_reader());
        let mut last = String::new();
        for line in lines.lines() {
            let line = line.map_err(|e| Error::failed(format!("{doing}: {e}")))?;
            if line.trim().is_empty() {
                continue;
            }
            let value: Value = serde_json::from_str(&line)
                .map_err(|e| Error::failed(format!("{doing}: expected JSON: {e}")))?;
            if let Some(error) = value["error"].as_str() {
                return Err(Error::failed(format!("{doing}: {error}")));
            }
            last = value["status"].as_str().unwrap_or_default().to_owned();
            say(&last);
        }
        match last.as_str() {
            "success" => Ok(Created { model: name.to_owned(), path, bytes, digest, sent }),
            other => {
                Err(Error::failed(format!("{doing}: expected success at the end, found {other:?}")))
            }
        }
    }
}

/// `OLLAMA_HOST` as an address: a host, a host and port, or an address.
fn address(host: &str) -> String {
    let host = host.trim().trim_matches('"').trim_end_matches('/');
    if host.is_empty() {
        return DEFAULT_HOST.to_owned();
    }
    let (scheme, rest) = host.split_once("://").unwrap_or(("http", host));
    // a server's own setting may name every interface, which is no place to connect to
    let rest = rest.replacen("0.0.0.0", "127.0.0.1", 1);
    let named = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match (named, scheme) {
        (true, _) => format!("{scheme}://{rest}"),
        (false, "https") => format!("{scheme}://{rest}:443"),
        (false, _) if host.contains("://") => format!("{scheme}://{rest}:80"),
        (false, _) => format!("{scheme}://{rest}:11434"),
    }
}

/// The address that `OLLAMA_HOST` says.
pub(super) fn environment_address() -> String {
    address(&std::env::var("OLLAMA_HOST").unwrap_or_default())
}

/// The body of `/api/create`.
fn request(name: &str, file: &Modelfile, gguf: &Path, digest: &str) -> Value {
    let gguf = gguf.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let mut body = json!({"model": name, "files": {gguf: digest}, "stream": true});
    if let Some(template) = &file.template {
        body["template"] = json!(template);
    }
    if let Some(system) = &file.system {
        body["system"] = json!(system);
    }
    if !file.licenses.is_empty() {
        body["license"] = json!(file.licenses);
    }
    let parameters = parameters(&file.parameters);
    if !parameters.is_empty() {
        body["parameters"] = parameters.into();
    }
    body
}

/// Numbers as numbers; `stop` as a list.
fn parameters(given: &[(String, String)]) -> Map<String, Value> {
    let mut out = Map::new();
    for (key, text) in given {
        if key == "stop" {
            match out.get_mut(key) {
                Some(Value::Array(stops)) => stops.push(json!(text)),
                _ => drop(out.insert(key.clone(), json!([text]))),
            }
            continue;
        }
        let value = match (text.parse::<i64>(), text.parse::<f64>(), text.parse::<bool>()) {
            (Ok(n), ..) => json!(n),
            (_, Ok(x), _) if x.is_finite() => json!(x),
            (_, _, Ok(b)) => json!(b),
            _ => json!(text),
        };
        out.insert(key.clone(), value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_ollama_reads_them() {
        for (host, expected) in [
            ("", "http://127.0.0.1:11434"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("localhost:1234", "http://localhost:1234"),
            ("http://box", "http://box:80"),
            ("https://box/", "https://box:443"),
            ("\"box\"", "http://box:11434"),
        ] {
            assert_eq!(address(host), expected, "{host}");
        }
    }

    #[test]
    fn parameters_have_their_types() {
        let given = [
            ("stop", "<|im_end|>"),
            ("num_ctx", "2048"),
            ("stop", "2"),
            ("temperature", "0.85"),
            ("penalize_newline", "true"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let expected = json!({
            "stop": ["<|im_end|>", "2"], "num_ctx": 2048, "temperature": 0.85,
            "penalize_newline": true,
        });
        assert_eq!(Value::from(parameters(&given)), expected);
    }
}
