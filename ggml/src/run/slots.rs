//! Several texts being read and written together: each slot is a text with cells of its own in one
//! cache, and one step computes tokens of any of them.
//!
//! In: per step some [`Part`]s, the next tokens of some slots. Out: logits of each part's last
//! token. Rows of different texts never meet but in the matrix products, which are computed row by
//! row, so a text is the same whatever is computed beside it, up to the last bit of kernels that
//! add in another order for more rows (float32, float16 and bfloat16 weights; blocks of integers
//! are exact).

#![expect(unsafe_code, reason = "graphs refer to weights and cache, which must outlive them")]

use half::f16;
use mmx_converters::gguf::GgmlType;

use super::decoder::{Batch, Graph, Sight};
use super::kv_cache::{CELLS, KvCache};
use super::model::Model;
use super::names::Values;
use super::options::{KvType, SlotsOptions, default_n_ctx, default_threads};
use super::threads::Threads;
use crate::error::{Error, Result};

/// Tokens computed in one step at most (llama.cpp's own size of a physical batch).
pub const BATCH: usize = 512;

/// Graphs kept beside those of writing: those of prompts, of many sizes, take much memory.
const OTHER_GRAPHS: usize = 1;

/// Tokens of a step that counts as writing though there are fewer slots: a few texts with what is
/// drafted of them.
const FEW: usize = 16;

/// The next tokens of one slot.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The slot that reads them.
    pub slot: usize,
    /// Tokens to read, at least one.
    pub ids: &'a [u32],
    /// Number of these tokens, the last ones, whose logits are asked for.
    pub outputs: usize,
}

/// A copy of a slot's keys and values.
#[derive(Clone, Debug)]
pub struct Held {
    length: usize,
    bytes: Vec<u8>,
}

impl Held {
    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Several texts in progress, computed together.
#[derive(Debug)]
pub struct Slots {
    // graphs refer to cache and weights: dropped before them
    graphs: Vec<Graph>,
    threads: Threads,
    cache: KvCache,
    model: Model,
    n_ctx: usize,
    kv: KvType,
    /// Tokens in each slot.
    past: Vec<usize>,
    results: Vec<f32>,
}

impl Slots {
    /// Begins empty texts.
    ///
    /// # Errors
    /// No slots, `n_ctx` or `threads` of zero, more threads than
    /// [`MAX_THREADS`](crate::MAX_THREADS), or no memory.
    pub fn new(model: &Model, options: SlotsOptions) -> Result<Self> {
        let config = model.config();
        let n_ctx = options.n_ctx.unwrap_or_else(|| default_n_ctx(config));
        let threads = options.threads.unwrap_or_else(|| default_threads(model.bytes_per_token()));
        let slots = options.slots;
        let threads = Threads::new(threads, slots.max(FEW))?;
        let cache = new_cache(model, slots, n_ctx, options.kv)?;
        Ok(Self {
            graphs: Vec::new(),
            threads,
            cache,
            model: model.clone(),
            n_ctx,
            kv: options.kv,
            past: vec![0; slots],
            results: Vec::new(),
        })
    }

    /// Changes the number of slots and of positions in each; what is in slots that stay is kept, cut
    /// to the new length.
    ///
    /// # Errors
    /// No slots, no positions, no memory: all stays as it was then.
    pub fn resize(&mut self, slots: usize, n_ctx: usize) -> Result<()> {
        if (slots, n_ctx) == (self.past.len(), self.n_ctx) {
            return Ok(());
        }
        let cache = new_cache(&self.model, slots, n_ctx, self.kv)?;
        let held = (0..slots.min(self.past.len())).map(|slot| self.held(slot));
        let held = held.collect::<Result<Vec<_>>>()?;
        self.graphs.clear(); // they refer to the cache
        self.cache = cache;
        (self.past, self.n_ctx) = (vec![0; slots], n_ctx);
        self.threads.resize(slots.max(FEW));
        for (slot, held) in held.iter().enumerate() {
            self.restore(slot, held, held.length.min(n_ctx))?;
        }
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The number of texts at a time.
    pub fn n_slots(&self) -> usize {
        self.past.len()
    }

    /// The number of positions in each slot.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Tokens in a slot; 0 for one that does not exist.
    pub fn n_past(&self, slot: usize) -> usize {
        self.past.get(slot).copied().unwrap_or(0)
    }

    /// Threads that compute at most; fewer do while other processes keep the cores busy.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// Forgets everything of a slot from position `length` on; what is before stays computed.
    pub fn truncate(&mut self, slot: usize, length: usize) {
        if let Some(past) = self.past.get_mut(slot) {
            *past = (*past).min(length);
        }
    }

    /// Makes the slot `to` hold the first `length` tokens of the slot `from`, as computed there.
    ///
    /// # Errors
    /// The same slot twice, one that does not exist, or fewer tokens than `length` in it.
    pub fn share(&mut self, from: usize, to: usize, length: usize) -> Result<()> {
        let fits = from != to && to < self.past.len() && length <= self.n_past(from);
        if !fits {
            return Err(Error::Request {
                message: format!(
                    "expected two of {} slots and at most {} tokens, found {from} to {to}, {length}",
                    self.past.len(),
                    self.n_past(from)
                ),
            });
        }
        self.cache.copy(from * self.n_ctx, to * self.n_ctx, length)?;
        self.past[to] = length;
        Ok(())
    }

    /// Fills a model in memory ([`Model::in_memory`]) with all its weights, given one after the other,
    /// and empties every slot: what they hold was computed with the weights before.
    ///
    /// # Errors
    /// A model of a file, or one that others hold too; in one error, everything that is missing,
    /// unknown or of another shape. The model computes nothing then until all of it is given.
    pub fn take(&mut self, weights: &mut dyn Iterator<Item = Values<'_>>) -> Result<()> {
        self.past.fill(0);
        let own = self.model.weights_mut().ok_or_else(|| Error::Request {
            message: "weights in memory: expected to hold the model alone, found clones of it"
                .to_owned(),
        })?;
        // SAFETY: graphs over these weights are fields of slots, which hold a clone of the model
        // each; there is none but this one's, and its slots compute through `&mut self` only.
        unsafe { own.take(weights) }
    }

    /// A copy of what a slot holds, which [`Slots::restore`] puts back into any slot.
    ///
    /// # Errors
    /// A slot that does not exist.
    pub fn held(&self, slot: usize) -> Result<Held> {
        if slot >= self.past.len() {
            return Err(self.no_such_slot(slot));
        }
        let length = self.past[slot];
        Ok(Held { length, bytes: self.cache.read(slot * self.n_ctx, length)? })
    }

    /// The bytes that [`Slots::held`] takes for a token.
    pub fn bytes_per_token(&self) -> usize {
        self.cache.cell_bytes().unwrap_or_default()
    }

    /// Makes a slot hold the first `length` tokens of a copy, as computed when it was taken.
    ///
    /// # Errors
    /// A slot that does not exist, more tokens than the copy or the slot has room for, a copy of
    /// another model's cells.
    pub fn restore(&mut self, slot: usize, held: &Held, length: usize) -> Result<()> {
        if slot >= self.past.len() {
            return Err(self.no_such_slot(slot));
        }
        if length > held.length.min(self.n_ctx) {
            return Err(Error::Request {
                message: format!(
                    "expected at most {} tokens, found {length}",
                    held.length.min(self.n_ctx)
                ),
            });
        }
        self.past[slot] = 0;
        self.cache.write(slot * self.n_ctx, &held.bytes, held.length, length)?;
        self.past[slot] = length;
        Ok(())
    }

    fn no_such_slot(&self, slot: usize) -> Error {
        Error::Request { message: format!("expected a slot of {}, found {slot}", self.past.len()) }
    }

    /// Reads the parts' tokens after what their slots hold, all in one computation; gives the
    /// logits of the tokens that were asked for, part by part, `[sum of outputs, vocab]`.
    ///
    /// # Errors
    /// No part, more than [`BATCH`] tokens, a slot twice or one that does not exist, an id outside
    /// the vocabulary, a full context, logits of more tokens than a part has; nothing is read then.
    pub fn step(&mut self, parts: &[Part<'_>]) -> Result<&[f32]> {
        self.compute(parts, false)?;
        Ok(&self.results)
    }

    /// Reads at most [`BATCH`] ids into a slot; gives the logits of every one, `[seq, vocab]`.
    ///
    /// # Errors
    /// See [`Slots::step`].
    pub fn logits_all(&mut self, slot: usize, ids: &[u32]) -> Result<&[f32]> {
        self.step(&[Part { slot, ids, outputs: ids.len() }])
    }

    /// Reads at most [`BATCH`] ids into a slot; gives the final hidden state of every one (after
    /// the last norm, before the output matrix), `[seq, hidden]`.
    ///
    /// # Errors
    /// See [`Slots::step`].
    pub fn hidden_all(&mut self, slot: usize, ids: &[u32]) -> Result<&[f32]> {
        self.compute(&[Part { slot, ids, outputs: ids.len() }], true)?;
        Ok(&self.results)
    }

    /// A row of the last step's results.
    pub(super) fn row(&self, index: usize) -> &[f32] {
        let vocab = self.model.config().vocab_size;
        self.results.get(index * vocab..(index + 1) * vocab).unwrap_or_default()
    }

    pub(super) fn check_ids(&self, slot: usize, ids: &[u32]) -> Result<()> {
        let vocab = self.model.config().vocab_size;
        let past = self.n_past(slot);
        let fault = if ids.is_empty() {
            "prompt: expected at least one token, found none".to_owned()
        } else if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            format!("expected token ids below {vocab}, found {id}")
        } else if ids.len() > self.n_ctx - past {
            format!(
                "the context of {} tokens is full: {past} are in it, {} more were to be added",
                self.n_ctx,
                ids.len()
            )
        } else {
            return Ok(());
        };
        Err(Error::Request { message: fault })
    }

    fn check(&self, parts: &[Part<'_>]) -> Result<()> {
        if !self.model.weights().whole {
            let message = "weights in memory: expected all of them, found some missing";
            return Err(Error::Request { message: message.to_owned() });
        }
        let tokens: usize = parts.iter().map(|p| p.ids.len()).sum();
        if parts.is_empty() || tokens > BATCH {
            return Err(Error::Request {
                message: format!("expected 1 to {BATCH} tokens in a step, found {tokens}"),
            });
        }
        for (i, part) in parts.iter().enumerate() {
            let twice = parts[..i].iter().any(|p| p.slot == part.slot);
            if twice || part.slot >= self.past.len() {
                return Err(Error::Request {
                    message: format!(
                        "expected different slots of {} in a step, found {}",
                        self.past.len(),
                        part.slot
                    ),
                });
            }
            self.check_ids(part.slot, part.ids)?;
            if part.outputs > part.ids.len() {
                return Err(Error::Request {
                    message: format!(
                        "expected logits of at most {} tokens, found {} asked for",
                        part.ids.len(),
                        part.outputs
                    ),
                });
            }
        }
        Ok(())
    }

    /// The graph for a batch, made if there is none yet; it is the last one then.
    fn graph(&mut self, batch: Batch) -> Result<()> {
        if let Some(at) = self.graphs.iter().position(|g| g.batch == batch) {
            let graph = self.graphs.remove(at);
            self.graphs.push(graph);
            return Ok(());
        }
        let most = self.past.len().max(FEW);
        let plain = |b: &Batch| b.tokens <= most && b.outputs == b.tokens && !b.hidden;
        // its memory first; a graph with a mask is of no use for another length of the past
        let stale = |b: &Batch| plain(&batch) && plain(b) && b.tokens == batch.tokens;
        self.graphs.retain(|g| !stale(&g.batch));
        let others = self.graphs.iter().filter(|g| !plain(&g.batch)).count();
        if !plain(&batch)
            && others >= OTHER_GRAPHS
            && let Some(oldest) = self.graphs.iter().position(|g| !plain(&g.batch))
        {
            self.graphs.remove(oldest);
        }
        let (config, weights) = (self.model.config(), self.model.weights());
        // SAFETY: graphs are fields of what holds cache and model, dropped before both, and never
        // moved out.
        self.graphs.push(unsafe { Graph::new(config, weights, &self.cache, batch)? });
        Ok(())
    }

    /// Computes one step; what it gives, logits or final hidden states of the tokens asked for, is
    /// in `self.results`.
    fn compute(&mut self, parts: &[Part<'_>], hidden: bool) -> Result<()> {
        self.check(parts)?;
        let tokens: usize = parts.iter().map(|p| p.ids.len()).sum();
        let n_ctx = self.n_ctx;
        // per token: id, position, first cell of its text
        let mut rows: Vec<(u32, usize, usize)> = Vec::with_capacity(tokens);
        let mut outputs: Vec<i32> = Vec::new();
        for part in parts {
            let past = self.past[part.slot];
            let numbered = part.ids.iter().zip(past..);
            rows.extend(numbered.map(|(&id, position)| (id, position, part.slot * n_ctx)));
            let asked = rows.len() - part.outputs..rows.len();
            outputs.extend(asked.map(|row| row as i32));
        }
        let asked = outputs.len();
        if asked == 0 {
            outputs.push(0); // a graph has a result
        }
        let count = outputs.len();
        let past = rows.iter().map(|&(_, position, first)| first + position + 1).max();
        let past = cells_for(past.unwrap_or(1));
        let mut batch = Batch::new((self.model.cpu(), self.model.config()), tokens, past, count);
        if self.cache.pair().is_some() {
            batch.past = past; // our own attention is for the CPU
        }
        self.graph(Batch { hidden, ..batch })?;
        let Some(graph) = self.graphs.last_mut() else { return Ok(()) };

        let plan = &mut graph.plan;
        for (to, &(id, ..)) in plan.data_mut::<i32>(graph.ids).iter_mut().zip(&rows) {
            *to = id as i32;
        }
        for (to, &(_, at, _)) in plan.data_mut::<i32>(graph.positions).iter_mut().zip(&rows) {
            *to = at as i32;
        }
        for (to, &(_, at, first)) in plan.data_mut::<i64>(graph.cells).iter_mut().zip(&rows) {
            *to = (first + at) as i64;
        }
        match graph.sight {
            Sight::Firsts(slot) => {
                for (to, &(.., first)) in plan.data_mut::<i32>(slot).iter_mut().zip(&rows) {
                    *to = first as i32;
                }
            }
            Sight::Mask(slot) => {
                let mask = plan.data_mut::<f16>(slot);
                for (row, &(_, at, first)) in mask.chunks_exact_mut(batch.past).zip(&rows) {
                    row.fill(f16::NEG_INFINITY);
                    row[first..=first + at].fill(f16::ZERO);
                }
            }
        }
        if let Some(slot) = graph.rows {
            plan.data_mut::<i32>(slot).copy_from_slice(&outputs);
        }
        self.threads.compute(plan, (tokens == asked).then_some(tokens))?;
        self.results.clear();
        if asked > 0 {
            plan.read(graph.results, &mut self.results);
        }
        for part in parts {
            self.past[part.slot] += part.ids.len();
        }
        self.model.pack();
        Ok(())
    }
}

/// The cells of `slots` texts of `n_ctx` positions.
fn new_cache(model: &Model, slots: usize, n_ctx: usize, kv: KvType) -> Result<KvCache> {
    if n_ctx == 0 || slots == 0 {
        return Err(Error::Request {
            message: format!(
                "expected at least one position and one text, found {n_ctx} and {slots}"
            ),
        });
    }
    let too_many = || Error::Request {
        message: format!("{slots} texts of {n_ctx} tokens are more than the memory has cells for"),
    };
    // positions and cells are 32-bit numbers in the graph
    let cells = slots.checked_mul(n_ctx).filter(|&n| i32::try_from(n).is_ok());
    let ty = match kv {
        KvType::F32 => GgmlType::F32,
        KvType::F16 => GgmlType::F16,
    };
    let cells = cells.ok_or_else(too_many)?;
    KvCache::new((model.cpu(), model.config()), model.weights().split(), cells, ty)
}

/// Cells a graph looks at for `past` positions: few different numbers, so that graphs are reused,
/// but short ones for a short past.
fn cells_for(past: usize) -> usize {
    past.next_multiple_of(if past <= CELLS { 64 } else { CELLS })
}
