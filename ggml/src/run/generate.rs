//! A prompt to streamed text: prefill, decode, stop.
//!
//! Text goes out as soon as it is certain: whole characters only, and nothing that may be the
//! beginning of a stop string.

use std::time::{Duration, Instant};

use super::model::Model;
use super::sampler::{Sampler, Sampling};
use super::session::{Session, reusable};
use super::speculate::Ahead;
use crate::error::{Error, Result};

/// A request to generate text.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Ids at most.
    pub max_tokens: usize,
    /// Settings by which ids are chosen.
    pub sampling: Sampling,
    /// Texts that end the generation; they are not part of it.
    pub stop: Vec<String>,
    /// Go on after an end token, which then is part of the text.
    pub ignore_end: bool,
    /// Tokens that are drafted ahead at most, from what followed the same tokens earlier in the
    /// text, and computed in one step with the next one; 0: none. The text stays what it is
    /// without: every token is drawn from its own logits, and draft tokens beside it are forgotten.
    /// Without effect on models whose logits depend on what is computed beside them
    /// ([`Model::is_batch_invariant`](super::Model::is_batch_invariant)).
    pub speculate: usize,
}

/// The reason that a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end token or a stop string.
    Stop,
    /// As many tokens as were allowed.
    Length,
    /// The context is full.
    Context,
    /// The caller had enough.
    Cancelled,
}

/// The result of a generation.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The text, without stop string and control tokens.
    pub text: String,
    /// The ids, without the end token.
    pub ids: Vec<u32>,
    /// The reason that it ended.
    pub finish: Finish,
    /// Tokens of the prompt that were read now.
    pub prompt_tokens: usize,
    /// Time of reading them.
    pub prefill: Duration,
    /// Ids computed one by one: all but the first, which the prompt gave.
    pub decoded: usize,
    /// Time of computing them.
    pub decode: Duration,
    /// Number of these ids that were draft tokens.
    pub accepted: usize,
    /// The ids that the session holds now.
    pub held: Vec<u32>,
}

impl Generated {
    /// Tokens of the prompt per second.
    pub fn prefill_tokens_per_s(&self) -> f64 {
        rate(self.prompt_tokens, self.prefill)
    }

    /// Generated tokens per second, one by one.
    pub fn decode_tokens_per_s(&self) -> f64 {
        rate(self.decoded, self.decode)
    }
}

/// Tokens per second, 0 where nothing was measured.
fn rate(tokens: usize, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if tokens == 0 || seconds == 0.0 { 0.0 } else { tokens as f64 / seconds }
}

/// Reads `prompt` after what the session holds, then generates. `on_text` gets each piece of text
/// that is certain, never empty, and says whether to go on.
///
/// # Errors
/// An empty prompt, a prompt longer than the context, settings without sense, a model without a
/// tokenizer.
pub fn generate(
    session: &mut Session,
    prompt: &[u32],
    request: &Generation,
    on_text: impl FnMut(&str) -> bool,
) -> Result<Generated> {
    generate_after(session, &[], prompt, request, on_text)
}

/// [`generate`] in a session that already holds `seen`, which counts for the penalties.
///
/// # Errors
/// See [`generate`].
pub fn generate_after(
    session: &mut Session,
    seen: &[u32],
    prompt: &[u32],
    request: &Generation,
    mut on_text: impl FnMut(&str) -> bool,
) -> Result<Generated> {
    let on_text = |text: &str| text.is_empty() || on_text(text);
    generate_shifting(session, seen, prompt, request, on_text, |_| None)
}

/// [`generate_after`] where a full context is no end: `on_full` gets the ids written so far and
/// gives those to go on after (what is left of the prompt, and of the text written), fewer than the
/// context holds, or nothing to end there. `on_text` is asked whether to go on after every token,
/// and between pieces of a long prompt: with an empty text where none became certain.
///
/// # Errors
/// See [`generate`]; ids to go on after that fill the context.
pub fn generate_shifting(
    session: &mut Session,
    seen: &[u32],
    prompt: &[u32],
    request: &Generation,
    mut on_text: impl FnMut(&str) -> bool,
    mut on_full: impl FnMut(&[u32]) -> Option<Vec<u32>>,
) -> Result<Generated> {
    let mut writer = Writer::new(session.model(), seen.iter().chain(prompt).copied(), request)?;
    let start = Instant::now();
    let before = session.n_past();
    let mut interrupted = false;
    let mut next = match session.prefill_while(prompt, || on_text(""))? {
        Some(_) if request.max_tokens == 0 => None,
        Some(logits) => Some(writer.take(logits)?),
        None => {
            interrupted = true;
            None
        }
    };
    let prefill = start.elapsed();
    let start = Instant::now();
    let read = session.n_past() - before;
    let mut held = [seen, &prompt[..read]].concat();
    let mut ahead = Ahead::new(session, request.speculate);
    let mut text = String::new();
    let mut decoded = 0;
    let finish = loop {
        if interrupted {
            break Finish::Cancelled;
        }
        let Some(taken) = next.take() else { break Finish::Length };
        let Some((id, certain)) = taken else { break Finish::Stop };
        text.push_str(&certain);
        let wanted = on_text(&certain);
        match writer.finish() {
            Some(Finish::Length) | None if !wanted => break Finish::Cancelled,
            Some(finish) => break finish,
            None => {}
        }
        let logits = if ahead.n_past() < session.n_ctx() {
            held.push(id);
            ahead.decode(session, &held, id, request.max_tokens - writer.ids().len())?
        } else {
            let Some(mut context) = on_full(writer.ids()) else { break Finish::Context };
            let common = reusable(&held, &context);
            session.truncate(common);
            let logits = session.prefill_while(&context[common..], || on_text(""))?;
            let Some(logits) = logits else {
                context.truncate(session.n_past());
                ahead.restart(context.len());
                held = context;
                break Finish::Cancelled;
            };
            ahead.restart(context.len());
            held = context;
            logits
        };
        next = Some(writer.take(logits)?);
        decoded += 1;
    };
    session.truncate(ahead.n_past());
    let rest = writer.rest();
    if !rest.is_empty() {
        text.push_str(&rest);
        on_text(&rest);
    }
    Ok(Generated {
        text,
        ids: writer.into_ids(),
        finish,
        prompt_tokens: read,
        prefill,
        decoded,
        decode: start.elapsed(),
        accepted: ahead.accepted(),
        held,
    })
}

/// A text that is being written, apart from the session that computes it: logits in, ids and the
/// text that they make certain out.
#[derive(Debug)]
pub struct Writer {
    model: Model,
    sampler: Sampler,
    filter: StopFilter,
    /// Bytes of a character that is not whole yet.
    waiting: Vec<u8>,
    ends: Vec<u32>,
    ignore_end: bool,
    max_tokens: usize,
    ids: Vec<u32>,
}

impl Writer {
    /// Begins a text after the ids `seen`, which count for the penalties.
    ///
    /// # Errors
    /// Settings without sense, a model without a tokenizer.
    pub fn new(
        model: &Model,
        seen: impl IntoIterator<Item = u32>,
        request: &Generation,
    ) -> Result<Self> {
        let tokenizer = model.tokenizer()?;
        let sampler = Sampler::new(request.sampling.clone(), model.config().vocab_size)?;
        let mut sampler = sampler.restricted_to(tokenizer);
        seen.into_iter().for_each(|id| sampler.see(id));
        Ok(Self {
            sampler,
            filter: StopFilter::new(request.stop.clone())?,
            waiting: Vec::new(),
            ends: tokenizer.stop_ids(&model.config().eos_token_id),
            ignore_end: request.ignore_end,
            max_tokens: request.max_tokens,
            ids: Vec::new(),
            model: model.clone(),
        })
    }

    /// Draws the next id from its logits `[vocab]`; gives it with the text that is certain now,
    /// often none, or nothing where it ends the text.
    ///
    /// # Errors
    /// Logits of which none can be drawn from.
    pub fn take(&mut self, logits: &[f32]) -> Result<Option<(u32, String)>> {
        let id = self.sampler.sample(logits)?;
        if self.ends.contains(&id) && !self.ignore_end {
            return Ok(None);
        }
        self.ids.push(id);
        self.sampler.accept(id);
        let waiting = std::mem::take(&mut self.waiting);
        let mut stream = self.model.tokenizer()?.decode_stream_after(waiting, true);
        let certain = self.filter.push(&stream.push(id));
        self.waiting = stream.into_waiting();
        Ok(Some((id, certain)))
    }

    /// The reason to end after the ids drawn so far, if there is one: a stop string, or enough ids.
    pub fn finish(&self) -> Option<Finish> {
        if self.filter.stopped() {
            return Some(Finish::Stop);
        }
        (self.ids.len() >= self.max_tokens).then_some(Finish::Length)
    }

    /// Ends the text: what was held back for a stop string or an unfinished character, as it is.
    pub fn rest(&mut self) -> String {
        if self.filter.stopped() {
            return String::new();
        }
        let unfinished = String::from_utf8_lossy(&std::mem::take(&mut self.waiting)).into_owned();
        self.filter.push(&unfinished) + &self.filter.finish()
    }

    /// The ids drawn so far, without the end token.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The ids, once there is nothing more to draw.
    pub fn into_ids(self) -> Vec<u32> {
        self.ids
    }
}

/// A filter of text: lets it through until a stop string is complete, and holds back what may be
/// the beginning of one.
#[derive(Clone, Debug)]
pub struct StopFilter {
    stop: Vec<String>,
    held: String,
    /// The stop string that was complete.
    found: Option<usize>,
}

impl StopFilter {
    /// Makes a filter that stops at the first of `stop` to appear.
    ///
    /// # Errors
    /// An empty stop string.
    pub fn new(stop: Vec<String>) -> Result<Self> {
        if stop.iter().any(String::is_empty) {
            return Err(Error::Request {
                message: "stop: expected at least one character, found an empty text".to_owned(),
            });
        }
        Ok(Self { stop, held: String::new(), found: None })
    }

    /// Adds text; gives what is certain now. Nothing after a stop.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped() {
            return String::new();
        }
        self.held.push_str(text);
        let places = self.stop.iter().enumerate();
        let places = places.filter_map(|(index, s)| Some((self.held.find(s.as_str())?, index)));
        if let Some((at, index)) = places.min() {
            self.found = Some(index);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        // the longest end of the text that a stop string begins with
        let held = &self.held;
        let waiting = held
            .char_indices()
            .map(|(at, _)| at)
            .find(|&at| self.stop.iter().any(|s| s.starts_with(&held[at..])))
            .unwrap_or(held.len());
        let rest = self.held.split_off(waiting);
        std::mem::replace(&mut self.held, rest)
    }

    /// True once a stop string was complete.
    pub fn stopped(&self) -> bool {
        self.found.is_some()
    }

    /// The index of the stop string that was complete.
    pub fn found(&self) -> Option<usize> {
        self.found
    }

    /// Ends a text without a stop: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After each piece exactly the expected text has been added.
    #[test]
    fn stop_split() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/cases/files/stop-split/expect.json"
        );
        let cases: serde_json::Value =
            serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
        let strings = |value: &serde_json::Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
        };
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 5);
        for case in cases {
            let mut filter = StopFilter::new(strings(&case["stop"])).unwrap();
            let mut text = String::new();
            for (piece, delta) in strings(&case["pieces"]).iter().zip(strings(&case["deltas"])) {
                let certain = filter.push(piece);
                assert_eq!(certain, delta, "{case}");
                text.push_str(&certain);
            }
            let ended = if filter.stopped() { "stop" } else { "end" };
            assert_eq!(ended, case["ended_by"].as_str().unwrap(), "{case}");
            let rest = if filter.stopped() { String::new() } else { filter.finish() };
            assert_eq!(rest, case["flushed_at_end"].as_str().unwrap(), "{case}");
            assert_eq!(text + &rest, case["text"].as_str().unwrap(), "{case}");
        }
    }

    #[test]
    fn what_was_held_back_comes_at_the_end() {
        let mut filter = StopFilter::new(vec!["<|im_end|>".into(), "User:".into()]).unwrap();
        assert_eq!(filter.push("a <|im"), "a ");
        assert_eq!(filter.push("_x Us"), "<|im_x ");
        assert_eq!(filter.finish(), "Us");
        assert!(!filter.stopped());
    }

    #[test]
    fn without_stop_strings_everything_passes() {
        let mut filter = StopFilter::new(Vec::new()).unwrap();
        assert_eq!(filter.push("好的"), "好的");
        assert!(StopFilter::new(vec![String::new()]).is_err());
    }
}
