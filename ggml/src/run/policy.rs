//! A model that is trained while it writes: weights in, completions of many prompts out.
//!
//! Continuous batching for throughput: every step computes the next token of each text in a slot, and
//! beside them prompts, as many of their tokens as there is room for; a text that ends leaves its
//! slot to the next prompt at once. A prompt that shares its beginning with what a slot holds, or is
//! about to read, takes that over: a group's prompt is read once. Each text draws from a random stream
//! of its own, so that with [`Model::is_batch_invariant`] it is the same whatever is written beside
//! it.
//!
//! # Limits
//! A step reads all weights once (26M in float32: 104 MB, some 3 ms) and multiplies them with every
//! text (52 MFLOP each), so texts are nearly free up to where multiplying takes as long as reading,
//! about 24 on two cores of Zen 5; beyond, their rate still grows a little, as what does not depend on
//! their number (waiting for each other at some 100 operations) is shared. The number of slots is
//! therefore [`SLOTS`], or fewer where their cells would take more memory than allowed.

use std::collections::VecDeque;

use mmx_converters::arch::Config;
use mmx_converters::quant::file_type::FileType;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::draw::Drawer;
use super::model::Model;
use super::names::Values;
use super::options::{KvType, LoadOptions, SlotsOptions};
use super::sampler::Sampling;
use super::session::reusable;
use super::slots::{BATCH, Part, Slots};
use crate::error::{Error, Result};

/// Texts at a time where memory allows.
pub const SLOTS: usize = 64;

/// Positions of a slot are made in multiples of this, so that a slightly longer text needs no new
/// memory.
const POSITIONS: usize = 64;

/// Options of a policy.
#[derive(Clone, Debug)]
pub struct PolicyOptions {
    /// Type of the weights: f32, f16, bf16 or q8_0.
    pub file: FileType,
    /// Type of keys and values.
    pub kv: KvType,
    /// Threads; by default as many as the model's size and the cores make sensible.
    pub threads: Option<usize>,
    /// Texts at a time at most.
    pub slots: usize,
    /// Bytes of keys and values at most; one slot is always there.
    pub cache_bytes: usize,
    /// How the weights lie.
    pub load: LoadOptions,
}

impl Default for PolicyOptions {
    fn default() -> Self {
        Self {
            file: FileType::F32,
            kv: KvType::F32,
            threads: None,
            slots: SLOTS,
            cache_bytes: 1 << 30,
            load: LoadOptions::default(),
        }
    }
}

/// A text to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Ids to go on from, at least one.
    pub ids: Vec<u32>,
    /// New ids at most, an id that ends the text included.
    pub max_new: usize,
    /// Seed of the text's own random stream.
    pub seed: u64,
}

/// What was written after a prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// The ids, one that ends the text included.
    pub ids: Vec<u32>,
    /// Per id the logarithm of its probability in the distribution it was drawn from: logits over
    /// temperature, after truncation; 0 at temperature 0.
    pub logps: Vec<f32>,
    /// True where the last id is one that ends a text.
    pub stopped: bool,
}

/// Takes a text that ended, by the index of its prompt; gives the prompt that goes on in its place,
/// or nothing.
pub type Next<'a> = dyn FnMut(usize, Written) -> mmx_converters::Result<Option<Prompt>> + 'a;

/// A model in memory with slots of its own.
///
/// ```
/// use mmx_ggml::converters::arch;
/// use mmx_ggml::run::{Policy, PolicyOptions, Prompt, Sampling, Values};
///
/// # fn main() -> mmx_ggml::Result<()> {
/// let mut config = arch::presets::preset("tiny").expect("a known preset");
/// config.vocab_size = 64;
/// let mut policy = Policy::new(&config, PolicyOptions::default())?;
///
/// // the weights of now, whoever has them, by their names
/// let table = arch::weights(&config);
/// let values: Vec<Vec<f32>> = table.iter().map(|weight| vec![0.1; weight.elements()]).collect();
/// policy.take(&mut table.iter().zip(&values).map(|(weight, values)| Values {
///     name: &weight.name,
///     shape: &weight.shape,
///     values,
/// }))?;
///
/// // a group of eight texts after one prompt
/// let prompts = (0..8).map(|seed| Prompt { ids: vec![1, 2, 3], max_new: 20, seed }).collect();
/// let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
/// let mut texts = vec![Vec::new(); 8];
/// policy.write(prompts, &sampling, &[2], &mut |index, written| {
///     assert_eq!(written.ids.len(), written.logps.len());
///     texts[index] = written.ids;
///     Ok(None) // or a further turn, which goes on in the same slot
/// })?;
/// assert!(texts.iter().all(|ids| !ids.is_empty() && ids.len() <= 20));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Policy {
    slots: Slots,
    options: PolicyOptions,
}

/// A slot: the text it holds as far as it was read, and who writes there.
#[derive(Debug, Default)]
struct Lane {
    held: Vec<u32>,
    row: Option<Row>,
}

/// A text in a slot.
#[derive(Debug)]
struct Row {
    index: usize,
    /// The prompt and what was written.
    text: Vec<u32>,
    prompt: usize,
    max_new: usize,
    rng: ChaCha8Rng,
    logps: Vec<f32>,
    /// A slot that is still reading a beginning of this prompt, and how many ids of it.
    wait: Option<(usize, usize)>,
}

impl Policy {
    /// A policy of `config`, which writes once [`Policy::take`] was given its weights.
    ///
    /// # Errors
    /// See [`Model::in_memory`] and [`Slots::new`].
    pub fn new(config: &Config, options: PolicyOptions) -> Result<Self> {
        let model = Model::in_memory(config, options.file, &options.load)?;
        let PolicyOptions { kv, threads, .. } = options;
        let slots =
            SlotsOptions { slots: 1, n_ctx: Some(POSITIONS.min(context(&model))), kv, threads };
        Ok(Self { slots: Slots::new(&model, slots)?, options })
    }

    /// Takes all weights, one after the other.
    ///
    /// # Errors
    /// See [`Slots::take`].
    pub fn take(&mut self, weights: &mut dyn Iterator<Item = Values<'_>>) -> Result<()> {
        self.slots.take(weights)
    }

    /// The slots, all of them free.
    pub fn slots(&mut self) -> &mut Slots {
        &mut self.slots
    }

    /// Writes after each prompt until one of the ids `ends` or the prompt's limit, and hands each
    /// text to `next` as soon as it ends. Of `sampling`, temperature, top-k and top-p count.
    ///
    /// # Errors
    /// A prompt without ids, with one outside the vocabulary, or that leaves no room in the model's
    /// context; weights that are missing; logits that are not numbers; an error of `next`.
    pub fn write(
        &mut self,
        prompts: Vec<Prompt>,
        sampling: &Sampling,
        ends: &[u32],
        next: &mut Next<'_>,
    ) -> Result<()> {
        let model = self.slots.model();
        let mut drawer = Drawer::new(model.cpu(), sampling.clone())?;
        let longest = prompts.iter().map(|prompt| self.positions(prompt)).max().unwrap_or(0);
        self.make_room(prompts.len(), longest)?;
        for slot in 0..self.slots.n_slots() {
            self.slots.truncate(slot, 0);
        }
        let mut waiting = VecDeque::new();
        for (index, prompt) in prompts.into_iter().enumerate() {
            waiting.extend(self.admit(index, prompt, next)?);
        }
        let mut lanes: Vec<Lane> = (0..self.slots.n_slots()).map(|_| Lane::default()).collect();
        loop {
            self.take_over(&mut lanes)?;
            while let Some(free) = lanes.iter().position(|lane| lane.row.is_none())
                && let Some(row) = waiting.pop_front()
            {
                self.start(&mut lanes, free, row)?;
            }
            if lanes.iter().all(|lane| lane.row.is_none()) {
                return Ok(());
            }
            self.step(&mut lanes, &mut drawer, ends, next)?;
        }
    }

    /// Positions that a prompt and what follows it take.
    fn positions(&self, prompt: &Prompt) -> usize {
        prompt.ids.len().saturating_add(prompt.max_new).min(context(self.slots.model()))
    }

    /// Makes room for `rows` texts of `longest` positions, as many at a time as are allowed.
    fn make_room(&mut self, rows: usize, longest: usize) -> Result<()> {
        let n_ctx = longest
            .next_multiple_of(POSITIONS)
            .min(context(self.slots.model()))
            .max(self.slots.n_ctx());
        let each = n_ctx.saturating_mul(self.slots.bytes_per_token()).max(1);
        let allowed = self.options.slots.min(self.options.cache_bytes / each).max(1);
        let slots = rows.clamp(1, allowed).max(self.slots.n_slots().min(allowed));
        self.slots.resize(slots, n_ctx)
    }

    /// The row of a prompt; one that is to be followed by nothing ends at once, as often as `next`
    /// goes on with such a one.
    fn admit(&self, index: usize, prompt: Prompt, next: &mut Next<'_>) -> Result<Option<Row>> {
        let mut prompt = prompt;
        loop {
            let model = self.slots.model();
            let (context, vocab) = (context(model), model.config().vocab_size);
            let fault = if prompt.ids.is_empty() {
                "expected at least one id, found none".to_owned()
            } else if let Some(id) = prompt.ids.iter().find(|&&id| id as usize >= vocab) {
                format!("expected ids below {vocab}, found {id}")
            } else if prompt.ids.len() >= context {
                format!(
                    "expected fewer ids than the model's context of {context}, found {}",
                    prompt.ids.len()
                )
            } else if prompt.max_new == 0 {
                match next(index, Written::default())? {
                    Some(further) => prompt = further,
                    None => return Ok(None),
                }
                continue;
            } else {
                let Prompt { ids: text, max_new, seed } = prompt;
                return Ok(Some(Row {
                    index,
                    prompt: text.len(),
                    max_new: max_new.min(context - text.len()),
                    text,
                    rng: ChaCha8Rng::seed_from_u64(seed),
                    logps: Vec::new(),
                    wait: None,
                }));
            };
            return Err(Error::Request { message: format!("prompt {index}: {fault}") });
        }
    }

    /// Puts a row into a free slot, with the longest beginning that any slot has for it.
    fn start(&mut self, lanes: &mut [Lane], free: usize, mut row: Row) -> Result<()> {
        // what a slot holds, or will hold once its prompt is read
        let has = |lane: &Lane| match &lane.row {
            Some(other) if other.wait.is_none() && other.prompt > lane.held.len() => {
                reusable(&other.text[..other.prompt], &row.text)
            }
            _ => reusable(&lane.held, &row.text),
        };
        // of equal ones a free slot, which keeps it: nothing is copied then
        let best = (0..lanes.len()).max_by_key(|&i| (has(&lanes[i]), lanes[i].row.is_none()));
        let best = best.unwrap_or(free);
        let length = has(&lanes[best]);
        if lanes[best].row.is_none() && length > 0 {
            self.slots.truncate(best, length);
            lanes[best].held.truncate(length);
            lanes[best].row = Some(row);
            return Ok(());
        }
        self.slots.truncate(free, 0);
        lanes[free].held.clear();
        if length > lanes[best].held.len() {
            row.wait = Some((best, length));
        } else if length > 0 {
            self.copy(lanes, best, free, length)?;
        }
        lanes[free].row = Some(row);
        Ok(())
    }

    /// Gives beginnings that have been read to who waits for them.
    fn take_over(&mut self, lanes: &mut [Lane]) -> Result<()> {
        for to in 0..lanes.len() {
            let Some(row) = &lanes[to].row else { continue };
            let Some((from, length)) = row.wait else { continue };
            let there = reusable(&lanes[from].held, &row.text).min(length);
            let reads = lanes[from].row.as_ref().is_some_and(|other| {
                other.wait.is_none()
                    && other.prompt > lanes[from].held.len()
                    && reusable(&other.text[..other.prompt], &row.text) >= length
            });
            if there < length && reads {
                continue;
            }
            if there > 0 {
                self.copy(lanes, from, to, there)?;
            }
            if let Some(row) = &mut lanes[to].row {
                row.wait = None;
            }
        }
        Ok(())
    }

    fn copy(&mut self, lanes: &mut [Lane], from: usize, to: usize, length: usize) -> Result<()> {
        self.slots.share(from, to, length)?;
        lanes[to].held = lanes[from].held[..length].to_vec();
        Ok(())
    }

    /// Computes a step and draws what follows.
    fn step(
        &mut self,
        lanes: &mut [Lane],
        drawer: &mut Drawer,
        ends: &[u32],
        next: &mut Next<'_>,
    ) -> Result<()> {
        // a token of each text that is written, then tokens of prompts
        let pending = |lane: &Lane| match &lane.row {
            Some(row) if row.wait.is_none() => row.text.len() - lane.held.len(),
            _ => 0,
        };
        let writing = lanes.iter().filter(|lane| pending(lane) == 1).count().min(BATCH);
        let mut left = BATCH - writing;
        let mut parts = Vec::new();
        for (slot, lane) in lanes.iter().enumerate() {
            let Some(row) = &lane.row else { continue };
            let ids = match pending(lane) {
                0 => continue,
                1 => 1,
                many => many.min(left),
            };
            if ids == 0 || parts.len() == BATCH {
                continue;
            }
            left -= if pending(lane) == 1 { 0 } else { ids };
            let ids = &row.text[lane.held.len()..][..ids];
            let outputs = usize::from(lane.held.len() + ids.len() == row.text.len());
            parts.push(Part { slot, ids, outputs });
        }
        self.slots.step(&parts)?;
        let read: Vec<_> =
            parts.iter().map(|part| (part.slot, part.ids.len(), part.outputs)).collect();
        let mut output = 0;
        let mut ended = Vec::new();
        for (slot, ids, outputs) in read {
            let Lane { held, row } = &mut lanes[slot];
            let Some(row) = row else { continue };
            held.extend_from_slice(&row.text[held.len()..][..ids]);
            if outputs == 0 {
                continue;
            }
            // 53 random bits, as float64 has
            let unit = (row.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            let (id, logp) = drawer.draw(self.slots.row(output), unit)?;
            output += 1;
            row.text.push(id);
            row.logps.push(logp);
            let stopped = ends.contains(&id);
            if stopped || row.logps.len() == row.max_new {
                ended.push((slot, stopped));
            }
        }
        for (slot, stopped) in ended {
            self.end(lanes, slot, stopped, next)?;
        }
        Ok(())
    }

    /// Hands a text over, and goes on in its slot with what follows it.
    fn end(
        &mut self,
        lanes: &mut [Lane],
        slot: usize,
        stopped: bool,
        next: &mut Next<'_>,
    ) -> Result<()> {
        let Some(mut row) = lanes[slot].row.take() else { return Ok(()) };
        let ids = row.text.split_off(row.prompt);
        let written = Written { ids, logps: row.logps, stopped };
        let Some(prompt) = next(row.index, written)? else { return Ok(()) };
        let Some(row) = self.admit(row.index, prompt, next)? else { return Ok(()) };
        let positions = row.prompt + row.max_new;
        if positions > self.slots.n_ctx() {
            let n_ctx = (2 * positions).next_multiple_of(POSITIONS);
            self.slots.resize(lanes.len(), n_ctx.min(context(self.slots.model())))?;
        }
        let length = reusable(&lanes[slot].held, &row.text);
        self.slots.truncate(slot, length);
        lanes[slot].held.truncate(length);
        lanes[slot].row = Some(row);
        Ok(())
    }
}

/// Positions that a model is meant for.
fn context(model: &Model) -> usize {
    model.config().max_position_embeddings.max(1)
}
