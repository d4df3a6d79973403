//! Models that judge: a question in, text out, and the number in it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mmx_converters::{Error, Result};
use mmx_hub::live::Server;

/// A model that answers one question.
pub trait Judge: Send + Sync {
    /// The likeliest answer of at most `tokens` tokens to a user's message.
    ///
    /// # Errors
    /// A model that cannot be asked.
    fn reply(&self, message: &str, tokens: usize) -> Result<String>;
}

/// Opens a model by its name: the program hands it in, for here no model can be run.
pub type OpenJudge = dyn Fn(&str) -> Result<Arc<dyn Judge>> + Send + Sync;

/// The judges of a run, each opened once.
#[derive(Default)]
pub struct Judges {
    open: Option<Box<OpenJudge>>,
    known: Mutex<HashMap<String, Arc<dyn Judge>>>,
}

impl std::fmt::Debug for Judges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judges").finish_non_exhaustive()
    }
}

impl Judges {
    /// Judges among servers (`openai:URL[#MODEL]`, `ollama:NAME`), and models that `open` opens.
    #[must_use]
    pub fn new(open: Option<Box<OpenJudge>>) -> Self {
        Self { open, known: Mutex::default() }
    }

    /// The judge of a name.
    ///
    /// # Errors
    /// A server that does not answer, a model that cannot be opened.
    pub fn get(&self, name: &str) -> Result<Arc<dyn Judge>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(judge) = known.get(name) {
            return Ok(judge.clone());
        }
        let judge: Arc<dyn Judge> = match (Server::named(name), &self.open) {
            (Some(server), _) => {
                let mut server = server?;
                server.prepare()?;
                Arc::new(server)
            }
            (None, Some(open)) => open(name)?,
            (None, None) => {
                return Err(Error::failed(format!(
                    "{name}: expected openai:URL or ollama:NAME, for no model can be opened here"
                )));
            }
        };
        known.insert(name.to_owned(), judge.clone());
        Ok(judge)
    }
}

impl Judge for Server {
    fn reply(&self, message: &str, tokens: usize) -> Result<String> {
        self.say(message, tokens)
    }
}
