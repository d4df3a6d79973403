//! What answers calls.

use mmx_converters::Result;
use serde_json::Value;

/// What a call was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// JSON as text: what the tool gave, or an object with the key `error`.
    pub result: String,
    /// Whether the call names a tool that is offered and known, with an object of arguments that
    /// holds the required ones.
    pub is_valid: bool,
}

/// What runs calls.
pub trait Toolbox: Sync {
    /// Runs one call, the JSON value that stood between its tags, of the tools that are offered, a
    /// list in OpenAI's form. A call that makes no sense is answered with an error that the policy
    /// reads.
    ///
    /// # Errors
    /// Only what no policy can help: a program that cannot be started, for instance.
    fn run(&self, call: &Value, offered: &Value) -> Result<Answer>;
}
