//! The options of `mmx train`, each defined once: as a flag, and as a key of a recipe file.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Deserialize;

/// A switch: on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Switch {
    On,
    Off,
}

/// How an answer's log-probability is made of its tokens'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Logps {
    /// The mean over the tokens
    Mean,
    /// The sum over the tokens, as the paper has it
    Sum,
}

/// What changes the hidden matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Optimizer {
    /// As the references
    #[value(name = "adamw")]
    AdamW,
    /// Orthogonalized momentum
    Muon,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Schedule {
    /// To a tenth
    Cosine,
    /// To 0
    Linear,
}

/// The action on a faulty record or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnFault {
    /// End the run
    Stop,
    /// Leave it out and say so
    Skip,
}

/// What is divided among processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ShardFlag {
    /// The moments
    Optimizer,
    /// The moments and the gradients
    Gradients,
}

/// The type in which gradients travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ReduceFlag {
    F32,
    Bf16,
}

/// Where the divergence from the reference counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KlIn {
    /// Beside the objective
    Loss,
    /// In what is rewarded
    Reward,
}

/// The type of the runner's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RolloutType {
    F32,
    Bf16,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
}

/// Defines the options once: as flags, as keys of the recipe file, and how the two are merged.
macro_rules! knobs {
    ($($(#[$attribute:meta])* $field:ident: $type:ty,)*) => {
        /// The options that a recipe file may hold too.
        #[derive(Args, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub(super) struct Knobs {
            $($(#[$attribute])* pub(super) $field: Option<$type>,)*
        }

        impl Knobs {
            /// What is not given here is taken from `other`.
            pub(super) fn or(self, other: Self) -> Self {
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
    /// Divide the optimizer's moments among the processes, or the gradients too: less memory each
    /// [default: nothing]
    #[arg(long, value_name = "optimizer|gradients")]
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
    /// samples; from rewards: tasks, answered greedily before the first step too, and their reward
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
    /// From rewards: grpo, cispo, dapo, bnpo, dr_grpo, gspo, luspo, sapo or spo [default: the stage's;
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
    /// From rewards: where the divergence from the reference counts: in the loss, or in the reward of
    /// what was sampled [default: loss]
    #[arg(long, value_name = "loss|reward")]
    kl_in: KlIn,
    /// From rewards: draw other prompts, up to N times a batch, in place of those whose answers have
    /// equal rewards [default: 0]
    #[arg(long, value_name = "N")]
    dynamic_sampling: usize,
    /// From rewards: over the last N new tokens before the limit the reward falls evenly, by 1 [default:
    /// 0]
    #[arg(long, value_name = "N")]
    overlong_buffer: usize,
    /// From rewards: the type of the runner's weights: f32, bf16, f16 or q8_0; all but the first read
    /// fewer bytes and sample from slightly other distributions [default: f32]
    #[arg(long, value_name = "TYPE", conflicts_with_all = ["rollouts", "engine"])]
    rollout_dtype: RolloutType,
    /// Base of the rotary frequencies from here on, as for training on at a longer --max-seq-len: the
    /// checkpoint's config.json has it [default: the model's own]
    #[arg(long, value_name = "X")]
    rope_theta: f64,
}
