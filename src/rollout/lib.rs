//! Rollouts: texts that a policy samples, which training by reward learns from.
//!
//! Everything here is plain Rust and knows neither libtorch nor ggml: training reads
//! [`Rollout`]s, whatever wrote them, and an [`Engine`] writes them, whatever computes it.
//!
//! ```
//! use mmx_rollout::{Finish, Rollout};
//!
//! let rollout = Rollout {
//!     prompt: vec![1, 65, 66, 2],
//!     ids: vec![70, 71, 2],
//!     sampled: vec![true; 3],
//!     logps: vec![-0.5, -0.25, -0.125],
//!     finish: Finish::Stop,
//!     ..Rollout::default()
//! };
//! let line = rollout.to_json();
//! assert_eq!(Rollout::from_json(&line)?, rollout);
//! # Ok::<(), mmx_converters::Error>(())
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | `engine.rs` | the trait [`Engine`]: requests to completions, with the weights of now |
//! | `rollout.rs` | [`Rollout`]: a prompt, its ids, who wrote each, its reward; a line of JSON |
//! | `prompts.rs` | [`Prompts`]: files of tasks to prompts, one [`Draw`] after the other |
//! | `session.rs` | [`Conversation`]: completions to the next request or the row's [`Rollout`] |
//! | `written.rs` | [`Written`]: the texts of a rollout, as rewards read them |
//! | [`reward`] | the trait [`Scorer`]: texts to rewards, every part apart |
//! | [`tools`] | calls in a text, and the trait [`Toolbox`] that answers them |
//! | [`sandbox`] | programs of others, confined: JSON lines in, JSON lines out |

mod engine;
mod prompts;
pub mod reward;
mod rollout;
pub mod sandbox;
mod session;
pub mod tools;
mod written;

pub use engine::{Completion, Engine, Next, Request, Sampling, Weight};
pub use prompts::{Draw, PromptOptions, Prompts};
pub use reward::{Score, Scorer};
pub use rollout::{Finish, Rollout};
pub use session::{Conversation, Limits};
pub use tools::Toolbox;
pub use written::{Called, Written};
