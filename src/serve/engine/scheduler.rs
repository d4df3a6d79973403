//! The scheduler of an engine: continuous batching over the runner's slots.
//!
//! In: jobs. Each round gives free slots to waiting jobs, computes one step (the next token of
//! every text that is being written, with draft tokens after it where the texts are few,
//! and pieces of prompts up to a budget), and sends what became certain. A slot keeps what it
//! computed after its job; a new job takes over the longest beginning it shares with any slot, or
//! with a text that lost its slot ([`PromptCache`]).

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mmx_converters::tokenizer::Tokenizer;
use mmx_ggml::run::{BATCH, Finish, Part, Slots, reusable};

use super::job::{Event, Job, Summary, Task};
use super::prompt_cache::PromptCache;
use super::sequence::{Sequence, Step, most_drafts};
use super::stats::Stats;
use crate::error::ApiError;

/// Longest time a text waits for a client that does not read.
pub(crate) const STALL: Duration = Duration::from_secs(30);

/// Most tokens of prompts in a step that also writes texts: the texts wait for them, so they are
/// few.
const PROMPT_TOKENS_BESIDE: usize = 128;

/// Fewest tokens for which what a slot holds is copied before another text takes it over: fewer are
/// read again as quickly.
const WORTH_KEEPING: usize = 8;

/// Most logits of prompts' tokens in one step, 64 MiB of them, where the tokens' probabilities were
/// asked for.
const PROMPT_LOGITS: usize = 1 << 24;

/// A slot of the runner.
struct SlotState<'t> {
    /// The tokens whose keys and values it holds.
    held: Vec<u32>,
    run: Option<Run<'t>>,
    /// Round of its last use.
    used: u64,
    /// Number of its jobs so far, by which a borrower notices that another one has the slot.
    tenancy: u64,
}

/// A job in a slot.
struct Run<'t> {
    job: Job,
    /// A beginning that another slot is still reading: slot, its tenancy, tokens.
    borrow: Option<(usize, u64, usize)>,
    cached: usize,
    started: Instant,
    /// The moment at which the prompt was read.
    read: Option<Instant>,
    /// The moment since which its client has had no room for more.
    stalled: Option<Instant>,
    kind: Kind<'t>,
}

enum Kind<'t> {
    Write(Box<Sequence<'t>>),
    /// Sum of the hidden states so far.
    Embed(Vec<f64>),
}

/// The slots of a runner, their jobs, and the jobs that wait.
pub(crate) struct Scheduler<'t> {
    slots: Slots,
    lanes: Vec<SlotState<'t>>,
    waiting: VecDeque<Job>,
    cache: PromptCache,
    tokenizer: &'t Tokenizer,
    /// Ids that end a text.
    ends: Vec<u32>,
    stats: &'t Stats,
    /// Most tokens drafted ahead of a text.
    speculate: usize,
    round: u64,
}

/// Tokens of a slot in a step.
struct Turn {
    lane: usize,
    ids: Vec<u32>,
    /// Number of the last ids whose logits are needed.
    outputs: usize,
    /// Number of the last ids that are draft tokens.
    drafts: usize,
}

impl<'t> Scheduler<'t> {
    pub(crate) fn new(
        slots: Slots,
        speculate: usize,
        cache: PromptCache,
        tokenizer: &'t Tokenizer,
        stats: &'t Stats,
    ) -> Self {
        let lane = || SlotState { held: Vec::new(), run: None, used: 0, tenancy: 0 };
        Self {
            lanes: (0..slots.n_slots()).map(|_| lane()).collect(),
            ends: tokenizer.stop_ids(&slots.model().config().eos_token_id),
            slots,
            waiting: VecDeque::new(),
            cache,
            tokenizer,
            stats,
            speculate,
            round: 0,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.lanes.iter().all(|lane| lane.run.is_none())
    }

    pub(crate) fn queue(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// Ends every job.
    pub(crate) fn give_up(&mut self) {
        let stopping = || ApiError::unavailable("the server is stopping");
        while let Some(job) = self.waiting.pop_front() {
            self.stats.waiting.fetch_sub(1, Ordering::AcqRel);
            fail(&job, stopping());
        }
        for lane in 0..self.lanes.len() {
            if let Some(run) = self.end(lane) {
                fail(&run.job, stopping());
            }
        }
    }

    /// Does one round: jobs to slots, a step, certain text to the clients. False when there was
    /// nothing to compute.
    pub(crate) fn round(&mut self) -> bool {
        self.round += 1;
        self.drop_late();
        self.admit();
        let embedded = self.embed();
        let stepped = self.step();
        let active = self.lanes.iter().filter(|lane| lane.run.is_some()).count();
        self.stats.active.store(active, Ordering::Relaxed);
        embedded || stepped
    }

    /// Gives up jobs whose client is gone or whose time is over.
    fn drop_late(&mut self) {
        let now = Instant::now();
        let stats = self.stats;
        self.waiting.retain(|job| {
            let (gone, late) = (job.events.is_closed(), now >= job.deadline);
            if gone || late {
                stats.waiting.fetch_sub(1, Ordering::AcqRel);
                stats.cancelled.fetch_add(1, Ordering::Relaxed);
                if !gone {
                    let text = "the request's time was over before its turn came";
                    fail(job, ApiError::unavailable(text).coded("timeout"));
                }
            }
            !gone && !late
        });
        for lane in 0..self.lanes.len() {
            let Some(run) = &self.lanes[lane].run else { continue };
            let stalled = run.stalled.is_some_and(|since| now >= since + STALL);
            if run.job.events.is_closed() || stalled {
                self.stats.cancelled.fetch_add(1, Ordering::Relaxed);
                if let (Some(run), true) = (self.end(lane), stalled) {
                    let text = format!("nothing was read for {} seconds", STALL.as_secs());
                    fail(&run.job, ApiError::unavailable(text).coded("client_too_slow"));
                }
            } else if now >= run.job.deadline {
                match run.kind {
                    Kind::Write(_) if run.read.is_some() => self.finish(lane, Finish::Length),
                    _ => {
                        if let Some(run) = self.end(lane) {
                            let text = "the request's time was over before its prompt was read";
                            fail(&run.job, ApiError::unavailable(text).coded("timeout"));
                        }
                    }
                }
            }
        }
    }

    /// Gives free slots to waiting jobs, in order.
    fn admit(&mut self) {
        while self.lanes.iter().any(|lane| lane.run.is_none()) {
            let Some(job) = self.waiting.pop_front() else { return };
            self.stats.waiting.fetch_sub(1, Ordering::AcqRel);
            self.start(job);
        }
    }

    /// Puts a job into the free slot that suits it best.
    fn start(&mut self, mut job: Job) {
        let kind = match &mut job.task {
            Task::Embed => Ok(Kind::Embed(vec![0.0; self.slots.model().config().hidden_size])),
            Task::Write(write) => {
                let (model, tokenizer) = (self.slots.model(), self.tokenizer);
                Sequence::new(write, &job.prompt, model, tokenizer, self.speculate)
                    .map(|sequence| Kind::Write(Box::new(sequence)))
            }
        };
        let kind = match kind {
            Ok(kind) => kind,
            Err(error) => {
                self.stats.failed.fetch_add(1, Ordering::Relaxed);
                return fail(&job, error);
            }
        };
        // every token's state or logits are needed
        let afresh = match &job.task {
            Task::Embed => true,
            Task::Write(write) => write.echo_logprobs,
        };
        let shared = |lane: &SlotState<'_>| {
            let whole = lane.run.as_ref().filter(|run| matches!(run.kind, Kind::Write(_)));
            let whole = whole.map_or(&lane.held, |run| {
                if lane.held.len() < run.job.prompt.len() { &run.job.prompt } else { &lane.held }
            });
            if afresh { 0 } else { reusable(whole, &job.prompt) }
        };
        let free = |lane: &&(usize, &SlotState<'_>)| lane.1.run.is_none();
        let lanes: Vec<(usize, &SlotState<'_>)> = self.lanes.iter().enumerate().collect();
        let own =
            lanes.iter().filter(free).max_by_key(|(_, lane)| (shared(lane), u64::MAX - lane.used));
        let best = lanes.iter().max_by_key(|(_, lane)| shared(lane));
        let oldest = lanes.iter().filter(free).min_by_key(|(_, lane)| lane.used);
        let (Some(own), Some(best), Some(oldest)) = (own, best, oldest) else { return };
        let (mut target, source, length) = match (shared(own.1), shared(best.1)) {
            (own_length, length) if own_length >= length => (own.0, own.0, own_length),
            (_, length) => (oldest.0, best.0, length),
        };
        let oldest = oldest.0;
        drop(lanes);
        let mut cached = length;
        let mut borrow = None;
        if let Some(length) = self.restore(oldest, &job.prompt, length, afresh) {
            (target, cached) = (oldest, length);
        } else if source == target {
            self.set_aside(target, length);
            self.slots.truncate(target, length);
            self.lanes[target].held.truncate(length);
        } else if self.lanes[source].held.len() >= length {
            self.set_aside(target, 0);
            cached = self.copy(source, target, length);
        } else {
            self.set_aside(target, 0);
            cached = 0;
            self.slots.truncate(target, 0);
            self.lanes[target].held.clear();
            borrow = Some((source, self.lanes[source].tenancy, length));
        }
        let lane = &mut self.lanes[target];
        lane.used = self.round;
        lane.tenancy += 1;
        lane.run = Some(Run {
            job,
            borrow,
            cached,
            started: Instant::now(),
            read: None,
            stalled: None,
            kind,
        });
    }

    /// Copies what a free slot holds to the cache, if more than its first `length` tokens are about
    /// to be overwritten.
    fn set_aside(&mut self, lane: usize, length: usize) {
        let held = &self.lanes[lane].held;
        let lost = held.len().saturating_sub(length);
        let bytes = held.len().saturating_mul(self.slots.bytes_per_token());
        if lost >= WORTH_KEEPING
            && self.cache.wants(held, bytes)
            && self.slots.n_past(lane) == held.len()
            && let Ok(copy) = self.slots.held(lane)
        {
            self.cache.keep(held.clone(), copy);
            self.stats.prompt_cache_bytes.store(self.cache.bytes(), Ordering::Relaxed);
        }
    }

    /// Puts a text that lost its slot back into a free one, where it shares more than `length`
    /// tokens with the prompt; gives how many.
    fn restore(
        &mut self,
        lane: usize,
        prompt: &[u32],
        length: usize,
        afresh: bool,
    ) -> Option<usize> {
        if afresh || self.cache.longest(prompt, length).is_none() {
            return None;
        }
        self.set_aside(lane, 0);
        let (copy, length) = self.cache.longest(prompt, length)?;
        self.slots.truncate(lane, 0);
        self.lanes[lane].held.clear();
        self.slots.restore(lane, copy, length).ok()?;
        self.lanes[lane].held.extend_from_slice(&prompt[..length]);
        Some(length)
    }

    /// Copies a beginning from slot to slot; gives how many tokens were copied.
    fn copy(&mut self, from: usize, to: usize, length: usize) -> usize {
        self.slots.truncate(to, 0);
        self.lanes[to].held.clear();
        if self.slots.share(from, to, length).is_err() {
            return 0; // computed afresh instead
        }
        self.lanes[to].held = self.lanes[from].held[..length].to_vec();
        length
    }

    /// Frees a slot; what it computed stays for others.
    fn end(&mut self, lane: usize) -> Option<Run<'t>> {
        let lane = &mut self.lanes[lane];
        lane.used = self.round;
        lane.run.take()
    }

    /// Takes over borrowed beginnings that are there now; true while the lane must wait for one.
    fn borrows(&mut self, lane: usize) -> bool {
        let Some(run) = &self.lanes[lane].run else { return false };
        let Some((source, tenancy, length)) = run.borrow else { return false };
        let from = &self.lanes[source];
        let reading = from.tenancy == tenancy && from.run.is_some();
        if reading && from.held.len() < length {
            return true;
        }
        // the other one may have ended early: what it left is taken as far as it fits
        let usable = reusable(&from.held, &run.job.prompt).min(length);
        let copied = self.copy(source, lane, usable);
        if let Some(run) = &mut self.lanes[lane].run {
            run.borrow = None;
            run.cached = copied;
        }
        false
    }

    /// Reads a piece of one embedding's text: its hidden states need a step of their own. False
    /// when there is none.
    fn embed(&mut self) -> bool {
        let embeds = |lane: &SlotState<'_>| {
            lane.run.as_ref().is_some_and(|run| matches!(run.kind, Kind::Embed(_)))
        };
        // the one that waits longest
        let next = (0..self.lanes.len())
            .filter(|&i| embeds(&self.lanes[i]))
            .min_by_key(|&i| self.lanes[i].run.as_ref().map(|run| run.job.since));
        let Some(index) = next else { return false };
        let lane = &mut self.lanes[index];
        let Some(run) = &mut lane.run else { return false };
        let Kind::Embed(sum) = &mut run.kind else { return false };
        let rest = &run.job.prompt[lane.held.len()..];
        let piece = &rest[..rest.len().min(BATCH)];
        match self.slots.hidden_all(index, piece) {
            Err(error) => {
                let error = error.into();
                if let Some(run) = self.end(index) {
                    self.stats.failed.fetch_add(1, Ordering::Relaxed);
                    fail(&run.job, error);
                }
                self.slots.truncate(index, 0);
                self.lanes[index].held.clear();
            }
            Ok(states) => {
                for state in states.chunks_exact(sum.len()) {
                    sum.iter_mut().zip(state).for_each(|(sum, &x)| *sum += f64::from(x));
                }
                lane.held.extend_from_slice(piece);
                self.stats.prompt_tokens.fetch_add(piece.len() as u64, Ordering::Relaxed);
                self.stats.steps.fetch_add(1, Ordering::Relaxed);
                if lane.held.len() == run.job.prompt.len() {
                    let count = lane.held.len();
                    let mean = sum.iter().map(|&x| (x / count as f64) as f32).collect();
                    if let Some(run) = self.end(index) {
                        self.stats.done.fetch_add(1, Ordering::Relaxed);
                        run.job.send(Event::Embedding(mean, count));
                    }
                }
            }
        }
        true
    }

    /// Computes the next token of every text whose client keeps up, with draft tokens for what
    /// comes after, and pieces of prompts. False when there is neither.
    fn step(&mut self) -> bool {
        let mut work: Vec<Turn> = Vec::new();
        let mut reading = Vec::new();
        for index in 0..self.lanes.len() {
            let waits = self.borrows(index);
            let lane = &mut self.lanes[index];
            let Some(Run { kind: Kind::Write(sequence), job, stalled, .. }) = &mut lane.run else {
                continue;
            };
            if job.room() == 0 {
                stalled.get_or_insert_with(Instant::now);
                continue;
            }
            *stalled = None;
            match sequence.next {
                Some(id) => work.push(Turn { lane: index, ids: vec![id], outputs: 1, drafts: 0 }),
                None if !waits => reading.push((job.since, index)),
                None => {}
            }
        }
        let most = most_drafts(self.speculate, work.len());
        for turn in &mut work {
            let drafts = self.draft(turn.lane, most);
            turn.outputs += drafts.len();
            turn.drafts = drafts.len();
            turn.ids.extend(drafts);
        }
        let mut budget = if work.is_empty() { BATCH } else { PROMPT_TOKENS_BESIDE };
        let written: usize = work.iter().map(|turn| turn.ids.len()).sum();
        budget = budget.min(BATCH.saturating_sub(written));
        reading.sort_unstable(); // who came first is served first
        let vocab = self.slots.model().config().vocab_size;
        let mut rows = (PROMPT_LOGITS / vocab).max(1);
        for (_, index) in reading {
            let lane = &self.lanes[index];
            let Some(run) = &lane.run else { continue };
            let rest = &run.job.prompt[lane.held.len()..];
            let every = matches!(&run.job.task, Task::Write(write) if write.echo_logprobs);
            let most = if every { budget.min(rows) } else { budget };
            let piece = &rest[..rest.len().min(most)];
            if !piece.is_empty() {
                budget -= piece.len();
                rows -= if every { piece.len() } else { 0 };
                let last = usize::from(piece.len() == rest.len());
                let outputs = if every { piece.len() } else { last };
                work.push(Turn { lane: index, ids: piece.to_vec(), outputs, drafts: 0 });
            }
        }
        if work.is_empty() {
            return false;
        }
        let parts: Vec<Part<'_>> = work
            .iter()
            .map(|turn| Part { slot: turn.lane, ids: &turn.ids, outputs: turn.outputs })
            .collect();
        let logits = match self.slots.step(&parts) {
            Ok(logits) => logits.to_vec(),
            Err(error) => {
                // none of these can be trusted to go on
                let error: ApiError = error.into();
                for Turn { lane, .. } in work {
                    if let Some(run) = self.end(lane) {
                        self.stats.failed.fetch_add(1, Ordering::Relaxed);
                        fail(&run.job, error.clone());
                    }
                    self.slots.truncate(lane, 0);
                    self.lanes[lane].held.clear();
                }
                return true;
            }
        };
        self.stats.steps.fetch_add(1, Ordering::Relaxed);
        let mut rest = logits.as_slice();
        for turn in work {
            let (rows, others) = rest.split_at(rest.len().min(turn.outputs * vocab));
            rest = others;
            self.take_turn(&turn, rows.chunks_exact(vocab));
        }
        true
    }

    /// Draft tokens for what follows the next token of a slot's text, at most `most`.
    fn draft(&mut self, lane: usize, most: usize) -> Vec<u32> {
        let n_ctx = self.slots.n_ctx();
        let SlotState { held, run, .. } = &mut self.lanes[lane];
        match run {
            Some(Run { job, kind: Kind::Write(sequence), .. }) => {
                sequence.draft(job, held, n_ctx, most)
            }
            _ => Vec::new(),
        }
    }

    /// Draws from a slot's logits: after its known tokens, and after each draft token that was
    /// drawn. The others are forgotten.
    fn take_turn<'r>(&mut self, turn: &Turn, mut rows: impl Iterator<Item = &'r [f32]>) {
        let lane = turn.lane;
        let (known, drafts) = turn.ids.split_at(turn.ids.len() - turn.drafts);
        self.take_prompt(lane, known.len(), &mut rows);
        self.lanes[lane].held.extend_from_slice(known);
        let mut came_true = 0;
        for row in rows {
            self.advance(lane, row);
            let SlotState { held, run, .. } = &mut self.lanes[lane];
            let Some(Run { kind: Kind::Write(sequence), .. }) = run else { break };
            let drawn = sequence.next.take_if(|next| drafts.get(came_true) == Some(&*next));
            let Some(id) = drawn else { break };
            held.push(id);
            came_true += 1;
        }
        if drafts.is_empty() {
            return;
        }
        let SlotState { held, run, .. } = &mut self.lanes[lane];
        self.slots.truncate(lane, held.len());
        if let Some(Run { kind: Kind::Write(sequence), .. }) = run {
            sequence.learn(drafts.len(), came_true);
        }
        self.stats.drafted_tokens.fetch_add(drafts.len() as u64, Ordering::Relaxed);
        self.stats.accepted_tokens.fetch_add(came_true as u64, Ordering::Relaxed);
    }

    /// Takes the probabilities of the prompt's tokens that follow the `read` ones, where they are
    /// wanted; the row after the prompt's last token is left.
    fn take_prompt<'r>(
        &mut self,
        lane: usize,
        read: usize,
        rows: &mut impl Iterator<Item = &'r [f32]>,
    ) {
        let SlotState { held, run, .. } = &mut self.lanes[lane];
        let Some(Run { job, read: None, kind: Kind::Write(sequence), .. }) = run else { return };
        sequence.take_prompt(job, held.len() + 1, read, rows);
    }

    /// Draws the next token of a text whose logits are there.
    fn advance(&mut self, index: usize, logits: &[f32]) {
        let n_ctx = self.slots.n_ctx();
        let lane = &mut self.lanes[index];
        let full = lane.held.len() >= n_ctx;
        let Some(run) = &mut lane.run else { return };
        let Kind::Write(sequence) = &mut run.kind else { return };
        let first = run.read.is_none();
        if first {
            run.read = Some(Instant::now());
            let computed = run.job.prompt.len() - run.cached;
            self.stats.first_token.record(run.job.since.elapsed());
            self.stats.prompt_tokens.fetch_add(computed as u64, Ordering::Relaxed);
            self.stats.cached_tokens.fetch_add(run.cached as u64, Ordering::Relaxed);
        }
        let begun = if first { sequence.begin(&run.job) } else { Step::Next };
        let step = match begun {
            Step::Next => sequence.advance(&mut run.job, logits, &self.ends, full, self.stats),
            ended => ended,
        };
        match step {
            Step::Next => {}
            Step::Ended(finish) => self.finish(index, finish),
            Step::Failed(error) => {
                self.stats.failed.fetch_add(1, Ordering::Relaxed);
                if let Some(run) = self.end(index) {
                    fail(&run.job, error);
                }
            }
        }
    }

    /// Ends a text and frees its slot.
    fn finish(&mut self, lane: usize, finish: Finish) {
        let Some(mut run) = self.end(lane) else { return };
        let Kind::Write(sequence) = &mut run.kind else { return };
        sequence.finish(&run.job);
        let read = run.read.unwrap_or_else(Instant::now);
        let summary = Summary {
            finish,
            stop: sequence.stop(),
            prompt_tokens: run.job.prompt.len(),
            cached_tokens: run.cached,
            completion_tokens: sequence.tokens(),
            queued: run.started - run.job.since,
            prefill: read - run.started,
            decode: read.elapsed(),
        };
        self.stats.done.fetch_add(1, Ordering::Relaxed);
        run.job.send(Event::Done(summary));
    }
}

fn fail(job: &Job, error: ApiError) {
    job.send(Event::Failed(error));
}

#[cfg(test)]
mod tests;
