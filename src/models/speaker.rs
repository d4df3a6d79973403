//! A model asked in a chat: one message in, the likeliest answer out.

use mmx_converters::chat::{self, message};
use mmx_converters::{Error, Result};
use mmx_ggml::run::{LoadOptions, Model, Session, SessionOptions, reusable};

use crate::compare::argmax;
use crate::open::Form;

/// A model in mmx's runner that answers one message after the other, each by itself.
pub struct Speaker {
    model: Model,
    session: Session,
    held: Vec<u32>,
    stop: Vec<u32>,
}

impl std::fmt::Debug for Speaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Speaker").finish_non_exhaustive()
    }
}

impl Speaker {
    /// Loads a model for the runner.
    ///
    /// # Errors
    /// A model that cannot be loaded, or has no chat template.
    pub fn open(form: &Form, options: LoadOptions) -> Result<Self> {
        let model = Model::from_gguf(form.to_gguf()?, options)?;
        if model.tokenizer()?.template().is_none() {
            let path = form.path().display();
            return Err(Error::failed(format!("{path}: expected a chat template, found none")));
        }
        let session = Session::new(&model, SessionOptions::default())?;
        let stop = model.tokenizer()?.stop_ids(&model.config().eos_token_id);
        Ok(Self { model, session, held: Vec::new(), stop })
    }

    /// The likeliest answer of at most `tokens` tokens to a user's message.
    ///
    /// # Errors
    /// A message that the template refuses or the context has no room for.
    pub fn reply(&mut self, text: &str, tokens: usize) -> Result<String> {
        let tokenizer = self.model.tokenizer()?;
        let options = chat::Options::generation();
        let prompt = tokenizer.encode_chat(&[message("user", text)], &options)?.ids;
        let common = reusable(&self.held, &prompt);
        self.session.truncate(common);
        // an error leaves nothing that can be trusted
        self.held.clear();
        let mut next = argmax(self.session.prefill(&prompt[common..])?) as u32;
        let mut ids = Vec::new();
        while !self.stop.contains(&next) && ids.len() < tokens {
            ids.push(next);
            next = argmax(self.session.decode(next)?) as u32;
        }
        self.held = prompt;
        Ok(tokenizer.decode(&ids, true))
    }
}
