//! `mmx train`: flags and recipe file to a resolved configuration, then one run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use mmx_converters::adapter::Adapters;
use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::words::counted;
use serde::Deserialize;
use serde_json::json;
use tch::Kind;

use super::train_models::{Models, Start};
use crate::checkpoint::{self, Context, State};
use crate::config::{Logps, TrainConfig};
use crate::data::{Cache, Dataset, Recipe, SampleOptions};
use crate::digest;
use crate::error::{Error, Result};
use crate::model::device;
use crate::runs;
use crate::stage::{self, Setup, Stage};
use crate::train::ahead::Ahead;
use crate::train::available::available;
use crate::train::batches::{Batches, Ordered, Packed};
use crate::train::estimate::{Estimate, Workload};
use crate::train::session::{self, Outcome, Session, Validation};
use crate::train::{Position, Trainer};

/// Train a model: pretrain it from scratch, or go on from one with another stage
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx train pretrain --preset minimind2-small --tokenizer tok --data text.jsonl --out runs/pretrain
  mmx train sft --from runs/pretrain --data chats.jsonl --epochs 3 --lr 1e-4 --out runs/sft
  mmx train sft --from runs/pretrain --data chats.jsonl --out runs/sft --resume
  mmx train lora --from runs/sft --data medical.jsonl --lora-rank 8 --out runs/lora
  mmx train dpo --from runs/sft --data pairs.jsonl --out runs/dpo
  mmx train distill --from runs/small --teacher runs/large --data chats.jsonl --out runs/distilled

Checkpoints are DIR/checkpoint-STEP: folders that Transformers opens, with training/ beside the weights.
Those of lora are PEFT folders of the adapters alone; mmx opens one as the model it names with them merged.
Ctrl-C saves one and ends; --resume goes on exactly where the newest one was.")]
pub struct TrainArgs {
    /// What to learn
    stage: StageName,
    /// Training data, JSON Lines or JSON arrays of records, also packed with gzip or zstd (repeatable)
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// Folder of the run: checkpoints, metrics.jsonl, and tb/ for TensorBoard
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on from the newest checkpoint in the run's folder
    #[arg(long)]
    resume: bool,
    /// Options from a TOML file, named as here; those given here win
    #[arg(long, value_name = "FILE")]
    recipe_file: Option<PathBuf>,
    #[command(flatten)]
    knobs: Knobs,
}

/// The stages.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum StageName {
    /// Next token of plain text, from scratch
    Pretrain,
    /// The assistant's turns of chats
    Sft,
    /// The same with low-rank adapters beside fixed weights
    Lora,
    /// Chosen answers against rejected ones
    Dpo,
    /// A teacher's distribution as well as the answers
    Distill,
    /// Answers that think first, their tags weighing tenfold
    Reason,
}

/// on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Switch {
    On,
    Off,
}

/// What to do with what is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnFault {
    /// End the run
    Stop,
    /// Leave it out and say so
    Skip,
}

/// Defines the options once: as flags, as keys of the recipe file, and how the two are merged.
macro_rules! knobs {
    ($($(#[$attribute:meta])* $field:ident: $type:ty,)*) => {
        /// The options that a recipe file may hold too.
        #[derive(Args, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        struct Knobs {
            $($(#[$attribute])* $field: Option<$type>,)*
        }

        impl Knobs {
            /// What is not given here is taken from `other`.
            fn or(self, other: Self) -> Self {
                Self { $($field: self.$field.or(other.$field),)* }
            }
        }
    };
}

knobs! {
    /// Dimensions by name: minimind2-small, minimind2, minimind3, tiny, ... (vocabulary: the tokenizer's)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "from"])]
    preset: String,
    /// Dimensions from a config.json, MiniMind's or Transformers'
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    config: PathBuf,
    /// Model to start from: a checkpoint, a run's folder, a Transformers folder, a GGUF
    #[arg(long, value_name = "MODEL")]
    from: PathBuf,
    /// Tokenizer's folder; without it the one beside --from
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// The reference's conventions: 2025 or 2026 [default: 2026]
    #[arg(long, value_name = "YEAR")]
    recipe: String,
    /// Passes over the data
    #[arg(long, value_name = "N", value_parser = super::values::at_least_one)]
    epochs: usize,
    /// Rows per micro-step
    #[arg(long, value_name = "N", value_parser = super::values::at_least_one)]
    batch_size: usize,
    /// Micro-steps per optimizer step
    #[arg(long, value_name = "N", value_parser = super::values::at_least_one)]
    accum: usize,
    /// Step at an epoch's end on what is left of an accumulation [default: on; 2025: off]
    #[arg(long, value_name = "on|off")]
    accum_tail: Switch,
    /// Peak learning rate
    #[arg(long, value_name = "X")]
    lr: f64,
    /// AdamW's decoupled weight decay [default: 0.01]
    #[arg(long, value_name = "X")]
    weight_decay: f64,
    /// Largest gradient norm, 0 for none [default: 1]
    #[arg(long, value_name = "X")]
    grad_clip: f64,
    /// Samples are cut to this many tokens
    #[arg(long, value_name = "N")]
    max_seq_len: usize,
    /// End after this many optimizer steps; the learning rate ends there too
    #[arg(long, value_name = "N")]
    max_steps: usize,
    /// Optimizer steps over which the learning rate rises [default: 0]
    #[arg(long, value_name = "N")]
    warmup: usize,
    /// Initial weights, order and augmentations [default: 1337]
    #[arg(long, value_name = "N")]
    seed: u64,
    /// A new order each epoch; off: file order [default: on]
    #[arg(long, value_name = "on|off")]
    shuffle: Switch,
    /// Samples share rows; off: one padded row each, as the reference [default: on]
    #[arg(long, value_name = "on|off")]
    pack: Switch,
    /// 2026: share of chats without a system turn that get one [default: 0.2; dpo: 0]
    #[arg(long, value_name = "X")]
    system_ratio: f64,
    /// 2026: share of chats whose empty think blocks are kept [default: 0.2]
    #[arg(long, value_name = "X")]
    empty_think_ratio: f64,
    /// lora: inner dimension of the adapters [default: 16; 2025: 8]
    #[arg(long, value_name = "N", value_parser = super::values::at_least_one)]
    lora_rank: usize,
    /// lora: their product counts alpha / rank times [default: the rank]
    #[arg(long, value_name = "X")]
    lora_alpha: f64,
    /// lora: square, all, or names of linear layers (q_proj,v_proj) [default: square]
    #[arg(long, value_name = "LAYERS")]
    lora_target: String,
    /// lora: adapters to begin with: a run, a PEFT folder, or their weights (safetensors, .pth)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["lora_rank", "lora_alpha", "lora_target"])]
    adapter: PathBuf,
    /// dpo: how hard the policy is held to the reference [default: 0.15; 2025: 0.1]
    #[arg(long, value_name = "X")]
    beta: f64,
    /// dpo: an answer's log-probability is the mean or sum of its tokens' [default: sum; 2025: mean]
    #[arg(long, value_name = "mean|sum")]
    logps: Logps,
    /// distill: the model to learn from, of any family whose vocabulary is at least as large
    #[arg(long, value_name = "MODEL")]
    teacher: PathBuf,
    /// distill: the cross-entropy's share, the rest is the teacher's [default: 0.5; 2025: 0]
    #[arg(long, value_name = "X")]
    alpha: f64,
    /// distill: softens both distributions [default: 1.5; 2025: 1]
    #[arg(long, value_name = "X")]
    temperature: f64,
    /// What to compute in: auto, f32 or bf16; master weights are float32 [default: auto]
    #[arg(long, value_name = "TYPE")]
    dtype: String,
    /// Where to compute: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: String,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = super::values::at_least_one)]
    threads: usize,
    /// Optimizer steps between checkpoints [default: every ten minutes]
    #[arg(long, value_name = "N")]
    save_every: usize,
    /// Checkpoints to keep [default: 2]
    #[arg(long, value_name = "K")]
    keep: usize,
    /// A faulty line of data [default: stop]
    #[arg(long, value_name = "stop|skip")]
    on_bad: OnFault,
    /// A loss or gradient that is not finite [default: stop]
    #[arg(long, value_name = "stop|skip")]
    non_finite: OnFault,
    /// Held-out data: with every checkpoint its loss, and how the model continues a few of its samples
    #[arg(long, value_name = "FILE")]
    val: PathBuf,
    /// Write every micro-step's numbers and the final weights' sums here
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Write all batches of the run here (safetensors: I.x, I.y, I.mask)
    #[arg(long, value_name = "FILE")]
    dump_batches: PathBuf,
}

/// Runs it.
///
/// # Errors
/// Anything from flags to a full disk; an interrupted run is one too, after its checkpoint is saved.
pub(super) fn run(args: TrainArgs, as_json: bool) -> Result<()> {
    crate::omp::restart_with_short_spins();
    let stage = stage::by_name(match args.stage {
        StageName::Pretrain => "pretrain",
        StageName::Sft => "sft",
        StageName::Lora => "lora",
        StageName::Dpo => "dpo",
        StageName::Distill => "distill",
        StageName::Reason => "reason",
    })?;
    let mut knobs = args.knobs;
    if let Some(path) = &args.recipe_file {
        let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let file: Knobs = toml::from_str(&text)
            .map_err(|e| Error::failed(format!("{}: {}", path.display(), e.message())))?;
        knobs = knobs.or(file);
    }
    let request = Request { stage, data: args.data, out: args.out, resume: args.resume, knobs };
    let outcome = request.train()?;
    if as_json {
        println!("{}", to_json(&outcome));
    } else {
        println!("{}", outcome.checkpoint.display());
    }
    eprintln!("{}", summary(&outcome));
    if outcome.interrupted {
        return Err(Error::failed_with_hint(
            format!("interrupted after step {}; saved", outcome.total_steps),
            "the same command with --resume goes on from there",
        ));
    }
    Ok(())
}

/// What came of the run, in one line.
fn summary(outcome: &Outcome) -> String {
    let loss = |loss: Option<f64>, name: &str| match loss {
        Some(loss) => format!(", {name} {loss:.4}"),
        None => String::new(),
    };
    let Outcome { steps, total_steps, seconds, .. } = *outcome;
    if outcome.nothing_left {
        let last = loss(outcome.loss_before, "last loss");
        return format!(
            "nothing is left to do: {total_steps} of {}{last}",
            counted(total_steps, "step")
        );
    }
    let all = match steps == total_steps {
        true => String::new(),
        false => format!(", {total_steps} with those before"),
    };
    let made = counted(steps, "step");
    let speed = outcome.tokens_per_s;
    format!("{made} in {seconds:.1} s{all}, {speed:.0} tokens/s{}", loss(outcome.loss, "loss"))
}

fn to_json(outcome: &Outcome) -> serde_json::Value {
    json!({
        "checkpoint": outcome.checkpoint,
        "steps": outcome.steps,
        "total_steps": outcome.total_steps,
        "loss": outcome.loss,
        "val_loss": outcome.val_loss,
        "tokens_per_s": outcome.tokens_per_s,
        "seconds": outcome.seconds,
        "interrupted": outcome.interrupted,
    })
}

/// A validated command line.
struct Request {
    stage: Box<dyn Stage>,
    data: Vec<PathBuf>,
    out: PathBuf,
    resume: bool,
    knobs: Knobs,
}

impl Request {
    fn train(mut self) -> Result<Outcome> {
        if let Some(threads) = self.knobs.threads {
            let count = i32::try_from(threads).ok().filter(|n| *n > 0).ok_or_else(|| {
                Error::usage(format!("--threads: expected at least 1, found {threads}"))
            })?;
            tch::set_num_threads(count);
        } else if let Ok(most) = i32::try_from(mmx_ggml::cpus()) {
            // libtorch knows no quotas of control groups
            tch::set_num_threads(tch::get_num_threads().min(most));
        }
        crate::omp::choose_kernels()?;
        let device = device::pick(self.knobs.device.as_deref())?;
        let mut config = self.resolve()?;
        self.refuse_inputs()?;
        let claim = match self.out.is_dir() {
            true => Some(runs::claim(&self.out)?),
            false => None,
        };
        let resumed = self.checkpoint()?;
        if matches!(self.knobs.dtype.as_deref(), None | Some("auto")) {
            // measured once per run: measured again it might come out the other way
            config.dtype = match &resumed {
                Some((_, state)) => state.config.dtype.clone(),
                None => device::best_dtype(device)?.into(),
            };
        }
        let compute = if config.dtype == "bf16" { Kind::BFloat16 } else { Kind::Float };

        let tokenizer = Tokenizer::open(self.tokenizer_folder(resumed.as_ref())?)?;
        let start = Start {
            preset: self.knobs.preset.as_deref(),
            config: self.knobs.config.as_deref(),
            from: self.knobs.from.as_deref(),
            adapter: self.knobs.adapter.as_deref(),
            teacher: self.knobs.teacher.as_deref(),
            resumed: resumed.as_ref().map(|(path, _)| path.as_path()),
            tokenizer: &tokenizer,
            train: &config,
            device,
            compute,
        };
        let models = start.open()?;
        let Models { mut model, generation, adapters, base, frozen, .. } = models;
        let cache = Cache::user();
        let mut sources = self.sources(&tokenizer, &cache)?;
        sources.extend(models.sources);
        if let Some((path, state)) = &resumed {
            refuse_changes(path, state, &config, &sources)?;
        }
        let frozen_weights = frozen.as_ref().map_or(0, |model| model.config().parameters().0);
        let tags = Some(&tokenizer);
        let setup = Setup { config: &config, adapters, base, frozen, tokenizer: tags };
        self.stage.prepare(&mut model, setup)?;

        let options = self.sample_options(&config)?;
        let dataset = Dataset::load_cached(&self.data, &tokenizer, &options, &cache)?;
        dataset.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        let padded = self.stage.counts_padding(&model);
        let held_out = self.knobs.val.iter().cloned().collect::<Vec<_>>();
        let held_out_set = match held_out.is_empty() {
            true => None,
            false => Some(Dataset::load_cached(&held_out, &tokenizer, &options, &cache)?),
        };
        let mut held_out_batches =
            held_out_set.as_ref().map(|set| batches_of(&config, set, &held_out, false, padded));

        if let Some(path) = &self.knobs.dump_batches {
            // padded as the reference builds them, also where the model is spared the padding
            let mut dumped = batches_of(&config, &dataset, &self.data, config.shuffle, true);
            session::dump_batches(path, dumped.as_mut(), config.epochs)?;
        }
        let stage = self.stage.as_ref();
        std::thread::scope(|scope| {
            let source = batches_of(&config, &dataset, &self.data, config.shuffle, padded);
            let mut batches = Ahead::new(scope, source, config.epochs);
            crate::train::keep_memory();
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
            announce(&trainer, &dataset);
            eprintln!("{}", estimate.describe(can_be_had));
            if let Some((_, state)) = &resumed {
                let Position { step, micro_step, epoch, .. } = state.position;
                eprintln!("resumed after step {step} (micro-step {micro_step}, epoch {epoch})");
            }
            let save_tokenizer = |dir: &Path| tokenizer.save(dir);
            let validation = match &mut held_out_batches {
                Some(batches) => Some(Validation::new(batches.as_mut(), &tokenizer)?),
                None => None,
            };
            let mut session = Session {
                claim,
                context: Context {
                    dir: &self.out,
                    tokenizer: Some(&save_tokenizer),
                    generation: &generation,
                    sources: &sources,
                    keep: self.knobs.keep.unwrap_or(2),
                },
                save_every: self.knobs.save_every,
                trace: self.knobs.trace.as_deref(),
                validation,
            };
            session::run(&mut trainer, stage, &mut session, stop_flag()?)
        })
    }

    /// Options over the stage's defaults; an element type that is to be chosen is not chosen yet.
    fn resolve(&self) -> Result<TrainConfig> {
        let knobs = &self.knobs;
        let recipe = match knobs.recipe.as_deref() {
            None | Some("2026") => Recipe::R2026,
            Some("2025") => Recipe::R2025,
            Some(other) => {
                return Err(Error::usage(format!(
                    "--recipe: expected 2025 or 2026, found {other}"
                )));
            }
        };
        let mut config = TrainConfig::new(self.stage.as_ref(), recipe);
        fn set<T: Clone>(target: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                *target = value.clone();
            }
        }
        set(&mut config.epochs, &knobs.epochs);
        set(&mut config.batch_size, &knobs.batch_size);
        set(&mut config.accumulation, &knobs.accum);
        set(&mut config.lr, &knobs.lr);
        set(&mut config.weight_decay, &knobs.weight_decay);
        set(&mut config.grad_clip, &knobs.grad_clip);
        set(&mut config.max_seq_len, &knobs.max_seq_len);
        set(&mut config.warmup, &knobs.warmup);
        set(&mut config.seed, &knobs.seed);
        set(&mut config.system_ratio, &knobs.system_ratio);
        set(&mut config.empty_think_ratio, &knobs.empty_think_ratio);
        config.max_steps = knobs.max_steps;
        if let Some(pack) = knobs.pack {
            config.pack = pack == Switch::On;
        }
        config.shuffle = knobs.shuffle != Some(Switch::Off);
        if let Some(tail) = knobs.accum_tail {
            config.step_at_epoch_end = tail == Switch::On;
        }
        config.skip_non_finite = knobs.non_finite == Some(OnFault::Skip);
        self.refuse_options_of_other_stages()?;
        if let Some(dpo) = &mut config.dpo {
            set(&mut dpo.beta, &knobs.beta);
            set(&mut dpo.logps, &knobs.logps);
        }
        if let Some(distill) = &mut config.distill {
            set(&mut distill.alpha, &knobs.alpha);
            set(&mut distill.temperature, &knobs.temperature);
        }
        if let Some(lora) = &mut config.lora {
            set(&mut lora.rank, &knobs.lora_rank);
            lora.alpha = knobs.lora_alpha.unwrap_or(lora.rank as f64);
            set(&mut lora.target, &knobs.lora_target);
            if let Some(path) = &knobs.adapter {
                let adapters = Adapters::open(&runs::resolve(path)?)?;
                (lora.rank, lora.alpha) = (adapters.rank, adapters.alpha);
                lora.target = adapters.targets().join(",");
            }
        }
        if let Some(dtype) = knobs.dtype.as_deref().filter(|dtype| *dtype != "auto") {
            config.dtype = dtype.to_owned();
        }
        if knobs.save_every == Some(0) {
            return Err(Error::usage("--save-every: expected at least 1, found 0"));
        }
        config.check()?;
        Ok(config)
    }

    /// An option that the stage would not look at is a mistake.
    fn refuse_options_of_other_stages(&self) -> Result<()> {
        let knobs = &self.knobs;
        let options = [
            ("lora", "--lora-rank", knobs.lora_rank.is_some()),
            ("lora", "--lora-alpha", knobs.lora_alpha.is_some()),
            ("lora", "--lora-target", knobs.lora_target.is_some()),
            ("lora", "--adapter", knobs.adapter.is_some()),
            ("dpo", "--beta", knobs.beta.is_some()),
            ("dpo", "--logps", knobs.logps.is_some()),
            ("distill", "--teacher", knobs.teacher.is_some()),
            ("distill", "--alpha", knobs.alpha.is_some()),
            ("distill", "--temperature", knobs.temperature.is_some()),
        ];
        let stage = self.stage.name();
        match options.iter().find(|(of, _, given)| *given && *of != stage) {
            Some((of, option, _)) => Err(Error::usage(format!(
                "{option}: expected with stage {of} only, found with {stage}"
            ))),
            None => Ok(()),
        }
    }

    fn sample_options(&self, config: &TrainConfig) -> Result<SampleOptions> {
        use crate::data::OnBad;
        let on_bad = match self.knobs.on_bad {
            Some(OnFault::Skip) => OnBad::Skip,
            _ => OnBad::Error,
        };
        let options = SampleOptions::new(config.recipe()?, self.stage.kind(), config.max_seq_len);
        Ok(SampleOptions {
            on_bad,
            system_ratio: config.system_ratio,
            empty_think_ratio: config.empty_think_ratio,
            seed: config.seed,
            ..options
        })
    }

    /// Refuses to write a file that the run reads.
    fn refuse_inputs(&self) -> Result<()> {
        let knobs = &self.knobs;
        let files = [&knobs.val, &knobs.config, &knobs.adapter].into_iter().flatten();
        let folders = [&knobs.from, &knobs.tokenizer, &knobs.teacher].into_iter().flatten();
        let folders = folders.map(|path| runs::resolve(path)).collect::<Result<Vec<_>>>()?;
        let inputs: Vec<&Path> =
            self.data.iter().chain(files).chain(&folders).map(PathBuf::as_path).collect();
        let metrics = Some(self.out.join("metrics.jsonl")).filter(|_| !self.resume);
        for output in [&knobs.trace, &knobs.dump_batches, &metrics].into_iter().flatten() {
            mmx_converters::file::refuse_input(output, inputs.iter().copied())?;
        }
        Ok(())
    }

    /// The checkpoint to go on from, if that is asked for and there is one.
    fn checkpoint(&self) -> Result<Option<(PathBuf, State)>> {
        if !self.resume {
            let there = runs::checkpoints(&self.out)?;
            return match there.last() {
                None => Ok(None),
                Some(path) => Err(Error::failed_with_hint(
                    format!("{}: a checkpoint of an earlier run is here already", path.display()),
                    "--resume goes on from it; another --out begins anew",
                )),
            };
        }
        let (found, warnings) = checkpoint::newest(&self.out)?;
        warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        if found.is_none() {
            eprintln!("{}: no checkpoint yet, beginning at the start", self.out.display());
        }
        Ok(found)
    }

    fn tokenizer_folder(&self, resumed: Option<&(PathBuf, State)>) -> Result<PathBuf> {
        if let Some(dir) = &self.knobs.tokenizer {
            return Ok(dir.clone());
        }
        if let Some((checkpoint, _)) = resumed {
            return Ok(checkpoint.clone());
        }
        match &self.knobs.from {
            Some(from) => runs::resolve(from),
            None => Err(Error::usage("--tokenizer: expected a tokenizer's folder, found none")),
        }
    }

    /// Names and digests of what the run learns from.
    fn sources(&self, tokenizer: &Tokenizer, cache: &Cache) -> Result<Vec<(String, String)>> {
        let mut sources = Vec::new();
        for path in &self.data {
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
            changes.push("--data: other files or another order than before".into());
        }
    }
    if changes.is_empty() {
        harmless.iter().for_each(|change| eprintln!("goes on with {change}"));
        return Ok(());
    }
    Err(Error::failed_with_hint(
        format!("{}: cannot go on with other settings: {}", path.display(), changes.join("; ")),
        "give the settings of the run's beginning, or start a new run with --from and another --out",
    ))
}

/// What the run is, before its first step.
fn announce(trainer: &Trainer<'_>, dataset: &Dataset) {
    let (model, config, plan) = (trainer.model(), trainer.config(), trainer.plan());
    let (total, active) = model.config().parameters();
    let active = match active == total {
        true => String::new(),
        false => format!(", {:.2} M of them per token", active as f64 / 1e6),
    };
    eprintln!(
        "model: {}, {:.2} M parameters{active}; {} on {}",
        model.config().family.name(),
        total as f64 / 1e6,
        config.dtype,
        device::describe(model.device()),
    );
    let tokens = dataset.tokens();
    let unit = if dataset.is_pairs() { "pair" } else { "sample" };
    eprintln!("data: {}, {tokens} tokens per epoch", counted(dataset.len(), unit));
    eprintln!(
        "run: {} in {} of {}, {}, recipe {}",
        counted(plan.steps, "optimizer step"),
        counted(plan.micro_steps, "micro-step"),
        counted(config.batch_size, "row"),
        counted(config.epochs, "epoch"),
        config.recipe
    );
}

/// Set by Ctrl-C and SIGTERM; a second one ends the process at once.
fn stop_flag() -> Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    let handler = || {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // 128 + SIGINT
        }
        eprintln!("\nstopping after this micro-step; once more ends at once without saving");
    };
    ctrlc::set_handler(handler).map_err(|e| Error::failed(format!("catching Ctrl-C: {e}")))?;
    Ok(&STOP)
}
