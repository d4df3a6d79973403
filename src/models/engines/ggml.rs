//! mmx's own runner as an engine: the GGUF, or a folder as a GGUF in memory, through our graphs on
//! ggml.

use mmx_ggml::run::{BATCH, KvType, LoadOptions, Model, Session, SessionOptions, reusable};

use super::engine::{Engine, check_ids};
use crate::open::Form;
use mmx_converters::Result;

pub(super) struct Ggml {
    model: Model,
    threads: usize,
    session: Option<Session>,
    /// The ids that the session has read.
    held: Vec<u32>,
}

/// A session's positions are made in multiples of this, so that sequences a little longer than the
/// last fit too.
const POSITIONS: usize = 256;

impl Ggml {
    pub(super) fn open(form: &Form, threads: usize, options: LoadOptions) -> Result<Self> {
        let model = Model::from_gguf(form.to_gguf()?, options)?;
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
        let mut common = reusable(&self.held, ids).min(from);
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
        // whole steps before `from` need no logits: of a long text they would fill the memory
        let quiet = (from - common) / BATCH * BATCH;
        if quiet > 0 {
            session.prefill(&ids[common..common + quiet])?;
        }
        let mut rows = session.logits_all(&ids[common + quiet..])?; // [ids.len() - common - quiet, vocab]
        rows.drain(..(from - common - quiet) * self.vocab());
        self.session = Some(session);
        self.held.extend_from_slice(ids);
        Ok(rows)
    }

    fn tokenize(&mut self, text: &str) -> Result<Option<Vec<u32>>> {
        if self.model.gguf().metadata().get("tokenizer.ggml.tokens").is_none() {
            return Ok(None);
        }
        Ok(Some(self.model.tokenizer()?.encode_text(text)?))
    }

    fn placement(&self) -> Option<String> {
        self.model.placement()
    }

    fn vocab(&self) -> usize {
        self.model.config().vocab_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::made_up_ids;

    /// 1e-4: sums of float32 in another order.
    #[test]
    fn logits_from_a_position_on_are_those_of_the_whole_sequence() {
        let shared =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden");
        let form = Form::open(&shared.join("minimind3")).expect("a golden model");
        let mut engine = Ggml::open(&form, 1, LoadOptions::default()).expect("an engine");
        let vocab = engine.vocab();
        let ids = made_up_ids(1300, vocab);
        let whole = engine.logits(&ids).expect("logits");
        let mut check = |length: usize, from: usize| {
            let found = engine.logits_from(&ids[..length], from).expect("logits");
            let expected = &whole[from.min(length - 1) * vocab..length * vocab];
            assert_eq!(found.len(), expected.len(), "{from} of {length}");
            let far = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(far < 1e-4, "{from} of {length}: {far:e}");
        };
        // all of it known, a beginning known, steps without logits, and more than fits the session
        // so far
        for (length, from) in [(1300, 1299), (700, 650), (20, 5), (1300, 1250), (3, 9), (1280, 0)] {
            check(length, from);
        }
        let mut other = ids[..900].to_vec();
        other[600] = (other[600] + 1) % vocab as u32;
        let found = engine.logits_from(&other, 590).expect("logits");
        let same = &whole[590 * vocab..600 * vocab];
        let far = found.iter().zip(same).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(far < 1e-4 && found[10 * vocab..11 * vocab] != whole[600 * vocab..601 * vocab]);
    }
}
