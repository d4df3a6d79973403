//! A model asked in a chat: messages in, the answer out.

use mmx_converters::chat::{self, message};
use mmx_converters::{Error, Result};
use mmx_ggml::run::{
    Finish, Generation, LoadOptions, Model, Sampling, Session, SessionOptions, generate_after,
    reusable,
};
use serde_json::Value;

use crate::open::Form;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The text, without control tokens.
    pub text: String,
    /// Tokens of the chat before it.
    pub prompt_tokens: usize,
    /// Its own tokens, without the one that ends it.
    pub tokens: usize,
    /// Whether the model ended it; otherwise as many tokens as were allowed, or fit, cut it off.
    pub is_whole: bool,
}

/// A model in mmx's runner that answers one message after the other, each by itself.
pub struct Speaker {
    model: Model,
    session: Session,
    held: Vec<u32>,
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
        Self::with(form, options, SessionOptions::default())
    }

    /// Loads a model for the runner, in a session of one's own settings.
    ///
    /// # Errors
    /// See [`Speaker::open`].
    pub fn with(form: &Form, options: LoadOptions, session: SessionOptions) -> Result<Self> {
        let model = Model::from_gguf(form.to_gguf()?, options)?;
        if model.tokenizer()?.template().is_none() {
            let path = form.path().display();
            return Err(Error::failed(format!("{path}: expected a chat template, found none")));
        }
        let session = Session::new(&model, session)?;
        Ok(Self { model, session, held: Vec::new() })
    }

    /// The likeliest answer of at most `tokens` tokens to a user's message.
    ///
    /// # Errors
    /// A message that the template refuses or the context has no room for.
    pub fn reply(&mut self, text: &str, tokens: usize) -> Result<String> {
        Ok(self.answer(&[message("user", text)], None, tokens, Sampling::default())?.text)
    }

    /// The answer of at most `tokens` tokens to a chat, with tools that may be called.
    ///
    /// # Errors
    /// Messages that the template refuses or the context has no room for, tools that it does not
    /// render, settings without sense.
    pub fn answer(
        &mut self,
        messages: &[Value],
        tools: Option<Value>,
        tokens: usize,
        sampling: Sampling,
    ) -> Result<Said> {
        let tokenizer = self.model.tokenizer()?;
        if tools.is_some() && !tokenizer.shows_tools() {
            let why = "expected a chat template that renders tools, found one that does not";
            return Err(Error::failed(why));
        }
        let options = chat::Options { tools, ..chat::Options::generation() };
        let prompt = tokenizer.encode_chat(messages, &options)?.ids;
        let common = reusable(&self.held, &prompt);
        self.session.truncate(common);
        // an error leaves nothing that can be trusted
        self.held.clear();
        let request = Generation {
            max_tokens: tokens,
            sampling,
            stop: Vec::new(),
            ignore_end: false,
            speculate: 0,
        };
        let (seen, rest) = prompt.split_at(common);
        let made = generate_after(&mut self.session, seen, rest, &request, |_| true)?;
        self.held = made.held;
        Ok(Said {
            text: made.text,
            prompt_tokens: prompt.len(),
            tokens: made.ids.len(),
            is_whole: made.finish == Finish::Stop,
        })
    }
}
