//! Speculative decoding without a draft model: small models repeat themselves and their prompt, so
//! what followed the last tokens earlier in the text often follows again. One step over the next
//! token and its draft tokens costs less than a step for each.
//!
//! In: a text's ids, and how many draft tokens came true. Out: draft tokens, computed in the step
//! of the text's next token. Logits are those of single steps to the last bit, so whoever draws
//! from them, and forgets what lies behind the first draft token that was not drawn, writes the
//! same text.

use super::model::Model;
use super::session::Session;
use super::slots::BATCH;
use crate::error::Result;

/// Tokens that must have occurred before, at most and at least.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;
/// Tokens computed singly after a draft token that failed at once; twice as many each time, up to
/// the most.
const FIRST_PAUSE: usize = 2;
const LONGEST_PAUSE: usize = 32;
/// Draft tokens of a step that must come true, where there are so many: a step with three draft
/// tokens takes about as long as two without.
const ENOUGH: usize = 2;

/// A source of draft tokens for one text: fewer where they are not drawn.
#[derive(Clone, Debug)]
pub struct Drafter {
    /// Draft tokens in a step; 0: none are made.
    width: usize,
    /// Steps until the next draft token, and after the next one that fails.
    pause: usize,
    next_pause: usize,
}

impl Drafter {
    /// Makes a drafter for a text that `model` writes: at most `width` draft tokens in a step, none
    /// where a token's logits depend on what is computed beside it ([`Model::is_batch_invariant`]).
    pub fn new(model: &Model, width: usize) -> Self {
        let width = if model.is_batch_invariant() { width.min(BATCH - 1) } else { 0 };
        Self { width, pause: 0, next_pause: FIRST_PAUSE }
    }

    /// Draft tokens that may follow `ids`, the whole text: at most `most` tokens, often none. To be
    /// asked before each step.
    pub fn draft(&mut self, ids: &[u32], most: usize) -> Vec<u32> {
        let width = self.width.min(most);
        if width == 0 {
            return Vec::new();
        }
        if self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        follow(ids, width)
    }

    /// Learns that of `drafts` that were computed the first `came_true` were drawn.
    pub fn learn(&mut self, drafts: usize, came_true: usize) {
        if drafts == 0 {
            return;
        }
        if came_true >= ENOUGH.min(drafts) {
            self.next_pause = FIRST_PAUSE;
        } else {
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(LONGEST_PAUSE);
        }
    }
}

/// A session whose text is decoded speculatively.
pub(super) struct Ahead {
    drafter: Drafter,
    /// Tokens of the last step after its first, and how many came true.
    drafts: Vec<u32>,
    used: usize,
    /// Tokens of the text that are in the session; draft tokens that did not come true may lie
    /// behind them.
    past: usize,
    accepted: usize,
}

impl Ahead {
    /// Begins with the text that the session holds.
    pub(super) fn new(session: &Session, width: usize) -> Self {
        Self {
            drafter: Drafter::new(session.model(), width),
            drafts: Vec::new(),
            used: 0,
            past: session.n_past(),
            accepted: 0,
        }
    }

    /// Reads the id `id` that ends the text `held`; gives the logits of what follows, `[vocab]`. At
    /// most `wanted` ids will be written.
    ///
    /// # Errors
    /// See [`Session::decode`].
    pub(super) fn decode<'s>(
        &mut self,
        session: &'s mut Session,
        held: &[u32],
        id: u32,
        wanted: usize,
    ) -> Result<&'s [f32]> {
        self.past += 1;
        if self.drafts.get(self.used) == Some(&id) {
            self.used += 1;
            self.accepted += 1;
            return Ok(session.row(self.used));
        }
        self.drafter.learn(self.drafts.len(), self.used);
        session.truncate(self.past - 1);
        self.used = 0;
        let room = session.n_ctx() - session.n_past();
        self.drafts = self.drafter.draft(held, room.min(wanted).saturating_sub(1));
        if self.drafts.is_empty() {
            return session.decode(id);
        }
        let step: Vec<u32> = std::iter::once(id).chain(self.drafts.iter().copied()).collect();
        session.rows(&step)?;
        Ok(session.row(0))
    }

    /// The session was made to hold `past` tokens of another text.
    pub(super) fn restart(&mut self, past: usize) {
        self.drafts.clear();
        (self.used, self.past) = (0, past);
    }

    /// Tokens of the text that are in the session.
    pub(super) fn n_past(&self) -> usize {
        self.past
    }

    /// Draft tokens that came true.
    pub(super) fn accepted(&self) -> usize {
        self.accepted
    }
}

/// `width` tokens that followed the last tokens where these occurred last before, the longest such
/// run; what reaches the end goes on as it repeats. Nothing where the last two are new.
fn follow(ids: &[u32], width: usize) -> Vec<u32> {
    let mut best: Option<(usize, usize)> = None;
    for end in (SHORTEST..ids.len()).rev() {
        let length = (0..LONGEST.min(end))
            .take_while(|&i| ids[end - 1 - i] == ids[ids.len() - 1 - i])
            .count();
        if length >= SHORTEST && best.is_none_or(|(longest, _)| length > longest) {
            best = Some((length, end));
            if length == LONGEST {
                break;
            }
        }
    }
    let Some((_, end)) = best else { return Vec::new() };
    let period = ids.len() - end;
    (0..width).map(|i| ids[end + i % period]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_drafted() {
        assert_eq!(follow(&[1, 2, 3, 9, 8, 1, 2], 3), [3, 9, 8]);
        assert_eq!(
            follow(&[1, 2, 3, 1, 2], 5),
            [3, 1, 2, 3, 1],
            "a run that reaches the end repeats"
        );
        assert_eq!(follow(&[5, 5, 5], 2), [5, 5]);
        assert_eq!(follow(&[1, 2, 3, 4, 9, 2, 3, 7, 0, 1, 2, 3], 1), [4], "the longer run wins");
        assert_eq!(follow(&[2, 3, 4, 9, 2, 3, 7, 0, 2, 3], 1), [7], "the later of equals wins");
        assert!(follow(&[1, 2, 3, 2], 4).is_empty());
        assert!(follow(&[], 4).is_empty());
        assert!(follow(&[1, 1], 4).is_empty());
    }

    #[test]
    fn a_text_whose_drafts_fail_is_drafted_less_and_less() {
        let text = [1, 2, 3, 1, 2];
        let new = || Drafter { width: 3, pause: 0, next_pause: FIRST_PAUSE };
        let steps_with_drafts = |drafter: &mut Drafter, came_true: usize, steps: usize| {
            (0..steps)
                .filter(|_| {
                    let drafts = drafter.draft(&text, 8).len();
                    drafter.learn(drafts, came_true.min(drafts));
                    drafts > 0
                })
                .count()
        };
        assert_eq!(steps_with_drafts(&mut new(), 2, 100), 100);
        assert_eq!(steps_with_drafts(&mut new(), 3, 100), 100);
        let mut failing = new();
        assert_eq!(steps_with_drafts(&mut failing, 0, 100), 6, "after 0, 3, 8, 17, 34, 67");
        assert_eq!(steps_with_drafts(&mut failing, 1, 330), 10);
        // a draft that is accepted after all ends the pause
        while failing.draft(&text, 8).is_empty() {}
        failing.learn(3, 3);
        assert_eq!(steps_with_drafts(&mut failing, 0, 4), 2);
        // one draft token is worth a step too; without room for any, none is made
        assert_eq!(steps_with_drafts(&mut Drafter { width: 1, ..new() }, 1, 10), 10);
        assert!(new().draft(&text, 0).is_empty());
        assert_eq!(new().draft(&text, 2), [3, 1]);
    }
}
