//! tch as an engine: the model exactly as it is trained, float32 on the CPU.

use mmx_converters::tokenizer::Tokenizer;
use tch::{Kind, Tensor};

use super::{Engine, check_ids};
use crate::error::{Error, Result};
use crate::form::Form;
use crate::model::{Model, device};

pub(super) struct Native {
    model: Model,
    tokenizer: Option<Tokenizer>,
}

impl Native {
    pub(super) fn open(form: &Form, threads: usize, device: &str, bf16: bool) -> Result<Self> {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
        let compute = if bf16 { Kind::BFloat16 } else { Kind::Float };
        let model = Model::from_model(&form.model, device::pick(Some(device))?, compute)?;
        Ok(Self { model, tokenizer: form.tokenizer()? })
    }
}

impl Engine for Native {
    fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        check_ids(ids, self.vocab())?;
        let row: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        let logits = self.model.logits(&Tensor::from_slice(&row).unsqueeze(0))?; // [1, seq, vocab]
        let mut out = vec![0f32; ids.len() * self.vocab()];
        let flat = logits
            .f_flatten(0, -1)
            .and_then(|flat| flat.f_copy_data(&mut out, ids.len() * self.vocab()));
        flat.map_err(|e| Error::torch("reading logits", &e))?;
        Ok(out)
    }

    fn tokenize(&mut self, text: &str) -> Result<Option<Vec<u32>>> {
        Ok(self.tokenizer.as_ref().map(|t| t.encode_text(text)).transpose()?)
    }

    fn vocab(&self) -> usize {
        self.model.config().vocab_size
    }
}
