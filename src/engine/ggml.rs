//! mmx's own runner as an engine: the GGUF, or a folder as a GGUF in memory, through our graphs on ggml.

use mmx_ggml::run::{KvType, LoadOptions, Model, Session, SessionOptions};

use super::{Engine, check_ids};
use crate::error::Result;
use crate::form::Form;

pub(super) struct Ggml {
    model: Model,
    threads: usize,
    session: Option<Session>,
    /// What the session has read.
    held: Vec<u32>,
}

/// A session's positions are made in multiples of this, so that sequences a little longer than the last fit too.
const POSITIONS: usize = 256;

impl Ggml {
    pub(super) fn open(form: &Form, threads: usize, options: LoadOptions) -> Result<Self> {
        let model = Model::from_gguf(form.to_gguf()?, options)?;
        crate::cli::device::announce(&model);
        Ok(Self { model, threads, session: None, held: Vec::new() })
    }
}

impl Engine for Ggml {
    fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.held.clear();
        self.logits_from(ids, 0)
    }

    fn logits_from(&mut self, ids: &[u32], from: usize) -> Result<Vec<f32>> {
        check_ids(ids, self.vocab())?;
        let from = from.min(ids.len() - 1);
        let equal = self.held.iter().zip(ids).take_while(|(a, b)| a == b).count();
        let mut common = equal.min(from);
        let mut session = match self.session.take().filter(|s| s.n_ctx() >= ids.len()) {
            Some(session) => session,
            None => {
                common = 0;
                let options = SessionOptions {
                    n_ctx: Some(ids.len().next_multiple_of(POSITIONS)),
                    kv: KvType::F32,
                    threads: Some(self.threads.max(1)),
                };
                Session::new(&self.model, options)?
            }
        };
        self.held.clear();
        session.truncate(common);
        let mut rows = session.logits_all(&ids[common..])?; // [ids.len() - common, vocab]
        rows.drain(..(from - common) * self.vocab());
        self.session = Some(session);
        self.held.extend_from_slice(ids);
        Ok(rows)
    }

    fn tokenize(&mut self, text: &str) -> Result<Option<Vec<u32>>> {
        if self.model.gguf().metadata().get("tokenizer.ggml.tokens").is_none() {
            return Ok(None);
        }
        Ok(Some(self.model.tokenizer()?.encode(text)?))
    }

    fn vocab(&self) -> usize {
        self.model.config().vocab_size
    }
}
