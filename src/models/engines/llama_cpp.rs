//! llama.cpp as an engine: the GGUF through its own loader, tokenizer and graphs.

use mmx_ggml::judge::LlamaModel;

use super::engine::{Engine, check_ids};
use crate::open::Form;
use mmx_converters::Result;

pub(super) struct LlamaCpp {
    model: LlamaModel,
    has_tokenizer: bool,
    threads: usize,
}

impl LlamaCpp {
    pub(super) fn open(form: &Form, threads: usize) -> Result<Self> {
        let has_tokenizer =
            form.model.gguf().is_some_and(|f| f.metadata().get("tokenizer.ggml.tokens").is_some());
        Ok(Self { model: LlamaModel::open(form.path())?, has_tokenizer, threads })
    }
}

impl Engine for LlamaCpp {
    fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        check_ids(ids, self.model.vocab_size())?;
        Ok(self.model.logits(ids, self.threads)?)
    }

    fn tokenize(&mut self, text: &str) -> Result<Option<Vec<u32>>> {
        if !self.has_tokenizer {
            return Ok(None);
        }
        Ok(Some(self.model.tokenize(text, true)?))
    }

    fn vocab(&self) -> usize {
        self.model.vocab_size()
    }
}
