//! One text being read and written: the runner's simplest form, a [`Slots`] of one.

use super::model::Model;
use super::options::{SessionOptions, SlotsOptions};
use super::slots::{BATCH, Part, Slots};
use crate::error::Result;

/// A text in progress.
///
/// Logits are borrowed until the next step:
///
/// ```compile_fail
/// use mmx_ggml::run::Session;
/// fn keep(session: &mut Session) -> mmx_ggml::Result<()> {
///     let first = session.decode(1)?;
///     let second = session.decode(2)?; // the buffer of `first` is written anew
///     assert_eq!(first.len(), second.len());
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Session(Slots);

impl Session {
    /// Begins an empty text.
    ///
    /// # Errors
    /// `n_ctx` or `threads` of zero, more threads than [`MAX_THREADS`](crate::MAX_THREADS), or no
    /// memory.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Self> {
        let SessionOptions { n_ctx, kv, threads } = options;
        Ok(Self(Slots::new(model, SlotsOptions { slots: 1, n_ctx, kv, threads })?))
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.0.model()
    }

    /// Tokens read and written so far.
    pub fn n_past(&self) -> usize {
        self.0.n_past(0)
    }

    /// The number of positions.
    pub fn n_ctx(&self) -> usize {
        self.0.n_ctx()
    }

    /// Threads that compute at most; fewer do while other processes keep the cores busy.
    pub fn threads(&self) -> usize {
        self.0.threads()
    }

    /// Forgets everything from position `length` on; what is before stays computed.
    pub fn truncate(&mut self, length: usize) {
        self.0.truncate(0, length);
    }

    /// Tells why ids could not be read after what was read before, where that is so.
    ///
    /// # Errors
    /// See [`Session::prefill`].
    pub fn check(&self, ids: &[u32]) -> Result<()> {
        self.0.check_ids(0, ids)
    }

    /// Reads `ids` after what was read before; gives the logits of the last one, `[vocab]`.
    ///
    /// # Errors
    /// No ids, an id outside the vocabulary, or a full context; nothing is read then.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<&[f32]> {
        Ok(self.prefill_while(ids, || true)?.unwrap_or_default())
    }

    /// [`Session::prefill`] that can be stopped: `goes_on` is asked between steps of [`BATCH`] ids
    /// whether to: nothing is given once it does not, and what was read stays.
    pub(super) fn prefill_while(
        &mut self,
        ids: &[u32],
        mut goes_on: impl FnMut() -> bool,
    ) -> Result<Option<&[f32]>> {
        self.0.check_ids(0, ids)?;
        let last = ids.len().next_multiple_of(BATCH) - BATCH;
        for ids in ids[..last].chunks(BATCH) {
            self.0.step(&[Part { slot: 0, ids, outputs: 0 }])?;
            if !goes_on() {
                return Ok(None);
            }
        }
        self.0.step(&[Part { slot: 0, ids: &ids[last..], outputs: 1 }]).map(Some)
    }

    /// Reads one id; gives the logits of what follows, `[vocab]`.
    ///
    /// # Errors
    /// See [`Session::prefill`].
    pub fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.0.step(&[Part { slot: 0, ids: &[id], outputs: 1 }])
    }

    /// Reads at most [`BATCH`] ids in one step that keeps the logits of each for [`Session::row`].
    pub(super) fn rows(&mut self, ids: &[u32]) -> Result<()> {
        self.0.logits_all(0, ids).map(|_| ())
    }

    /// The logits of a token of the last step, `[vocab]`; none for a token it did not have.
    pub(super) fn row(&self, index: usize) -> &[f32] {
        self.0.row(index)
    }

    /// Reads `ids`; gives the logits of every one, `[seq, vocab]`.
    ///
    /// # Errors
    /// See [`Session::prefill`].
    pub fn logits_all(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.0.check_ids(0, ids)?;
        let mut all = Vec::with_capacity(ids.len() * self.model().config().vocab_size);
        for chunk in ids.chunks(BATCH) {
            all.extend_from_slice(self.0.logits_all(0, chunk)?);
        }
        Ok(all)
    }

    /// Reads `ids`; gives the mean of their final hidden states (after the last norm, before the
    /// output matrix), `[hidden]`: an embedding of a text, as far as a language model has one.
    ///
    /// # Errors
    /// See [`Session::prefill`].
    pub fn mean_hidden(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.0.check_ids(0, ids)?;
        let mut sum = vec![0.0; self.model().config().hidden_size];
        for chunk in ids.chunks(BATCH) {
            for state in self.0.hidden_all(0, chunk)?.chunks_exact(sum.len()) {
                sum.iter_mut().zip(state).for_each(|(sum, &x)| *sum += f64::from(x));
            }
        }
        Ok(sum.iter().map(|&x| (x / ids.len() as f64) as f32).collect())
    }
}

/// How many of `ids` a session that holds `held` need not read again: those that are equal, but
/// never the last one, whose logits are needed.
pub fn reusable(held: &[u32], ids: &[u32]) -> usize {
    let equal = held.iter().zip(ids).take_while(|(a, b)| a == b).count();
    equal.min(ids.len().saturating_sub(1))
}
