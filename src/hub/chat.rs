//! Chats asked of a server that speaks OpenAI's interface: whole answers, and of each refusal
//! whether it is worth asking again.

use std::time::Duration;

use mmx_converters::{Error, Result};
use serde_json::Value;

use super::environment::variable;
use super::http::{Client, json as json_of};
use super::ollama;

/// Longest answer that is read, bytes.
const LONGEST: u64 = 64 << 20;

/// A server, and the model of it that is asked.
#[derive(Debug)]
pub struct ChatServer {
    client: Client,
    model: String,
}

/// The reason why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, in words.
    pub why: String,
    /// Whether the same request may be answered later: the server is busy, broken or away.
    pub again: bool,
    /// The time that the server asks to wait.
    pub after: Option<Duration>,
}

impl ChatServer {
    /// The server of an address, with or without `/v1`; its first model where none is named. The
    /// key is `OPENAI_API_KEY`'s. An answer may take `timeout`.
    ///
    /// # Errors
    /// An address that is none; a server that does not answer or has no model, where none is named.
    pub fn open(address: &str, model: Option<&str>, timeout: Duration) -> Result<Self> {
        if !address.starts_with("http://") && !address.starts_with("https://") {
            let expected = "an address such as http://127.0.0.1:8080";
            return Err(Error::misuse(format!("expected {expected}, found {address:?}")));
        }
        let address = address.trim_end_matches('/');
        let base = match address.rsplit('/').next() {
            Some("v1") => address.to_owned(),
            _ => format!("{address}/v1"),
        };
        Self::of(address, &base, variable("OPENAI_API_KEY"), model, timeout)
    }

    /// The server of `openai:URL[#MODEL]`, as [`ChatServer::open`] finds it, or of `ollama:NAME`:
    /// the Ollama of `OLLAMA_HOST`, which gets no key. Nothing for another name.
    ///
    /// # Errors
    /// See [`ChatServer::open`]; no model's name after `ollama:`.
    pub fn named(name: &str, timeout: Duration) -> Option<Result<Self>> {
        if let Some(rest) = name.strip_prefix("openai:") {
            let (address, model) = rest.split_once('#').map_or((rest, None), |(a, m)| (a, Some(m)));
            return Some(Self::open(address, model.filter(|model| !model.is_empty()), timeout));
        }
        let model = name.strip_prefix("ollama:")?;
        if model.is_empty() {
            let expected = "a model's name after ollama:";
            return Some(Err(Error::misuse(format!("{name}: expected {expected}, found none"))));
        }
        let address = ollama::environment_address();
        Some(Self::of(&address, &format!("{address}/v1"), None, Some(model), timeout))
    }

    fn of(
        address: &str,
        base: &str,
        key: Option<String>,
        model: Option<&str>,
        timeout: Duration,
    ) -> Result<Self> {
        let client = Client::patient(base, key, timeout);
        let model = match model {
            Some(model) => model.to_owned(),
            None => {
                let doing = format!("{address}: looking the model up");
                let listed = json_of(&doing, client.get("GET", "/models", &[])?)?;
                let first = listed.pointer("/data/0/id").and_then(Value::as_str);
                let none = || Error::failed(format!("{doing}: expected a model, found none"));
                first.ok_or_else(none)?.to_owned()
            }
        };
        Ok(Self { client, model })
    }

    /// The model's name.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Asks for a chat completion; the model's name is put into the body.
    ///
    /// # Errors
    /// No answer, a status of failure, or an answer that is no JSON: a [`Refusal`].
    pub fn ask(&self, body: &Value) -> Result<Value, Refusal> {
        let mut body = body.clone();
        body["model"] = self.model.as_str().into();
        let later = |why: String| Refusal { why, again: true, after: None };
        let sent = self.client.post_json("/chat/completions", &[], &body);
        let mut answer = sent.map_err(|e| later(e.to_string()))?;
        let status = answer.status().as_u16();
        let after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let after = after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let text = answer.body_mut().with_config().limit(LONGEST).read_to_string();
        let text = match text {
            Ok(text) => text,
            Err(e) if answer.status().is_success() => {
                return Err(later(format!("the answer broke off: {e}")));
            }
            Err(_) => String::new(),
        };
        let parsed: Result<Value, _> = serde_json::from_str(&text);
        if !answer.status().is_success() {
            let of_json = parsed.ok().and_then(|value| match &value["error"] {
                Value::String(text) => Some(text.clone()),
                error => error["message"].as_str().map(str::to_owned),
            });
            let words = of_json.unwrap_or_else(|| text.lines().next().unwrap_or("").to_owned());
            // request timeout, conflict, too early, too many requests, and whatever is the server's
            let again = matches!(status, 408 | 409 | 425 | 429 | 500..);
            return Err(Refusal { why: format!("HTTP {status}: {words}"), again, after });
        }
        parsed.map_err(|e| later(format!("expected JSON: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_by_their_names() {
        let named = |name: &str| ChatServer::named(name, Duration::from_secs(1));
        let found = |name: &str| {
            let server = named(name).expect("a server").expect(name);
            (server.client.base().to_owned(), server.model)
        };
        assert_eq!(found("openai:http://h:1#a/b"), ("http://h:1/v1".into(), "a/b".into()));
        assert_eq!(found("openai:http://h:1/v1/#m"), ("http://h:1/v1".into(), "m".into()));
        assert_eq!(found("ollama:me/x:q4").1, "me/x:q4");
        for bad in ["openai:h:1", "ollama:"] {
            assert!(named(bad).expect("a server").expect_err(bad).is_misuse(), "{bad}");
        }
        assert!(named("runs/sft").is_none() && named("hf:a/b").is_none());
    }
}
