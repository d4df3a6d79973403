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
use mmx_converters::model::run_folder;
use mmx_converters::progress::Listener;
use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::words::counted;
use mmx_data::batches::{Batches, Ordered, Packed};
use mmx_data::prefetch::Prefetcher;
use mmx_data::{Cache, Dataset, OnBad, SampleOptions};
use tch::Kind;

use crate::checkpoint::{self, Context, State};
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::memory::available::available;
use crate::memory::estimate::{Estimate, Workload};
use crate::memory::keep_memory;
use crate::model::device;
use crate::session::{self, Session, Validation};
use crate::stage::{self, Setup, Stage};
use crate::start::{Models, Start};
use crate::threads::choose_kernels;
use crate::trainer::{Position, Trainer};

pub use crate::session::Outcome;

/// A training run: what it learns from, where it begins, how, and where it is kept.
#[derive(Clone, Debug)]
pub struct Request {
    /// The configuration: everything that the run's numbers depend on, its stage included.
    pub config: TrainConfig,
    /// The element type to compute in is measured, whatever the configuration says.
    pub choose_dtype: bool,
    /// Training data: JSON Lines, JSON arrays, CSV or Parquet.
    pub data: Vec<PathBuf>,
    /// Folder of the run: checkpoints, metrics.jsonl, and tb/ for TensorBoard.
    pub out: PathBuf,
    /// Go on from the newest checkpoint in the run's folder.
    pub resume: bool,
    /// Dimensions of a new model by name.
    pub preset: Option<String>,
    /// Dimensions of a new model from a config.json.
    pub dimensions: Option<PathBuf>,
    /// Model to start from.
    pub from: Option<PathBuf>,
    /// Tokenizer's folder; without it the one beside the model to start from.
    pub tokenizer: Option<PathBuf>,
    /// Adapters to begin with.
    pub adapter: Option<PathBuf>,
    /// The teacher that distillation learns from.
    pub teacher: Option<PathBuf>,
    /// Where to compute: `auto`, `cpu`, `cuda` or `cuda:N`; nothing for `auto`.
    pub device: Option<String>,
    /// CPU threads; nothing for all cores.
    pub threads: Option<usize>,
    /// What to do with a faulty line of data.
    pub on_bad: OnBad,
    /// Optimizer steps between checkpoints; nothing for every ten minutes.
    pub save_every: Option<usize>,
    /// Checkpoints to keep.
    pub keep: usize,
    /// Held-out data.
    pub val: Option<PathBuf>,
    /// Every micro-step's numbers and the final weights' sums are written here.
    pub trace: Option<PathBuf>,
    /// All batches of the run are written here.
    pub dump_batches: Option<PathBuf>,
    /// Where tokens are kept between runs.
    pub cache: Cache,
}

impl Request {
    /// A run of a configuration that learns from files, kept in a folder; everything else by
    /// default.
    pub fn new(config: TrainConfig, data: Vec<PathBuf>, out: impl Into<PathBuf>) -> Self {
        Self {
            config,
            choose_dtype: false,
            data,
            out: out.into(),
            resume: false,
            preset: None,
            dimensions: None,
            from: None,
            tokenizer: None,
            adapter: None,
            teacher: None,
            device: None,
            threads: None,
            on_bad: OnBad::Error,
            save_every: None,
            keep: 2,
            val: None,
            trace: None,
            dump_batches: None,
            cache: Cache::user(),
        }
    }
}

/// Runs a training to its end, or until `stop` is set: then a checkpoint is saved, from which a
/// request that [resumes](Request::resume) goes on exactly. Nothing is printed: `listener` hears
/// what there is to say.
///
/// # Errors
/// Settings that make no run, data or models that cannot be read or do not fit, no memory, a full
/// disk.
pub fn run(request: Request, listener: Arc<dyn Listener>, stop: &AtomicBool) -> Result<Outcome> {
    let stage = stage::by_name(&request.config.stage)?;
    Job { stage, request, listener }.train(stop)
}

/// A request that is worked on.
struct Job {
    stage: Box<dyn Stage>,
    request: Request,
    listener: Arc<dyn Listener>,
}

impl Job {
    fn train(mut self, stop: &AtomicBool) -> Result<Outcome> {
        if let Some(threads) = self.request.threads {
            let count = i32::try_from(threads)
                .ok()
                .filter(|n| *n > 0)
                .ok_or_else(|| Error::setting("threads", "at least 1", threads))?;
            tch::set_num_threads(count);
        } else if let Ok(most) = i32::try_from(mmx_converters::cpus::cpus()) {
            // libtorch knows no quotas of control groups
            tch::set_num_threads(tch::get_num_threads().min(most));
        }
        choose_kernels()?;
        let device = device::pick(self.request.device.as_deref())?;
        let mut config = self.request.config.clone();
        config.check()?;
        let claim = match self.request.out.is_dir() {
            true => Some(run_folder::claim(&self.request.out)?),
            false => None,
        };
        let resumed = self.checkpoint()?;
        if self.request.choose_dtype {
            // measured once per run: measured again it might come out the other way
            config.dtype = match &resumed {
                Some((_, state)) => state.config.dtype.clone(),
                None => device::best_dtype(device)?.into(),
            };
        }
        let compute = if config.dtype == "bf16" { Kind::BFloat16 } else { Kind::Float };

        let tokenizer = Tokenizer::open(self.tokenizer_folder(resumed.as_ref())?)?;
        let start = Start {
            preset: self.request.preset.as_deref(),
            config: self.request.dimensions.as_deref(),
            from: self.request.from.as_deref(),
            adapter: self.request.adapter.as_deref(),
            teacher: self.request.teacher.as_deref(),
            resumed: resumed.as_ref().map(|(path, _)| path.as_path()),
            tokenizer: &tokenizer,
            train: &config,
            device,
            compute,
            listener: self.listener.as_ref(),
        };
        let models = start.open()?;
        let Models { mut model, generation, adapters, base, frozen, .. } = models;
        let cache = self.request.cache.clone().heard_by(self.listener.clone());
        let mut sources = self.sources(&tokenizer, &cache)?;
        sources.extend(models.sources);
        if let Some((path, state)) = &resumed {
            refuse_changes(path, state, &config, &sources, self.listener.as_ref())?;
        }
        let frozen_weights = frozen.as_ref().map_or(0, |model| model.config().parameters().0);
        let tags = Some(&tokenizer);
        let setup = Setup { config: &config, adapters, base, frozen, tokenizer: tags };
        self.stage.prepare(&mut model, setup)?;

        let options = self.sample_options(&config)?;
        let dataset = Dataset::load_cached(&self.request.data, &tokenizer, &options, &cache)?;
        dataset.warnings.iter().for_each(|warning| self.listener.warn(warning));
        let padded = self.stage.counts_padding(&model);
        let held_out = self.request.val.iter().cloned().collect::<Vec<_>>();
        let held_out_set = match held_out.is_empty() {
            true => None,
            false => Some(Dataset::load_cached(&held_out, &tokenizer, &options, &cache)?),
        };
        let mut held_out_batches =
            held_out_set.as_ref().map(|set| batches_of(&config, set, &held_out, false, padded));

        if let Some(path) = &self.request.dump_batches {
            // counted with padding, as the reference builds batches, also where mmx computes none
            // of it
            let mut dumped =
                batches_of(&config, &dataset, &self.request.data, config.shuffle, true);
            session::dump_batches(path, dumped.as_mut(), config.epochs)?;
        }
        let stage = self.stage.as_ref();
        std::thread::scope(|scope| {
            let source = batches_of(&config, &dataset, &self.request.data, config.shuffle, padded);
            let mut batches = Prefetcher::new(scope, source, config.epochs);
            keep_memory();
            let trained = stage.trainable(&model).iter().map(|v| v.tensor.numel()).sum();
            let micro_steps = config
                .max_steps
                .map_or(usize::MAX, |steps| steps.saturating_mul(config.accumulation));
            let estimate = Estimate::new(&Workload {
                config: model.config(),
                compute,
                device,
                trained,
                weights: model.config().parameters().0 + frozen_weights,
                two_distributions: config.distill.is_some(),
                largest: batches.largest(micro_steps)?,
            });
            let can_be_had = available(device);
            if resumed.is_none() {
                estimate.check(can_be_had)?; // what goes on has fitted before
            }
            let mut trainer = Trainer::new(&model, stage, &config, &mut batches)?;
            if let Some((path, state)) = &resumed {
                checkpoint::restore(path, state, &mut trainer)?;
            }
            let listener = self.listener.as_ref();
            announce(&trainer, &dataset, listener);
            listener.say(&estimate.describe(can_be_had));
            if let Some((_, state)) = &resumed {
                let Position { step, micro_step, epoch, .. } = state.position;
                listener.say(&format!(
                    "resumed after step {step} (micro-step {micro_step}, epoch {epoch})"
                ));
            }
            let save_tokenizer = |dir: &Path| tokenizer.save(dir);
            let validation = match &mut held_out_batches {
                Some(batches) => Some(Validation::new(batches.as_mut(), &tokenizer)?),
                None => None,
            };
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
                validation,
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
    fn checkpoint(&self) -> Result<Option<(PathBuf, State)>> {
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
            Some(from) => mmx_hub::resolve(from),
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
        for path in &self.request.data {
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
    shuffle: bool,
    padded: bool,
) -> Box<dyn Batches + Send + 'd> {
    let (seed, size) = (config.seed, config.batch_size);
    match config.pack {
        true => Box::new(Packed::new(dataset, files, seed, shuffle, size)),
        false => Box::new(Ordered::new(dataset, files, seed, shuffle, size, padded)),
    }
}

/// A run goes on exactly or not at all.
fn refuse_changes(
    path: &Path,
    state: &State,
    config: &TrainConfig,
    sources: &[(String, String)],
    listener: &dyn Listener,
) -> Result<()> {
    let (mut changes, harmless) = state.config.differences(config);
    let digests = |of: &[(String, String)]| of.iter().map(|(_, d)| d.clone()).collect::<Vec<_>>();
    if digests(&state.sources) != digests(sources) {
        for (name, digest) in sources {
            if !state.sources.iter().any(|(_, was)| was == digest) {
                changes.push(format!("{name}: another content than before"));
            }
        }
        if state.sources.len() != sources.len() || changes.is_empty() {
            changes.push("`data`: other files or another order than before".into());
        }
    }
    if changes.is_empty() {
        harmless.iter().for_each(|change| listener.say(&format!("goes on with {change}")));
        return Ok(());
    }
    Err(Error::failed_with_hint(
        format!("{}: cannot go on with other settings: {}", path.display(), changes.join("; ")),
        "give the settings of the run's beginning, or start a new run with `from` and another `out`",
    ))
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
    listener.say(&format!(
        "run: {} in {} of {}, {}, recipe {}",
        counted(plan.steps, "optimizer step"),
        counted(plan.micro_steps, "micro-step"),
        counted(config.batch_size, "row"),
        counted(config.epochs, "epoch"),
        config.recipe
    ));
}
