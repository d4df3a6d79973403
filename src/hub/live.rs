//! A running server asked for greedy text with the probabilities of its tokens: Ollama, or any that
//! speaks OpenAI's interface (vLLM, llama-server, `mmx serve`).
//!
//! Over plain HTTP, as the other clients here: ollama-rs brings an asynchronous runtime and a second
//! HTTP client. Source: Ollama's description of its interface, OpenAI's reference of completions and
//! chat completions; llama-server gives the newer form of probabilities for both.

use mmx_converters::{Error, Result};
use serde_json::{Value, json};

pub mod ids;

use super::environment::variable;
use super::http::{Client, json as json_of};
use super::ollama;

/// Alternatives asked for at each token: Ollama's and OpenAI's most, but for vLLM's default.
const TOP: usize = 5;

/// A server, and the model of it that is asked.
#[derive(Debug)]
pub struct Server {
    client: Client,
    form: Form,
    /// The name as it was given.
    pub name: String,
    model: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Ollama,
    OpenAi,
}

/// A prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt<'a> {
    /// A text to go on after.
    Text(&'a str),
    /// A user's message.
    Chat(&'a str),
}

/// A token as a server tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its bytes; nothing where its text is a part of a character and no bytes are told.
    pub bytes: Option<Vec<u8>>,
    /// The logarithm of its probability.
    pub logprob: f64,
}

/// A token that was written, and the likeliest ones at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The token.
    pub token: Token,
    /// The likeliest tokens; it may be among them.
    pub top: Vec<Token>,
}

/// A server's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// The text.
    pub text: String,
    /// Its tokens; nothing where none are told.
    pub tokens: Option<Vec<Written>>,
    /// Number of the prompt's tokens, if it is told.
    pub prompt_tokens: Option<usize>,
}

impl Server {
    /// The server of `ollama:NAME` (the Ollama of `OLLAMA_HOST`) or `openai:URL[#MODEL]` (its first
    /// model unless one is named; the key is `OPENAI_API_KEY`'s). Nothing for another name.
    ///
    /// # Errors
    /// An address or a name that is none.
    pub fn named(name: &str) -> Option<Result<Self>> {
        let (scheme, rest) = name.split_once(':')?;
        let form = match scheme {
            "ollama" => Form::Ollama,
            "openai" => Form::OpenAi,
            _ => return None,
        };
        let misuse = |expected: &str| {
            Some(Err(Error::misuse(format!("{name}: expected {expected}, found {rest:?}"))))
        };
        let (client, model) = match form {
            Form::Ollama if rest.is_empty() => return misuse("a model's name after ollama:"),
            Form::Ollama => (Client::new(&ollama::environment_address(), None), rest),
            Form::OpenAi => {
                let (url, model) = rest.split_once('#').unwrap_or((rest, ""));
                if !url.starts_with("http://") && !url.starts_with("https://") {
                    return misuse("an address such as http://127.0.0.1:8080 after openai:");
                }
                let url = url.trim_end_matches('/');
                let base = match url.rsplit('/').next() {
                    Some("v1") => url.to_owned(),
                    _ => format!("{url}/v1"),
                };
                (Client::new(&base, variable("OPENAI_API_KEY")), model)
            }
        };
        let model = model.to_owned();
        Some(Ok(Self { client, form, name: name.to_owned(), model }))
    }

    /// The kind of the server.
    pub fn kind(&self) -> &'static str {
        match self.form {
            Form::Ollama => "ollama",
            Form::OpenAi => "openai",
        }
    }

    /// Finds the model where none was named, and the type that the server says its weights have.
    ///
    /// # Errors
    /// A server that does not answer, or has no such model.
    pub fn prepare(&mut self) -> Result<Option<String>> {
        let doing = format!("{}: looking the model up", self.name);
        if self.form == Form::Ollama {
            let body = json!({"model": self.model});
            let shown = json_of(&doing, self.client.post_json("/api/show", &[], &body)?)?;
            return Ok(shown
                .pointer("/details/quantization_level")
                .and_then(Value::as_str)
                .map(str::to_owned));
        }
        let listed = json_of(&doing, self.client.get("GET", "/models", &[])?)?;
        let ids = listed["data"].as_array().into_iter().flatten();
        let ids: Vec<&str> = ids.filter_map(|model| model["id"].as_str()).collect();
        let found = match self.model.as_str() {
            "" => ids.first().copied(),
            named => ids.iter().find(|id| **id == named).copied(),
        };
        match found {
            Some(id) => self.model = id.to_owned(),
            None => {
                let wanted = match self.model.as_str() {
                    "" => "a model".to_owned(),
                    named => format!("the model {named}"),
                };
                let found = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
                return Err(Error::failed(format!("{doing}: expected {wanted}, found {found}")));
            }
        }
        Ok(None)
    }

    /// Asks for the likeliest text of at most `tokens` tokens.
    ///
    /// # Errors
    /// The server's refusal, an answer of another form.
    pub fn ask(&self, prompt: Prompt<'_>, tokens: usize) -> Result<Told> {
        let doing = match prompt {
            Prompt::Text(_) => format!("{}: asking it for a text", self.name),
            Prompt::Chat(_) => format!("{}: asking it in a chat", self.name),
        };
        let (path, body) = match self.form {
            Form::Ollama => ollama_request(&self.model, prompt, tokens),
            Form::OpenAi => openai_request(&self.model, prompt, tokens),
        };
        let answer = json_of(&doing, self.client.post_json(path, &[], &body)?)?;
        let told = match self.form {
            Form::Ollama => ollama_answer(&answer),
            Form::OpenAi => openai_answer(&answer),
        };
        told.ok_or_else(|| Error::failed(format!("{doing}: expected a text, found {answer}")))
    }
}

impl Server {
    /// The likeliest answer of at most `tokens` tokens to a user's message, as text alone: servers
    /// that tell no probabilities give it too.
    ///
    /// # Errors
    /// The server's refusal, an answer of another form.
    pub fn say(&self, message: &str, tokens: usize) -> Result<String> {
        let doing = format!("{}: asking it in a chat", self.name);
        let (path, mut body) = match self.form {
            Form::Ollama => ollama_request(&self.model, Prompt::Chat(message), tokens),
            Form::OpenAi => openai_request(&self.model, Prompt::Chat(message), tokens),
        };
        for key in ["logprobs", "top_logprobs"] {
            body.as_object_mut().map(|body| body.remove(key));
        }
        let answer = json_of(&doing, self.client.post_json(path, &[], &body)?)?;
        let told = match self.form {
            Form::Ollama => ollama_answer(&answer),
            Form::OpenAi => openai_answer(&answer),
        };
        let told = told.map(|told| told.text);
        told.ok_or_else(|| Error::failed(format!("{doing}: expected a text, found {answer}")))
    }
}

fn ollama_request(model: &str, prompt: Prompt<'_>, tokens: usize) -> (&'static str, Value) {
    // Ollama's own defaults draw, and look back for repetitions
    let options =
        json!({"temperature": 0, "seed": 1, "repeat_penalty": 1.0, "num_predict": tokens});
    let mut body = json!({"model": model, "stream": false, "options": options, "logprobs": true,
        "top_logprobs": TOP});
    match prompt {
        Prompt::Text(text) => {
            body["prompt"] = json!(text);
            body["raw"] = json!(true);
            ("/api/generate", body)
        }
        Prompt::Chat(message) => {
            body["messages"] = json!([{"role": "user", "content": message}]);
            body["think"] = json!(false);
            ("/api/chat", body)
        }
    }
}

fn ollama_answer(answer: &Value) -> Option<Told> {
    let chat = || answer.pointer("/message/content").and_then(Value::as_str);
    Some(Told {
        text: answer["response"].as_str().or_else(chat)?.to_owned(),
        tokens: answer["logprobs"].as_array().and_then(|list| newer(list)),
        prompt_tokens: count(&answer["prompt_eval_count"]),
    })
}

fn openai_request(model: &str, prompt: Prompt<'_>, tokens: usize) -> (&'static str, Value) {
    let mut body = json!({"model": model, "max_tokens": tokens, "temperature": 0, "seed": 1});
    match prompt {
        Prompt::Text(text) => {
            body["prompt"] = json!(text);
            body["logprobs"] = json!(TOP);
            ("/completions", body)
        }
        Prompt::Chat(message) => {
            body["messages"] = json!([{"role": "user", "content": message}]);
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(TOP);
            ("/chat/completions", body)
        }
    }
}

fn openai_answer(answer: &Value) -> Option<Told> {
    let choice = answer.pointer("/choices/0")?;
    let text = match &choice["message"] {
        Value::Null => choice["text"].as_str()?,
        message => message["content"].as_str().unwrap_or_default(), // null where nothing was said
    };
    let logprobs = &choice["logprobs"];
    let tokens = match logprobs["content"].as_array() {
        Some(list) => newer(list),
        None => older(logprobs),
    };
    let prompt_tokens = answer.pointer("/usage/prompt_tokens").and_then(count);
    Some(Told { text: text.to_owned(), tokens, prompt_tokens })
}

fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

/// A list of `{token, bytes, logprob, top_logprobs}`.
fn newer(list: &[Value]) -> Option<Vec<Written>> {
    let token =
        |value: &Value| Some(Token { bytes: spelled(value), logprob: value["logprob"].as_f64()? });
    let written = |value: &Value| {
        let top = value["top_logprobs"].as_array().into_iter().flatten();
        Some(Written { token: token(value)?, top: top.filter_map(token).collect() })
    };
    list.iter().map(written).collect()
}

/// The bytes of a token of the newer form: `bytes`, else its text.
fn spelled(value: &Value) -> Option<Vec<u8>> {
    let text = value["token"].as_str();
    match value["bytes"].as_array() {
        // a control token has no bytes in some servers, and its text tells it
        Some(bytes) if !bytes.is_empty() => {
            let byte = |b: &Value| b.as_u64().and_then(|b| u8::try_from(b).ok());
            bytes.iter().map(byte).collect()
        }
        _ => text.and_then(whole),
    }
}

/// Parallel lists of the older form.
fn older(value: &Value) -> Option<Vec<Written>> {
    let (tokens, logprobs) = (value["tokens"].as_array()?, value["token_logprobs"].as_array()?);
    let tops = value["top_logprobs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let written = |(i, (token, logprob)): (usize, (&Value, &Value))| {
        let top = tops.get(i).and_then(Value::as_object).into_iter().flatten();
        let top = top.filter_map(|(text, logprob)| {
            Some(Token { bytes: whole(text), logprob: logprob.as_f64()? })
        });
        let token = Token { bytes: whole(token.as_str()?), logprob: logprob.as_f64()? };
        Some(Written { token, top: top.collect() })
    };
    tokens.iter().zip(logprobs).enumerate().map(written).collect()
}

/// The bytes of a text, unless it stands for a part of a character: U+FFFD, or `bytes:\xe4\xbd`,
/// which is how OpenAI and vLLM write it.
fn whole(text: &str) -> Option<Vec<u8>> {
    if let Some(escaped) = text.strip_prefix("bytes:").filter(|rest| rest.starts_with("\\x")) {
        let parts = escaped.split("\\x").skip(1);
        return parts.map(|hex| u8::from_str_radix(hex, 16).ok()).collect();
    }
    (!text.contains('\u{fffd}')).then(|| text.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_by_their_names() {
        let base = |name: &str| {
            let server = Server::named(name).expect("a server").expect(name);
            (server.client.base().to_owned(), server.model)
        };
        assert_eq!(base("openai:http://h:1"), ("http://h:1/v1".into(), String::new()));
        assert_eq!(base("openai:http://h:1/v1/#a/b"), ("http://h:1/v1".into(), "a/b".into()));
        assert_eq!(base("ollama:me/x:q4").1, "me/x:q4");
        for bad in ["openai:h:1", "ollama:"] {
            assert!(Server::named(bad).expect("a server").expect_err(bad).is_misuse(), "{bad}");
        }
        assert!(Server::named("ggml").is_none() && Server::named("other:x").is_none());
    }

    #[test]
    fn tokens_are_read_in_both_forms() {
        let token =
            |bytes: Option<&[u8]>, logprob| Token { bytes: bytes.map(<[u8]>::to_vec), logprob };
        let answer = json!({"usage": {"prompt_tokens": 4}, "choices": [{"message": {"content": "hi"},
            "logprobs": {"content": [{"token": "?", "bytes": [228, 189], "logprob": -0.5,
                "top_logprobs": [{"token": " a", "logprob": -1.0}]}]}}]});
        let told = openai_answer(&answer).expect("an answer");
        let written =
            Written { token: token(Some(&[228, 189]), -0.5), top: vec![token(Some(b" a"), -1.0)] };
        assert_eq!((told.text.as_str(), told.prompt_tokens), ("hi", Some(4)));
        assert_eq!(told.tokens, Some(vec![written]));
        let answer = json!({"choices": [{"text": "x", "logprobs": {"tokens": ["x", "\u{fffd}"],
            "token_logprobs": [-0.25, -2.0], "top_logprobs": [{"x": -0.25}, {"bytes:\\xe4": -2.0}]}}]});
        let tokens = openai_answer(&answer).expect("an answer").tokens.expect("tokens");
        assert_eq!(
            tokens[0],
            Written { token: token(Some(b"x"), -0.25), top: vec![token(Some(b"x"), -0.25)] }
        );
        assert_eq!(
            tokens[1],
            Written { token: token(None, -2.0), top: vec![token(Some(&[0xe4]), -2.0)] }
        );
        let answer = json!({"choices": [{"text": "x", "logprobs": null}]});
        assert_eq!(openai_answer(&answer).expect("an answer").tokens, None);
        assert_eq!(openai_answer(&json!({"error": "x"})), None);
        let answer = json!({"response": "x", "prompt_eval_count": 3, "message": null});
        assert_eq!(ollama_answer(&answer).expect("an answer").prompt_tokens, Some(3));
    }
}
