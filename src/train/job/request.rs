//! A training run as it is asked for, before anything is opened.

use std::path::PathBuf;

use mmx_data::{Cache, OnBad};

use crate::config::TrainConfig;
use crate::distributed::Place;
use crate::ranks::{Reduce, Shard};

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
    /// The policy that learning from rewards is held to; nothing for the model to start from.
    pub reference: Option<PathBuf>,
    /// Where to compute: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; nothing for `auto`.
    pub device: Option<String>,
    /// CPU threads; nothing for all cores.
    pub threads: Option<usize>,
    /// What to do with a faulty line of data.
    pub on_bad: OnBad,
    /// Optimizer steps between checkpoints; nothing for every ten minutes.
    pub save_every: Option<usize>,
    /// Checkpoints to keep.
    pub keep: usize,
    /// Held-out data; of stages that learn from rewards, tasks.
    pub val: Option<PathBuf>,
    /// Learning from rewards: rollouts to train on; nothing is sampled then.
    pub rollouts: Option<PathBuf>,
    /// Learning from rewards: where what is sampled is written.
    pub rollouts_out: Option<PathBuf>,
    /// Every micro-step's numbers and the final weights' sums are written here.
    pub trace: Option<PathBuf>,
    /// All batches of the run are written here.
    pub dump_batches: Option<PathBuf>,
    /// Where tokens are kept between runs.
    pub cache: Cache,
    /// The place of this process among those of the run, each of which is given the same request;
    /// nothing for a run of one process. The first one's listener hears all there is to say: what
    /// the others' hear is the same.
    pub place: Option<Place>,
    /// Rows of an optimizer step over all processes and micro-steps, from which the rows of a
    /// micro-step follow, whatever the configuration says: they are the same for any number of
    /// processes. Without it the configuration's `batch_size` is each process's.
    pub global_batch: Option<usize>,
    /// What of the optimizer is divided among the processes.
    pub shard: Shard,
    /// The type in which gradients travel between the processes.
    pub reduce: Reduce,
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
            reference: None,
            device: None,
            threads: None,
            on_bad: OnBad::Error,
            save_every: None,
            keep: 2,
            val: None,
            rollouts: None,
            rollouts_out: None,
            trace: None,
            dump_batches: None,
            cache: Cache::user(),
            place: None,
            global_batch: None,
            shard: Shard::Nothing,
            reduce: Reduce::F32,
        }
    }
}
