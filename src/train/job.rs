//! A resolved request to an outcome: a training begun, or gone on with from its newest checkpoint.
//!
//! In: a [`Request`]. Out: an [`Outcome`], and below the request's folder the checkpoints and logs
//! of the run.
//!
//! A program that pretrains, stops after two steps, and goes on later:
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//!
//! use mmx_converters::progress::{Listener, Progress, Silent};
//! use mmx_converters::tokenizer::{SpecialSet, train::{WordCounts, train}};
//! use mmx_data::Recipe;
//! use mmx_training::config::TrainConfig;
//! use mmx_training::job::{self, Request};
//! use mmx_training::stage::Pretrain;
//!
//! /// Sets the flag once two steps are done.
//! #[derive(Debug)]
//! struct AfterTwo(Arc<AtomicBool>);
//!
//! impl Listener for AfterTwo {
//!     fn say(&self, _sentence: &str) {}
//!     fn progress(&self, progress: Progress<'_>) {
//!         if let Progress::Steps { done: 2.., .. } = progress {
//!             self.0.store(true, Ordering::Relaxed);
//!         }
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! // four texts, and a tokenizer trained on them
//! let texts = ["one two three four", "four three two one", "two one", "three four"];
//! let lines: String = texts.iter().map(|text| format!("{{\"text\": \"{text}\"}}\n")).collect();
//! fs_err::write(folder.join("text.jsonl"), lines)?;
//! let mut words = WordCounts::new(WordCounts::LIMIT_BYTES);
//! words.add(&texts)?;
//! train(words, 300, SpecialSet::MiniMind3)?.save(folder)?;
//!
//! let config = TrainConfig {
//!     epochs: 1,
//!     batch_size: 1,
//!     accumulation: 1,
//!     pack: false,
//!     max_seq_len: 16,
//!     ..TrainConfig::new(&Pretrain, Recipe::R2026)
//! };
//! let request = Request {
//!     preset: Some("tiny".into()),
//!     tokenizer: Some(folder.to_owned()),
//!     device: Some("cpu".into()),
//!     ..Request::new(config, vec![folder.join("text.jsonl")], folder.join("run"))
//! };
//! let stop = Arc::new(AtomicBool::new(false));
//! let outcome = job::run(request.clone(), Arc::new(AfterTwo(stop.clone())), &stop)?;
//! assert!(outcome.interrupted);
//! assert_eq!(outcome.steps, 2);
//!
//! // the same request goes on exactly from there
//! let request = Request { resume: true, ..request };
//! let outcome = job::run(request, Arc::new(Silent), &AtomicBool::new(false))?;
//! assert!(!outcome.interrupted);
//! assert_eq!((outcome.steps, outcome.total_steps), (2, 4)); // two more
//! assert!(outcome.checkpoint.ends_with("checkpoint-000004"));
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mmx_converters::digest;
use mmx_converters::model::{run_folder, tokenizer_beside};
use mmx_converters::progress::Listener;
use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::words::counted;
use mmx_data::batches::{Batches, Ordered, Packed, Part};
use mmx_data::prefetch::Prefetcher;
use mmx_data::{Cache, Dataset, SampleOptions};
use tch::{Device, Kind};

use crate::checkpoint::{self, Context, Fault, State};
use crate::config::TrainConfig;
use crate::distributed::{self, TIMEOUT};
use crate::error::{Error, Result};
use crate::held_out::HeldOut;
use crate::learn::{Learning, Means};
use crate::memory::available::available_to;
use crate::memory::estimate::{Estimate, Workload};
use crate::memory::keep_memory;
use crate::model::device;
use crate::ranks::{Ranks, Spread, each_of};
use crate::report::optimizer;
use crate::report::samples::Prompts;
use crate::session::{self, Session, Validation};
use crate::stage::{self, Setup, Stage};
use crate::start::{Models, Start};
use crate::threads::choose_kernels;
use crate::trainer::{Position, Trainer};

mod changes;
mod request;

use self::changes::{refuse_changes, same_everywhere};

pub use self::request::Request;
pub use crate::session::Outcome;

/// Runs a training to its end, or until `stop` is set: then a checkpoint is saved, from which a
/// request that [resumes](Request::resume) goes on exactly. Nothing is printed: `listener` hears
/// what there is to say.
///
/// # Errors
/// Settings that make no run, data or models that cannot be read or do not fit, no memory, a full
/// disk.
pub fn run(request: Request, listener: Arc<dyn Listener>, stop: &AtomicBool) -> Result<Outcome> {
    run_with(request, None, listener, stop)
}

/// Runs a training that may learn from rewards: `means` sample and reward what it learns from,
/// unless its rollouts are those of a file.
///
/// # Errors
/// See [`run`]; a stage that learns from rewards without either.
pub fn run_with(
    request: Request,
    means: Option<Means>,
    listener: Arc<dyn Listener>,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let stage = stage::by_name(&request.config.stage)?;
    Job { stage, request, means, listener }.train(stop)
}

/// A request that is worked on.
struct Job {
    stage: Box<dyn Stage>,
    request: Request,
    means: Option<Means>,
    listener: Arc<dyn Listener>,
}

impl Job {
    fn train(self, stop: &AtomicBool) -> Result<Outcome> {
        self.set_threads()?;
        let device = self.device()?;
        let ranks = match &self.request.place {
            Some(place) => Ranks::new(distributed::connect(place, device, TIMEOUT)?, device),
            None => Ranks::default(),
        };
        let outcome = self.train_among(&ranks, device, stop);
        if let (Err(error), Some(group)) = (&outcome, ranks.group()) {
            group.fail(error); // the others need not wait for this one
        }
        outcome
    }

    /// As many threads as were asked for; else this process's share of the cores.
    fn set_threads(&self) -> Result<()> {
        let here = self.request.place.as_ref().map_or(1, |place| place.local_size);
        if here > 1 && std::env::var_os("RAYON_NUM_THREADS").is_none() {
            let share = (mmx_converters::cpus::cpus() / here).max(1);
            let threads = self.request.threads.unwrap_or(share);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let _ = pool.build_global(); // it may run already
        }
        if let Some(threads) = self.request.threads {
            let count = i32::try_from(threads)
                .ok()
                .filter(|n| *n > 0)
                .ok_or_else(|| Error::setting("threads", "at least 1", threads))?;
            tch::set_num_threads(count);
        } else if let Ok(most) = i32::try_from((mmx_converters::cpus::cpus() / here.max(1)).max(1))
        {
            // libtorch knows no quotas of control groups
            tch::set_num_threads(tch::get_num_threads().min(most));
        }
        choose_kernels()
    }

    /// The device asked for; of several processes on a machine with several, each has its own.
    fn device(&self) -> Result<Device> {
        let name = self.request.device.as_deref();
        match (device::pick(name)?, &self.request.place) {
            (Device::Cuda(_), Some(place)) if matches!(name, None | Some("auto" | "cuda")) => {
                device::pick(Some(&format!("cuda:{}", place.local_rank)))
            }
            (device, _) => Ok(device),
        }
    }

    /// The configuration, whose batches are those of all processes.
    fn config(&self, ranks: &Ranks) -> Result<TrainConfig> {
        let mut config = self.request.config.clone();
        if self.request.rollouts.is_some() {
            // one pass over the file is the run
            (config.epochs, config.max_steps) = (1, None);
        }
        config.check()?;
        config.batch_size = match self.request.global_batch {
            None => {
                if let Some(ppo) = &mut config.ppo {
                    ppo.minibatch = ppo.minibatch.saturating_mul(ranks.size());
                }
                config.batch_size.saturating_mul(ranks.size())
            }
            Some(rows) => {
                let (accum, size) = (config.accumulation, ranks.size());
                if !rows.is_multiple_of(accum) || rows < accum.saturating_mul(size) {
                    let processes = if size > 1 {
                        format!(" for each of {size} processes")
                    } else {
                        String::new()
                    };
                    return Err(Error::setting(
                        "global_batch",
                        format!("a multiple of accum, {accum}, with a row{processes} in each"),
                        rows,
                    ));
                }
                rows / accum
            }
        };
        Ok(config)
    }

    fn train_among(mut self, ranks: &Ranks, device: Device, stop: &AtomicBool) -> Result<Outcome> {
        let mut config = self.config(ranks)?;
        let claim = match self.request.out.is_dir() && ranks.is_first() {
            true => Some(run_folder::claim(&self.request.out)?),
            false => None,
        };
        let resumed = self.checkpoint(ranks)?;
        if self.request.choose_dtype {
            // measured once per run: measured again it might come out the other way
            config.dtype = match &resumed {
                Some((_, state)) => state.config.dtype.clone(),
                None if ranks.is_first() => device::best_dtype(device)?.into(),
                None => String::new(),
            };
            config.dtype = ranks.text_of_first(&config.dtype)?;
        }
        let compute = if config.dtype == "bf16" { Kind::BFloat16 } else { Kind::Float };

        let tokenizer = Tokenizer::open(self.tokenizer_folder(resumed.as_ref())?)?;
        let start = Start {
            preset: self.request.preset.as_deref(),
            config: self.request.dimensions.as_deref(),
            from: self.request.from.as_deref(),
            adapter: self.request.adapter.as_deref(),
            teacher: self.request.teacher.as_deref(),
            reference: self.request.reference.as_deref(),
            resumed: resumed.as_ref().map(|(path, _)| path.as_path()),
            tokenizer: &tokenizer,
            train: &config,
            device,
            compute,
            listener: self.listener.as_ref(),
        };
        let models = start.open()?;
        let Models { mut model, generation, adapters, base, frozen, critic, .. } = models;
        let cache = self.request.cache.clone().heard_by(self.listener.clone());
        let mut sources = self.sources(&tokenizer, &cache)?;
        sources.extend(models.sources);
        same_everywhere(ranks, &config, &sources)?;
        if let Some((path, state)) = &resumed {
            refuse_changes(path, state, &config, &sources, self.listener.as_ref())?;
        }
        let frozen_weights = frozen.as_ref().map_or(0, |model| model.config().parameters().0);
        let tags = Some(&tokenizer);
        let setup = Setup { config: &config, adapters, base, frozen, critic, tokenizer: tags };
        self.stage.prepare(&mut model, setup)?;
        model.set_ranks(ranks.clone());

        let Request { shard, reduce, .. } = self.request;
        let spread = Spread { ranks: ranks.clone(), shard, reduce };
        let here = self.request.place.as_ref().map_or(1, |place| place.local_size);
        if config.policy.is_some() {
            let learning = Learning {
                data: &self.request.data,
                on_bad: self.request.on_bad,
                val: self.request.val.as_deref(),
                rollouts: self.request.rollouts.as_deref(),
                rollouts_out: self.request.rollouts_out.as_deref(),
                out: &self.request.out,
                keep: self.request.keep,
                save_every: self.request.save_every,
                trace: self.request.trace.as_deref(),
                config: &config,
                stage: self.stage.as_ref(),
                model: &model,
                frozen_weights,
                generation: &generation,
                tokenizer: &tokenizer,
                sources: &sources,
                resumed: resumed.as_ref(),
                spread,
                here,
                listener: self.listener.as_ref(),
            };
            return learning.run(self.means.as_mut(), claim, stop);
        }
        let options = self.sample_options(&config)?;
        // tokenized once on each machine; the others find it done
        let first_here = self.request.place.as_ref().is_none_or(|place| place.local_rank == 0);
        if !first_here {
            ranks.meet("the tokenizing of the data")?;
        }
        let dataset = Dataset::load_cached(&self.request.data, &tokenizer, &options, &cache)?;
        dataset.warnings.iter().for_each(|warning| self.listener.warn(warning));
        let padded = self.stage.counts_padding(&model);
        let held_out = self.request.val.iter().cloned().collect::<Vec<_>>();
        let held_out_set = match held_out.is_empty() {
            true => None,
            false => Some(Dataset::load_cached(&held_out, &tokenizer, &options, &cache)?),
        };
        if first_here {
            ranks.meet("the tokenizing of the data")?;
        }
        let part = ranks.part();
        let mut held_out_batches = held_out_set
            .as_ref()
            .map(|set| batches_of(&config, set, &held_out, (false, padded), part));
        let prompts = match &held_out_set {
            Some(set) if ranks.is_first() => {
                let mut whole = batches_of(&config, set, &held_out, (false, padded), None);
                Some(Prompts::new(whole.as_mut())?)
            }
            _ => None,
        };

        if let (Some(path), true) = (&self.request.dump_batches, ranks.is_first()) {
            // counted with padding, as the reference builds batches, also where mmx computes none
            // of it
            let order = (config.shuffle, true);
            let mut dumped = batches_of(&config, &dataset, &self.request.data, order, None);
            session::dump_batches(path, dumped.as_mut(), config.epochs)?;
        }
        let stage = self.stage.as_ref();
        std::thread::scope(|scope| {
            let order = (config.shuffle, padded);
            let source = batches_of(&config, &dataset, &self.request.data, order, part);
            let mut batches = Prefetcher::new(scope, source, config.epochs);
            keep_memory();
            let trainable = stage.trainable(&model);
            let trained = trainable.iter().map(|v| v.tensor.numel()).sum();
            let micro_steps = config
                .max_steps
                .map_or(usize::MAX, |steps| steps.saturating_mul(config.accumulation));
            let estimate = Estimate::new(&Workload {
                config: model.config(),
                compute,
                device,
                trained,
                moments: config.optimizer().moments(&trainable),
                weights: model.config().parameters().0 + frozen_weights,
                two_distributions: config.distill.is_some(),
                largest: batches.largest(micro_steps)?,
                moments_among: spread.moments_among(),
                gradients_among: spread.gradients_among(),
            });
            let can_be_had = available_to(device, here);
            if resumed.is_none() {
                estimate.check(can_be_had)?; // what goes on has fitted before
            }
            let mut trainer = Trainer::among(&model, stage, &config, &mut batches, spread.clone())?;
            if let Some((path, state)) = &resumed {
                checkpoint::restore(path, state, &mut trainer)?;
            }
            trainer.agree()?;
            let listener = self.listener.as_ref();
            announce(&trainer, &dataset, listener);
            optimizer::announce(&trainer, &trainable, listener);
            listener.say(&estimate.describe(can_be_had));
            if let Some((_, state)) = &resumed {
                let Position { step, micro_step, epoch, .. } = state.position;
                listener.say(&format!(
                    "resumed after step {step} (micro-step {micro_step}, epoch {epoch})"
                ));
            }
            let save_tokenizer = |dir: &Path| tokenizer.save(dir);
            let held_out = held_out_batches
                .as_mut()
                .map(|batches| Validation::new(batches.as_mut(), prompts, &tokenizer));
            let mut session = Session {
                claim,
                context: Context {
                    dir: &self.request.out,
                    tokenizer: Some(&save_tokenizer),
                    generation: &generation,
                    sources: &sources,
                    keep: self.request.keep,
                    listener,
                },
                save_every: self.request.save_every,
                trace: self.request.trace.as_deref(),
                held_out: held_out.map(|of| Box::new(of) as Box<dyn HeldOut + '_>),
            };
            session::run(&mut trainer, stage, &mut session, stop)
        })
    }

    fn sample_options(&self, config: &TrainConfig) -> Result<SampleOptions> {
        let options = SampleOptions::new(config.recipe()?, self.stage.kind(), config.max_seq_len);
        Ok(SampleOptions {
            on_bad: self.request.on_bad,
            system_ratio: config.system_ratio,
            empty_think_ratio: config.empty_think_ratio,
            seed: config.seed,
            fields: config.fields.clone(),
            ..options
        })
    }

    /// The checkpoint to go on from, if that is asked for and there is one.
    fn checkpoint(&self, ranks: &Ranks) -> Result<Option<(PathBuf, State)>> {
        if ranks.is_first() {
            let found = self.find_checkpoint()?;
            let path = found.as_ref().map(|(path, _)| path.to_string_lossy().into_owned());
            ranks.text_of_first(&path.unwrap_or_default())?;
            return Ok(found);
        }
        // the first process's, also where a newer one was written meanwhile or is damaged
        let path = ranks.text_of_first("")?;
        if path.is_empty() {
            return Ok(None);
        }
        match checkpoint::check(Path::new(&path)) {
            Ok(state) => Ok(Some((path.into(), state))),
            Err(Fault::Other(error)) => Err(*error),
            Err(Fault::Damaged(what)) => Err(Error::failed_with_hint(
                format!("{what}, where rank 0 finds the checkpoint {path}"),
                "`out` has to be a folder that all machines see",
            )),
        }
    }

    fn find_checkpoint(&self) -> Result<Option<(PathBuf, State)>> {
        if !self.request.resume {
            let there = run_folder::checkpoints(&self.request.out)?;
            return match there.last() {
                None => Ok(None),
                Some(path) => Err(Error::failed_with_hint(
                    format!("{}: a checkpoint of an earlier run is here already", path.display()),
                    "`resume` goes on from it; another `out` begins anew",
                )),
            };
        }
        let (found, warnings) = checkpoint::newest(&self.request.out)?;
        warnings.iter().for_each(|warning| self.listener.warn(warning));
        if found.is_none() {
            let out = self.request.out.display();
            self.listener.say(&format!("{out}: no checkpoint yet, beginning at the start"));
        }
        Ok(found)
    }

    fn tokenizer_folder(&self, resumed: Option<&(PathBuf, State)>) -> Result<PathBuf> {
        if let Some(dir) = &self.request.tokenizer {
            return Ok(dir.clone());
        }
        if let Some((checkpoint, _)) = resumed {
            return Ok(checkpoint.clone());
        }
        match &self.request.from {
            Some(from) => {
                let path = mmx_hub::resolve(from)?;
                let is_pth = path.extension().is_some_and(|extension| extension == "pth");
                match tokenizer_beside(&path) {
                    Some(folder) => Ok(folder),
                    None if is_pth => {
                        let found = format!("none beside {}", path.display());
                        Err(Error::setting("tokenizer", "a tokenizer's folder", found))
                    }
                    None => Ok(path),
                }
            }
            None => Err(Error::setting(
                "tokenizer",
                "a tokenizer's folder, or `from` a model that has one",
                "none",
            )),
        }
    }

    /// Names and digests of what the run learns from.
    fn sources(&self, tokenizer: &Tokenizer, cache: &Cache) -> Result<Vec<(String, String)>> {
        let mut sources = Vec::new();
        for path in self.request.data.iter().chain(&self.request.rollouts) {
            sources.push((path.display().to_string(), cache.digest(path)?));
        }
        sources.push(("tokenizer".to_owned(), digest::of_bytes(tokenizer.json())));
        Ok(sources)
    }
}

/// The batches of a data set; `padded` is for samples with rows of their own.
fn batches_of<'d>(
    config: &TrainConfig,
    dataset: &'d Dataset,
    files: &[PathBuf],
    (shuffle, padded): (bool, bool),
    part: Option<Part>,
) -> Box<dyn Batches + Send + 'd> {
    let (seed, size) = (config.seed, config.batch_size);
    match config.pack {
        true => Box::new(Packed::new(dataset, files, seed, shuffle, size).part(part)),
        false => Box::new(Ordered::new(dataset, files, seed, shuffle, size, padded).part(part)),
    }
}

/// The lines that describe a run before its first step.
fn announce(trainer: &Trainer<'_>, dataset: &Dataset, listener: &dyn Listener) {
    let (model, config, plan) = (trainer.model(), trainer.config(), trainer.plan());
    let (total, active) = model.config().parameters();
    let active = match active == total {
        true => String::new(),
        false => format!(", {:.2} M of them per token", active as f64 / 1e6),
    };
    listener.say(&format!(
        "model: {}, {:.2} M parameters{active}; {} on {}",
        model.config().family.name(),
        total as f64 / 1e6,
        config.dtype,
        device::describe(model.device()),
    ));
    let tokens = dataset.tokens();
    let unit = if dataset.is_pairs() { "pair" } else { "sample" };
    listener.say(&format!("data: {}, {tokens} tokens per epoch", counted(dataset.len(), unit)));
    let (ranks, rows) = (trainer.ranks(), config.batch_size);
    if !ranks.alone() {
        listener.say(&format!(
            "global batch: {} an optimizer step: {} for each process x {} x {}",
            counted(rows * config.accumulation, "row"),
            each_of(rows, ranks.size()),
            counted(ranks.size(), "process"),
            counted(config.accumulation, "micro-step"),
        ));
    }
    listener.say(&format!(
        "run: {} in {} of {}, {}, recipe {}",
        counted(plan.steps, "optimizer step"),
        counted(plan.micro_steps, "micro-step"),
        counted(config.batch_size, "row"),
        counted(config.epochs, "epoch"),
        config.recipe
    ));
}
