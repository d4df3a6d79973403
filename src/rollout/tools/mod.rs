//! Tools that a policy may call: the calls in its text, and what answers them.
//!
//! | file | what it holds |
//! |---|---|
//! | `calls.rs` | the calls in a text |
//! | `registry.rs` | [`Tools`]: a file of tools, each with what runs it |
//! | `calculator.rs` | arithmetic, parsed |
//! | `lookup.rs` | tables |
//! | `python.rs` | JSON as Python writes it, as models have seen it |

mod calculator;
mod calls;
mod lookup;
mod python;
mod registry;

use mmx_converters::Result;
use serde_json::Value;

pub use calculator::evaluate;
pub use calls::calls;
pub use python::json_text;
pub use registry::Tools;

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
