//! Model families as data: what a family's tensors are called, how large they are, and where each
//! one lies in every public format.
//!
//! In: a [`Config`] (read from MiniMind's or Transformers' config.json, from GGUF keys, or a
//! preset). Out: [`weights`], one [`Weight`] per tensor of the model, in a fixed order. Training
//! names its variables by it, import and export walk the same rows in either direction, the runner
//! loads by it.
//!
//! A row says where the tensor lies in a public tensor as a [`Place`]: the public tensor's name and
//! shape, and the block of it that this weight fills. Stacked experts (GGUF), fused gate and up
//! (GraniteMoeShared) and joined shared experts are all such blocks, so one copy routine
//! ([`assemble`]) carries every family both ways.

pub mod assemble;
mod check;
mod config;
mod config_json;
pub mod deduce;
mod family;
mod gguf_keys;
mod keys;
pub mod lm_config;
pub mod presets;
mod public;
pub(crate) mod quantized;
pub mod rope;
pub mod rope_freqs;
mod rotary;
mod stretch;
mod table;
mod weight;

pub use config::{AuxLoss, Config, Family, Llama3, Moe, RopeScaling, Yarn};
pub use public::{Public, gather, public_tensors};
pub use stretch::Stretch;
pub use table::weights;
pub use weight::{Layout, Place, Role, Weight};
