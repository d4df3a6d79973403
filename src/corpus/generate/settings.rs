//! What is asked for and how, and a request's body.

use mmx_converters::random::Random;
use mmx_data::asking::{Prompt, Retries};
use serde::Serialize;
use serde_json::{Value, json};

/// What is made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Mode {
    /// A chat with the model's answer for each prompt.
    Answers,
    /// Two answers to each prompt, the one that a judge prefers and the other.
    Pairs {
        /// What the judge is asked.
        judge_prompt: String,
    },
    /// So many new instructions in the manner of the records given, each with its answer.
    Instructions {
        /// How many are asked for; those too much alike are left out.
        count: u64,
    },
}

/// How answers are drawn.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sampling {
    /// Divides the logits; the server's own unless given.
    pub temperature: Option<f64>,
    /// The share of probability that is kept.
    pub top_p: Option<f64>,
    /// Tokens of an answer at most.
    pub max_tokens: Option<u64>,
    /// The seed; each request has its own from it.
    pub seed: u64,
}

/// A run of requests.
#[derive(Clone, Debug)]
pub struct Generate {
    /// What is made.
    pub mode: Mode,
    /// The model's name, for the journal.
    pub model: String,
    /// The judge's name, for the journal.
    pub judge: String,
    /// A system turn before prompts that have none.
    pub system: Option<String>,
    /// How answers are drawn.
    pub sampling: Sampling,
    /// Requests at once.
    pub parallel: usize,
    /// How often a request is asked again.
    pub retries: Retries,
    /// Tokens, prompts and answers together, after which nothing more is asked.
    pub budget: Option<u64>,
    /// Leave prompts out whose requests failed, instead of an error.
    pub skip_failed: bool,
}

impl Generate {
    /// A prompt with the system turn of the run, where it has none.
    pub(super) fn with_system(&self, mut prompt: Prompt) -> Prompt {
        if let Some(system) = &self.system
            && prompt.turns[0]["role"] != "system"
        {
            prompt.turns.insert(0, json!({ "role": "system", "content": system }));
        }
        prompt
    }

    /// A request's body.
    pub(super) fn body(
        &self,
        turns: &[Value],
        tools: Option<&Value>,
        number: u64,
        step: u8,
    ) -> Value {
        let mut body = json!({ "messages": turns });
        if let Some(tools) = tools {
            body["tools"] = tools.clone();
        }
        let Sampling { temperature, top_p, max_tokens, seed } = &self.sampling;
        if let Some(temperature) = temperature {
            body["temperature"] = (*temperature).into();
        }
        if let Some(top_p) = top_p {
            body["top_p"] = (*top_p).into();
        }
        if let Some(max_tokens) = max_tokens {
            body["max_tokens"] = (*max_tokens).into();
        }
        // servers take seeds of 31 bits
        let own = Random::new(*seed, number * 8 + u64::from(step)).next_u64() >> 33;
        body["seed"] = own.into();
        body
    }
}
