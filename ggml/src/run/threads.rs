//! The threads that compute a session's steps: one, or all there may be, as pace and cores say.

use std::time::Instant;

use super::pace::{Pace, are_free};
use crate::error::{Error, Result};
use crate::kernel::meeting::Meeting;
use crate::wrap::plan::Plan;
use crate::wrap::pool::{Pool, SPIN};

/// Seconds that a step which reads many tokens may wait for busy cores: it takes ten times as long.
const READING_PATIENCE: f64 = 5e-4;

/// One thread, and all of them.
#[derive(Debug)]
pub(super) struct Threads {
    one: Pool,
    /// Nothing where one is all there may be.
    many: Option<Many>,
}

/// More threads than one, and when to use them.
#[derive(Debug)]
struct Many {
    pool: Pool,
    meeting: Meeting,
    /// For steps of writing, by number of tokens.
    paces: Vec<Pace>,
    /// When all threads last ended a step.
    together: Option<Instant>,
}

impl Threads {
    /// `threads` threads for steps that write up to `most` tokens, or read.
    ///
    /// # Errors
    /// No threads, or more than [`MAX_THREADS`](crate::MAX_THREADS).
    pub(super) fn new(threads: usize, most: usize) -> Result<Self> {
        let many = match threads {
            0 => {
                let message = "expected at least one thread, found 0";
                return Err(Error::Request { message: message.to_owned() });
            }
            1 => None,
            _ => Some(Many {
                pool: Pool::new(threads)?,
                meeting: Meeting::new()?,
                paces: vec![Pace::new(); most],
                together: None,
            }),
        };
        Ok(Self { one: Pool::new(1)?, many })
    }

    /// Has steps write up to `most` tokens.
    pub(super) fn resize(&mut self, most: usize) {
        if let Some(many) = &mut self.many {
            many.paces.resize(most, Pace::new());
        }
    }

    /// How many compute at most.
    pub(super) fn count(&self) -> usize {
        self.many.as_ref().map_or(1, |many| many.pool.threads())
    }

    /// Computes a step; `written`: how many tokens it writes, if it does nothing else.
    ///
    /// # Errors
    /// What ggml says.
    pub(super) fn compute(&mut self, plan: &mut Plan, written: Option<usize>) -> Result<()> {
        let Some(Many { pool, meeting, paces, together }) = &mut self.many else {
            return plan.compute(&mut self.one);
        };
        // workers that computed a moment ago spin still
        let recent = together.is_some_and(|end| end.elapsed() < SPIN);
        let spinning = if recent { pool.threads() - 1 } else { 0 };
        let free = |patience| are_free(pool.threads(), spinning, patience);
        let mut pace = written.and_then(|tokens| paces.get_mut(tokens.checked_sub(1)?));
        let all = match &mut pace {
            Some(pace) => pace.all_threads(free),
            // a long step: it is worth a look at how busy the cores are
            None => free(READING_PATIENCE),
        };
        let start = Instant::now();
        if all {
            if !recent {
                meeting.hold(pool)?;
            }
            plan.compute(pool)?;
            *together = Some(Instant::now());
        } else {
            plan.compute(&mut self.one)?;
        }
        if let Some(pace) = pace {
            pace.record(start.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
