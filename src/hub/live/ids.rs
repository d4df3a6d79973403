//! A running server asked to go on after ids, which tells the ids it drew and how probable each was:
//! what rollouts need. vLLM does (`return_token_ids`); a server that tells texts alone is refused,
//! since a text read again by a tokenizer may be other ids than those that were drawn.
//!
//! Source: vLLM's reference of its OpenAI-compatible server. It tells the log-probabilities of the
//! model's own distribution unless it is started with `--logprobs-mode processed_logprobs`; without
//! truncation and at temperature 1 both are the same.

use mmx_converters::{Error, Result};
use serde_json::{Value, json};

use super::{Form, Server};
use crate::http::json as json_of;

/// A prompt of ids, and how what follows is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The prompt.
    pub ids: &'a [u32],
    /// New ids at most.
    pub max_new: usize,
    /// The same seed gives the same draws, as far as the server's own sums repeat.
    pub seed: u64,
    /// Logits are divided by it; 0 takes the most probable id.
    pub temperature: f64,
    /// Ids kept at most; 0 keeps all.
    pub top_k: usize,
    /// Probability kept at least; 1 keeps all.
    pub top_p: f64,
    /// Ids that end a text.
    pub stop: &'a [u32],
}

/// The ids that a server drew.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawn {
    /// The ids, one that ends the text included.
    pub ids: Vec<u32>,
    /// Per id the logarithm of its probability, as the server tells it.
    pub logps: Vec<f32>,
}

impl Server {
    /// Asks for ids after ids.
    ///
    /// # Errors
    /// The server's refusal; a server that does not tell ids and their probabilities.
    pub fn continued(&self, ask: &Ask<'_>) -> Result<Drawn> {
        let doing = format!("{}: asking it to go on after ids", self.name);
        if self.form == Form::Ollama {
            return Err(Error::failed(format!(
                "{doing}: expected a server with OpenAI's interface, found Ollama, which takes no ids"
            )));
        }
        let answer = json_of(&doing, self.client.post_json("/completions", &[], &self.body(ask))?)?;
        read(&answer).map_err(|fault| Error::failed(format!("{doing}: {fault}")))
    }

    fn body(&self, ask: &Ask<'_>) -> Value {
        // a seed of JSON's safe whole numbers, which every server reads
        let seed = ask.seed >> 11;
        let mut body = json!({"model": self.model, "prompt": ask.ids, "max_tokens": ask.max_new, "seed": seed,
            "temperature": ask.temperature, "top_p": ask.top_p, "logprobs": 1, "return_token_ids": true,
            "stop_token_ids": ask.stop, "skip_special_tokens": false});
        if ask.top_k > 0 {
            body["top_k"] = json!(ask.top_k);
        }
        body
    }
}

/// Ids and probabilities of an answer.
fn read(answer: &Value) -> std::result::Result<Drawn, String> {
    let choice = answer.pointer("/choices/0").ok_or("expected a choice, found none")?;
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = choice["token_ids"].as_array();
    let ids: Option<Vec<u32>> = ids.and_then(|ids| ids.iter().map(id).collect());
    let ids =
        ids.ok_or("expected the key token_ids (vLLM 0.10.2 or newer tells it), found none")?;
    let logps = choice.pointer("/logprobs/token_logprobs").and_then(Value::as_array);
    let logp = |value: &Value| value.as_f64().map(|logp| logp as f32);
    let logps: Option<Vec<f32>> = logps.and_then(|logps| logps.iter().map(logp).collect());
    let logps = logps.ok_or("expected the key token_logprobs, found none")?;
    if ids.len() != logps.len() {
        return Err(format!(
            "expected a log-probability for each of {} ids, found {}",
            ids.len(),
            logps.len()
        ));
    }
    Ok(Drawn { ids, logps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_their_probabilities_are_read_and_what_lacks_them_is_refused() {
        let answer = json!({"choices": [{"text": "x", "token_ids": [70, 2], "finish_reason": "stop",
            "logprobs": {"tokens": ["x", ""], "token_logprobs": [-0.5, -0.25]}}]});
        assert_eq!(read(&answer), Ok(Drawn { ids: vec![70, 2], logps: vec![-0.5, -0.25] }));
        let mut without = answer.clone();
        without["choices"][0]["token_ids"] = Value::Null;
        assert!(read(&without).is_err_and(|fault| fault.contains("token_ids")));
        let mut fewer = answer.clone();
        fewer["choices"][0]["token_ids"] = json!([70]);
        assert!(read(&fewer).is_err_and(|fault| fault.contains("each of 1 ids, found 2")));
        let mut none = answer;
        none["choices"][0]["logprobs"] = Value::Null;
        assert!(read(&none).is_err_and(|fault| fault.contains("token_logprobs")));
        assert!(read(&json!({"choices": []})).is_err());
    }

    #[test]
    fn a_prompt_is_asked_as_ids_with_all_settings() {
        let server =
            Server::named("openai:http://127.0.0.1:1#m").expect("a server").expect("named");
        let ask = Ask {
            ids: &[1, 5],
            max_new: 9,
            seed: u64::MAX,
            temperature: 0.5,
            top_k: 0,
            top_p: 1.0,
            stop: &[2],
        };
        let body = server.body(&ask);
        assert_eq!((&body["prompt"], &body["stop_token_ids"]), (&json!([1, 5]), &json!([2])));
        assert_eq!(body["seed"], json!((1u64 << 53) - 1));
        assert_eq!(body.get("top_k"), None, "a server keeps all unless told otherwise");
        assert_eq!(server.body(&Ask { top_k: 4, ..ask })["top_k"], json!(4));
        let ollama = Server::named("ollama:m").expect("a server").expect("named");
        assert!(ollama.continued(&ask).is_err_and(|e| e.to_string().contains("takes no ids")));
    }
}
