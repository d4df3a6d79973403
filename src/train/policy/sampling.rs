//! Prompts, an engine and a scorer to rollouts: a group of rows for each prompt, many rows at a
//! time, with the weights that the policy has now.

use std::time::{Duration, Instant};

use mmx_converters::progress::Listener;
use mmx_converters::random::Random;
use mmx_converters::tokenizer::Tokenizer;
use mmx_rollout::{
    Conversation, Draw, Engine, Limits, Prompts, Rollout, Sampling, Scorer, Toolbox, Weight,
};

use crate::error::{Error, Result, TorchError};
use crate::kernel;
use crate::model::Model;

/// What rollouts are sampled with.
pub struct Sampler<'a> {
    /// The policy, whose weights the engine is given.
    pub model: &'a Model,
    /// The tokenizer of prompts and texts.
    pub tokenizer: &'a Tokenizer,
    /// The tasks.
    pub prompts: &'a Prompts,
    /// What samples.
    pub engine: &'a mut dyn Engine,
    /// What rewards.
    pub scorer: &'a dyn Scorer,
    /// What answers calls.
    pub tools: Option<&'a dyn Toolbox>,
    /// The distribution.
    pub sampling: Sampling,
    /// The limits of a row.
    pub limits: Limits,
    /// Prompts of a batch.
    pub prompts_each: usize,
    /// Rows of a prompt.
    pub group_size: usize,
    /// Every row draws for itself whether it thinks.
    pub rows_differ: bool,
    /// The seed of all rows.
    pub seed: u64,
    /// Numbers of batches of which an answer is shown.
    pub shown: Vec<u64>,
    /// Hears it.
    pub listener: &'a dyn Listener,
}

/// A batch of rollouts and the time it took.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// The rows, group after group.
    pub rollouts: Vec<Rollout>,
    /// The time that the weights took to the engine.
    pub handing_over: Duration,
    /// The time that sampling took.
    pub sampling: Duration,
    /// Ids that were sampled.
    pub sampled: usize,
}

impl Sampler<'_> {
    /// Batches of an epoch.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.prompts.len().div_ceil(self.prompts_each)
    }

    /// Samples and rewards the batch of a number: with the same weights the same one, whenever it
    /// is asked for.
    ///
    /// # Errors
    /// Those of the engine, the tools and the scorer.
    pub fn round(&mut self, number: u64) -> Result<Round> {
        let begun = Instant::now();
        self.hand_over()?;
        let handing_over = begun.elapsed();
        let mut draws = Vec::new();
        for i in 0..self.prompts_each as u64 {
            let cursor = number * self.prompts_each as u64 + i;
            for row in 0..self.group_size as u64 {
                let row = if self.rows_differ { row } else { 0 };
                draws.push((cursor, self.prompts.draw_row(self.tokenizer, cursor, row)?));
            }
        }
        let begun = Instant::now();
        let mut rows = self.sample(&draws)?;
        let sampling = begun.elapsed();
        let mut rollouts = Vec::new();
        for (group, draws) in rows.chunks_mut(self.group_size).zip(draws.chunks(self.group_size)) {
            let written: Vec<_> = group.iter().map(|(_, written)| written.clone()).collect();
            let Some((_, draw)) = draws.first() else { continue };
            let scores = self.scorer.score(draw, &written)?;
            if scores.len() != group.len() {
                return Err(Error::failed(format!(
                    "rewards of a group: expected {}, found {}",
                    group.len(),
                    scores.len()
                )));
            }
            for ((rollout, _), score) in group.iter_mut().zip(scores) {
                if !score.reward.is_finite() {
                    return Err(Error::failed(format!(
                        "reward of sample {}: expected a number, found {}",
                        rollout.sample, score.reward
                    )));
                }
                (rollout.reward, rollout.parts) = (score.reward, score.parts);
                rollout.step = number;
                rollouts.push(std::mem::take(rollout));
            }
        }
        if let (Some(rollout), true) = (rollouts.first(), self.shown.contains(&number)) {
            self.listener.say(&self.in_words(rollout));
        }
        let sampled = rollouts.iter().flat_map(|of| &of.sampled).filter(|&&by| by).count();
        Ok(Round { rollouts, handing_over, sampling, sampled })
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
        self.engine.take(&mut weights)
    }

    /// One row for each draw, with its texts.
    fn sample(&mut self, draws: &[(u64, Draw)]) -> Result<Vec<(Rollout, mmx_rollout::Written)>> {
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
        self.engine.sample(requests, &self.sampling, &mut |i, completion| match places
            .get(i)
            .and_then(|&place| rows.get_mut(place))
        {
            Some(row) => row.push(completion),
            None => Err(Error::failed(format!("engine: expected the index of a row, found {i}"))),
        })?;
        Ok(rows.into_iter().map(Conversation::finish).collect())
    }
}
