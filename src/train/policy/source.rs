//! A position to its batch of rollouts: those of a file, or what an engine samples with the weights
//! of now. With the same weights a position always gives the same rollouts; those that a batch of
//! several passes goes on with are kept in checkpoints.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use mmx_converters::random::Random;
use mmx_converters::words::counted;
use mmx_data::batches::{Batches, Part};
use mmx_data::{Batch, Minibatch};
use mmx_rollout::Rollout;

use super::advantage;
use super::layout::Layout;
use super::sampling::Sampler;
use crate::error::{Error, Result};

/// Batches in a row without a group that tells one answer from another, before a run ends.
const WITHOUT_SIGNAL: usize = 16;

/// Where rollouts come from.
pub enum Origin<'a> {
    /// A file, batch after batch.
    File(Vec<Vec<Rollout>>),
    /// An engine.
    Engine(Box<Sampler<'a>>),
}

/// The passes over a batch.
#[derive(Clone, Copy, Debug)]
pub struct Passes {
    /// Rows of a minibatch.
    pub minibatch: usize,
    /// Passes.
    pub count: usize,
}

/// The batch in hand: its number, its rollouts, and what was measured while they were sampled.
type InHand = (u64, Vec<Rollout>, Vec<(String, f64)>);

/// Batches of rollouts.
pub struct Source<'a> {
    origin: Origin<'a>,
    layout: Layout,
    passes: Option<Passes>,
    /// The part of the rows of each micro-step that this one of several processes trains on.
    part: Option<Part>,
    seed: u64,
    name: String,
    /// Where what was sampled is written.
    out: Option<Out>,
    in_hand: Option<InHand>,
    /// Batches in a row without a difference between rewards of a group.
    without_signal: usize,
}

impl<'a> Source<'a> {
    /// `name`: what a message calls the data. `passes`: several over each batch, in minibatches.
    pub fn new(
        origin: Origin<'a>,
        layout: Layout,
        passes: Option<Passes>,
        seed: u64,
        name: String,
    ) -> Self {
        let (out, in_hand, part) = (None, None, None);
        Self { origin, layout, passes, part, seed, name, out, in_hand, without_signal: 0 }
    }

    /// The same batches, of whose rows one of several processes trains on a part.
    #[must_use]
    pub fn part(self, part: Option<Part>) -> Self {
        Self { part, ..self }
    }

    /// Writes what is sampled to a file; of one that is there what came before the position of the
    /// run is kept.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn write_to(&mut self, path: &Path, epoch: usize, index: usize) -> Result<()> {
        let within = u64::from(!index.is_multiple_of(self.each()));
        self.out = Some(Out::open(path, self.number(epoch, index) + within)?);
        Ok(())
    }

    /// Batches of an epoch.
    fn rounds(&self) -> usize {
        match &self.origin {
            Origin::File(rounds) => rounds.len(),
            Origin::Engine(sampler) => sampler.rounds(),
        }
    }

    /// Rows of a batch at most.
    fn rows(&self) -> usize {
        match &self.origin {
            Origin::File(rounds) => rounds.iter().map(Vec::len).max().unwrap_or_default(),
            Origin::Engine(sampler) => sampler.prompts_each * sampler.group_size,
        }
    }

    /// Micro-steps of a batch.
    fn each(&self) -> usize {
        self.passes.map_or(1, |by| by.count * self.rows().div_ceil(by.minibatch).max(1))
    }

    /// The number of the batch at a position.
    fn number(&self, epoch: usize, index: usize) -> u64 {
        (epoch * self.rounds() + index / self.each()) as u64
    }

    /// Rows of a micro-step at most.
    fn rows_each(&self) -> usize {
        self.passes.map_or(self.rows(), |by| by.minibatch.min(self.rows()))
    }

    /// A batch as long and as many rows as there can be, of made-up ids below `vocabulary`.
    #[must_use]
    pub fn longest(&self, vocabulary: usize) -> Batch {
        let rows = self.rows_each();
        let length = self.layout.max_seq_len.max(2) - 1;
        let rollout = |row: usize| Rollout {
            group: row as u64 / 2,
            prompt: vec![0],
            ids: (0..length).map(|i| ((i * 7 + row) % vocabulary.max(1)) as u32).collect(),
            sampled: vec![true; length],
            logps: vec![-1.0; length],
            finish: mmx_rollout::Finish::Stop,
            reward: row as f64,
            ..Rollout::default()
        };
        let rollouts: Vec<Rollout> = (0..rows).map(rollout).collect();
        let mut batch = self.layout.batch(&rollouts, false);
        batch.rewarded.iter_mut().for_each(|rewarded| rewarded.part = self.part);
        batch
    }

    /// Rows and positions of the longest batch, of several processes those of the largest part.
    #[must_use]
    pub fn longest_size(&self) -> (usize, usize) {
        let rows = self.rows_each().div_ceil(self.part.map_or(1, |part| part.ranks));
        let longest = match &self.origin {
            Origin::File(rounds) => {
                let rows = rounds.iter().flatten();
                rows.map(|of| of.prompt.len() + of.ids.len()).max().unwrap_or_default()
            }
            Origin::Engine(_) => usize::MAX,
        };
        (rows, longest.min(self.layout.max_seq_len))
    }

    /// The batch of a number.
    fn fetch(&mut self, number: u64) -> Result<()> {
        if self.in_hand.as_ref().is_some_and(|(of, ..)| *of == number) {
            return Ok(());
        }
        let (rollouts, numbers) = match &mut self.origin {
            Origin::File(rounds) => {
                let round = rounds.get(number as usize % rounds.len().max(1));
                (round.cloned().unwrap_or_default(), Vec::new())
            }
            Origin::Engine(sampler) => {
                let round = sampler.round(number)?;
                let seconds = round.sampling.as_secs_f64();
                let mut numbers = vec![
                    ("rollout_s".to_owned(), seconds),
                    ("rollout_tokens_per_s".to_owned(), round.sampled as f64 / seconds.max(1e-9)),
                    ("handing_over_s".to_owned(), round.handing_over.as_secs_f64()),
                ];
                if sampler.resample > 0 {
                    let dropped = round.drawn.saturating_sub(sampler.prompts_each);
                    numbers.push(("groups_dropped".to_owned(), dropped as f64));
                }
                (round.rollouts, numbers)
            }
        };
        self.refuse_silence(&rollouts)?;
        if let Some(out) = &mut self.out {
            out.write(&rollouts)?;
        }
        self.in_hand = Some((number, rollouts, numbers));
        Ok(())
    }

    /// Ends a run that learns nothing from its rewards.
    fn refuse_silence(&mut self, rollouts: &[Rollout]) -> Result<()> {
        let rewards: Vec<f64> = rollouts.iter().map(|of| of.reward).collect();
        let groups: Vec<u64> = rollouts.iter().map(|of| of.group).collect();
        let compared =
            groups.iter().any(|group| groups.iter().filter(|of| *of == group).count() > 1);
        let silent = compared && advantage::without_signal(&rewards, &groups) == 1.0;
        self.without_signal = if silent { self.without_signal + 1 } else { 0 };
        let limit = match &self.origin {
            Origin::File(rounds) => rounds.len().min(WITHOUT_SIGNAL),
            Origin::Engine(_) => WITHOUT_SIGNAL,
        };
        if self.without_signal < limit || !silent {
            return Ok(());
        }
        Err(Error::failed_with_hint(
            format!(
                "{}: expected rewards that differ within a group, found equal ones in every group of {} \
                 (the last reward is {})",
                self.name,
                counted(self.without_signal, "batch"),
                rewards.last().copied().unwrap_or_default()
            ),
            "nothing can be learned from them: look at the answers and the reward; a larger `group_size` or \
             `temperature`, easier tasks, or a model that was fine-tuned on such answers first",
        ))
    }
}

impl Batches for Source<'_> {
    fn micro_steps(&mut self, _epoch: usize) -> usize {
        self.rounds() * self.each()
    }

    fn batch(&mut self, epoch: usize, index: usize) -> Result<Batch> {
        let number = self.number(epoch, index);
        self.fetch(number)?;
        let Some((_, rollouts, numbers)) = &self.in_hand else { return Ok(Batch::default()) };
        let stale = matches!(self.origin, Origin::File(_));
        let mut batch = self.layout.batch(rollouts, stale);
        let minibatch = self.passes.map(|by| {
            let (each, within) = (self.each(), index % self.each());
            let minibatches = each / by.count;
            let (pass, place) = (within / minibatches, within % minibatches);
            let mut order: Vec<usize> = (0..rollouts.len()).collect();
            let stream = number * by.count as u64 + pass as u64;
            Random::new(self.seed ^ MINIBATCHES, stream).shuffle(&mut order);
            Minibatch {
                rows: order.chunks(by.minibatch).nth(place).unwrap_or_default().to_vec(),
                first: within == 0,
                ends_pass: place + 1 == minibatches,
                left: each - 1 - within,
            }
        });
        if let Some(rewarded) = &mut batch.rewarded {
            (rewarded.minibatch, rewarded.part) = (minibatch, self.part);
            rewarded.numbers.extend(numbers.iter().cloned());
        }
        Ok(batch)
    }

    fn file(&self, _index: u32) -> String {
        self.name.clone()
    }

    fn state(&self) -> Result<Option<String>> {
        let Some((_, rollouts, _)) = self.in_hand.as_ref().filter(|_| self.passes.is_some()) else {
            return Ok(None);
        };
        Ok(Some(rollouts.iter().map(|rollout| rollout.to_json() + "\n").collect()))
    }

    fn restore(&mut self, epoch: usize, index: usize, state: &str) -> Result<()> {
        if !index.is_multiple_of(self.each()) {
            let rollouts = state.lines().map(Rollout::from_json).collect::<Result<Vec<_>>>()?;
            self.in_hand = Some((self.number(epoch, index), rollouts, Vec::new()));
        }
        Ok(())
    }
}

/// Keeps the orders of minibatches apart from other random numbers of the seed.
const MINIBATCHES: u64 = 0x6d69_6e69_6261_7463;

/// The rollouts of a file, batch after batch: rows of one step follow each other.
///
/// # Errors
/// An unreadable file, a line that is no rollout, no line at all.
pub fn read(path: &Path) -> Result<Vec<Vec<Rollout>>> {
    let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let mut rounds: Vec<Vec<Rollout>> = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let rollout = Rollout::from_json(line)
            .map_err(|e| Error::failed(format!("{}:{}: {e}", path.display(), i + 1)))?;
        if rollout.prompt.is_empty() || !rollout.reward.is_finite() {
            return Err(Error::failed(format!(
                "{}:{}: expected a prompt and a reward, found {} and {}",
                path.display(),
                i + 1,
                counted(rollout.prompt.len(), "id"),
                rollout.reward
            )));
        }
        match rounds
            .last_mut()
            .filter(|round| round.last().is_some_and(|of| of.step == rollout.step))
        {
            Some(round) => round.push(rollout),
            None => rounds.push(vec![rollout]),
        }
    }
    match rounds.is_empty() {
        true => Err(Error::failed(format!(
            "{}: expected at least one rollout, found none",
            path.display()
        ))),
        false => Ok(rounds),
    }
}

/// Refuses ids that the vocabulary does not have.
///
/// # Errors
/// The first such id.
pub fn check_ids(path: &Path, rounds: &[Vec<Rollout>], vocabulary: usize) -> Result<()> {
    for (row, rollout) in rounds.iter().flatten().enumerate() {
        let all = rollout.prompt.iter().chain(&rollout.ids);
        if let Some(id) = all.into_iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::failed(format!(
                "{}: rollout {row}: expected ids below {vocabulary}, found {id}",
                path.display()
            )));
        }
    }
    Ok(())
}

/// A file that rollouts are written to.
struct Out {
    path: PathBuf,
    file: fs_err::File,
}

impl Out {
    /// Keeps the lines before batch `first`.
    fn open(path: &Path, first: u64) -> Result<Self> {
        let mut kept = 0u64;
        if first > 0 && path.exists() {
            let text = fs_err::read(path).map_err(|e| Error::io(path, e))?;
            for line in text.split_inclusive(|&byte| byte == b'\n') {
                let step = std::str::from_utf8(line).ok().and_then(|line| {
                    Rollout::from_json(line.trim_end()).ok().map(|rollout| rollout.step)
                });
                if !line.ends_with(b"\n") || step.is_none_or(|step| step >= first) {
                    break;
                }
                kept += line.len() as u64;
            }
        }
        let file = fs_err::OpenOptions::new().append(true).create(true).open(path);
        let file = file.map_err(|e| Error::io(path, e))?;
        file.set_len(kept).map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(&mut self, rollouts: &[Rollout]) -> Result<()> {
        let text: String = rollouts.iter().map(|rollout| rollout.to_json() + "\n").collect();
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}
