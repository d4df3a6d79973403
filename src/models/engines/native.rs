//! libtorch as an engine: the model exactly as it is trained, float32 on the CPU unless asked
//! otherwise, computed by `mmx-train logits --serve` as a child. [`wire`] is the protocol that the
//! two speak over its stdin and stdout.

use std::io::BufWriter;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::wire;
use mmx_converters::{Error, Result};

use super::engine::{Engine, check_ids};
use crate::open::Form;
use crate::trainer;

pub(super) struct Native {
    child: Child,
    ids: Option<BufWriter<ChildStdin>>,
    logits: ChildStdout,
    vocab: usize,
    tokenizer: Option<Tokenizer>,
}

impl Native {
    pub(super) fn open(form: &Form, threads: usize, device: &str, bf16: bool) -> Result<Self> {
        let mut command = trainer::command("the engine native")?;
        command.arg("logits").arg("--serve").arg(form.path());
        if let Some(base) = &form.base {
            command.arg("--base").arg(base);
        }
        command.args(["--threads", &threads.to_string(), "--device", device]);
        command.args(["--dtype", if bf16 { "bf16" } else { "f32" }]);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|e| Error::failed(format!("mmx-train: {e}")))?;
        let (Some(ids), Some(logits)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::failed("mmx-train: expected pipes, found none"));
        };
        let ids = Some(BufWriter::new(ids));
        let mut native = Self { child, ids, logits, vocab: 0, tokenizer: form.tokenizer()? };
        native.vocab = match wire::read_greeting(&mut native.logits) {
            Ok(answer) => answer?,
            Err(error) => return Err(native.ended(&error)),
        };
        Ok(native)
    }

    /// The error of a child that answers no more.
    fn ended(&mut self, error: &std::io::Error) -> Error {
        self.ids = None; // it ends now if it has not already
        let how = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        Error::failed(format!("mmx-train logits: expected an answer, found {error} ({how})"))
    }
}

impl Engine for Native {
    fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        check_ids(ids, self.vocab)?;
        let asked = match &mut self.ids {
            Some(pipe) => wire::write_ids(pipe, ids),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        match asked.and_then(|()| wire::read_logits(&mut self.logits, ids.len() * self.vocab)) {
            Ok(answer) => answer,
            Err(error) => Err(self.ended(&error)),
        }
    }

    fn tokenize(&mut self, text: &str) -> Result<Option<Vec<u32>>> {
        self.tokenizer.as_ref().map(|t| t.encode_text(text)).transpose()
    }

    fn vocab(&self) -> usize {
        self.vocab
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.ids = None; // the end of its input ends it
        let _ = self.child.wait();
    }
}
