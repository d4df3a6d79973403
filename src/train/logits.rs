//! The logits of a model as it is trained: float32 on the CPU unless asked otherwise.

use tch::{Kind, Tensor};

use crate::error::{Error, Result, TorchError};
use crate::model::{Model, device};

/// A model that answers ids with logits.
pub struct Logits {
    model: Model,
}

impl Logits {
    /// The logits of an open model, on a device (`auto`, `cpu`, `cuda`, `cuda:N`, `mps`), computing
    /// in float32 or bfloat16.
    ///
    /// # Errors
    /// A device that is not there; libtorch's.
    pub fn open(
        model: &mmx_converters::Model,
        threads: usize,
        device: &str,
        bf16: bool,
    ) -> Result<Self> {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
        let compute = if bf16 { Kind::BFloat16 } else { Kind::Float };
        Ok(Self { model: Model::from_model(model, device::pick(Some(device))?, compute)? })
    }

    /// Logits `[ids.len(), vocab]`, row-major, of one sequence from its beginning.
    ///
    /// # Errors
    /// libtorch's: an id beyond the vocabulary, no memory.
    pub fn of(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let row: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        let logits = self.model.logits(&Tensor::from_slice(&row).unsqueeze(0))?; // [1, seq, vocab]
        let mut out = vec![0f32; ids.len() * self.vocab()];
        let flat = logits
            .f_flatten(0, -1)
            .and_then(|flat| flat.f_copy_data(&mut out, ids.len() * self.vocab()));
        flat.map_err(|e| Error::torch("reading logits", &e))?;
        Ok(out)
    }

    /// Logits per position.
    pub fn vocab(&self) -> usize {
        self.model.config().vocab_size
    }
}
