//! Tools that a policy may call: the calls in its text, and what answers them.
//!
//! | file | what it holds |
//! |---|---|
//! | `calls.rs` | the calls in a text |
//! | `registry.rs` | [`Tools`]: a file of tools, each with what runs it |
//! | `calculator.rs` | arithmetic, parsed |
//! | `lookup.rs` | tables |
//! | `toolbox.rs` | the trait [`Toolbox`] |
//! | `python.rs` | JSON as Python writes it, as models have seen it |

mod calculator;
mod calls;
mod lookup;
mod python;
mod registry;
mod toolbox;

pub use calculator::evaluate;
pub use calls::calls;
pub use python::json_text;
pub use registry::Tools;
pub use toolbox::{Answer, Toolbox};
