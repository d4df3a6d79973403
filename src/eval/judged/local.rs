//! A model in mmx's runner as one that answers chats in OpenAI's form.

use std::sync::{Mutex, PoisonError};

use mmx_data::asking::{Chat, Refused};
use mmx_ggml::run::Sampling;
use mmx_models::speaker::Speaker;
use serde_json::{Value, json};

/// A model of this machine, which answers one request after the other: the same request gets the
/// same answer, whatever else is asked.
#[derive(Debug)]
pub struct Local(Mutex<Speaker>);

impl Local {
    /// Wraps a model.
    #[must_use]
    pub fn new(speaker: Speaker) -> Self {
        Self(Mutex::new(speaker))
    }
}

impl Chat for Local {
    fn ask(&self, body: &Value) -> Result<Value, Refused> {
        let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let tokens = body["max_tokens"].as_u64().and_then(|n| usize::try_from(n).ok());
        let sampling = Sampling {
            temperature: body["temperature"].as_f64().unwrap_or_default(),
            seed: body["seed"].as_u64().unwrap_or_default(),
            ..Sampling::default()
        };
        let mut speaker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = tokens.unwrap_or(usize::MAX);
        let said = speaker.answer(messages, body.get("tools").cloned(), tokens, sampling);
        // it would refuse the same again
        let said = said.map_err(|e| Refused { why: e.to_string(), again: false, after: None })?;
        let finish = if said.is_whole { "stop" } else { "length" };
        Ok(json!({
            "choices": [{ "message": { "role": "assistant", "content": said.text }, "finish_reason": finish }],
            "usage": { "prompt_tokens": said.prompt_tokens, "completion_tokens": said.tokens },
        }))
    }
}
