//! mmx's own runner as an engine: the GGUF, or a folder as a GGUF in memory, through our graphs on ggml.

use mmx_ggml::run::{KvType, LoadOptions, Model, Session, SessionOptions};

use super::{Engine, check_ids};
use crate::error::Result;
use crate::form::Form;

pub(super) struct Ggml {
    model: Model,
    threads: usize,
}

impl Ggml {
    pub(super) fn open(form: &Form, threads: usize) -> Result<Self> {
        let model = Model::from_gguf(form.to_gguf()?, LoadOptions::default())?;
        Ok(Self { model, threads })
    }
}

impl Engine for Ggml {
    fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        check_ids(ids, self.vocab())?;
        let options = SessionOptions {
            n_ctx: Some(ids.len()),
            kv: KvType::F32,
            threads: Some(self.threads.max(1)),
        };
        Ok(Session::new(&self.model, options)?.logits_all(ids)?)
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
