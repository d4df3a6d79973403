//! Prompts, an engine and a scorer to rollouts: a group of rows for each prompt, many rows at a
//! time, with the weights that the policy has now.

use std::cell::RefCell;
use std::ops::Range;
use std::time::{Duration, Instant};

use mmx_converters::progress::Listener;
use mmx_converters::random::Random;
use mmx_converters::tokenizer::Tokenizer;
use mmx_rollout::{
    Conversation, Draw, Engine, Limits, Prompts, Rollout, Sampling, Scorer, Toolbox, Weight,
    Written,
};

use super::advantage;
use crate::error::{Error, Result, TorchError};
use crate::kernel;
use crate::model::Model;
use crate::ranks::Ranks;

/// What rollouts are sampled with.
pub struct Sampler<'a> {
    /// The policy, whose weights the engine is given.
    pub model: &'a Model,
    /// The tokenizer of prompts and texts.
    pub tokenizer: &'a Tokenizer,
    /// The tasks.
    pub prompts: &'a Prompts,
    /// What samples.
    pub engine: &'a RefCell<Box<dyn Engine>>,
    /// What rewards.
    pub scorer: &'a dyn Scorer,
    /// What answers calls.
    pub tools: Option<&'a dyn Toolbox>,
    /// The distribution.
    pub sampling: Sampling,
    /// The limits of a row.
    pub limits: Limits,
    /// Prompts of a batch, of all processes.
    pub prompts_each: usize,
    /// Rows of a prompt.
    pub group_size: usize,
    /// Every row draws for itself whether it thinks.
    pub rows_differ: bool,
    /// Times that other prompts take the place of those whose answers have equal rewards.
    pub resample: usize,
    /// New ids before the limit over which the reward falls by 1; 0 for none.
    pub overlong_buffer: usize,
    /// The seed of all rows.
    pub seed: u64,
    /// The processes of the run: each answers a part of the prompts, and has the answers of all.
    pub ranks: &'a Ranks,
    /// Numbers of batches of which an answer is shown.
    pub shown: Vec<u64>,
    /// Hears it.
    pub listener: &'a dyn Listener,
}

/// A batch of rollouts of all processes and the time it took.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// The rows, group after group.
    pub rollouts: Vec<Rollout>,
    /// The time that the weights took to the engine.
    pub handing_over: Duration,
    /// The time that sampling took, until all processes were done.
    pub sampling: Duration,
    /// Ids that were sampled, those of rows that were dropped included.
    pub sampled: usize,
    /// Groups that were sampled.
    pub drawn: usize,
}

/// Numbers of draws from here on are of prompts that take the place of others: more than there are
/// draws in any run, and so few that JSON holds them.
const FURTHER: u64 = 1 << 44;

impl Sampler<'_> {
    /// Batches of an epoch.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.prompts.len().div_ceil(self.prompts_each)
    }

    /// Samples and rewards the batch of a number: with the same weights the same one, whenever it
    /// is asked for, by however many processes, all of which have to call it.
    ///
    /// # Errors
    /// Those of the engine, the tools and the scorer; another process that fails.
    pub fn round(&mut self, number: u64) -> Result<Round> {
        let begun = Instant::now();
        self.hand_over()?;
        let mut round = Round { handing_over: begun.elapsed(), ..Round::default() };
        let begun = Instant::now();
        let each = self.prompts_each as u64;
        let own = self.own(self.prompts_each);
        let cursors = own.clone().map(|place| number * each + place as u64).collect();
        let mut groups = self.groups(cursors, &mut round)?;
        for attempt in 0..self.resample as u64 {
            let silent: Vec<usize> = (0..groups.len()).filter(|&i| is_silent(&groups[i])).collect();
            if silent.is_empty() {
                break;
            }
            // draws that depend on the batch's number and the place alone, in an order of their own
            let tasks = (self.prompts.len() as u64).max(1);
            let first = FURTHER.next_multiple_of(tasks);
            let first = first + (number * self.resample as u64 + attempt) * each;
            let cursors = silent.iter().map(|&i| first + (own.start + i) as u64).collect();
            let others = self.groups(cursors, &mut round)?;
            for (place, other) in silent.into_iter().zip(others) {
                groups[place] = other;
            }
        }
        groups.iter_mut().flatten().for_each(|rollout| rollout.step = number);
        round.rollouts = self.of_all(groups.concat())?;
        round.sampling = begun.elapsed();
        let counts = self.ranks.sum_numbers(&[round.sampled as f64, round.drawn as f64])?;
        if let [sampled, drawn] = counts[..] {
            (round.sampled, round.drawn) = (sampled as usize, drawn as usize);
        }
        if let (Some(rollout), true) = (round.rollouts.first(), self.shown.contains(&number)) {
            self.listener.say(&self.in_words(rollout));
        }
        Ok(round)
    }

    /// This process's part of so many prompts.
    fn own(&self, prompts: usize) -> Range<usize> {
        self.ranks.part().map_or(0..prompts, |part| part.of(prompts))
    }

    /// The rollouts of all processes, in the order of prompts, from this one's.
    fn of_all(&self, own: Vec<Rollout>) -> Result<Vec<Rollout>> {
        if self.ranks.alone() {
            return Ok(own);
        }
        let lines = own.iter().map(|rollout| rollout.to_json() + "\n").collect();
        let all = self.ranks.texts(lines, "the sampling of rollouts")?;
        all.lines().map(Rollout::from_json).collect()
    }

    /// Answers to the prompts of some draws, with their rewards.
    fn groups(&mut self, cursors: Vec<u64>, round: &mut Round) -> Result<Vec<Vec<Rollout>>> {
        let mut draws = Vec::new();
        for cursor in cursors {
            let first = self.prompts.draw(self.tokenizer, cursor)?;
            for row in 0..self.group_size as u64 {
                let draw = match row > 0 && self.rows_differ {
                    true => self.prompts.draw_row(self.tokenizer, cursor, row)?,
                    false => first.clone(),
                };
                draws.push((cursor, draw));
            }
        }
        let mut rows = self.sample(&draws)?;
        let mut groups = Vec::new();
        for (group, draws) in rows.chunks_mut(self.group_size).zip(draws.chunks(self.group_size)) {
            let written: Vec<_> = group.iter().map(|(_, written)| written.clone()).collect();
            let Some((_, draw)) = draws.first() else { continue };
            self.reward(draw, group, &written)?;
            groups.push(group.iter_mut().map(|(rollout, _)| std::mem::take(rollout)).collect());
        }
        let ids = groups.iter().flatten().flat_map(|of: &Rollout| &of.sampled);
        round.sampled += ids.filter(|&&by| by).count();
        round.drawn += groups.len();
        Ok(groups)
    }

    /// Rewards a group.
    fn reward(
        &self,
        draw: &Draw,
        group: &mut [(Rollout, Written)],
        written: &[Written],
    ) -> Result<()> {
        let scores = self.scorer.score(draw, written)?;
        if scores.len() != group.len() {
            return Err(Error::failed(format!(
                "rewards of a group: expected {}, found {}",
                group.len(),
                scores.len()
            )));
        }
        for ((rollout, written), score) in group.iter_mut().zip(scores) {
            if !score.reward.is_finite() {
                return Err(Error::failed(format!(
                    "reward of sample {}: expected a number, found {}",
                    rollout.sample, score.reward
                )));
            }
            (rollout.reward, rollout.parts) = (score.reward, score.parts);
            if self.overlong_buffer > 0 {
                let penalty = overlong(written.ids, self.limits.max_new, self.overlong_buffer);
                rollout.reward += penalty;
                rollout.parts.push(("overlong".to_owned(), penalty));
            }
        }
        Ok(())
    }

    /// Answers to the first prompts, one each, greedily, with the weights of now.
    ///
    /// # Errors
    /// See [`Sampler::round`].
    pub fn answers(&mut self, prompts: usize) -> Result<Vec<Rollout>> {
        self.hand_over()?;
        let cursors = self.own(prompts).map(|place| place as u64).collect();
        let own = self.groups(cursors, &mut Round::default())?;
        self.of_all(own.concat())
    }

    /// A prompt's end, its answer's beginning and the reward, in one line.
    fn in_words(&self, rollout: &Rollout) -> String {
        /// Characters of each.
        const SHOWN: usize = 160;
        let prompt = self.tokenizer.decode(&rollout.prompt, true);
        let skip = prompt.chars().count().saturating_sub(SHOWN);
        let prompt: String = prompt.chars().skip(skip).collect();
        let answer: String =
            self.tokenizer.decode(&rollout.ids, true).chars().take(SHOWN).collect();
        format!("batch {}: {prompt:?} -> {answer:?}, reward {:.3}", rollout.step, rollout.reward)
    }

    /// Gives the engine the weights of now.
    fn hand_over(&mut self) -> Result<()> {
        let merged = self.model.merged()?;
        let mut weights = Vec::with_capacity(merged.len());
        for (name, tensor) in &merged {
            let values =
                kernel::floats(tensor).map_err(|e| Error::torch(format!("reading {name}"), &e))?;
            let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
            weights.push((*name, shape, values));
        }
        let mut weights =
            weights.iter().map(|&(name, ref shape, values)| Weight { name, shape, values });
        self.engine.borrow_mut().take(&mut weights)
    }

    /// One row for each draw, with its texts.
    fn sample(&mut self, draws: &[(u64, Draw)]) -> Result<Vec<(Rollout, Written)>> {
        /// Keeps the seeds of rows apart from those of orders and prompts.
        const STREAM: u64 = 0x726f_6c6c_6f75_7421;
        let mut rows: Vec<Conversation<'_>> = draws
            .iter()
            .enumerate()
            .map(|(i, (cursor, draw))| {
                let row = (i % self.group_size) as u64;
                let seed = Random::new(self.seed ^ STREAM, *cursor).next_u64();
                let seed = Random::new(seed, row).next_u64();
                let (tokenizer, limits) = (self.tokenizer, &self.limits);
                Conversation::new(tokenizer, draw, limits, self.tools, *cursor, seed)
            })
            .collect();
        let (mut requests, mut places) = (Vec::new(), Vec::new());
        for (place, row) in rows.iter().enumerate() {
            if let Some(request) = row.request() {
                requests.push(request);
                places.push(place);
            }
        }
        let mut next = |i: usize, completion| match places
            .get(i)
            .and_then(|&place| rows.get_mut(place))
        {
            Some(row) => row.push(completion),
            None => Err(Error::failed(format!("engine: expected the index of a row, found {i}"))),
        };
        self.engine.borrow_mut().sample(requests, &self.sampling, &mut next)?;
        Ok(rows.into_iter().map(Conversation::finish).collect())
    }
}

/// Whether all answers of a group have equal rewards, so that nothing is learned from them.
fn is_silent(group: &[Rollout]) -> bool {
    let rewards: Vec<f64> = group.iter().map(|rollout| rollout.reward).collect();
    advantage::without_signal(&rewards, &vec![0; rewards.len()]) == 1.0
}

/// What an answer of `ids` new ids loses of its reward: nothing up to `buffer` ids before the limit,
/// then evenly more, 1 at the limit. Source: DAPO, Yu et al. 2025, eq. 13.
fn overlong(ids: usize, limit: usize, buffer: usize) -> f64 {
    let over = (ids + buffer).saturating_sub(limit);
    0.0 - (over as f64 / buffer as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_answers_lose_evenly_over_the_last_ids() {
        let lost: Vec<f64> = [0, 80, 85, 90, 100, 120].map(|ids| overlong(ids, 100, 20)).into();
        assert_eq!(lost, [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]);
        assert_eq!(overlong(100, 100, 100), -1.0);
    }

    #[test]
    fn a_group_is_silent_whose_rewards_are_equal() {
        let group = |rewards: &[f64]| -> Vec<Rollout> {
            rewards.iter().map(|&reward| Rollout { reward, ..Rollout::default() }).collect()
        };
        assert!(is_silent(&group(&[0.5, 0.5])) && is_silent(&group(&[1.0])));
        assert!(!is_silent(&group(&[0.5, 0.5, 0.25])));
    }
}
