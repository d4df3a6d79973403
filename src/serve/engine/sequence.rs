//! A sequence of the batch: a text that is being written, with draft tokens after it
//! (speculative decoding).
//!
//! In: rows of logits, one after the text's known tokens and one after each draft token. Out: drawn
//! tokens, and events. Tokens are drawn one by one as without them, so sampling, probabilities,
//! grammars, stop strings and limits stay what they are without.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use axum::http::StatusCode;
use mmx_converters::tokenizer::{DecodeStream, Tokenizer};
use mmx_ggml::run::{BATCH, Drafter, Finish, Model, Sampler, StopFilter, log_probabilities};

use super::job::{Event, EventSender, Job, Task, TokenLogprob, Write, send};
use super::stats::Stats;
use crate::error::ApiError;

/// The state of a text in progress, apart from the slot that computes it.
pub(super) struct Sequence<'t> {
    sampler: Sampler,
    drafter: Drafter,
    stream: DecodeStream<'t>,
    filter: StopFilter,
    /// The token that was drawn last, whose keys and values are not computed yet.
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

/// The state of a text after a token.
pub(super) enum Step {
    /// It goes on.
    Next,
    /// It has ended, though what was held back is still to be sent.
    Ended(Finish),
    /// Its next token cannot be drawn.
    Failed(ApiError),
}

/// Tokens drafted ahead of each of `texts` texts that are written together, at most `speculate`.
///
/// A draft token costs what another text's token costs, and is worth what a token of a step costs
/// without. Measured with minimind2-small q4_0 (one thread, AVX-512 VNNI), in steps of one token: 2
/// tokens in a step take 1.14, 3 or 4 take 1.8, 6 take 2.6, 8 take 3.3 and 16 take 6.4. So where
/// all come true, 3 draft tokens make one text 2.2 times as fast, each of two 1.4 times; one draft
/// token makes each of three 1.3 times as fast, and four texts fill the kernels by themselves: 1.1
/// times, less than draft tokens that fail would lose.
pub(super) fn most_drafts(speculate: usize, texts: usize) -> usize {
    speculate.min(match texts {
        0 | 1 => BATCH - 1,
        2 => 3,
        3 => 1,
        _ => 0,
    })
}

impl<'t> Sequence<'t> {
    /// Makes the state of a text to be written after `prompt`.
    ///
    /// # Errors
    /// 400 for settings that the sampler refuses.
    pub(super) fn new(
        write: &mut Write,
        prompt: &[u32],
        model: &Model,
        tokenizer: &'t Tokenizer,
        speculate: usize,
    ) -> Result<Self, ApiError> {
        let sampling = std::mem::take(&mut write.sampling);
        let vocab = model.config().vocab_size;
        let mut sampler = Sampler::new(sampling, vocab)?.restricted_to(tokenizer);
        prompt.iter().for_each(|&id| sampler.see(id));
        Ok(Self {
            sampler,
            drafter: Drafter::new(model, speculate),
            stream: tokenizer.decode_stream(true),
            filter: StopFilter::new(std::mem::take(&mut write.stop))?,
            next: None,
            tokens: 0,
            decoded: 0,
            sent: 0,
            pending: VecDeque::new(),
            prompt: Vec::new(),
        })
    }

    /// Tokens written so far.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Which of the stop strings ended the text, if one did.
    pub(super) fn stop(&self) -> Option<usize> {
        self.filter.found()
    }

    /// Draft tokens for what follows the next token: at most `most`, and no more than can be used.
    /// `held` are the tokens that the text's slot has computed, of at most `n_ctx`.
    pub(super) fn draft(
        &mut self,
        job: &Job,
        held: &mut Vec<u32>,
        n_ctx: usize,
        most: usize,
    ) -> Vec<u32> {
        let (Task::Write(write), Some(next)) = (&job.task, self.next) else {
            return Vec::new();
        };
        // besides the token of the step itself
        let room = [
            n_ctx.saturating_sub(held.len()),
            write.max_tokens.saturating_sub(self.tokens),
            job.room(),
        ];
        let most = room.into_iter().fold(most + 1, usize::min).saturating_sub(1);
        held.push(next);
        let drafts = self.drafter.draft(held, most);
        held.pop();
        drafts
    }

    /// Takes note of how many of the draft tokens came true.
    pub(super) fn learn(&mut self, drafts: usize, came_true: usize) {
        self.drafter.learn(drafts, came_true);
    }

    /// Takes the probabilities of `count` of the prompt's tokens, from position `at` on, where they
    /// are wanted: a row of logits for each.
    pub(super) fn take_prompt<'r>(
        &mut self,
        job: &Job,
        at: usize,
        count: usize,
        rows: &mut impl Iterator<Item = &'r [f32]>,
    ) {
        let Task::Write(write) = &job.task else { return };
        let Some(n) = write.logprobs.filter(|_| write.echo_logprobs) else { return };
        for (&id, row) in job.prompt.iter().skip(at).take(count).zip(rows) {
            let (logprob, top) = log_probabilities(row, id, n);
            self.prompt.push(TokenLogprob { id, logprob, top });
        }
    }

    /// Begins the text once its prompt is read: sends the prompt's probabilities where they are
    /// wanted.
    pub(super) fn begin(&mut self, job: &Job) -> Step {
        let Task::Write(write) = &job.task else { return Step::Next };
        if write.echo_logprobs {
            job.send(Event::Prompt(std::mem::take(&mut self.prompt)));
        }
        if write.max_tokens == 0 { Step::Ended(Finish::Length) } else { Step::Next }
    }

    /// Draws the next token from the logits after the last one and sends the text that is certain
    /// with it. `ends` are the ids that end a text; `full`: the slot has no room for another token.
    pub(super) fn advance(
        &mut self,
        job: &mut Job,
        logits: &[f32],
        ends: &[u32],
        full: bool,
        stats: &Stats,
    ) -> Step {
        let Job { task: Task::Write(write), events, index, .. } = job else { return Step::Next };
        let of_ours = |error: mmx_ggml::Error| {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        };
        let drawn = match &mut write.constraint {
            None => self.sampler.sample(logits).map_err(of_ours),
            // a schema that no text fits is the request's fault
            Some(constraint) => match constraint.mask() {
                Err(why) => Err(ApiError::new(StatusCode::BAD_REQUEST, why)),
                Ok(mask) => {
                    let bits = mask.as_ref().map(toktrie::SimpleVob::as_slice);
                    self.sampler.sample_among(logits, bits).map_err(of_ours)
                }
            },
        };
        let id = match drawn {
            Ok(id) => id,
            Err(error) => {
                return Step::Failed(error);
            }
        };
        if ends.contains(&id) && !write.ignore_end {
            if let Some(n) = write.logprobs.filter(|_| write.echo_logprobs) {
                let (logprob, top) = log_probabilities(logits, id, n);
                self.pending.push_back((0, TokenLogprob { id, logprob, top }));
            }
            return Step::Ended(Finish::Stop);
        }
        self.tokens += 1;
        self.sampler.accept(id);
        let text = self.stream.push(id);
        let mut complete = false;
        if let Some(constraint) = &mut write.constraint {
            complete = constraint.consume(id, &text).is_err() || constraint.is_complete();
        }
        self.decoded += text.len();
        if let Some(n) = write.logprobs {
            let (logprob, top) = log_probabilities(logits, id, n);
            // a token within a character is certain only with what completes it
            let end = self.decoded + usize::from(text.is_empty());
            self.pending.push_back((end, TokenLogprob { id, logprob, top }));
        }
        let certain = self.filter.push(&text);
        self.send(events, *index, certain);
        stats.completion_tokens.fetch_add(1, Ordering::Relaxed);
        let finish = if self.filter.stopped() || complete {
            Finish::Stop
        } else if self.tokens >= write.max_tokens {
            Finish::Length
        } else if full {
            Finish::Context
        } else {
            self.next = Some(id);
            return Step::Next;
        };
        Step::Ended(finish)
    }

    /// Sends the rest of a text that has ended: what was held back is text after all, unless a stop
    /// string was complete.
    pub(super) fn finish(&mut self, job: &Job) {
        if self.filter.stopped() {
            return;
        }
        let tail = self.stream.finish();
        self.decoded += tail.len();
        let rest = self.filter.push(&tail) + &self.filter.finish();
        self.pending.iter_mut().for_each(|(end, _)| *end = 0); // nothing can take them back now
        self.send(&job.events, job.index, rest);
    }

    /// Sends text that is certain with the tokens that end in it.
    fn send(&mut self, events: &EventSender, index: usize, text: String) {
        self.sent += text.len();
        let certain = self.pending.iter().take_while(|(end, _)| *end <= self.sent).count();
        let tokens: Vec<_> = self.pending.drain(..certain).map(|(_, token)| token).collect();
        if !text.is_empty() || !tokens.is_empty() {
            send(events, index, Event::Text(text, tokens));
        }
    }
}
