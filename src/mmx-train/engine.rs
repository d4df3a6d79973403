//! The runner as what samples for training: weights and requests in, completions out, in memory.
//!
//! Both halves take turns on the same cores: the runner's threads sleep some milliseconds after their
//! last step, libtorch's do so after theirs, so neither spins while the other computes.

use mmx_converters::Result;
use mmx_converters::arch::Config;
use mmx_ggml::run::{Policy, PolicyOptions, Prompt, Sampling as Settings, Values, Written};
use mmx_rollout::{Completion, Engine, Finish, Request, Sampling, Weight};

/// The runner over a policy of its own, float32 as the trainer's, so that both compute the same
/// distribution.
struct Runner(Policy);

/// The runner for a policy of these dimensions.
///
/// # Errors
/// A configuration that the runner cannot compute; no memory.
pub(crate) fn runner(config: &Config, threads: Option<usize>) -> Result<Box<dyn Engine>> {
    let options = PolicyOptions { threads, ..PolicyOptions::default() };
    Ok(Box::new(Runner(Policy::new(config, options)?)))
}

impl Engine for Runner {
    fn take(&mut self, weights: &mut dyn Iterator<Item = Weight<'_>>) -> Result<()> {
        let mut values =
            weights.map(|Weight { name, shape, values }| Values { name, shape, values });
        Ok(self.0.take(&mut values)?)
    }

    fn sample(
        &mut self,
        requests: Vec<Request>,
        sampling: &Sampling,
        next: &mut (dyn FnMut(usize, Completion) -> Result<Option<Request>> + '_),
    ) -> Result<()> {
        let settings = Settings {
            temperature: f64::from(sampling.temperature),
            top_k: sampling.top_k,
            top_p: f64::from(sampling.top_p),
            ..Settings::default()
        };
        let prompts = requests.into_iter().map(prompt).collect();
        let mut next = |index, written| Ok(next(index, completion(written))?.map(prompt));
        Ok(self.0.write(prompts, &settings, &sampling.stop, &mut next)?)
    }
}

fn prompt(Request { prompt, max_new, seed }: Request) -> Prompt {
    Prompt { ids: prompt, max_new, seed }
}

fn completion(Written { ids, logps, stopped }: Written) -> Completion {
    Completion { ids, logps, finish: if stopped { Finish::Stop } else { Finish::Length } }
}
