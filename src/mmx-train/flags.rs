//! `mmx train`: flags and recipe file to a resolved configuration, then one run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, CommandFactory as _, ValueEnum};
use mmx_converters::model::adapter::Adapters;
use mmx_converters::words::counted;
use mmx_data::{Fields, OnBad, StageInfo};
use mmx_training::config::{self, Decline, MUON_BETAS, OptimizerName, TrainConfig};
use mmx_training::distributed::Place;
use mmx_training::job::{self, Outcome, Request};
use mmx_training::policy::options::{Objective, PolicyOptions};
use mmx_training::ranks::{Reduce, Shard};
use mmx_training::stage;
use serde::Deserialize;
use serde_json::json;

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

/// A switch: on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Switch {
    On,
    Off,
}

/// How an answer's log-probability is made of its tokens'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Logps {
    /// The mean over the tokens
    Mean,
    /// The sum over the tokens, as the paper has it
    Sum,
}

/// What changes the hidden matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Optimizer {
    /// As the references
    #[value(name = "adamw")]
    AdamW,
    /// Orthogonalized momentum
    Muon,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Schedule {
    /// To a tenth
    Cosine,
    /// To 0
    Linear,
}

/// The action on a faulty record or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnFault {
    /// End the run
    Stop,
    /// Leave it out and say so
    Skip,
}

/// What is divided among processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ShardFlag {
    /// The moments
    Optimizer,
    /// The moments and the gradients
    Gradients,
}

/// The type in which gradients travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ReduceFlag {
    F32,
    Bf16,
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
    /// Dimensions by name: minimind2-small, minimind2, minimind3, tiny, ... (vocabulary: the
    /// tokenizer's)
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
    /// The reference's conventions, 2025 or 2026; fast: pretraining with fewer tokens to the same
    /// loss; mmx: learning from rewards of one distribution [default: 2026; from rewards: mmx]
    #[arg(long, value_name = "NAME")]
    recipe: String,
    /// Passes over the data
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one)]
    epochs: usize,
    /// Rows per micro-step
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one)]
    batch_size: usize,
    /// Micro-steps per optimizer step
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one)]
    accum: usize,
    /// Step at an epoch's end on what is left of an accumulation [default: on; 2025: off]
    #[arg(long, value_name = "on|off")]
    accum_tail: Switch,
    /// Peak learning rate
    #[arg(long, value_name = "X")]
    lr: f64,
    /// Decoupled weight decay [default: 0.01; fast: 0.1]
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
    /// Optimizer steps over which the learning rate rises [default: 0; fast: 3 % of all]
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
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one)]
    lora_rank: usize,
    /// lora: the adapters' product counts alpha / rank times [default: the rank]
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
    /// dpo: an answer's log-probability is the mean or sum of its tokens'
    /// [default: sum; 2025: mean]
    #[arg(long, value_name = "mean|sum")]
    logps: Logps,
    /// distill: the model to learn from, of any family whose vocabulary is at least as large
    #[arg(long, value_name = "MODEL")]
    teacher: PathBuf,
    /// distill: the cross-entropy's share, the rest is the teacher's [default: 0.5; 2025: 0]
    #[arg(long, value_name = "X")]
    alpha: f64,
    /// distill: softens both distributions [default: 1.5; 2025: 1]; from rewards: of sampling
    /// [default: 1; 2026: 0.8]
    #[arg(long, value_name = "X")]
    temperature: f64,
    /// Rows of an optimizer step over all processes and micro-steps, whatever their number [default:
    /// batch-size x accum x processes]
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one, conflicts_with = "batch_size")]
    global_batch: usize,
    /// Divide the optimizer's moments among the processes: less memory each [default: nothing]
    #[arg(long, value_name = "optimizer")]
    shard: ShardFlag,
    /// The type in which gradients travel between processes [default: f32]
    #[arg(long, value_name = "f32|bf16")]
    reduce: ReduceFlag,
    /// What to compute in: auto, f32 or bf16; master weights are float32 [default: auto]
    #[arg(long, value_name = "TYPE")]
    dtype: String,
    /// Where to compute: auto, cpu, cuda, cuda:N or mps [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: String,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one)]
    threads: usize,
    /// The data's key for one of the known names (text=content, output=answer.best); repeatable
    #[arg(long, value_name = "NAME=KEY")]
    field: Vec<String>,
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
    /// Held-out data: with every checkpoint its loss, and how the model continues a few of its
    /// samples
    #[arg(long, value_name = "FILE")]
    val: PathBuf,
    /// Write every micro-step's numbers and the final weights' sums here
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Write all batches of the run here (safetensors: I.x, I.y, I.mask)
    #[arg(long, value_name = "FILE")]
    dump_batches: PathBuf,
    /// What changes the matrices between hidden states; all else is AdamW's. With muon --lr and
    /// --weight-decay are these matrices' alone [default: adamw; fast: muon]
    #[arg(long, value_name = "adamw|muon")]
    optimizer: Optimizer,
    /// muon: the peak learning rate of all else [default: --lr; fast: 0.004]
    #[arg(long, value_name = "X")]
    adam_lr: f64,
    /// Decay of AdamW's two moments [default: 0.9,0.999; muon: 0.9,0.95]
    #[arg(long, value_name = "X,Y")]
    betas: String,
    /// How the learning rate falls after its rise: the reference's cosine to a tenth, or a straight
    /// line to 0 [default: cosine; fast: linear]
    #[arg(long, value_name = "cosine|linear")]
    schedule: Schedule,
    /// Train with so many processes on this machine; torchrun, srun and mpirun start them on many
    /// [default: 1]
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one)]
    processes: usize,
    /// From rewards: the policy that the trained one is held to [default: --from]
    #[arg(long, value_name = "MODEL")]
    reference: PathBuf,
    /// From rewards: what answers are rewarded for, besides what a task says itself
    #[arg(long, value_name = "FILE")]
    reward: PathBuf,
    /// From rewards: answers of each prompt [default: 6; agent: 4; ppo: 1]
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one)]
    group_size: usize,
    /// From rewards: how far the ratio to the policy that sampled counts [default: 0.2]
    #[arg(long, value_name = "X")]
    epsilon: f64,
    /// From rewards: the same upwards; of cispo the largest weight [default: 0.28; 2026: --epsilon;
    /// cispo: 5]
    #[arg(long, value_name = "X")]
    epsilon_high: f64,
    /// From rewards: how much the divergence from the reference counts, 0 for no reference [default:
    /// 0.1; ppo: 0.02]
    #[arg(long, value_name = "X")]
    kl_coef: f64,
    /// From rewards: new tokens of an answer, or of a turn, at most [default: 1024; agent: 768]
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one)]
    max_new_tokens: usize,
    /// From rewards: grpo, cispo, dapo, bnpo, dr_grpo, gspo, luspo or sapo [default: the stage's;
    /// agent: cispo]
    #[arg(long, value_name = "NAME")]
    loss: String,
    /// From rewards: tools that may be called
    #[arg(long, value_name = "FILE")]
    tools: PathBuf,
    /// From rewards: write what is sampled here, a line each
    #[arg(long, value_name = "FILE")]
    rollouts_out: PathBuf,
    /// From rewards: train on these rollouts once; nothing is sampled or rewarded
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rollouts_out", "reward", "tools"])]
    rollouts: PathBuf,
    /// From rewards: tokens' losses to one: rows, tokens, max_length or sum_of_rows [default: tokens;
    /// 2026: rows]
    #[arg(long, value_name = "NAME")]
    loss_mean: String,
    /// From rewards: off, token_truncate, token_mask, sequence_truncate or sequence_mask: weigh by how
    /// probable the trainer finds what was sampled [default: token_truncate; 2026: off]
    #[arg(long, value_name = "NAME")]
    importance_sampling: String,
    /// From rewards: tokens kept in sampling, 0 for all [default: 0; 2026: 50]
    #[arg(long, value_name = "N")]
    top_k: usize,
    /// From rewards: probability kept in sampling [default: 1; 2026: 0.85]
    #[arg(long, value_name = "X")]
    top_p: f64,
    /// From rewards: answers that a limit cut off are not learned [default: off]
    #[arg(long, value_name = "on|off")]
    mask_truncated: Switch,
    /// From rewards: share of prompts that ask for thoughts [default: 0; 2026: 0.9, agent 0.1]
    #[arg(long, value_name = "X")]
    thinking_ratio: f64,
    /// From rewards: a server that samples, openai:URL[#MODEL] (vLLM), whose weights stay what they are
    /// [default: the runner, with the weights of now]
    #[arg(long, value_name = "NAME", conflicts_with = "rollouts")]
    engine: String,
    /// From rewards: run commands of tools and rewards where the system cannot confine them [default:
    /// off]
    #[arg(long, value_name = "on|off")]
    allow_unsandboxed: Switch,
    /// ppo: the critic's peak learning rate [default: 5e-7]
    #[arg(long, value_name = "X")]
    critic_lr: f64,
    /// ppo: rows of a minibatch [default: 2]
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one)]
    minibatch_size: usize,
    /// ppo: passes over a batch of answers [default: 2]
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one)]
    ppo_epochs: usize,
    /// Base of the rotary frequencies from here on, as for training on at a longer --max-seq-len: the
    /// checkpoint's config.json has it [default: the model's own]
    #[arg(long, value_name = "X")]
    rope_theta: f64,
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
                threads: knobs.threads,
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
            Some(ShardFlag::Gradients) => {
                return Err(Error::usage(
                    "--shard: expected optimizer, found gradients, which lie whole in every process",
                ));
            }
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

    /// The options of learning from rewards.
    fn of_rewards(&self, policy: &mut PolicyOptions, recipe: &str) -> Result<()> {
        if let Some(loss) = &self.loss {
            policy.choose(loss)?;
        }
        if let Some(mean) = &self.loss_mean {
            policy.choose_mean(mean)?;
        }
        if let Some(name) = &self.importance_sampling {
            policy.choose_importance(name)?;
        }
        if let Some(epsilon) = self.epsilon {
            policy.epsilon = epsilon;
            let clipped = policy.objective == Objective::Grpo;
            if clipped && (recipe == "2026" || policy.epsilon_high < epsilon) {
                policy.epsilon_high = epsilon;
            }
        }
        match self.epsilon_high {
            // the reference's grpo clips at epsilon on both sides, whatever this says
            Some(high) if recipe == "2026" && policy.objective == Objective::Grpo => {
                note!("--epsilon-high {high}: recipe 2026 clips at --epsilon on both sides");
            }
            Some(high) => policy.epsilon_high = high,
            None => {}
        }
        policy.kl_coef = self.kl_coef.unwrap_or(policy.kl_coef);
        policy.group_size = self.group_size.unwrap_or(policy.group_size);
        policy.max_new_tokens = self.max_new_tokens.unwrap_or(policy.max_new_tokens);
        policy.top_k = self.top_k.unwrap_or(policy.top_k);
        policy.top_p = self.top_p.unwrap_or(policy.top_p);
        policy.thinking_ratio = self.thinking_ratio.unwrap_or(policy.thinking_ratio);
        if let Some(temperature) = self.temperature {
            policy.temperature = temperature;
            if recipe != "2026" {
                policy.score_temperature = temperature;
            }
        }
        if let Some(mask) = self.mask_truncated {
            policy.mask_cut_off = mask == Switch::On;
        }
        Ok(())
    }

    /// An option that the stage would not look at is a mistake.
    fn refuse_options_of_other_stages(&self, stage: &str) -> Result<()> {
        let knobs = self;
        let of_rewards = mmx_data::stages::learns_from_rewards(stage);
        let for_rewards = [
            ("--reference", knobs.reference.is_some()),
            ("--reward", knobs.reward.is_some()),
            ("--group-size", knobs.group_size.is_some()),
            ("--epsilon", knobs.epsilon.is_some()),
            ("--epsilon-high", knobs.epsilon_high.is_some()),
            ("--kl-coef", knobs.kl_coef.is_some()),
            ("--max-new-tokens", knobs.max_new_tokens.is_some()),
            ("--loss", knobs.loss.is_some()),
            ("--tools", knobs.tools.is_some()),
            ("--rollouts-out", knobs.rollouts_out.is_some()),
            ("--rollouts", knobs.rollouts.is_some()),
            ("--loss-mean", knobs.loss_mean.is_some()),
            ("--importance-sampling", knobs.importance_sampling.is_some()),
            ("--top-k", knobs.top_k.is_some()),
            ("--top-p", knobs.top_p.is_some()),
            ("--mask-truncated", knobs.mask_truncated.is_some()),
            ("--engine", knobs.engine.is_some()),
            ("--allow-unsandboxed", knobs.allow_unsandboxed.is_some()),
            ("--thinking-ratio", knobs.thinking_ratio.is_some()),
        ];
        if let Some((option, _)) = for_rewards.iter().find(|(_, given)| *given && !of_rewards) {
            return Err(Error::usage(format!(
                "{option}: expected with a stage that learns from rewards (grpo, cispo, ppo, agent), found with \
                 {stage}"
            )));
        }
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
