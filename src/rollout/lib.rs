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

mod engine;
mod rollout;

pub use engine::{Completion, Engine, Request, Sampling, Weight};
pub use rollout::{Finish, Rollout};
