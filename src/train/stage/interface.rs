//! What a stage is to the training loop: the trait [`Stage`], what it is made ready with, and the
//! [`Loss`] it gives.

use std::path::PathBuf;

use mmx_converters::model::adapter::Adapters;
use mmx_converters::tokenizer::Tokenizer;
use mmx_data::{Batch, Kind, Recipe, StageInfo};
use tch::Tensor;

use crate::config::{Defaults, TrainConfig};
use crate::error::Result;
use crate::model::{HostTensor, Model, Variable};

/// A training stage: what is learned from a batch, and the reference's hyper-parameters for it.
pub trait Stage {
    /// Its row in the list of stages: name, data, default length.
    fn info(&self) -> &'static StageInfo;

    /// The name on the command line.
    fn name(&self) -> &'static str {
        self.info().name
    }

    /// What its data files hold.
    fn kind(&self) -> Kind {
        self.info().kind
    }

    /// The reference's hyper-parameters.
    fn defaults(&self, recipe: Recipe) -> Defaults;

    /// Before the first step: adapters are attached, a reference or teacher is made ready.
    ///
    /// # Errors
    /// What the stage needs is not there or does not fit.
    fn prepare(&mut self, _model: &mut Model, _setup: Setup<'_>) -> Result<()> {
        Ok(())
    }

    /// What the optimizer changes: all weights unless the stage says otherwise.
    fn trainable(&self, model: &Model) -> Vec<Variable> {
        model.variables().iter().map(Variable::share).collect()
    }

    /// What an optimizer of its own changes besides: a critic's weights.
    fn critic(&self) -> Vec<Variable> {
        Vec::new()
    }

    /// What a checkpoint keeps of the stage: a critic, what was computed of a batch in hand.
    ///
    /// # Errors
    /// libtorch's.
    fn state(&self) -> Result<Vec<HostTensor>> {
        Ok(Vec::new())
    }

    /// Puts back what [`Stage::state`] gave.
    ///
    /// # Errors
    /// A state that does not fit.
    fn restore(&self, _state: &[HostTensor]) -> Result<()> {
        Ok(())
    }

    /// Whether a batch's rows must be padded to the full length, as the reference has them, because
    /// the numbers depend on padding (a balancing loss counts it).
    fn counts_padding(&self, model: &Model) -> bool {
        model.config().moe.is_some()
    }

    /// The loss of one micro-step, before it is divided by the accumulation steps.
    ///
    /// # Errors
    /// libtorch's.
    fn loss(&self, model: &Model, batch: &Batch) -> Result<Loss>;

    /// Hands the loss of one micro-step to `learn`, which takes its gradient: in parts that add up to
    /// it, one after the other, where the stage can, so that the memory of one is there for the next.
    /// Gives the whole, whose gradient has been taken.
    ///
    /// # Errors
    /// libtorch's, and those of `learn`.
    fn learn(&self, model: &Model, batch: &Batch, learn: &mut Learn<'_>) -> Result<Loss> {
        let loss = self.loss(model, batch)?;
        learn(&loss)?;
        Ok(loss)
    }

    /// Rows whose activations are there at a time, of a batch of `rows` of `positions` each.
    fn rows_at_a_time(&self, _model: &Model, rows: usize, _positions: usize) -> usize {
        rows
    }

    /// Is told that the micro-steps so far have become an optimizer step.
    fn stepped(&self) {}

    /// Is told that the micro-steps since the last optimizer step are done again.
    fn rewound(&self) {}
}

/// Takes the gradient of a loss.
pub type Learn<'a> = dyn FnMut(&Loss) -> Result<()> + 'a;

/// The means by which a stage is made ready, besides the model it trains.
pub struct Setup<'a> {
    /// The resolved configuration.
    pub config: &'a TrainConfig,
    /// LoRA: adapters to go on with, and the file they are from.
    pub adapters: Option<(PathBuf, Adapters)>,
    /// LoRA: what the adapters' files call the model they are for.
    pub base: Option<String>,
    /// A model that stays as it is: DPO's reference, distillation's teacher.
    pub frozen: Option<Model>,
    /// What the critic of stage ppo begins as.
    pub critic: Option<Model>,
    /// Reasoning: the tokenizer that has the ids of the tags.
    pub tokenizer: Option<&'a Tokenizer>,
}

impl<'a> Setup<'a> {
    /// A setup with the configuration alone.
    pub fn new(config: &'a TrainConfig) -> Self {
        Self { config, adapters: None, base: None, frozen: None, critic: None, tokenizer: None }
    }
}

/// The loss of one micro-step.
#[derive(Debug)]
pub struct Loss {
    /// The scalar whose gradient is taken; nothing when no token of the batch is learned.
    pub total: Option<Tensor>,
    /// Parts by name, for the log and the trace.
    pub parts: Vec<(&'static str, Part)>,
    /// Targets that are learned.
    pub trained_tokens: usize,
    /// The part of the total that a critic learns from.
    pub critic: Option<Tensor>,
    /// Micro-steps after this one that are left out.
    pub skip: usize,
}

/// The part that holds times: of the log, but not of a trace, which is the same for the same run.
pub(crate) const TIMES: &str = "times";

/// One named part of a loss.
#[derive(Debug)]
pub enum Part {
    /// A scalar; of several processes, or pieces of a batch, the sum counts.
    Scalar(Tensor),
    /// A scalar of which the largest one counts.
    Most(Tensor),
    /// One value per sample.
    PerSample(Tensor),
    /// A part that this model does not have.
    Zero,
    /// A number known on the host; of several processes the sum counts.
    Count(usize),
    /// A number known on the host, the same on all processes.
    Number(f64),
    /// Such numbers by names that data gives: parts of a reward. Times are the first process's.
    Numbers(Vec<(String, f64)>),
}

impl Loss {
    /// The loss of a batch without a learned token: no scalar and no parts.
    pub fn nothing() -> Self {
        Self { total: None, parts: Vec::new(), trained_tokens: 0, critic: None, skip: 0 }
    }

    /// The loss without the graph behind its numbers, whose memory is wanted back.
    pub(crate) fn detached(self) -> Self {
        let part = |part| match part {
            Part::Scalar(tensor) => Part::Scalar(tensor.detach()),
            Part::Most(tensor) => Part::Most(tensor.detach()),
            Part::PerSample(tensor) => Part::PerSample(tensor.detach()),
            other => other,
        };
        Self {
            total: self.total.map(|total| total.detach()),
            parts: self.parts.into_iter().map(|(name, p)| (name, part(p))).collect(),
            trained_tokens: self.trained_tokens,
            critic: self.critic.map(|critic| critic.detach()),
            skip: self.skip,
        }
    }
}

impl TrainConfig {
    /// The reference's values for a stage; mmx's own where the reference has no such knob.
    pub fn new(stage: &dyn Stage, recipe: Recipe) -> Self {
        Self::of_defaults(stage.info(), stage.defaults(recipe), recipe)
    }

    /// The values of a recipe by its name, 2025, 2026 or fast, for a stage.
    ///
    /// # Errors
    /// Another name.
    pub fn named(stage: &dyn Stage, recipe: &str) -> Result<Self> {
        Self::of_recipe(recipe, stage.info(), |recipe| stage.defaults(recipe))
    }
}
