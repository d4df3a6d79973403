//! Tools that a policy may call: the calls in its text, and what answers them.

mod calls;

use mmx_converters::Result;
use serde_json::Value;

pub use calls::calls;

/// What a call was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// JSON as text: what the tool gave, or an object with the key `error`.
    pub result: String,
    /// Whether the call names a tool that is offered, with an object of arguments.
    pub is_valid: bool,
}

/// What runs calls.
pub trait Toolbox: Sync {
    /// Runs one call, the JSON value that stood between its tags. A call that makes no sense is
    /// answered with an error that the policy reads.
    ///
    /// # Errors
    /// Only what no policy can help: a program that cannot be started, for instance.
    fn run(&self, call: &Value) -> Result<Answer>;
}
