//! The runner's greedy text, and how far another program's text is from it.

use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::{Result, chat};
use mmx_ggml::run::{
    Generated, Generation, KvType, LoadOptions, Model, Sampling, Session, SessionOptions, generate,
};
use serde::Deserialize;

use crate::open::Form;

/// An answer of another program.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    text: String,
    /// The ids, where the program gives them.
    ids: Option<Vec<u32>>,
}

/// A prompt's ids, and what the runner writes after them.
pub(super) struct Expected {
    prompt: Vec<u32>,
    pub(super) generated: Generated,
}

/// How an answer compares with the runner's.
pub(super) enum Verdict {
    Same,
    /// Another text, each of whose tokens is the likeliest up to this difference of logits.
    Tie(f64),
    Differs,
}

/// The runner on one form of a model.
pub(super) struct Judge {
    model: Model,
    threads: usize,
    tokens: usize,
}

impl Answer {
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

impl Judge {
    pub(super) fn open(form: &Form, threads: usize, tokens: usize) -> Result<Self> {
        form.expect_tokenizer()?;
        let model = Model::from_gguf(form.to_gguf()?, LoadOptions::default())?;
        Ok(Self { model, threads, tokens })
    }

    pub(super) fn tokenizer(&self) -> Result<&Tokenizer> {
        Ok(self.model.tokenizer()?)
    }

    fn session(&self, positions: usize) -> Result<Session> {
        let options = SessionOptions {
            n_ctx: Some(positions),
            threads: Some(self.threads),
            kv: KvType::F32, // nothing is rounded
        };
        Ok(Session::new(&self.model, options)?)
    }

    /// What the runner writes after a user's message.
    pub(super) fn after_chat(&self, message: &str) -> Result<Expected> {
        let messages = [chat::message("user", message)];
        let prompt = self.tokenizer()?.encode_chat(&messages, &chat::Options::generation())?;
        self.after(prompt.ids)
    }

    /// What the runner writes after a text.
    pub(super) fn after_text(&self, text: &str) -> Result<Expected> {
        self.after(self.tokenizer()?.encode_text(text)?)
    }

    fn after(&self, prompt: Vec<u32>) -> Result<Expected> {
        let request = Generation {
            max_tokens: self.tokens,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_end: false,
            speculate: 0,
        };
        let mut session = self.session(prompt.len() + self.tokens)?;
        let generated = generate(&mut session, &prompt, &request, |_| true)?;
        Ok(Expected { prompt, generated })
    }

    /// Compares an answer. `limit`: how far the logit of a token may be from the likeliest one's.
    pub(super) fn compare(
        &self,
        expected: &Expected,
        answer: &Answer,
        limit: f64,
    ) -> Result<Verdict> {
        let tokenizer = self.tokenizer()?;
        let ends = tokenizer.stop_ids(&self.model.config().eos_token_id);
        let own = &expected.generated;
        // a character cut in two by the number of tokens is shown or left out
        let text = |text: &str| text.trim_end_matches('\u{fffd}').to_owned();
        let same_text = text(&answer.text) == text(&own.text);
        let mut ids = match &answer.ids {
            Some(ids) => ids.clone(),
            None if same_text => return Ok(Verdict::Same),
            None => tokenizer.encode_plain(&answer.text)?,
        };
        while ids.last().is_some_and(|id| ends.contains(id)) {
            ids.pop();
        }
        if ids == own.ids {
            // the same ids under another text are a difference that people see
            return Ok(if same_text { Verdict::Same } else { Verdict::Differs });
        }
        let vocab = self.model.config().vocab_size;
        if ids.len() > 2 * self.tokens || ids.iter().any(|&id| id as usize >= vocab) {
            return Ok(Verdict::Differs);
        }
        let all: Vec<u32> = expected.prompt.iter().chain(&ids).copied().collect();
        let logits = self.session(all.len())?.logits_all(&all)?; // [all.len(), vocab]
        let mut rows = logits.chunks(vocab).skip(expected.prompt.len() - 1);
        let mut worst = 0f64;
        for (id, row) in ids.iter().zip(&mut rows) {
            worst = worst.max(gap(row, &[*id]));
        }
        // one that stopped early must have had a reason
        if ids.len() < self.tokens
            && let Some(row) = rows.next()
        {
            worst = worst.max(gap(row, &ends));
        }
        Ok(if worst <= limit { Verdict::Tie(worst) } else { Verdict::Differs })
    }
}

/// How far the likeliest of some tokens is from the likeliest of all.
fn gap(row: &[f32], ids: &[u32]) -> f64 {
    let best = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let own = ids.iter().filter_map(|&id| row.get(id as usize));
    f64::from(best - own.fold(f32::NEG_INFINITY, |m, v| m.max(*v)))
}
