//! A text that is being written: guesses of what comes next, and what becomes of the logits computed for it.
//!
//! In: rows of logits, one after the text's known tokens and one after each guess. Out: drawn tokens, one by one as without
//! guesses, so that sampling, probabilities, forms, stop strings and limits are what they are without; and events.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::http::StatusCode;
use mmx_converters::tokenizer::DecodeStream;
use mmx_ggml::run::{BATCH, Finish, Guesser, Sampler, StopFilter, log_probabilities};

use super::{Kind, Lane, Run, Scheduler, Turn, fail};
use crate::engine::{self, Event, EventSender, Summary, Task, TokenLogprob, Write};
use crate::error::ApiError;

/// A text in progress.
pub(super) struct Writing<'t> {
    sampler: Sampler,
    guesser: Guesser,
    stream: DecodeStream<'t>,
    filter: StopFilter,
    /// Drawn, but not computed yet.
    pub(super) next: Option<u32>,
    tokens: usize,
    /// Bytes of text decoded and sent.
    decoded: usize,
    sent: usize,
    /// Tokens whose text is not sent yet, with its end.
    pending: VecDeque<(usize, TokenLogprob)>,
    /// The prompt's tokens that were read, where their probabilities are wanted.
    prompt: Vec<TokenLogprob>,
}

/// Tokens guessed ahead of each of `texts` texts that are written together, at most `speculate`.
///
/// A guess costs what another text's token costs, and is worth what a token of a step costs without. Measured with
/// minimind2-small q4_0 (one thread, AVX-512 VNNI), in steps of one token: 2 tokens in a step take 1.14, 3 or 4 take 1.8,
/// 6 take 2.6, 8 take 3.3 and 16 take 6.4. So where all come true, 3 guesses make one text 2.2 times as fast, each of two
/// 1.4 times; one guess makes each of three 1.3 times as fast, and four texts fill the kernels by themselves: 1.1 times, less
/// than guesses that fail would lose.
pub(super) fn most_guesses(speculate: usize, texts: usize) -> usize {
    speculate.min(match texts {
        0 | 1 => BATCH - 1,
        2 => 3,
        3 => 1,
        _ => 0,
    })
}

impl<'t> Scheduler<'t> {
    /// A text to be written after `prompt`.
    pub(super) fn writing(
        &self,
        write: &mut Write,
        prompt: &[u32],
    ) -> Result<Box<Writing<'t>>, ApiError> {
        let vocab = self.slots.model().config().vocab_size;
        let sampling = std::mem::take(&mut write.sampling);
        let mut sampler = Sampler::new(sampling, vocab)?.restricted_to(self.tokenizer);
        prompt.iter().for_each(|&id| sampler.see(id));
        Ok(Box::new(Writing {
            sampler,
            guesser: Guesser::new(self.slots.model(), self.speculate),
            stream: self.tokenizer.decode_stream(true),
            filter: StopFilter::new(std::mem::take(&mut write.stop))?,
            next: None,
            tokens: 0,
            decoded: 0,
            sent: 0,
            pending: VecDeque::new(),
            prompt: Vec::new(),
        }))
    }

    /// Guesses of what follows the next token of a text: at most `most`, and no more than can be used.
    pub(super) fn guess(&mut self, lane: usize, most: usize) -> Vec<u32> {
        let n_ctx = self.slots.n_ctx();
        let Lane { held, run, .. } = &mut self.lanes[lane];
        let Some(Run { job, kind: Kind::Write(writing), .. }) = run else { return Vec::new() };
        let (Task::Write(write), Some(next)) = (&job.task, writing.next) else {
            return Vec::new();
        };
        // besides the token of the step itself
        let room = [
            n_ctx.saturating_sub(held.len()),
            write.max_tokens.saturating_sub(writing.tokens),
            job.room(),
        ];
        let most = room.into_iter().fold(most + 1, usize::min).saturating_sub(1);
        held.push(next);
        let guesses = writing.guesser.guess(held, most);
        held.pop();
        guesses
    }

    /// Draws from a slot's logits: after its known tokens, and after each guess that was drawn. The others are forgotten.
    pub(super) fn take_turn<'r>(&mut self, turn: &Turn, mut rows: impl Iterator<Item = &'r [f32]>) {
        let lane = turn.lane;
        let (known, guesses) = turn.ids.split_at(turn.ids.len() - turn.guesses);
        self.take_prompt(lane, known.len(), &mut rows);
        self.lanes[lane].held.extend_from_slice(known);
        let mut came_true = 0;
        for row in rows {
            self.advance(lane, row);
            let Lane { held, run, .. } = &mut self.lanes[lane];
            let Some(Run { kind: Kind::Write(writing), .. }) = run else { break };
            let drawn = writing.next.take_if(|next| guesses.get(came_true) == Some(&*next));
            let Some(id) = drawn else { break };
            held.push(id);
            came_true += 1;
        }
        if guesses.is_empty() {
            return;
        }
        let Lane { held, run, .. } = &mut self.lanes[lane];
        self.slots.truncate(lane, held.len());
        if let Some(Run { kind: Kind::Write(writing), .. }) = run {
            writing.guesser.learn(guesses.len(), came_true);
        }
        self.stats.guessed_tokens.fetch_add(guesses.len() as u64, Ordering::Relaxed);
        self.stats.accepted_tokens.fetch_add(came_true as u64, Ordering::Relaxed);
    }

    /// Takes the probabilities of the prompt's tokens that follow the `read` ones, where they are wanted; the row after the
    /// prompt's last token is left.
    fn take_prompt<'r>(
        &mut self,
        lane: usize,
        read: usize,
        rows: &mut impl Iterator<Item = &'r [f32]>,
    ) {
        let Lane { held, run, .. } = &mut self.lanes[lane];
        let Some(Run { job, read: None, kind: Kind::Write(writing), .. }) = run else { return };
        let Task::Write(write) = &job.task else { return };
        let Some(n) = write.logprobs.filter(|_| write.echo_logprobs) else { return };
        for (&id, row) in job.prompt.iter().skip(held.len() + 1).take(read).zip(rows) {
            let (logprob, top) = log_probabilities(row, id, n);
            writing.prompt.push(TokenLogprob { id, logprob, top });
        }
    }

    /// Draws the next token of a text whose logits are there.
    fn advance(&mut self, index: usize, logits: &[f32]) {
        let n_ctx = self.slots.n_ctx();
        let lane = &mut self.lanes[index];
        let full = lane.held.len() >= n_ctx;
        let Some(run) = &mut lane.run else { return };
        let (Kind::Write(writing), Task::Write(write)) = (&mut run.kind, &mut run.job.task) else {
            return;
        };
        if run.read.is_none() {
            run.read = Some(Instant::now());
            let computed = run.job.prompt.len() - run.cached;
            self.stats.first_token.record(run.job.since.elapsed());
            self.stats.prompt_tokens.fetch_add(computed as u64, Ordering::Relaxed);
            self.stats.cached_tokens.fetch_add(run.cached as u64, Ordering::Relaxed);
            if write.echo_logprobs {
                let prompt = std::mem::take(&mut writing.prompt);
                engine::send(&run.job.events, run.job.index, Event::Prompt(prompt));
            }
            if write.max_tokens == 0 {
                return self.finish(index, Finish::Length);
            }
        }
        let of_ours = |error: mmx_ggml::Error| {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        };
        let drawn = match &mut write.constraint {
            None => writing.sampler.sample(logits).map_err(of_ours),
            // a schema that no text fits is the request's fault
            Some(constraint) => match constraint.mask() {
                Err(why) => Err(ApiError::new(StatusCode::BAD_REQUEST, why)),
                Ok(mask) => {
                    let bits = mask.as_ref().map(toktrie::SimpleVob::as_slice);
                    writing.sampler.sample_among(logits, bits).map_err(of_ours)
                }
            },
        };
        let id = match drawn {
            Ok(id) => id,
            Err(error) => {
                self.stats.failed.fetch_add(1, Ordering::Relaxed);
                if let Some(run) = self.end(index) {
                    fail(&run.job, error);
                }
                return;
            }
        };
        if self.ends.contains(&id) && !write.ignore_end {
            if let Some(n) = write.logprobs.filter(|_| write.echo_logprobs) {
                let (logprob, top) = log_probabilities(logits, id, n);
                writing.pending.push_back((0, TokenLogprob { id, logprob, top }));
            }
            return self.finish(index, Finish::Stop);
        }
        writing.tokens += 1;
        writing.sampler.accept(id);
        let text = writing.stream.push(id);
        let mut complete = false;
        if let Some(constraint) = &mut write.constraint {
            complete = constraint.consume(id, &text).is_err() || constraint.is_complete();
        }
        writing.decoded += text.len();
        if let Some(n) = write.logprobs {
            let (logprob, top) = log_probabilities(logits, id, n);
            // a token within a character is certain only with what completes it
            let end = writing.decoded + usize::from(text.is_empty());
            writing.pending.push_back((end, TokenLogprob { id, logprob, top }));
        }
        let certain = writing.filter.push(&text);
        writing.send(&run.job.events, run.job.index, certain);
        self.stats.completion_tokens.fetch_add(1, Ordering::Relaxed);
        let finish = if writing.filter.stopped() || complete {
            Finish::Stop
        } else if writing.tokens >= write.max_tokens {
            Finish::Length
        } else if full {
            Finish::Context
        } else {
            writing.next = Some(id);
            return;
        };
        self.finish(index, finish);
    }

    /// Ends a text: what was held back is text after all, unless a stop string was complete.
    pub(super) fn finish(&mut self, lane: usize, finish: Finish) {
        let Some(mut run) = self.end(lane) else { return };
        let Kind::Write(writing) = &mut run.kind else { return };
        if !writing.filter.stopped() {
            let tail = writing.stream.finish();
            writing.decoded += tail.len();
            let rest = writing.filter.push(&tail) + &writing.filter.finish();
            writing.pending.iter_mut().for_each(|(end, _)| *end = 0); // nothing can take them back now
            writing.send(&run.job.events, run.job.index, rest);
        }
        let read = run.read.unwrap_or_else(Instant::now);
        let summary = Summary {
            finish,
            prompt_tokens: run.job.prompt.len(),
            cached_tokens: run.cached,
            completion_tokens: writing.tokens,
            queued: run.started - run.job.since,
            prefill: read - run.started,
            decode: read.elapsed(),
        };
        self.stats.done.fetch_add(1, Ordering::Relaxed);
        run.job.send(Event::Done(summary));
    }
}

impl Writing<'_> {
    /// Sends text that is certain with the tokens that end in it.
    fn send(&mut self, events: &EventSender, index: usize, text: String) {
        self.sent += text.len();
        let certain = self.pending.iter().take_while(|(end, _)| *end <= self.sent).count();
        let tokens: Vec<_> = self.pending.drain(..certain).map(|(_, token)| token).collect();
        if !text.is_empty() || !tokens.is_empty() {
            engine::send(events, index, Event::Text(text, tokens));
        }
    }
}
