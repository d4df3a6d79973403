//! What samples for training: the runner, weights and requests in, completions out, in memory; or a
//! running server that keeps weights of its own.
//!
//! The runner and libtorch take turns on the same cores: the runner's threads sleep some
//! milliseconds after their last step, libtorch's after theirs, so neither spins for long while the
//! other computes.

use std::collections::VecDeque;
use std::sync::mpsc::channel;

use mmx_converters::arch::Config;
use mmx_converters::quant::file_type::FileType;
use mmx_converters::{Error, Result};
use mmx_ggml::run::{KvType, Policy, PolicyOptions, Prompt, Sampling as Settings, Values, Written};
use mmx_hub::drawn::{Ask, Drawn};
use mmx_hub::live::Server;
use mmx_rollout::{Completion, Engine, Finish, Request, Sampling, Weight};

/// The runner over a policy of its own: of float32 as the trainer's, both compute the same
/// distribution.
struct Runner(Policy);

/// The runner for a policy of these dimensions.
///
/// # Errors
/// A configuration that the runner cannot compute; no memory.
pub(crate) fn runner(
    config: &Config,
    dtype: FileType,
    threads: Option<usize>,
) -> Result<Box<dyn Engine>> {
    // beside rounded weights float16 keys and values round little, and are half the bytes that
    // attention reads at every token
    let kv = if dtype == FileType::F32 { KvType::F32 } else { KvType::F16 };
    let options = PolicyOptions { file: dtype, kv, threads, ..PolicyOptions::default() };
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

/// Rows that a server is asked for at a time.
const AT_A_TIME: usize = 32;

/// A running server, whose weights are its own.
struct Remote {
    server: Server,
    /// The user has said that they may be older than the trainer's.
    stale: bool,
}

/// A server by its name (`openai:URL[#MODEL]`) as what samples; nothing for another name. `stale`: its
/// weights stay what they are, on purpose.
///
/// # Errors
/// An address that is none; a server that does not answer or has no such model.
pub(crate) fn server(name: &str, stale: bool) -> Option<Result<Box<dyn Engine>>> {
    Some(Server::named(name)?.and_then(|mut server| {
        if server.kind() == "ollama" {
            let expected = "a server with OpenAI's interface that takes ids, openai:URL[#MODEL]";
            return Err(Error::setting("engine", expected, name));
        }
        server.prepare()?;
        Ok(Box::new(Remote { server, stale }) as Box<dyn Engine>)
    }))
}

impl Engine for Remote {
    fn take(&mut self, _: &mut dyn Iterator<Item = Weight<'_>>) -> Result<()> {
        match self.stale {
            true => Ok(()),
            false => Err(Error::failed(format!(
                "{}: expected an engine that takes the weights after each step, found a server, which \
                 keeps its own: what it samples is of an older policy unless the correction for that is \
                 on and its weights are meant to be old",
                self.server.name
            ))),
        }
    }

    fn sample(
        &mut self,
        requests: Vec<Request>,
        sampling: &Sampling,
        next: &mut (dyn FnMut(usize, Completion) -> Result<Option<Request>> + '_),
    ) -> Result<()> {
        let server = &self.server;
        let mut left: VecDeque<(usize, Request)> = requests.into_iter().enumerate().collect();
        std::thread::scope(|scope| {
            let (done, answers) = channel();
            let mut asked = 0;
            loop {
                while asked < AT_A_TIME
                    && let Some((index, request)) = left.pop_front()
                {
                    let done = done.clone();
                    scope.spawn(move || {
                        // nobody listens any more where another row has failed
                        let _ = done.send((index, ask(server, &request, sampling)));
                    });
                    asked += 1;
                }
                if asked == 0 {
                    return Ok(());
                }
                let Ok((index, completion)) = answers.recv() else { return Ok(()) };
                asked -= 1;
                if let Some(further) = next(index, completion?)? {
                    left.push_front((index, further));
                }
            }
        })
    }
}

fn ask(server: &Server, request: &Request, sampling: &Sampling) -> Result<Completion> {
    let Drawn { ids, logps } = server.continued(&Ask {
        ids: &request.prompt,
        max_new: request.max_new,
        seed: request.seed,
        temperature: f64::from(sampling.temperature),
        top_k: sampling.top_k,
        top_p: f64::from(sampling.top_p),
        stop: &sampling.stop,
    })?;
    let stopped = ids.last().is_some_and(|id| sampling.stop.contains(id));
    Ok(Completion { ids, logps, finish: if stopped { Finish::Stop } else { Finish::Length } })
}
