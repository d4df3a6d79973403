//! The part of a job that learns from rewards. In: the models, and the means by which answers are
//! sampled and rewarded, or a file of rollouts. Out: the run's outcome.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use mmx_converters::arch::Config;
use mmx_converters::model::generation::Generation;
use mmx_converters::model::run_folder::Claim;
use mmx_converters::progress::Listener;
use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::words::counted;
use mmx_data::OnBad;
use mmx_rollout::{Engine, Limits, PromptOptions, Prompts, Sampling, Scorer, Toolbox, reward};
use serde_json::Value;

use crate::checkpoint::{self, Context, Found};
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::held_out::HeldOut;
use crate::memory::available::available_to;
use crate::memory::estimate::{Estimate, Workload};
use crate::memory::keep_memory;
use crate::model::{Model, device};
use crate::policy::layout::Layout;
use crate::policy::options::PolicyOptions;
use crate::policy::sampling::Sampler;
use crate::policy::source::{self, Origin, Passes, Source};
use crate::policy::tasks::HeldOutTasks;
use crate::ranks::{Spread, each_of};
use crate::session::{self, Outcome, Session};
use crate::stage::Stage;
use crate::trainer::{Position, Trainer};

/// What an engine is made for.
#[derive(Clone, Copy, Debug)]
pub struct EngineSize<'a> {
    /// The policy's dimensions.
    pub config: &'a Config,
    /// Ids of a row at most, its prompt included.
    pub context: usize,
    /// Rows that are asked for at a time.
    pub rows: usize,
}

/// Makes an engine, once the policy is open.
pub type MakeEngine = dyn FnMut(EngineSize<'_>) -> Result<Box<dyn Engine>>;

/// The means by which answers are sampled and rewarded, handed in by the program that links them.
pub struct Means {
    /// Makes what samples.
    pub engine: Box<MakeEngine>,
    /// What rewards.
    pub scorer: Box<dyn Scorer>,
    /// What answers calls.
    pub tools: Option<Box<dyn Toolbox>>,
    /// The tools as a template is given them, a list in OpenAI's form.
    pub shown: Option<Value>,
}

/// A run that learns from rewards, its models open.
pub(crate) struct Learning<'a> {
    /// Files of tasks.
    pub(crate) data: &'a [PathBuf],
    pub(crate) on_bad: OnBad,
    /// Held-out tasks.
    pub(crate) val: Option<&'a Path>,
    pub(crate) rollouts: Option<&'a Path>,
    pub(crate) rollouts_out: Option<&'a Path>,
    pub(crate) out: &'a Path,
    pub(crate) keep: usize,
    pub(crate) save_every: Option<usize>,
    pub(crate) trace: Option<&'a Path>,
    pub(crate) config: &'a TrainConfig,
    pub(crate) stage: &'a dyn Stage,
    pub(crate) model: &'a Model,
    pub(crate) frozen_weights: usize,
    pub(crate) generation: &'a Generation,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) sources: &'a [(String, String)],
    pub(crate) spread: Spread,
    /// Processes on this machine.
    pub(crate) here: usize,
    pub(crate) resumed: Option<&'a Found>,
    pub(crate) listener: &'a dyn Listener,
}

impl Learning<'_> {
    pub(crate) fn run(
        &self,
        means: Option<&mut Means>,
        claim: Option<Claim>,
        stop: &AtomicBool,
    ) -> Result<Outcome> {
        let Some(options) = &self.config.policy else {
            return Err(Error::failed("expected a stage that learns from rewards"));
        };
        if let Some(path) = self.rollouts {
            if let Some(val) = self.val {
                // nothing samples its answers
                return Err(Error::setting("val", "none with `rollouts`", val.display()));
            }
            let rounds = source::read(path)?;
            source::check_ids(path, &rounds, self.model.config().vocab_size)?;
            let rows = rounds.iter().map(Vec::len).sum::<usize>();
            self.listener.say(&format!(
                "data: {} in {}, {}",
                counted(rows, "rollout"),
                counted(rounds.len(), "batch"),
                path.display()
            ));
            let origin = Origin::File(rounds);
            return self.train(self.source(options, origin, path), 0, None, claim, stop);
        }
        let Some(means) = means else {
            return Err(Error::setting("rollouts", "a file, or an engine that samples", "neither"));
        };
        self.sample_and_train(options, means, claim, stop)
    }

    /// Rollouts of an engine.
    fn sample_and_train(
        &self,
        options: &PolicyOptions,
        means: &mut Means,
        claim: Option<Claim>,
        stop: &AtomicBool,
    ) -> Result<Outcome> {
        let config = self.config;
        let context = config.max_seq_len.min(self.model.config().max_position_embeddings);
        let max_new = options.max_new_tokens.min(context.saturating_sub(1));
        let of_prompts = PromptOptions {
            max_prompt: (context - max_new).max(1),
            thinking_ratio: options.thinking_ratio,
            system_ratio: config.system_ratio,
            seed: config.seed,
            shuffle: config.shuffle,
            tools: means.shown.clone(),
            on_bad: self.on_bad,
            fields: config.fields.clone(),
        };
        let load = |files: &[PathBuf], options: PromptOptions| -> Result<Prompts> {
            let prompts = Prompts::load(files, options)?;
            for (path, line) in prompts.skipped() {
                self.listener.warn(&format!("{}:{line}: left out", path.display()));
            }
            reward::check(&prompts, means.scorer.as_ref())?;
            Ok(prompts)
        };
        let prompts = load(self.data, of_prompts.clone())?;
        let held_out = match self.val {
            Some(path) => {
                let of_prompts = PromptOptions { shuffle: false, ..of_prompts };
                Some(load(&[path.to_owned()], of_prompts)?)
            }
            None => None,
        };
        // each process answers its part of the prompts
        let own = config.batch_size.div_ceil(self.spread.ranks.size());
        let rows = own * options.group_size;
        let size = EngineSize { config: self.model.config(), context, rows };
        let engine = RefCell::new((means.engine)(size)?);
        self.listener.say(&format!(
            "data: {}, {} each; at most {} in {} ids",
            counted(prompts.len(), "prompt"),
            counted(options.group_size, "answer"),
            counted(max_new, "new id"),
            context
        ));
        let of_agent = config.stage == mmx_data::stages::AGENT.name;
        if of_agent && options.overlong_buffer > 0 {
            let expected = "none with stage agent, whose limit is that of a turn";
            return Err(Error::setting("overlong_buffer", expected, options.overlong_buffer));
        }
        let reference = config.recipe == "2026";
        let stop_ids = self.tokenizer.stop_ids(&self.model.config().eos_token_id);
        let all = prompts.len().div_ceil(config.batch_size).saturating_mul(config.epochs);
        let last = match (config.max_steps, &config.ppo) {
            (Some(steps), None) => all.min(steps.saturating_mul(config.accumulation)),
            _ => all,
        };
        let limits = Limits {
            max_new,
            context,
            // the reference never trains the id that closes a turn of an agent
            learn_stop: !(of_agent && reference),
            ..Limits::default()
        };
        let sampling = Sampling {
            temperature: options.temperature as f32,
            top_k: options.top_k,
            top_p: options.top_p as f32,
            stop: stop_ids,
        };
        let (scorer, tools) = (means.scorer.as_ref(), means.tools.as_deref());
        // one answer of each prompt
        let sampler = |prompts, sampling| Sampler {
            model: self.model,
            tokenizer: self.tokenizer,
            prompts,
            engine: &engine,
            scorer,
            tools,
            sampling,
            limits: limits.clone(),
            prompts_each: config.batch_size,
            group_size: 1,
            rows_differ: false,
            resample: 0,
            overlong_buffer: 0,
            seed: config.seed,
            ranks: &self.spread.ranks,
            shown: Vec::new(),
            listener: self.listener,
        };
        let greedy = Sampling { temperature: 0.0, ..sampling.clone() };
        let tasks = held_out
            .as_ref()
            .map(|prompts| HeldOutTasks { sampler: sampler(prompts, greedy.clone()) });
        let sampler = Sampler {
            group_size: options.group_size,
            rows_differ: of_agent,
            resample: options.resample,
            overlong_buffer: options.overlong_buffer,
            shown: vec![0, last.saturating_sub(1) as u64],
            ..sampler(&prompts, sampling)
        };
        let parameters = self.model.config().parameters().0;
        let key = self.model.config().num_key_value_heads * self.model.config().head_dim;
        // keys and values of all rows, in the engine's f16
        let cache = rows * context * key * self.model.config().num_hidden_layers;
        let name = self.data.first().map_or_else(String::new, |of| of.display().to_string());
        let origin = Origin::Engine(Box::new(sampler));
        let source = self.source(options, origin, Path::new(&name));
        let held_out = tasks.map(|tasks| Box::new(tasks) as Box<dyn HeldOut + '_>);
        self.train(source, parameters + cache, held_out, claim, stop)
    }

    /// Batches of some origin.
    fn source<'s>(&self, options: &PolicyOptions, origin: Origin<'s>, path: &Path) -> Source<'s> {
        let config = self.model.config();
        let layout = Layout {
            max_seq_len: self.config.max_seq_len,
            filler: (options.filled && config.moe.is_some())
                .then(|| config.eos_token_id.first().copied().unwrap_or(config.pad_token_id)),
            mask_cut_off: options.mask_cut_off,
        };
        let passes = self.config.ppo.as_ref();
        let passes = passes.map(|ppo| Passes { minibatch: ppo.minibatch, count: ppo.passes });
        let source =
            Source::new(origin, layout, passes, self.config.seed, path.display().to_string());
        source.part(self.spread.ranks.part())
    }

    /// Trains on batches of rollouts; `engine` are the values that an engine holds besides.
    fn train(
        &self,
        mut source: Source<'_>,
        engine: usize,
        held_out: Option<Box<dyn HeldOut + '_>>,
        claim: Option<Claim>,
        stop: &AtomicBool,
    ) -> Result<Outcome> {
        keep_memory();
        let (model, listener) = (self.model, self.listener);
        let config = self.config;
        let (trainable, critic) = (self.stage.trainable(model), self.stage.critic());
        let of_critic: usize = critic.iter().map(|v| v.tensor.numel()).sum();
        let trained: usize = trainable.iter().map(|v| v.tensor.numel()).sum();
        let optimizer = config.optimizer();
        let (rows, positions) = source.longest_size();
        let rows = self.stage.rows_at_a_time(model, rows, positions);
        let estimate = Estimate::new(&Workload {
            config: model.config(),
            compute: model.compute(),
            device: model.device(),
            trained: trained + of_critic,
            moments: optimizer.moments(&trainable) + optimizer.moments(&critic),
            weights: model.config().parameters().0 + self.frozen_weights + of_critic + engine,
            two_distributions: false,
            largest: (rows, positions),
            moments_among: self.spread.moments_among(),
            gradients_among: self.spread.gradients_among(),
        });
        let can_be_had = available_to(model.device(), self.here);
        let begun = match self.resumed {
            Some((_, state)) => state.position,
            None => {
                estimate.check(can_be_had)?; // what goes on has fitted before
                Position::default()
            }
        };
        if let (Some(path), true) = (self.rollouts_out, self.spread.ranks.is_first()) {
            source.write_to(path, begun.epoch, begun.index)?;
        }
        let sampled = self.rollouts.is_none();
        let longest = source.longest(model.config().vocab_size);
        let mut trainer =
            Trainer::among(model, self.stage, config, &mut source, self.spread.clone())?;
        self.announce(&trainer);
        listener.say(&estimate.describe(can_be_had));
        if sampled && self.resumed.is_none() {
            // what is too long fails now, not after the first such row
            trainer.rehearse(&longest)?;
        }
        if let Some((path, state)) = self.resumed {
            checkpoint::restore(path, state, &mut trainer)?;
            let Position { step, micro_step, epoch, .. } = state.position;
            listener.say(&format!(
                "resumed after step {step} (micro-step {micro_step}, epoch {epoch})"
            ));
        }
        trainer.agree()?;
        let save_tokenizer = |dir: &Path| self.tokenizer.save(dir);
        let mut session = Session {
            claim,
            context: Context {
                dir: self.out,
                tokenizer: Some(&save_tokenizer),
                generation: self.generation,
                sources: self.sources,
                keep: self.keep,
                listener,
            },
            save_every: self.save_every,
            trace: self.trace,
            held_out,
        };
        session::run(&mut trainer, self.stage, &mut session, stop)
    }

    /// The lines that describe a run before its first step.
    fn announce(&self, trainer: &Trainer<'_>) {
        let (model, config, plan) = (self.model, self.config, trainer.plan());
        let (ranks, rows) = (trainer.ranks(), config.batch_size);
        if !ranks.alone() && self.rollouts.is_none() {
            self.listener.say(&format!(
                "global batch: {} an optimizer step, {} for each process, in {}",
                counted(rows * config.accumulation, "prompt"),
                each_of(rows, ranks.size()),
                counted(config.accumulation, "micro-step"),
            ));
        }
        let on = device::describe(model.device());
        self.listener.say(&format!(
            "model: {}, {:.2} M parameters; {} on {on}",
            model.config().family.name(),
            model.config().parameters().0 as f64 / 1e6,
            config.dtype,
        ));
        self.listener.say(&format!(
            "run: {} in {}, {}, recipe {}",
            counted(plan.steps, "optimizer step"),
            counted(plan.micro_steps, "micro-step"),
            counted(config.epochs, "epoch"),
            config.recipe
        ));
    }
}
