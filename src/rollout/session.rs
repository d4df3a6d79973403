//! Conversations of a policy with its tools: completions in, the next request or a rollout out.
//!
//! Sampled ids are kept as they are. What a template puts after a turn (its closing id, the results
//! of tools, the next header) is rendered by itself and follows them; the model's text is never
//! tokenized again. A chat of one turn is the simplest case: its first completion ends it.

use mmx_converters::chat::message;
use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::{Error, Result};
use serde_json::Value;

use crate::engine::{Completion, Request};
use crate::prompts::Draw;
use crate::rollout::{Finish, Rollout};
use crate::tools::{Toolbox, calls};
use crate::written::{Called, Written};

/// Stands for the assistant's text where a template is asked what it puts after it.
const MARK: &str = "mmx-turn-4f1c9a2e";

/// The limits of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// New ids of a turn at most, its stop id included.
    pub max_new: usize,
    /// Turns of the policy at most. Reference: 3.
    pub max_turns: usize,
    /// Characters (code points) of a tool's result that the policy reads. Reference: 2,048.
    pub max_result: usize,
    /// Ids in all at most, the prompt included: the model's context.
    pub context: usize,
    /// Whether the stop id of a turn counts as sampled, so that it is learned. The reference does
    /// so in chats of one turn, and never with tools.
    pub learn_stop: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_new: 1024,
            max_turns: 3,
            max_result: 2048,
            context: usize::MAX,
            learn_stop: true,
        }
    }
}

/// One row: a prompt and what has followed it so far.
pub struct Conversation<'a> {
    tokenizer: &'a Tokenizer,
    draw: &'a Draw,
    limits: &'a Limits,
    tools: Option<&'a dyn Toolbox>,
    seed: u64,
    messages: Vec<Value>,
    rollout: Rollout,
    written: Written,
    ended: bool,
}

impl<'a> Conversation<'a> {
    /// Begins a row of group `group`. `tools`: what runs calls; without it calls are text, and the
    /// first completion is the last. `seed`: of the row's own random stream.
    #[must_use]
    pub fn new(
        tokenizer: &'a Tokenizer,
        draw: &'a Draw,
        limits: &'a Limits,
        tools: Option<&'a dyn Toolbox>,
        group: u64,
        seed: u64,
    ) -> Self {
        let rollout = Rollout {
            sample: draw.sample,
            group,
            prompt: draw.prompt.clone(),
            ..Rollout::default()
        };
        let written = Written { thinking: draw.thinking, ..Written::default() };
        let messages = draw.messages.clone();
        Self { tokenizer, draw, limits, tools, seed, messages, rollout, written, ended: false }
    }

    /// The request that samples the next turn; nothing once the row is done or the context full.
    #[must_use]
    pub fn request(&self) -> Option<Request> {
        let read = self.rollout.prompt.len() + self.rollout.ids.len();
        let max_new = self.limits.max_new.min(self.limits.context.saturating_sub(read));
        if self.ended || max_new == 0 {
            return None;
        }
        let prompt = [self.rollout.prompt.as_slice(), &self.rollout.ids].concat();
        // a stream of its own for each turn, whatever was drawn in the one before
        let turn = self.written.turns.len() as u64;
        let seed = mmx_converters::random::Random::new(self.seed, turn).next_u64();
        Some(Request { prompt, max_new, seed })
    }

    /// Takes the completion of the last request; gives the request of the next turn, or nothing
    /// where the row is done.
    ///
    /// # Errors
    /// A completion whose lists differ in length, a template that refuses or hides a turn, a tool
    /// that cannot be run at all. A call that makes no sense is none: the policy reads why.
    pub fn push(&mut self, completion: Completion) -> Result<Option<Request>> {
        let Completion { mut ids, mut logps, finish } = completion;
        if ids.len() != logps.len() {
            return Err(Error::failed(format!(
                "completion: expected {} log-probabilities, one for each id, found {}",
                ids.len(),
                logps.len()
            )));
        }
        let stop = match finish {
            Finish::Stop => ids.pop().zip(logps.pop()),
            Finish::Length | Finish::Unfinished => None,
        };
        let text = self.tokenizer.decode(&ids, true);
        let turn = self.written.turns.len();
        self.append(&ids, &logps, true);
        self.written.turns.push(text.clone());
        self.rollout.finish = finish;
        let results = match (self.tools, &self.draw.options.tools) {
            (Some(tools), Some(offered)) => self.run(tools, offered, &text, turn)?,
            _ => Vec::new(),
        };
        if results.is_empty() {
            if let Some((id, logp)) = stop.filter(|_| self.limits.learn_stop) {
                self.append(&[id], &[logp], true);
            }
            self.ended = true;
            return Ok(None);
        }
        let last = turn + 1 >= self.limits.max_turns;
        self.add_turn(&text, results, stop, !last)?;
        let next = if last { None } else { self.request() };
        if next.is_none() {
            self.rollout.finish = Finish::Unfinished;
            self.ended = true;
        }
        Ok(next)
    }

    /// The texts so far.
    #[must_use]
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// The row, and its texts. Before its end it is what there is so far.
    #[must_use]
    pub fn finish(mut self) -> (Rollout, Written) {
        self.written.finish = self.rollout.finish;
        self.written.ids = self.rollout.sampled.iter().filter(|s| **s).count();
        (self.rollout, self.written)
    }

    fn append(&mut self, ids: &[u32], logps: &[f32], sampled: bool) {
        self.rollout.ids.extend_from_slice(ids);
        self.rollout.logps.extend_from_slice(logps);
        self.rollout.sampled.extend(std::iter::repeat_n(sampled, ids.len()));
    }

    /// Runs the calls of a text; gives what the policy reads of each.
    fn run(
        &mut self,
        tools: &dyn Toolbox,
        offered: &Value,
        text: &str,
        turn: usize,
    ) -> Result<Vec<String>> {
        let mut results = Vec::new();
        for call in calls(text) {
            let answer = tools.run(&call, offered)?;
            let result: String = answer.result.chars().take(self.limits.max_result).collect();
            let is_valid = answer.is_valid;
            self.written.calls.push(Called { turn, call, is_valid, result: result.clone() });
            results.push(result);
        }
        Ok(results)
    }

    /// Puts after the sampled ids what the template writes after the assistant's text.
    fn add_turn(
        &mut self,
        text: &str,
        results: Vec<String>,
        stop: Option<(u32, f32)>,
        go_on: bool,
    ) -> Result<()> {
        let at = self.messages.len();
        self.messages.push(message("assistant", MARK));
        self.messages.extend(results.iter().map(|result| message("tool", result)));
        let mut options = self.draw.options.clone();
        options.add_generation_prompt = go_on;
        let added = self.tokenizer.encode_chat_after(MARK, &self.messages, &options)?;
        let added = added.ok_or_else(|| Error::Template {
            message: "expected the text of an assistant's turn in the rendered chat, found none"
                .to_owned(),
        })?;
        self.messages[at] = message("assistant", text);
        let mut ids = added.ids.as_slice();
        if let (Some((stop, logp)), [first, rest @ ..]) = (stop, ids)
            && self.limits.learn_stop
            && *first == stop
        {
            self.append(&[stop], &[logp], true);
            ids = rest;
        }
        self.append(ids, &vec![0.0; ids.len()], false);
        Ok(())
    }
}
