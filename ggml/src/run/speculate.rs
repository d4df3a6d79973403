//! Guessing ahead: small models repeat themselves and their prompt, so what followed the last tokens earlier in the
//! text often follows again. One step over the next token and its guesses costs little more than one token's.
//!
//! In: the next token. Out: its logits, which guesses that came true have computed already. Logits are those of
//! single steps to the last bit, so whoever draws from them writes the same text.

use super::session::Session;
use super::slots::BATCH;
use crate::error::Result;

/// Tokens that must have occurred before, at most and at least.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;
/// Tokens computed singly after a guess that failed at once; twice as many each time, up to the most.
const FIRST_PAUSE: usize = 2;
const LONGEST_PAUSE: usize = 32;

/// Guesses of one text.
pub(super) struct Ahead {
    /// Guesses in a step; 0: none are made.
    width: usize,
    /// Tokens of the last step after its first, and how many came true.
    guesses: Vec<u32>,
    used: usize,
    /// Tokens of the text that are in the session; guesses that did not come true may lie behind them.
    past: usize,
    pause: usize,
    next_pause: usize,
    guessed: usize,
}

impl Ahead {
    /// For the text that the session holds.
    pub(super) fn new(session: &Session, width: usize) -> Self {
        let width = if session.model().is_batch_invariant() { width } else { 0 };
        Self {
            width: width.min(BATCH - 1),
            guesses: Vec::new(),
            used: 0,
            past: session.n_past(),
            pause: 0,
            next_pause: FIRST_PAUSE,
            guessed: 0,
        }
    }

    /// Reads the id `id` that ends the text `held`; gives the logits of what follows, `[vocab]`. At most `wanted`
    /// ids will be written.
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
        if self.guesses.get(self.used) == Some(&id) {
            self.used += 1;
            self.guessed += 1;
            return Ok(session.row(self.used));
        }
        self.judge();
        session.truncate(self.past - 1);
        self.guesses.clear();
        self.used = 0;
        let room = session.n_ctx() - session.n_past();
        if self.pause > 0 {
            self.pause -= 1;
        } else if self.width > 0 && room > self.width && wanted > self.width {
            self.guesses = follow(held, self.width);
        }
        if self.guesses.is_empty() {
            return session.decode(id);
        }
        let step: Vec<u32> = std::iter::once(id).chain(self.guesses.iter().copied()).collect();
        session.rows(&step)?;
        Ok(session.row(0))
    }

    /// The session was made to hold `past` tokens of another text.
    pub(super) fn restart(&mut self, past: usize) {
        self.guesses.clear();
        (self.used, self.past) = (0, past);
    }

    /// Tokens of the text that are in the session.
    pub(super) fn n_past(&self) -> usize {
        self.past
    }

    /// Learns from the last step's guesses.
    fn judge(&mut self) {
        if self.guesses.is_empty() {
            return;
        }
        // a step with guesses takes about as long as two without
        if self.used >= 2 {
            self.next_pause = FIRST_PAUSE;
        } else {
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(LONGEST_PAUSE);
        }
    }

    /// Tokens whose guesses came true.
    pub(super) fn guessed(&self) -> usize {
        self.guessed
    }
}

/// `width` tokens that followed the last tokens where these occurred last before, the longest such run; what
/// reaches the end goes on as it repeats. Nothing where the last two are new.
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
    fn what_followed_before_is_guessed() {
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
}
