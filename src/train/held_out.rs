//! What a model is measured with besides its training data, and what came of it.

use crate::error::Result;
use crate::model::Model;
use crate::ranks::Ranks;
use crate::report::samples::Sample;
use crate::stage::Stage;

/// What logs call the loss of held-out batches.
pub const VAL_LOSS: &str = "val_loss";
/// What logs call the mean reward of held-out tasks.
pub const VAL_REWARD: &str = "val_reward";

/// Data that is not trained on, with which a model is measured with each checkpoint and at the end.
pub trait HeldOut {
    /// What is measured, as logs call it: [`VAL_LOSS`] or [`VAL_REWARD`].
    fn name(&self) -> &'static str;

    /// What is measured, in words.
    fn in_words(&self) -> &'static str;

    /// Whether the model is measured before the first step too.
    fn before(&self) -> bool {
        false
    }

    /// Measures a model; all processes call it.
    ///
    /// # Errors
    /// libtorch's, an engine's; another process that fails.
    fn measure(&mut self, stage: &dyn Stage, model: &Model, ranks: &Ranks) -> Result<Measured>;
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// The loss or reward; nothing where there was nothing to measure.
    pub value: Option<f64>,
    /// Further numbers by name.
    pub numbers: Vec<(String, f64)>,
    /// What the model wrote.
    pub samples: Vec<Sample>,
}
