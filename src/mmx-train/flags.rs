//! `mmx train`: flags and recipe file to a resolved configuration, then one run.

mod knobs;
mod rewards;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, CommandFactory as _};
use mmx_converters::model::adapter::Adapters;
use mmx_converters::quant::file_type::FileType;
use mmx_converters::words::counted;
use mmx_data::{Fields, OnBad, StageInfo};
use mmx_training::config::{self, Decline, MUON_BETAS, OptimizerName, TrainConfig};
use mmx_training::distributed::Place;
use mmx_training::job::{self, Outcome, Request};
use mmx_training::ranks::{Reduce, Shard};
use mmx_training::stage;
use serde_json::json;

use self::knobs::{
    Knobs, Logps, OnFault, Optimizer, ReduceFlag, RolloutType, Schedule, ShardFlag, Switch,
};
use crate::error::{self, Error, Result};
use crate::launch;
use crate::means::Choice;
use crate::talk::note;
use crate::terminal::{STOP, Terminal};

/// Train a model: pretrain it from scratch, or go on from one with another stage
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  mmx train pretrain --preset minimind2-small --tokenizer tok --data text.jsonl --out runs/pretrain
  mmx train sft --from runs/pretrain --data chats.jsonl --epochs 3 --lr 1e-4 --out runs/sft
  mmx train sft --from runs/pretrain --data chats.jsonl --out runs/sft --resume
  mmx train lora --from runs/sft --data medical.jsonl --lora-rank 8 --out runs/lora
  mmx train dpo --from runs/sft --data pairs.jsonl --out runs/dpo
  mmx train distill --from runs/small --teacher runs/large --data chats.jsonl --out runs/distilled
  mmx train sft --from runs/pretrain --data chats.jsonl --out runs/sft --processes 4
  mmx train grpo --from runs/sft --data tasks.jsonl --out runs/grpo --group-size 8

Checkpoints are DIR/checkpoint-STEP: folders that Transformers opens, with training/ beside the weights.
Those of lora are PEFT folders of the adapters alone; mmx opens one as the model it names with them merged.
Ctrl-C saves one and ends; --resume goes on exactly where the newest one was.")]
pub(crate) struct TrainArgs {
    /// What to learn
    #[arg(value_name = "STAGE", value_parser = crate::stages::parser())]
    stage: &'static StageInfo,
    /// Training data: Parquet, CSV, JSON Lines or JSON arrays of records, the text ones also packed
    /// with gzip or zstd; or hf:datasets/owner/name[/FILE] (repeatable)
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "rollouts")]
    data: Vec<PathBuf>,
    /// Put exactly one JSON object on stdout
    #[arg(long)]
    json: bool,
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

/// Runs the training.
///
/// # Errors
/// Anything from flags to a full disk; an interrupted run is one too, after its checkpoint is
/// saved.
pub(crate) fn run(args: TrainArgs) -> Result<()> {
    let stage = args.stage.name;
    let mut knobs = args.knobs;
    if let Some(path) = &args.recipe_file {
        let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let file: Knobs = toml::from_str(&text).map_err(|e| {
            let before = e.span().and_then(|span| text.get(..span.start));
            let line = before.map_or_else(String::new, |before| {
                format!(" line {}:", 1 + before.matches('\n').count())
            });
            // keys of the file: in backticks they would be spelled as options
            let message = e.message().replace('`', "\"");
            Error::failed(format!("{}:{line} {message}", path.display()))
        })?;
        knobs = knobs.or(file);
    }
    if launch::wanted(knobs.processes)? {
        return launch::run(knobs.processes.unwrap_or(1));
    }
    if knobs.global_batch.is_some() && knobs.batch_size.is_some() {
        return Err(Error::usage("--global-batch: expected without --batch-size, found both"));
    }
    let place = Place::from_environment()?;
    let config = knobs.resolve(stage)?;
    // what lies on a hub is fetched here, by one process of each machine: the others meet it then
    let first_here = place.as_ref().is_none_or(|place| place.local_rank == 0);
    let data = mmx_hub::resolve_data(&args.data)?;
    if let Some(val) = knobs.val.take() {
        let mut files = mmx_hub::resolve_data(std::slice::from_ref(&val))?;
        if files.len() > 1 {
            return Err(Error::usage(format!(
                "--val: expected one file, found {} of {}",
                counted(files.len(), "file"),
                val.display()
            )));
        }
        knobs.val = files.pop();
    }
    if first_here {
        knobs.refuse_inputs(&data, &args.out, args.resume)?;
    }
    let learns = config.policy.is_some() && knobs.rollouts.is_none();
    let means = match learns {
        true => Some(
            Choice {
                engine: knobs.engine.take(),
                reward: knobs.reward.take(),
                tools: knobs.tools.take(),
                of_agent: stage == mmx_data::stages::AGENT.name,
                threads: knobs.threads.or_else(|| place.as_ref().map(Place::default_threads)),
                dtype: match knobs.rollout_dtype {
                    None | Some(RolloutType::F32) => FileType::F32,
                    Some(RolloutType::Bf16) => FileType::BF16,
                    Some(RolloutType::F16) => FileType::F16,
                    Some(RolloutType::Q8_0) => FileType::Q8_0,
                },
                allow_unsandboxed: knobs.allow_unsandboxed == Some(Switch::On),
            }
            .open(&data)?,
        ),
        false => None,
    };
    let request = Request {
        choose_dtype: matches!(knobs.dtype.as_deref(), None | Some("auto")),
        resume: args.resume,
        preset: knobs.preset,
        dimensions: knobs.config,
        from: knobs.from,
        tokenizer: knobs.tokenizer,
        adapter: knobs.adapter,
        teacher: knobs.teacher,
        device: knobs.device,
        threads: knobs.threads.or_else(|| place.as_ref().map(Place::default_threads)),
        on_bad: match knobs.on_bad {
            Some(OnFault::Skip) => OnBad::Skip,
            _ => OnBad::Error,
        },
        save_every: knobs.save_every,
        keep: knobs.keep.unwrap_or(2),
        val: knobs.val,
        reference: knobs.reference,
        rollouts: knobs.rollouts,
        rollouts_out: knobs.rollouts_out,
        trace: knobs.trace,
        dump_batches: knobs.dump_batches,
        global_batch: knobs.global_batch,
        shard: match knobs.shard {
            None => Shard::Nothing,
            Some(ShardFlag::Optimizer) => Shard::Optimizer,
            Some(ShardFlag::Gradients) => Shard::Gradients,
        },
        reduce: match knobs.reduce {
            None | Some(ReduceFlag::F32) => Reduce::F32,
            Some(ReduceFlag::Bf16) => Reduce::Bf16,
        },
        place,
        ..Request::new(config, data, args.out)
    };
    // the first of several processes speaks for all
    let quiet = request.place.as_ref().is_some_and(|place| place.rank > 0);
    let terminal = Terminal::spelling(error::options_of(&crate::Train::command())).quiet(quiet);
    let outcome = job::run_with(request, means, Arc::new(terminal), &STOP)?;
    if quiet {
        return Ok(());
    }
    if args.json {
        println!("{}", to_json(&outcome));
    } else {
        println!("{}", outcome.checkpoint.display());
    }
    note!("{}", summary(&outcome));
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
        "checkpoint": outcome.checkpoint.to_string_lossy(),
        "steps": outcome.steps,
        "total_steps": outcome.total_steps,
        "loss": outcome.loss,
        "val_loss": outcome.val_loss,
        "val_reward": outcome.val_reward,
        "tokens_per_s": outcome.tokens_per_s,
        "seconds": outcome.seconds,
        "interrupted": outcome.interrupted,
    })
}

impl Knobs {
    /// Options over the stage's defaults; an element type that is to be chosen is not chosen yet.
    fn resolve(&self, stage: &str) -> Result<TrainConfig> {
        let knobs = self;
        let of_rewards = mmx_data::stages::learns_from_rewards(stage);
        let recipe = match knobs.recipe.as_deref() {
            Some(recipe) => recipe,
            None if of_rewards => config::OWN,
            None => "2026",
        };
        let of_stage = stage::by_name(stage)?;
        let mut config = TrainConfig::named(of_stage.as_ref(), recipe)?;
        match knobs.optimizer {
            Some(Optimizer::Muon) => {
                config.optimizer = OptimizerName::Muon;
                config.betas = MUON_BETAS;
            }
            Some(Optimizer::AdamW) if config.optimizer == OptimizerName::Muon => {
                // Muon's learning rates are none for AdamW
                let reference = TrainConfig::new(of_stage.as_ref(), config.recipe()?);
                config.optimizer = OptimizerName::AdamW;
                (config.lr, config.adam_lr) = (reference.lr, None);
            }
            Some(Optimizer::AdamW) | None => {}
        }
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
        config.rope_theta = knobs.rope_theta;
        set(&mut config.warmup, &knobs.warmup);
        if knobs.warmup.is_some() {
            config.warmup_share = 0.0;
        }
        config.adam_lr = knobs.adam_lr.or(config.adam_lr);
        if let Some(text) = &knobs.betas {
            let two = text.split_once(',').and_then(|(first, second)| {
                Some((first.trim().parse().ok()?, second.trim().parse().ok()?))
            });
            let expected = || format!("--betas: expected two numbers, X,Y, found {text}");
            config.betas = two.ok_or_else(|| Error::usage(expected()))?;
        }
        let schedule = knobs.schedule.map(|schedule| match schedule {
            Schedule::Cosine if of_rewards => Decline::CosineSteps,
            Schedule::Cosine => Decline::Cosine,
            Schedule::Linear => Decline::Linear,
        });
        set(&mut config.schedule, &schedule);
        set(&mut config.seed, &knobs.seed);
        set(&mut config.system_ratio, &knobs.system_ratio);
        set(&mut config.empty_think_ratio, &knobs.empty_think_ratio);
        config.fields = Fields::parse(knobs.field.as_deref().unwrap_or_default())?;
        config.max_steps = knobs.max_steps;
        if let Some(pack) = knobs.pack {
            config.pack = pack == Switch::On;
        }
        config.shuffle = knobs.shuffle != Some(Switch::Off);
        if let Some(tail) = knobs.accum_tail {
            config.step_at_epoch_end = tail == Switch::On;
        }
        config.skip_non_finite = knobs.non_finite == Some(OnFault::Skip);
        self.refuse_options_of_other_stages(stage)?;
        if let Some(dpo) = &mut config.dpo {
            set(&mut dpo.beta, &knobs.beta);
            let logps = knobs.logps.map(|logps| match logps {
                Logps::Mean => config::Logps::Mean,
                Logps::Sum => config::Logps::Sum,
            });
            set(&mut dpo.logps, &logps);
        }
        if let Some(distill) = &mut config.distill {
            set(&mut distill.alpha, &knobs.alpha);
            set(&mut distill.temperature, &knobs.temperature);
        }
        if of_rewards
            && (knobs.lora_rank.is_some() || knobs.lora_target.is_some() || knobs.adapter.is_some())
        {
            config.lora = Some(config::LoraOptions::new(config.recipe()?));
        }
        if let Some(policy) = &mut config.policy {
            knobs.of_rewards(policy, recipe)?;
        }
        if let Some(ppo) = &mut config.ppo {
            set(&mut ppo.critic_lr, &knobs.critic_lr);
            set(&mut ppo.minibatch, &knobs.minibatch_size);
            set(&mut ppo.passes, &knobs.ppo_epochs);
        }
        if let Some(lora) = &mut config.lora {
            set(&mut lora.rank, &knobs.lora_rank);
            lora.alpha = knobs.lora_alpha.unwrap_or(lora.rank as f64);
            set(&mut lora.target, &knobs.lora_target);
            if let Some(path) = &knobs.adapter {
                let adapters = Adapters::open(&mmx_hub::resolve(path)?)?;
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
    fn refuse_options_of_other_stages(&self, stage: &str) -> Result<()> {
        let knobs = self;
        let of_rewards = mmx_data::stages::learns_from_rewards(stage);
        knobs.refuse_rewards_elsewhere(stage)?;
        let options = [
            ("lora", "--lora-rank", knobs.lora_rank.is_some() && !of_rewards),
            ("lora", "--lora-alpha", knobs.lora_alpha.is_some() && !of_rewards),
            ("lora", "--lora-target", knobs.lora_target.is_some() && !of_rewards),
            ("lora", "--adapter", knobs.adapter.is_some() && !of_rewards),
            ("ppo", "--critic-lr", knobs.critic_lr.is_some()),
            ("ppo", "--minibatch-size", knobs.minibatch_size.is_some()),
            ("ppo", "--ppo-epochs", knobs.ppo_epochs.is_some()),
            ("dpo", "--beta", knobs.beta.is_some()),
            ("dpo", "--logps", knobs.logps.is_some()),
            ("distill", "--teacher", knobs.teacher.is_some()),
            ("distill", "--alpha", knobs.alpha.is_some()),
            ("distill", "--temperature", knobs.temperature.is_some() && !of_rewards),
        ];
        match options.iter().find(|(of, _, given)| *given && *of != stage) {
            Some((of, option, _)) => Err(Error::usage(format!(
                "{option}: expected with stage {of} only, found with {stage}"
            ))),
            None => Ok(()),
        }
    }

    /// Refuses to write a file that the run reads.
    fn refuse_inputs(&self, data: &[PathBuf], out: &Path, resume: bool) -> Result<()> {
        let files =
            [&self.val, &self.config, &self.adapter, &self.rollouts, &self.reward, &self.tools];
        let files = files.into_iter().flatten();
        let folders = [&self.from, &self.tokenizer, &self.teacher, &self.reference];
        let folders = folders.into_iter().flatten();
        let folders = folders.map(|path| mmx_hub::resolve(path)).collect::<Result<Vec<_>, _>>()?;
        let inputs: Vec<&Path> =
            data.iter().chain(files).chain(&folders).map(PathBuf::as_path).collect();
        let metrics = Some(out.join("metrics.jsonl")).filter(|_| !resume);
        let rollouts = self.rollouts_out.clone().filter(|_| !resume);
        let outputs = [&self.trace, &self.dump_batches, &metrics, &rollouts];
        for output in outputs.into_iter().flatten() {
            mmx_converters::file::refuse_input(output, inputs.iter().copied())?;
        }
        Ok(())
    }
}
