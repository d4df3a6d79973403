//! The engine that samples: weights and requests in, completions out.
//!
//! Training knows this trait alone; the program that links both hands in the runner.

use mmx_converters::Result;

use crate::rollout::Finish;

/// One prompt to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Ids that the completion goes on from, at least one.
    pub prompt: Vec<u32>,
    /// New ids at most, a stop id included.
    pub max_new: usize,
    /// Seed of the row's own random stream: a row is the same whatever is sampled beside it.
    pub seed: u64,
}

/// The distribution that ids are sampled from, the same for all rows of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most probable id.
    pub temperature: f32,
    /// Ids kept at most; 0 keeps all.
    pub top_k: usize,
    /// Probability kept at least; 1 keeps all.
    pub top_p: f32,
    /// Ids that end a completion, each of them part of it.
    pub stop: Vec<u32>,
}

/// The continuation of one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// The sampled ids; the last one is a stop id where `finish` is [`Finish::Stop`].
    pub ids: Vec<u32>,
    /// Per id, its log-probability in the distribution it was drawn from (logits over temperature,
    /// after truncation).
    pub logps: Vec<f32>,
    /// Why it ends.
    pub finish: Finish,
}

/// A weight of the policy by its name in the checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// The name in the Transformers folder.
    pub name: &'a str,
    /// Rows first.
    pub shape: &'a [usize],
    /// Row after row.
    pub values: &'a [f32],
}

/// Continues a row after its completion: nothing where the row is done, else the request that
/// takes its place (a further turn, whose prompt begins with all that was read and written).
pub type Next<'a> = dyn FnMut(usize, Completion) -> Result<Option<Request>> + 'a;

/// What samples completions.
pub trait Engine {
    /// Takes the weights that the next completions are sampled with: every weight of the model,
    /// one after the other.
    ///
    /// # Errors
    /// Weights that are not those of its model.
    fn take(&mut self, weights: &mut dyn Iterator<Item = Weight<'_>>) -> Result<()>;

    /// Samples a completion of each request, many at a time, and hands each to `next` with its
    /// request's index as soon as it ends; requests that share the beginning of their prompts are
    /// read once. It returns when every row is done.
    ///
    /// # Errors
    /// A prompt that does not fit the model's context; an error of `next`.
    fn sample(
        &mut self,
        requests: Vec<Request>,
        sampling: &Sampling,
        next: &mut Next<'_>,
    ) -> Result<()>;
}
