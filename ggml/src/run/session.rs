//! One text being read and written: keys and values of its past, graphs, threads.

use std::time::Instant;

use half::f16;
use mmx_converters::gguf::GgmlType;

use super::decoder::{Batch, Graph};
use super::kv_cache::{CELLS, KvCache};
use super::model::Model;
use super::pace::{Pace, free_threads};
use crate::backend::Pool;
use crate::error::{Error, Result};

/// Tokens computed in one graph while a prompt is read (llama.cpp's own size of a physical batch).
const BATCH: usize = 512;

/// The type of cached keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Exact, for comparisons.
    F32,
    /// Half the memory, the usual choice.
    #[default]
    F16,
}

/// How a session computes.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// Positions kept, tokens; by default the model's own length, at most 4096.
    pub n_ctx: Option<usize>,
    /// Type of keys and values.
    pub kv: KvType,
    /// Threads; by default as many as the model's size and the cores make sensible.
    pub threads: Option<usize>,
}

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
pub struct Session {
    // graphs refer to cache and weights: dropped before them
    decode: Option<Graph>,
    prefill: Option<Graph>,
    one: Pool,
    /// More threads than one, and when to use them; nothing where one is all there may be.
    many: Option<(Pool, Pace)>,
    cache: KvCache,
    model: Model,
    n_ctx: usize,
    n_past: usize,
    logits: Vec<f32>,
}

/// Memory for a context that nobody asked for is bounded: positions.
const DEFAULT_N_CTX: usize = 4096;

impl Session {
    /// An empty text.
    ///
    /// # Errors
    /// `n_ctx` or `threads` of zero, or no memory.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Self> {
        let config = model.config();
        let n_ctx =
            options.n_ctx.unwrap_or_else(|| config.max_position_embeddings.min(DEFAULT_N_CTX));
        let threads = options.threads.unwrap_or_else(|| default_threads(model.bytes_per_token()));
        if n_ctx == 0 || threads == 0 {
            return Err(Error::Request {
                message: format!(
                    "expected at least one position and one thread, found {n_ctx} and {threads}"
                ),
            });
        }
        let ty = match options.kv {
            KvType::F32 => GgmlType::F32,
            KvType::F16 => GgmlType::F16,
        };
        let many = match threads {
            1 => None,
            _ => Some((Pool::new(threads)?, Pace::new())),
        };
        Ok(Self {
            decode: None,
            prefill: None,
            one: Pool::new(1)?,
            many,
            cache: KvCache::new(config, n_ctx, ty)?,
            model: model.clone(),
            n_ctx,
            n_past: 0,
            logits: Vec::new(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens read and written so far.
    pub fn n_past(&self) -> usize {
        self.n_past
    }

    /// Positions there are.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Threads that compute at most; fewer do while other processes keep the cores busy.
    pub fn threads(&self) -> usize {
        self.many.as_ref().map_or(1, |(pool, _)| pool.threads())
    }

    /// Forgets everything from position `length` on; what is before stays computed.
    pub fn truncate(&mut self, length: usize) {
        self.n_past = self.n_past.min(length);
    }

    /// Reads `ids` after what was read before; gives the logits of the last one, `[vocab]`.
    ///
    /// # Errors
    /// No ids, an id outside the vocabulary, or a full context; nothing is read then.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<&[f32]> {
        self.check(ids)?;
        for chunk in ids.chunks(BATCH) {
            self.step(chunk, false)?;
        }
        Ok(&self.logits)
    }

    /// Reads one id; gives the logits of what follows, `[vocab]`.
    ///
    /// # Errors
    /// See [`Session::prefill`].
    pub fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.check(&[id])?;
        self.step(&[id], false)?;
        Ok(&self.logits)
    }

    /// Reads `ids`; gives the logits of every one, `[seq, vocab]`.
    ///
    /// # Errors
    /// See [`Session::prefill`].
    pub fn logits_all(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.check(ids)?;
        let mut all = Vec::with_capacity(ids.len() * self.model.config().vocab_size);
        for chunk in ids.chunks(BATCH) {
            self.step(chunk, true)?;
            all.extend_from_slice(&self.logits);
        }
        Ok(all)
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.model.config().vocab_size;
        let fault = if ids.is_empty() {
            "expected at least one token, found none".to_owned()
        } else if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            format!("expected token ids below {vocab}, found {id}")
        } else if ids.len() > self.n_ctx - self.n_past {
            format!(
                "the context of {} tokens is full: {} are in it, {} more were to be added",
                self.n_ctx,
                self.n_past,
                ids.len()
            )
        } else {
            return Ok(());
        };
        Err(Error::Request { message: fault })
    }

    /// Computes one batch; its logits are in `self.logits`.
    fn step(&mut self, ids: &[u32], all_logits: bool) -> Result<()> {
        let past = cells_for(self.n_past + ids.len());
        let batch = Batch::new(self.model.config(), ids.len(), past, all_logits);
        let place = if batch.tokens == 1 { &mut self.decode } else { &mut self.prefill };
        let graph = match place {
            Some(graph) if graph.batch == batch => graph,
            _ => {
                *place = None; // its memory first
                let (config, weights) = (self.model.config(), self.model.weights());
                place.insert(Graph::new(config, weights, &self.cache, batch)?)
            }
        };
        let plan = &mut graph.plan;
        let positions = self.n_past..self.n_past + ids.len();
        for (to, &id) in plan.data_mut::<i32>(graph.ids).iter_mut().zip(ids) {
            *to = id as i32;
        }
        for (to, at) in plan.data_mut::<i32>(graph.positions).iter_mut().zip(positions.clone()) {
            *to = at as i32;
        }
        for (to, at) in plan.data_mut::<i64>(graph.cells).iter_mut().zip(positions.clone()) {
            *to = at as i64;
        }
        if let Some(mask) = graph.mask {
            let mask = plan.data_mut::<f16>(mask);
            for (row, at) in mask.chunks_exact_mut(batch.past).zip(positions) {
                let (seen, hidden) = row.split_at_mut(at + 1);
                seen.fill(f16::ZERO);
                hidden.fill(f16::NEG_INFINITY);
            }
        }
        match &mut self.many {
            None => plan.compute(&mut self.one)?,
            Some((pool, pace)) if ids.len() == 1 => {
                let threads = pool.threads();
                let all = pace.all_threads(|| free_threads(threads) == threads);
                let start = Instant::now();
                plan.compute(if all { pool } else { &mut self.one })?;
                pace.record(start.elapsed().as_secs_f64());
            }
            Some((pool, _)) => {
                // a long step: it is worth a look at how busy the cores are
                let free = free_threads(pool.threads()) == pool.threads();
                plan.compute(if free { pool } else { &mut self.one })?;
            }
        }
        self.logits.clear();
        self.logits.extend_from_slice(plan.data_mut::<f32>(graph.logits));
        self.n_past += ids.len();
        Ok(())
    }
}

/// Cells a graph looks at for `past` positions: few different numbers, so that graphs are reused, but
/// short ones for a short past.
fn cells_for(past: usize) -> usize {
    past.next_multiple_of(if past <= CELLS { 64 } else { CELLS })
}

/// One thread for each 4 MB of weights per token, at most as many as there are cores.
fn default_threads(bytes_per_token: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (bytes_per_token / 4_000_000).clamp(1, cores)
}
